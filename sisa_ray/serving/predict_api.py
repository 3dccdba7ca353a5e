"""The OpenAPI description of ``POST /v1/predict``, which is answered without FastAPI."""

from __future__ import annotations

from typing import Any

from sisa_ray.core.identity import Spec
from sisa_ray.learning.ensemble import RULES
from sisa_ray.serving.documents import problems
from sisa_ray.serving.rows import ARROW_STREAM, LABEL


def describe_predict(spec: Spec) -> dict[str, Any]:
    """The path item of a run: its columns and rules by name."""
    columns: dict[str, Any] = {}
    for role, names in spec.config.data.columns.items():
        if role != LABEL:
            columns |= {name: {} for name in ((names,) if isinstance(names, str) else names)}
    row = {
        "type": "object",
        "properties": columns,
        "required": sorted(columns),
        "additionalProperties": False,
    }
    is_classification = spec.task == "classification"
    options: dict[str, Any] = {
        "aggregation": {
            "type": "string",
            "enum": ["auto", *RULES[spec.task]],
            "description": "Default: the run's.",
        }
    }
    if is_classification:
        options["probabilities"] = {"type": "boolean", "default": False}
        options["private"] = {
            "type": "boolean",
            "default": False,
            "description": "Labels alone, by a noisy majority vote that costs privacy budget.",
        }
    answer: dict[str, Any] = {
        ("labels" if is_classification else "values"): {"type": "array"},
        "aggregation": {"type": "string"},
        "voters": {"type": "integer", "description": "How many constituents voted."},
        "shards": {"type": "integer"},
        "view": {
            "type": "object",
            "description": "The log position that the answer respects, and the generation that voted.",
            "properties": {"position": {"type": "integer"}, "generation": {"type": "integer"}},
            "required": ["position", "generation"],
        },
    }
    required = sorted(answer)
    if is_classification:
        answer["agreement"] = {
            "type": "array",
            "items": {"type": "number"},
            "description": "The share of voters whose own label is the ensemble's.",
        }
        answer["probabilities"] = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    arrow = {"schema": {"type": "string", "format": "binary"}}
    return {
        "post": {
            "summary": "Ask the ensemble",
            "description": "Rows as JSON, or as an Arrow IPC stream with the options in the query.",
            "operationId": "predict",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {"rows": {"type": "array", "items": row, "minItems": 1}, **options},
                            "required": ["rows"],
                            "additionalProperties": False,
                        }
                    },
                    ARROW_STREAM: arrow,
                },
            },
            "responses": {
                "200": {
                    "description": "The ensemble's answer.",
                    "content": {
                        "application/json": {
                            "schema": {"type": "object", "properties": answer, "required": required}
                        },
                        ARROW_STREAM: arrow,
                    },
                },
                **{str(s): v for s, v in problems(400, 401, 403, 413, 415, 422, 429, 503).items()},
            },
        }
    }
