"""Bring a table into a run: ``ray job submit --working-dir . -- python jobs/ingest.py --config jobs/mnist.yaml``."""

from __future__ import annotations

from typing import Annotated

import typer

from sisa_ray.service import cli, jobs
from sisa_ray.service.arguments import Json


def main(
    config: jobs.Config,
    append: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="Further records: they become new slices of their shards."),
    ] = None,
    slices: Annotated[
        int, typer.Option(metavar="N", min=1, help="With --append: slices that each shard gets for them.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Bring the training table into the run, split into shards and slices; or append further records to it."""
    with jobs.in_turn(config, "ingest", as_json=as_json):
        cli.ingest(config, append=append, slices=slices, as_json=as_json)


if __name__ == "__main__":
    jobs.run(main)
