"""Prove a run: ``ray job submit --working-dir . -- python jobs/verify.py --config jobs/mnist.yaml``."""

from __future__ import annotations

from typing import Annotated

import typer

from sisa_ray.service import cli, jobs
from sisa_ray.service.arguments import Json


def main(
    config: jobs.Config,
    shards: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these shards, such as 0,3-5. Default: all.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only N shards drawn at random.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train from scratch without the forgotten, in a scratch place, and compare every bit.

    The job succeeds where all bits are the same. Its exit code is 1 where they differ, 3 where this platform cannot
    tell.
    """
    with jobs.in_turn(config, "verify", as_json=as_json):
        cli.verify(config, shards=shards, sample=sample, as_json=as_json)


if __name__ == "__main__":
    jobs.run(main)
