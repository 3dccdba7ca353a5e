"""``sisa-ray demo``: the whole idea on handwritten digits, in under a minute, on this machine alone."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sisa_ray.execution.results import TrainResult, UnlearnResult, VerifyResult
from sisa_ray.service.console import Output
from sisa_ray.service.demo_files import DemoFiles, make_room, write_digits
from sisa_ray.service.render import TAG_DIGITS, measure
from sisa_ray.service.tracker import duration

# Forgetting these costs what forgetting any three does on average (38 % of full retraining).
_LEAVERS = ("digit-0017", "digit-0403", "digit-1234")
_NEXT_LEAVER = "digit-0042"
_INDENT = "   "
_FIGURES = ("Accuracy", "Rebuilt", "bit-identical")


def run_demo(directory: str, output: Output, story: Console) -> dict[str, Any]:
    """Run the demo in ``directory``, telling it through ``story``; returns its figures.

    Raises:
        ConfigError: where the directory holds anything that is not a former demo's.
    """
    from sisa_ray.execution import commands

    files = DemoFiles(directory=Path(directory))
    make_room(files)
    num_train, num_test = write_digits(files)
    story.print(Text("A model that can forget people, and the proof that it did.", style="bold"))
    _step(story, 1, "The data", _about_data(files, num_train, num_test))

    _step(story, 2, "Training", _ABOUT_TRAINING)
    with output.display() as display:
        trained = commands.train(files.config, on_event=display)
    _tell(story, _training_figures(trained))
    before = commands.status(files.config)

    _step(story, 3, "Forgetting", _ABOUT_FORGETTING)
    with output.display("retraining") as display:
        unlearned = commands.unlearn(files.config, _LEAVERS, on_event=display)
    _tell(story, f"{_where(unlearned)}\n{_forgetting_figures(unlearned, len(before.stages))}")

    _step(story, 4, "The proof", _ABOUT_PROOF)
    with output.display("training from scratch") as display:
        verified = commands.verify(files.config, on_event=display)
    _tell(story, _proof_figures(verified))

    from sisa_ray.service.picture import draw

    after = commands.status(files.config)
    draw(before, after, unlearned, files.picture, bit_identical=verified.bit_identical)
    _step(story, 5, "Go on from here")
    program = _program()
    config = str(files.config)
    certificate = ["certificate", "fetch", config, "--out", "certificate.json"]
    for command in (["status", config], ["unlearn", config, _NEXT_LEAVER], certificate, ["log", config]):
        line = shlex.join([program, *command])
        story.print(Text(f"{_INDENT}{line}"), soft_wrap=True)  # in one piece, to be copied
    story.print(Text(f"\nThe picture of what was kept, rebuilt and purged: {files.picture}"), soft_wrap=True)
    return {
        "config": str(files.config),
        "picture": str(files.picture),
        **{
            name: json.loads(result.model_dump_json())
            for name, result in (("train", trained), ("unlearn", unlearned), ("verify", verified))
        },
    }


def _about_data(files: DemoFiles, num_train: int, num_test: int) -> str:
    return (
        f"{num_train:,} small pictures of handwritten digits to learn from, and {num_test:,} to test with. "
        f"Each picture stands for one person. They are in {files.data}, the settings in {files.config}."
    )


_ABOUT_TRAINING = (
    "The people are dealt out to 5 shards. Each shard trains a network of its own, which never sees the "
    "other shards; to recognise a digit, the 5 networks vote. Each shard is cut into 4 slices and learned "
    "step by step: first slice 1, then 1 and 2, and so on. The network is saved after each step (a stage)."
)
_ABOUT_FORGETTING = (
    "Three people ask to be forgotten. Their records are erased from their slices, and each "
    "network that saw them goes back to the last state saved before it did, and trains again from there. "
    "From here on, people are named by a keyed hash (a tag) only:"
)
_ABOUT_PROOF = (
    "Everything is now trained again from scratch, elsewhere, as if the three had never been there. "
    "Then every bit is compared with what forgetting left:"
)


def _training_figures(trained: TrainResult) -> str:
    alone = ", ".join(_percent(value) for value in trained.constituents)
    return (
        f"Built {trained.stages_built} stages in {duration(trained.seconds)}, the start of Ray included.\n"
        f"Accuracy on the test digits: {_percent(trained.ensemble)} for the ensemble of networks.\n"
        f"Each network alone: {alone}."
    )


def _percent(value: float | None) -> str:
    return "(empty)" if value is None else measure("accuracy", value)


def _where(unlearned: UnlearnResult) -> str:
    return "\n".join(
        f"{row.tag[:TAG_DIGITS]}  was in shard {row.shard}, slice {row.slice}" for row in unlearned.rows
    )


def _forgetting_figures(unlearned: UnlearnResult, num_stages: int) -> str:
    share = unlearned.record_visits / unlearned.full_retrain_record_visits
    return (
        f"Rebuilt {unlearned.stages_rebuilt} of {num_stages} stages in {duration(unlearned.seconds)}: "
        f"{unlearned.record_visits:,} record-visits (training on one record once), against "
        f"{unlearned.full_retrain_record_visits:,} for full retraining: {share:.0%} of the work.\n"
        f"Purged {unlearned.objects_purged} old files (slices, saved networks), verified that they are gone."
    )


def _proof_figures(verified: VerifyResult) -> str:
    answer = {True: "yes", False: "NO", None: "not comparable"}[verified.bit_identical]
    text = (
        f"Compared {verified.num_slices} slices, {verified.num_checkpoints} saved networks and "
        f"{verified.num_predictions:,} predictions in {duration(verified.seconds)}.\n"
        f"bit-identical: {answer}"
    )
    return text if verified.first_difference is None else f"{text}\n{verified.first_difference}"


def _program() -> str:
    """How the reader calls this program: by name where the shell finds it, else by its path."""
    here = Path(sys.argv[0])
    if here.name != "sisa-ray" or shutil.which("sisa-ray") is not None:
        return "sisa-ray"
    with contextlib.suppress(ValueError):
        return str(here.absolute().relative_to(Path.cwd()))
    return str(here)


def _step(story: Console, number: int, title: str, text: str = "") -> None:
    story.print(Text(f"\n{number}. {title}", style="bold cyan"))
    if text:
        _print_wrapped(story, text)


def _tell(story: Console, figures: str) -> None:
    story.print()
    _print_wrapped(story, figures)


def _print_wrapped(story: Console, text: str) -> None:
    """Paragraphs, indented and wrapped here: a console would pad every line with spaces."""
    width = story.width - len(_INDENT)
    for paragraph in text.split("\n"):
        lines = textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False)
        style = "bold" if paragraph.startswith(_FIGURES) else ""
        story.print(Text(textwrap.indent("\n".join(lines), _INDENT), style=style), soft_wrap=True)
