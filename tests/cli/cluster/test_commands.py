"""The thin shell of the commands: looking again until all is well, whether a stack or a cluster is meant, files that are there."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import BadInput
from fairlead_cli import where
from fairlead_cli.cluster import bundling, checking
from fairlead_cli.cluster.catalogue import checks
from fairlead_cli.cluster.checking import Asked
from fairlead_cli.cluster.verdict import Mark, Result, Verdict
from fairlead_cli.cluster.way import Way
from fairlead_cli.errors import NoCluster
from fairlead_cli.local.rundir import Stack
from fairlead_cli.where import means_cluster

BAD, GOOD = ((Result(checks()[0], Verdict(mark)),) for mark in (Mark.FAILED, Mark.OK))
Looks = list[tuple[Result, ...] | NoCluster]


def looked(
    monkeypatch: pytest.MonkeyPatch, looks: Looks, limit: float | None
) -> tuple[tuple[Result, ...], list[float]]:
    """What is found in the end, and the pauses on the way."""
    clock, pauses, left = ManualClock(), list[float](), iter(looks)

    async def look(asked: Asked, _: object) -> tuple[Result, ...]:
        found = next(left)
        if isinstance(found, NoCluster):
            raise found
        return found

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr(checking, "looked", look)
    return asyncio.run(checking._until_well(Asked(Way()), limit, clock, pause)), pauses


def test_without_waiting_one_look_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(monkeypatch, [BAD], None) == (BAD, [])
    with pytest.raises(NoCluster):
        looked(monkeypatch, [NoCluster("away")], None)


def test_waiting_ends_when_all_is_well_and_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(monkeypatch, [BAD, NoCluster("away"), GOOD], 60.0) == (GOOD, [2.0, 2.0])
    assert looked(monkeypatch, [BAD, BAD, BAD, BAD], 5.0) == (BAD, [2.0, 2.0, 1.0])
    with pytest.raises(NoCluster):
        looked(monkeypatch, [BAD, NoCluster("away"), NoCluster("away")], 3.0)


def test_a_wait_that_is_no_duration_is_refused() -> None:
    with pytest.raises(BadInput) as refused:
        checking.run(Asked(Way(), wait="soon"))
    assert refused.value.field == "--wait"


# --- stack or cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Neither a stack nor a kubeconfig is there."""
    monkeypatch.setattr(where, "running_stacks", list)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["/usr/bin/fairlead"])
    return monkeypatch


def test_options_decide_which_is_meant(alone: pytest.MonkeyPatch) -> None:
    assert means_cluster(Way(namespace="chat"), None)
    assert not means_cluster(Way(), "127.0.0.1:8001")
    with pytest.raises(BadInput, match="give one of the two"):
        means_cluster(Way(context="prod"), "127.0.0.1:8001")


def test_without_options_what_is_there_decides(alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not means_cluster(Way(), None)
    alone.setenv("KUBECONFIG", str(tmp_path / "config"))
    assert means_cluster(Way(), None)
    alone.setattr(where, "running_stacks", lambda: [Stack(1, "u", "m", 0.0)])
    assert not means_cluster(Way(), None)
    alone.setattr("sys.argv", ["/usr/bin/kubectl-fairlead"])
    assert means_cluster(Way(), None)


def test_in_a_pod_its_cluster_is_meant(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert means_cluster(Way(), None)


def test_a_bundle_overwrites_nothing(tmp_path: Path) -> None:
    there = tmp_path / "b.tar.gz"
    there.touch()
    with pytest.raises(BadInput, match="is there already"):
        bundling.run(Way(), there)
