"""Stage keys: every stage is named by the hash of everything that decides its bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sisa_ray.core.keys import json_digest


def stage_keys(
    spec_digest: str,
    shard: int,
    content_digests: Sequence[str],
    appended: Mapping[int, Mapping[str, object]] | None = None,
) -> list[str]:
    """Keys of stages 1..R of one shard, from the content digests of its slices 1..R.

    ``appended`` has what the spec does not say of a stage that an append added: its epochs and its segment.

    Each key hashes the one before it, so it covers the spec, the shard, the stage number, the contents of
    slices 1..r and the state after stage r-1. The settling stage (the last one rounds up) follows from the
    spec's number of slices.

    >>> a, b = stage_keys("spec", 0, ["x", "y"]), stage_keys("spec", 0, ["x", "z"])
    >>> a[0] == b[0], a[1] == b[1]
    (True, False)
    """
    keys: list[str] = []
    previous = ""
    for stage, content in enumerate(content_digests, start=1):
        inputs: dict[str, object] = {
            "spec": spec_digest,
            "shard": shard,
            "stage": stage,
            "slice": content,
            "previous": previous,
        }
        if appended and stage in appended:
            inputs["appended"] = dict(appended[stage])
        previous = json_digest(inputs)
        keys.append(previous)
    return keys


def feature_key(spec_digest: str, content_digest: str) -> str:
    """Key of what a frozen backbone makes of one slice: a function of the spec and the slice's contents alone.

    >>> feature_key("spec", "x") == feature_key("spec", "y")
    False
    """
    return json_digest({"spec": spec_digest, "features_of": content_digest})
