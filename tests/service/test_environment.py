from __future__ import annotations

import os

import pytest

from sisa_ray.service.environment import quiet_ray


def test_ray_is_quiet_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_DEDUP_LOGS_SKIP_REGEX": "mine"})
    quiet_ray()
    assert os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] == "mine"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
