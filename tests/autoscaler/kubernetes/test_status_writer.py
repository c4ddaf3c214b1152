"""Conditions are written on change, by the leader, under its own field manager; disabling a model
removes them.
"""

import asyncio
from typing import Any

import pytest

from fairlead.kube.errors import Unreachable
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import key_of
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_autoscaler.core import GatewayTraffic, ModelSpec, Observation, PoolObservation, PoolSpec, ScalingPlan
from fairlead_autoscaler.enforcer import EnforcedPlan
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.kubernetes.status_writer import StatusWriter
from fairlead_testing.kube.in_memory import InMemoryKube
from fairlead_testing.waiting import FakeTime, wait_until

MODEL = {
    "apiVersion": "serving.fairlead.io/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "qwen", "namespace": "chat"},
}


class Harness:
    def __init__(self) -> None:
        self.kube, self.clock, self.told = InMemoryKube(), FakeTime(), list[EventDraft]()
        self.kube.put({**MODEL, "spec": {}})
        ready = {"type": "Ready", "status": "True", "reason": "AllReady"}
        self.kube.put({**MODEL, "status": {"conditions": [ready]}}, "fairlead-operator/status")
        self.kube.writes.clear()
        self.leading, self.off, self.held = True, False, dict[str, str]()
        self.telling = self.fresh()

    def fresh(self) -> StatusWriter:
        return StatusWriter(
            self.kube, self, self.clock, lambda _, told: self.told.append(told), is_leader=lambda: self.leading
        )

    def models(self) -> dict[str, dict[str, Any]]:
        return {key_of(one): one for one in self.kube.objects_of("ModelDeployment")}

    def model(self, key: str) -> dict[str, Any] | None:
        return self.models().get(key)

    def foreign_writers(self) -> dict[str, dict[str, str]]:
        return {} if self.off else {"chat/qwen": self.held}

    def record(self, desired: int = 2, replicas: int = 2) -> None:
        ruling = EnforcedPlan(replicas, desired, "up", "as the load needs", replicas)
        there = Observation(self.clock.now(), GatewayTraffic(1.0, 10.0), {"main": PoolObservation(desired, desired)})
        facts = ModelSpec("chat/qwen", None, None, (PoolSpec("main", maximum=8),))
        self.telling.on_record(TickRecord(self.clock.wall(), facts, there, ScalingPlan(), {"main": ruling}))

    def write(self) -> list[str]:
        """Returns the writes of one round."""
        self.kube.writes.clear()
        asyncio.run(self.telling.write_all())
        return self.kube.writes

    def conditions(self) -> dict[str, str]:
        (model,) = self.kube.objects_of("ModelDeployment")
        return {one["type"]: one["reason"] for one in model["status"]["conditions"]}


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_what_is_said_stands_beside_the_operators_and_is_written_once(harness: Harness) -> None:
    harness.record()
    assert harness.write() == ["status ModelDeployment qwen"]
    assert harness.conditions() == {"Ready": "AllReady", "Autoscaling": "Deciding"}
    for _ in range(3):
        harness.record()
        assert harness.write() == []


def test_another_number_is_written_at_once_and_told_when_it_is_there(harness: Harness) -> None:
    harness.record()
    harness.write()
    harness.record(desired=2, replicas=5)
    assert harness.write() == ["status ModelDeployment qwen"]
    assert harness.told == []
    harness.record(desired=5, replicas=5)
    assert [one.reason for one in harness.told] == ["ScaledUp"]


def test_somebody_else_who_takes_the_number_is_told_of(harness: Harness) -> None:
    harness.record()
    harness.write()
    harness.held = {"main": "kubectl"}
    harness.record()
    harness.write()
    assert harness.conditions()["Autoscaling"] == "SetElsewhere"
    assert [one.reason for one in harness.told] == ["SetElsewhere"]


def test_a_model_that_is_switched_off_loses_them_and_nothing_else(harness: Harness) -> None:
    harness.record()
    harness.write()
    harness.off = True
    assert harness.write() == ["status ModelDeployment qwen"]
    assert harness.conditions() == {"Ready": "AllReady"}
    assert harness.write() == []


def test_the_next_leader_says_it_again_and_no_event_of_it(harness: Harness) -> None:
    harness.record()
    harness.write()
    harness.telling = harness.fresh()
    harness.record()
    harness.write()
    assert (harness.conditions()["Autoscaling"], harness.told) == ("Deciding", [])


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
    assert "2 -> 6" in next(one["message"] for one in model["status"]["conditions"] if one["type"] == "Autoscaling")


async def test_a_defect_costs_what_is_told_and_no_more(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0

    def broken() -> dict[str, dict[str, str]]:
        nonlocal rounds
        rounds += 1
        raise ZeroDivisionError

    monkeypatch.setattr(harness, "foreign_writers", broken)

    async def main() -> None:
        running = asyncio.ensure_future(harness.telling.run())
        while rounds < 2:
            await asyncio.sleep(0)
            harness.clock.advance(1.0)
        assert not running.done()
        await cancel_and_wait(running)

    harness.telling = StatusWriter(
        harness.kube, harness, harness.clock, lambda *_: None, is_leader=lambda: True, pause=lambda _: asyncio.sleep(0)
    )
    await main()
    assert harness.telling.failures >= 2


def test_a_model_that_is_gone_is_forgotten_and_a_new_one_of_its_name_begins_anew(harness: Harness) -> None:
    harness.record()
    harness.write()
    harness.kube.remove("ModelDeployment", "chat", "qwen")
    harness.record()
    assert harness.write() == []
    harness.kube.put({**MODEL, "spec": {}})
    harness.record()
    assert harness.write() == ["status ModelDeployment qwen"]


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


class _Models:
    def __init__(self, kube: InMemoryKube) -> None:
        self.kube = kube

    def models(self) -> dict[str, dict[str, Any]]:
        return {key_of(one): one for one in self.kube.objects_of("ModelDeployment")}

    def model(self, key: str) -> dict[str, Any] | None:
        return self.models().get(key)

    def foreign_writers(self) -> dict[str, dict[str, str]]:
        return {key: {} for key in self.models()}


@pytest.fixture
def slow_kube() -> _SlowKube:
    kube = _SlowKube()
    for namespace, name in (("slow", "one"), ("chat", "broken"), ("chat", "good"), ("other", "good")):
        kube.put({**MODEL, "metadata": {"name": name, "namespace": namespace}, "spec": {}})
    kube.writes.clear()
    return kube


async def test_slow_statuses_of_one_namespace_and_a_defect_delay_no_other_model(slow_kube: _SlowKube) -> None:
    clock = FakeTime()
    models = _Models(slow_kube)
    writer = StatusWriter(slow_kube, models, clock, lambda _, told: None, is_leader=lambda: True)
    for key in models.models():
        ruling = EnforcedPlan(2, 2, "up", "as the load needs", 2)
        observation = Observation(clock.now(), GatewayTraffic(1.0, 10.0), {"main": PoolObservation(2, 2)})
        spec = ModelSpec(key, None, None, (PoolSpec("main", maximum=8),))
        writer.on_record(TickRecord(clock.wall(), spec, observation, ScalingPlan(), {"main": ruling}))
    run = asyncio.create_task(writer.run())
    await wait_until(lambda: len(slow_kube.writes) >= 2)
    await cancel_and_wait(run)
    assert slow_kube.writes == ["status ModelDeployment good"] * 2
