from __future__ import annotations

import copy
import pickle

from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.places import Place, Places

PLACES = st.tuples(st.integers(0, 2), st.integers(1, 3))
CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "update", "delete"]), PLACES, st.integers(0, 9)), max_size=20
)


@given(CHANGES)
def test_it_is_a_dictionary_that_knows_its_shards_apart(changes: list[tuple[str, Place, int]]) -> None:
    places: Places[int] = Places()
    plain: dict[Place, int] = {}
    for kind, place, value in changes:
        for shard in range(3):
            places.derived(shard)["sum"] = sum(places.of(shard).values())
        if kind == "delete":
            if place in plain:
                del places[place], plain[place]
            else:
                continue
        else:
            if kind == "set":
                places[place] = value
            else:
                places.update([(place, value)])
            plain[place] = value
        assert places.derived(place[0]) == {}
        for shard in {0, 1, 2} - {place[0]}:
            assert places.derived(shard) == {"sum": sum(v for (k, _), v in plain.items() if k == shard)}
    assert places == plain
    assert list(places) == list(plain)
    for shard in range(3):
        assert dict(places.of(shard)) == {r: v for (k, r), v in plain.items() if k == shard}
    assert {k for k, _ in plain} <= set(places.shards)


def test_copies_are_of_their_own() -> None:
    places = Places({(0, 1): "a"})
    places.derived(0)["x"] = 1
    for again in (copy.deepcopy(places), pickle.loads(pickle.dumps(places))):
        assert again == places
        assert again.derived(0) == {}
        again[0, 2] = "b"
    assert dict(places.of(0)) == {1: "a"}
