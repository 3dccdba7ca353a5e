"""What went wrong on a worker, in words for whoever gave the command."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from sisa_ray.core.errors import ExecutionError, SisaError


def of_recipe(error: BaseException, shard: int | None) -> ExecutionError:
    """An error that the user's code, or training with it, has raised."""
    where = "" if shard is None else f"shard {shard}: "
    return ExecutionError(f"{where}the recipe or its training failed with {type(error).__name__}: {error}")


def cause_of(error: RayTaskError, shard: int | None) -> SisaError:
    """The user-facing error behind a failed call, with where it was raised."""
    cause = error.cause
    if isinstance(cause, SisaError):
        return cause
    return ExecutionError(f"{of_recipe(cause, shard)}\n{error}")
