"""From a configuration or an address to an open run."""

from __future__ import annotations

import os
from pathlib import Path

import ray

from sisa_ray.core.config import ArithmeticConfig, SisaConfig
from sisa_ray.core.errors import ConfigError, RunConflict, RunNotFound
from sisa_ray.core.identity import Spec, differences
from sisa_ray.execution.cluster import ensure_ray
from sisa_ray.learning.code import recipe_code
from sisa_ray.learning.recipe import RecipeSpec
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import Run, open_run, open_with_spec, read_spec, with_circumstances
from sisa_ray.storage.source import open_source

Target = SisaConfig | str | os.PathLike[str]
"""A configuration, the path of one, or a run's address."""


def load_target(target: Target) -> SisaConfig | str:
    """Tell a configuration file (``*.yaml``, ``*.yml``) from an address."""
    if isinstance(target, SisaConfig):
        return target
    text = os.fspath(target)
    if text.endswith((".yaml", ".yml")):
        return SisaConfig.from_yaml(text)
    return text


def address_of(target: Target) -> str:
    """Where the run of ``target`` lives, whether it is there or not."""
    config = load_target(target)
    if isinstance(config, SisaConfig):
        return _absolute(config).address
    return config if "://" in config else str(Path(config).absolute())


def create_run(target: Target) -> Run:
    """Open the run of a configuration, creating it where there is none.

    Raises:
        RunConflict: where a run of that name has another spec; what differs is listed.
    """
    config = load_target(target)
    if isinstance(config, str):
        return existing_run(config)
    config = _absolute(config)
    store = open_store(config.address)
    there = read_spec(store)
    spec = _resolve(config, there)
    return open_with_spec(store, spec)


def existing_run(target: Target, *, check_code: bool = True) -> Run:
    """Open a run that must exist, by address or configuration.

    ``check_code`` compares the recipe's code with the run's; what only reads the log does not need that.

    Raises:
        RunNotFound: where there is none.
        RunConflict: where the recipe's code is no longer what the run was made with.
    """
    loaded = load_target(target)
    if isinstance(loaded, SisaConfig):
        config = _absolute(loaded)
        store = open_store(config.address)
        there = read_spec(store)
        if there is None:
            raise RunNotFound(f"{config.address}: there is no run here; `sisa-ray train CONFIG` creates it")
        if not check_code:
            return open_run(config.address)
        return open_with_spec(store, _resolve(config, there))
    address = address_of(loaded)
    run = open_run(address)
    if not check_code:
        return run
    code = recipe_code(run.spec.config.recipe.class_path, run.spec.code_dirs).identity
    changes = differences(run.spec.code.model_dump(), code.model_dump())
    if changes:
        lines = "\n".join(f"  {line}" for line in changes)
        raise RunConflict(
            f"{address}: the recipe's code is not what the run was made with:\n{lines}\n"
            "Restore that code, or train a new run under another name."
        )
    return run


def _resolve(config: SisaConfig, there: Spec | None) -> Spec:
    """The spec of ``config``, every ``auto`` resolved (as the run that is there resolved it, if any)."""
    resolved_before = there.config.arithmetic if there is not None else None
    arithmetic = _resolve_arithmetic(config, resolved_before)
    config = config.model_copy(update={"arithmetic": arithmetic})
    dirs = _code_dirs(config)
    code = recipe_code(config.recipe.class_path, dirs).identity
    if (
        there is not None
    ):  # what follows from the recipe is known; if the recipe differs, so does the identity
        batch_size, task, num_classes = there.batch_size, there.task, there.num_classes
    else:
        schema = open_source(config.data).role_schema
        recipe = RecipeSpec(
            class_path=config.recipe.class_path, args=config.recipe.args, search_dirs=dirs
        ).create(schema)
        batch_size, task, num_classes = recipe.batch_size, recipe.task, recipe.num_classes
    spec = Spec(
        config=config,
        code=code,
        secret_id="",
        code_dirs=dirs,
        batch_size=batch_size,
        task=task,
        num_classes=num_classes,
    )
    return with_circumstances(spec, config)


def _resolve_arithmetic(config: SisaConfig, before: ArithmeticConfig | None) -> ArithmeticConfig:
    wanted = config.arithmetic
    if wanted.device != "auto":
        return wanted
    gpus = config.resources.gpus_per_shard
    if before is not None:
        device = before.device
    elif gpus == "auto":
        ensure_ray()
        device = "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    else:
        device = "cuda" if gpus > 0 else "cpu"
    return wanted.model_copy(update={"device": device})


def _code_dirs(config: SisaConfig) -> tuple[str, ...]:
    """Where a user's own recipe is looked for: the directory of its file, else the working directory."""
    file, separator, _ = config.recipe.class_path.rpartition(":")
    return (str(Path(file).absolute().parent), str(Path.cwd())) if separator else (str(Path.cwd()),)


def _absolute(config: SisaConfig) -> SisaConfig:
    """Local paths made absolute, so that actors on this machine find them from any directory."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).expanduser().absolute())

    if not config.storage_path:
        raise ConfigError("storage_path: must be a directory or an s3:// URL, not empty")
    data = config.data.model_copy(
        update={"train": absolute(config.data.train), "test": absolute(config.data.test)}
    )
    return config.model_copy(update={"storage_path": absolute(config.storage_path), "data": data})
