"""Strata that are given per subject: a table of its own says who is in which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sisa_ray.core.config import DataConfig
from sisa_ray.core.errors import DataError
from sisa_ray.core.fields import suggestion
from sisa_ray.core.keys import UInt64Array
from sisa_ray.core.order import record_hashes
from sisa_ray.storage.checks import Findings
from sisa_ray.storage.columns import Int64Array, canonical_keys, is_key_type
from sisa_ray.storage.files import find_files, open_parquet, unreadable

_BATCH_ROWS = 2**17


@dataclass(frozen=True, kw_only=True, eq=False)
class StrataTable:
    """Who is in which stratum: twelve bytes a subject, and no names.

    A subject is known by a hash of 64 bits. Two that had one hash in common would be taken for each other here, which
    moves a record to another stratum's slices, where it is looked for too.
    """

    hashes: UInt64Array
    """Ascending."""
    codes: Int64Array
    """For each of them the position in ``names``."""
    names: tuple[str, ...]

    def of(self, subjects: pa.Array) -> pa.Array:
        """The stratum of each subject (canonical keys); null where the table does not have it."""
        if not len(self.hashes):
            return pa.nulls(len(subjects), pa.string())
        hashes = record_hashes(subjects.fill_null("").to_pylist(), seed=0)
        found = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        known = (self.hashes[found] == hashes) & ~np.asarray(subjects.is_null())
        codes = pa.array(self.codes[found], mask=~known)
        return pa.array(self.names, pa.string()).take(codes)


def read_strata(data: DataConfig) -> StrataTable:
    """Read ``data.strata_table``: the columns that ``data`` calls ``subject_id`` and ``stratum``.

    Raises:
        DataError: where it is no such table, or has a subject in two strata.
    """
    url = data.strata_table
    assert url is not None
    assert data.stratum is not None
    hashes: list[UInt64Array] = [np.zeros(0, dtype=np.uint64)]
    codes: list[Int64Array] = [np.zeros(0, dtype=np.int64)]
    names: dict[str, int] = {}
    findings = Findings()
    first_row = 0
    for file in find_files(url):
        try:
            with open_parquet(file) as parquet:
                _check_columns(url, data, parquet.schema_arrow)
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=[data.subject_id, data.stratum]):
                    people, strata = (canonical_keys(batch[n]) for n in (data.subject_id, data.stratum))
                    for name, keys in ((data.subject_id, people), (data.stratum, strata)):
                        findings.add(
                            f"column {name!r} is null", np.flatnonzero(np.asarray(keys.is_null())) + first_row
                        )
                    first_row += batch.num_rows
                    encoded = strata.fill_null("").dictionary_encode()
                    known = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
                    hashes.append(record_hashes(people.fill_null("").to_pylist(), seed=0))
                    codes.append(np.array(known, dtype=np.int64)[np.asarray(encoded.indices)])
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file, error) from None
    findings.raise_if_any(url)
    order = np.argsort(np.concatenate(hashes), kind="stable")
    ordered, of = np.concatenate(hashes)[order], np.concatenate(codes)[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    findings.add("subject is in two strata", order[again[of[again] != of[again - 1]]])
    findings.raise_if_any(url)
    once = np.delete(np.arange(len(ordered)), again)
    return StrataTable(hashes=ordered[once], codes=of[once], names=tuple(names))


def _check_columns(url: str, data: DataConfig, schema: pa.Schema) -> None:
    for key, name in (("subject_id", data.subject_id), ("stratum", data.stratum)):
        assert name is not None
        if len(schema.get_all_field_indices(name)) != 1:
            raise DataError(
                f"{url}: data.strata_table: must have one column {name!r} (data.{key})"
                f"{suggestion(name, schema.names)}"
            )
        if not is_key_type(kind := schema.field(name).type):
            raise DataError(
                f"{url}: data.strata_table: column {name!r} is of type {kind}, but keys are integers, strings or "
                "binary; convert it"
            )
