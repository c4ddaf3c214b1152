"""An informer with a fake API server that ends, forgets, freezes and refuses."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.informer import (
    KUBE_RELIST_SPREAD_SECONDS,
    KUBE_WATCH_SILENCE_SECONDS,
    Informer,
    InformerAction,
    InformerStep,
)
from fairlead.kube.resources import CONFIG_MAPS, PODS, ObjectSelection
from fairlead.kube.watch_events import WatchEvent
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_testing.kube.fake_server import FakeApiServer, OrderedResponse, fake_api_server
from fairlead_testing.waiting import FakeTime, wait_until

pytestmark = pytest.mark.simulated

LIMITS = Limits()


@dataclass
class InformerHarness:
    """An informer of the pods in ``x``, and everything around it."""

    fake: FakeApiServer
    time: FakeTime
    heard: list[tuple[str, str]] = field(default_factory=list)
    steps: list[InformerStep] = field(default_factory=list)
    informer: Informer = field(init=False)

    def names(self) -> list[str]:
        return sorted(key.removeprefix("x/") for key in self.informer.items)

    async def have(self, *names: str) -> None:
        await wait_until(lambda: self.names() == list(names))

    async def watched(self) -> None:
        await wait_until(lambda: self.fake.watch_count == 1)

    async def passing(self, condition: Callable[[], bool]) -> None:
        """Let every pause but the watch for silence be over, until ``condition`` holds."""
        await self.time.advance_until(condition, KUBE_WATCH_SILENCE_SECONDS / 2)


@asynccontextmanager
async def running_informer() -> AsyncIterator[InformerHarness]:
    async with fake_api_server() as fake:
        lab = InformerHarness(fake, FakeTime())
        async with KubeApi(fake.config(), lab.time, lambda: 0.5, pause=lab.time.pause) as api:

            def on_change(change: WatchEvent) -> None:
                lab.heard.append((str(change.type), change.object["metadata"]["name"]))

            lab.informer = Informer(
                api,
                ObjectSelection(PODS, "x"),
                Pacing(lab.time, lambda: 0.5, lab.time.pause),
                on_change=on_change,
                report=lab.steps.append,
            )
            task = asyncio.create_task(lab.informer.run())
            try:
                yield lab
            finally:
                await cancel_and_wait(task)


async def test_object_nested_10000_levels_does_not_end_a_watch() -> None:
    async with running_informer() as lab:
        await lab.watched()
        deep = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
        metadata = b'{"name": "deep", "namespace": "x", "uid": "u", "resourceVersion": "900"}'
        pod = b'{"kind": "Pod", "apiVersion": "v1", "metadata": %s, "spec": %s}' % (metadata, deep)
        lab.fake._notify(b'{"type": "ADDED", "object": %s}\n' % pod)
        lab.fake.put(PODS, "x", "flat")
        await lab.have("deep", "flat")


async def test_informer_lists_then_watches() -> None:
    async with running_informer() as lab:
        assert (lab.informer.is_synced, lab.informer.age_seconds()) == (False, None)
        lab.fake.put(PODS, "x", "a")
        lab.fake.put(PODS, "y", "elsewhere")
        lab.fake.put(CONFIG_MAPS, "x", "another")
        await lab.informer.wait_known()
        assert lab.names() == ["a"]
        await lab.watched()
        lab.fake.put(PODS, "x", "b")
        lab.fake.put(PODS, "x", "a", spec={"nodeName": "n"})
        lab.fake.remove(PODS, "x", "b")
        await wait_until(lambda: len(lab.heard) == 4)
        assert lab.heard == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
        assert lab.names() == ["a"]
        assert (lab.informer.list_count, lab.informer.watch_count) == (1, 1)


async def test_clean_end_continues_from_the_last_version() -> None:
    async with running_informer() as lab:
        await lab.watched()
        lab.fake.put(PODS, "x", "a")
        await lab.have("a")
        lab.fake.frozen = True  # no event is delivered from here on
        lab.fake.put(PODS, "x", "b")
        lab.fake.remove(PODS, "x", "a")
        lab.fake.end_watches()
        await lab.have("b")
        assert lab.informer.list_count == 1
        assert lab.heard == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]
        assert [(step.action, step.pause_seconds) for step in lab.steps] == [(InformerAction.RESUME, 0.0)]


async def test_watches_that_end_at_once_are_reopened_less_often() -> None:
    async with running_informer() as lab:
        lab.fake.ordered_watch_responses.extend([OrderedResponse(200, body=b"")] * 5)
        await lab.passing(lambda: lab.fake.watch_count == 1)
        pauses = [step.pause_seconds for step in lab.steps]
        assert pauses == pytest.approx([0.15, 0.3, 0.6, 1.2, 2.4])
        assert lab.informer.list_count == 1


async def test_bookmark_advances_version_and_resets_age() -> None:
    async with running_informer() as lab:
        await lab.watched()
        lab.fake.put(CONFIG_MAPS, "x", "another")
        lab.time.advance(60.0)
        assert lab.informer.age_seconds() == 60.0
        lab.fake.bookmark()
        await wait_until(lambda: lab.informer.age_seconds() == 0.0)
        lab.fake.forget()
        lab.fake.end_watches()
        await wait_until(lambda: lab.informer.watch_count == 2)
        await lab.watched()
        assert lab.informer.list_count == 1  # the bookmark's version is not forgotten
        assert lab.heard == []


async def test_expired_version_is_relisted_with_only_differences() -> None:
    async with running_informer() as lab:
        lab.fake.put(PODS, "x", "a")
        lab.fake.put(PODS, "x", "b")
        await lab.have("a", "b")
        await lab.watched()
        lab.fake.frozen = True
        lab.fake.remove(PODS, "x", "a")
        lab.fake.put(PODS, "x", "c")
        lab.fake.forget()
        lab.fake.frozen = False
        lab.fake.end_watches()
        await lab.passing(lambda: lab.names() == ["b", "c"])
        assert lab.heard == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a"), ("ADDED", "c")]
        assert lab.informer.list_count == 2
        assert (lab.steps[-1].action, lab.steps[-1].reason) == (
            InformerAction.RELIST,
            "the API server no longer has our version",
        )
        assert lab.steps[-1].pause_seconds >= KUBE_RELIST_SPREAD_SECONDS / 2


async def test_frozen_watch_is_replaced() -> None:
    async with running_informer() as lab:
        await lab.watched()
        lab.fake.frozen = True
        lab.fake.put(PODS, "x", "a")
        lab.time.advance(KUBE_WATCH_SILENCE_SECONDS / 2)
        assert lab.names() == []
        lab.time.advance(KUBE_WATCH_SILENCE_SECONDS / 2)
        await lab.have("a")
        assert (lab.informer.list_count, lab.informer.watch_count) == (1, 2)
        assert lab.steps[0].reason == "no event for 90 s"


async def test_unanswered_watch_is_replaced() -> None:
    async with running_informer() as lab:
        lab.fake.ordered_watch_responses.append(OrderedResponse(mute=True))
        await wait_until(lambda: not lab.fake.ordered_watch_responses)
        await wait_until(lambda: KUBE_WATCH_SILENCE_SECONDS in lab.time.pending_pauses)
        lab.time.advance(KUBE_WATCH_SILENCE_SECONDS)
        await lab.watched()
        assert (lab.informer.list_count, lab.informer.watch_count) == (1, 2)


async def test_second_silence_causes_a_relist() -> None:
    async with running_informer() as lab:
        for watches in (1, 2):
            await wait_until(lambda: lab.informer.watch_count == watches)  # noqa: B023
            await lab.watched()
            await wait_until(lambda: KUBE_WATCH_SILENCE_SECONDS in lab.time.pending_pauses)
            lab.time.advance(KUBE_WATCH_SILENCE_SECONDS)
        await lab.passing(lambda: lab.informer.list_count == 2)
        assert [step.action for step in lab.steps] == [InformerAction.RESUME, InformerAction.RELIST]


async def test_broken_connection_loses_nothing() -> None:
    async with running_informer() as lab:
        await lab.watched()
        lab.fake.put(PODS, "x", "a")
        await lab.have("a")
        lab.fake.frozen = True
        lab.fake.put(PODS, "x", "b")
        lab.fake.ordered_watch_responses += [
            OrderedResponse(503),
            *[OrderedResponse(reset=True)] * 3,
            OrderedResponse(429, headers={"Retry-After": "9"}),
        ]
        lab.fake.send_event({"type": "ADDED"})  # no event: the watch is broken
        await lab.passing(lambda: lab.names() == ["a", "b"])
        assert {step.action for step in lab.steps} == {InformerAction.RESUME}
        assert lab.steps[-1].pause_seconds > 9.0
        assert lab.informer.list_count == 1


async def test_problem_clears_when_a_watch_opens_without_events() -> None:
    async with running_informer() as lab:
        await lab.watched()
        lab.fake.ordered_watch_responses.append(OrderedResponse(503))
        lab.fake.end_watches()
        await lab.passing(lambda: lab.informer.problem is not None)
        await lab.passing(lambda: lab.fake.watch_count == 1 and lab.informer.problem is None)
        assert lab.informer.list_count == 1


async def test_repeatedly_refused_version_is_relisted() -> None:
    async with running_informer() as lab:
        lab.fake.ordered_watch_responses.extend([OrderedResponse(504, "Timeout", "too large resource version")] * 3)
        await lab.passing(lambda: lab.fake.watch_count == 1)
        assert [step.action for step in lab.steps] == [
            InformerAction.RESUME,
            InformerAction.RESUME,
            InformerAction.RELIST,
        ]
        assert lab.informer.list_count == 2


async def test_last_state_and_problem_stay_while_listing_is_forbidden() -> None:
    async with running_informer() as lab:
        lab.fake.put(PODS, "x", "a")
        await lab.have("a")
        await lab.watched()
        lab.fake.put(PODS, "x", "b")
        await lab.have("a", "b")
        lab.fake.forget()
        lab.fake.ordered_responses.extend([OrderedResponse(403, "Forbidden", "may not list")] * 3)
        lab.fake.send_event({"type": "ERROR", "object": {"code": 410, "reason": "Expired"}})
        await lab.passing(lambda: "may not list" in str(lab.informer.problem))
        assert lab.names() == ["a", "b"]
        age = lab.informer.age_seconds()
        assert age is not None
        assert age > 0
        await lab.passing(lambda: lab.fake.watch_count == 1)
        assert (lab.informer.problem, lab.names()) == (None, ["a", "b"])
        assert [name for _, name in lab.heard] == ["a", "b"]


async def test_exception_of_a_callback_ends_it() -> None:
    async with fake_api_server() as fake:
        fake.put(PODS, "x", "a")
        time = FakeTime()

        def broken(change: WatchEvent) -> None:
            raise ValueError("a mistake of ours")

        async with KubeApi(fake.config(), time, lambda: 0.5) as api:
            listing = Informer(api, ObjectSelection(PODS), Pacing(time, lambda: 0.5), on_change=broken)
            with pytest.raises(ValueError, match="a mistake of ours"):
                await listing.run()
            watching = Informer(
                api, ObjectSelection(PODS, "y"), Pacing(time, lambda: 0.5, time.pause), on_change=broken
            )
            task = asyncio.create_task(watching.run())
            await wait_until(lambda: fake.watch_count == 1)
            fake.put(PODS, "y", "b")
            with pytest.raises(ValueError, match="a mistake of ours"):
                await task


def test_connection_accepted_during_shutdown_is_closed() -> None:
    """A test of the fake server: a connection that it left open once disturbed other tests."""

    async def main(turns: int) -> bytes:
        async with fake_api_server() as fake:
            there = urlsplit(fake.url)
            client = socket.create_connection((there.hostname, there.port), timeout=10.0)
            for _ in range(turns):
                await asyncio.sleep(0)
        with client:
            try:
                return client.recv(1)
            except ConnectionResetError:
                return b""

    assert [asyncio.run(main(turns)) for turns in range(5)] == [b""] * 5
    gc.collect()  # what was left open warns here, which is an error
