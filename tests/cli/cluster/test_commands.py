"""The shells of the cluster commands: waiting, choosing stack or cluster, existing files."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead.runtime.clock import ManualClock
from fairlead_cli import target
from fairlead_cli.cluster.bundle import command as bundle_command
from fairlead_cli.cluster.checks import command
from fairlead_cli.cluster.checks.catalogue import CHECKS
from fairlead_cli.cluster.checks.check import CheckOutcome, CheckResult, Verdict
from fairlead_cli.exit_codes import ClusterUnreachable
from fairlead_cli.local.run_directory import RunningStack
from fairlead_cli.target import ClusterOptions, is_cluster_target

BAD, GOOD = ((CheckResult(CHECKS[0], Verdict(mark)),) for mark in (CheckOutcome.FAILED, CheckOutcome.OK))
Looks = list[tuple[CheckResult, ...] | ClusterUnreachable]


def results_until_passed(looks: Looks, limit: float | None) -> tuple[tuple[CheckResult, ...], list[float]]:
    """Returns the last results, and the pauses before them."""
    clock, pauses, left = ManualClock(), list[float](), iter(looks)

    async def next_results() -> tuple[CheckResult, ...]:
        results = next(left)
        if isinstance(results, ClusterUnreachable):
            raise results
        return results

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        clock.advance(seconds)

    return asyncio.run(command._check_until_passed(next_results, limit, clock, pause)), pauses


def test_check_runs_once_without_wait() -> None:
    assert results_until_passed([BAD], None) == (BAD, [])
    with pytest.raises(ClusterUnreachable):
        results_until_passed([ClusterUnreachable("away")], None)


def test_wait_ends_when_checks_pass_or_time_is_over() -> None:
    assert results_until_passed([BAD, ClusterUnreachable("away"), GOOD], 60.0) == (GOOD, [2.0, 2.0])
    assert results_until_passed([BAD, BAD, BAD, BAD], 5.0) == (BAD, [2.0, 2.0, 1.0])
    with pytest.raises(ClusterUnreachable):
        results_until_passed([BAD, ClusterUnreachable("away"), ClusterUnreachable("away")], 3.0)


def test_invalid_wait_is_refused() -> None:
    with pytest.raises(BadInput) as refused:
        command.check(wait="soon")
    assert refused.value.field == "--wait"


# --- stack or cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Neither a stack nor a kubeconfig is there."""
    monkeypatch.setattr(target, "running_stacks", list)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["/usr/bin/fairlead"])
    return monkeypatch


def test_options_select_cluster_or_stack(alone: pytest.MonkeyPatch) -> None:
    assert is_cluster_target(ClusterOptions(namespace="chat"), None)
    assert not is_cluster_target(ClusterOptions(), "127.0.0.1:8001")
    assert not is_cluster_target(ClusterOptions(namespace="chat"), "127.0.0.1:8001")  # that of the model
    with pytest.raises(BadInput, match="give one of the two"):
        is_cluster_target(ClusterOptions(context="prod"), "127.0.0.1:8001")


def test_default_target_is_running_stack_then_kubeconfig(alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not is_cluster_target(ClusterOptions(), None)
    alone.setenv("KUBECONFIG", str(tmp_path / "config"))
    assert is_cluster_target(ClusterOptions(), None)
    alone.setattr(target, "running_stacks", lambda: [RunningStack(1, "u", "m", 0.0)])
    assert not is_cluster_target(ClusterOptions(), None)
    alone.setattr("sys.argv", ["/usr/bin/kubectl-fairlead"])
    assert is_cluster_target(ClusterOptions(), None)


def test_default_target_in_a_pod_is_its_cluster(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert is_cluster_target(ClusterOptions(), None)


def test_bundle_never_overwrites_a_file(tmp_path: Path) -> None:
    there = tmp_path / "b.tar.gz"
    there.touch()
    with pytest.raises(BadInput, match="already exists"):
        bundle_command.support_bundle(out=there)
