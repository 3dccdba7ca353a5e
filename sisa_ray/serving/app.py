"""The Ray Serve application: ``build_app(config)``, for ``sisa-ray serve``, ``serve run`` and ``serve deploy``."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from sisa_ray.core.errors import RunNotFound
from sisa_ray.core.identity import Spec
from sisa_ray.execution.opening import address_of
from sisa_ray.execution.remote import RemoteCoordinator
from sisa_ray.learning.arithmetic import applied
from sisa_ray.serving.config import ServeConfig
from sisa_ray.serving.fan_out import AskGroup, FanOut, GroupMember, GroupVotes, groups_of
from sisa_ray.serving.http import Http
from sisa_ray.serving.meters import RayMeters
from sisa_ray.serving.service import Service
from sisa_ray.storage import layout
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import read_spec


class _Pinned:
    """A process that predicts and does nothing else."""

    def _pin(self, spec: Spec) -> None:
        sys.path.extend(p for p in spec.code_dirs if p not in sys.path)
        # A pass on its thread waits for the interpreter as often as it calls an operator.
        sys.setswitchinterval(0.001)
        # For as long as the process lives.
        self._pinned = ExitStack()
        self._pinned.enter_context(applied(spec.config.arithmetic))


class Ensemble(_Pinned):
    """A replica that answers: from models of its own, or by asking groups of shards."""

    async def __init__(  # type: ignore[misc]
        self, config: ServeConfig, spec: Spec, address: str, *groups: DeploymentHandle[Any]
    ) -> None:
        """Return once this replica can answer: it is not in service before."""
        self._pin(spec)
        name = spec.config.name
        self._service = Service(
            config,
            spec,
            open_store(address),
            RemoteCoordinator(address),
            audit_log=audit_log(name),
            meters=RayMeters(name),
            forward=FanOut([_asking(group) for group in groups]) if groups else None,
        )
        await self._service.start()

    def __serve_build_asgi_app__(self) -> Http:
        """What Ray Serve hands HTTP requests to."""
        return self._service.http

    def check_health(self) -> None:
        """See :meth:`Service.check`."""
        self._service.check()

    async def __del__(self) -> None:
        """See :meth:`Service.stop`."""
        with suppress(AttributeError):
            await self._service.stop()


class Group(_Pinned):
    """A replica that votes for some shards."""

    async def __init__(  # type: ignore[misc]
        self, config: ServeConfig, spec: Spec, address: str, shards: tuple[int, ...]
    ) -> None:
        """Return once it can vote."""
        self._pin(spec)
        self._member = GroupMember(config, spec, open_store(address), RemoteCoordinator(address), shards)
        await self._member.start()

    async def vote(self, table: pa.Table) -> GroupVotes:
        """See :meth:`GroupMember.vote`."""
        return await self._member.vote(table)

    def check_health(self) -> None:
        """See :meth:`GroupMember.check`."""
        self._member.check()

    async def __del__(self) -> None:
        """See :meth:`GroupMember.stop`."""
        with suppress(AttributeError):
            await self._member.stop()


def _asking(group: DeploymentHandle[Any]) -> AskGroup:
    async def ask(table: pa.Table) -> GroupVotes:
        votes: GroupVotes = await group.vote.remote(table)
        return votes

    return ask


def build_app(config: ServeConfig | Mapping[str, Any]) -> serve.Application:
    """The application of a run, which must exist.

    Args:
        config: a :class:`ServeConfig`, or the mapping of one, as ``serve run sisa_ray.serving.app:build_app run=…``
            and the ``args`` of a Serve configuration file give it.

    Raises:
        ConfigError: where the configuration breaks a rule.
        RunNotFound: where there is no such run.
    """
    settings = config if isinstance(config, ServeConfig) else ServeConfig.from_mapping(config)
    address = address_of(settings.run)
    spec = read_spec(open_store(address))
    if spec is None:
        raise RunNotFound(f"{address}: there is no run here; `sisa-ray train CONFIG` creates it")
    common: dict[str, Any] = {
        "max_ongoing_requests": settings.max_ongoing_requests,
        # The audit says more, and costs less on the path of a prediction.
        "logging_config": {"enable_access_log": False},
        "graceful_shutdown_timeout_s": 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5.0,
    }
    resources = {"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica}
    scaling = _scaling(settings)
    answering = serve.ingress()(Ensemble)
    if placement_of(settings, spec, address) == "stacked":
        deployment: Any = serve.deployment(name="Ensemble", ray_actor_options=resources, **common, **scaling)(
            answering
        )
        stacked: serve.Application = deployment.bind(settings, spec, address)
        return stacked
    groups = [
        serve.deployment(name=f"Group{number}", ray_actor_options=resources, **common, **scaling)(Group).bind(
            settings, spec, address, shards
        )
        for number, shards in enumerate(groups_of(spec.config.sisa.num_shards, settings.num_groups))
    ]
    # Counting votes takes no device.
    counting = {"num_cpus": settings.cpus_per_replica}
    deployment = serve.deployment(name="Ensemble", ray_actor_options=counting, **common, **scaling)(answering)
    fanned_out: serve.Application = deployment.bind(settings, spec, address, *groups)
    return fanned_out


def placement_of(settings: ServeConfig, spec: Spec, address: str) -> str:
    """``stacked`` where every constituent fits into ``stacked_bytes`` together, unless the configuration says."""
    if settings.placement != "auto":
        return settings.placement
    store = open_store(address)
    prefix = f"{layout.CHECKPOINTS}shard=00000/"
    largest = max((info.size_bytes for info in store.list(prefix)), default=0)
    return "stacked" if largest * spec.config.sisa.num_shards <= settings.stacked_bytes else "fan-out"


def _scaling(settings: ServeConfig) -> dict[str, Any]:
    if settings.min_replicas == settings.max_replicas:
        return {"num_replicas": settings.min_replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests,
        )
    }


def audit_log(run: str) -> logging.Logger:
    """A log file of this replica beside Ray's own, one JSON object a line."""
    context = ray.get_runtime_context()
    file = Path(
        context.get_temp_dir(),
        context.get_session_name(),
        "logs",
        f"sisa_ray-{run}-audit-{uuid.uuid4().hex[:8]}.log",
    )
    log = logging.getLogger("sisa_ray.audit")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(logging.FileHandler(file, encoding="utf-8"))
    return log
