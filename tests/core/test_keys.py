from __future__ import annotations

import hashlib
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core.errors import DataError
from sisa_ray.core.keys import (
    Secret,
    canonical_json,
    canonical_key,
    derive_seed,
    file_digest,
    json_digest,
    keyed_hashes,
    mix64,
    tags,
)

MASK = (1 << 64) - 1
words = st.integers(0, MASK)


def array(*values: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)


class TestCanonicalKey:
    @pytest.mark.parametrize(
        "value",
        [17, np.int8(17), np.uint16(17), np.int32(17), np.int64(17), np.uint64(17), "17", np.str_("17")],
        ids=lambda v: type(v).__name__,
    )
    def test_seventeen_is_seventeen_in_every_type(self, value: object) -> None:
        assert canonical_key(value) == "17"

    def test_integers_are_decimal_and_binary_is_hex(self) -> None:
        assert canonical_key(-(2**63)) == "-9223372036854775808"
        assert canonical_key(np.uint64(2**64 - 1)) == "18446744073709551615"
        assert canonical_key(b"\x00\xff") == canonical_key(bytearray(b"\x00\xff")) == "00ff"

    def test_strings_stay_as_they_are(self) -> None:
        for text in ("017", " 17", "Åse", "e\u0301", "", "1.0"):
            assert canonical_key(text) == text

    @pytest.mark.parametrize(
        "value",
        [
            True,
            np.bool_(True),
            17.0,
            np.float64(17.0),
            None,
            (1, 2),
            [1],
            {"id": 1},
            ...,
        ],
        ids=repr,
    )
    def test_other_types_are_refused_without_their_value(self, value: object) -> None:
        with pytest.raises(DataError, match="keys are integers, strings or binary") as caught:
            canonical_key(value)
        assert type(value).__name__ in str(caught.value)
        assert repr(value) not in str(caught.value).replace(type(value).__name__, "")

    def test_what_utf8_cannot_hold_is_refused(self) -> None:
        with pytest.raises(DataError, match="not valid Unicode") as caught:
            canonical_key("ada\udcff")
        assert "ada" not in str(caught.value)
        # It could be neither placed nor tagged.
        with pytest.raises(UnicodeEncodeError):
            keyed_hashes(["ada\udcff"], person="test", seed=0)

    @given(st.integers() | st.binary() | st.text())
    def test_is_idempotent(self, value: object) -> None:
        assert canonical_key(canonical_key(value)) == canonical_key(value)


class TestCanonicalJson:
    def test_one_byte_string_for_one_value(self) -> None:
        assert canonical_json({"b": [1, 1.5, None], "a": "é"}) == '{"a":"é","b":[1,1.5,null]}'.encode()

    @given(st.dictionaries(st.text(), st.integers() | st.text()))
    def test_order_of_keys_does_not_show(self, value: dict[str, object]) -> None:
        backwards = dict(reversed(value.items()))
        assert canonical_json(value) == canonical_json(backwards)
        assert json.loads(canonical_json(value)) == value

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_json_cannot_say_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json([value])

    def test_digests_are_sha256(self) -> None:
        assert json_digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
        assert file_digest(memoryview(b"abc")) == file_digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


class TestKeyedHashes:
    def test_is_blake2b_of_each_key_alone(self) -> None:
        def slow(key: str) -> list[int]:
            digest = hashlib.blake2b(
                key.encode(), digest_size=16, key=(5).to_bytes(8, "little"), person=b"a use"
            ).digest()
            return [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]

        keys = ["ada", "17", "", "Åse"]
        hashes = keyed_hashes(keys, person="a use", seed=5)
        assert hashes.dtype == np.uint64
        assert hashes.tolist() == [slow(k) for k in keys]

    def test_no_keys(self) -> None:
        assert keyed_hashes([], person="a use", seed=5).shape == (0, 2)

    def test_seed_and_use_separate(self) -> None:
        one = keyed_hashes(["ada"], person="a", seed=1)
        assert not np.array_equal(one, keyed_hashes(["ada"], person="b", seed=1))
        assert not np.array_equal(one, keyed_hashes(["ada"], person="a", seed=2))


class TestSeeds:
    def test_golden(self) -> None:
        """These name every stage's randomness: a change makes all runs irreproducible."""
        assert derive_seed(0, "place", "") == 3089183631851140652
        assert derive_seed(1, "epoch", 2, 3, 4) == 2533157748873919413

    @given(st.lists(st.integers() | st.text(), max_size=5))
    def test_fits_every_generator(self, parts: list[int | str]) -> None:
        assert 0 <= derive_seed(*parts) < 2**63

    def test_paths_do_not_run_together(self) -> None:
        paths: list[tuple[int | str, ...]] = [
            (1, 23),
            (12, 3),
            ("1", 23),
            (1, 2, 3),
            (123,),
            ("1,23",),
            ("1", "23"),
        ]
        assert len({derive_seed(*p) for p in paths}) == len(paths)


class TestMix64:
    def test_golden(self) -> None:
        assert mix64(0, array(0, 1, 2, 3)).tolist() == [
            0x2FF145472E2746D6,
            0xD7D81100B6269FB5,
            0x496531425CD6DDBA,
            0xA93FBA994C6E8490,
        ]
        assert mix64(12345, array(0, 1)).tolist() == [0x87A9436927BB6A18, 0xBEE69957063C2FF0]

    @given(st.integers(-(2**70), 2**70), words)
    def test_is_a_bijection(self, seed: int, value: int) -> None:
        """There is an inverse, so no two words collide under any seed."""
        assert unmix64(seed, int(mix64(seed, array(value))[0])) == value

    @given(words, words)
    def test_seeds_with_the_same_low_bits_are_the_same(self, seed: int, value: int) -> None:
        assert np.array_equal(mix64(seed, array(value)), mix64(seed + 2**64, array(value)))

    @given(words, st.integers(0, 63))
    @settings(max_examples=50)
    def test_every_bit_of_seed_and_value_counts(self, seed: int, bit: int) -> None:
        values = np.arange(256, dtype=np.uint64)
        here, there = mix64(seed, values), mix64(seed ^ (1 << bit), values)
        flipped = np.bitwise_count(here ^ there).mean()
        assert 24 < flipped < 40

    def test_does_not_change_its_input(self) -> None:
        values = array(1, 2, 3)
        mix64(9, values)
        assert values.tolist() == [1, 2, 3]


def unmix64(seed: int, word: int) -> int:
    """The inverse, in slow integers: undo each round backwards."""
    for increment in (0xD1B54A32D192ED03, 0x9E3779B97F4A7C15):
        word = unxorshift(word, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
        word = unxorshift(word, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
        word = unxorshift(word, 30) - increment & MASK
    return word ^ (seed & MASK)


def unxorshift(word: int, shift: int) -> int:
    result = word
    for _ in range(64 // shift):
        result = word ^ (result >> shift)
    return result


class TestSecret:
    def test_golden(self) -> None:
        """Tags are the suppression list of every run: they must mean the same for ever."""
        secret = Secret("s", bytes(32))
        assert secret.tags(["ada"]) == ["5c8f8ae96b64e42403bac0dd0e839afc6601f590737766e3f0808632f5a7b9bd"]
        assert secret.content_key.hex() == "295059894e3d9eaa2653fb0ed3f66c0951c15c852b8241fdf6cfa2ba61e81ad0"

    def test_tags_need_only_the_derived_key(self) -> None:
        secret = Secret("s", b"k" * 32)
        assert tags(secret.tag_key, ["ada", "17"]) == secret.tags(["ada", "17"])

    def test_uses_and_secrets_separate(self) -> None:
        one, two = Secret("s", b"1" * 32), Secret("s", b"2" * 32)
        derived = {one.derive("a"), one.derive("b"), two.derive("a"), one.tag_key, one.content_key}
        assert len(derived) == 5

    def test_is_never_printed(self) -> None:
        secret = Secret("s-1", b"hush" * 8)
        for text in (repr(secret), str(secret), f"{secret}"):
            assert text == "Secret(s-1)"

    def test_only_the_keyring_asks_for_it(self) -> None:
        assert Secret("s-1", b"hush" * 8).reveal() == b"hush" * 8

    def test_short_secrets_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 32 bytes"):
            Secret("s", b"short")

    def test_travels_to_workers(self) -> None:
        secret = pickle.loads(pickle.dumps(Secret("s-1", b"k" * 32)))
        assert secret.secret_id == "s-1"
        assert secret.tags(["ada"]) == Secret("s-1", b"k" * 32).tags(["ada"])
