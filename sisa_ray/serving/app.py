"""The Ray Serve application: ``build_app(config)``, for ``sisa-ray serve``, ``serve run`` and ``serve deploy``."""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig

from sisa_ray.core.errors import RunNotFound, SisaError
from sisa_ray.core.identity import Spec
from sisa_ray.execution.opening import address_of
from sisa_ray.execution.remote import RemoteCoordinator
from sisa_ray.learning.recipe import RecipeSpec
from sisa_ray.serving.config import ServeConfig
from sisa_ray.serving.desk import Desk
from sisa_ray.serving.electorate import Electorate, ModelLoader
from sisa_ray.serving.gate import Audit, Gate
from sisa_ray.serving.http import Http
from sisa_ray.serving.keeper import Keeper
from sisa_ray.serving.meters import ReplicaMeters, RunMeters
from sisa_ray.serving.passes import Passes
from sisa_ray.serving.predict_api import describe_predict
from sisa_ray.serving.replica import Predictor, schema_of, warm_up
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import read_spec

logger = logging.getLogger("sisa_ray.serving")

_TICK_S = 1.0
_DESCRIBE_EVERY = 5
_READY_PAUSE_S = 0.05


class Ensemble:
    """A replica with every constituent in memory, as one stacked model."""

    async def __init__(  # type: ignore[misc]
        self, config: ServeConfig, spec: Spec, address: str
    ) -> None:
        """Return once this replica can answer: it is not in service before.

        Waits for a generation to be published and for the coordinator, as long as that takes.
        """
        sys.path.extend(p for p in spec.code_dirs if p not in sys.path)
        self._spec = spec
        self._replica = uuid.uuid4().hex
        self._coordinator = RemoteCoordinator(address)
        self._meters, self._run_meters = ReplicaMeters(spec.config.name), RunMeters()
        self._audit = Audit(audit_log(spec.config.name, self._replica))
        self._store = open_store(address)
        self._passes = Passes(spec.config.arithmetic, config.rows_per_pass, on_pass=self._meters.on_pass)
        self._loader: ModelLoader | None = None
        self._keeper = Keeper(self._replica, self._coordinator.renew, self._load)
        self._predictor = Predictor(
            spec, self._keeper, self._passes, spend=self._coordinator.spend, max_rows=config.max_rows
        )
        gate = Gate(
            lambda: self._keeper.tokens,
            is_open=not config.authentication,
            per_s={"predict": config.predictions_per_s, "desk": config.requests_per_s},
        )
        desk = Desk(
            self._coordinator,
            gate,
            self._audit,
            is_ready=lambda: None if self._keeper.is_serving else self._keeper.problem,
            predict_api=describe_predict(spec),
            max_subjects=config.max_subjects,
        )
        self._http = Http(
            self._predictor,
            gate,
            self._audit,
            desk.app(),
            task=spec.task,
            max_body_bytes=config.max_body_bytes,
            on_answer=self._meters.on_answer,
        )
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keeper.run()), loop.create_task(self._tick())]
        while not self._keeper.is_serving:
            self.check_health()
            await asyncio.sleep(_READY_PAUSE_S)
        electorate = self._keeper.electorate
        assert electorate is not None
        finish = self._predictor.finishers.finisher(self._predictor.finishers.question({}))
        await warm_up(self._passes, electorate, self._predictor.rows.schema, finish, config.rows_per_pass)
        logger.info("ready: %d voters, generation %d", len(electorate.voters), electorate.generation)

    def __serve_build_asgi_app__(self) -> Http:
        """What Ray Serve hands HTTP requests to."""
        return self._http

    def check_health(self) -> None:
        """Raise where this replica has to be replaced. A lease that ran out is no such thing: it comes back."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
                raise RuntimeError("a task of the replica has ended")

    async def __del__(self) -> None:
        """Leave: nothing is answered any more, so nobody has to wait for the lease to run out."""
        for task in getattr(self, "_tasks", []):
            task.cancel()
        with suppress(SisaError, AttributeError):
            await self._coordinator.leave(self._replica)
        with suppress(AttributeError):
            self._passes.stop()
            self._audit.flush()

    def _load(self, view: Any, before: Electorate | None) -> Electorate:
        if self._loader is None:
            schema = schema_of(view.columns)
            recipe = self._spec.config.recipe
            factory = RecipeSpec(
                class_path=recipe.class_path,
                args=recipe.args,
                search_dirs=self._spec.code_dirs,
                code=self._spec.code,
            ).factory(schema)
            self._loader = ModelLoader(
                self._store,
                factory,
                self._spec.config.arithmetic,
                shards=tuple(range(self._spec.config.sisa.num_shards)),
                schema=schema,
            )
            self._predictor.reader(schema)
        return self._loader.load(view, before)

    async def _tick(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(_TICK_S)
            electorate = self._keeper.electorate
            if electorate is not None:
                voters = len(electorate.voters) if self._keeper.is_serving else 0
                self._meters.hand_over(voters, electorate.generation)
            self._audit.flush()
            count += 1
            if count % _DESCRIBE_EVERY == 0:
                with suppress(SisaError):
                    self._run_meters.hand_over(await self._coordinator.describe())


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
    deployment = serve.deployment(
        name="Ensemble",
        max_ongoing_requests=settings.max_ongoing_requests,
        graceful_shutdown_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        **_scaling(settings),
    )(serve.ingress()(Ensemble))
    application: serve.Application = deployment.bind(settings, spec, address)
    return application


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


def audit_log(run: str, replica: str) -> logging.Logger:
    """A log file of this replica beside Ray's own, one JSON object a line."""
    context = ray.get_runtime_context()
    file = Path(
        context.get_temp_dir(), context.get_session_name(), "logs", f"sisa_ray-{run}-audit-{replica[:8]}.log"
    )
    log = logging.getLogger(f"sisa_ray.audit.{replica}")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(logging.FileHandler(file, encoding="utf-8"))
    return log
