"""Coordinate a run: ``ray job submit --working-dir . -- python jobs/coordinator.py --config jobs/mnist.yaml``."""

from __future__ import annotations

from typing import Annotated

import typer

from sisa_ray.service import coordinator_commands, jobs
from sisa_ray.service.arguments import Json


def main(
    config: jobs.Config,
    stop: Annotated[
        bool, typer.Option("--stop", metavar="", help="Stop it after the operation at hand instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the run's coordinator, which outlives the job; one that runs already is left alone."""
    if stop:
        coordinator_commands.stop(config, as_json=as_json)
    else:
        coordinator_commands.start(config, as_json=as_json)


if __name__ == "__main__":
    jobs.run(main)
