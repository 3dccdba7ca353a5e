from __future__ import annotations

import sys
from typing import Any, cast

import pytest

from sisa_ray import execution
from tests.service.standins import StandIns


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Commands that train nothing; neither Ray nor torch is imported."""
    made = StandIns()
    monkeypatch.setitem(sys.modules, "sisa_ray.execution.commands", cast(Any, made))
    monkeypatch.setattr(execution, "commands", made, raising=False)
    return made
