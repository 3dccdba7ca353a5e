"""How every command talks: results on standard output, everything else on standard error, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from sisa_ray.core.errors import SisaError
from sisa_ray.service.progress import Display, open_display, warn

EXIT_DIFFERENT = 1
EXIT_NOT_COMPARABLE = 3
EXIT_UNEXPECTED = 70
"""Python's own exit code of an uncaught exception is 1, which must keep its one meaning: the bits differ."""
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

_PIPE_WIDTH = 160
_STORY_WIDTH = 96


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the common options ask for."""

    as_json: bool
    quiet: bool

    def display(self, training: str = "training") -> Display:
        """The progress display."""
        return open_display(standard_error(), quiet=self.quiet, training=training)

    def warn(self, text: str) -> None:
        """A warning on standard error."""
        warn(standard_error(), text)

    def story(self) -> Console:
        """Where a command tells its story as it goes: standard output, unless that is for JSON alone."""
        stream = sys.stderr if self.as_json else sys.stdout
        if self.as_json and self.quiet:
            return Console(quiet=True)
        console = _console(stream)
        return console if console.is_terminal else _console(stream, width=_STORY_WIDTH)

    def emit(self, document: dict[str, Any], text: Callable[[], RenderableType] | None = None) -> None:
        """The result: one JSON document, or ``text`` for people."""
        try:
            if self.as_json or text is None:
                sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
            else:
                standard_output().print(text())
            sys.stdout.flush()
        except BrokenPipeError:
            _leave_quietly()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Run a command's work: what fails ends the program with the exit code that scripts can use.

        Whatever libraries and recipes print goes to standard error, so that standard output has the result
        and nothing else.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except SisaError as error:
            self._fail(error, str(error), error.exit_code)
        except BrokenPipeError:
            _leave_quietly()
        except KeyboardInterrupt:
            self._fail(
                KeyboardInterrupt(),
                "interrupted; what was committed stays, and the same command goes on from there",
                EXIT_INTERRUPTED,
            )
        except Exception as error:
            traceback.print_exc()
            self._fail(error, "unexpected; please report the traceback above", EXIT_UNEXPECTED)

    def _fail(self, error: BaseException, message: str, exit_code: int) -> None:
        standard_error().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        if self.as_json:
            document = {"type": type(error).__name__, "message": message, "exit_code": exit_code}
            sys.stdout.write(json.dumps({"error": document}, indent=2) + "\n")
        raise typer.Exit(exit_code) from None


def _leave_quietly() -> NoReturn:
    """The reader of standard output has what it wanted; what Python has still to flush goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    raise typer.Exit(EXIT_BROKEN_PIPE) from None


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would exit with 1, which means something else here."""
        raise BrokenPipeError


def standard_error() -> Console:
    """A console on standard error as it is now."""
    return _console(sys.stderr)


def standard_output() -> Console:
    """A console on standard output; wide where it is no terminal, so that no table is cut."""
    console = _console(sys.stdout)
    return console if console.is_terminal else _console(sys.stdout, width=_PIPE_WIDTH)


def _console(stream: Any, width: int | None = None) -> Console:
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a terminal that lacks "×" shows "?" instead of failing
    return _Console(file=stream, highlight=False, width=width)
