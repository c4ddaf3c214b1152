"""Kills the operator around each of its writes. After a restart, the end state is always the same.

Nothing exists twice, nothing is left over, and no pool is removed before its successor serves.
`make test` draws four histories of changes, `make nightly` two hundred.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from fairlead_testing.kube.operator_harness import OperatorHarness, model_manifest

SEEDS = range(200 if settings().max_examples > 1_000 else 4)


class Killed(BaseException):
    """Raised in place of SIGKILL; nothing in the process handles it."""


def scripted_steps(harness: OperatorHarness, rng: random.Random) -> list[Callable[[], None]]:
    """Returns random changes of a model in a random order."""

    def pools(*names: str) -> list[dict[str, Any]]:
        return [{"name": name, "acceleratorClassName": "cpu", "minReplicas": rng.randint(0, 3)} for name in names]

    def change(**spec: Any) -> Callable[[], None]:
        return lambda: harness.kube.put(model_manifest(**spec), "kubectl")

    def lose() -> None:
        for name in harness.names("Service")[:1]:
            harness.kube.remove("Service", "chat", name)

    steps = [
        change(engine={"type": "Sim", "args": [f"--seed={rng.randint(0, 9)}"]}),
        change(pools=pools("main", "other")),
        change(pools=pools("other")),
        change(rollout={"paused": True}, engine={"type": "Sim", "args": ["--held"]}),
        lose,
    ]
    rng.shuffle(steps)
    return [lambda: harness.kube.put(model_manifest(pools=pools("main")), "kubectl"), *steps[: rng.randint(2, 5)]]


def reconcile_through_crash(harness: OperatorHarness, kill_at: int | None, *, after: bool) -> int:
    """Runs until idle with a crash before or after write `kill_at`. Returns the number of writes."""
    count = 0

    def count_write(_: str) -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            raise Killed

    harness.kube.after_write = count_write if after else lambda _: None
    harness.kube.before_write = (lambda _: None) if after else count_write
    try:
        harness.run_until_idle()
    except Killed:
        harness.restart()
        harness.run_until_idle()
    finally:
        harness.kube.before_write = harness.kube.after_write = lambda _: None
    return count


def state(harness: OperatorHarness) -> Any:
    """Returns our objects without the fields that differ between two runs."""

    def plain(manifest: Any) -> Any:
        metadata = {
            name: manifest["metadata"][name]
            for name in ("name", "labels", "annotations")
            if name in manifest["metadata"]
        }
        body = {name: manifest[name] for name in ("spec", "data", "revision") if name in manifest}
        return manifest["kind"], metadata, body

    children = [
        plain(manifest)
        for kind in ("Deployment", "Service", "ControllerRevision")
        for manifest in harness.kube.objects_of(kind)
    ]
    return children, harness.conditions(), harness.status().get("ready")


def run_steps(seed: int, stage: int, kill_at: int | None, after: bool) -> tuple[Any, int]:
    """Runs the steps of a seed with a crash in one stage. Returns the end state and its writes."""
    harness = OperatorHarness()
    writes = 0
    for index, step in enumerate(scripted_steps(harness, random.Random(seed))):
        step()
        if index == stage:
            writes = reconcile_through_crash(harness, kill_at, after=after)
        else:
            harness.run_until_idle()
        harness.kube.collect_garbage()
    harness.run_until_idle()
    return state(harness), writes


@pytest.mark.property
@pytest.mark.parametrize("seed", SEEDS)
def test_crash_around_every_write_reaches_the_same_end(
    seed: int, record_property: Callable[[str, object], None]
) -> None:
    kills = 0
    for stage in range(6):
        expected, writes = run_steps(seed, stage, None, False)
        for kill_at in range(1, writes + 1):
            actual, _ = run_steps(seed, stage, kill_at, False)
            assert actual == expected, f"killed before write {kill_at} of stage {stage}"
        if writes:  # only the last write has no next one
            actual, _ = run_steps(seed, stage, writes, True)
            assert actual == expected, f"killed after the last write of stage {stage}"
        kills += writes + bool(writes)
    record_property("kills", kills)
    assert kills >= 6  # some seeds write little in some stages
