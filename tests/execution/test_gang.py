"""Shards that several workers build: the same promises, and no trace of how many times one of them died."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import ConfigError, RecipeError
from sisa_ray.execution import commands
from sisa_ray.execution.baselines import baseline
from sisa_ray.execution.events import Event, Notice, StageProgress
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.predict import predict
from sisa_ray.execution.verify import verify
from sisa_ray.learning import codec
from sisa_ray.learning.parts import read_constituent
from sisa_ray.storage import layout
from sisa_ray.storage.local import LocalStore
from tests.execution.tables import make_config, make_table
from tests.support import gang
from tests.support.inline import InlineWorkers

PEOPLE = ["p1", "p2", "p40"]
SMALL: dict[str, Any] = {"num_shards": 2, "num_slices": 2, "epochs": 2}


def slow(*values: object) -> Any:
    """Parameters of a test that are left to `make test-gang`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def gang_config(directory: Path, workers: int, parallel: str, **changes: Any) -> SisaConfig:
    arithmetic = {"workers": workers, "parallel": parallel}
    return make_config(directory, make_table(60), sisa=SMALL, arithmetic=arithmetic, **changes)


def digests(config: SisaConfig) -> dict[tuple[int, int], str]:
    return {place: ref.file_digest for place, ref in existing_run(config).state.stages.items()}


def strays(config: SisaConfig) -> set[str]:
    """Files that nothing names."""
    state = existing_run(config).state
    root = Path(config.address)
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    named = {ref.path for ref in state.slices.values()}
    named |= {path for ref in state.stages.values() for path in ref.objects}
    return {f for f in files - named if not f.startswith(layout.PERMANENT)}


def killing(rank: int, due: Callable[[StageProgress], bool]) -> tuple[Callable[[Event], None], list[int]]:
    """A listener that SIGKILLs one worker, once."""
    killed: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, StageProgress) and due(event) and not killed and gang.living:
            killed.append(gang.living[rank])
            os.kill(gang.living[rank], signal.SIGKILL)

    return listen, killed


@pytest.mark.parametrize(("workers", "parallel"), [(2, "ddp"), (2, "fsdp"), slow(4, "ddp"), slow(4, "fsdp")])
def test_forgetting_is_exact(tmp_path: Path, workers: int, parallel: str) -> None:
    config = gang_config(tmp_path, workers, parallel)
    commands.train(config, new_workers=InlineWorkers)
    before = digests(config)
    commands.unlearn(config, PEOPLE, new_workers=InlineWorkers)
    assert digests(config) != before
    assert strays(config) == set()
    assert verify(config, new_workers=InlineWorkers).bit_identical
    # A run that never knew them, from their table without them.
    table = make_table(60)
    knows = [person.as_py() not in PEOPLE for person in table["person"]]
    without = gang_config(tmp_path / "without", workers, parallel)
    pq.write_table(table.filter(knows), without.data.train)
    commands.train(without, new_workers=InlineWorkers)
    assert digests(without) == digests(config)


@pytest.mark.crash
@pytest.mark.parametrize(("parallel", "rank"), [("ddp", 1), ("fsdp", 0), slow("ddp", 0), slow("fsdp", 1)])
def test_a_worker_killed_inside_a_stage(tmp_path: Path, parallel: str, rank: int) -> None:
    waiting: dict[str, Any] = {
        "recipe": {"class": "tests.execution.recipes.Slow", "args": {}},
        "partial_checkpoint_every_s": 0.05,
    }
    undisturbed = gang_config(tmp_path / "undisturbed", 2, parallel, **waiting)
    commands.train(undisturbed, new_workers=InlineWorkers)
    config = gang_config(tmp_path / "killed", 2, parallel, **waiting)
    resumed: list[int] = []
    on_event, killed = killing(rank, lambda event: event.stage == 2 and event.step > 4)

    def listen(event: Event) -> None:
        on_event(event)
        is_another = killed and gang.living and killed[0] not in gang.living
        if is_another and isinstance(event, StageProgress) and not resumed:
            resumed.append(event.step)

    commands.train(config, on_event=listen, new_workers=InlineWorkers)
    assert killed
    assert resumed[0] > 1  # not from the beginning of the stage
    assert digests(config) == digests(undisturbed)
    assert strays(config) == set()


def test_parts_are_stored_named_and_missed(tmp_path: Path) -> None:
    config = gang_config(tmp_path, 2, "fsdp")
    commands.train(config, new_workers=InlineWorkers)
    run = existing_run(config)
    ref = run.state.stages[0, 2]
    assert ref.path is not None
    assert len(ref.objects) == 3
    index = json.loads(run.store.get(ref.path))
    listed = {f"{ref.path.rpartition('/')[0]}/{part['name']}": part["size_bytes"] for part in index["parts"]}
    assert listed == {part.path: part.size_bytes for part in ref.parts}
    assert not any(b"pickle" in run.store.get(path) for path in ref.objects)
    whole = codec.decode(read_constituent(run.store, ref))
    assert whole.keys() == {"model", "trainer"}
    assert {tuple(t.shape) for t in whole["model"].values()} == {(16, 8), (16,), (3, 16), (3,)}
    # One of them is lost: the stage is built again, in the same bits.
    before = digests(config)
    (Path(config.address) / ref.parts[1].path).unlink()
    notices: list[str] = []
    commands.train(
        config,
        on_event=lambda e: notices.append(e.text) if isinstance(e, Notice) else None,
        new_workers=InlineWorkers,
    )
    assert any("is gone" in text for text in notices)
    assert digests(config) == before
    # One of them is another one: verify sees it, and a rebuild that would start from it does not.
    ref = existing_run(config).state.stages[0, 1]
    part = Path(config.address) / ref.parts[1].path
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    found = verify(config, new_workers=InlineWorkers)
    assert not found.bit_identical
    assert found.first_difference is not None
    assert ref.parts[1].path in found.first_difference
    commands.unlearn(config, ["p7", "p8", "p9", "p10", "p11"], new_workers=InlineWorkers)
    assert verify(config, new_workers=InlineWorkers).bit_identical


def test_stages_that_are_not_kept_and_a_baseline(tmp_path: Path) -> None:
    kept = gang_config(tmp_path / "kept", 2, "fsdp")
    few = gang_config(tmp_path / "few", 2, "fsdp", keep_checkpoints=[2])
    for config in (kept, few):
        commands.train(config, new_workers=InlineWorkers)
    assert digests(few) == digests(kept)
    ref = existing_run(few).state.stages[0, 1]
    assert (ref.path, ref.parts) == (None, ())
    assert baseline(few, new_workers=InlineWorkers).value is not None
    assert strays(few) == set()
    answers = tmp_path / "answers.parquet"
    assert few.data.test is not None
    predict(few, few.data.test, out=str(answers), new_workers=InlineWorkers)
    assert pq.read_table(answers).num_rows == 60


def test_mid_stage_parts_count_when_all_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between two workers' parts leaves a set that nobody resumes from, and purge sweeps."""
    config = gang_config(tmp_path, 2, "fsdp", partial_checkpoint_every_s=0.001)
    put = LocalStore.put

    def dying(self: LocalStore, path: str, data: bytes) -> None:
        name = layout.parse_partial(path)
        marker = tmp_path / "died"
        if name is not None and name.part == (1, 2) and name.step > 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", dying)
        commands.train(config, new_workers=InlineWorkers)
    assert (tmp_path / "died").exists()
    other = gang_config(tmp_path / "other", 2, "fsdp")
    commands.train(other, new_workers=InlineWorkers)
    assert digests(config) == digests(other)
    assert strays(config) == set()


@pytest.mark.parametrize(
    ("arithmetic", "problem"),
    [
        ({"workers": 3}, "arithmetic.workers: is 3, but a step of this recipe takes 8 rows"),
        ({"parallel": "fsdp"}, "parallel is fsdp, .* but workers is 1"),
        (
            {"workers": 2, "parallel": "fsdp", "precision": "fp16"},
            "precision is fp16, .* set precision to bf16",
        ),
        ({"workers": 0}, "arithmetic.workers: must be a whole number from 1 to 4096, not 0"),
        ({"workers": 2, "parallel": "zero"}, "arithmetic.parallel: must be ddp or fsdp, not 'zero'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arithmetic: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        commands.train(make_config(tmp_path, arithmetic=arithmetic), new_workers=InlineWorkers)
    assert not (tmp_path / "storage").exists()


def test_a_recipe_that_fails_on_a_worker(tmp_path: Path) -> None:
    recipe = {"class": "tests.execution.recipes.Raising", "args": {}}
    with pytest.raises((RuntimeError, RecipeError), match="out of cheese"):
        commands.train(gang_config(tmp_path, 2, "ddp", recipe=recipe), new_workers=InlineWorkers)
