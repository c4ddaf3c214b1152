"""Rollouts of groups of nodes never have fewer ready groups than desired, step by step.

`Controllers` acts like LeaderWorkerSet 0.8.0 and the StatefulSet below it:
`rollingUpdateParameters` line by line. A draining group counts as ready there, too.
"""

import random
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.api.spec.rollout import Rollout
from fairlead.kube.resources import Manifest
from fairlead_operator.controller.group_rollout import SurgeStep, apply_rollout, surge_step, surplus_groups, with_surge
from fairlead_operator.render import render_model
from fairlead_testing.kube.lws_controllers import LwsControllers
from fairlead_testing.kube.render_cases import default_context, read_case

GOLDEN = Path(__file__).parent / "groups.golden.txt"
CASES = Path(__file__).parents[1] / "render" / "cases"
SIZE = 2
ALL_GROUPS = 4096


def wanted(asked: int, revision: str, rollout: Rollout) -> Manifest:
    """As it is rendered."""
    rolling = {"maxSurge": rollout.max_surge, "maxUnavailable": 0, "partition": ALL_GROUPS if rollout.paused else 0}
    return {
        "kind": "LeaderWorkerSet",
        "metadata": {
            "name": "m-main",
            "labels": {"fairlead.io/pool": "main"},
            "annotations": {"fairlead.io/revision": revision},
        },
        "spec": {
            "replicas": asked,
            "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": rolling},
            "leaderWorkerTemplate": {"size": SIZE},
        },
    }


class RolloutScenario:
    """A pool, and what people ask of it. ``broken`` are revisions of which no group gets ready."""

    def __init__(self, asked: int, surge: int = 1, broken: Collection[str] = ()) -> None:
        self.asked, self.revision, self.rollout = asked, "a", Rollout(max_surge=surge)
        self.broken: set[str] = set(broken)
        self.cluster = LwsControllers(wanted(asked, "a", self.rollout))
        self.least, self.nodes_for = asked, 100
        self.lines: list[str] = []
        if broken:
            self.cluster.step()
        else:
            self.settle()

    def operator(self) -> SurgeStep:
        """One look of the operator."""
        now = wanted(self.asked, self.revision, self.rollout)
        decided = surge_step(now, self.cluster.live, self.cluster.pods, self.rollout)
        self.cluster.live = with_surge(now, decided)
        return decided

    def drained(self, place: int) -> None:
        """A group that was on its way out is gone."""
        if self.cluster.groups[place].leaving:
            del self.cluster.groups[place]

    def started(self, place: int) -> None:
        """A group is ready, unless its revision never is, or earlier ones have all nodes."""
        group, groups = self.cluster.groups[place], list(self.cluster.groups.values())
        has_nodes = any(group is one for one in groups[: self.nodes_for])
        group.ready |= not group.leaving and has_nodes and group.revision not in self.broken

    def check_serving(self) -> None:
        """Checks what holds at any time: enough groups serve."""
        assert self.cluster.serving_count >= self.least, (self.cluster, self.lines)

    def settle(self, chance: random.Random | None = None, turns: int = 200, most_groups: int = 100) -> None:
        """Lets all controllers act, one at a time, in turn or in random order."""
        self.nodes_for = most_groups
        first = not self.cluster.groups
        for _ in range(turns):
            if chance is None and not first and self.settled:
                return
            moves: list[Callable[[], object]] = [self.operator, self.cluster.step]
            moves += [lambda place=place: self.drained(place) for place in self.cluster.groups]  # type: ignore[misc]
            moves += [lambda place=place: self.started(place) for place in self.cluster.groups]  # type: ignore[misc]
            for move in moves if chance is None else chance.choices(moves, k=3):
                try:
                    move()
                except KeyError:
                    continue  # that group is gone by now
                if not first:
                    self.check_serving()
                self._write()
        assert chance is not None or self.settled

    @property
    def settled(self) -> bool:
        """True if the desired groups are ready and no surge group is left."""
        groups, live = self.cluster.groups, self.cluster.live
        whole = all(group.ready and not group.leaving and group.revision == self.revision for group in groups.values())
        number = live["spec"]["replicas"]
        return whole and len(groups) == number == self.asked and not surplus_groups(live)

    def _write(self) -> None:
        spec = self.cluster.live["spec"]
        rolling = spec["rolloutStrategy"]["rollingUpdateConfiguration"]
        short = {False: "starting", True: "ready"}
        groups = [
            f"{group.revision} {'draining' if group.leaving else short[group.ready]}"
            for _, group in sorted(self.cluster.groups.items())
        ]
        asks = f"{spec['replicas']} by {rolling['maxSurge']}/{rolling['maxUnavailable']}"
        mark = self.cluster.live["metadata"]["annotations"].get("fairlead.io/surge", "-")
        line = f"{asks}{' held' if rolling['partition'] else ''}, mark {mark}: {', '.join(groups)}"
        if not self.lines or self.lines[-1] != line:
            self.lines.append(line)


def failed_pool(asked: int, surge: int = 1) -> RolloutScenario:
    """Returns a pool whose groups never get ready."""
    story = RolloutScenario(asked, surge, broken={"a"})
    story.least = 0
    story.lines.clear()
    return story


def rollout_text() -> str:
    """Returns the steps of rollouts in which all controllers act in turn."""
    parts = []
    for asked, surge in ((1, 1), (2, 1), (4, 2)):
        story = RolloutScenario(asked, surge)
        story.lines.clear()
        story.revision = "b"
        story.settle()
        parts += [f"# {asked} asked, surge {surge}: a is replaced by b", *story.lines, ""]
    story = RolloutScenario(1)
    story.lines.clear()
    story.revision, story.broken = "b", {"b"}
    for _ in range(3):
        story.operator()
        story.cluster.step()
    story._write()
    story.revision = "a"
    story.settle()
    parts += ["# 1 asked: b never gets ready and is taken back", *story.lines, ""]
    story = failed_pool(2)
    story.revision = "b"
    story.settle(most_groups=2)
    parts += ["# 2 asked, nodes for 2: a never got ready and is replaced by b", *story.lines, ""]
    return "\n".join(parts)


def test_rollouts_match_the_recorded_steps() -> None:
    """Line by line as in the essay of ``groups.py``."""
    assert rollout_text() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.property
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.sampled_from(["b", "c", "a", "pause", "resume", "more", "fewer"]), min_size=1, max_size=5),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
def test_ready_groups_never_fall_below_desired(
    asked: int, surge: int, asks: list[str], turns: int, chance: random.Random
) -> None:
    story = RolloutScenario(asked, surge)
    for ask in asks:
        match ask:
            case "pause" | "resume":
                story.rollout = story.rollout.model_copy(update={"paused": ask == "pause"})
            case "more":
                story.asked += 1
            case "fewer":
                story.asked = max(1, story.asked - 1)
                story.least = min(story.least, story.asked)
            case revision:
                story.revision = revision if not story.rollout.paused else story.revision
        story.settle(chance, turns)
    story.rollout = story.rollout.model_copy(update={"paused": False})
    story.settle()


@pytest.mark.property
@given(st.integers(1, 3), st.integers(0, 60), st.randoms(use_true_random=False))
def test_unready_rollout_is_undone(asked: int, turns: int, chance: random.Random) -> None:
    story = RolloutScenario(asked)
    story.broken, story.revision = {"b"}, "b"
    story.settle(chance, turns)
    story.revision = "a"
    story.settle()


@pytest.mark.property
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.sampled_from(["b", "c", "d"]), max_size=3),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
def test_groups_that_never_started_are_replaced_on_their_own_nodes(
    asked: int, surge: int, failing: list[str], turns: int, chance: random.Random
) -> None:
    """There are nodes for the desired groups only, and any number of failed changes before."""
    story = failed_pool(asked, surge)
    story.broken |= set(failing)
    for revision in failing:
        story.revision = revision
        story.settle(chance, turns, most_groups=asked)
    story.revision = "right"
    story.settle(most_groups=asked)


def test_leader_that_is_replaced_before_its_workers_begins_no_surge() -> None:
    story = RolloutScenario(1)
    (leader, worker) = story.cluster.pods
    leader["metadata"]["labels"]["fairlead.io/revision"] = "b"
    now = wanted(1, "b", Rollout())
    assert surge_step(now, now, [leader, worker], Rollout()) == SurgeStep()


def test_undo_during_drain_stops_no_further_group() -> None:
    """The controller takes the one that drains for one that is ready."""
    story = RolloutScenario(1)
    story.revision = "b"
    while not story.cluster.groups[0].leaving:
        story.operator()
        story.cluster.step()
        story.started(1) if 1 in story.cluster.groups else None
    story.revision = "a"
    for _ in range(4):
        assert story.operator() == SurgeStep(
            1, "with a surge of 1 until all are replaced; the rollout waits for draining groups", partition_all=True
        )
        story.cluster.step()
        story.check_serving()
    story.settle()


def test_pause_starts_nothing_and_keeps_a_started_rollout() -> None:
    paused = Rollout(paused=True)
    new = wanted(1, "b", paused)
    old = RolloutScenario(1).cluster
    assert surge_step(new, old.live, old.pods, paused) == SurgeStep()
    begun = with_surge(wanted(1, "b", Rollout()), SurgeStep(1))
    assert surge_step(new, begun, old.pods, paused).extra_groups == 1


def test_rollout_without_surge_is_continued_with_it() -> None:
    """As an operator of before left it: the template is there, the group is still the old one."""
    cluster = RolloutScenario(1).cluster
    now = wanted(1, "b", Rollout())
    assert surge_step(now, now, cluster.pods, Rollout()) == SurgeStep(1, "with a surge of 1 until all are replaced")


@pytest.mark.parametrize(
    ("replicas", "says"),
    [(1, "is not replaced, since nothing would serve; scale the pool to 2 meanwhile"), (3, "one fewer is ready while")],
)
def test_foreign_replica_count_is_not_raised(replicas: int, says: str) -> None:
    cluster = RolloutScenario(replicas).cluster
    entry = {"manager": "hpa", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    live = with_surge(cluster.live, SurgeStep(1))
    live["metadata"]["managedFields"] = [entry]
    live["spec"]["replicas"] = replicas
    step = surge_step(wanted(2, "b", Rollout()), live, cluster.pods, Rollout())
    assert step.extra_groups == surplus_groups(live) == 0
    assert step.message.startswith("without an additional instance, since hpa sets the number: ")
    assert says in step.message
    assert surge_step(wanted(2, "a", Rollout()), live, cluster.pods, Rollout()) == SurgeStep()


def test_no_surge_without_existing_or_desired_groups() -> None:
    new = wanted(2, "b", Rollout())
    assert surge_step(new, None, [], Rollout()) == SurgeStep()
    cluster = RolloutScenario(2).cluster
    assert surge_step(wanted(0, "b", Rollout()), cluster.live, cluster.pods, Rollout()) == SurgeStep()


def test_only_replicas_and_strategy_change() -> None:
    paused, classes = read_case(CASES / "sim-multi-node.yaml")
    model = paused.model_copy(update={"spec": paused.spec.model_copy(update={"rollout": Rollout()})})
    before = render_model(model, classes, default_context()).manifests
    live = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in before}
    same, nothing = apply_rollout(before, live, [], model.spec.rollout)
    assert (same, nothing) == (list(before), {})
    engine = model.spec.engine.model_copy(update={"args": ["--other"]})
    changed = model.model_copy(update={"spec": model.spec.model_copy(update={"engine": engine})})
    after = render_model(changed, classes, default_context()).manifests
    manifests, notes = apply_rollout(after, live, [], model.spec.rollout)
    assert notes == {"main": "with a surge of 1 until all are replaced"}
    ((old, new),) = [(old, new) for old, new in zip(after, manifests, strict=True) if old != new]
    rolling = {"partition": 0, "maxSurge": 0, "maxUnavailable": 1}
    assert new["spec"] == {
        **old["spec"],
        "replicas": old["spec"]["replicas"] + 1,
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": rolling},
    }
    assert new["metadata"]["annotations"] == {**old["metadata"]["annotations"], "fairlead.io/surge": "1"}
