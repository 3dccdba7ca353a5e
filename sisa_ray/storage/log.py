"""Interim log."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from sisa_ray.core.errors import CommitFailed, ObjectExists, ObjectMissing
from sisa_ray.core.keys import canonical_json, file_digest
from sisa_ray.core.records import Record, dump_record, load_record
from sisa_ray.storage.objects import ObjectStore


@dataclass(frozen=True)
class Head:
    seq: int
    digest: str
    START: ClassVar[Head]


Head.START = Head(-1, "")


@dataclass(frozen=True)
class Entry:
    head: Head
    records: tuple[Record, ...]


class CommitLog:
    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def read(self, after: Head) -> list[Entry]:
        out = []
        seq = after.seq + 1
        while True:
            try:
                data = self.store.get(f"log/{seq:020d}.json")
            except ObjectMissing:
                return out
            d = json.loads(data)
            out.append(Entry(Head(seq, file_digest(data)), tuple(load_record(r) for r in d["records"])))
            seq += 1

    def append(self, records: Sequence[Record], *, head: Head) -> Entry:
        d = {"version": 1, "seq": head.seq + 1, "prev": head.digest, "commit": uuid.uuid4().hex, "at": datetime.now(UTC).isoformat(), "records": [dump_record(r) for r in records]}
        data = canonical_json(d)
        try:
            self.store.create(f"log/{head.seq + 1:020d}.json", data)
        except ObjectExists:
            raise CommitFailed("fenced") from None
        return Entry(Head(head.seq + 1, file_digest(data)), tuple(records))
