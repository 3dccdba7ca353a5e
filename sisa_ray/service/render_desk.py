"""Requests, evidence and coordinators as text for people. Nothing here names a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sisa_ray.service.tracker import count

if TYPE_CHECKING:
    from sisa_ray.core.certificate import Certificate, Receipt
    from sisa_ray.execution.acceptance import Acceptance
    from sisa_ray.execution.coordinator import Report
    from sisa_ray.execution.results import (
        CertificatesResult,
        HistoryLine,
        LiftResult,
        ReplayResult,
        ReplayVerification,
        RequestRow,
        RequestsResult,
    )

_ID_DIGITS = 8
_MAX_ROWS = 50
_DAY_S = 86_400


def plain(text: str) -> RenderableType:
    """One line."""
    return Text(text)


def accepted_text(accepted: Sequence[Acceptance]) -> RenderableType:
    """What was accepted, and by when it is due."""
    new = sum(a.is_new for a in accepted)
    head = f"accepted {count(new, 'request')}"
    if new < len(accepted):
        head += f"; {count(len(accepted) - new, 'request')} had been made before"
    table = _table("request", "state", "subjects", "due")
    for a in accepted[:_MAX_ROWS]:
        late = Text(" overdue: it runs at once", "bold red") if a.is_overdue else Text("")
        due = Text.assemble(f"{a.due_at:%Y-%m-%d %H:%M}", late)
        table.add_row(a.request[:_ID_DIGITS], a.state, f"{a.num_subjects:,}", due)
    return Group(Text(head), table, *_more(len(accepted)))


def requests_text(result: RequestsResult) -> RenderableType:
    """Requests and the time left on their clocks."""
    if not result.rows:
        return Text("no requests")
    table = _table("request", "state", "subjects", "basis", "received", "due", "time left", "batch")
    for row in result.rows[:_MAX_ROWS]:
        subjects = f"{row.num_subjects:,}" + (f" ({row.num_unknown:,} unknown)" if row.num_unknown else "")
        basis = row.basis + (" extended" if row.is_extended else "")
        table.add_row(
            row.request[:_ID_DIGITS],
            row.state,
            subjects,
            basis,
            f"{row.received_at:%Y-%m-%d}",
            f"{row.due_at:%Y-%m-%d}",
            _left(row),
            (row.batch or "")[:_ID_DIGITS],
        )
    trouble = [Text(f"purge: {result.purge_trouble}", "bold red")] if result.purge_trouble else []
    return Group(table, *_more(len(result.rows)), *trouble)


def row_text(row: RequestRow) -> RenderableType:
    """One request."""
    return Text(f"request {row.request[:_ID_DIGITS]}: {row.state}, due {row.due_at:%Y-%m-%d}")


def replay_text(result: ReplayResult) -> RenderableType:
    """What a replay did."""
    if not result.num_replayed:
        return Text("the run knows everybody in the mirror; nothing to do")
    people = count(result.num_replayed, "suppression")
    return Text(f"replayed {people}; generation {result.generation} is published")


def lift_text(result: LiftResult) -> RenderableType:
    """What was lifted."""
    return Text(f"lifted {count(result.num_lifted, 'suppression')}; a later ingest may learn from them again")


def history_text(lines: Sequence[HistoryLine]) -> RenderableType:
    """A log, one record a line."""
    table = _table("entry", "at", "what", "facts")
    for line in lines:
        facts = "  ".join(f"{name} {value}" for name, value in line.facts.items() if value)
        table.add_row(str(line.seq), f"{line.at:%Y-%m-%d %H:%M:%S}", line.type.replace("_", " "), facts)
    return table


def certificates_text(result: CertificatesResult) -> RenderableType:
    """Certified batches."""
    if not result.rows:
        return Text("no batch is certified yet")
    table = _table("batch", "closed", "requests", "shards", "file")
    for row in result.rows[:_MAX_ROWS]:
        shards = ", ".join(map(str, row.shards)) or "none"
        closed = f"{row.closed_at:%Y-%m-%d %H:%M}"
        table.add_row(row.batch[:_ID_DIGITS], closed, str(row.num_requests), shards, row.path)
    return Group(table, *_more(len(result.rows)))


def signed_text(content: Mapping[str, Any]) -> RenderableType:
    """A certificate or a receipt, member by member."""
    table = _table("", "")
    for name, value in content.items():
        table.add_row(name, "\n".join(_lines(value)))
    return table


def verified_text(
    document: Certificate | Receipt, checked: Sequence[str], replayed: ReplayVerification | None
) -> RenderableType:
    """What holds."""
    lines = [Text(f"{document.kind} of batch {document.batch[:_ID_DIGITS]} of run {document.run.name!r}")]
    lines.append(Text.assemble("checked: ", ", ".join(checked), ": ", ("valid", "bold green")))
    if replayed is not None:
        for shard in replayed.shards:
            if shard.is_superseded:
                later = f" by batch {shard.superseded_by[:_ID_DIGITS]}" if shard.superseded_by else ""
                lines.append(Text(f"shard {shard.shard}: superseded{later}; it cannot be replayed any more"))
        style = "bold red" if replayed.outcome == "different" else "bold"
        lines.append(Text.assemble("replay: ", (replayed.outcome, style)))
        if replayed.first_difference:
            lines.append(Text(f"first difference: {replayed.first_difference}"))
    return Group(*lines)


def report_text(report: Report) -> RenderableType:
    """How a coordinator is."""
    lines = [
        Text(f"coordinator of {report.address}: {report.status} (process {report.pid} on {report.host})")
    ]
    waiting = ", ".join(f"{n:,} {state}" for state, n in report.requests_by_state.items())
    lines.append(Text(f"open requests: {waiting or 'none'}; generation {report.generation}"))
    if report.doing:
        lines.append(Text(f"doing: {report.doing}"))
    lines += [Text(trouble, "bold red") for trouble in (report.trouble, report.purge_trouble) if trouble]
    return Group(*lines)


def coordinator_text(report: Report | None, sign: Mapping[str, Any] | None) -> RenderableType:
    """How a coordinator is, or where one may be."""
    if report is not None:
        return report_text(report)
    if sign is not None:
        return Text(
            f"a coordinator gave a sign of life at {sign['renewed_at']} on {sign['host']}, and this machine does not "
            "reach it; set RAY_ADDRESS to its cluster"
        )
    return Text("no coordinator runs; `sisa-ray coordinator start RUN` starts one")


def _left(row: RequestRow) -> Text:
    if row.seconds_left is None:
        return Text("closed")
    days, rest = divmod(abs(row.seconds_left), _DAY_S)
    text = f"{days:.0f} d {rest // 3600:.0f} h"
    return Text(f"{text} late", "bold red") if row.seconds_left < 0 else Text(text)


def _lines(value: Any) -> list[str]:
    if isinstance(value, list):
        return [line for item in value for line in _lines(item)] or ["none"]
    if isinstance(value, dict):
        return [", ".join(f"{k} {_flat(v)}" for k, v in value.items())]
    return [str(value)]


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return f"({len(value)})"
    if isinstance(value, dict):
        return f"({', '.join(f'{k} {_flat(v)}' for k, v in value.items())})"
    return str(value)


def _more(total: int) -> list[Text]:
    if total <= _MAX_ROWS:
        return []
    return [Text(f"… and {total - _MAX_ROWS:,} more; --json lists all", style="dim")]


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=any(headings))
    for heading in headings:
        table.add_column(heading)
    return table
