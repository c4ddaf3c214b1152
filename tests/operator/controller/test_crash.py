"""The operator is killed around every single write it makes, and starts again: the end is always the same.

Nothing is twice there, nothing is left over, and no pool that served was taken away before its heir served.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest

SEEDS = range(20)


class Killed(BaseException):
    """SIGKILL: nothing in the process sees it coming."""


def scripted_steps(lab: Any, model: Any, draw: random.Random) -> list[Callable[[], None]]:
    """What people do to a model, in an order and with values that are drawn."""

    def pools(*names: str) -> list[dict[str, Any]]:
        return [{"name": name, "accelerator": "cpu", "replicas": {"min": draw.randint(0, 3)}} for name in names]

    def change(**spec: Any) -> Callable[[], None]:
        return lambda: lab.kube.put(model(**spec), "kubectl")

    def lose() -> None:
        for one in lab.kube.objects_of("Service")[:1]:
            lab.kube.remove("Service", "chat", one["metadata"]["name"])

    steps = [
        change(engine={"kind": "sim", "args": [f"--seed={draw.randint(0, 9)}"]}),
        change(pools=pools("main", "other")),
        change(pools=pools("other")),
        change(rollout={"paused": True}, engine={"kind": "sim", "args": ["--held"]}),
        lose,
    ]
    draw.shuffle(steps)
    return [lambda: lab.kube.put(model(pools=pools("main")), "kubectl"), *steps[: draw.randint(2, 5)]]


def reconcile_through_crash(lab: Any, kill_at: int | None, *, after: bool) -> int:
    """Work until there is rest; the ``kill_at``-th write is not made (or is, and nothing after it). How many writes there were."""
    count = 0

    def counted(_: str) -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            raise Killed

    lab.kube.after_write = counted if after else lambda _: None
    lab.kube.before_write = (lambda _: None) if after else counted
    try:
        lab.run_until_idle()
    except Killed:
        lab.restart()
        lab.run_until_idle()
    finally:
        lab.kube.before_write = lab.kube.after_write = lambda _: None
    return count


def state(lab: Any) -> Any:
    """Everything in the cluster that is ours, without what differs between two runs by nature."""

    def plain(one: Any) -> Any:
        metadata = {
            name: one["metadata"][name] for name in ("name", "labels", "annotations") if name in one["metadata"]
        }
        body = {name: one[name] for name in ("spec", "data", "revision") if name in one}
        return one["kind"], metadata, body

    children = [
        plain(one) for kind in ("Deployment", "Service", "ControllerRevision") for one in lab.kube.objects_of(kind)
    ]
    return children, lab.conditions(), lab.status().get("ready")


def run_steps(labs: Any, model: Any, seed: int, stage: int, kill_at: int | None, after: bool) -> tuple[Any, int]:
    """The story of ``seed``, with the kill in its ``stage``; the state at the end, and the writes of that stage."""
    lab = labs()
    writes = 0
    for index, step in enumerate(scripted_steps(lab, model, random.Random(seed))):
        step()
        if index == stage:
            writes = reconcile_through_crash(lab, kill_at, after=after)
        else:
            lab.run_until_idle()
        lab.kube.collect_garbage()
    lab.run_until_idle()
    return state(lab), writes


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_around_every_write_it_comes_to_the_same_end(
    labs: Any, a_model: Any, seed: int, record_property: Callable[[str, object], None]
) -> None:
    kills = 0
    for stage in range(6):
        wanted, writes = run_steps(labs, a_model, seed, stage, None, False)
        for kill_at in range(1, writes + 1):
            found, _ = run_steps(labs, a_model, seed, stage, kill_at, False)
            assert found == wanted, f"killed before write {kill_at} of stage {stage}"
        if writes:  # after a write is before the next one, but for the last
            found, _ = run_steps(labs, a_model, seed, stage, writes, True)
            assert found == wanted, f"killed after the last write of stage {stage}"
        kills += writes + bool(writes)
    record_property("kills", kills)
    assert kills >= 6  # some seeds write little in some stages
