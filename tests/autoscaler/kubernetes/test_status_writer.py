"""Conditions and status of a model that the autoscaler writes."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fairlead.decision import DecisionInput
from fairlead.kube.conditions import ConditionValue, conditions_for
from fairlead.kube.errors import Unreachable
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import key_of
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingPlan,
)
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.kubernetes.conditions import (
    PublishedStatus,
    autoscaling_condition,
    condition_events,
    desired_instances,
    has_own_condition,
    is_write_due,
    scaling_events,
    slo_condition,
)
from fairlead_autoscaler.kubernetes.slo_attainment import SLOAttainment, add_observation
from fairlead_autoscaler.kubernetes.status_writer import StatusWriter
from fairlead_autoscaler.scaling_policy import EnforcedPlan
from fairlead_testing.kube.in_memory import InMemoryKube
from fairlead_testing.waiting import FakeTime, wait_until

MODEL = {
    "apiVersion": "serving.fairlead.io/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "qwen", "namespace": "chat"},
}


class _Models:
    def __init__(self, kube: InMemoryKube) -> None:
        self.kube, self.clock = kube, FakeTime()

    def models(self) -> dict[str, dict[str, Any]]:
        return {key_of(manifest): manifest for manifest in self.kube.objects_of("ModelDeployment")}

    def model(self, key: str) -> dict[str, Any] | None:
        return self.models().get(key)

    def foreign_writers(self) -> dict[str, dict[str, str]]:
        return {key: {} for key in self.models()}

    def tick(self, key: str, desired: int = 2, replicas: int = 2) -> TickRecord:
        ruling = EnforcedPlan(replicas, desired, "up", "as the load needs", replicas)
        there = Observation(self.clock.now(), GatewayTraffic(1.0, 10.0), {"main": PoolObservation(desired, desired)})
        facts = ModelSpec(key, None, None, (PoolSpec("main", maximum=8),))
        return TickRecord(self.clock.wall(), facts, there, ScalingPlan(), {"main": ruling})


class Harness(_Models):
    def __init__(self) -> None:
        super().__init__(InMemoryKube())
        self.told = list[EventDraft]()
        self.kube.put({**MODEL, "spec": {}})
        ready = {"type": "Ready", "status": "True", "reason": "AllReady"}
        self.kube.put({**MODEL, "status": {"conditions": [ready]}}, "fairlead-operator/status")
        self.kube.writes.clear()
        self.leading, self.off, self.held = True, False, dict[str, str]()
        self.telling = self.fresh()

    def fresh(self) -> StatusWriter:
        return StatusWriter(
            self.kube, self, self.clock, lambda _, event: self.told.append(event), is_leader=lambda: self.leading
        )

    def foreign_writers(self) -> dict[str, dict[str, str]]:
        return {} if self.off else {"chat/qwen": self.held}

    def record(self, desired: int = 2, replicas: int = 2) -> None:
        self.telling.on_record(self.tick("chat/qwen", desired, replicas))

    def write(self) -> list[str]:
        """Returns the writes of one round."""
        self.kube.writes.clear()
        asyncio.run(self.telling.write_all())
        return self.kube.writes

    def conditions(self) -> dict[str, str]:
        (model,) = self.kube.objects_of("ModelDeployment")
        return {condition["type"]: condition["reason"] for condition in model["status"]["conditions"]}


@pytest.fixture
def harness() -> Harness:
    return Harness()


@pytest.fixture
def written(harness: Harness) -> Harness:
    """The status of a first record is written."""
    harness.record()
    harness.write()
    return harness


def test_what_is_said_stands_beside_the_operators_and_is_written_once(harness: Harness) -> None:
    harness.record()
    assert harness.write() == ["status ModelDeployment qwen"]
    assert harness.conditions() == {"Ready": "AllReady", "Autoscaling": "Deciding"}
    for _ in range(3):
        harness.record()
        assert harness.write() == []


def test_another_number_is_written_at_once_and_told_when_it_is_there(written: Harness) -> None:
    written.record(desired=2, replicas=5)
    assert written.write() == ["status ModelDeployment qwen"]
    assert written.told == []
    written.record(desired=5, replicas=5)
    assert [event.reason for event in written.told] == ["ScaledUp"]


def test_somebody_else_who_takes_the_number_is_told_of(written: Harness) -> None:
    written.held = {"main": "kubectl"}
    written.record()
    written.write()
    assert written.conditions()["Autoscaling"] == "SetElsewhere"
    assert [event.reason for event in written.told] == ["SetElsewhere"]


def test_a_model_that_is_switched_off_loses_them_and_nothing_else(written: Harness) -> None:
    written.off = True
    assert written.write() == ["status ModelDeployment qwen"]
    assert written.conditions() == {"Ready": "AllReady"}
    assert written.write() == []


def test_the_next_leader_says_it_again_and_no_event_of_it(written: Harness) -> None:
    written.telling = written.fresh()
    written.record()
    written.write()
    assert (written.conditions()["Autoscaling"], written.told) == ("Deciding", [])


def test_what_could_not_be_written_is_written_later_as_it_is_then(harness: Harness) -> None:
    def away(_: str) -> None:
        raise Unreachable("nobody answers")

    harness.kube.before_write = away
    harness.record()
    assert (harness.write(), harness.telling.failures) == ([], 1)
    harness.kube.before_write = lambda _: None
    harness.record(desired=2, replicas=6)
    assert harness.write() == ["status ModelDeployment qwen"]
    (model,) = harness.kube.objects_of("ModelDeployment")
    assert "2 -> 6" in next(
        condition["message"] for condition in model["status"]["conditions"] if condition["type"] == "Autoscaling"
    )


async def test_a_defect_costs_what_is_told_and_no_more(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0

    def broken() -> dict[str, dict[str, str]]:
        nonlocal rounds
        rounds += 1
        raise ZeroDivisionError

    monkeypatch.setattr(harness, "foreign_writers", broken)

    harness.telling = StatusWriter(
        harness.kube, harness, harness.clock, lambda *_: None, is_leader=lambda: True, pause=lambda _: asyncio.sleep(0)
    )
    running = asyncio.ensure_future(harness.telling.run())
    while rounds < 2:
        await asyncio.sleep(0)
        harness.clock.advance(1.0)
    assert not running.done()
    await cancel_and_wait(running)
    assert harness.telling.failures >= 2


def test_a_model_that_is_gone_is_forgotten_and_a_new_one_of_its_name_begins_anew(written: Harness) -> None:
    written.kube.remove("ModelDeployment", "chat", "qwen")
    written.record()
    assert written.write() == []
    written.kube.put({**MODEL, "spec": {}})
    written.record()
    assert written.write() == ["status ModelDeployment qwen"]


def test_only_the_one_that_leads_tells_of_numbers(harness: Harness) -> None:
    harness.leading = False
    harness.record(desired=2, replicas=5)
    harness.record(desired=5, replicas=5)
    assert harness.told == []


class _SlowKube(InMemoryKube):
    """Never ends the writes of one namespace, and raises a defect at one model."""

    async def apply_status(self, body: Any, field_manager: str) -> Any:
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        if namespace == "slow":
            await asyncio.Event().wait()
        if name == "broken":
            raise TypeError("a defect")
        return await super().apply_status(body, field_manager)


@pytest.fixture
def slow_kube() -> _SlowKube:
    kube = _SlowKube()
    for namespace, name in (("slow", "one"), ("chat", "broken"), ("chat", "good"), ("other", "good")):
        kube.put({**MODEL, "metadata": {"name": name, "namespace": namespace}, "spec": {}})
    kube.writes.clear()
    return kube


async def test_slow_statuses_of_one_namespace_and_a_defect_delay_no_other_model(slow_kube: _SlowKube) -> None:
    models = _Models(slow_kube)
    writer = StatusWriter(slow_kube, models, models.clock, lambda _, event: None, is_leader=lambda: True)
    for key in models.models():
        writer.on_record(models.tick(key))
    run = asyncio.create_task(writer.run())
    await wait_until(lambda: len(slow_kube.writes) >= 2)
    await cancel_and_wait(run)
    assert slow_kube.writes == ["status ModelDeployment good"] * 2


CONDITIONS_MODEL = ModelSpec("chat/qwen", 0.8, 0.04, (PoolSpec("main", maximum=8),), target=0.9)
UP = EnforcedPlan(5, 3, "up", "4.61 are needed, by ttft", 5)
NUMBERS = {
    "need_replicas": DecisionInput(4.61),
    "allowed_miss_share": DecisionInput(0.02, 4.0),
    "speed_factor": DecisionInput(1.0),
}


def record_of(
    *, now: float = 100.0, desired: int = 3, blind: bool = False, counts: tuple[float, float] = (95.0, 5.0), **more: Any
) -> TickRecord:
    replica = ReplicaMetrics("a", ReplicaState.READY, 50.0, ttft_counts=counts, itl_counts=(100.0, 0.0))
    there = Observation(
        now,
        None if blind else GatewayTraffic(10.0, 1_000.0),
        {"main": PoolObservation(desired, 3, replicas=None if blind else (replica,))},
    )
    given: dict[str, Any] = {
        "rulings": {"main": UP},
        "plan": ScalingPlan({"main": PoolPlan(5, "up", UP.reason, NUMBERS)}),
    }
    return TickRecord(0.0, CONDITIONS_MODEL, there, **(given | more))


def ruled(**changes: Any) -> dict[str, Any]:
    return {"rulings": {"main": replace(UP, **changes)}}


def said(at: TickRecord, frozen: bool = False, **held: str) -> tuple[str, str, str]:
    condition = autoscaling_condition(at, held, frozen)
    return str(condition.status), str(condition.reason), condition.message


def test_what_is_wanted_costs_is_told_where_it_has_a_price() -> None:
    priced = replace(CONDITIONS_MODEL, pools=(PoolSpec("main", maximum=8, usd_per_hour=0.75),))
    assert said(replace(record_of(), model=priced))[2].endswith("; 3.75 USD an hour")
    assert "USD" not in said(record_of())[2]


def test_a_decision_is_told_with_its_numbers_rule_and_reason() -> None:
    message = "pool main 3 -> 5 by up: 4.61 are needed, by ttft (need 4.61, share that may miss 0.02, 4 s old)"
    assert said(record_of()) == ("True", "Deciding", message)
    assert said(record_of(**ruled(desired=5)))[2].startswith("pool main 5 by up: 4.61")


@pytest.mark.parametrize(
    ("given", "held", "status", "reason", "says"),
    [
        ({"mode": "Advise"}, {}, "False", "Advising", "nothing is written: pool main 3 -> 5"),
        ({}, {"main": "keda-operator"}, "False", "SetElsewhere", "pool main 3, set by keda-operator; it would be 5"),
        ({"blind": True, "notes": ("gateway a is missing",)}, {}, "True", "LoadUnknown", "(gateway a is missing)"),
        (ruled(rule="metrics-inconsistent"), {}, "True", "LoadUnknown", "its load is unknown"),
        (ruled(rule="maximum"), {}, "True", "AtMaximum", "pool main needs more than its max"),
        (ruled(rule="bounds", planned=9), {}, "True", "AtMaximum", "needs more"),
        (ruled(rule="bounds", planned=0), {}, "True", "Deciding", ""),
        ({"rulings": {}}, {}, "True", "Deciding", "none of its pools exists yet"),
    ],
)
def test_why_it_does_not_simply_decide_is_told(
    given: dict[str, Any], held: dict[str, str], status: str, reason: str, says: str
) -> None:
    condition = said(record_of(**given), **held)
    assert condition[:2] == (status, reason)
    assert says in condition[2]


def test_a_freeze_is_told_and_what_would_be() -> None:
    assert said(record_of(), frozen=True)[:2] == ("False", "Frozen")
    assert "pool main 3, would be 5" in said(record_of(**ruled(unwritten="all scaling is frozen")), frozen=True)[2]


def met(*looks: TickRecord) -> tuple[str, str, str] | None:
    attainment = SLOAttainment()
    for look in looks:
        attainment = add_observation(attainment, look.observation)
    condition = slo_condition(looks[-1], attainment)
    return None if condition is None else (str(condition.status), str(condition.reason), condition.message)


def test_the_lowest_share_of_the_last_minutes_is_held_against_the_target() -> None:
    message = "ttft met by 95.0 %, itl met by 100.0 % of 100 requests in 5 minutes; target 90 %"
    assert met(record_of()) == ("True", "WithinTarget", message)
    condition = met(record_of(), record_of(now=105.0, counts=(60.0, 40.0)))
    assert condition is not None
    assert condition[:2] == ("False", "BelowTarget")
    assert condition[2].startswith("ttft met by 77.5 %")
    long_ago = record_of(counts=(0.0, 100.0))
    assert met(long_ago, record_of(now=400.0)) == ("True", "WithinTarget", message)


def test_of_few_requests_no_share_is_told_and_nothing_of_a_model_without_objectives() -> None:
    few = record_of(counts=(0.0, 3.0))
    replica = replace(few.observation.pools["main"].replicas[0], itl_counts=None)  # type: ignore[index]
    pools = {"main": replace(few.observation.pools["main"], replicas=(replica,))}
    few = replace(few, observation=replace(few.observation, pools=pools))
    message = "3 requests in 5 minutes are too few (only answered streams count)"
    assert met(few) == ("Unknown", "TooFewRequests", message)
    assert met(replace(record_of(), model=replace(CONDITIONS_MODEL, ttft_seconds=None, itl_seconds=None))) is None


def test_who_gave_up_had_no_first_token_in_time() -> None:
    record = record_of()
    gone = replace(record, observation=replace(record.observation, gateway=GatewayTraffic(10.0, 1.0, abandoned=25.0)))
    condition = met(gone)
    assert condition is not None
    assert condition[2].startswith("ttft met by 76.0 %")


def test_numbers_that_move_are_written_once_a_minute_and_news_at_once() -> None:
    first = autoscaling_condition(record_of(), {}, False)
    before = PublishedStatus((first,), 100.0, desired_instances(record_of()))
    moved = replace(first, message="pool main 3 -> 5 by up: 4.7 are needed")
    assert is_write_due(None, [first], before.instances, 100.0)
    assert not is_write_due(before, [first], before.instances, 1_000.0)
    assert not is_write_due(before, [moved], before.instances, 159.0)
    assert is_write_due(before, [moved], before.instances, 160.0)
    assert is_write_due(before, [first], {"main": 6}, 101.0)
    assert is_write_due(before, [autoscaling_condition(record_of(blind=True), {}, False)], before.instances, 101.0)


def test_a_time_of_transition_is_that_of_the_status() -> None:
    first = {"conditions": conditions_for([autoscaling_condition(record_of(), {}, False)], {}, 3, "T1")}
    (entry,) = first["conditions"]
    assert (entry["lastTransitionTime"], entry["observedGeneration"], entry["type"]) == ("T1", 3, "Autoscaling")
    (same,) = conditions_for([autoscaling_condition(record_of(blind=True), {}, False)], first, 4, "T2")
    assert (same["lastTransitionTime"], same["reason"]) == ("T1", "LoadUnknown")
    (other,) = conditions_for([autoscaling_condition(record_of(), {}, True)], first, 4, "T2")
    assert other["lastTransitionTime"] == "T2"
    assert has_own_condition(first)
    assert not has_own_condition({"conditions": [{"type": "Ready"}]})


def test_a_change_of_a_number_is_an_event_once_it_is_there() -> None:
    before = record_of()
    assert scaling_events(before, record_of(now=105.0)) == []  # not yet
    (event,) = scaling_events(before, record_of(now=105.0, desired=5))
    assert (event.reason, event.note) == ("ScaledUp", "Pool main from 3 to 5 by up: 4.61 are needed, by ttft")
    kept = record_of(rulings={"main": replace(UP, unwritten="the mode is Advise")})
    assert scaling_events(kept, record_of(desired=5)) == []
    (down,) = scaling_events(record_of(rulings={"main": replace(UP, replicas=2, rule="down")}), record_of(desired=2))
    assert down.reason == "ScaledDown"


def test_conditions_that_change_are_events_and_the_first_is_none() -> None:
    deciding, blind = (autoscaling_condition(record, {}, False) for record in (record_of(), record_of(blind=True)))
    assert condition_events([], [deciding]) == []
    assert condition_events([deciding], [replace(deciding, message="other")]) == []
    (event,) = condition_events([deciding], [blind])
    assert (str(event.type), event.reason, event.note[:8]) == ("Warning", "LoadUnknown", "Its load")
    (back,) = condition_events([blind], [deciding])
    assert (str(back.type), back.reason) == ("Normal", "Deciding")


def test_objectives_that_are_missed_are_an_event_but_not_that_nobody_asks() -> None:
    def of(*looks: TickRecord) -> ConditionValue:
        attainment = SLOAttainment()
        for look in looks:
            attainment = add_observation(attainment, look.observation)
        condition = slo_condition(looks[-1], attainment)
        assert condition is not None
        return condition

    good, bad = of(record_of()), of(record_of(counts=(10.0, 90.0)))
    quiet = replace(good, status=type(good.status)("Unknown"), reason=bad.reason)
    (event,) = condition_events([good], [bad])
    assert (str(event.type), event.reason) == ("Warning", "BelowTarget")
    assert condition_events([good], [quiet]) == condition_events([quiet], [good]) == []


def test_who_sleeps_is_told_beside_the_number_paid_for_and_an_event_of_its_own() -> None:
    rests = replace(UP, replicas=3, asleep=2, rule="asleep")
    assert said(record_of(rulings={"main": rests}))[2].startswith("pool main 3 -> 3 and 2 asleep by asleep: ")
    assert desired_instances(record_of(rulings={"main": rests})) == {"main": 5}
    before, after = record_of(rulings={"main": rests}), record_of()
    assert scaling_events(before, after) == [], "it is not so yet"
    seen = replace(after.observation.pools["main"], asleep_desired=2)
    (news,) = scaling_events(before, replace(after, observation=replace(after.observation, pools={"main": seen})))
    assert (news.reason, news.note) == ("ScaledUp", "Pool main asleep from 0 to 2 by asleep: 4.61 are needed, by ttft")
    woken = replace(UP, replicas=5, asleep=0, asleep_desired=2)
    seen = replace(seen, desired=5, asleep_desired=0)
    (news,) = scaling_events(
        record_of(rulings={"main": woken}), replace(after, observation=replace(after.observation, pools={"main": seen}))
    )
    assert (news.reason, news.note[:44]) == ("ScaledUp", "Pool main from 3 to 5, asleep from 2 to 0 by")
