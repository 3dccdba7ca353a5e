"""Checkpoints in one object and in parts, whole and broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.keys import file_digest
from sisa_ray.core.records import PartRef, StageRef
from sisa_ray.storage import layout
from sisa_ray.storage.checkpoints import PartialStore, check_stored, index_of
from sisa_ray.storage.local import LocalStore

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def partials(store: LocalStore, part: tuple[int, int] = (0, 1), attempt: str = "a0") -> PartialStore:
    return PartialStore(store, shard=0, stage=1, key=KEY, attempt=attempt, part=part)


def paths(store: LocalStore) -> list[str]:
    return sorted(info.path for info in store.list(layout.CHECKPOINTS))


def in_parts(store: LocalStore, *states: bytes) -> StageRef:
    index = layout.index_path(0, 1, "a0", KEY)
    parts = []
    for number, state in enumerate(states):
        path = layout.part_path(index, number, len(states))
        store.put(path, state)
        parts.append(PartRef(path=path, file_digest=file_digest(state), size_bytes=len(state)))
    data = index_of(tuple(parts))
    store.put(index, data)
    return StageRef(
        shard=0,
        stage=1,
        key=KEY,
        path=index,
        file_digest=file_digest(data),
        size_bytes=len(data),
        num_steps=1,
        record_visits=1,
        seconds=0.1,
        platform={},
        parts=tuple(parts),
    )


def test_every_object_of_a_stage_is_named_and_checked(store: LocalStore) -> None:
    ref = in_parts(store, b"first", b"second")
    assert sorted(ref.objects) == paths(store)
    assert ref.total_bytes == sum(info.size_bytes for info in store.list(layout.CHECKPOINTS))
    check_stored(store, ref)
    for path in ref.objects:
        data = store.get(path)
        store.put(path, b"x" * len(data))
        with pytest.raises(IntegrityError, match=path):
            check_stored(store, ref)
        store.delete([path])
        with pytest.raises(IntegrityError, match="missing"):
            check_stored(store, ref)
        store.put(path, data)
    swapped = ref.model_copy(update={"parts": ref.parts[::-1]})
    with pytest.raises(IntegrityError, match="no index of the parts"):
        check_stored(store, swapped)


def test_the_index_says_nothing_of_where_it_lies(store: LocalStore) -> None:
    here = PartRef(path="a/b/state-00000-of-00001.safetensors", file_digest="d", size_bytes=1)
    there = here.model_copy(update={"path": "elsewhere/state-00000-of-00001.safetensors"})
    assert index_of((here,)) == index_of((there,))


def test_a_mid_stage_state_counts_when_all_its_parts_are_there(store: LocalStore) -> None:
    first, second = partials(store, (0, 2)), partials(store, (1, 2))
    first.save(3, b"0 at 3")
    assert partials(store, (0, 2)).found() == []
    second.save(3, b"1 at 3")
    second.save(4, b"1 at 4")
    # What the second worker had after step 3 is gone, and the first has nothing after step 4 yet.
    assert partials(store, (0, 2)).found() == []
    first.save(4, b"0 at 4")
    (found,) = second.found()
    assert found.step == 4
    assert (first.read(found), second.read(found)) == (b"0 at 4", b"1 at 4")
    assert partials(store, (0, 3)).found() == []
    assert partials(store).latest() is None


def test_parts_of_two_writers_are_no_whole(store: LocalStore) -> None:
    partials(store, (0, 2), "a0").save(3, b"0")
    partials(store, (1, 2), "a1").save(3, b"1")
    assert partials(store, (0, 2)).found() == []


def test_older_parts_stay_until_the_others_are_ready(store: LocalStore) -> None:
    mine = partials(store, (0, 2))
    mine.save(3, b"old")
    seen: list[int] = []
    mine.save(4, b"new", together=lambda: seen.append(len(paths(store))))
    assert seen == [2]
    assert len(paths(store)) == 1


def test_whoever_looks_first_clears_up_what_others_left(store: LocalStore) -> None:
    for part in (0, 1):
        partials(store, (part, 2), "a0").save(3, b"%d" % part)
    partials(store, (1, 2), "a1").save(9, b"alone")
    first = partials(store, (0, 2), "a2")
    (found,) = first.found()
    assert found.step == 3
    first.clear()
    assert paths(store) == []


def test_a_broken_part_is_not_read(store: LocalStore) -> None:
    mine = partials(store, (0, 2))
    mine.save(3, b"0")
    partials(store, (1, 2)).save(3, b"1")
    (found,) = mine.found()
    store.put(found.parts[0][0], b"x")
    assert mine.read(found) is None
    store.delete([found.parts[0][0]])
    assert mine.read(found) is None


def test_one_object_is_as_it_was(store: LocalStore) -> None:
    alone = partials(store)
    alone.save(3, b"a")
    alone.save(5, b"b")
    assert [layout.parse_partial(path) for path in paths(store)] == [(KEY, 5, file_digest(b"b"), (0, 1))]
    latest = partials(store).latest()
    assert latest is not None
    assert (latest.step, latest.data) == (5, b"b")
