"""The Serve configuration under ``jobs/`` is read by Ray Serve, and by ``sisa-ray serve``."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from sisa_ray.serving.config import ServeConfig

FILE = Path(__file__).parents[2] / "jobs" / "serve.yaml"


def test_ray_serve_takes_the_file() -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    (application,) = schema.applications
    assert application.import_path == "sisa_ray.serving.app:build_app"


def test_every_field_is_there_with_its_default_or_a_remark() -> None:
    written = yaml.safe_load(FILE.read_text(encoding="utf-8"))["applications"][0]["args"]
    assert written.keys() == ServeConfig.model_fields.keys()
    config = ServeConfig.from_yaml(FILE)
    defaults = ServeConfig.from_mapping({"run": config.run})
    differing = {
        name for name in ServeConfig.model_fields if getattr(config, name) != getattr(defaults, name)
    }
    assert differing == {"max_replicas"}
