"""The command that plans a run before it is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sisa_ray.core.errors import ConfigError, DataError
from sisa_ray.service import render_plan
from sisa_ray.service.arguments import Json, Quiet, examples
from sisa_ray.service.console import Output, document_of

if TYPE_CHECKING:
    from sisa_ray.planning.scenario import Scenario

T = TypeVar("T")

_NAMES = {
    "num_records": "--records",
    "checkpoint_bytes": "--checkpoint-bytes",
    "seconds_per_visit": "--seconds-per-visit",
    "requests_per_day": "--requests-per-day",
    "epochs": "--epochs",
}
"""Options without which there is no plan, unless a run or a history has their values."""


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        epilog=examples(
            "plan --records 60000 --epochs 15 --checkpoint-bytes 1.2MB --seconds-per-visit 2e-5 --requests-per-day 4",
            "plan --run mnist.yaml --history requests.csv --gpus 2 --accuracy 1:0.972,20:0.945 --plot plan.png",
        )
    )(plan)


def plan(
    records: Annotated[
        str | None, typer.Option(metavar="N", help="Records of the training set, such as 60000 or 1e8.")
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(metavar="E", help="Training budget in epochs, as sisa.epochs.")
    ] = None,
    model_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Size of the model; a checkpoint counts as three (with Adam's state)."
        ),
    ] = None,
    checkpoint_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of a checkpoint, such as 300MB.")
    ] = None,
    seconds_per_visit: Annotated[
        str | None, typer.Option(metavar="S", help="Seconds in which one GPU trains on one record once.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="A run, or its configuration, to take what is not given from."),
    ] = None,
    requests_per_day: Annotated[
        str | None, typer.Option(metavar="X", help="Requests a day, in the mean.")
    ] = None,
    history: Annotated[
        str | None,
        typer.Option(metavar="CSV", help="Your own requests: a column received_at gives their rate."),
    ] = None,
    arrivals: Annotated[
        str,
        typer.Option(metavar="KIND", help="Gaps between requests: uniform, exponential or pareto (bursts)."),
    ] = "exponential",
    records_per_request: Annotated[
        str, typer.Option(metavar="N", help="Records that a request erases.")
    ] = "1",
    gpus: Annotated[
        str, typer.Option(metavar="N", help="GPUs, or CPU slots: shards trained at a time.")
    ] = "1",
    basis: Annotated[str, typer.Option(metavar="LAW", help="Legal clock: gdpr, ccpa or custom.")] = "gdpr",
    custom_days: Annotated[str, typer.Option(metavar="DAYS", help="For custom: days.")] = "30",
    within_days: Annotated[
        str | None, typer.Option(metavar="DAYS", help="Days in which everybody is to be erased. [default: 7]")
    ] = None,
    accuracy: Annotated[
        str | None,
        typer.Option(metavar="S:A,…", help="Accuracy at numbers of shards, such as 1:0.97,5:0.965,20:0.95."),
    ] = None,
    max_accuracy_loss: Annotated[
        str, typer.Option(metavar="SHARE", help="Accuracy that may be lost, such as 0.02.")
    ] = "0.02",
    schedule_loss: Annotated[
        str | None,
        typer.Option(metavar="NAME=L,…", help="Accuracy that a schedule loses, such as harmonic=0.004."),
    ] = None,
    storage_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What checkpoints may take, such as 100GB.")
    ] = None,
    gpu_hour_price: Annotated[
        str | None, typer.Option(metavar="P", help="Price of a GPU-hour. [default: 2]")
    ] = None,
    storage_price: Annotated[
        str | None, typer.Option(metavar="P", help="Price of 10⁹ bytes for a month. [default: 0.023]")
    ] = None,
    shards: Annotated[
        str | None, typer.Option(metavar="LIST", help="Numbers of shards to look at, such as 5,10,20.")
    ] = None,
    slices: Annotated[
        str | None, typer.Option(metavar="LIST", help="Numbers of slices. [default: 1,2,5,10,20,50]")
    ] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw the alternatives.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the simulation.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recommend shards, slices, schedule, checkpoints and batching, from what requests, time and money there are.

    Every recommendation is checked by a simulation of the coordinator. Reads a run at most; trains nothing.
    """
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        given: dict[str, Any] = {
            "num_records": number("--records", records),
            "epochs": epochs,
            "checkpoint_bytes": _checkpoint(model_bytes, checkpoint_bytes),
            "seconds_per_visit": number("--seconds-per-visit", seconds_per_visit),
            "requests_per_day": number("--requests-per-day", requests_per_day),
            "records_per_request": number("--records-per-request", records_per_request),
            "arrivals": arrivals,
            "num_gpus": number("--gpus", gpus),
            "basis": basis,
            "custom_days": number("--custom-days", custom_days),
            "erase_within_days": number("--within-days", within_days),
            "accuracy": _pairs("--accuracy", accuracy, ":", int),
            "max_accuracy_loss": number("--max-accuracy-loss", max_accuracy_loss),
            "schedule_loss": _pairs("--schedule-loss", schedule_loss, "=", str),
            "storage_budget": storage_budget,
            "gpu_hour_price": number("--gpu-hour-price", gpu_hour_price),
            "storage_price": number("--storage-price", storage_price),
            "shards": _whole_numbers("--shards", shards),
            "slices": _whole_numbers("--slices", slices),
        }
        scenario = _scenario(given, run, history)
        _check_plot(plot)
        from sisa_ray.planning.search import make_plan

        result = make_plan(scenario, seed=seed)
        if plot is not None:
            from sisa_ray.service.plan_picture import draw_plan

            draw_plan(result, plot)
    document = {"scenario": document_of(scenario), **document_of(result), "plot": plot}
    output.emit(document, lambda: render_plan.plan_text(scenario, result, plot))


def _scenario(given: dict[str, Any], run: str | None, history: str | None) -> Scenario:
    from sisa_ray.planning.scenario import DAY_S, Scenario

    if history is not None:
        from sisa_ray.planning.requests import per_second, read_history

        if given["requests_per_day"] is not None:
            raise ConfigError(
                "--requests-per-day and --history: both give the rate of requests; give one of them"
            )
        at_s, _ = read_history(lines_of_file(history), source=history)
        given["requests_per_day"] = per_second(at_s) * DAY_S
    if run is not None:
        from sisa_ray.execution.measured import measure

        measured = measure(run)
        for field in ("num_records", "epochs", "checkpoint_bytes", "seconds_per_visit"):
            if given[field] is None:
                given[field] = getattr(measured, field)
    missing = [option for field, option in _NAMES.items() if given[field] is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: required; give them, or a run that has been trained (--run) and your own requests "
            "(--history)"
        )
    return Scenario.from_mapping({field: value for field, value in given.items() if value is not None})


def number(option: str, text: str | None) -> int | float | None:
    """The number that an option has.

    Raises:
        ConfigError: where it is none.
    """
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{option}: must be a finite number such as 1000 or 2e-5, not {text!r}")
    return number


def _checkpoint(model_bytes: str | None, checkpoint_bytes: str | None) -> object:
    if model_bytes is None:
        return checkpoint_bytes
    if checkpoint_bytes is not None:
        raise ConfigError("--model-bytes and --checkpoint-bytes: give one of them, not both")
    from pydantic import TypeAdapter, ValidationError

    from sisa_ray.core.fields import ByteSize

    try:
        return 3 * TypeAdapter(ByteSize).validate_python(model_bytes)
    except ValidationError:
        raise ConfigError(
            f"--model-bytes: must be a size in bytes, such as 1000000 or 1GiB, not {model_bytes!r}"
        ) from None


def _pairs(option: str, text: str | None, separator: str, key: Callable[[str], T]) -> dict[T, float] | None:
    if text is None:
        return None
    pairs: dict[T, float] = {}
    for part in text.split(","):
        name, _, value = part.partition(separator)
        try:
            known = len(pairs)
            pairs[key(name.strip())] = float(value)
        except ValueError:
            known = len(pairs)
        if len(pairs) == known:
            rule = f"must be pairs such as {'1:0.97,20:0.95' if separator == ':' else 'harmonic=0.004'}, none twice"
            raise ConfigError(f"{option}: {rule}, not {part!r}")
    return pairs


def _whole_numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: must be whole numbers such as 5,10,20, not {text!r}") from None


def lines_of_file(path: str) -> list[str]:
    """The lines of a CSV file.

    Raises:
        DataError: where it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give the path of a CSV file") from None
    except ValueError:
        raise DataError(f"{path}: is not a text file in UTF-8") from None


def _check_plot(plot: str | None) -> None:
    if plot is None:
        return
    if not plot.endswith(".png"):
        raise ConfigError(f"--plot: must end in .png, not {plot!r}; name a PNG file")
    if not Path(plot).absolute().parent.is_dir():
        raise ConfigError(f"--plot: the directory of {plot!r} does not exist; make it first")
