"""The ready recipes keep the contract: the same bits straight through, stage by stage, and resumed anywhere."""

from __future__ import annotations

import io
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from sisa_ray.core.config import Precision
from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.ensemble import predict_constituent
from sisa_ray.learning.recipe import RecipeFactory, RecipeSpec
from sisa_ray.learning.trainer import Partial, load_constituent
from sisa_ray.recipes import MLPClassifier
from tests.learning.goldens import check_golden
from tests.learning.sources import CPU, MemorySlice, arithmetic, load, train

SIDE = 8
IMAGES: dict[str, Any] = {"num_classes": 3, "shape": [1, SIDE, SIDE], "batch_size": 4}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp-dropout-adam": (
        "MLPClassifier",
        {
            "hidden": [12, 8],
            "num_classes": 3,
            "dropout": 0.3,
            "batch_norm": True,
            "scale": 255,
            "batch_size": 4,
        },
    ),
    "mlp-sgd-momentum": (
        "MLPClassifier",
        {
            "hidden": [9],
            "num_classes": 3,
            "activation": "tanh",
            "optimizer": "sgd",
            "momentum": 0.9,
            "lr": 0.05,
        },
    ),
    "regressor": ("MLPRegressor", {"hidden": [7], "activation": "gelu", "scale": 255, "batch_size": 4}),
    "cnn": (
        "CNNClassifier",
        {
            **IMAGES,
            "channels": [4, 4],
            "hidden": [8],
            "batch_norm": True,
            "dropout": 0.2,
            "shift": 2,
            "flip": True,
            "lr_schedule": "cosine",
            "channels_last": True,
        },
    ),
    "resnet-50": (
        "ResNetClassifier",
        {**IMAGES, "depth": 50, "width": 2, "stem": "small", "flip": True, "lr": 0.01},
    ),
    "wide-resnet": ("WideResNetClassifier", {**IMAGES, "shift": 1, "dropout": 0.1, "lr_schedule": "step"}),
}


def make_slices(kind: pa.DataType, sizes: tuple[int, ...] = (11, 0, 7)) -> list[MemorySlice]:
    """Slices of pixels, as fixed binary or as PNG files."""
    slices, first = [], 0
    for size in sizes:
        ids = sorted(str(i) for i in range(first, first + size))
        first += size
        pixels = [np.random.default_rng(int(i)).integers(0, 256, (SIDE, SIDE), dtype=np.uint8) for i in ids]
        data = [p.tobytes() if pa.types.is_fixed_size_binary(kind) else png(p) for p in pixels]
        labels = pa.array([int(i) % 3 for i in ids], pa.int64())
        columns = {"record_id": pa.array(ids, pa.string()), "features": pa.array(data, kind), "label": labels}
        slices.append(MemorySlice(pa.table(columns), 2))
    return slices


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


RAW = pa.binary(SIDE * SIDE)


def factory(name: str, kind: pa.DataType = RAW) -> RecipeFactory:
    class_name, args = RECIPES[name]
    schema = pa.schema([("features", kind), ("label", pa.int64())])
    return RecipeSpec(class_path=f"sisa_ray.recipes.{class_name}", args=args).factory(schema)


def chain(make: RecipeFactory, slices: list[MemorySlice], precision: Precision = "fp32") -> list[bytes]:
    states: list[bytes] = []
    for stage in (1, 2, 3):
        start = states[-1] if states else None
        settings = arithmetic(precision=precision)
        states.append(train(make, load(slices, make), stage=stage, start=start, settings=settings))
    return states


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RECIPES)
def test_stages_alone_and_resumed_are_those_of_the_chain(name: str, precision: Precision) -> None:
    make, slices = factory(name), make_slices(RAW)
    states = chain(make, slices, precision)
    assert len(set(states)) == 3
    settings = arithmetic(precision=precision)
    partials: dict[int, bytes] = {}
    streamed = load(slices, make, "streaming")
    common: dict[str, Any] = {"stage": 3, "start": states[1], "settings": settings}
    torch.manual_seed(99)  # what went before does not matter
    assert train(make, streamed, **common, on_partial=partials.__setitem__) == states[2]
    for step in (1, 5, 8):
        resume = Partial(step=step, data=partials[step])
        assert train(make, load(slices, make), **common, resume=resume) == states[2]


@pytest.mark.parametrize("name", RECIPES)
def test_golden_bits(name: str) -> None:
    check_golden(f"ready/{name}", chain(factory(name), make_slices(RAW))[-1])


@pytest.mark.parametrize("name", RECIPES)
def test_an_answer_does_not_depend_on_the_other_rows(name: str) -> None:
    make, slices = factory(name), make_slices(RAW)
    state = chain(make, slices)[-1]
    table = pa.concat_tables([s.table for s in slices])
    settings = arithmetic(predict_batch_size=8)
    answers = predict_constituent(make, state, table, settings)
    # The others are other rows, or fewer: only its own place in a pass of eight may matter to a row.
    other = table.take(pa.array([*range(8), *reversed(range(8, table.num_rows))]))
    assert np.array_equal(predict_constituent(make, state, other, settings)[:8], answers[:8])
    for num_rows in (1, 7, 9):
        fewer = predict_constituent(make, state, table.slice(0, num_rows), settings)
        assert np.array_equal(fewer, answers[:num_rows])
    mixed = table.take(pa.array([0, *reversed(range(1, 8))]))
    assert np.array_equal(predict_constituent(make, state, mixed, settings)[0], answers[0])
    assert np.unique(answers, axis=0).shape[0] > 1
    if make().task == "classification":
        assert np.allclose(answers.sum(axis=1), 1)
    unlabelled = predict_constituent(make, state, table.drop_columns(["label"]), settings)
    assert np.array_equal(answers, unlabelled)


def test_encoded_images_train_like_their_pixels() -> None:
    raw = chain(factory("cnn"), make_slices(RAW))
    assert chain(factory("cnn", pa.binary()), make_slices(pa.binary())) == raw


def test_a_broken_image_is_a_problem_of_its_row() -> None:
    make = factory("cnn", pa.binary())
    good = png(np.zeros((SIDE, SIDE), dtype=np.uint8))
    columns = {
        "features": pa.array([good, b"no image", good[:40], good], pa.binary()),
        "label": pa.array([0, 1, 2, 3]),
    }
    found = sorted(make().problems(columns))
    assert [row for row, _ in found] == [1, 2, 3]
    assert "no image" in found[0][1]
    assert "label is not in 0..2" in found[2][1]


def test_wide_resnet_is_the_papers() -> None:
    spec = RecipeSpec(
        class_path="sisa_ray.recipes.WideResNetClassifier", args={"num_classes": 10, "shape": [3, 32, 32]}
    )
    made = spec.factory(pa.schema([("features", pa.binary(3072)), ("label", pa.int64())]))()
    model = made.build_model()
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(c.kernel_size == (3, 3) for c in convolutions) == 7  # a stem, and two in each of three blocks
    optimizer = made.build_optimizer(model)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.1, 0.9)


@pytest.mark.parametrize(
    ("depth", "num_parameters", "num_convolutions"), [(18, 11_689_512, 20), (50, 25_557_032, 53)]
)
def test_resnets_are_those_of_he_et_al(depth: int, num_parameters: int, num_convolutions: int) -> None:
    args = {"num_classes": 1000, "shape": [3, 224, 224], "depth": depth}
    spec = RecipeSpec(class_path="sisa_ray.recipes.ResNetClassifier", args=args)
    made = spec.factory(pa.schema([("features", pa.binary()), ("label", pa.int64())]))()
    with torch.device("meta"):  # shapes alone
        model = cast(torch.nn.Sequential, made.build_model())
        before_pooling = model[:-3](torch.zeros(1, 3, 64, 64))
    assert sum(p.numel() for p in model.parameters()) == num_parameters  # the published numbers
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == num_convolutions
    assert before_pooling.shape == (1, 512 if depth == 18 else 2048, 2, 2)


def test_the_small_stem_keeps_the_pixels() -> None:
    args = {"num_classes": 3, "shape": [3, 32, 32], "depth": 18, "width": 2, "stem": "small"}
    spec = RecipeSpec(class_path="sisa_ray.recipes.ResNetClassifier", args=args)
    made = spec.factory(pa.schema([("features", pa.binary()), ("label", pa.int64())]))()
    with torch.no_grad():
        model = cast(torch.nn.Sequential, made.build_model())
        assert model[:-3](torch.zeros(1, 3, 32, 32)).shape == (1, 16, 4, 4)


def test_pixels_in_either_layout_are_the_same_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    decoded = []
    for layout, pixels in (("chw", image), ("hwc", image.transpose(1, 2, 0))):
        args = {"num_classes": 2, "shape": [3, 4, 5], "layout": layout, "channels": [2], "hidden": []}
        spec = RecipeSpec(class_path="sisa_ray.recipes.CNNClassifier", args=args)
        features = pa.array([pixels.tobytes()], pa.binary(60))
        decoded.append(
            spec.factory(pa.schema([("features", features.type)]))().decode({"features": features})
        )
    assert torch.equal(decoded[0]["features"], torch.from_numpy(image)[None])
    assert torch.equal(decoded[0]["features"], decoded[1]["features"])


def test_shifts_move_zeros_in_and_every_amount_occurs() -> None:
    args = {"num_classes": 2, "shape": [1, 5, 5], "shift": 1, "channels": [2]}
    spec = RecipeSpec(class_path="sisa_ray.recipes.CNNClassifier", args=args)
    made = spec.factory(pa.schema([("features", pa.binary(25)), ("label", pa.int64())]))()
    image = torch.zeros(300, 1, 5, 5)
    image[:, :, 2, 2] = 1
    moved = made.augment({"features": image})["features"]
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.ones(300))
    spots = {tuple(spot) for spot in moved.nonzero()[:, 2:].tolist()}
    assert spots == {(r, c) for r in (1, 2, 3) for c in (1, 2, 3)}


def test_a_learning_rate_schedule_covers_the_stage() -> None:
    made = factory("cnn")()
    assert [made.learning_rate(2, 3, f) for f in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    step = factory("wide-resnet")()
    assert [step.learning_rate(1, 3, f) for f in (0.0, 0.5, 0.75)] == [1.0, 0.1, 0.01]


def test_a_learning_rate_may_fall_over_the_last_stage_alone() -> None:
    made = MLPClassifier(hidden=[], num_classes=2, lr_schedule="last_cosine")
    assert [made.learning_rate(stage, 3, 0.9) for stage in (1, 2)] == [1.0, 1.0]
    assert [made.learning_rate(3, 3, f) for f in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_a_model_s_start_is_the_checkpoint_s_when_there_is_one() -> None:
    make = factory("mlp-dropout-adam")
    first, second = chain(make, make_slices(RAW))[:2]
    weights = [load_constituent(make, s, CPU)[1].state_dict() for s in (first, second)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("class_name", "args", "message"),
    [
        ("MLPClassifier", {"hidden": [0]}, r"recipe\.args\.hidden: widths must be positive, not \[0\]"),
        ("MLPClassifier", {"activation": "cube"}, r"activation: must be one of relu, tanh, gelu, not 'cube'"),
        ("MLPClassifier", {"dropout": 1.0}, r"dropout: must be in \[0, 1\), not 1.0"),
        ("MLPClassifier", {"scale": 0}, r"scale: must be positive, not 0"),
        ("MLPClassifier", {"std": 0}, r"std: must be positive, not 0"),
        ("MLPClassifier", {"lr": -1}, r"lr: must be positive, not -1"),
        ("MLPClassifier", {"num_classes": 1}, r"num_classes: must be an integer of at least 2, not 1"),
        ("MLPClassifier", {"optimizer": "lion"}, r"optimizer: must be adam, adamw or sgd, not 'lion'"),
        ("MLPClassifier", {"momentum": 0.9}, r"momentum: is only for optimizer: sgd, not 0.9"),
        ("MLPClassifier", {"weight_decay": -1}, r"weight_decay: must not be negative, not -1"),
        (
            "MLPClassifier",
            {"lr_schedule": "warm"},
            r"lr_schedule: must be one of constant, cosine, step, last_cosine",
        ),
        ("CNNClassifier", {"shape": [2, 8, 8]}, r"shape: must be \[1 or 3 channels, height, width\]"),
        ("CNNClassifier", {"shape": [1, 9, 9]}, r"shape: \[1, 9, 9\] has 81 values, but features .* have 64"),
        ("CNNClassifier", {"layout": "nchw"}, r"layout: must be chw or hwc, not 'nchw'"),
        ("CNNClassifier", {"shift": 8}, r"shift: must be at least 0 and less than the image's size, not 8"),
        ("CNNClassifier", {"channels": [2] * 4}, r"channels: 4 poolings leave nothing of \(8, 8\) pixels"),
        ("CNNClassifier", {"channels": []}, r"channels, hidden: must be positive, not \[\]"),
        ("ResNetClassifier", {"depth": 34}, r"depth: must be 18 or 50, not 34"),
        ("ResNetClassifier", {"width": 0}, r"width: must be positive, not 0"),
        ("ResNetClassifier", {"stem": "tiny"}, r"stem: must be imagenet or small, not 'tiny'"),
        ("ResNetClassifier", {}, r"shape: images of \(8, 8\) pixels are too small .* 32; set stem: small"),
        ("WideResNetClassifier", {"width": 0}, r"blocks, width: must be positive, not 1, 0"),
    ],
)
def test_what_is_wrong_with_an_argument_is_said(class_name: str, args: dict[str, Any], message: str) -> None:
    base = {"hidden": [4], "num_classes": 3} if class_name == "MLPClassifier" else IMAGES
    spec = RecipeSpec(class_path=f"sisa_ray.recipes.{class_name}", args={**base, **args})
    with pytest.raises(RecipeError, match=message):
        spec.factory(pa.schema([("features", RAW), ("label", pa.int64())]))()


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([("x", RAW), ("label", pa.int64())], "needs the role 'features'"),
        ([("features", pa.string()), ("label", pa.int64())], "features of type string have no fixed width"),
        ([("features", RAW), ("label", pa.float32())], r"must be integers 0\.\.2, .* of type float"),
    ],
)
def test_columns_that_do_not_fit_are_refused(schema: list[tuple[str, pa.DataType]], message: str) -> None:
    class_name, args = RECIPES["mlp-dropout-adam"]
    spec = RecipeSpec(class_path=f"sisa_ray.recipes.{class_name}", args=args)
    with pytest.raises(RecipeError, match=message):
        spec.factory(pa.schema(schema))()
