"""Marked pods sleep when no gateway has requests there, and wake before a gateway learns of it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engines.sleep_mode import ENGINE_WAKE_SECONDS, SleepRefused
from fairlead.errors import Unavailable
from fairlead.fleet.labels import SLEEP_ANNOTATION, SleepMark, parse_sleep_mark
from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot
from fairlead_autoscaler.core import WakeTiming
from fairlead_autoscaler.kubernetes import sleep_controller
from fairlead_autoscaler.kubernetes.sleep_controller import SleepController

Manifest = dict[str, Any]
Make = Callable[..., Manifest]
KEY, URL, ID = "chat/qwen", "http://10.0.0.1:8000", "uid-a/8000/0"


class FakeEngine:
    """One engine; ``raises`` by what it is asked for."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.asleep = False
        self.said: list[str] = []
        self.raises: dict[str, Exception] = {}

    async def is_sleeping(self, url: str) -> bool:
        assert url == URL
        if error := self.raises.get("sleeps"):
            raise error
        return self.asleep

    async def sleep(self, url: str, level: int) -> None:
        self._record(f"sleep {level}")
        self.asleep = True

    async def wake(self, url: str, level: int) -> None:
        self._record(f"wake {level}")
        self.clock.advance(2.5)
        self.asleep = False

    def _record(self, what: str) -> None:
        self.said.append(what)
        if error := self.raises.get(what.split()[0]):
            raise error


class Harness:
    """One pod and the gateways before it."""

    def __init__(self, pod: Manifest, mark: str, *, leads: bool = True) -> None:
        pod["status"]["podIP"] = "10.0.0.1"
        pod["metadata"]["annotations"] = {"fairlead.io/port": "8000", SLEEP_ANNOTATION: mark}
        self.pod = pod
        self.clock = ManualClock(100.0)
        self.beds = FakeEngine(self.clock)
        self.gateways = [GatewayMetrics("g1", gauges={}), GatewayMetrics("g2", gauges={})]
        self.leads = leads
        self.let_go = False
        self.desired_asleep: dict[tuple[str, str], int] = {}
        self.nursing = self.successor()

    def successor(self) -> SleepController:
        """Returns another controller without any state."""
        self.nursing = SleepController(
            self,
            self.beds,
            self,
            lambda: GatewaySnapshot(tuple(self.gateways)),
            self.clock,
            is_leader=lambda: self.leads,
        )
        return self.nursing

    def marked_pods(self) -> Mapping[str, Sequence[Manifest]]:
        return {KEY: [self.pod]} if self.mark else {}

    def released_pools(self) -> set[tuple[str, str]]:
        return {(KEY, "main")} if self.let_go else set()

    async def write_sleep_mark(self, pod: Manifest, mark: SleepMark | None) -> None:
        notes = self.pod["metadata"]["annotations"]
        notes.pop(SLEEP_ANNOTATION)
        if mark is not None:
            notes[SLEEP_ANNOTATION] = mark.annotation_value()

    @property
    def mark(self) -> str | None:
        mark = parse_sleep_mark(self.pod["metadata"]["annotations"])
        return None if mark is None else mark.annotation_value()

    def know(self, sleeping: float, in_flight: float = 0.0) -> None:
        """Lets all gateways report so."""
        gauges = {("instances", KEY, "Sleeping"): sleeping, ("in_flight", KEY, ID): in_flight}
        self.gateways = [replace(gateway, gauges=gauges, error=None) for gateway in self.gateways]

    def reconcile(self) -> None:
        """Runs one reconciliation and the tasks that it starts."""

        async def once() -> None:
            self.nursing.reconcile()
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # type: ignore[arg-type]

        asyncio.run(once())


def test_it_sleeps_when_all_gateways_know_and_have_nothing_there(a_pod: Make) -> None:
    ward = Harness(a_pod("a"), "2-asleep")
    ward.reconcile()
    assert ward.beds.said == [], "nobody knows yet"
    ward.know(1.0, in_flight=2.0)
    ward.reconcile()
    assert ward.beds.said == [], "there is something in flight"
    ward.know(1.0)
    ward.gateways[1] = GatewayMetrics("g2", error="no answer")
    ward.reconcile()
    assert ward.beds.said == [], "a gateway does not answer"
    ward.know(1.0)
    ward.reconcile()
    assert ward.beds.said == ["sleep 2"]
    assert ward.nursing.status().asleep == {"uid-a"}
    ward.reconcile()
    assert ward.beds.said == ["sleep 2"], "once is enough"
    assert ward.mark == "2-asleep"


def test_it_is_awake_and_well_before_its_mark_goes(a_pod: Make) -> None:
    ward = Harness(a_pod("a"), "1-waking")
    ward.beds.asleep = True
    ward.reconcile()
    assert ward.beds.said == ["wake 1"]
    assert ward.mark is None
    assert ward.nursing.status().last_wakes == {"uid-a": WakeTiming(1, 1, 2.5)}


def test_a_successor_finds_it_as_it_is(a_pod: Make) -> None:
    ward = Harness(a_pod("a"), "1-asleep")
    ward.beds.asleep = True
    ward.successor()
    ward.reconcile()
    assert ward.nursing.status().asleep == {"uid-a"}
    assert ward.beds.said == []
    ward = Harness(a_pod("a"), "1-waking")  # a leader died while it woke or sent to sleep
    ward.reconcile()
    assert ward.beds.said == ["wake 1"]
    assert ward.mark is None
    assert ward.nursing.status().last_wakes == {}, "nobody knows how long that took"


def test_one_that_died_asleep_is_put_to_sleep_again(a_pod: Make) -> None:
    ward = Harness(a_pod("a"), "1-asleep")
    ward.beds.asleep = True
    ward.reconcile()
    ward.beds.asleep = False
    ward.reconcile()
    assert ward.nursing.status().asleep == frozenset()
    ward.know(1.0)
    ward.reconcile()
    assert ward.beds.said == ["sleep 1"]


@pytest.mark.parametrize("asleep", [True, False])
def test_where_nobody_decides_any_more_who_sleeps_all_are_woken(a_pod: Make, asleep: bool) -> None:
    ward = Harness(a_pod("a"), "1-asleep")
    ward.beds.asleep, ward.let_go = asleep, True
    ward.know(1.0)
    ward.reconcile()
    assert (ward.mark, ward.beds.said) == ("1-waking", []), "whoever takes over goes on with it"
    ward.reconcile()
    assert (ward.mark, ward.beds.said) == (None, ["wake 1"])


def test_who_does_not_lead_touches_nothing(a_pod: Make) -> None:
    ward = Harness(a_pod("a"), "1-asleep", leads=False)
    ward.know(1.0)
    ward.reconcile()
    assert ward.beds.said == []


def test_a_process_that_loses_the_lease_during_a_step_puts_no_engine_to_sleep(a_pod: Make) -> None:
    ward = Harness(a_pod("a"), "1-asleep")
    ward.know(1.0)
    query = ward.beds.is_sleeping

    async def is_sleeping(url: str) -> bool:
        ward.leads = False
        return await query(url)

    ward.beds.is_sleeping = is_sleeping  # type: ignore[method-assign]
    ward.reconcile()
    assert ward.beds.said == []


@pytest.mark.parametrize(("ready", "going"), [(False, False), (True, True)])
def test_a_pod_that_starts_or_leaves_is_left_alone(a_pod: Make, ready: bool, going: bool) -> None:
    ward = Harness(a_pod("a", ready=ready, going=going), "1-asleep")
    ward.know(1.0)
    ward.reconcile()
    assert ward.beds.said == []


def test_engines_that_refuse_to_sleep_serve_on_and_are_told(a_pod: Make) -> None:
    ward = Harness(a_pod("a", labels={"fairlead.io/revision": "r1"}), "1-asleep")
    ward.beds.raises["sleep"] = SleepRefused("the engine answered /sleep with 404")
    ward.know(1.0)
    ward.reconcile()
    assert ward.mark is None
    assert ward.nursing.status().rejecting_pools == {(KEY, "main", "r1")}
    assert ward.nursing.problems == {"a": "the engine answered /sleep with 404"}


def test_one_that_does_not_answer_is_tried_again(a_pod: Make) -> None:
    ward = Harness(a_pod("a"), "1-asleep")
    ward.beds.raises["sleeps"] = Unavailable("no answer")
    ward.know(1.0)
    ward.reconcile()
    assert (ward.mark, ward.nursing.status().rejecting_pools) == ("1-asleep", frozenset())
    ward.beds.raises.clear()
    ward.reconcile()
    assert ward.beds.said == ["sleep 1"]
    assert ward.nursing.problems == {}


def test_an_engine_that_does_not_wake_is_marked_as_stuck_until_it_wakes(a_pod: Make) -> None:
    ward = Harness(a_pod("a"), "1-waking")
    ward.beds.asleep = True
    ward.beds.raises["wake"] = SleepRefused("the engine answered /wake_up with 500")
    ward.reconcile()
    assert ward.mark == "1-waking"
    assert ward.nursing.status().rejecting_pools == frozenset()
    ward.clock.advance(ENGINE_WAKE_SECONDS)
    ward.reconcile()
    assert ward.mark == "1-stuck"
    ward.beds.raises.clear()
    ward.reconcile()
    assert ward.mark is None


async def test_marks_of_a_model_are_counted_once_in_a_round_however_many_there_are(
    a_pod: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(a_pod("a"), "1-asleep")
    pods = [a_pod(f"p{number}", annotations={SLEEP_ANNOTATION: "1-asleep"}) for number in range(20)]
    monkeypatch.setattr(harness, "marked_pods", lambda: {KEY: pods})
    read: list[str] = []

    def count(annotations: Mapping[str, str]) -> SleepMark | None:
        read.append("")
        return parse_sleep_mark(annotations)

    monkeypatch.setattr(sleep_controller, "parse_sleep_mark", count)
    harness.nursing.reconcile()
    await asyncio.gather(*harness.nursing._tasks.values(), return_exceptions=True)
    assert len(read) == 3 * len(pods)


def test_released_pools_are_looked_up_once_in_a_round_however_many_pods_sleep(
    a_pod: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward = Harness(a_pod("a"), "1-asleep")
    pods = [{**ward.pod, "metadata": {**ward.pod["metadata"], "uid": f"uid-{number}"}} for number in range(20)]
    lookups = []
    monkeypatch.setattr(ward, "marked_pods", lambda: {f"chat/m{number}": [pod] for number, pod in enumerate(pods)})
    monkeypatch.setattr(ward, "released_pools", lambda: lookups.append(1) or set())
    ward.reconcile()
    assert lookups == [1]


async def test_slow_engines_of_one_namespace_take_few_connections_and_take_turns(
    a_pod: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(a_pod("a"), "1-asleep")
    pods = [a_pod(f"p{number:04d}", annotations={SLEEP_ANNOTATION: "1-asleep"}) for number in range(200)]
    pods.append(a_pod("wakes", annotations={SLEEP_ANNOTATION: "1-waking"}))
    calm = a_pod("calm", annotations={SLEEP_ANNOTATION: "1-asleep"})
    monkeypatch.setattr(harness, "marked_pods", lambda: {KEY: pods, "other/m": [calm]})
    begun: list[str] = []

    async def step(key: str, pod: Manifest, *rest: Any) -> None:
        begun.append(pod["metadata"]["name"])
        await asyncio.Event().wait()

    monkeypatch.setattr(harness.nursing, "_step", step)
    for _ in range(3):
        harness.nursing.reconcile()
        await asyncio.sleep(0)
    assert len(begun) == 65
    assert {"wakes", "calm"} <= set(begun)
    for task in harness.nursing._tasks.values():
        task.cancel()
    await asyncio.gather(*harness.nursing._tasks.values(), return_exceptions=True)
    first = set(begun)
    begun.clear()
    harness.nursing.reconcile()
    await asyncio.sleep(0)
    assert len(set(begun) - first) == 63, "those that have waited come before those that had a turn"
