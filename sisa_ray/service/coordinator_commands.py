"""Commands for the coordinator of a run."""

from __future__ import annotations

import typer

from sisa_ray.service import render_desk
from sisa_ray.service.arguments import Json, Quiet, Run, examples
from sisa_ray.service.console import Output, document_of

coordinator = typer.Typer(
    help="The coordinator: an actor on the Ray cluster that accepts requests at any time and carries them out.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    coordinator.command(epilog=examples("coordinator start s3://sisa-runs/mnist"))(start)
    coordinator.command(epilog=examples("coordinator stop s3://sisa-runs/mnist"))(stop)
    coordinator.command(epilog=examples("coordinator status s3://sisa-runs/mnist"))(status)
    app.add_typer(coordinator, name="coordinator")


def start(run: Run, as_json: Json = False, quiet: Quiet = False) -> None:
    """Start the coordinator of a run on the Ray cluster that is there; it outlives this command."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import hosting

        report = hosting.start_coordinator(run)
    output.emit(document_of(report), lambda: render_desk.report_text(report))


def stop(run: Run, as_json: Json = False, quiet: Quiet = False) -> None:
    """Stop the coordinator after the operation at hand; open requests stay for the next one."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import hosting

        stopped = hosting.stop_coordinator(run)
    text = "stopped" if stopped else "no coordinator of this run is within reach"
    output.emit({"stopped": stopped}, lambda: render_desk.plain(text))


def status(run: Run, as_json: Json = False, quiet: Quiet = False) -> None:
    """Say what the coordinator is doing."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import hosting

        report = hosting.coordinator_report(run)
        sign = None if report is not None else hosting.sign_of(run)
    document = {"running": report is not None, "sign": sign, **(document_of(report) if report else {})}
    output.emit(document, lambda: render_desk.coordinator_text(report, sign))
