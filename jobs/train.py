"""Train a run: ``ray job submit --working-dir . -- python jobs/train.py --config jobs/mnist.yaml``."""

from __future__ import annotations

from sisa_ray.service import cli, jobs
from sisa_ray.service.arguments import Json


def main(config: jobs.Config, as_json: Json = False) -> None:
    """Train what is missing (all of it, the first time), publish the ensemble and measure it."""
    with jobs.in_turn(config, "train", as_json=as_json):
        cli.train(config, as_json=as_json)


if __name__ == "__main__":
    jobs.run(main)
