"""How good predictions are, added up batch by batch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Score:
    """Accuracy (classification) or root mean squared error (regression) against the ``label`` role."""

    def __init__(self, task: Literal["classification", "regression"]) -> None:
        self.metric: Literal["accuracy", "rmse"] = "accuracy" if task == "classification" else "rmse"
        self._sum = 0.0
        self._count = 0

    def add(self, values: npt.NDArray[np.generic], columns: pa.Table) -> None:
        """Count a batch; one without labels counts nothing."""
        if "label" not in columns.column_names:
            return
        labels = columns["label"].to_numpy()
        if self.metric == "accuracy":
            self._sum += float(np.sum(values == labels))
        else:
            self._sum += float(
                np.sum((values.reshape(len(labels), -1) - labels.reshape(len(labels), -1)) ** 2)
            )
        self._count += len(labels)

    @property
    def value(self) -> float | None:
        """The metric, or None where no labels were seen."""
        if not self._count:
            return None
        mean = self._sum / self._count
        return mean if self.metric == "accuracy" else mean**0.5


class Mean:
    """Mean of all numbers added."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(self, values: npt.NDArray[np.float64] | None) -> None:
        """Count some numbers; None counts nothing."""
        if values is not None:
            self._sum += float(values.sum())
            self._count += values.size

    @property
    def value(self) -> float | None:
        """The mean, or None of nothing."""
        return self._sum / self._count if self._count else None
