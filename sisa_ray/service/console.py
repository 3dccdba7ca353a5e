"""How every command talks: results on standard output, everything else on standard error, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import Any, NoReturn, TextIO

import typer
from pydantic import TypeAdapter
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
EXIT_TERMINATED = 143

_GOES_ON = "what was committed stays, and the same command goes on from there"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PIPE_WIDTH = 160
_STORY_WIDTH = 96
_HELD: list[TextIO] = []
"""Streams that are no longer sys.stdout but still in use: one that nobody holds is closed."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the common options ask for, and where the result goes: standard output as it was at the start."""

    as_json: bool
    quiet: bool
    result: TextIO = field(default_factory=lambda: sys.stdout)

    def display(self, training: str = "training") -> Display:
        """The progress display."""
        return open_display(standard_error(), quiet=self.quiet, training=training)

    def warn(self, text: str) -> None:
        """A warning on standard error."""
        warn(standard_error(), text)

    def story(self) -> Console:
        """Where a command tells its story as it goes: standard output, unless that is for JSON alone."""
        if self.as_json and self.quiet:
            return Console(quiet=True)
        stream = sys.stderr if self.as_json else self.result
        console = _console(stream)
        return _console(
            stream, width=min(console.width, _STORY_WIDTH) if console.is_terminal else _STORY_WIDTH
        )

    def emit(self, document: dict[str, Any], text: Callable[[], RenderableType] | None = None) -> None:
        """The result: one JSON document, or ``text`` for people."""
        if self.as_json or text is None:
            self._write(json.dumps(document, indent=2, allow_nan=False) + "\n")
            return
        console = _console(self.result)
        if not console.is_terminal:  # wide, so that no table is cut
            console = _console(self.result, width=_PIPE_WIDTH)
        with console.capture() as capture:
            console.print(text())
        self._write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Run a command's work: what fails ends the program with the exit code that scripts can use.

        From here on whatever libraries and recipes print goes to standard error, for good: Ray prints from
        threads that outlive the work, and standard output has the result and nothing else.
        """
        _HELD.append(self.result)
        sys.stdout = sys.stderr
        try:
            yield
        except SisaError as error:
            self._fail(error, str(error), error.exit_code)
        except BrokenPipeError:
            self._leave_quietly()
        except KeyboardInterrupt as error:
            self._fail(error, f"interrupted; {_GOES_ON}", EXIT_INTERRUPTED)
        except SystemExit as error:
            if error.code != signal.SIGTERM:  # so Ray turns the signal into an exception
                raise
            self._fail(error, f"terminated; {_GOES_ON}", EXIT_TERMINATED)
        except Exception as error:
            traceback.print_exc()
            self._fail(error, "unexpected; please report the traceback above", EXIT_UNEXPECTED)

    def _fail(self, error: BaseException, message: str, exit_code: int) -> None:
        message = _COLOURS.sub("", message)  # a recipe's traceback, as Ray hands it on, has some
        standard_error().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        if self.as_json:
            document = {"type": type(error).__name__, "message": message, "exit_code": exit_code}
            self._write(json.dumps({"error": document}, indent=2) + "\n")
        raise typer.Exit(exit_code) from None

    def _write(self, text: str) -> None:
        try:
            self.result.write(text)
            self.result.flush()
        except BrokenPipeError:
            self._leave_quietly()

    def _leave_quietly(self) -> NoReturn:
        """The reader has what it wanted; what Python has still to flush goes nowhere."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.result.fileno())
        raise typer.Exit(EXIT_BROKEN_PIPE) from None


def document_of(result: Any) -> dict[str, Any]:
    """A result (a pydantic model or a dataclass) as plain JSON data; numbers that are none (nan) become null."""
    document: dict[str, Any] = json.loads(TypeAdapter(type(result)).dump_json(result))
    return document


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would exit with 1, which means something else here."""
        raise BrokenPipeError


def standard_error() -> Console:
    """A console on standard error as it is now."""
    return _console(sys.stderr)


def _console(stream: TextIO, width: int | None = None) -> Console:
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal that lacks "×" shows "?" instead of failing
    return _Console(file=stream, highlight=False, width=width)
