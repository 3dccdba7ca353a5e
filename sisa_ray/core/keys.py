"""Canonical keys, keyed hashes, seeds and secrets.

Everything that must be the same on every machine and in every run passes through here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sisa_ray.core.errors import DataError

UInt64Array = npt.NDArray[np.uint64]

_MASK_64 = (1 << 64) - 1


def canonical_json(value: Any) -> bytes:
    """One byte string for one JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def json_digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(data: bytes | memoryview) -> str:
    """SHA-256 (hex) of an object's bytes, for integrity only."""
    return hashlib.sha256(data).hexdigest()


def canonical_key(value: object) -> str:
    """The canonical string of one key: integers in decimal, binary in hex, strings as they are.

    Raises:
        DataError: for any other type, so that no two values ever share a key by accident, and for strings
            that are no Unicode (a shell can hand such over).

    >>> canonical_key(17), canonical_key("17"), canonical_key(b"\\x11")
    ('17', '17', '11')
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise DataError(
                    "a key is not valid Unicode; give it in UTF-8, or in hex where it is binary"
                ) from None
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    raise DataError(
        f"a key of type {type(value).__name__} is not allowed: keys are integers, strings or binary; "
        "convert the column before ingest"
    )


def keyed_hashes(keys: Sequence[str], *, person: str, seed: int) -> UInt64Array:
    """Two 64-bit words a key: shape ``(len(keys), 2)``, from BLAKE2b keyed with ``seed``.

    ``person`` separates uses (placement, order), at most 16 ASCII bytes.
    """
    key = _seed_bytes(seed)
    tag = person.encode("ascii")
    blake2b = hashlib.blake2b
    digests = [blake2b(k.encode(), digest_size=16, key=key, person=tag).digest() for k in keys]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64).reshape(len(keys), 2)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a path of names and numbers; the same path gives the same seed everywhere.

    >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
    True
    """
    digest = hashlib.blake2b(canonical_json(list(parts)), digest_size=8, person=b"sisa seed").digest()
    return int.from_bytes(digest, "little") >> 1


def mix64(seed: int, values: UInt64Array) -> UInt64Array:
    """A keyed bijection of 64-bit words (two rounds of the SplitMix64 finaliser)."""
    x = values ^ np.uint64(seed & _MASK_64)
    for increment in (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03):
        x = x + np.uint64(increment)  # array arithmetic wraps silently, as intended
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x


class Secret:
    """A run's secret: tags people and digests contents. Kept outside the run's bucket, never printed."""

    __slots__ = ("_secret", "secret_id")

    def __init__(self, secret_id: str, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError("secret: must have at least 32 bytes")
        self.secret_id = secret_id
        self._secret = secret

    def __repr__(self) -> str:
        return f"Secret({self.secret_id})"

    def reveal(self) -> bytes:
        """The secret itself: for the keyring alone."""
        return self._secret

    def derive(self, use: str) -> bytes:
        """A 32-byte key for one use."""
        return hmac.digest(self._secret, b"sisa_ray/" + use.encode("ascii"), "sha256")

    @property
    def content_key(self) -> bytes:
        """Key of the content digests (design: a bare hash of a low-entropy record could be guessed)."""
        return self.derive("content/1")

    def tags(self, subjects: Iterable[str]) -> list[str]:
        """Keyed hashes (hex) of canonical subject keys: how a person is named in the log."""
        return tags(self.tag_key, subjects)

    def key_hash(self, idempotency_key: str) -> str:
        """Keyed hash (hex) of an idempotency key: callers may put anything in it."""
        return hmac.digest(self.derive("idempotency/1"), idempotency_key.encode(), "sha256").hex()

    @property
    def tag_key(self) -> bytes:
        """Key of the tags."""
        return self.derive("tag/1")


def tags(tag_key: bytes, subjects: Iterable[str]) -> list[str]:
    """Tags of subjects under ``tag_key`` (as :meth:`Secret.tags`, where only the derived key travels)."""
    return [hmac.digest(tag_key, s.encode(), "sha256").hex() for s in subjects]


def _seed_bytes(seed: int) -> bytes:
    return (seed & _MASK_64).to_bytes(8, "little")
