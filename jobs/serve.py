"""Serve an ensemble: ``ray job submit --working-dir . -- python jobs/serve.py --config jobs/serve.yaml``."""

from __future__ import annotations

from typing import Annotated

import typer

from sisa_ray.service import jobs, serve_command
from sisa_ray.service.arguments import Json


def main(
    config: Annotated[
        str,
        typer.Option("--config", metavar="FILE", help="Serve configuration (YAML); see docs/serving.md."),
    ],
    host: serve_command.Host = "127.0.0.1",
    port: serve_command.Port = 8000,
    plain_proxy: serve_command.PlainProxy = False,
    as_json: Json = False,
) -> None:
    """Serve the ensemble of a run from this cluster; the service, and the run's coordinator, outlive the job."""
    serve_command.serve(
        config=config, host=host, port=port, plain_proxy=plain_proxy, detach=True, as_json=as_json
    )


if __name__ == "__main__":
    jobs.run(main)
