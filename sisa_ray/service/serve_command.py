"""The command that serves an ensemble."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sisa_ray.service import render_serving
from sisa_ray.service.arguments import Json, Quiet, examples
from sisa_ray.service.console import Output

Target = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="The run to serve: its address or its configuration file."),
]
ConfigFile = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="Serve configuration (YAML); see docs/serving.md."),
]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")]
Port = Annotated[int, typer.Option(metavar="PORT", help="Where to listen.", min=1, max=65535)]
Replicas = Annotated[
    int | None, typer.Option(metavar="N", help="How many replicas; with --max-replicas, at least.")
]
MaxReplicas = Annotated[int | None, typer.Option(metavar="N", help="Autoscale up to so many replicas.")]
Placement = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="stacked: every replica holds all shards. fan-out: groups of shards."),
]
Gpus = Annotated[float | None, typer.Option(metavar="N", help="GPUs of a replica; a fraction shares one.")]
NoAuth = Annotated[bool, typer.Option("--no-auth", metavar="", help="Ask for no tokens; on loopback alone.")]
PlainProxy = Annotated[
    bool, typer.Option("--plain-proxy", metavar="", help="Ray Serve's own proxy instead of HAProxy.")
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach", metavar="", help="Return once it answers, and leave it to the Ray cluster that is there."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        epilog=examples(
            "serve s3://sisa-runs/mnist --port 8000",
            "serve --config jobs/serve.yaml",
            "serve sisa-demo/digits.yaml --no-auth",
        )
    )(serve)


def serve(
    run: Target = None,
    config: ConfigFile = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    replicas: Replicas = None,
    max_replicas: MaxReplicas = None,
    placement: Placement = None,
    gpus_per_replica: Gpus = None,
    no_auth: NoAuth = False,
    plain_proxy: PlainProxy = False,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve the ensemble of a run over HTTP: predictions, and requests to be forgotten."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.core.errors import ConfigError
        from sisa_ray.execution.cluster import join_existing_ray
        from sisa_ray.execution.events import PhaseStarted
        from sisa_ray.serving.config import ServeConfig

        given: dict[str, Any] = {}
        if config is not None:
            given = ServeConfig.from_yaml(config).model_dump()
        options = {
            "run": run,
            "min_replicas": replicas,
            "max_replicas": max_replicas if max_replicas is not None else replicas,
            "placement": placement,
            "gpus_per_replica": gpus_per_replica,
            "authentication": False if no_auth else None,
        }
        given |= {name: value for name, value in options.items() if value is not None}
        if "run" not in given:
            raise ConfigError("RUN: is required; give a run's address, or a --config file that names one")
        settings = ServeConfig.from_mapping(given, source="serve")
        if detach and not join_existing_ray():
            raise ConfigError(
                "--detach: no Ray cluster is running that would outlive this command; start one (`ray start --head`), "
                "or leave --detach out"
            )
        from sisa_ray.serving import hosting

        with output.display() as display:
            display(PhaseStarted(text="starting the service"))
            served = hosting.start_service(settings, host=host, port=port, throughput=not plain_proxy)
    document = {"url": served.url, "app": served.app, "coordinator": served.coordinator.address}
    output.emit(document, lambda: render_serving.served_text(served, settings.authentication))
    if detach:
        return
    try:
        hosting.watch(served, output.warn)
    except KeyboardInterrupt:
        output.warn("stopping; replicas finish what they have begun")
    with output.reporting():
        hosting.stop_service(served, settings.run)
