"""Kubernetes Events: when they are written, and the recorder with an API server that refuses and
forgets.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.kube.client import KubeApi
from fairlead.kube.events.aggregator import (
    KUBE_EVENT_BURST,
    KUBE_EVENT_REFILL_SECONDS,
    KUBE_SERIES_END_SECONDS,
    KUBE_SERIES_SECONDS,
    EventAggregator,
    truncate_utf8,
    write_count,
)
from fairlead.kube.events.event import EventKey, EventType, ObjectReference
from fairlead.kube.events.recorder import EventRecorder
from fairlead.kube.resources import Manifest
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_testing.kube.fake_server import FakeApiServer, OrderedResponse, fake_api_server
from fairlead_testing.waiting import FakeTime, wait_until

pytestmark = pytest.mark.simulated

POD: Manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "x", "uid": "u"}}
WALL = 1_800_000_000.0


def event_key(note: str = "it is", name: str = "p", namespace: str = "x") -> EventKey:
    return EventKey(ObjectReference("v1", "Pod", namespace, name, "u"), EventType.NORMAL, "Reason", "Act", note)


def aggregator(**changed: int) -> EventAggregator:
    return EventAggregator("fairlead.io/operator", "pod-1", **changed)


def test_event_has_all_required_fields() -> None:
    table = aggregator()
    table.add(event_key(), 0.0, WALL)
    (write,) = table.due_writes(0.0)
    event = dict(write.manifest or {})
    name = event["metadata"].pop("name")
    assert name.startswith("p.")
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "x"},
        "eventTime": "2027-01-15T08:00:00.000000Z",
        "reportingController": "fairlead.io/operator",
        "reportingInstance": "pod-1",
        "type": "Normal",
        "reason": "Reason",
        "action": "Act",
        "note": "it is",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "x", "name": "p", "uid": "u"},
    }
    table.add(event_key(namespace=""), 0.0, WALL)
    assert table.due_writes(0.0)[1].namespace == "default"


def test_repetitions_are_counted_and_written_less_and_less_often() -> None:
    table, writes, now = aggregator(), list[tuple[float, int]](), 0.0
    while now <= 700.0:
        table.add(event_key(), now, WALL + now)
        for write in table.due_writes(now):
            writes.append((now, write_count(write)))
            table.on_written(write, write_count(write), now)
        now += 1.0
    assert writes == [(0.0, 1), (10.0, 11), (30.0, 31), (70.0, 71), (150.0, 151), (310.0, 311), (610.0, 611)]
    assert table.dropped == 0


def test_event_after_a_long_pause_is_new() -> None:
    table = aggregator()
    table.add(event_key(), 0.0, WALL)
    (first,) = table.due_writes(0.0)
    table.on_written(first, 1, 0.0)
    table.add(event_key(), KUBE_SERIES_END_SECONDS + 1, WALL + 400)
    (second,) = table.due_writes(KUBE_SERIES_END_SECONDS + 1)
    assert second.manifest is not None
    assert second.name != first.name


def test_one_object_cannot_crowd_out_others() -> None:
    table = aggregator()
    for number in range(100):
        table.add(event_key(f"note {number}"), 0.0, WALL)
    table.add(event_key(name="other"), 0.0, WALL)
    assert len(table.due_writes(0.0)) == KUBE_EVENT_BURST + 1
    assert table.dropped == 100 - KUBE_EVENT_BURST
    table.add(event_key("later"), KUBE_EVENT_REFILL_SECONDS, WALL)
    assert len(table.due_writes(KUBE_EVENT_REFILL_SECONDS)) == KUBE_EVENT_BURST + 2


def test_pending_and_remembered_events_are_bounded() -> None:
    table = aggregator(max_events=10, max_pending=5)
    for number in range(8):
        table.add(event_key(name=f"p{number}"), 0.0, WALL)
    assert (table.waiting, table.dropped) == (5, 3)
    for write in table.due_writes(0.0):
        table.on_written(write, 1, 0.0)
    for number in range(8, 20):
        table.add(event_key(name=f"p{number}"), 0.0, WALL)
        for write in table.due_writes(0.0):
            table.on_written(write, 1, 0.0)
    assert (table.waiting, table.dropped, len(table._states)) == (0, 3, 10)


def test_one_namespace_cannot_fill_the_queue_of_events_of_others() -> None:
    table = aggregator(max_pending=8)
    for number in range(20):
        table.add(event_key(name=f"p{number}", namespace="flood"), 0.0, WALL)
    for number in range(20):
        table.add(event_key(name=f"p{number}", namespace="other"), 0.0, WALL)
    names = [write.key.regarding for write in table.due_writes(0.0)]
    assert [(name.namespace, name.name) for name in names] == [
        *(("flood", f"p{number}") for number in range(4)),
        *(("other", f"p{number}") for number in range(4)),
    ]
    assert (table.waiting, table.dropped) == (8, 32)


def test_result_of_a_write_is_remembered() -> None:
    table = aggregator()
    table.add(event_key(), 0.0, WALL)
    (write,) = table.due_writes(0.0)
    table.on_postponed(write, 0.0)
    assert table.due_writes(0.0) == []
    assert table.next_due_at() == KUBE_SERIES_SECONDS
    table.on_rejected(write)
    assert (table.waiting, table.dropped, table.next_due_at()) == (0, 1, None)
    for done in (table.on_rejected, table.on_deleted):
        done(write)
    table.on_written(write, 1, 0.0)
    assert (table.waiting, table.pending_writes()) == (0, [])


@given(st.text(max_size=600), st.integers(3, 1200))
def test_text_is_cut_at_whole_characters(text: str, most: int) -> None:
    truncated = truncate_utf8(text, most)
    assert len(truncated.encode()) <= most
    assert truncated == text or truncated.endswith("…") or "?" in truncated


@given(st.lists(st.tuples(st.sampled_from("wlgn"), st.integers(0, 5)), max_size=60))
def test_pending_count_is_exact(steps: list[tuple[str, int]]) -> None:
    table, now = aggregator(max_events=4, max_pending=3), 0.0
    for what, number in steps:
        now += 20.0
        if what == "n":
            table.add(event_key(name=f"p{number}"), now, WALL + now)
        for write in table.due_writes(now)[:number]:
            if what == "w":
                table.on_written(write, write_count(write), now)
            elif what != "n":
                (table.on_rejected if what == "l" else table.on_deleted)(write)
        assert table.waiting == sum(not state.written for state in table._states.values())
        assert table.waiting <= 4
        assert len(table._states) <= 4


# --- the recorder -------------------------------------------------------------------------------------------------------


class RecorderHarness:
    """A recorder that runs."""

    def __init__(self, fake: FakeApiServer, time: FakeTime, recorder: EventRecorder) -> None:
        self.fake, self.time, self.recorder = fake, time, recorder

    def record(self, note: str = "it is", about: Manifest = POD) -> None:
        self.recorder.record(about, EventType.WARNING, "Reason", "Act", note)

    @property
    def events(self) -> list[Manifest]:
        return list(self.fake.objects.values())

    def counts(self) -> list[int]:
        return [event.get("series", {}).get("count", 1) for event in self.events]


@asynccontextmanager
async def recorder_harness(*, running: bool = True) -> AsyncIterator[RecorderHarness]:
    async with fake_api_server() as fake:
        time = FakeTime()
        async with KubeApi(fake.config(), time, lambda: 0.0, pause=time.pause) as api:
            recorder = EventRecorder(api, "fairlead.io/operator", "pod-1", time, pause=time.pause)
            task = asyncio.create_task(recorder.run()) if running else None
            try:
                yield RecorderHarness(fake, time, recorder)
            finally:
                await cancel_and_wait(task)


async def test_event_is_written_at_once_and_repetitions_later() -> None:
    async with recorder_harness() as lab:
        lab.record()
        await wait_until(lambda: len(lab.events) == 1)
        for _ in range(9):
            lab.record()
        lab.record("something else")
        await wait_until(lambda: len(lab.events) == 2)
        assert lab.counts() == [1, 1]
        await wait_until(lambda: lab.time.pending_pauses == [10.0])
        lab.time.advance(10.0)
        await wait_until(lambda: sorted(lab.counts()) == [1, 10])
        assert (lab.fake.call_count("POST"), lab.fake.call_count("PATCH")) == (2, 1)
        assert lab.recorder.dropped == 0


async def test_expired_event_is_created_again() -> None:
    async with recorder_harness() as lab:
        lab.record()
        await wait_until(lambda: len(lab.events) == 1)
        lab.fake.objects.clear()
        lab.record()
        await wait_until(lambda: lab.time.pending_pauses == [10.0])
        lab.time.advance(10.0)
        await wait_until(lambda: lab.counts() == [2])


@pytest.mark.parametrize(
    "order",
    [OrderedResponse(403, "Forbidden", "namespace is being terminated"), OrderedResponse(404), OrderedResponse(422)],
)
async def test_rejected_event_is_dropped_with_the_reason(order: OrderedResponse) -> None:
    async with recorder_harness() as lab:
        lab.fake.ordered_responses.append(order)
        lab.record()
        await wait_until(lambda: lab.recorder.dropped == 1)
        assert order.message in str(lab.recorder.problem)
        lab.record("the next")
        await wait_until(lambda: len(lab.events) == 1)
        await wait_until(lambda: lab.recorder.problem is None)


async def test_events_wait_while_the_api_server_is_away() -> None:
    async with recorder_harness() as lab:
        lab.fake.ordered_responses.extend([OrderedResponse(reset=True)] * 3)
        for note in ("a", "b", "c"):
            lab.record(note)
        await wait_until(lambda: lab.time.pending_pauses == [10.0])
        assert (lab.events, lab.recorder.problem is None) == ([], False)
        lab.time.advance(10.0)
        await wait_until(lambda: len(lab.events) == 3)
        assert lab.recorder.dropped == 0


async def test_lost_response_creates_no_second_event() -> None:
    async with recorder_harness() as lab:
        lab.fake.ordered_responses.append(OrderedResponse(500, takes_effect=True))
        lab.record()
        await wait_until(lambda: lab.time.pending_pauses == [10.0])
        lab.time.advance(10.0)
        await wait_until(lambda: lab.fake.call_count("POST") == 2)
        await wait_until(lambda: lab.recorder._aggregator.waiting == 0)
        assert lab.counts() == [1]


async def test_flush_writes_the_rest_within_a_bound() -> None:
    async with recorder_harness(running=False) as lab:
        lab.record("a")
        lab.record("b")
        await lab.recorder.flush()
        assert len(lab.events) == 2
        lab.record("c")
        lab.fake.ordered_responses.extend([OrderedResponse(503, headers={"Retry-After": "20"})] * 9)
        flushing = asyncio.create_task(lab.recorder.flush())
        await wait_until(lambda: 5.0 in lab.time.pending_pauses and len(lab.time.pending_pauses) == 2)
        lab.time.advance(5.0)
        await flushing
        assert len(lab.events) == 2
