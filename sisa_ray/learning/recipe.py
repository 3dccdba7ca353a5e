"""Recipes: what a user writes to bring a model. Everything else is the trainer's.

A recipe is a plain class. The trainer constructs it anew for every stage (contract clause 6) and re-seeds
the global generators of torch, numpy and ``random`` itself (clause 4), so dropout, batch norm, Adam,
momentum and random augmentation just work. What a recipe must not do is keep state of its own: no
generator, counter, clock or global that outlives a call, and nothing fitted on the data (clause 8). What a
model needs to remember lives in its parameters and buffers.

>>> class Logistic(Recipe):
...     task = "classification"
...
...     def __init__(self, *, num_classes: int, batch_size: int = 64, lr: float = 0.1) -> None:
...         self.num_classes, self.batch_size, self.lr = num_classes, batch_size, lr
...
...     def bind(self, schema: pa.Schema) -> None:
...         self.width = schema.field("features").type.list_size
...
...     def build_model(self) -> nn.Module:
...         return nn.Linear(self.width, self.num_classes)
...
...     def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
...         return torch.optim.SGD(model.parameters(), lr=self.lr)
...
...     def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
...         rows = columns["features"].flatten().to_numpy(zero_copy_only=False)
...         batch = {"features": torch.tensor(rows, dtype=torch.float32).reshape(-1, self.width)}
...         if "label" in columns:
...             batch["label"] = torch.tensor(columns["label"].to_numpy(), dtype=torch.int64)
...         return batch
...
...     def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
...         return nn.functional.cross_entropy(model(batch["features"]), batch["label"])
...
...     def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
...         return model(batch["features"]).softmax(dim=1)
"""

from __future__ import annotations

import copy
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import nn

from sisa_ray.core.errors import RecipeError, RunConflict
from sisa_ray.core.identity import CodeIdentity, differences
from sisa_ray.core.keys import derive_seed
from sisa_ray.learning.arithmetic import seeder
from sisa_ray.learning.code import recipe_code

Batch = dict[str, torch.Tensor]
"""Named tensors of the same rows: the first dimension of each is the row."""

Task = Literal["classification", "regression"]


class Recipe(ABC):
    """A model, its optimizer and its loss. Constructed as ``Class(**args)``, then :meth:`bind` is called.

    Attributes:
        task: what the ensemble's aggregation is about.
        batch_size: rows of every optimizer step; each step takes exactly so many.
        num_classes: number of classes (classification), labels are ``0..num_classes-1``; else None.
        memory_format: applied to the model after its weights are loaded (``torch.channels_last`` for images),
            and to the backbone.
        embed_batch_size: rows of every forward pass of the backbone, the last one padded.
    """

    task: Task
    batch_size: int
    num_classes: int | None = None
    memory_format: torch.memory_format = torch.contiguous_format
    embed_batch_size: int = 16

    def bind(self, schema: pa.Schema) -> None:  # noqa: B027 - optional on purpose
        """Learn the Arrow types of the roles (their columns' widths, say), before any other method is called.

        Args:
            schema: one field a role of ``data.columns``, in normalised Arrow types. Never the data.
        """

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model, freshly initialised on the CPU; the trainer has seeded the generators and moves it."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of ``model``'s parameters; it steps without a closure."""

    @abstractmethod
    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        """Tensors on the CPU from columns: each row on its own, and without random numbers.

        Args:
            columns: one array a role; roles used for training only (``label``) are absent when predicting.

        Returns:
            Tensors whose first dimension is the number of rows. They stay in memory (on the GPU where there
            is one), so give them compact types (``uint8`` pixels) and convert in :meth:`loss`.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The scalar to minimise on one batch; ``model`` is in training mode, autocast on if configured."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Predictions with ``model`` in evaluation mode, without gradients.

        Returns:
            Probabilities ``(B, num_classes)`` for classification; values ``(B,)`` or ``(B, D)`` else.
        """

    def build_backbone(self) -> nn.Module | None:
        """A frozen model, pre-trained on public data, that all constituents share; None (the default): none.

        What it makes of a record (:meth:`embed`) is computed once and cached in the run. The digest of its
        tensors is part of every stage key. It runs in evaluation mode.
        """
        return None

    def embed(self, backbone: nn.Module, batch: Batch) -> Batch:
        """What the backbone makes of each decoded row: all that augment, loss and predict will see of it.

        Args:
            batch: ``embed_batch_size`` rows as :meth:`decode` gave them, on the device; without gradients.

        Returns:
            Tensors of as many rows, each made from its own row alone, without random numbers: pass on the label
            where there is one.
        """
        raise NotImplementedError

    def augment(self, batch: Batch) -> Batch:
        """A random variation of a training batch (on its device), drawn from the global generators."""
        return batch

    def learning_rate(self, stage: int, num_stages: int, fraction: float) -> float:
        """Factor of the optimizer's own learning rates at one step.

        Args:
            stage: from 1.
            num_stages: the number of stages when this one's data came: the spec's, or more for appended data.
            fraction: of this stage's steps done, in ``[0, 1)``; the true number of steps stays unknown.
        """
        return 1.0

    def after_step(self, model: nn.Module) -> None:  # noqa: B027 - optional on purpose
        """Runs after every optimizer step, without gradients: for weight averages, kept in buffers."""

    def fsdp_units(self, model: nn.Module) -> Iterable[nn.Module]:
        """Modules whose parameters are gathered together where workers share the model out (``parallel: fsdp``).

        What lies in none of them is one unit more. The layers of a deep model, say: then no more than a few of them
        are whole at once. A parameter must not be in two units.
        """
        return ()

    def problems(self, columns: Mapping[str, pa.Array]) -> Iterator[tuple[int, str]]:
        """What ingest must refuse: (row within ``columns``, what is wrong), such as a label out of range.

        Messages name rules, never what identifies a person.
        """
        return iter(())


RecipeFactory = Callable[[], Recipe]
"""Makes a new, bound recipe each time it is called."""


def overrides(recipe: Recipe, method: str) -> bool:
    """Whether a recipe has a method of its own for an optional one."""
    return getattr(type(recipe), method) is not getattr(Recipe, method)


_CONSTRUCTION_SEED = derive_seed("recipe")


def new_recipe(make: RecipeFactory) -> Recipe:
    """A new recipe, constructed under one fixed seed.

    What a constructor draws (a random projection that ``decode`` applies, say) is then the same constant for
    every shard, for training and for prediction.
    """
    seeder(torch.device("cpu"))(_CONSTRUCTION_SEED)
    return make()


def load_recipe_class(class_path: str, search_dirs: Sequence[str] = ()) -> type[Recipe]:
    """Import a recipe class, executing exactly the source that ``recipe_code`` hashes.

    Args:
        class_path: ``package.module.Class`` or ``path/to/file.py:Class``.
        search_dirs: directories searched before Python's own path (the configuration's, the working one).

    Raises:
        RecipeError: where it cannot be imported, is no :class:`Recipe`, or lacks a method (named).
    """
    return RecipeSpec(class_path=class_path, search_dirs=tuple(search_dirs)).load()


@dataclass(frozen=True, kw_only=True)
class RecipeSpec:
    """A recipe by name, so that another process can make it.

    ``code``, where given, is what the source must be: another process must not train other code under
    the run's keys.
    """

    class_path: str
    args: Mapping[str, Any] = field(default_factory=dict)
    search_dirs: tuple[str, ...] = ()
    code: CodeIdentity | None = None

    def load(self) -> type[Recipe]:
        """Import the class.

        Raises:
            RecipeError: see :func:`load_recipe_class`.
            RunConflict: where the source is not ``code``; what differs is named.
        """
        found = recipe_code(self.class_path, self.search_dirs)
        if self.code is not None and found.identity != self.code:
            lines = differences(self.code.model_dump(), found.identity.model_dump())
            raise RunConflict(
                f"recipe {self.class_path!r}: its code here is not the run's:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nRestore the code (and installed versions), or start a run with another name."
            )
        found.activate()
        try:
            module = importlib.import_module(found.module)
        except Exception as error:  # whatever the user's module raises
            raise self._error(f"cannot be imported: {type(error).__name__}: {error}") from error
        cls = getattr(module, found.class_name, None)
        if cls is None:
            raise self._error(f"module {found.module!r} has no class {found.class_name!r}")
        if not isinstance(cls, type) or not issubclass(cls, Recipe):
            raise self._error("is no subclass of sisa_ray.learning.recipe.Recipe; derive the class from it")
        if missing := sorted(cls.__abstractmethods__):
            raise self._error(f"lacks {', '.join(missing)}; implement what Recipe declares")
        return cls

    def factory(self, schema: pa.Schema) -> RecipeFactory:
        """Import the class once; the result constructs new recipes bound to ``schema`` (of the role columns).

        Raises:
            RecipeError: as :meth:`load`; its result, for arguments or attributes that break a rule.
        """
        cls = self.load()
        return lambda: self._construct(cls, schema)

    def create(self, schema: pa.Schema) -> Recipe:
        """One new recipe bound to ``schema``: see :meth:`factory`."""
        return self.factory(schema)()

    def _construct(self, cls: type[Recipe], schema: pa.Schema) -> Recipe:
        try:
            inspect.signature(cls).bind(**self.args)
        except TypeError as error:
            raise self._error(f"args: {error}; the class takes {inspect.signature(cls)}") from None
        try:
            # A copy each time: what a recipe does to its arguments must not reach the next one.
            recipe = cls(**copy.deepcopy(dict(self.args)))
            recipe.bind(schema)
        except RecipeError:
            raise
        except Exception as error:  # whatever the user's constructor raises
            raise self._error(f"cannot be constructed: {type(error).__name__}: {error}") from error
        self._check(recipe)
        return recipe

    def _check(self, recipe: Recipe) -> None:
        task, batch_size = getattr(recipe, "task", None), getattr(recipe, "batch_size", None)
        if task not in ("classification", "regression"):
            raise self._error(f"task: must be 'classification' or 'regression', not {task!r}")
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise self._error(f"batch_size: must be a positive integer, not {batch_size!r}")
        classes = recipe.num_classes
        rows = recipe.embed_batch_size
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
            raise self._error(f"embed_batch_size: must be a positive integer, not {rows!r}")
        if overrides(recipe, "build_backbone") != overrides(recipe, "embed"):
            raise self._error("build_backbone, embed: one is there without the other; define both or neither")
        if task == "classification" and (not isinstance(classes, int) or classes < 2):
            raise self._error(f"num_classes: must be an integer of at least 2, not {classes!r}")

    def _error(self, message: str) -> RecipeError:
        return RecipeError(f"recipe {self.class_path!r}: {message}")
