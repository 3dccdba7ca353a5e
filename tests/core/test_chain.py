"""Certificates held against the log: its chain holds, and what it says was built is what is certified."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.canonical import Strict
from sisa_ray.core.certificate import Certificate, sign
from sisa_ray.core.chain import check_chain, check_receipt
from sisa_ray.core.errors import CertificateInvalid
from sisa_ray.core.keys import canonical_json, file_digest
from sisa_ray.core.records import LOG_VERSION, AttemptOpened, Record
from tests.core.builders import digest_of
from tests.core.certificates import CLOSED, KEY, built, chained, log_records, make_certificate, make_receipt

RECORDS = log_records()
LOG = chained(RECORDS)
CERTIFICATE = make_certificate()


def problem(entries: list[bytes], certificate: Certificate = CERTIFICATE) -> str:
    with pytest.raises(CertificateInvalid) as caught:
        check_chain(certificate, entries, name="b.json")
    message = str(caught.value)
    assert message.startswith("b.json: ")
    return message


def logged(*, change: dict[int, list[Record]]) -> tuple[list[bytes], Certificate]:
    """A sound log with some entries' records exchanged, and a certificate that names its entry 3."""
    log = chained([change.get(seq, records) for seq, records in enumerate(RECORDS)])
    return log, make_certificate(log)


def edited(seq: int, /, **changes: Any) -> list[bytes]:
    log = list(LOG)
    log[seq] = canonical_json({**json.loads(log[seq]), **changes})
    return log


def test_the_whole_log_and_each_segment_with_the_closing_entry_fit() -> None:
    for first in range(4):
        for last in range(4, 6):
            assert check_chain(CERTIFICATE, LOG[first:last], name="b.json") == last - first


@pytest.mark.parametrize(
    ("segment", "held"),
    [([], "no entry"), (LOG[:3], "entries 0 to 2"), (LOG[4:], "entries 4 to 4")],
    ids=["empty", "before", "after"],
)
def test_a_segment_without_the_closing_entry_is_refused(segment: list[bytes], held: str) -> None:
    assert f"log entry 3, which closed the batch, is not in the part of the log given ({held})" in problem(
        segment
    )


@given(st.data())
def test_every_changed_byte_before_the_last_entry_is_found(data: st.DataObject) -> None:
    """Where the segment goes on after it, every entry is covered by a hash."""
    seq = data.draw(st.integers(0, 3))
    position = data.draw(st.integers(0, len(LOG[seq]) - 1))
    broken = bytearray(LOG[seq])
    broken[position] ^= data.draw(st.integers(1, 255))
    assert "log entry" in problem([*LOG[:seq], bytes(broken), *LOG[seq + 1 :]])


@pytest.mark.parametrize("seq", range(4))
def test_every_flipped_byte_of_the_closing_entry_is_found(seq: int) -> None:
    for position in range(0, len(LOG[3]), 3):
        broken = bytearray(LOG[3])
        broken[position] ^= 0x01 << seq
        problem([*LOG[:3], bytes(broken)])


def test_what_is_no_entry_is_named() -> None:
    for broken, says in (
        (LOG[2][:-1], "log entry 2: is not JSON"),
        (LOG[2] + b"\n", "log entry 2: is not in canonical form"),
        (b"{}", "log entry 2: the member version is missing"),
        (b"[]", "log entry 2: is no JSON object"),
        (edited(2, version=LOG_VERSION + 1, surprise=1)[2], "log entry 2: was written by a newer sisa_ray"),
        (edited(2, surprise=1)[2], "log entry 2: the member surprise is unknown"),
        (edited(2, records={})[2], "log entry 2: the member records is wrong"),
        (edited(2, seq="2")[2], "log entry 2: the member seq is wrong"),
    ):
        assert says in problem([*LOG[:2], broken, *LOG[3:]])
    assert "log entry (number 0 of those given): is not JSON" in problem([b"", *LOG[3:]])


def test_missing_exchanged_and_changed_entries_are_named() -> None:
    assert "log entry 1: is not there; entry 2 is in its place" in problem([LOG[0], *LOG[2:]])
    assert "log entry 1: is not there; entry 2 is in its place" in problem([LOG[0], LOG[2], LOG[1], *LOG[3:]])
    assert "log entry 2: is not there; entry 1 is in its place" in problem([*LOG[:2], *LOG[1:]])
    assert "log entry 2: does not follow the entry before it" in problem(edited(1, commit="another"))
    assert "log entry 2: does not follow the entry before it" in problem(edited(2, prev="0" * 64))
    assert "only entry 0 follows none" in problem(edited(0, prev="0" * 64))
    assert "only entry 0 follows none" in problem(edited(2, prev="")[2:])


def test_another_log_is_not_the_certificates() -> None:
    """Every hash in it fits, but its closing entry is another one."""
    other, _ = logged(change={0: [*RECORDS[0], AttemptOpened(attempt="a", command="train")]})
    assert "log entry 3 has the digest" in problem(other)


def test_the_entry_must_close_the_batch() -> None:
    others: list[list[Record]] = [[], [CLOSED.model_copy(update={"batch": "b2"})]]
    for records in others:
        assert "log entry 3 does not close batch b" in problem(*logged(change={3: records}))
    # Nor is it enough that another entry does.
    assert "log entry 3 does not close batch b" in problem(*logged(change={2: [*RECORDS[2], CLOSED], 3: []}))


def test_other_batches_may_be_closed_with_it() -> None:
    log, certificate = logged(
        change={3: [CLOSED.model_copy(update={"batch": "b0", "stages_rebuilt": 9}), CLOSED]}
    )
    assert check_chain(certificate, log, name="b.json") == 5


@pytest.mark.parametrize(
    "figure",
    ["stages_rebuilt", "record_visits", "full_retrain_record_visits", "objects_purged", "bytes_purged"],
)
def test_figures_are_those_of_the_log(figure: str) -> None:
    certified = getattr(CLOSED, figure)
    records: list[Record] = [CLOSED.model_copy(update={figure: certified + 1})]
    message = problem(*logged(change={3: records}))
    assert f"{figure} is certified as {certified}, but log entry 3 has {certified + 1}" in message


@pytest.mark.parametrize("what", ["key", "file_digest"])
def test_stages_are_those_that_were_built_last(what: str) -> None:
    message = problem(*logged(change={2: [*RECORDS[2], built(3, 3, "after", **{what: digest_of("other")})]}))
    assert "log entry 2 built stage 3 of shard 3" in message
    assert digest_of("other") in message


def test_what_was_built_before_the_rebuild_does_not_count() -> None:
    """Stages of entry 0 were built again in entries 1 and 2; alone, they contradict."""
    message = problem(*logged(change={1: RECORDS[1][1:]}))
    assert "log entry 0 built stage 2 of shard 1 with the key" in message


def test_stages_of_other_shards_are_not_compared() -> None:
    log, certificate = logged(change={2: [*RECORDS[2], built(0, 3, "after", key="of another batch")]})
    assert check_chain(certificate, log, name="b.json") == 5


def test_what_was_built_after_the_batch_was_closed_is_not_compared() -> None:
    log, certificate = logged(change={3: [CLOSED, built(1, 3, "after", key="of a later batch")]})
    assert check_chain(certificate, log, name="b.json") == 5


def test_a_stage_that_was_built_is_not_left_out() -> None:
    log, certificate = logged(change={2: [*RECORDS[2], built(3, 4, "after")]})
    assert "log entry 2 built stage 4 of shard 3, which the certificate leaves out" in problem(
        log, certificate
    )


def test_a_stage_that_a_rebuild_dropped_may_be_left_out() -> None:
    log, certificate = logged(change={0: [*RECORDS[0], built(3, 4, "before")]})
    assert check_chain(certificate, log, name="b.json") == 5


def test_records_that_this_version_does_not_know_do_not_disturb_unless_they_matter() -> None:
    class Later(Strict):
        type: str

    for kind, is_refused in (("of_a_later_version", False), ("stage_built", True)):
        strange: Any = Later(type=kind)
        log, certificate = logged(change={2: [*RECORDS[2], strange]})
        if is_refused:
            assert "log entry 2: its record 2 is no stage_built" in problem(log, certificate)
        else:
            assert check_chain(certificate, log, name="b.json") == 5


def test_a_receipt_belongs_to_one_certificate() -> None:
    data = sign(CERTIFICATE, KEY)
    receipt = make_receipt(0).model_copy(update={"certificate_digest": file_digest(data)})
    check_receipt(receipt, CERTIFICATE, data, name="r.json")
    other = sign(CERTIFICATE, Ed25519PrivateKey.generate())
    with pytest.raises(CertificateInvalid, match=r"r.json: certificate_digest: is not that of"):
        check_receipt(receipt, CERTIFICATE, other, name="r.json")
    for changes in ({"batch": "b2"}, {"subjects_root": "0" * 64}, {"num_subjects": 8}):
        with pytest.raises(CertificateInvalid, match=r"^r.json: "):
            check_receipt(receipt.model_copy(update=changes), CERTIFICATE, data, name="r.json")
