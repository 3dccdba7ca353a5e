"""The demo's files: where they lie, the digits as Parquet, and room made by removing only what is its own."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from sisa_ray.core.errors import ConfigError, SisaError

_NAME = "digits"
_MARKER_TEXT = "Made by sisa-ray demo, which replaces its own files here when it runs again.\n"

_CONFIG = """\
# The configuration of the demo's run. See docs/configuration.md for every field.
name: {name}
storage_path: {runs}   # a local directory here; or s3://bucket/prefix
data:
  train: {train}
  test: {test}
  record_id: id   # each digit is one record, and one person
  columns: {{features: pixels, label: label}}
recipe:
  class: sisa_ray.recipes.MLPClassifier   # or a class of your own
  args: {{hidden: [64], num_classes: 10, lr: 0.003, batch_size: 16, scale: 16}}
sisa: {{num_shards: 5, num_slices: 4, epochs: 40, seed: 0}}
"""


@dataclass(frozen=True, kw_only=True)
class DemoFiles:
    """Where the demo puts what."""

    directory: Path

    @property
    def data(self) -> Path:
        """The digits."""
        return self.directory / "data"

    @property
    def run(self) -> Path:
        """The run (its address)."""
        return self.directory / "runs" / _NAME

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.directory / f"{_NAME}.yaml"

    @property
    def picture(self) -> Path:
        """The picture."""
        return self.directory / f"{_NAME}.png"

    @property
    def marker(self) -> Path:
        """Says that the directory is a demo's."""
        return self.directory / ".sisa-demo"


def make_room(files: DemoFiles) -> None:
    """An empty place: a former demo's own files are removed, and nothing else ever is.

    Raises:
        ConfigError: where the directory holds anything else, or cannot be written.
    """
    directory = files.directory
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--dir {directory}: is a file; give a directory")
    if directory.exists() and not files.marker.exists() and any(directory.iterdir()):
        raise ConfigError(
            f"--dir {directory}: is neither empty nor a former demo, so nothing is written there; "
            "give another directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.marker.write_text(_MARKER_TEXT, encoding="utf-8")
        files.data.mkdir(exist_ok=True)
        for file in (files.config, files.picture):
            file.unlink(missing_ok=True)
        if files.run.exists():
            _discard_secret(files)
            shutil.rmtree(files.run)
    except OSError as error:
        raise ConfigError(
            f"--dir {directory}: cannot be written: {error.strerror}; give another directory"
        ) from None


def _discard_secret(files: DemoFiles) -> None:
    """The former run's secret goes with the run, or every demo would leave one behind."""
    from sisa_ray.storage import keyring
    from sisa_ray.storage.objects import open_store
    from sisa_ray.storage.run import read_spec

    with contextlib.suppress(SisaError, OSError):
        spec = read_spec(open_store(str(files.run.absolute())))
        if spec is not None:
            keyring.discard(spec.secret_id)


def write_digits(files: DemoFiles) -> tuple[int, int]:
    """Scikit-learn's 1,797 digits as two Parquet files: rows to learn from, and every fifth to test on."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError(
            "demo: the digits come with scikit-learn, which is not installed; pip install 'sisa-ray[demo]'"
        ) from None
    digits = load_digits()
    pixels = digits.data.astype(np.uint8)  # 64 a digit, brightness 0 to 16
    table = pa.table(
        {
            "id": [f"digit-{i:04d}" for i in range(len(pixels))],
            "pixels": pa.array([row.tobytes() for row in pixels], pa.binary(pixels.shape[1])),
            "label": pa.array(digits.target, pa.int64()),
        }
    )
    is_test = np.arange(len(pixels)) % 5 == 0
    for name, rows in (("train", ~is_test), ("test", is_test)):
        pq.write_table(table.filter(pa.array(rows)), files.data / f"digits-{name}.parquet")
    places = {
        "runs": files.run.parent,
        "train": files.data / "digits-train.parquet",
        "test": files.data / "digits-test.parquet",
    }
    # JSON strings are YAML too, whatever characters a path has.
    quoted = {name: json.dumps(str(path.absolute()), ensure_ascii=False) for name, path in places.items()}
    files.config.write_text(_CONFIG.format(name=_NAME, **quoted), encoding="utf-8")
    return int((~is_test).sum()), int(is_test.sum())
