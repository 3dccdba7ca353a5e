"""Results as text for people. What they hold is decided elsewhere; nothing here names a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sisa_ray.service.subjects import SubjectList
from sisa_ray.service.tracker import count, duration

if TYPE_CHECKING:
    from sisa_ray.execution.results import (
        AppendResult,
        BaselineResult,
        IngestResult,
        PredictResult,
        ShardSizes,
        StageStatus,
        StatusResult,
        TrainResult,
        UnlearnResult,
        UnlearnRow,
        VerifyResult,
    )

TAG_DIGITS = 12
"""Digits of a tag that are shown: enough to find a person's log records by."""

_MAX_ROWS = 50
_MAX_SLICES = 12
_STAGE_MARKS = {
    ("built", True): ("■", "green"),
    ("built", False): ("□", "green"),
    ("stale", True): ("▨", "yellow"),
    ("stale", False): ("▨", "yellow"),
    ("missing", True): ("·", "red"),
    ("missing", False): ("·", "red"),
}


def ingest_text(result: IngestResult) -> RenderableType:
    """Sizes per shard and slice."""
    if result.already:
        head = f"{result.num_records:,} records were ingested before; nothing to do"
    else:
        head = f"ingested {result.num_records:,} records from {result.num_rows:,} rows"
    if result.num_refused:
        head += f"; {result.num_refused:,} refused, because their subjects asked to be forgotten"
    return Group(Text(head), _sizes_table(result.shards), _address(result.address))


def append_text(result: AppendResult) -> RenderableType:
    """What was appended, and what it took."""
    lines = [f"appended {result.num_rows - result.num_refused:,} of {count(result.num_rows, 'row')}"]
    if result.num_refused:
        lines[0] += f"; {result.num_refused:,} refused, because their subjects asked to be forgotten"
    lines.append(
        f"each shard has {count(result.num_slices, 'slice')} now, {result.num_records:,} records in all"
    )
    if result.generation:
        lines.append(
            f"built {count(result.stages_built, 'stage')} ({result.record_visits:,} record-visits) in "
            f"{duration(result.seconds)}; generation {result.generation} is published"
        )
    return Group(*map(Text, lines), _sizes_table(result.shards), _address(result.address))


def train_text(result: TrainResult) -> RenderableType:
    """What was built and how good it is."""
    lines = [f"{result.num_shards} shards × {result.num_slices} slices, {result.num_records:,} records: "]
    if result.stages_built:
        lines[0] += f"built {count(result.stages_built, 'stage')} in {duration(result.seconds)} "
        lines[0] += f"({result.record_visits:,} record-visits)"
    else:
        lines[0] += "everything was trained before"
    if result.ensemble is not None:
        lines.append(quality(result.metric, result.ensemble, result.constituents))
    lines.append(f"generation {result.generation} is published")
    return Group(*map(Text, lines), _address(result.address))


def quality(metric: str | None, ensemble: float, constituents: Sequence[float | None]) -> str:
    """The ensemble's metric beside its constituents'."""
    known = [v for v in constituents if v is not None]
    text = f"{metric} of the ensemble {measure(metric, ensemble)}"
    if known:
        text += f" (its constituents: {measure(metric, min(known))} to {measure(metric, max(known))})"
    return text


def measure(metric: str | None, value: float) -> str:
    """Accuracy as a percentage, anything else as a number."""
    return f"{value:.1%}" if metric == "accuracy" else f"{value:.4g}"


def unlearn_text(result: UnlearnResult, subjects: SubjectList, *, show_ids: bool) -> RenderableType:
    """What became of everybody, and what it cost."""
    parts = [f"forgot {result.num_forgotten:,} of {count(result.num_subjects, 'subject')}"]
    if result.num_already_forgotten:
        parts.append(f"{result.num_already_forgotten:,} forgotten before")
    if result.num_unknown:
        parts.append(f"{result.num_unknown:,} unknown here")
    lines = [
        "; ".join(parts) + f" ({count(result.num_records, 'record')} erased, {duration(result.seconds)})"
    ]
    if result.slices_rewritten:
        lines.append(
            f"rewrote {count(result.slices_rewritten, 'slice')}, deleted "
            f"{count(result.objects_purged, 'object')} and verified that they are gone"
        )
    lines.append(_cost(result))
    if result.generation:
        lines.append(f"generation {result.generation} is published")
    return Group(*map(Text, lines), *_people(result.rows, subjects, show_ids), _address(result.address))


def _cost(result: UnlearnResult) -> str:
    if not result.stages_rebuilt:
        return "nothing had to be retrained"
    share = result.record_visits / max(1, result.full_retrain_record_visits)
    shards = count(len(result.shards_rebuilt), "shard")
    return (
        f"retrained {count(result.stages_rebuilt, 'stage')} of {shards}: "
        f"{result.record_visits:,} record-visits instead of {result.full_retrain_record_visits:,} "
        f"for training from scratch ({share:.1%})"
    )


def _people(rows: Sequence[UnlearnRow], subjects: SubjectList, show_ids: bool) -> Iterator[RenderableType]:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("from", "tag", *(["subject"] if show_ids else []), "outcome", "shard", "slice"):
        table.add_column(heading)
    # Those the run does not know come first: they are most likely typing errors.
    ordered = sorted(rows, key=lambda row: row.outcome != "unknown")
    for row in ordered[:_MAX_ROWS]:
        place = ["" if n is None else str(n) for n in (row.shard, row.slice)]
        who = [Text(subjects.keys[row.row])] if show_ids else []
        table.add_row(subjects.places[row.row], row.tag[:TAG_DIGITS], *who, row.outcome, *place)
    yield table
    if len(ordered) > _MAX_ROWS:
        yield Text(f"… and {len(ordered) - _MAX_ROWS:,} more; --json lists all", style="dim")


def verify_text(result: VerifyResult) -> RenderableType:
    """One line of what was compared and how it ended, and where it first differs."""
    source = "source tables" if result.source == "source tables" else "slices of the run"
    compared = (
        f"{count(result.num_slices, 'slice')}, {count(result.num_checkpoints, 'checkpoint')} and "
        f"{count(result.num_predictions, 'prediction')} of {count(len(result.shards), 'shard')} compared "
        f"with training from scratch (from the {source}) in {duration(result.seconds)}"
    )
    answer = {"bit-identical": "yes", "different": "NO", "not comparable": "not comparable"}[result.outcome]
    style = {"yes": "bold green", "NO": "bold red"}.get(answer, "bold yellow")
    line = Text.assemble(f"{compared}: bit-identical: ", (answer, style))
    if result.first_difference is None:
        return line
    heading = "first difference" if result.outcome == "different" else "why"
    return Group(line, Text(f"{heading}: {result.first_difference}"))


def predict_text(result: PredictResult) -> RenderableType:
    """Where the predictions are, and how good where the table has labels."""
    voters = count(result.num_voters, "constituent")
    lines = [f"{count(result.num_rows, 'prediction')} by {voters}, rule {result.rule}"]
    if result.mean_agreement is not None:
        lines[0] += f", mean agreement {result.mean_agreement:.1%}"
    if result.value is not None:
        lines.append(f"{result.metric} {measure(result.metric, result.value)}")
    return Group(*map(Text, lines), Text(f"written to {result.out}"))


def baseline_text(result: BaselineResult) -> RenderableType:
    """A single model beside the ensemble."""
    on = "everything" if result.kind == "full" else "one shard's share of the data"
    text = (
        f"one model on {on}: {count(result.num_records, 'record')}, "
        f"{result.record_visits:,} record-visits in {duration(result.seconds)}"
    )
    if result.value is not None:
        text += f", {result.metric} {measure(result.metric, result.value)}"
    return Text(text)


def status_text(result: StatusResult) -> RenderableType:
    """Shards × slices, totals, and what to do next."""
    num_built = sum(s.status == "built" for s in result.stages)
    facts = [
        f"{result.num_records:,} records in {count(len(result.shards), 'shard')}",
        f"{num_built}/{len(result.stages)} stages built",
        f"generation {result.generation}" if result.generation else "nothing published yet",
        f"device {result.device}",
    ]
    people = [
        f"{count(result.num_suppressed, 'subject')} asked to be forgotten",
        f"{count(result.open_requests, 'open request')}",
        "purge due" if result.purge_due else "nothing left to purge",
    ]
    lines: list[RenderableType] = [_address(result.address), Text(", ".join(facts)), Text(", ".join(people))]
    if result.purge_trouble:
        lines.append(Text(f"purge: {result.purge_trouble}", "bold red"))
    if result.shards:
        lines += [_stages_table(result.shards, result.stages), *_legend(result.stages)]
    lines.append(
        Text(f"last verified: {result.last_verified or 'never'}; {result.num_log_entries} log entries")
    )
    lines.append(Text.assemble(("next: ", "bold"), result.next_step or "nothing; the run is as it should be"))
    return Group(*lines)


def _stages_table(shards: Sequence[ShardSizes], stages: Sequence[StageStatus]) -> Table:
    by_shard: dict[int, list[StageStatus]] = {}
    for stage in stages:
        by_shard.setdefault(stage.shard, []).append(stage)
    table = _table("shard", "records", "stages", "records by slice")
    for shard in shards[:_MAX_ROWS]:
        marks = Text()
        for stage in sorted(by_shard.get(shard.shard, []), key=lambda s: s.stage):
            marks.append(*_STAGE_MARKS[stage.status, stage.kept])
        table.add_row(str(shard.shard), f"{shard.num_records:,}", marks, _slice_sizes(shard))
    if len(shards) > _MAX_ROWS:
        table.add_row(
            "…", "", Text(f"{len(shards) - _MAX_ROWS} more shards; --json lists all", style="dim"), ""
        )
    return table


def _legend(stages: Sequence[StageStatus]) -> Iterator[Text]:
    meaning = {
        "■": "built, checkpoint kept",
        "□": "built, checkpoint not kept",
        "▨": "its slices changed: to be rebuilt",
        "·": "not built",
    }
    seen = {_STAGE_MARKS[s.status, s.kept] for s in stages}
    legend = Text()
    for mark, text in meaning.items():
        style = next((style for m, style in seen if m == mark), None)
        if style is not None:
            legend.append(mark, style).append(f" {text}   ", "dim")
    yield legend


def _sizes_table(shards: Sequence[ShardSizes]) -> Table:
    table = _table("shard", "records", "records by slice")
    for shard in shards[:_MAX_ROWS]:
        table.add_row(str(shard.shard), f"{shard.num_records:,}", _slice_sizes(shard))
    if len(shards) > _MAX_ROWS:
        table.add_row("…", "", Text(f"{len(shards) - _MAX_ROWS} more shards; --json lists all", style="dim"))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(
            heading, justify="right" if heading in ("shard", "records") else "left", no_wrap=True
        )
    return table


def _slice_sizes(shard: ShardSizes) -> str:
    sizes = shard.slices
    if len(sizes) <= _MAX_SLICES:
        return " ".join(f"{n:,}" for n in sizes)
    return f"{min(sizes):,} to {max(sizes):,} in each of {len(sizes)}"


def _address(address: str) -> Text:
    return Text.assemble(("run: ", "dim"), address)
