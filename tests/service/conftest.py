from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

from sisa_ray import execution
from tests.service.standins import StandIns

if TYPE_CHECKING:
    from tests.service.small_runs import World


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Commands that train nothing; neither Ray nor torch is imported."""
    made = StandIns()
    monkeypatch.setitem(sys.modules, "sisa_ray.execution.commands", cast(Any, made))
    monkeypatch.setattr(execution, "commands", made, raising=False)
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small real run with certified batches and an open request; nobody may change it."""
    from tests.service.small_runs import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands train in this process, and no cluster is within reach."""
    from tests.service.small_runs import without_ray

    without_ray(monkeypatch)
