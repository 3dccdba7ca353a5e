"""Evidence of a real run: its certificates, receipts and log segments hold together, and nothing else passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.certificate import Certificate, Receipt, read_signed
from sisa_ray.core.chain import check_chain, check_receipt
from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import CertificateInvalid, DataError, IntegrityError
from sisa_ray.core.partition import Layout, place
from sisa_ray.execution import certify, commands, desk, evidence
from sisa_ray.execution.acceptance import Submission
from sisa_ray.execution.opening import existing_run
from sisa_ray.storage import layout, signing
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.log import CommitLog
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


@pytest.fixture
def config(tmp_path: Path) -> SisaConfig:
    config = make_config(tmp_path, make_table(60), sisa={"num_shards": 3, "num_slices": 2, "epochs": 2})
    commands.train(config, new_workers=InlineWorkers)
    return config


def unlearn(config: SisaConfig, *people: str) -> Any:
    return commands.unlearn(config, people, new_workers=InlineWorkers)


def read(data: bytes) -> Any:
    return read_signed(data, signing.load_public(signing.key_file().with_suffix(".pub")), name="file")


def certificate(config: SisaConfig, batch: str | None = None) -> Certificate:
    found = read(evidence.certificate_file(config, batch))
    assert isinstance(found, Certificate)
    return found


def living_in(config: SisaConfig, shard: int) -> list[str]:
    sisa = config.sisa
    people = [f"p{i}" for i in range(60)]
    shards, _ = place(people, Layout(num_shards=sisa.num_shards, num_slices=sisa.num_slices, seed=sisa.seed))
    return [p for p, k in zip(people, shards.tolist(), strict=True) if k == shard]


def batches(config: SisaConfig) -> list[str]:
    return list(existing_run(config).state.closed_batches)


class TestCertificates:
    def test_of_a_batch_hold_together(self, config: SisaConfig) -> None:
        result = unlearn(config, *living_in(config, 1)[:2], "nobody")
        run = existing_run(config)
        shown = certificate(config)
        assert (shown.run.spec_digest, shown.run.secret_id) == (run.spec.digest, run.spec.secret_id)
        assert (shown.subjects.num, shown.subjects.num_unknown) == (3, 1)
        assert [t.shard for t in shown.touched] == [1] == list(result.shards_rebuilt)
        assert [r.request for r in shown.requests] == [result.request]
        assert shown.work.stages_rebuilt == result.stages_rebuilt > 0
        assert shown.purged.objects == result.objects_purged > 0
        assert shown.purged.verified_at is not None
        assert shown.generation == 2
        built = {(ref.stage, ref.key, ref.file_digest) for ref in run.state.stages.values() if ref.shard == 1}
        assert {(s.stage, s.key, s.file_digest) for s in shown.touched[0].after.stages} == built
        assert shown.touched[0].before.stages != shown.touched[0].after.stages
        segment = evidence.segment(config)
        assert check_chain(shown, segment, name="file") == len(segment) == run.head.seq + 1
        assert (
            check_chain(shown, evidence.segment(config, first=shown.log.seq, last=shown.log.seq), name="f")
            == 1
        )

    def test_name_nobody(self, config: SisaConfig) -> None:
        unlearn(config, "p1", "p2")
        run = existing_run(config)
        data = evidence.certificate_file(config)
        words = ["p1", "p2", *run.secret.tags(["p1", "p2"])]
        assert not [word for word in words if f'"{word}"'.encode() in data]

    def test_are_listed_and_found_by_the_beginning_of_their_name(self, config: SisaConfig) -> None:
        for person in ("p1", "p2"):
            unlearn(config, person)
        rows = evidence.certificates(config).rows
        names = batches(config)
        assert [row.batch for row in rows] == names[::-1]
        for row in rows:
            assert certificate(config, row.batch[:10]).batch == row.batch
        assert certificate(config).batch == names[-1]
        for wrong in ("zz", "", names[0] + "0"):
            with pytest.raises(DataError, match=r"certificate list RUN"):
                evidence.certificate_file(config, wrong)

    def test_there_is_none_before_the_first_batch(self, config: SisaConfig) -> None:
        assert evidence.certificates(config).rows == ()
        with pytest.raises(DataError, match="no batch is certified yet"):
            evidence.certificate_file(config)

    @pytest.mark.parametrize("change", ["count", "space", "gone", "of another batch"])
    def test_a_file_that_was_changed_in_the_run_is_refused(self, config: SisaConfig, change: str) -> None:
        unlearn(config, "p1")
        unlearn(config, "p2")
        first, last = (Path(config.address) / layout.certificate_path(batch) for batch in batches(config))
        if change == "count":
            last.write_bytes(last.read_bytes().replace(b'"num":1', b'"num":2'))
        elif change == "space":
            last.write_bytes(last.read_bytes() + b" ")
        elif change == "gone":
            last.unlink()
        else:
            last.write_bytes(first.read_bytes())
        with pytest.raises(DataError, match=f"{layout.certificate_path(batches(config)[-1])}: is "):
            evidence.certificate_file(config)
        assert certificate(config, batches(config)[0]).batch == batches(config)[0]


class TestReceipts:
    def test_verify_against_their_certificate_alone(self, config: SisaConfig) -> None:
        people = ["p1", "p2", "nobody", "p3", "p4"]
        unlearn(config, *people)
        data = evidence.certificate_file(config)
        shown = certificate(config)
        tags = existing_run(config).secret.tags(people)
        files = evidence.receipt_files(config, people)
        for tag, file in zip(tags, files, strict=True):
            receipt = read(file)
            assert isinstance(receipt, Receipt)
            assert (receipt.tag, receipt.batch) == (tag, shown.batch)
            check_receipt(receipt, shown, data, name="receipt")
            assert not [other for other in tags if other != tag and other.encode() in file]
        assert [read(f).outcome for f in files] == [
            "forgotten",
            "forgotten",
            "unknown",
            "forgotten",
            "forgotten",
        ]

    def test_fit_no_other_certificate(self, config: SisaConfig) -> None:
        unlearn(config, "p1")
        unlearn(config, "p2")
        (file,) = evidence.receipt_files(config, ["p1"])
        receipt = read(file)
        assert receipt.batch == batches(config)[0]
        with pytest.raises(CertificateInvalid):
            check_receipt(receipt, certificate(config), evidence.certificate_file(config), name="receipt")
        with pytest.raises(CertificateInvalid):
            read(file.replace(b'"forgotten"', b'"unknown"'))

    def test_are_of_the_last_batch_that_named_them(self, config: SisaConfig) -> None:
        unlearn(config, "p1")
        desk.request(config, [Submission(subjects=("p1",))])
        unlearn(config, "p2")
        (file,) = evidence.receipt_files(config, ["p1"])
        assert (read(file).batch, read(file).outcome) == (batches(config)[1], "forgotten")

    def test_there_is_none_for_others(self, config: SisaConfig) -> None:
        unlearn(config, "p1")
        with pytest.raises(DataError, match="row 2: no certified batch of this run names them"):
            evidence.receipt_files(config, ["p1", "p1", "p9"])


class TestLog:
    def test_history_and_segments_are_the_same_entries(self, config: SisaConfig) -> None:
        unlearn(config, "p1")
        run = existing_run(config)
        history = list(evidence.history(config))
        entries = CommitLog(run.store).read()
        assert [(line.seq, line.type) for line in history] == [
            (e.head.seq, r.type) for e in entries for r in e.records
        ]
        assert [line.seq for line in evidence.history(config, first=3, last=4)] == [
            line.seq for line in history if 3 <= line.seq <= 4
        ]
        assert [json.loads(data)["seq"] for data in evidence.segment(config, first=3, last=99)] == list(
            range(3, run.head.seq + 1)
        )
        for wrong in ({"first": run.head.seq + 1}, {"first": -1}, {"first": 4, "last": 3}):
            with pytest.raises(DataError, match=f"the log has the entries 0 to {run.head.seq}"):
                evidence.segment(config, **wrong)

    @pytest.mark.parametrize("seq", [2, -1])
    def test_a_segment_that_was_changed_does_not_pass(self, config: SisaConfig, seq: int) -> None:
        unlearn(config, "p1")
        segment = evidence.segment(config)[: certificate(config).log.seq + 1]
        segment[seq] = segment[seq].replace(b'"at":"2', b'"at":"1')
        with pytest.raises(CertificateInvalid):
            check_chain(certificate(config), segment, name="file")


class TestReplaying:
    def test_a_certified_state_is_trained_again_and_found_the_same(self, config: SisaConfig) -> None:
        unlearn(config, living_in(config, 1)[0])
        shown = evidence.replay_certificate(config, certificate(config), new_workers=InlineWorkers)
        assert shown.outcome == "bit-identical"
        assert [(s.shard, s.is_superseded) for s in shown.shards] == [(1, False)]

    def test_a_later_batch_supersedes_a_shard_and_is_named(self, config: SisaConfig) -> None:
        zero, one = living_in(config, 0), living_in(config, 1)
        unlearn(config, zero[0], one[0])
        unlearn(config, living_in(config, 2)[0])
        unlearn(config, one[1])
        unlearn(config, one[2])
        first, _, third, _ = batches(config)
        shown = evidence.replay_certificate(config, certificate(config, first), new_workers=InlineWorkers)
        assert [(s.shard, s.is_superseded, s.superseded_by) for s in shown.shards] == [
            (0, False, None),
            (1, True, third),
        ]
        assert shown.outcome == "bit-identical"
        shown = evidence.replay_certificate(config, certificate(config, third), new_workers=InlineWorkers)
        assert (shown.outcome, shown.shards[0].superseded_by) == ("superseded", batches(config)[-1])

    def test_a_certificate_of_another_run_is_refused(self, config: SisaConfig, tmp_path: Path) -> None:
        unlearn(config, "p1")
        other = make_config(tmp_path / "other", make_table(30), sisa={"num_shards": 2, "num_slices": 2})
        commands.ingest(other, new_workers=InlineWorkers)
        with pytest.raises(DataError, match="is not the run that the certificate is about"):
            evidence.replay_certificate(other, certificate(config), new_workers=InlineWorkers)


class Crash(BaseException):
    """The process dies: nothing catches it."""


class TestCrashes:
    def test_between_signing_and_logging_ends_with_the_same_certificate(
        self, config: SisaConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create = LocalStore.create

        def crash(self: LocalStore, path: str, data: bytes) -> None:
            create(self, path, data)
            if path.startswith(layout.CERTIFICATES):
                raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "create", crash)
            with pytest.raises(Crash):
                unlearn(config, "p1")
        run = existing_run(config)
        (batch,) = run.state.uncertified
        (asked,) = run.state.closed_requests.values()
        assert run.state.request_state(asked) == "purging"
        before = run.store.get(layout.certificate_path(batch))
        assert evidence.certificates(config).rows == ()
        unlearn(config, "p2")
        assert evidence.certificate_file(config, batch) == before
        assert check_chain(certificate(config, batch), evidence.segment(config), name="file")
        assert existing_run(config).state.uncertified == []

    def test_what_lies_in_a_certificates_place_is_not_taken_for_it(
        self, config: SisaConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Even where it is signed with the right key."""
        unlearn(config, "p1")
        other = evidence.certificate_file(config)

        def place_first(run: Any, batch: str) -> Any:
            run.store.create(layout.certificate_path(batch), other)
            return certify.certify(run, batch)

        monkeypatch.setattr("sisa_ray.execution.session.certify", place_first)
        with pytest.raises(IntegrityError, match="is not the certificate of this batch; move it away"):
            unlearn(config, "p2")
        monkeypatch.undo()
        (batch,) = existing_run(config).state.uncertified
        (Path(config.address) / layout.certificate_path(batch)).unlink()
        commands.train(config, new_workers=InlineWorkers)
        assert certificate(config).batch == batch
