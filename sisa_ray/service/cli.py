"""The command line ``sisa-ray``. Commands are read here, done in ``execution``, and shown by ``render``.

Nothing heavy is imported before a command needs it: ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sisa_ray import __version__
from sisa_ray.core.errors import ConfigError
from sisa_ray.service import (
    convert_commands,
    coordinator_commands,
    desk_commands,
    evidence_commands,
    plan_commands,
    render,
    serve_command,
    strata_command,
    token_commands,
)
from sisa_ray.service.arguments import (
    BaselineKind,
    Column,
    Config,
    Json,
    Quiet,
    Rule,
    Run,
    SubjectsArgument,
    SubjectsCommand,
    SubjectsFile,
    examples,
    parse_shards,
)
from sisa_ray.service.console import EXIT_DIFFERENT, EXIT_NOT_COMPARABLE, Output, document_of
from sisa_ray.service.environment import quiet_ray
from sisa_ray.service.subjects import gather_subjects

_EPILOG = """Exit codes:
  0 done
  1 verify: the bits differ; a certificate does not hold
  2 usage or bad input
  3 verify: not comparable on this platform
  4 storage refused, failed, or holds something broken
  5 another process has taken the run
  6 training failed
  70 unexpected, with a traceback
  130 interrupted, 143 terminated"""


app = typer.Typer(
    name="sisa-ray",
    help="Train an ensemble that can forget people, exactly, and prove it.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    # A traceback with the values of local variables would name people.
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sisa-ray {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    _: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", help="Print the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    quiet_ray()  # before anything imports Ray


@app.command(epilog=examples("ingest mnist.yaml", "ingest mnist.yaml --append november.parquet --slices 2"))
def ingest(
    config: Config,
    append: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="Further records: they become new slices of their shards."),
    ] = None,
    slices: Annotated[
        int, typer.Option(metavar="N", min=1, help="With --append: slices that each shard gets for them.")
    ] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring the training table into the run, split into shards and slices; or append further records to it.

    After an append the new stages alone are trained, where the run was trained before.
    """
    output = Output(as_json=as_json, quiet=quiet)
    if append is not None:
        with output.reporting(), output.display() as display:
            from sisa_ray.execution import commands

            appended = commands.append(config, append, num_slices=slices, on_event=display)
        output.emit(document_of(appended), lambda: render.append_text(appended))
        return
    with output.reporting(), output.display() as display:
        from sisa_ray.execution import commands

        result = commands.ingest(config, on_event=display)
    output.emit(document_of(result), lambda: render.ingest_text(result))


@app.command(epilog=examples("train mnist.yaml"))
def train(config: Config, as_json: Json = False, quiet: Quiet = False) -> None:
    """Train what is missing (all of it, the first time), publish the ensemble and measure it."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting(), output.display() as display:
        from sisa_ray.execution import commands

        result = commands.train(config, on_event=display)
    output.emit(document_of(result), lambda: render.train_text(result))


@app.command(
    cls=SubjectsCommand,
    epilog=examples(
        "unlearn s3://sisa-runs/mnist train-17 train-403",
        "unlearn mnist.yaml --subjects-file leavers.txt",
        "unlearn mnist.yaml --subjects-file leavers.parquet --column customer",
        "unlearn mnist.yaml -- -17",
    ),
)
def unlearn(
    run: Run,
    subjects: SubjectsArgument = None,
    subjects_file: SubjectsFile = None,
    column: Column = None,
    show_ids: Annotated[
        bool,
        typer.Option(
            "--show-ids", metavar="", help="Print subjects as they are; without it, by input line and tag."
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forget people: rewrite their slices, retrain what saw them, delete what is left of them."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        people = gather_subjects(subjects or [], subjects_file, column)
        for notice in people.notices:
            output.warn(notice)
        with output.display("retraining") as display:
            from sisa_ray.execution import commands

            result = commands.unlearn(run, people.keys, on_event=display)
    document = document_of(result)
    for row in document["rows"]:
        row["from"] = people.places[row["row"]]
        if show_ids:
            row["subject"] = people.keys[row["row"]]
    output.emit(document, lambda: render.unlearn_text(result, people, show_ids=show_ids))


@app.command(epilog=examples("verify mnist.yaml", "verify mnist.yaml --shards 0,3-5 --json"))
def verify(
    run: Run,
    shards: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these shards, such as 0,3-5. Default: all.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only N shards drawn at random.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train from scratch without the forgotten, in a scratch place, and compare every bit.

    Exits with 0 where all bits are the same, 1 where they differ, 3 where this platform cannot tell.
    """
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        if shards is not None and sample is not None:
            raise ConfigError("--shards and --sample: give one of them, not both")
        chosen = None if shards is None else parse_shards(shards)
        with output.display("training from scratch") as display:
            from sisa_ray.execution import commands

            result = commands.verify(run, shards=chosen, sample=sample, on_event=display)
    output.emit(document_of(result), lambda: render.verify_text(result))
    if result.outcome != "bit-identical":
        raise typer.Exit(EXIT_DIFFERENT if result.outcome == "different" else EXIT_NOT_COMPARABLE)


@app.command(epilog=examples("predict mnist.yaml mnist-test.parquet --out predictions.parquet"))
def predict(
    run: Run,
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="Parquet file, directory or glob; local or s3://.")
    ],
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="Parquet file to write the predictions to.")
    ],
    rule: Annotated[
        Rule | None, typer.Option(help="How votes are combined. Default: the configuration's.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict a table with the published ensemble: labels, probabilities and agreement."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting(), output.display() as display:
        from sisa_ray.execution import commands

        result = commands.predict(run, table, out=out, rule=rule.value if rule else None, on_event=display)
    output.emit(document_of(result), lambda: render.predict_text(result))


@app.command(epilog=examples("status s3://sisa-runs/mnist"))
def status(run: Run, as_json: Json = False, quiet: Quiet = False) -> None:
    """Show the run: shards × slices, open requests, and what to do next."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import commands

        result = commands.status(run)
    output.emit(document_of(result), lambda: render.status_text(result))


@app.command(epilog=examples("baseline mnist.yaml --kind one_shard"))
def baseline(
    run: Run,
    kind: Annotated[
        BaselineKind, typer.Option(help="full: one model on all the data; one_shard: one model on 1/S of it.")
    ] = BaselineKind.FULL,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a single model beside the run, to compare the ensemble with."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting(), output.display("training one model") as display:
        from sisa_ray.execution import commands

        result = commands.baseline(run, kind.value, on_event=display)
    output.emit(document_of(result), lambda: render.baseline_text(result))


@app.command(epilog=examples("demo --dir /tmp/sisa-demo"))
def demo(
    directory: Annotated[
        str, typer.Option("--dir", metavar="DIR", help="Where the demo puts everything; made anew each time.")
    ] = "sisa-demo",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show it all on handwritten digits in under a minute: train, forget three people, prove it, draw it."""
    output = Output(as_json=as_json, quiet=quiet)
    story = output.story()
    with output.reporting():
        from sisa_ray.service.demo import run_demo

        document = run_demo(directory, output, story)
    if as_json:
        output.emit(document)
    if not document["verify"]["bit_identical"]:
        raise typer.Exit(EXIT_DIFFERENT)


_COMMANDS = (
    desk_commands,
    evidence_commands,
    coordinator_commands,
    serve_command,
    token_commands,
    plan_commands,
    strata_command,
    convert_commands,
)
for commands_of in _COMMANDS:
    commands_of.add_to(app)


def main() -> None:
    """Entry point of ``sisa-ray``."""
    app(prog_name="sisa-ray")
