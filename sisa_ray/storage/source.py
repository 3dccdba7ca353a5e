"""Source tables: Parquet as the user has it, checked against the configuration and read in pieces.

Rows are numbered from 0 through all files in the order of their names, so that errors can say which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.core.config import DataConfig
from sisa_ray.core.errors import DataError
from sisa_ray.core.fields import suggestion
from sisa_ray.storage.checks import Findings, invalid_text_rows, non_finite_rows, null_rows
from sisa_ray.storage.columns import (
    Int64Array,
    UnsupportedType,
    canonical_keys,
    is_key_type,
    normal_type,
    normalise,
    pack,
    packed_type,
)
from sisa_ray.storage.files import find_files, open_parquet, unreadable
from sisa_ray.storage.strata import StrataTable, read_strata

_NUM_READERS = 8
_BATCH_BYTES = 16 * 2**20
_COLUMN_BUFFERS_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """One row group of one file: what can be read on its own."""

    file: str
    row_group: int
    first_row: int
    num_rows: int
    num_bytes: int
    """Estimated size in memory."""


@dataclass(frozen=True, kw_only=True)
class SourceBatch:
    """Consecutive rows, keys canonical, roles in normalised types.

    ``subjects`` is None where the subject is the record; without training, ``record_ids`` may be None too. ``strata``
    is None where none are declared, and has nulls where a subject's is not known.
    """

    first_row: int
    record_ids: pa.Array | None
    subjects: pa.Array | None
    columns: pa.Table
    strata: pa.Array | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.record_ids) if self.record_ids is not None else int(self.columns.num_rows)

    def role_arrays(self) -> dict[str, pa.Array]:
        """The roles' columns, each in one piece."""
        return {name: self.columns[name].chunk(0) for name in self.columns.schema.names}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source table whose footers have been read and whose columns fit the configuration. Picklable."""

    url: str
    data: DataConfig
    record_id: str | None
    subject_id: str | None
    """None where the subject is the record."""
    roles: tuple[str, ...]
    role_schema: pa.Schema
    """One field a role, normalised: what recipes are bound to."""
    fragments: tuple[Fragment, ...] = field(repr=False)
    stratum: str | None = None
    """The column of strata, where this table has it."""
    looks_up_strata: bool = False
    """Whether a table of its own has the strata: ``data.strata_table``."""

    @cached_property
    def _strata_table(self) -> StrataTable:
        return read_strata(self.data)

    def __getstate__(self) -> dict[str, object]:
        # Workers read the table of strata themselves.
        return {name: value for name, value in self.__dict__.items() if name != "_strata_table"}

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(f.num_rows for f in self.fragments)

    @property
    def num_bytes(self) -> int:
        """Estimated size in memory of the columns in use."""
        return sum(f.num_bytes for f in self.fragments)

    def where(self, row: int) -> str:
        """How messages write a row: its number, and with several files also the file and the row in there."""
        files = [f.file for f in self.fragments]
        if len(set(files)) == 1:
            return str(row)
        file = next(f.file for f in self.fragments if f.first_row <= row < f.first_row + f.num_rows)
        return f"{row} ({file.rpartition('/')[2]}: {row - self.fragments[files.index(file)].first_row})"

    def split(self, max_bytes: int) -> list[tuple[Fragment, ...]]:
        """All fragments in order, in groups of about ``max_bytes``: a large row group is one by itself."""
        groups: list[list[Fragment]] = []
        size = 0
        for fragment in self.fragments:
            if not groups or size + fragment.num_bytes > max_bytes:
                groups.append([])
                size = 0
            groups[-1].append(fragment)
            size += fragment.num_bytes
        return [tuple(group) for group in groups]

    def read(
        self,
        fragments: Sequence[Fragment] | None = None,
        *,
        max_rows: int | None = None,
        max_bytes: int = _BATCH_BYTES,
        use_threads: bool = True,
    ) -> Iterator[SourceBatch]:
        """Read fragments (default: all) in small batches, unchecked.

        Raises:
            DataError: where a file cannot be read, or a value has no equal in its normalised type.
        """
        names = self._source_columns()
        for file, group in groupby(self.fragments if fragments is None else fragments, key=lambda f: f.file):
            parts = list(group)
            row = parts[0].first_row
            num_rows = sum(p.num_rows for p in parts)
            if not num_rows:
                continue
            batch_rows = max(1, max_bytes * num_rows // max(1, sum(p.num_bytes for p in parts)))
            buffer_bytes = min(8 * 2**20, max(2**16, _COLUMN_BUFFERS_BYTES // len(names)))
            try:
                with open_parquet(file, buffer_bytes=buffer_bytes) as parquet:
                    for batch in parquet.iter_batches(
                        batch_size=min(batch_rows, max_rows or batch_rows),
                        row_groups=[p.row_group for p in parts],
                        columns=names,
                        use_threads=use_threads,
                    ):
                        if batch.num_rows:
                            yield self._converted(batch, row)
                            row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise unreadable(file, error) from None

    def batches(self, num_rows: int) -> Iterator[SourceBatch]:
        """All rows in batches of at most ``num_rows``; nulls and numbers that are none are refused by row."""
        for batch in self.read(max_rows=num_rows, max_bytes=4 * _BATCH_BYTES):
            findings = Findings()
            for rule, rows in check_roles(batch.columns, self):
                findings.add(rule, rows + batch.first_row)
            findings.raise_if_any(self.url, self.where)
            yield batch

    def keys_only(self) -> Source:
        """The same table, of which only the record ids are read."""
        return replace(
            self, subject_id=None, stratum=None, looks_up_strata=False, roles=(), role_schema=pa.schema([])
        )

    def strata_only(self) -> Source:
        """The same table, of which only record ids, subjects and strata are read."""
        return replace(self, roles=(), role_schema=pa.schema([]))

    def column_name(self, role: str) -> str:
        """How messages name a role's column."""
        names = _names(self.data, role)
        listed = f"column {names[0]!r}" if len(names) == 1 else f"columns {names[0]!r} … {names[-1]!r}"
        return f"{role} ({listed})"

    def _source_columns(self) -> list[str]:
        keys = [name for name in (self.record_id, self.subject_id, self.stratum) if name is not None]
        return list(dict.fromkeys([*keys, *(n for role in self.roles for n in _names(self.data, role))]))

    def _converted(self, batch: pa.RecordBatch, first_row: int) -> SourceBatch:
        arrays = [self._role(batch, role) for role in self.roles]
        record_ids = canonical_keys(batch[self.record_id]) if self.record_id is not None else None
        people = canonical_keys(batch[self.subject_id]) if self.subject_id is not None else None
        strata = canonical_keys(batch[self.stratum]) if self.stratum is not None else None
        if self.looks_up_strata:
            strata = self._strata_table.of(record_ids if people is None else people)
        return SourceBatch(
            first_row=first_row,
            record_ids=record_ids,
            subjects=people,
            columns=pa.Table.from_arrays(arrays, schema=self.role_schema),
            strata=strata,
        )

    def _role(self, batch: pa.RecordBatch, role: str) -> pa.Array:
        target = self.role_schema.field(role).type
        names = self.data.columns[role]
        try:
            if isinstance(names, str):
                return normalise(batch[names])
            return pack([normalise(batch[name]) for name in names], target)
        except pa.ArrowException:
            raise DataError(
                f"{self.url}: {self.column_name(role)} has values that {target} cannot hold exactly; "
                "convert the column before ingest"
            ) from None


def check_roles(columns: pa.Table, source: Source) -> list[tuple[str, Int64Array]]:
    """Look for nulls, broken text, NaN and infinities in role columns: rules and the rows that break them."""
    found = []
    for role in columns.schema.names:
        array = columns[role].chunk(0)
        name = source.column_name(role)
        found += [
            (f"{name} is null", null_rows(array)),
            (f"{name} is not finite (NaN or infinite)", non_finite_rows(array)),
            (f"{name} is not valid UTF-8", invalid_text_rows(array)),
        ]
    return [(rule, rows) for rule, rows in found if len(rows)]


def open_source(data: DataConfig, url: str | None = None, *, for_training: bool = True) -> Source:
    """Read the footers of a source table and check its columns.

    Args:
        data: names the columns.
        url: the table; default: ``data.train``.
        for_training: whether all columns must be there. For prediction those that are there are used, each
            role whole and at least one, without the subjects.

    Raises:
        DataError: nothing matches, no Parquet, empty, columns missing or of unfit types, files that disagree.
    """
    url = url or data.train
    files = find_files(url)
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        footers = list(readers.map(_read_footer, files))
    schema = footers[0][0]
    _check_names(url, data, schema, for_training=for_training)
    has = set(schema.names)
    roles = tuple(role for role in data.columns if all(n in has for n in _names(data, role)))
    subject_id = data.subject_id if for_training and data.subject_id != data.record_id else None
    stratum = data.stratum if for_training and data.strata_table is None else None
    used = {n for role in roles for n in _names(data, role)}
    used |= has & {data.record_id, subject_id or "", stratum or ""}
    for file, (other, _) in zip(files[1:], footers[1:], strict=True):
        _check_agreement(used, files[0], schema, file, other)
    fragments = []
    first_row = 0
    for file, (_, metadata) in zip(files, footers, strict=True):
        for group in range(metadata.num_row_groups):
            num_rows = metadata.row_group(group).num_rows
            fragments.append(
                Fragment(
                    file=file,
                    row_group=group,
                    first_row=first_row,
                    num_rows=num_rows,
                    num_bytes=_estimated_bytes(metadata, group, used),
                )
            )
            first_row += num_rows
    if not first_row:
        raise DataError(f"{url}: is an empty table, it has no rows; give one that has")
    return Source(
        url=url,
        data=data,
        record_id=data.record_id if data.record_id in has else None,
        subject_id=subject_id,
        roles=roles,
        role_schema=pa.schema([pa.field(role, _role_type(url, data, role, schema)) for role in roles]),
        fragments=tuple(fragments),
        stratum=stratum,
        looks_up_strata=for_training and data.strata_table is not None,
    )


def _read_footer(file: str) -> tuple[pa.Schema, pq.FileMetaData]:
    with open_parquet(file) as parquet:
        return parquet.schema_arrow, parquet.metadata


def _names(data: DataConfig, role: str) -> tuple[str, ...]:
    names = data.columns[role]
    return (names,) if isinstance(names, str) else names


def _check_names(url: str, data: DataConfig, schema: pa.Schema, *, for_training: bool) -> None:
    keys = [("record_id", data.record_id)]
    if for_training and data.subject_id != data.record_id:
        keys.append(("subject_id", data.subject_id))
    if for_training and data.stratum is not None and data.strata_table is None:
        keys.append(("stratum", data.stratum))
    of_roles = [(f"columns.{role}", name) for role in data.columns for name in _names(data, role)]
    optional: set[str] = set()
    if not for_training:
        present = {key for key, name in of_roles if name in schema.names}
        optional = {"record_id", *(key for key, _ in of_roles if present and key not in present)}
    faults = []
    for key, name in [*keys, *of_roles]:
        count = len(schema.get_all_field_indices(name))
        if count > 1:
            faults.append(f"  data.{key}: the table has {count} columns {name!r}; rename them")
        elif not count and key not in optional:
            near = suggestion(name, schema.names) or f"; it has {_listed(schema.names)}"
            faults.append(f"  data.{key}: the table has no column {name!r}{near}")
    for key, name in keys:
        index = schema.get_field_index(name)
        if index >= 0 and not is_key_type(kind := schema.field(index).type):
            faults.append(
                f"  data.{key}: column {name!r} is of type {kind}, but keys are integers, strings or binary; "
                "convert it"
            )
    if faults:
        raise DataError("\n".join([f"{url}: does not fit the configuration:", *dict.fromkeys(faults)]))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


def _role_type(url: str, data: DataConfig, role: str, schema: pa.Schema) -> pa.DataType:
    names = data.columns[role]
    try:
        if isinstance(names, str):
            return normal_type(schema.field(names).type)
        return packed_type([normal_type(schema.field(name).type) for name in names])
    except UnsupportedType as error:
        what = f"column {names!r}" if isinstance(names, str) else f"columns {_listed(names)}"
        raise DataError(f"{url}: data.columns.{role}: {what} cannot be used: {error}") from None


def _check_agreement(used: set[str], first: str, schema: pa.Schema, file: str, other: pa.Schema) -> None:
    """Files must agree on the columns in use, however each has them encoded."""
    for name in sorted(used):
        if len(other.get_all_field_indices(name)) != 1:
            raise DataError(f"{file}: lacks a (single) column {name!r}, unlike {first}; use one schema")
        there, here = schema.field(name).type, other.field(name).type
        if _normal_or_same(there) != _normal_or_same(here):
            raise DataError(
                f"{file}: column {name!r} is of type {here}, but of type {there} in {first}; "
                "give files of one schema"
            )


def _normal_or_same(kind: pa.DataType) -> pa.DataType:
    try:
        return normal_type(kind)
    except UnsupportedType:
        return kind


_PHYSICAL_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}


def _estimated_bytes(metadata: pq.FileMetaData, group: int, used: set[str]) -> int:
    """Footers count encoded bytes; dictionary-encoded numbers take more in memory."""
    row_group = metadata.row_group(group)
    total = 0
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        path = column.path_in_schema
        if path in used or any(path.startswith(f"{name}.") for name in used):
            width = _PHYSICAL_BYTES.get(column.physical_type) or metadata.schema.column(index).length
            total += max(column.total_uncompressed_size, column.num_values * width)
    return total
