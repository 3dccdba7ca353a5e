"""The spec of a run: its identity, which is hashed into every key, and its circumstances, which are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.keys import json_digest
from sisa_ray.core.partition import Layout

SPEC_VERSION = 1


class CodeIdentity(BaseModel):
    """A recipe's code: digests of the modules that are the user's, versions of the distributions they use.

    ``numerics`` stands for sisa_ray's own arithmetic; a release that changes no bits keeps it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: dict[str, str]
    distributions: dict[str, str]
    numerics: int


class BackboneIdentity(BaseModel):
    """A recipe's frozen backbone: what decides the bits of the features beside the recipe's own code.

    Attributes:
        weights: SHA-256 (hex) of its tensors, by name.
        batch_size: rows of each of its forward passes.
        distributions: versions of the installed packages that its modules come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    batch_size: int
    distributions: dict[str, str]


class Spec(BaseModel):
    """What ``spec.json`` holds: immutable, written when the run is created.

    ``config`` has every ``auto`` resolved. ``code_dirs`` are hints where the recipe was found; they,
    ``batch_size``, ``task`` and ``num_classes`` (which follow from the recipe) are no identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = SPEC_VERSION
    config: SisaConfig
    code: CodeIdentity
    secret_id: str
    code_dirs: tuple[str, ...] = ()
    batch_size: int
    task: Literal["classification", "regression"]
    num_classes: int | None = None
    backbone: BackboneIdentity | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must share to have the same bits: columns, recipe, sisa, arithmetic (clause 9)."""
        config = self.config
        dumped = config.model_dump(mode="json")
        # One worker is no gang: such runs are named as they were before there were any.
        unused = () if config.arithmetic.workers > 1 else ("workers", "parallel")
        # A recipe without a backbone has the keys that it had before there were any.
        warm_start = dumped["sisa"]["warm_start"]
        backbone = {} if self.backbone is None else {"backbone": self.backbone.model_dump(mode="json")}
        # Nor is a run without strata named otherwise than before there were any.
        stratum = {} if config.data.stratum is None else {"stratum": config.data.stratum}
        return {
            "data": {**{k: dumped["data"][k] for k in ("record_id", "subject_id", "columns")}, **stratum},
            "recipe": {**dumped["recipe"], "class": recipe_name(config.recipe.class_path)},
            "code": self.code.model_dump(mode="json"),
            "sisa": {
                "num_shards": config.sisa.num_shards,
                # Exact epochs of each stage: a schedule's name and its spelled-out weights are one spec.
                "stage_epochs": [str(e) for e in config.sisa.stage_epochs],
                "seed": config.sisa.seed,
                "order_buckets": config.sisa.order_buckets,
                # Stages that start from the checkpoint as it is have the keys that they had before there was a choice.
                **({} if warm_start is None else {"warm_start": warm_start}),
                **self._strata,
            },
            "arithmetic": {k: v for k, v in dumped["arithmetic"].items() if k not in unused},
            **backbone,
        }

    @property
    def _strata(self) -> dict[str, Any]:
        """Where each stratum is; in which order they were declared decides nothing."""
        regions = {
            name: [r.first_shard, r.end_shard - 1, r.first_slice, r.last_slice]
            for name, r in self.layout().regions
        }
        return {"strata": regions} if regions else {}

    def layout(self, *, num_slices: int | None = None, first_slice: int = 1) -> Layout:
        """Where an ingest places its records: the first one, or one that appends ``num_slices`` from ``first_slice``.

        Appended records keep to the shards of their strata, and use all slices that were appended with them.
        """
        sisa = self.config.sisa
        regions = [
            (s.name, s.region(num_shards=sisa.num_shards, num_slices=sisa.num_slices)) for s in sisa.strata
        ]
        if num_slices is None:
            num_slices = sisa.num_slices
        else:
            last_slice = first_slice + num_slices - 1
            regions = [
                (name, replace(region, first_slice=first_slice, last_slice=last_slice))
                for name, region in regions
            ]
        return Layout(
            num_shards=sisa.num_shards,
            num_slices=num_slices,
            seed=sisa.seed,
            first_slice=first_slice,
            regions=tuple(sorted(regions)),
        )

    @property
    def digest(self) -> str:
        """Digest of the whole identity."""
        return json_digest({"version": self.version, "identity": self.identity})

    @property
    def stage_digest(self) -> str:
        """Digest of the part that decides a stage's bits: prediction's batch shape does not."""
        identity = self.identity
        arithmetic = {k: v for k, v in identity["arithmetic"].items() if k != "predict_batch_size"}
        return json_digest({"version": self.version, "identity": {**identity, "arithmetic": arithmetic}})


def recipe_name(class_path: str) -> str:
    """The recipe's name whatever directory its file lies in.

    >>> recipe_name("work/nets.py:Net"), recipe_name("pkg.nets.Net")
    ('nets.Net', 'pkg.nets.Net')
    """
    if ":" not in class_path:
        return class_path
    file, _, name = class_path.rpartition(":")
    return f"{file.replace(chr(92), '/').rsplit('/', 1)[-1].removesuffix('.py')}.{name}"


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Where two identities differ, one line each: ``field: <there> there, <here> here``."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        lines: list[str] = []
        for key in sorted({*there, *here}):
            lines += differences(there.get(key), here.get(key), f"{path}.{key}" if path else str(key))
        return lines
    if there == here:
        return []
    return [f"{path}: {_short(there)} in the run, {_short(here)} here"]


def _short(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
