"""The Grafana dashboard asks for the metrics that replicas give to Ray, and for all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.util.metrics import Counter, Histogram, Metric

from sisa_ray.serving.meters import RayMeters

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "sisa_ray.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def metrics() -> Iterator[Metric]:
    """Everything that a replica measures; nothing is handed over without a Ray that runs."""
    for value in vars(RayMeters("run")).values():
        if isinstance(value, Metric):
            yield value
        elif isinstance(value, dict):
            yield from (metric for metric in value.values() if isinstance(metric, Metric))


def exported(metric: Metric) -> str:
    """The name in Prometheus, as Ray's metrics endpoint has it."""
    ending = {Counter: "_total", Histogram: "_bucket"}.get(type(metric), "")
    return f"ray_{metric.info['name']}{ending}"


def expressions(dashboard: Any) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def asked_for(texts: list[str]) -> set[str]:
    return set(re.findall(r"\bray_sisa_\w+", "\n".join(texts)))


def test_every_metric_is_shown_and_every_one_that_is_shown_exists(dashboard: Any) -> None:
    assert asked_for(expressions(dashboard)) == {exported(metric) for metric in metrics()}


def test_variables_ask_for_metrics_that_exist(dashboard: Any) -> None:
    queries = [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    assert asked_for(queries) <= {exported(metric) for metric in metrics()}
    assert queries


def test_tags_that_are_asked_for_exist(dashboard: Any) -> None:
    of_ray = {"le", "WorkerId"}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            name = next(iter(asked_for([target["expr"]])))
            tags = next(m.info["tag_keys"] for m in metrics() if exported(m) == name)
            grouped = {
                t.strip() for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for t in by.split(",")
            }
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert (grouped | shown) - of_ray <= set(tags), panel["title"]


def test_panels_are_complete_and_do_not_overlap(dashboard: Any) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["title"]
        assert panel["type"] == "row" or panel["targets"]


def test_every_metric_is_documented() -> None:
    rows = re.findall(r"^\| `(sisa_\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(metric.info["name"] for metric in metrics())
