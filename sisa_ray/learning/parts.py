"""Checkpoints as predictions need them: in one piece, whether they were stored in one or in parts."""

from __future__ import annotations

from sisa_ray.core.records import StageRef
from sisa_ray.learning import codec
from sisa_ray.storage.checkpoints import read_checked
from sisa_ray.storage.objects import ObjectStore

_PREDICTS = ("model/", "trainer/")
"""What a constituent is made from; the optimizer's state, most of a part, is left out."""


def read_constituent(store: ObjectStore, ref: StageRef) -> bytes:
    """The state of a stage in one piece, whoever wrote it; joined from parts it has no optimizer.

    Raises:
        IntegrityError: naming the object that is gone or has another digest than was committed.
    """
    if not ref.parts:
        return read_checked(store, ref)
    # One after the other: beside what predicts, memory holds one whole part.
    return codec.join([codec.take(read_checked(store, part), *_PREDICTS) for part in ref.parts])
