"""One conversion: files in, a directory of Parquet out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.conversion.arrays import ArrayReader
from sisa_ray.conversion.images import ImageReader, class_folders
from sisa_ray.conversion.labels import Labels, LabelType
from sisa_ray.conversion.output import free_place, fresh_directory
from sisa_ray.conversion.rows import Findings, Names, Reader, Rows
from sisa_ray.conversion.tables import TableReader
from sisa_ray.core.errors import ConfigError, DataError, SourceMissing
from sisa_ray.core.keys import keyed_hashes
from sisa_ray.storage.checks import non_finite_rows

_ARRAYS = (".npz", ".mat")
_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")

_FITTED = (
    "the classes are the names of the folders found: a list fitted on the data. To keep the guarantee that the "
    "forgotten leave no trace, fix it: give --classes with the list that you know beforehand (classes.json, checked, "
    "is one)"
)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is to be converted, and how.

    Args:
        inputs: files of one kind (npz and mat, or CSV), or image folders.
        out: directory to make.
        test: further inputs, which become the test table.
        test_names: arrays of the same inputs that become the test table.
        test_share: or the share of subjects that a keyed hash of their own key sends there; in (0, 1).
        split_seed: key of that hash.
        names: of arrays or columns.
        dtype: of features; None: as they are (CSV: float32).
        sample_axis: of arrays: the axis that counts records.
        classes: the class of each number, from 0.
        label_type: ``int`` for classes, ``float`` for regression.
        overwrite: replace what an earlier conversion wrote to ``out``.
    """

    inputs: tuple[str, ...]
    out: str
    test: tuple[str, ...] = ()
    test_names: Names | None = None
    test_share: float | None = None
    split_seed: int = 0
    names: Names = field(default_factory=Names)
    dtype: np.dtype[Any] | None = None
    sample_axis: int = 0
    classes: tuple[str, ...] | None = None
    label_type: LabelType = "int"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion wrote: ``shape`` is that of one record's features, None for encoded images."""

    out: str
    num_train: int
    num_test: int
    columns: dict[str, str]
    shape: tuple[int, ...] | None
    classes: tuple[str, ...] | None
    notices: tuple[str, ...]


def convert(job: Conversion) -> Converted:
    """Write ``train.parquet``, and where asked for ``test.parquet`` and ``classes.json``, into ``job.out``.

    Columns: ``id``, ``subject`` where it is named, ``features``, ``label`` where it is named. Rows are in the order of
    the inputs. A generated id is ``<file name without suffix>-<row from 0>``, or ``<folder>/<class>/<image>``.

    Raises:
        ConfigError: where options contradict each other or ``out`` is taken.
        DataError: where an input is broken or does not fit; nothing is written then.
    """
    job = _checked(job)
    free_place(job.out, overwrite=job.overwrite)
    notices = []
    paths = [_found(text) for text in (*job.inputs, *job.test)]
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise ConfigError(f"INPUT: one conversion takes one kind of files, not {' and '.join(sorted(kinds))}")
    (kind,) = kinds
    if kind == "images":
        _check_images(job, paths)
        if job.classes is None:
            job = replace(job, classes=tuple(_folders(paths[: len(job.inputs)])))
            notices.append(_FITTED)
    _check_names(job, kind)
    labels = Labels(classes=job.classes, kind=job.label_type)
    findings = Findings()
    with fresh_directory(job.out, overwrite=job.overwrite) as directory, ExitStack() as stack:
        train = stack.enter_context(_Table(directory / "train.parquet", labels))
        test = stack.enter_context(_Table(directory / "test.parquet", labels))
        for path in paths[: len(job.inputs)]:
            for rows in _reader(path, job, job.names).pieces(findings):
                _deal(rows, train, test, job, str(path))
            if job.test_names is not None:
                for rows in _reader(path, job, job.test_names, of_test=True).pieces(findings):
                    test.write(rows, str(path))
        for path in paths[len(job.inputs) :]:
            for rows in _reader(path, job, job.names).pieces(findings):
                test.write(rows, str(path))
        _check_tables(job, train, test)
        if job.classes is not None:
            text = json.dumps({"classes": list(job.classes)}, indent=2, ensure_ascii=False)
            (directory / "classes.json").write_text(text + "\n", encoding="utf-8")
    if findings.ignored:
        notices.append(f"{len(findings.ignored)} files are no images by their names and were passed over")
    assert train.schema is not None
    return Converted(
        out=str(Path(job.out).expanduser().absolute()),
        num_train=train.num_rows,
        num_test=test.num_rows,
        columns={column.name: str(column.type) for column in train.schema},
        shape=findings.shape,
        classes=job.classes,
        notices=tuple(notices),
    )


class _Table:
    """One table on its way; its file is made with its first rows."""

    def __init__(self, path: Path, labels: Labels) -> None:
        self._path = path
        self._labels = labels
        self._writer: pq.ParquetWriter | None = None
        self.schema: pa.Schema | None = None
        self.num_rows = 0
        self._rows_of: dict[str, int] = {}

    def __enter__(self) -> _Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(
        self, rows: Rows, where: str, *, only: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    ) -> None:
        """Append rows of the file ``where``; ``only`` chooses some of them."""
        first = self._rows_of.get(where, 0)
        self._rows_of[where] = first + len(rows.ids)
        bad = non_finite_rows(rows.features)
        if len(bad):
            raise DataError(
                f"{where}: row {first + bad[0]} has features that are not finite; mend or drop it"
            )
        columns = {"id": pa.array(rows.ids, pa.string())}
        if rows.subjects is not None:
            columns["subject"] = pa.array(rows.subjects, pa.string())
        columns["features"] = rows.features
        if rows.labels is not None:
            columns["label"] = self._labels.encode(rows.labels, where, first)
        table = pa.table(columns)
        if only is not None:
            table = table.filter(pa.array(only))
        if table.num_rows:
            self._append(table, where)

    def _append(self, table: pa.Table, where: str) -> None:
        if self.schema is None:
            self.schema = table.schema
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        if table.schema != self.schema:
            had = self.schema.field("features").type
            raise DataError(
                f"{where}: features are {table.schema.field('features').type}, but {had} in the files before; convert "
                "files of one shape and type together"
            )
        assert self._writer is not None
        self._writer.write_table(table)
        self.num_rows += table.num_rows


def _deal(rows: Rows, train: _Table, test: _Table, job: Conversion, where: str) -> None:
    """To the one table or to the other, by a keyed hash of each row's subject alone: nobody moves when others go."""
    if job.test_share is None:
        train.write(rows, where)
        return
    words = keyed_hashes(rows.subjects or rows.ids, person="sisa split", seed=job.split_seed)[:, 0]
    is_test = words < np.uint64(int(job.test_share * 2**64))
    train.write(rows, where, only=~is_test)
    test.write(rows, where, only=is_test)


def _reader(path: Path, job: Conversion, names: Names, *, of_test: bool = False) -> Reader:
    kind = _kind(path)
    if kind == "images":
        return ImageReader(path=path)
    if kind == "CSV":
        return TableReader(path=path, names=names, dtype=job.dtype, labels_are_text=job.classes is not None)
    prefix = f"{path.stem}-{names.features[0]}" if of_test else path.stem
    return ArrayReader(path=path, prefix=prefix, names=names, dtype=job.dtype, sample_axis=job.sample_axis)


def _found(text: str) -> Path:
    path = Path(text).expanduser()
    if "://" in text:
        raise ConfigError(f"INPUT: must be a local file or folder, not {text!r}; copy it here first")
    if not path.exists():
        raise SourceMissing(f"{text}: does not exist; give a file (npz, mat, csv) or a folder of images")
    return path


def _kind(path: Path) -> str:
    name = path.name.lower()
    if path.is_dir():
        return "images"
    if name.endswith(_ARRAYS):
        return "arrays"
    if name.endswith(_TABLES):
        return "CSV"
    known = ", ".join((*_ARRAYS, *_TABLES))
    raise ConfigError(
        f"INPUT: {path.name} is of no known kind; give files ending in {known}, or a folder of images"
    )


def _folders(paths: Sequence[Path]) -> Iterator[str]:
    return iter(sorted({name for path in paths for name in class_folders(path)}))


def _checked(job: Conversion) -> Conversion:
    ways = [way for way in (job.test, job.test_names, job.test_share) if way]
    if len(ways) > 1:
        raise ConfigError(
            "--test, --test-features and --test-share: each says what is tested on; give one of them"
        )
    if job.test_share is not None and not 0 < job.test_share < 1:
        raise ConfigError(f"--test-share: must be more than 0 and less than 1, not {job.test_share:g}")
    if not 0 <= job.split_seed < 2**63:
        raise ConfigError(f"--split-seed: must be a whole number from 0 to 2**63-1, not {job.split_seed}")
    if job.classes is not None and job.label_type == "float":
        raise ConfigError("--classes and --label-type float: classes are numbered, so give one of them")
    if job.names.record_id is None:
        names = [Path(text).absolute().name for text in job.inputs]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"INPUT: {max(names, key=names.count)!r} is the name of two inputs, whose generated ids would be the "
                "same; rename one, or name the ids that there are with --record-id"
            )
    return job


def _check_images(job: Conversion, paths: Sequence[Path]) -> None:
    if job.names != Names() or job.test_names is not None or job.dtype is not None or job.sample_axis:
        raise ConfigError(
            "--features, --label, --record-id, --subject-id, --dtype, --sample-axis: are for arrays and CSV; in a "
            "folder of images the class is the sub-folder and the id the path"
        )
    if job.label_type != "int":
        raise ConfigError("--label-type: images in folders have classes, so it must be int")
    for path in paths:
        if not class_folders(path):
            raise DataError(
                f"{path}: has no sub-folders; put the images of each class into a folder of its name"
            )


def _check_names(job: Conversion, kind: str) -> None:
    if kind == "arrays" and not job.names.features:
        raise ConfigError("--features: required for npz and mat files: name the array that holds them")
    if kind == "CSV" and (job.test_names is not None or job.sample_axis):
        raise ConfigError(
            "--test-features, --sample-axis: are for arrays; for CSV give --test or --test-share"
        )
    if kind != "images" and job.names.label is None and job.classes is not None:
        raise ConfigError(
            "--classes: needs --label, the name of the array or column that they are looked up for"
        )
    named = [*job.names.features, *job.names.others]
    double = [name for name in job.names.features if named.count(name) > 1]
    if double:
        raise ConfigError(f"--features: {double[0]!r} is named twice; features are neither labels nor ids")


def _check_tables(job: Conversion, train: _Table, test: _Table) -> None:
    if not train.num_rows:
        raise DataError(f"{', '.join(job.inputs)}: no records are left to train on; give more")
    for role in ("features", "label"):
        there, here = (_type_of(table, role) for table in (train, test))
        if test.num_rows and there != here:
            raise DataError(f"test: {role} are {here}, but {there} in training; they must be of one type")
    if not test.num_rows and (job.test or job.test_share or job.test_names):
        raise DataError("test: no records are left to test on; give more, or a larger --test-share")


def _type_of(table: _Table, column: str) -> str:
    if table.schema is None or column not in table.schema.names:
        return "missing"
    return str(table.schema.field(column).type)
