"""Interim ensemble."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sisa_ray.learning.arithmetic import applied
from sisa_ray.learning.trainer import load_constituent


@dataclass(frozen=True)
class Prediction:
    values: np.ndarray
    probabilities: np.ndarray | None
    agreement: np.ndarray | None


def rule_for(rule: str, task: str) -> str:
    return ("majority" if task == "classification" else "mean") if rule == "auto" else rule


def aggregate(rule, votes, weights):
    p = votes.mean(0)
    return Prediction(p.argmax(1), p, (votes.argmax(2) == p.argmax(1)).mean(0))


def predict_constituent(recipe, state, table, arithmetic):
    out = []
    with applied(arithmetic) as device, torch.inference_mode():
        r, model = load_constituent(recipe, state, device)
        batch = r.decode({n: table[n].combine_chunks() for n in table.schema.names if n != "label"})
        n = table.num_rows
        for i in range(0, n, 256):
            b = {k: v[i : i + 256] for k, v in batch.items()}
            out.append(r.predict(model, b).to(torch.float64).numpy())
    return np.concatenate(out)
