"""Commands of the privacy desk: requests and suppressions."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from sisa_ray.core.errors import ConfigError, DataError
from sisa_ray.service import render_desk
from sisa_ray.service.arguments import (
    Column,
    Json,
    Quiet,
    RequestName,
    Run,
    SubjectsArgument,
    SubjectsCommand,
    SubjectsFile,
    examples,
)
from sisa_ray.service.console import Output, document_of
from sisa_ray.service.subjects import gather_subjects


class BasisName(StrEnum):
    """Laws that a request rests on."""

    GDPR = "gdpr"
    CCPA = "ccpa"
    CUSTOM = "custom"


class ExtensionName(StrEnum):
    """Reasons for which a clock may be extended."""

    COMPLEXITY = "complexity"
    NUMBER = "number-of-requests"


class RejectionName(StrEnum):
    """Reasons for which a request may be rejected."""

    IDENTITY = "identity-not-verified"
    OBLIGATION = "legal-obligation"
    WITHDRAWN = "withdrawn"


class LiftName(StrEnum):
    """Reasons for which people may be learned from again."""

    CONSENT = "consent-renewed"
    ERROR = "entered-in-error"


suppression = typer.Typer(help="The list of everybody who asked to be forgotten.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        cls=SubjectsCommand,
        epilog=examples(
            "request s3://sisa-runs/mnist train-17 --key ticket-4711",
            "request mnist.yaml --subjects-file leavers.txt --each --basis ccpa --received-at 2026-11-02T09:30Z",
        ),
    )(request)
    app.command(epilog=examples("requests s3://sisa-runs/mnist", "requests mnist.yaml --open --json"))(
        requests
    )
    app.command(epilog=examples("extend mnist.yaml 7a3155c0 --reason complexity"))(extend)
    app.command(epilog=examples("reject mnist.yaml 7a3155c0 --reason identity-not-verified"))(reject)
    suppression.command(epilog=examples("suppression replay s3://sisa-runs/mnist"))(replay)
    suppression.command(
        cls=SubjectsCommand, epilog=examples("suppression lift mnist.yaml train-17 --reason consent-renewed")
    )(lift)
    app.add_typer(suppression, name="suppression")


def request(
    run: Run,
    subjects: SubjectsArgument = None,
    subjects_file: SubjectsFile = None,
    column: Column = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Idempotency key: the same request sent again is one request."),
    ] = None,
    received_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it was received (ISO 8601 with a time zone). Default: now."),
    ] = None,
    basis: Annotated[
        BasisName | None, typer.Option(help="Legal basis. Default: the configuration's.")
    ] = None,
    urgent: Annotated[
        bool, typer.Option("--urgent", metavar="", help="Run at once, whatever the batching policy.")
    ] = False,
    each: Annotated[
        bool, typer.Option("--each", metavar="", help="One request for each subject, instead of one for all.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Have a request to forget people accepted: durable at once, carried out by the coordinator or the next command."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        people = gather_subjects(subjects or [], subjects_file, column)
        for notice in people.notices:
            output.warn(notice)
        if each and key is not None:
            raise ConfigError("--key: names one request, and --each makes many; give one of the two")
        from sisa_ray.execution import desk
        from sisa_ray.execution.acceptance import Submission

        common: dict[str, Any] = {
            "received_at": _time(received_at),
            "basis": basis.value if basis else None,
            "priority": "urgent" if urgent else "normal",
        }
        groups = [(k,) for k in people.keys] if each else [people.keys]
        accepted = desk.request(run, [Submission(subjects=group, key=key, **common) for group in groups])
    document = {"requests": [document_of(answer) for answer in accepted]}
    output.emit(document, lambda: render_desk.accepted_text(accepted))


def requests(
    run: Run,
    only_open: Annotated[
        bool, typer.Option("--open", metavar="", help="Only those that are not closed.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the requests of a run, with the time left on their clocks."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import desk

        result = desk.list_requests(run)
        if only_open:
            result = result.model_copy(update={"rows": tuple(r for r in result.rows if r.closed_at is None)})
    output.emit(document_of(result), lambda: render_desk.requests_text(result))


def extend(
    run: Run,
    name: RequestName,
    reason: Annotated[ExtensionName, typer.Option(help="Why the law's extension is needed.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Extend the legal clock of a request as far as its law allows (GDPR: three months, CCPA: 90 days)."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import desk

        row = desk.extend(run, name, reason.value)
    output.emit(document_of(row), lambda: render_desk.row_text(row))


def reject(
    run: Run,
    name: RequestName,
    reason: Annotated[RejectionName, typer.Option(help="Why the request is not carried out.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Reject a request that no batch has taken up yet."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import desk

        row = desk.reject(run, name, reason.value)
    output.emit(document_of(row), lambda: render_desk.row_text(row))


def replay(run: Run, as_json: Json = False, quiet: Quiet = False) -> None:
    """Forget again whom a run restored from a backup does not know any more."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting(), output.display("retraining") as display:
        from sisa_ray.execution import desk

        result = desk.replay(run, on_event=display)
    output.emit(document_of(result), lambda: render_desk.replay_text(result))


def lift(
    run: Run,
    reason: Annotated[LiftName, typer.Option(help="Why they may be learned from again.")],
    subjects: SubjectsArgument = None,
    subjects_file: SubjectsFile = None,
    column: Column = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a later ingest learn from people again. Needs the key that signs certificates; the log keeps it for good."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        people = gather_subjects(subjects or [], subjects_file, column)
        from sisa_ray.execution import desk

        result = desk.lift(run, people.keys, reason.value)
    output.emit(document_of(result), lambda: render_desk.lift_text(result))


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    example = datetime(2026, 11, 2, 9, 30, tzinfo=UTC).isoformat()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"--received-at {text}: is no time; write it like {example}") from None
    if at.tzinfo is None:
        raise DataError(f"--received-at {text}: has no time zone; write {at.isoformat()}Z for UTC")
    return at
