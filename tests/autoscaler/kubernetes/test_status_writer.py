"""Conditions are written on change, under our own name, by the one that leads; a model that is switched off loses them."""

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
from fairlead_testing.fake_time import FakeTime
from fairlead_testing.kube.in_memory import InMemoryKube

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

    def look(self, desired: int = 2, replicas: int = 2) -> None:
        ruling = EnforcedPlan(replicas, desired, "up", "as the load needs", replicas)
        there = Observation(self.clock.now(), GatewayTraffic(1.0, 10.0), {"main": PoolObservation(desired, desired)})
        facts = ModelSpec("chat/qwen", None, None, (PoolSpec("main", maximum=8),))
        self.telling.on_record(TickRecord(self.clock.wall(), facts, there, ScalingPlan(), {"main": ruling}))

    def write(self) -> list[str]:
        """What one round wrote."""
        self.kube.writes.clear()
        asyncio.run(self.telling.write_all())
        return self.kube.writes

    def conditions(self) -> dict[str, str]:
        (model,) = self.kube.objects_of("ModelDeployment")
        return {one["type"]: one["reason"] for one in model["status"]["conditions"]}


@pytest.fixture
def room() -> Harness:
    return Harness()


def test_what_is_said_stands_beside_the_operators_and_is_written_once(room: Harness) -> None:
    room.look()
    assert room.write() == ["status ModelDeployment qwen"]
    assert room.conditions() == {"Ready": "AllReady", "Autoscaling": "Deciding"}
    for _ in range(3):
        room.look()
        assert room.write() == []


def test_another_number_is_written_at_once_and_told_when_it_is_there(room: Harness) -> None:
    room.look()
    room.write()
    room.look(desired=2, replicas=5)
    assert room.write() == ["status ModelDeployment qwen"]
    assert room.told == []
    room.look(desired=5, replicas=5)
    assert [one.reason for one in room.told] == ["ScaledUp"]


def test_somebody_else_who_takes_the_number_is_told_of(room: Harness) -> None:
    room.look()
    room.write()
    room.held = {"main": "kubectl"}
    room.look()
    room.write()
    assert room.conditions()["Autoscaling"] == "SetElsewhere"
    assert [one.reason for one in room.told] == ["SetElsewhere"]


def test_a_model_that_is_switched_off_loses_them_and_nothing_else(room: Harness) -> None:
    room.look()
    room.write()
    room.off = True
    assert room.write() == ["status ModelDeployment qwen"]
    assert room.conditions() == {"Ready": "AllReady"}
    assert room.write() == []


def test_the_next_leader_says_it_again_and_no_event_of_it(room: Harness) -> None:
    room.look()
    room.write()
    room.telling = room.fresh()
    room.look()
    room.write()
    assert (room.conditions()["Autoscaling"], room.told) == ("Deciding", [])


def test_what_could_not_be_written_is_written_later_as_it_is_then(room: Harness) -> None:
    def away(_: str) -> None:
        raise Unreachable("nobody answers")

    room.kube.before_write = away
    room.look()
    assert (room.write(), room.telling.failures) == ([], 1)
    room.kube.before_write = lambda _: None
    room.look(desired=2, replicas=6)
    assert room.write() == ["status ModelDeployment qwen"]
    (model,) = room.kube.objects_of("ModelDeployment")
    assert "2 -> 6" in next(one["message"] for one in model["status"]["conditions"] if one["type"] == "Autoscaling")


def test_a_defect_costs_what_is_told_and_no_more(room: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0

    def broken() -> dict[str, dict[str, str]]:
        nonlocal rounds
        rounds += 1
        raise ZeroDivisionError

    monkeypatch.setattr(room, "foreign_writers", broken)

    async def main() -> None:
        running = asyncio.ensure_future(room.telling.run())
        while rounds < 2:
            await asyncio.sleep(0)
            room.clock.advance(1.0)
        assert not running.done()
        await cancel_and_wait(running)

    room.telling = StatusWriter(
        room.kube, room, room.clock, lambda *_: None, is_leader=lambda: True, pause=lambda _: asyncio.sleep(0)
    )
    asyncio.run(main())
    assert room.telling.failures >= 2


def test_a_model_that_is_gone_is_forgotten_and_a_new_one_of_its_name_begins_anew(room: Harness) -> None:
    room.look()
    room.write()
    room.kube.remove("ModelDeployment", "chat", "qwen")
    room.look()
    assert room.write() == []
    room.kube.put({**MODEL, "spec": {}})
    room.look()
    assert room.write() == ["status ModelDeployment qwen"]


def test_only_the_one_that_leads_tells_of_numbers(room: Harness) -> None:
    room.leading = False
    room.look(desired=2, replicas=5)
    room.look(desired=5, replicas=5)
    assert room.told == []
