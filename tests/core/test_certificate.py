"""Certificates and receipts: what is signed comes back, and whatever was changed is found and named."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sisa_ray.core import certificate, merkle
from sisa_ray.core.canonical import members_of
from sisa_ray.core.certificate import (
    Certificate,
    Receipt,
    key_id,
    read_signed,
    shard_leaf,
    sign,
    subject_leaf,
)
from sisa_ray.core.errors import CertificateInvalid
from sisa_ray.core.keys import canonical_json, file_digest
from tests.core.certificates import KEY, TAGS, make_certificate, make_receipt, state_of

PUBLIC = KEY.public_key()
CERTIFICATE = make_certificate()
DATA = sign(CERTIFICATE, KEY)
RECEIPT_DATA = sign(make_receipt(0), KEY)
both = pytest.mark.parametrize("data", [DATA, RECEIPT_DATA], ids=["certificate", "receipt"])


def problem(data: bytes) -> str:
    with pytest.raises(CertificateInvalid) as caught:
        read_signed(data, PUBLIC, name="b.json")
    message = str(caught.value)
    assert message.startswith("b.json: ")
    return message


def changed(data: bytes, path: str, value: object) -> bytes:
    """The file with one member set to something else, and written in canonical form again."""
    document = json.loads(data)
    place: Any = document
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    for part in parents:
        place = place[part]
    place[last] = value
    return canonical_json(document)


def signed_anew(data: bytes, key: Ed25519PrivateKey = KEY) -> bytes:
    """Any content, with a signature that fits."""
    members = json.loads(data)
    signature = members.pop("signature")
    signature["value"] = key.sign(b"sisa_ray/certificate/1\n" + canonical_json(members)).hex()
    return canonical_json({**members, "signature": signature})


def test_both_come_back() -> None:
    assert read_signed(DATA, PUBLIC, name="b.json") == CERTIFICATE
    assert read_signed(RECEIPT_DATA, PUBLIC, name="r.json") == make_receipt(0)


@both
def test_the_file_is_canonical_and_the_same_every_time(data: bytes) -> None:
    assert canonical_json(json.loads(data)) == data
    assert sign(read_signed(data, PUBLIC, name="b.json"), KEY) == data


def test_the_signature_can_be_checked_without_us() -> None:
    members = json.loads(DATA)
    signature = members.pop("signature")
    raw = PUBLIC.public_bytes_raw()
    assert signature["algorithm"] == "Ed25519"
    assert signature["key_id"] == key_id(PUBLIC) == file_digest(raw)
    text = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    PUBLIC.verify(bytes.fromhex(signature["value"]), b"sisa_ray/certificate/1\n" + text.encode())


@both
def test_every_flipped_byte_is_found(data: bytes) -> None:
    broken = bytearray(data)
    for position in range(len(data)):
        for mask in (0x01, 0x20):  # the latter turns hex digits into capitals, which mean the same
            broken[position] ^= mask
            with pytest.raises(CertificateInvalid):
                read_signed(bytes(broken), PUBLIC, name="b.json")
            broken[position] ^= mask


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_every_changed_byte_is_found(position: int, mask: int) -> None:
    broken = bytearray(DATA)
    broken[position] ^= mask
    problem(bytes(broken))


@given(st.integers(0, len(DATA)), st.sampled_from([b" ", b"\n", b"0", b",", b"}", b"\xef\xbb\xbf"]))
def test_every_added_byte_is_found(position: int, extra: bytes) -> None:
    problem(DATA[:position] + extra + DATA[position:])


@given(st.integers(0, len(DATA) - 1), st.integers(1, 50))
def test_every_missing_byte_is_found(position: int, length: int) -> None:
    problem(DATA[:position] + DATA[position + length :])


@given(st.data())
def test_another_order_of_members_is_found(data: st.DataObject) -> None:
    members = list(json.loads(DATA).items())
    shuffled = data.draw(st.permutations(members).filter(lambda order: order != members))
    text = json.dumps(dict(shuffled), separators=(",", ":"), ensure_ascii=False).encode()
    position = next(i for i, (a, b) in enumerate(zip(text, DATA, strict=True)) if a != b)
    assert f"not in canonical form from byte {position} on" in problem(text)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (b'"generation":2', b'"generation": 2', "around generation"),
        (b'"generation":2', b'"generation":2e0', "around generation"),
        (b'"generation":2', b'"generation":2,"generation":2', "from byte"),
        (b'"seq":3', b'"seq":3 ', "around log.seq"),
        (b'"bytes":700', b'"bytes":7.00e2', "around purged.bytes"),
        (b'"stage":2}', b'"stage": 2}', "around touched.0.after.stages.1.stage"),
        (b"B\xc3\xbccher", b"B\\u00fccher", "around run.name"),
        (b'"overdue":false', b'"overdue":\tfalse', "around requests.0.overdue"),
    ],
)
def test_another_spelling_is_found_where_it_is(old: bytes, new: bytes, where: str) -> None:
    assert old in DATA
    broken = DATA.replace(old, new, 1)
    message = problem(broken)
    assert "not in canonical form from byte" in message
    assert where in message
    named = int(re.findall(r"from byte (\d+)", message)[0])
    start = DATA.index(old)
    assert start <= named <= start + len(new)


def test_a_newline_at_the_end_is_found() -> None:
    assert f"not in canonical form from byte {len(DATA)} on" in problem(DATA + b"\n")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not JSON: Expecting value at byte 0"),
        (b'{"\xc3\xbc":1 x}', "is not JSON: Expecting ',' delimiter at byte 8"),
        (b'{"a":\xff}', "is not JSON: byte 5 is not UTF-8"),
        (DATA.decode().encode("utf-16"), "is not JSON"),
        (b"[1]", "is no JSON object"),
        (b'"text"', "is no JSON object"),
        (b'{"a":NaN}', "is not JSON of ours"),
        (b'{"a":"\\ud800"}', "is not JSON of ours"),
        (b'{"a":1e999}', "is not JSON of ours"),
        (b'{"a":' + b"9" * 5000 + b"}", "is not JSON of ours"),
        (b"[" * 100_000, "is not JSON of ours"),
        (b"{}", "the member signature is missing"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_other_files_are_refused(data: bytes, says: str) -> None:
    assert says in problem(data)


def test_a_number_that_is_not_written_as_ours_is_refused_even_if_signed() -> None:
    for path in ("version", "generation", "log.seq", "touched.0.after.stages.1.stage"):
        value = json.loads(DATA)
        for part in path.split("."):
            value = value[int(part) if part.isdecimal() else part]
        for other in (float(value), str(value), value == 1 or None):
            assert f"the member {path} " in problem(signed_anew(changed(DATA, path, other)))


@both
def test_unknown_and_missing_members_are_named(data: bytes) -> None:
    for name in json.loads(data):
        if name not in ("kind", "signature"):
            rest = json.loads(data)
            del rest[name]
            assert f"the member {name} is missing" in problem(canonical_json(rest))
    assert "the member surprise is unknown" in problem(signed_anew(changed(data, "surprise", 1)))
    assert "the member run.surprise is unknown" in problem(signed_anew(changed(data, "run.surprise", 1)))
    assert "the member signature.surprise is unknown" in problem(changed(data, "signature.surprise", 1))
    assert "kind is neither" in problem(changed(data, "kind", ["certificate"]))


@both
def test_a_newer_version_is_told_from_a_broken_one(data: bytes) -> None:
    newer = changed(changed(data, "version", 2), "surprise", 1)
    assert "newer sisa_ray (version 2; this one reads 1)" in problem(newer)
    assert "the member version is wrong" in problem(signed_anew(changed(data, "version", 0)))


@both
def test_the_key_of_another_is_told_from_a_wrong_signature(data: bytes) -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x02")
    signed = sign(read_signed(data, PUBLIC, name="b.json"), other)
    assert f"another key (key id {key_id(other.public_key())}" in problem(signed)
    assert "the signature does not fit" in problem(changed(signed, "signature.key_id", key_id(PUBLIC)))


@both
def test_a_changed_member_breaks_the_signature(data: bytes) -> None:
    assert "the signature does not fit" in problem(changed(data, "batch", "b2"))
    assert "the member signature.value is wrong" in problem(changed(data, "signature.value", "A" * 128))


@pytest.mark.parametrize("algorithm", ["none", "ed25519", "HS256", None])
def test_other_algorithms_are_refused(algorithm: object) -> None:
    assert "the member signature.algorithm is wrong" in problem(
        changed(DATA, "signature.algorithm", algorithm)
    )


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("signs", [signed_anew, lambda data: data], ids=["signed", "not signed"])
def test_a_stage_that_is_not_under_the_root_is_named_by_its_shard(when: str, signs: Any) -> None:
    for path, value in (
        (f"touched.1.{when}.stages.0.file_digest", "f" * 64),
        (f"touched.1.{when}.stages.0.key", "k"),
        (f"touched.1.{when}.stages", []),
        (f"touched.1.{when}.path.0", "0" * 64),
        (f"touched.1.{when}.path", []),
    ):
        message = problem(signs(changed(DATA, path, value)))
        assert f"shard 3, {when}: its Merkle path does not lead to the root" in message
    assert f"shard 1, {when}" in problem(signed_anew(changed(DATA, f"{when}.root", "0" * 64)))


def test_touched_shards_are_in_order_and_in_range() -> None:
    first, second = json.loads(DATA)["touched"]
    for touched in ([second, first], [first, first]):
        assert "must be in order, each once" in problem(signed_anew(changed(DATA, "touched", touched)))
    outside = signed_anew(changed(DATA, "touched.1.shard", 5))
    assert "there is no shard 5 among 5" in problem(outside)
    assert "before has 5 shards, but after 6" in problem(signed_anew(changed(DATA, "after.num_shards", 6)))


def test_stages_are_in_order() -> None:
    def backwards(shard: int) -> Certificate:
        states = [[stage, *rest][::-1] for stage, *rest in state_of("after")]
        tree = [shard_leaf(i, stages) for i, stages in enumerate(states)]
        found = CERTIFICATE.model_dump()
        found["after"]["root"] = merkle.root(tree)
        for touched in found["touched"]:
            k = touched["shard"]
            touched["after"] = {
                "stages": tuple(s.model_dump() for s in states[k]),
                "path": merkle.path(tree, k),
            }
        return Certificate.model_validate(found)

    assert "shard 1, after: its stages must be in order" in problem(sign(backwards(1), KEY))


def test_a_batch_that_touched_no_shard_has_a_certificate() -> None:
    """Its people were all unknown."""
    document = CERTIFICATE.model_copy(update={"touched": ()})
    assert read_signed(sign(document, KEY), PUBLIC, name="b.json") == document


def test_more_unknown_people_than_people_are_refused() -> None:
    assert "more are unknown than there are" in problem(signed_anew(changed(DATA, "subjects.num_unknown", 9)))


@pytest.mark.parametrize("index", range(len(TAGS)))
def test_every_receipt_leads_to_the_certificates_root_and_names_nobody_else(index: int) -> None:
    data = sign(make_receipt(index), KEY)
    receipt = read_signed(data, PUBLIC, name="r.json")
    assert isinstance(receipt, Receipt)
    assert receipt.subjects_root == CERTIFICATE.subjects.root
    assert [tag for tag in TAGS if tag.encode() in data] == [TAGS[index]]


def test_a_receipt_for_somebody_else_is_refused() -> None:
    for path, value in (("tag", TAGS[1]), ("outcome", "unknown"), ("index", 1), ("num_subjects", 9)):
        message = problem(signed_anew(changed(RECEIPT_DATA, path, value)))
        assert "the receipt: its Merkle path does not lead to the root" in message


def test_leaves_tell_everything_apart() -> None:
    one, *others = state_of("after")[0]
    stages = [one, *others]
    leaves = [
        shard_leaf(0, stages),
        shard_leaf(1, stages),
        shard_leaf(0, stages[:1]),
        shard_leaf(0, stages[::-1]),
        shard_leaf(0, [one.model_copy(update={"file_digest": "g"}), *others]),
        shard_leaf(0, []),
        subject_leaf("t", "forgotten"),
        subject_leaf("t", "unknown"),
        subject_leaf("u", "forgotten"),
    ]
    assert len(set(leaves)) == len(leaves)


@pytest.mark.parametrize("document", [CERTIFICATE, make_receipt(0)], ids=lambda d: d.kind)
def test_documents_are_frozen_and_convert_nothing(document: Certificate | Receipt) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        document.batch = "other"
    with pytest.raises(ValidationError, match="valid string"):
        type(document).model_validate({**document.model_dump(), "batch": 7})


def test_the_plain_words_say_what_must_be_said() -> None:
    limits = " ".join(certificate.DOES_NOT_PROVE)
    for word in (
        "source tables",
        "backups",
        "replicated",
        "exported",
        "predictions",
        "two generations",
        "platform",
    ):
        assert word in limits
    assert CERTIFICATE.proves == certificate.PROVES
    assert max(len(text) for text in (*certificate.PROVES, *certificate.DOES_NOT_PROVE)) < 200


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a":1,"\\u0062":2}', "from byte 8 on, around b:"),
        (b'{"a":1, "b":2}', "from byte 7 on, around b:"),
        (b'{"a":1 ,"b":2}', "from byte 6 on, around a:"),
        (b'{"\\u0061":{"b":{"c":1}}}', "from byte 2 on, around a:"),
        (b'{"a":[0,{"b":1 }]}', "from byte 14 on, around a.1.b:"),
        (b"[1, 2]", "from byte 3 on, around 1:"),
        (b'"text" ', "from byte 6 on:"),
    ],
    ids=repr,
)
def test_the_member_around_a_byte_is_named(data: bytes, says: str) -> None:
    with pytest.raises(CertificateInvalid, match=re.escape(says)):
        members_of(data, name="x")
