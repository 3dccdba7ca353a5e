"""What the entry points of Ray jobs (``jobs/``) share: a command each, safe to submit twice, its log for people.

Ray keeps the command line of a job and the directory that was submitted with it, on the head and on every node that
worked for it. So nobody is named in either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from sisa_ray.core.errors import ConfigError
from sisa_ray.service import render_desk
from sisa_ray.service.arguments import Json
from sisa_ray.service.console import Output, document_of
from sisa_ray.service.environment import quiet_ray

Config = Annotated[
    str,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration of the run, below the working directory; or its address.",
    ),
]
PeopleFile = Annotated[
    str | None,
    typer.Option(
        "--subjects-file",
        metavar="FILE",
        help="Whom to forget, in a bucket or outside the working directory. Default: whoever requests name.",
    ),
]


class _OptionsAlone(TyperCommand):
    """A command without arguments, which does not repeat those that it is given: they may be people."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Refuse arguments, without naming them."""
        ctx.allow_extra_args = ctx.ignore_unknown_options = True
        rest = super().parse_args(ctx, args)
        if rest:
            raise typer.BadParameter(
                f"{len(rest)} argument(s) too many or unknown: a job takes the options that --help lists, and people "
                "are named in a file or by a request, since Ray keeps the command lines of jobs",
                ctx=ctx,
            )
        return rest


def application(main: Callable[..., None]) -> typer.Typer:
    """The entry point of a job as a program."""
    # A traceback with the values of local variables would name people.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=_OptionsAlone)(main)
    return app


def run(main: Callable[..., None]) -> None:
    """Run the entry point of a job; the process exits with the codes of ``sisa-ray``."""
    quiet_ray()  # before anything imports Ray
    application(main)()


@contextmanager
def in_turn(config: str, command: str, *, as_json: Json = False) -> Iterator[None]:
    """Wait for other jobs on the run, showing their progress; then do the work of the block."""
    output = Output(as_json=as_json, quiet=False)
    with ExitStack() as turn:
        with output.reporting(), output.display() as display:
            from sisa_ray.execution import turns
            from sisa_ray.execution.opening import address_of

            turn.enter_context(turns.turn(address_of(config), command=command, on_event=display))
        sys.stdout = output.result  # the command's own result goes there
        yield


def carry_out(config: str, *, as_json: Json = False) -> None:
    """Have the open requests of a run done, and say what became of them."""
    output = Output(as_json=as_json, quiet=False)
    with output.reporting(), output.display("retraining") as display:
        from sisa_ray.execution import desk

        result = desk.carry_out(config, on_event=display)
    output.emit(document_of(result), lambda: render_desk.requests_text(result))


def refuse_shipped(file: str | None, *, as_json: Json = False) -> None:
    """Refuse a file of people that lies in the working directory, saying why and where else to put it."""
    path, here = Path(file or "-"), Path.cwd().resolve()
    is_elsewhere = str(path) == "-" or "://" in str(file) or not path.resolve().is_relative_to(here)
    output = Output(as_json=as_json, quiet=False)
    with output.reporting():
        if not is_elsewhere:
            raise ConfigError(
                f"--subjects-file {file}: lies in the working directory, of which Ray keeps copies on the nodes; put "
                "the file into a bucket (s3://…) or elsewhere on the head node, or file requests with `sisa-ray "
                "request` and leave the option out"
            )
    sys.stdout = output.result
