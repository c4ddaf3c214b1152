"""The processes of a cluster are ended, and no others."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.run_record import ClusterError, RunRecord, start_time

SLEEP = "import time; print('here', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


@pytest.fixture
def record(tmp_path: Path) -> Iterator[RunRecord]:
    run_record = RunRecord(tmp_path)
    yield run_record
    for pid, moment in run_record.get("processes", {}).values():
        if moment is not None and start_time(pid) == moment:
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass


def python(record: RunRecord, name: str, code: str) -> int:
    record.start(name, [sys.executable, "-c", code])
    record.wait("its first line", 60.0, lambda: "here" in record.log(name).read_text())
    return record.pids()[name]


def test_a_process_runs_in_a_session_of_its_own_until_it_is_stopped(record: RunRecord) -> None:
    pid = python(record, "one", SLEEP)
    assert os.getsid(pid) == pid
    RunRecord(record.run).stop("one")
    assert record.pids() == {}


def test_a_process_that_is_forgotten_is_no_longer_missing(record: RunRecord) -> None:
    for name in ("one", "two"):
        python(record, name, SLEEP)
    record.stop("two")
    record.forget("two", "never")
    assert list(RunRecord(record.run).get("processes")) == ["one"]
    record.wait("nothing", 60.0, lambda: True)


def test_a_process_holds_no_lock_of_whoever_started_it(record: RunRecord, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)  # as a shell's `exec 9>lock` does
        pid = python(record, "one", SLEEP)
        held = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    assert str(tmp_path / "lock") not in held


def test_a_process_that_will_not_stop_is_killed(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2e.cluster.run_record.STOP_SECONDS", 0.05)
    python(record, "stubborn", STUBBORN)
    record.stop("stubborn")
    assert record.pids() == {}


def test_a_process_that_got_the_id_of_another_is_left_alone(record: RunRecord) -> None:
    pid = python(record, "one", SLEEP)
    moment = start_time(pid)
    assert moment is not None
    record.update(processes={"one": [pid, moment - 1]})
    record.stop("one")
    assert start_time(pid) == moment
    record.update(processes={"one": [pid, moment]})


def test_waiting_ends_at_once_when_a_process_has_died_and_says_what_it_said(record: RunRecord) -> None:
    record.start("short", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    with pytest.raises(ClusterError, match="short died:\nno such thing"):
        record.wait("the impossible", 60.0, lambda: False)


def test_what_is_written_down_outlives_who_wrote_it(tmp_path: Path) -> None:
    assert not RunRecord(tmp_path)
    RunRecord(tmp_path).update(level="api")
    again = RunRecord(tmp_path)
    assert again
    assert again.get("level") == "api"
    again.remove()
    assert not RunRecord(tmp_path)
