"""The configuration of a run: frozen, self-validating, the same from YAML and from Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from sisa_ray.core.clocks import Basis
from sisa_ray.core.documents import load_yaml
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import (
    Arguments,
    ByteSize,
    Columns,
    KeepCheckpoints,
    KeepField,
    NonNegativeNumber,
    OptionalFraction,
    OptionalText,
    PositiveFraction,
    PositiveNumber,
    PositiveShare,
    ScheduleField,
    Share,
    Text,
    is_text,
    one_of,
    shown,
    whole_number,
)
from sisa_ray.core.resource_fields import GpuShare, Labels, SlotLimit
from sisa_ray.core.schedule import Schedule, stage_epochs
from sisa_ray.core.section import Section, lines_of
from sisa_ray.core.strata import Strata, check_strata

_LARGEST = 10**4000

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]
Parallel = Literal["ddp", "fsdp"]
Strategy = Literal["pack", "spread"]
LoaderMode = Literal["auto", "resident", "streaming"]
Batching = Literal["at_once", "size", "window", "deadline"]
Aggregation = Literal["auto", "majority", "mean", "median", "size_weighted"]
FencePolicy = Literal["rollback", "exclude", "keep-until-rebuilt"]


class DataConfig(Section):
    """Which table to learn from and what its columns mean. ``columns`` are kept in order of their roles."""

    train: Text
    test: OptionalText = None
    record_id: Text
    subject_id: Text = ""
    columns: Columns
    stratum: OptionalText = None
    strata_table: OptionalText = None

    @model_validator(mode="before")
    @classmethod
    def _subject_defaults_to_record(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("subject_id") not in (None, ""):
            return data
        given = {key: value for key, value in data.items() if key != "subject_id"}
        # Where record_id itself is wrong, that is one fault and not two.
        return {**given, "subject_id": given["record_id"]} if is_text(given.get("record_id")) else given


class RecipeConfig(Section):
    """The recipe class (``package.module.Class`` or ``path/to/file.py:Class``) and its arguments.

    ``args`` are plain data with sorted keys, exactly as they come back from ``spec.json``.
    """

    class_path: Text = Field(alias="class")
    args: Arguments = Field(default_factory=dict)

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    @field_validator("class_path")
    @classmethod
    def _names_a_class(cls, path: str) -> str:
        file, colon, name = path.rpartition(":")
        module, _, name = (file, "", name) if colon else path.rpartition(".")
        is_file = bool(colon) and module.endswith(".py")
        is_module = not colon and bool(module) and all(part.isidentifier() for part in module.split("."))
        if not name.isidentifier() or not (is_file or is_module):
            raise ValueError(f"must be package.module.Class or path/to/file.py:Class, not {shown(path)}")
        return path


class WarmStartConfig(Section):
    """Shrink and perturb (Ash & Adams, NeurIPS 2020): before each stage but the first, weights become ``shrink`` times
    themselves and ``perturb`` times freshly initialised ones, and the optimizer starts anew.
    """

    shrink: PositiveShare = Fraction(1, 2)
    perturb: Share = Fraction(1, 10)


class SisaSection(Section):
    """How the training set is split and how long each stage trains."""

    num_shards: Annotated[int, whole_number(1, 100_000)]
    num_slices: Annotated[int, whole_number(1, 10_000)]
    epochs: PositiveFraction
    schedule: ScheduleField = "equal"
    seed: Annotated[int, whole_number(0, 2**63 - 1)] = 0
    order_buckets: Annotated[int, whole_number(1, 65_536)] = 1
    warm_start: WarmStartConfig | None = None
    strata: Strata = ()

    @field_validator("strata")
    @classmethod
    def _fill_the_run(cls, strata: Strata, info: ValidationInfo) -> Strata:
        if "num_shards" in info.data and "num_slices" in info.data:
            check_strata(strata, num_shards=info.data["num_shards"], num_slices=info.data["num_slices"])
        return strata

    @field_validator("schedule")
    @classmethod
    def _one_weight_a_stage(cls, schedule: Schedule, info: ValidationInfo) -> Schedule:
        num_slices = info.data.get("num_slices")
        if isinstance(schedule, tuple) and num_slices is not None and len(schedule) != num_slices:
            raise ValueError(
                f"must have one weight a stage: it has {len(schedule)}, but num_slices is {num_slices}; "
                f"give {num_slices} weights, or set num_slices to {len(schedule)}"
            )
        return schedule

    @model_validator(mode="after")
    def _epochs_can_be_written(self) -> SisaSection:
        # They are part of the identity as exact fractions, and Python writes no integer of over 4300 digits.
        if any(max(e.numerator, e.denominator) >= _LARGEST for e in self.stage_epochs):
            raise ValueError(
                "the exact epochs of a stage have more than 4000 digits; use rounder weights or fewer slices"
            )
        return self

    @property
    def stage_epochs(self) -> list[Fraction]:
        """Epochs of each stage over its slices 1..r; their cost adds up to ``epochs``."""
        return self.epochs_of(self.num_slices)

    def epochs_of(self, num_stages: int) -> list[Fraction]:
        """Epochs of so many stages, appended ones included."""
        schedule: Schedule = self.schedule
        return stage_epochs(schedule, self.num_slices, self.epochs, num_stages=num_stages)


class ArithmeticConfig(Section):
    """What fixes the bits beside the code: part of the identity. ``auto`` is resolved once, at creation."""

    device: Annotated[Device, one_of(Device)] = "auto"
    threads: Annotated[int, whole_number(1, 256)] = 1
    precision: Annotated[Precision, one_of(Precision)] = "fp32"
    predict_batch_size: Annotated[int, whole_number(1, 65_536)] = 256
    workers: Annotated[int, whole_number(1, 4096)] = 1
    parallel: Annotated[Parallel, one_of(Parallel)] = "ddp"

    @model_validator(mode="after")
    def _can_be_parallel(self) -> ArithmeticConfig:
        if self.parallel == "fsdp" and self.workers == 1:
            raise ValueError(
                "parallel is fsdp, which shares a model out, but workers is 1; set workers to 2 or more, "
                "or remove parallel"
            )
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError(
                "precision is fp16, whose loss scaling has to see all gradients at once, and parallel is fsdp; "
                "set precision to bf16, or parallel to ddp"
            )
        return self


class ResourcesConfig(Section):
    """What a shard occupies while it trains, and where. Circumstances: never part of a key."""

    gpus_per_shard: GpuShare = "auto"
    cpus_per_shard: PositiveNumber = 1.0
    gpus_per_worker: GpuShare = "auto"
    cpus_per_worker: PositiveNumber = 1.0
    accelerator_type: OptionalText = None
    labels: Labels = Field(default_factory=dict)
    strategy: Annotated[Strategy, one_of(Strategy)] = "pack"
    max_slots: SlotLimit = "auto"
    wait_for_nodes_s: NonNegativeNumber = 0.0
    loader: Annotated[LoaderMode, one_of(LoaderMode)] = "auto"
    ingest_in_memory_bytes: ByteSize = 2**30

    @model_validator(mode="after")
    def _accelerates_something(self) -> ResourcesConfig:
        if self.accelerator_type is not None and self.gpus_per_shard == 0:
            raise ValueError(
                f"accelerator_type is {self.accelerator_type}, but gpus_per_shard is 0; ask for a GPU, or pin shards "
                "without one by labels"
            )
        return self


class UnlearningConfig(Section):
    """When requests are carried out, and by which legal clock. Circumstances: never part of a key."""

    batching: Annotated[Batching, one_of(Batching)] = "at_once"
    batch_size: Annotated[int, whole_number(1, 1_000_000)] = 10
    window_s: PositiveNumber = 3600.0
    safety_margin_s: PositiveNumber = 86_400.0
    min_subjects: Annotated[int, whole_number(1, 1_000_000)] = 1
    basis: Annotated[Basis, one_of(Basis)] = "gdpr"
    custom_days: Annotated[int, whole_number(1, 3650)] = 30


class ServingConfig(Section):
    """How the ensemble answers while people are being forgotten. Circumstances: never part of a key.

    ``epsilon_per_answer`` and ``epsilon_budget`` are for answers in private mode; without a budget there are none.
    """

    fence: Annotated[FencePolicy, one_of(FencePolicy)] = "rollback"
    lease_s: PositiveNumber = 4.0
    epsilon_per_answer: PositiveFraction = Fraction(1, 10)
    epsilon_budget: OptionalFraction = None

    @field_validator("lease_s")
    @classmethod
    def _is_a_lease(cls, seconds: float) -> float:
        if not 1 <= seconds <= 60:
            raise ValueError(
                f"must be between 1 and 60 seconds, not {seconds:g}: whoever cannot renew it refuses to answer, and a "
                "replica that died delays the fence for as long"
            )
        return seconds


class SisaConfig(Section):
    """Everything about one run. See ``docs/configuration.md`` for every field."""

    name: Text
    storage_path: Text
    data: DataConfig
    recipe: RecipeConfig
    sisa: SisaSection
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    resources: ResourcesConfig = ResourcesConfig()
    unlearning: UnlearningConfig = UnlearningConfig()
    serving: ServingConfig = ServingConfig()
    aggregation: Annotated[Aggregation, one_of(Aggregation)] = "auto"
    keep_checkpoints: KeepField = "all"
    partial_checkpoint_every_s: PositiveNumber = 60.0

    @field_validator("name")
    @classmethod
    def _is_a_path_component(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
            raise ValueError(
                "must be at most 128 letters, digits, '.', '_' and '-', the first a letter or digit, "
                f"not {shown(name)}; rename the run"
            )
        return name

    @field_validator("storage_path")
    @classmethod
    def _names_a_bucket(cls, path: str) -> str:
        scheme, separator, rest = path.partition("://")
        if separator and not rest.strip("/"):
            raise ValueError(f"must name a bucket, such as {scheme}://my-runs, not {shown(path)}")
        return path

    @field_validator("keep_checkpoints")
    @classmethod
    def _stages_exist(cls, keep: KeepCheckpoints, info: ValidationInfo) -> KeepCheckpoints:
        sisa = info.data.get("sisa")
        if isinstance(keep, tuple) and isinstance(sisa, SisaSection):
            bad = [r for r in keep if r > sisa.num_slices]
            if bad:
                raise ValueError(f"stage {bad[0]} is not one of 1..{sisa.num_slices} (num_slices); remove it")
        return keep

    @model_validator(mode="after")
    def _knows_who_is_where(self) -> SisaConfig:
        if self.sisa.strata and self.data.stratum is None:
            raise ValueError(
                "data.stratum: is required where sisa.strata are declared; name the column that has them"
            )
        if self.data.stratum is not None and not self.sisa.strata:
            raise ValueError(
                f"data.stratum: is {shown(self.data.stratum)}, but sisa.strata declares no strata; declare them, or "
                "remove data.stratum"
            )
        if self.data.strata_table is not None and self.data.stratum is None:
            raise ValueError(
                "data.strata_table: is given without data.stratum; name the column of that table that has the stratum"
            )
        return self

    @property
    def address(self) -> str:
        """Where the run lives: ``<storage_path>/<name>``."""
        return f"{self.storage_path.rstrip('/')}/{self.name}"

    @classmethod
    def from_mapping(cls, data: object, *, source: str = "configuration") -> SisaConfig:
        """Validate plain data; errors say the field, the value, the rule and the fix.

        Raises:
            ConfigError: listing everything that is wrong at once.
        """
        if data is None:
            raise ConfigError(
                f"{source}: is empty; it must have the keys name, storage_path, data, recipe and sisa"
            )
        if not isinstance(data, Mapping):
            raise ConfigError(f"{source}: must be a mapping of sections, not {shown(data)}")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError("\n".join(f"{source}: {line}" for line in lines_of(error))) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> SisaConfig:
        """Read a YAML file.

        Raises:
            ConfigError: where the file is missing, is not YAML, or breaks a rule.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read: {error.strerror}; give the path of a YAML file"
            ) from None
        except ValueError as error:
            raise ConfigError(f"{path}: is not a text file in UTF-8: {error}") from None
        try:
            data = load_yaml(text)
        except ValueError as error:
            raise ConfigError(f"{path}: is not YAML: {error}") from None
        return cls.from_mapping(data, source=str(path))
