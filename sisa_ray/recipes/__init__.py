"""Interim recipes."""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import nn

from sisa_ray.learning.recipe import Recipe


class MLPClassifier(Recipe):
    task = "classification"

    def __init__(self, *, hidden, num_classes, lr=1e-3, batch_size=64, scale=1.0, dropout=0.0, activation="relu", optimizer="adam"):
        self.hidden, self.num_classes, self.lr, self.batch_size, self.scale, self.dropout = hidden, num_classes, lr, batch_size, scale, dropout
        self.optimizer = optimizer

    def bind(self, schema):
        t = schema.field("features").type
        self.width = t.list_size if pa.types.is_fixed_size_list(t) else t.byte_width

    def build_model(self):
        layers, w = [], self.width
        for h in self.hidden:
            layers += [nn.Linear(w, h), nn.Tanh(), nn.Dropout(self.dropout)]
            w = h
        return nn.Sequential(*layers, nn.Linear(w, self.num_classes))

    def build_optimizer(self, model):
        return (torch.optim.SGD if self.optimizer == "sgd" else torch.optim.Adam)(model.parameters(), lr=self.lr)

    def decode(self, columns):
        import numpy as np

        f = columns["features"]
        if pa.types.is_fixed_size_list(f.type):
            x = torch.from_numpy(f.flatten().to_numpy().copy().reshape(-1, self.width))
        else:
            x = torch.from_numpy(np.frombuffer(b"".join(f.to_pylist()), np.uint8).copy().reshape(-1, self.width))
        out = {"features": x}
        if "label" in columns:
            out["label"] = torch.from_numpy(columns["label"].to_numpy().copy())
        return out

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch["features"].float() / self.scale), batch["label"])

    def predict(self, model, batch):
        return model(batch["features"].float() / self.scale).softmax(1)

    def problems(self, columns):
        for i, y in enumerate(columns["label"].to_pylist()):
            if not 0 <= y < self.num_classes:
                yield i, "label is out of range"
