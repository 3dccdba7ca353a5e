"""What all tests share: settings of Hypothesis and Ray, a keyring of their own, one local Ray a process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from sisa_ray.service.environment import quiet_ray

pytest_plugins = ["tests.support.weed"]

TESTS = Path(__file__).parent
BELOW_RAY = ("core", "planning", "storage", "learning", "recipes")
"""Directories of tests that must not start Ray."""

_OBJECT_STORE_BYTES = 512 * 2**20

# Ray reads its settings when it is first imported, and its worker processes inherit them.
quiet_ray()
os.environ.pop("RAY_ADDRESS", None)

settings.register_profile("default", deadline=None)  # a machine that is busy elsewhere fails no test
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of run secrets: never the home directory's.

    One for the whole session, since Ray's workers keep the environment that they were started with.
    """
    directory = tmp_path_factory.mktemp("keyring")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SISA_RAY_KEYRING", str(directory))
        yield directory


@pytest.fixture(autouse=True)
def _no_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of the layers below Ray must not start it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.relative_to(TESTS).parts[0] in BELOW_RAY:
            patch.setattr("ray.init", _refuse_ray)
        yield


def _refuse_ray(*args: object, **kwargs: object) -> NoReturn:
    pytest.fail("ray.init was called in a test of a layer that works where Ray is not installed")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs, shared by the tests of one process; it never joins a cluster that is there.

    It has no GPU, so that ``auto`` means the same on every machine; tests of GPUs start a Ray of their own.
    """
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of real data sets: ``SISA_DATA``, else ``../shared/data`` beside the project."""
    directory = Path(os.environ.get("SISA_DATA") or TESTS.parents[1] / "shared" / "data")
    if not directory.is_dir():
        pytest.skip(f"no real data sets: {directory} does not exist; set SISA_DATA to their directory")
    return directory
