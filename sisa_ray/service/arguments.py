"""What commands share: their arguments and options, and how those are read."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from itertools import takewhile
from typing import Annotated

import typer
from typer.core import TyperCommand

from sisa_ray.core.errors import ConfigError

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="Configuration file (YAML) of the run.")]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The run: its address (<storage_path>/<name>) or its configuration file."
    ),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON document on standard output.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", help="Show no progress (warnings and errors stay).")
]


SubjectsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="SUBJECT…", help="Whom. Put -- before subjects that begin with '-'."),
]
SubjectsFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Text (UTF-8, one subject a line; - reads standard input) or .parquet; local or s3://.",
    ),
]
Column = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of a Parquet subjects file that names the subjects."),
]
RequestName = Annotated[
    str, typer.Argument(metavar="REQUEST", help="The request, or the beginning of its id.")
]


class Rule(StrEnum):
    """Aggregation rules."""

    MAJORITY = "majority"
    MEAN = "mean"
    MEDIAN = "median"
    SIZE_WEIGHTED = "size_weighted"


class BaselineKind(StrEnum):
    """Single models to compare an ensemble with."""

    FULL = "full"
    ONE_SHARD = "one_shard"


class SubjectsCommand(TyperCommand):
    """A command whose arguments are people: errors about the arguments must not repeat them."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Refuse unknown options and arguments that are too many, without naming them."""
        known = {"--help"}.union(*(param.opts for param in self.params))
        for arg in takewhile(lambda a: a != "--", args):
            if arg.startswith("-") and arg != "-" and arg.partition("=")[0] not in known:
                raise typer.BadParameter(
                    "an argument that begins with '-' is not an option of this command; "
                    "put -- before the subjects if it is one of them",
                    ctx=ctx,
                )
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if rest:
            raise typer.BadParameter(
                f"{len(rest)} argument(s) more than this command takes; quote a subject that has spaces in it",
                ctx=ctx,
            )
        return rest


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=3650)


def examples(*lines: str) -> str:
    """Examples below a command's help."""
    heading = "Examples:" if len(lines) > 1 else "Example:"
    return "\n".join([heading, *(f"  sisa-ray {line}" for line in lines)])


def parse_shards(text: str) -> list[int]:
    """Shard numbers from a list of numbers and ranges.

    >>> parse_shards("0,3-5")
    [0, 3, 4, 5]

    Raises:
        ConfigError: for anything else.
    """
    shards: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part, re.ASCII)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            rule = "must be numbers and rising ranges such as 0,3-5"
            raise ConfigError(f"--shards {text}: {rule}, not {part.strip()!r}")
        shards.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(shards)


def parse_duration(option: str, text: str) -> timedelta:
    """A length of time of at most ten years. ``option`` is for messages.

    >>> parse_duration("--expires-in", "90d")
    datetime.timedelta(days=90)

    Raises:
        ConfigError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip(), re.ASCII)
    length = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta(0)
    if not timedelta(0) < length <= _LONGEST:
        rule = "must be a number with s, m, h, d or w behind it, at most ten years: such as 10m or 90d"
        raise ConfigError(f"{option}: {rule}, not {text!r}")
    return length
