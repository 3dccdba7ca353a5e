"""Forget people: ``ray job submit --working-dir . -- python jobs/unlearn.py --config jobs/mnist.yaml``."""

from __future__ import annotations

from sisa_ray.service import cli, jobs
from sisa_ray.service.arguments import Column, Json


def main(
    config: jobs.Config,
    subjects_file: jobs.PeopleFile = None,
    column: Column = None,
    as_json: Json = False,
) -> None:
    """Carry out the requests that are open (`sisa-ray request` files them), or forget the people of a file."""
    with jobs.in_turn(config, "unlearn", as_json=as_json):
        if subjects_file is None and column is None:
            jobs.carry_out(config, as_json=as_json)
            return
        jobs.refuse_shipped(subjects_file, as_json=as_json)
        cli.unlearn(config, subjects_file=subjects_file, column=column, as_json=as_json)


if __name__ == "__main__":
    jobs.run(main)
