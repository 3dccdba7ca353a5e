"""The mirror of the suppression list: what it was told, it knows, whatever crashed, and whatever run is restored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import CommitFailed, ConfigError, RunBehind
from sisa_ray.core.records import AttemptOpened, PurgePlanned, RequestRejected, SuppressionLifted
from sisa_ray.storage import keyring
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.mirror import append_to_mirror, check_mirror, mirror_suppression, missing_tags
from sisa_ray.storage.run import Run
from tests.core.builders import accepted
from tests.storage.runs import again, new_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of which three people are suppressed."""
    run = new_run(LocalStore(str(tmp_path / "run"), patience_s=0.1))
    run.commit(accepted("r1", "ada", "eve"), accepted("r2", "joe"))
    return run


def file_of(run: Run) -> Path:
    return keyring.directory() / f"{run.secret.secret_id}.suppressed"


def lines(run: Run) -> list[str]:
    return file_of(run).read_text().splitlines()


def add(run: Run, *tags: str) -> None:
    append_to_mirror(run, added=list(tags), lifted=[])


class TestKeeping:
    def test_brings_the_mirror_up_to_the_run_and_then_writes_nothing(self, run: Run) -> None:
        for _ in range(2):
            mirror_suppression(run)
            assert lines(run) == ['{"added":["ada","eve","joe"],"lifted":[]}']
        run.commit(accepted("r3", "kim"))
        mirror_suppression(run)
        assert lines(run)[1:] == ['{"added":["kim"],"lifted":[]}']

    def test_lifts_whom_the_run_suppresses_no_longer(self, run: Run) -> None:
        mirror_suppression(run)
        lifted = SuppressionLifted(tags=("ada",), reason="consent-renewed", key_id="k", signature="00")
        run.commit(lifted, RequestRejected(request="r2", reason="withdrawn"))
        mirror_suppression(run)
        assert lines(run)[1:] == ['{"added":[],"lifted":["ada","joe"]}']
        assert missing_tags(run) == []
        run.commit(accepted("r9", "ada"))
        mirror_suppression(run)
        assert lines(run)[2:] == ['{"added":["ada"],"lifted":[]}']

    def test_lifts_nobody_whom_another_process_has_just_accepted(self, run: Run) -> None:
        """It commits before it mirrors: who is in the mirror is in the log, though this one has not read it yet."""
        mirror_suppression(run)
        other = again(run)
        other.commit(accepted("r3", "kim"))
        add(other, "kim")
        mirror_suppression(run)
        assert len(lines(run)) == 2
        assert "kim" in run.state.suppressed

    def test_is_for_its_owner_alone(self, run: Run) -> None:
        mirror_suppression(run)
        assert file_of(run).stat().st_mode & 0o777 == 0o600

    def test_runs_with_other_secrets_have_other_mirrors(self, run: Run, tmp_path: Path) -> None:
        other = new_run(LocalStore(str(tmp_path / "other")))
        mirror_suppression(run)
        assert missing_tags(other) == []
        assert file_of(run) != file_of(other)

    def test_a_mirror_that_cannot_be_written_is_an_error(self, run: Run) -> None:
        file_of(run).mkdir()
        with pytest.raises(ConfigError, match=r"\.suppressed"):
            mirror_suppression(run)
        with pytest.raises(ConfigError, match=r"cannot be written to .*\.suppressed"):
            add(run, "ada")


class TestCrashes:
    WHOLE = '{"added":["ada","eve"],"lifted":[]}\n'

    @given(st.integers(0, len(WHOLE) - 1))
    def test_a_line_that_was_cut_short_says_nothing_and_goes_with_the_next(self, cut: int) -> None:
        """At any byte, the line end included: it was never acknowledged."""
        with pytest.MonkeyPatch.context() as patch:
            directory = keyring.directory() / f"cut-{cut}"
            directory.mkdir(exist_ok=True)
            patch.setenv(keyring.VARIABLE, str(directory))
            root = directory.parent.parent / f"run-cut-{cut}"
            try:
                run = new_run(LocalStore(str(root)))
                add(run, "joe")
                with file_of(run).open("a") as file:
                    file.write(self.WHOLE[:cut])
                assert missing_tags(run) == ["joe"]
                add(run, "kim")
                assert lines(run) == ['{"added":["joe"],"lifted":[]}', '{"added":["kim"],"lifted":[]}']
                assert missing_tags(run) == ["joe", "kim"]
            finally:
                shutil.rmtree(directory)
                shutil.rmtree(root)

    def test_what_a_cut_line_should_have_said_is_said_again(self, run: Run) -> None:
        file_of(run).write_text(self.WHOLE.rstrip("\n"))
        mirror_suppression(run)
        assert lines(run) == ['{"added":["ada","eve","joe"],"lifted":[]}']

    @pytest.mark.parametrize(
        "line", ["{", "", "[]", '{"added":["kim"]}', '{"added":1,"lifted":[]}', "\x00\x00", "null"]
    )
    @pytest.mark.parametrize("where", [0, 1, 2])
    def test_a_broken_line_is_named(self, run: Run, line: str, where: int) -> None:
        good = ['{"added":["ada"],"lifted":[]}', '{"added":["eve"],"lifted":[]}']
        good.insert(where, line)
        file_of(run).write_text("\n".join(good) + "\n")
        with pytest.raises(ConfigError, match=rf"line {where + 1} is no part of a mirror; restore it"):
            check_mirror(run)

    def test_what_is_no_text_is_refused(self, run: Run) -> None:
        file_of(run).write_bytes(b"\xff\n")
        with pytest.raises(ConfigError, match="cannot be read"):
            missing_tags(run)


class TestRunsThatAreBehind:
    def test_a_run_that_knows_everybody_passes(self, run: Run) -> None:
        check_mirror(run)  # nothing is mirrored yet
        mirror_suppression(run)
        check_mirror(run)
        check_mirror(again(run))

    def test_a_restored_run_is_refused(self, run: Run, tmp_path: Path) -> None:
        backup = shutil.copytree(tmp_path / "run", tmp_path / "backup")
        run.commit(accepted("r3", "kim", "lee"))
        mirror_suppression(run)
        restored = again(run, LocalStore(str(backup)))
        assert missing_tags(restored) == ["kim", "lee"]
        with pytest.raises(
            RunBehind, match=r"from before 2 people asked .*`sisa-ray suppression replay /.*backup"
        ):
            check_mirror(restored)
        restored.commit(accepted("replayed", "kim", "lee", payload=""))
        check_mirror(restored)

    def test_who_was_lifted_since_is_not_missing(self, run: Run, tmp_path: Path) -> None:
        backup = shutil.copytree(tmp_path / "run", tmp_path / "backup")
        run.commit(accepted("r3", "kim"))
        mirror_suppression(run)
        run.commit(RequestRejected(request="r3", reason="withdrawn"))
        mirror_suppression(run)
        check_mirror(again(run, LocalStore(str(backup))))

    def test_a_run_that_another_process_adds_to_meanwhile_is_not_behind(self, run: Run) -> None:
        other = again(run)
        other.commit(accepted("r3", "kim"))
        add(other, "kim")
        assert "kim" not in run.state.suppressed
        check_mirror(run)
        assert "kim" in run.state.suppressed


@given(st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from("abcdef"), max_size=3)), max_size=8))
def test_the_mirror_is_the_sum_of_what_it_was_told(changes: list[tuple[bool, set[str]]]) -> None:
    root = keyring.directory().parent / "sum"
    shutil.rmtree(root, ignore_errors=True)
    run = new_run(LocalStore(str(root)))
    expected: set[str] = set()
    for is_added, tags in changes:
        expected = expected | tags if is_added else expected - tags
        append_to_mirror(run, added=sorted(tags) if is_added else [], lifted=[] if is_added else sorted(tags))
    assert missing_tags(run) == sorted(expected)


@pytest.mark.parametrize("act", [mirror_suppression, check_mirror])
def test_a_process_that_was_superseded_is_still_fenced(run: Run, act: Callable[[Run], None]) -> None:
    """Reading the log on the way must not make up for what another process has taken over."""
    run.commit(AttemptOpened(attempt="mine", command="train"))
    run.attempt = "mine"
    other = again(run)
    other.commit(AttemptOpened(attempt="theirs", command="train"), accepted("r9", "lee"))
    add(other, "lee")
    act(run)
    assert run.head == other.head
    before = other.head
    with pytest.raises(CommitFailed, match="another process has taken the run"):
        run.commit(PurgePlanned(attempt="mine", num_objects=0))
    other.refresh()
    assert other.head == before
