"""Golden digests of fixed tiny trainings: they guard ``NUMERICS``.

Bits hold on one platform, so the digests are compared on the recorded one, and skipped elsewhere. To add a
training, call :func:`check_golden` with a new name in any test, and record it:

    SISA_RAY_WRITE_GOLDEN=1 python -m pytest -n0 tests/learning tests/recipes -k golden
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sisa_ray.core.keys import file_digest
from sisa_ray.learning.arithmetic import NUMERICS

GOLDEN = Path(__file__).with_name("golden.json")


def check_golden(name: str, state: bytes) -> None:
    """Compare a trained state with the recorded one."""
    digest = file_digest(state)
    platform = bare_platform()
    if os.environ.get("SISA_RAY_WRITE_GOLDEN"):
        _record(name, digest, platform)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if golden["platform"] != platform:
        pytest.skip(f"golden digests hold on {golden['platform']}, this is {platform}")
    assert golden["numerics"] == NUMERICS, "NUMERICS was raised: record the golden digests anew"
    assert golden["digests"].get(name) == digest, (
        f"the trained bits of {name!r} have changed: raise NUMERICS in sisa_ray/learning/arithmetic.py, "
        "for states under the old one are no longer what this code computes, and record the digests anew"
    )


@cache
def bare_platform() -> dict[str, str]:
    """What the bits depend on beside our code; found without our code, so that no change of it hides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        image = torch.arange(1536, dtype=torch.float32).reshape(2, 3, 16, 16).remainder(7.1)
        kernel = torch.arange(216, dtype=torch.float32).reshape(8, 3, 3, 3).remainder(1.3)
        hidden = torch.tanh(F.conv2d(image, kernel) * 1e-3).reshape(16, -1)
        product = (hidden @ hidden.T).softmax(dim=1)
    finally:
        torch.set_num_threads(threads)
    return {
        "torch": str(torch.__version__),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": hashlib.sha256(product.numpy().tobytes()).hexdigest()[:16],
    }


def _record(name: str, digest: str, platform: dict[str, str]) -> None:
    golden: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    if golden.get("platform") != platform or golden.get("numerics") != NUMERICS:
        golden = {"platform": platform, "numerics": NUMERICS, "digests": {}}
    golden["digests"][name] = digest
    golden["digests"] = dict(sorted(golden["digests"].items()))
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")
