"""The command that turns priors about who asks into strata for a run's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sisa_ray.core.errors import ConfigError
from sisa_ray.service import render_plan
from sisa_ray.service.arguments import Json, Quiet, examples
from sisa_ray.service.console import Output, document_of
from sisa_ray.service.plan_commands import lines_of_file, number

if TYPE_CHECKING:
    from fractions import Fraction

    from sisa_ray.planning.population import Stratum


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        epilog=examples(
            "strata --stratum us=225000:0.01 --stratum eu=25000:0.1 --shards 20 --slices 50 --schedule harmonic",
            "strata --stratum us=225000 --stratum eu=25000 --history requests.csv --shards 20 --slices 50",
        )
    )(strata)


def strata(
    stratum: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=N:P",
            help="A stratum: expected records, and the probability that each is erased; again for each.",
        ),
    ],
    shards: Annotated[str, typer.Option(metavar="S", help="Shards of the run.")],
    slices: Annotated[str, typer.Option(metavar="R", help="Slices of each shard.")],
    schedule: Annotated[str, typer.Option(metavar="NAME", help="As sisa.schedule.")] = "equal",
    batch: Annotated[
        str, typer.Option(metavar="K", help="Requests that are carried out together, in the mean.")
    ] = "1",
    history: Annotated[
        str | None,
        typer.Option(
            metavar="CSV", help="Your own requests: a column stratum counts them, in place of :P above."
        ),
    ] = None,
    max_requests_per_shard: Annotated[
        str | None,
        typer.Option(
            metavar="C", help="Bound on the expected requests of a shard, if each goes as likely as said."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recommend where strata should be, from what is known beforehand of who asks to be forgotten.

    People of a stratum (a country, say) are alike in how likely they are to ask. Prints sisa.strata for a new run's
    configuration, what it saves, and what it costs where the prior is wrong. Reads no table.
    """
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.planning.strata import plan_strata

        priors = _priors(stratum, history)
        num_shards, num_slices = _whole("--shards", shards, 100_000), _whole("--slices", slices, 10_000)
        bound = number("--max-requests-per-shard", max_requests_per_shard)
        result = plan_strata(
            priors,
            num_shards,
            _epochs(schedule, num_slices),
            batch_size=_whole("--batch", batch, 10**9),
            max_requests_per_shard=None if bound is None else float(bound),
        )
    document = {
        "strata": document_of(priors),
        **document_of(result),
        "configuration": render_plan.strata_of(result.recommended, num_shards, num_slices),
    }
    output.emit(document, lambda: render_plan.strata_text(result, num_shards, num_slices, batch))


def _epochs(schedule: str, num_slices: int) -> list[Fraction]:
    from pydantic import TypeAdapter, ValidationError

    from sisa_ray.core.fields import ScheduleField
    from sisa_ray.core.schedule import stage_epochs

    try:
        named = TypeAdapter(ScheduleField).validate_python(schedule)
    except ValidationError as error:
        raise ConfigError(f"--schedule: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return stage_epochs(named, num_slices, 1)


def _whole(option: str, text: str, most: int) -> int:
    value = number(option, text)
    if value is None or value != int(value) or not 1 <= value <= most:
        raise ConfigError(f"{option}: must be a whole number from 1 to {most}, not {text!r}")
    return int(value)


def _priors(given: list[str], history: str | None) -> list[Stratum]:
    from sisa_ray.planning.population import Stratum

    parsed = [_parsed(text, has_probability=history is None) for text in given]
    counts = {} if history is None else _counted(history, [name for name, _, _ in parsed])
    return [
        Stratum(name=name, num_records=records, probability=counts.get(name, 0) / records if counts else rate)
        for name, records, rate in parsed
    ]


def _parsed(text: str, *, has_probability: bool) -> tuple[str, float, float]:
    name, separator, numbers = text.rpartition("=")
    records, colon, rate = numbers.partition(":")
    if not name or not separator or bool(colon) != has_probability:
        form = "NAME=RECORDS:PROBABILITY, such as eu=25000:0.1"
        if not has_probability:
            form = "NAME=RECORDS, such as eu=25000, for --history has the probabilities"
        raise ConfigError(f"--stratum: must be {form}, not {text!r}")
    option = f"--stratum {name}"
    count = float(number(option, records) or 0)
    if not count > 0:
        raise ConfigError(f"{option}: must have a positive number of records, not {records!r}")
    return name, count, float(number(option, rate) or 0) if colon else 0.0


def _counted(history: str, names: list[str]) -> dict[str, int]:
    """Requests of each stratum in a history."""
    from sisa_ray.planning.requests import read_history

    _, strata = read_history(lines_of_file(history), source=history)
    if unknown := sorted(set(strata) - set(names)):
        raise ConfigError(
            f"{history}: has requests of the stratum {unknown[0]!r}, which no --stratum names; add it, with its records"
        )
    return {name: strata.count(name) for name in names}
