"""Payloads: they name exactly who was accepted, and nobody any longer than needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import IntegrityError, ObjectMissing
from sisa_ray.core.keys import canonical_json
from sisa_ray.storage import layout
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.payloads import read_subjects, rewrite_payload, write_payload
from sisa_ray.storage.run import Run
from tests.core.builders import accepted
from tests.storage.runs import accept, again, new_run

PEOPLE = {"r1": ["ada", "eve"], "r2": ["joe", "ada"], "r3": ["Żaneta", "17"]}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(LocalStore(str(tmp_path / "run"), patience_s=0.1))


def test_everybody_is_read_once_and_in_order(run: Run) -> None:
    accept(run, PEOPLE)
    accept(run, {"r4": ["kim", "joe"]}, payload="q")
    assert read_subjects(run, ["r1", "r2", "r3", "r4"]) == ["ada", "eve", "joe", "Żaneta", "17", "kim"]
    assert read_subjects(again(run), ["r4", "r1"]) == ["kim", "joe", "ada", "eve"]
    assert read_subjects(run, []) == []


def test_an_object_of_several_requests_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(run, PEOPLE)
    read: list[str] = []
    get = run.store.get

    def counted(path: str) -> bytes:
        read.append(path)
        return get(path)

    monkeypatch.setattr(run.store, "get", counted)
    read_subjects(run, list(PEOPLE))
    assert len(read) == 1


def test_requests_known_by_tags_alone_have_none(run: Run) -> None:
    run.commit(accepted("r1", *run.secret.tags(["ada"]), payload=""))
    assert read_subjects(run, ["r1"]) == []


@given(st.dictionaries(st.text("abc", min_size=1), st.lists(st.text(min_size=1)), min_size=1))
def test_any_text_comes_back(people: dict[str, list[str]]) -> None:
    class Memory(LocalStore):
        held: dict[str, bytes] = {}  # noqa: RUF012 - one for the test

        def put(self, path: str, data: bytes | memoryview) -> None:
            self.held[path] = bytes(data)

    store = Memory("/nowhere")
    write_payload(store, "requests/p", people)
    content = json.loads(store.held["requests/p"])
    assert content == {"version": 1, "requests": people}
    assert store.held["requests/p"] == canonical_json(content)


TAMPER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "somebody else": lambda c: c["requests"]["r1"].__setitem__(0, "mallory"),
    "somebody more": lambda c: c["requests"]["r1"].append("mallory"),
    "somebody less": lambda c: c["requests"]["r1"].pop(),
    "another order": lambda c: c["requests"]["r1"].reverse(),
    "another request's people": lambda c: c["requests"].update(r1=c["requests"]["r2"]),
    "request gone": lambda c: c["requests"].pop("r1"),
    "requests gone": lambda c: c.pop("requests"),
    "other version": lambda c: c.update(version=2),
    "no version": lambda c: c.pop("version"),
    "requests of another type": lambda c: c.update(requests=[1]),
    "people of another type": lambda c: c["requests"].update(r1=7),
}


class TestTampering:
    @pytest.mark.parametrize("tamper", TAMPER.values(), ids=TAMPER)
    def test_is_noticed_when_it_is_read_and_when_it_is_rewritten(
        self, run: Run, tamper: Callable[[dict[str, Any]], Any]
    ) -> None:
        path = accept(run, PEOPLE)
        content = json.loads(run.store.get(path))
        tamper(content)
        run.store.put(path, canonical_json(content))
        for act in (lambda: read_subjects(run, ["r1"]), lambda: rewrite_payload(run, path, ["r1"])):
            with pytest.raises(IntegrityError, match=f"{path}: .*restore this object") as caught:
                act()
            assert not {"ada", "eve", "mallory"} & set(str(caught.value).split())
        assert [info.path for info in run.store.list(layout.REQUESTS)] == [path]

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b'"ada"'])
    def test_what_is_no_payload_is_named_and_not_shown(self, run: Run, data: bytes) -> None:
        path = accept(run, PEOPLE)
        run.store.put(path, data)
        with pytest.raises(IntegrityError, match=f"{path}: is no payload of requests") as caught:
            read_subjects(run, ["r2"])
        assert "ada" not in str(caught.value)

    def test_what_was_accepted_by_others_does_not_matter(self, run: Run) -> None:
        path = accept(run, PEOPLE)
        content = json.loads(run.store.get(path))
        content["requests"]["r2"] = ["mallory"]
        run.store.put(path, canonical_json(content))
        assert read_subjects(run, ["r1", "r3"]) == ["ada", "eve", "Żaneta", "17"]

    def test_one_that_is_gone_is_missing(self, run: Run) -> None:
        path = accept(run, PEOPLE)
        run.store.delete([path])
        with pytest.raises(ObjectMissing, match=path):
            read_subjects(run, ["r1"])


class TestRewriting:
    def test_leaves_nobody_but_those_who_need_it(self, run: Run) -> None:
        path = accept(run, PEOPLE)
        record = rewrite_payload(run, path, ["r3"])
        assert (record.before, record.requests) == (path, ("r3",))
        assert record.path != path
        data = run.store.get(record.path)
        assert not [word for word in (b"ada", b"eve", b"joe", b"r1", b"r2") if word in data]
        run.commit(record)
        assert read_subjects(run, ["r3"]) == ["Żaneta", "17"]
        assert read_subjects(again(run), ["r3"]) == ["Żaneta", "17"]
        assert run.state.payloads == {record.path: ["r3"]}

    def test_leaves_the_old_one_to_a_purge(self, run: Run) -> None:
        """A crash before the commit loses nothing."""
        path = accept(run, PEOPLE)
        before = run.store.get(path)
        rewrite_payload(run, path, ["r1", "r2"])
        assert run.store.get(path) == before
        assert read_subjects(run, list(PEOPLE)) == ["ada", "eve", "joe", "Żaneta", "17"]
