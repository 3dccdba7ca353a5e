"""Commands that make tables: from the files that users have, and of the paper's shape."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sisa_ray.core.errors import ConfigError
from sisa_ray.service import render_convert
from sisa_ray.service.arguments import Json, Quiet, examples
from sisa_ray.service.console import Output, document_of

if TYPE_CHECKING:
    from sisa_ray.conversion.rows import Names

Out = Annotated[
    str,
    typer.Option(
        "--out", metavar="DIR", help="Local directory to make: train.parquet, test.parquet, classes.json."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", metavar="", help="Replace what an earlier conversion wrote there.")
]


class Dtype(StrEnum):
    """Types that features are converted to."""

    UINT8 = "uint8"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


class LabelKind(StrEnum):
    """Types of labels."""

    INT = "int"
    FLOAT = "float"


class DataSet(StrEnum):
    """Data that can be generated."""

    PURCHASE = "purchase"


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        epilog=examples(
            "convert mnist.npz --features x_train --label y_train --test-features x_test --test-label y_test \\\n"
            "      --out mnist",
            "convert train_32x32.mat extra_32x32.mat --test test_32x32.mat --features X --label y \\\n"
            "      --sample-axis -1 --classes 10,1,2,3,4,5,6,7,8,9 --out svhn",
            "convert imagenet/train --test imagenet/val --classes synsets.txt --out imagenet-parquet",
            "convert shop.csv --label bought --record-id visit --subject-id customer --test-share 0.1 --out shop",
        )
    )(convert)
    app.command(epilog=examples("generate purchase --out purchase --seed 0"))(generate)


def convert(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="npz, mat or CSV files, or folders with a sub-folder a class."),
    ],
    out: Out,
    features: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Array of features; of CSV: columns a,b,c. Default: all others."),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="NAME", help="Array or column of labels.")] = None,
    record_id: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Array or column of record ids. Default: file name and row."),
    ] = None,
    subject_id: Annotated[
        str | None, typer.Option(metavar="NAME", help="Array or column that says whose record it is.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="INPUT", help="Input that is the test table; may be repeated.")
    ] = None,
    test_features: Annotated[
        str | None, typer.Option(metavar="NAME", help="Or an array of the same files to test on.")
    ] = None,
    test_label: Annotated[str | None, typer.Option(metavar="NAME", help="With it: its labels.")] = None,
    test_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Or a share such as 0.1, drawn by a keyed hash of each subject's own key."
        ),
    ] = None,
    split_seed: Annotated[int, typer.Option(metavar="N", help="Key of that hash.")] = 0,
    classes: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Class of each number, from 0: cat,dog or a file (.txt, .json)."),
    ] = None,
    label_type: Annotated[
        LabelKind, typer.Option(help="int: classes; float: numbers to predict.")
    ] = LabelKind.INT,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of features. Default: as they are; of CSV float32.")
    ] = None,
    sample_axis: Annotated[
        int, typer.Option(metavar="AXIS", help="Axis of the array that counts records; -1: the last.")
    ] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn npz and mat arrays, CSV files or folders of images into Parquet that `sisa-ray ingest` takes.

    What is split by --test-share stays where it is when other records come or go. Nothing is ever unpickled.
    """
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        import numpy as np

        from sisa_ray.conversion.convert import Conversion
        from sisa_ray.conversion.convert import convert as convert_files
        from sisa_ray.conversion.labels import read_classes
        from sisa_ray.conversion.rows import Names

        result = convert_files(
            Conversion(
                inputs=tuple(inputs),
                out=out,
                test=tuple(test or ()),
                test_names=_test_names(test_features, test_label, label),
                test_share=test_share,
                split_seed=split_seed,
                names=Names(
                    features=_listed(features), label=label, record_id=record_id, subject_id=subject_id
                ),
                dtype=None if dtype is None else np.dtype(dtype.value),
                sample_axis=sample_axis,
                classes=None if classes is None else read_classes(classes),
                label_type=label_type.value,
                overwrite=overwrite,
            )
        )
        for notice in result.notices:
            output.warn(notice)
    output.emit(document_of(result), lambda: render_convert.converted_text(result))


def generate(
    data_set: Annotated[DataSet, typer.Argument(metavar="purchase", help="Which data.")],
    out: Out,
    train: Annotated[int, typer.Option(metavar="N", help="Records to train on.")] = 250_000,
    test: Annotated[int, typer.Option(metavar="N", help="Records to test on.")] = 50_000,
    seed: Annotated[
        int, typer.Option(metavar="N", help="The same seed gives the same bytes everywhere.")
    ] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate data of the shape of the paper's Purchase: 600 binary features, two classes.

    The real table may not be handed on; see docs/data.md for what this one is, and how hard.
    """
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.conversion.purchase import write_purchase

        assert data_set is DataSet.PURCHASE
        result = write_purchase(out, num_train=train, num_test=test, seed=seed, overwrite=overwrite)
    output.emit(document_of(result), lambda: render_convert.generated_text(result))


def _listed(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ConfigError(f"--features: must be a name or names such as a,b,c, not {text!r}")
    return names


def _test_names(features: str | None, label: str | None, train_label: str | None) -> Names | None:
    from sisa_ray.conversion.rows import Names

    if (features is None) != (label is None) and train_label is not None:
        raise ConfigError(
            "--test-features and --test-label: give both; the test table has labels like the other"
        )
    if features is None:
        if label is not None:
            raise ConfigError("--test-label: needs --test-features")
        return None
    return Names(features=(features,), label=label)
