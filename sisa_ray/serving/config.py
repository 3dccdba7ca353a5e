"""How an ensemble is served: the part of a deployment that is no part of the run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from sisa_ray.core.documents import load_yaml
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import ByteSize, PositiveNumber, Text, one_of, shown, whole_number
from sisa_ray.core.section import Section, lines_of

Placement = Literal["auto", "stacked", "fan-out"]


class ServeConfig(Section):
    """A deployment. See ``docs/serving.md`` for every field."""

    run: Text
    placement: Annotated[Placement, one_of(Placement)] = "auto"
    num_groups: Annotated[int, whole_number(1, 1000)] = 2
    stacked_bytes: ByteSize = 8 * 2**30
    min_replicas: Annotated[int, whole_number(1, 1000)] = 1
    max_replicas: Annotated[int, whole_number(1, 1000)] = 1
    target_ongoing_requests: PositiveNumber = 32.0
    max_ongoing_requests: Annotated[int, whole_number(1, 100_000)] = 1000
    cpus_per_replica: PositiveNumber = 0.5
    gpus_per_replica: float = 0.0
    rows_per_pass: tuple[int, ...] = (16, 64, 256)
    max_body_bytes: ByteSize = 32 * 2**20
    max_rows: Annotated[int, whole_number(1, 10_000_000)] = 65_536
    max_subjects: Annotated[int, whole_number(1, 1_000_000)] = 10_000
    requests_per_s: PositiveNumber = 50.0
    predictions_per_s: PositiveNumber = 100_000.0
    authentication: bool = True

    @field_validator("gpus_per_replica")
    @classmethod
    def _is_a_share(cls, share: float) -> float:
        if share < 0 or (share > 1 and share != int(share)):
            raise ValueError(f"must be 0, a fraction of one GPU, or a whole number of GPUs, not {share:g}")
        return share

    @field_validator("rows_per_pass")
    @classmethod
    def _ascends(cls, rows: tuple[int, ...]) -> tuple[int, ...]:
        if not rows or any(a >= b for a, b in pairwise(rows)) or not 1 <= rows[0] <= rows[-1] <= 65_536:
            raise ValueError(
                f"must be ascending numbers of rows from 1 to 65536, such as [16, 256], not {shown(list(rows))}"
            )
        return rows

    @model_validator(mode="after")
    def _bounds_agree(self) -> ServeConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas: must be at least min_replicas ({self.min_replicas}), not {self.max_replicas}; raise it"
            )
        return self

    @classmethod
    def from_mapping(cls, data: object, *, source: str = "serve configuration") -> ServeConfig:
        """Validate plain data.

        Raises:
            ConfigError: listing everything that is wrong at once.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{source}: must be a mapping with the key run, not {shown(data)}")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError("\n".join(f"{source}: {line}" for line in lines_of(error))) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> ServeConfig:
        """Read a YAML file: these fields, or a configuration of Ray Serve whose first application has them as ``args``.

        Raises:
            ConfigError: where it cannot be read, is not YAML, or breaks a rule.
        """
        try:
            data: Any = load_yaml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read: {error.strerror}; give the path of a YAML file"
            ) from None
        except ValueError as error:
            raise ConfigError(f"{path}: is not YAML in UTF-8: {error}") from None
        return cls.from_mapping(_arguments(data), source=str(path))


def _arguments(data: Any) -> Any:
    applications = data.get("applications") if isinstance(data, Mapping) else None
    if not isinstance(applications, list) or not applications or not isinstance(applications[0], Mapping):
        return data
    return applications[0].get("args")
