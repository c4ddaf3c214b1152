"""A cluster of which nothing runs any more does not stand in the way of the next."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import levels
from e2e.cluster.run_record import ClusterError, RunRecord
from fairlead_testing.kube import api_server


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    if api_server.binaries_folder() is None:
        pytest.skip(api_server.NO_CLUSTER_PROGRAMS)
    yield tmp_path / "run"
    levels.down(tmp_path / "run")


def kill(run: Path, *names: str) -> None:
    record = RunRecord(run)
    for name in names:
        pid = record.pids()[name]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.nightly
def test_remains_of_an_ended_cluster_are_removed_and_half_a_cluster_stays(run: Path) -> None:
    levels.up("api", run)
    first = RunRecord(run).pids()
    kill(run, "apiserver")
    with pytest.raises(ClusterError, match=r"half a cluster.*apiserver ended.*take it down first"):
        levels.up("api", run)
    assert RunRecord(run).pids() == {"etcd": first["etcd"]}
    kill(run, "etcd")
    (run / "left").write_text("by the one that ended")
    levels.up("api", run)
    assert set(RunRecord(run).pids()) == set(first)
    assert not (run / "left").exists()
