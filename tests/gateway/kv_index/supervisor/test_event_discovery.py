"""The search for engines that publish KV events although the fleet does not say so."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest

from fairlead.errors import Unavailable
from fairlead.fleet.model import EXTERNAL_API, Instance
from fairlead_gateway.kv_index.supervisor.event_discovery import EVENT_SEARCH_SECONDS, EventDiscovery
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.waiting import wait_until

PUBLISHES = json.dumps({"0": {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557"}}).encode()
_, INSTANCES = next(iter(fleet_of([f"http://127.0.0.1:{9 + number}" for number in range(3)]).instances.items()))


class Engines:
    """Engines whose answers are by URL; others do not answer."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.queries: Counter[str] = Counter()
        self.order: list[str] = []
        self.found: list[str] = []
        self.pauses: list[float] = []
        self.open = self.most_open = 0
        self.blocked: asyncio.Event | None = None
        self.discovery = EventDiscovery(self.query, self.found.append, self.pause)

    async def query(self, instance: Instance, path: str) -> bytes:
        assert path == "/kv_event_sources"
        self.queries[instance.url] += 1
        self.order.append(instance.namespace)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        if self.blocked is not None:
            await self.blocked.wait()
        self.open -= 1
        if instance.url not in self.answers:
            raise Unavailable("404")
        return self.answers[instance.url]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) > 20:
            await asyncio.Event().wait()


async def test_engines_of_a_model_are_queried_in_turn_and_less_and_less_often() -> None:
    engines = Engines()
    engines.discovery.set_models({"default/tiny": INSTANCES})
    await wait_until(lambda: len(engines.pauses) > 20)
    assert sum(engines.queries.values()) == 21
    assert max(engines.queries.values()) == 7, "each in turn"
    assert engines.pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert engines.pauses[-1] == EVENT_SEARCH_SECONDS
    assert not engines.found
    await engines.discovery.stop()


async def test_a_model_is_found_once_and_one_that_left_is_not_searched() -> None:
    engines = Engines()
    engines.answers = {INSTANCES[0].url: b"{}", INSTANCES[1].url: PUBLISHES, INSTANCES[2].url: PUBLISHES}
    outside = [replace(one, engine=EXTERNAL_API) for one in INSTANCES]
    engines.discovery.set_models({"default/tiny": INSTANCES, "default/api": outside, "default/gone": INSTANCES[:1]})
    engines.discovery.set_models({"default/tiny": INSTANCES, "default/api": outside})
    await wait_until(lambda: engines.found == ["default/tiny"])
    assert engines.queries[INSTANCES[2].url] == 0
    assert max(engines.queries.values()) == 1
    await engines.discovery.stop()


async def test_slow_engines_of_one_namespace_delay_no_other() -> None:
    engines = Engines()
    engines.blocked = asyncio.Event()
    slow = {f"slow/{number}": [replace(INSTANCES[0], namespace="slow")] for number in range(30)}
    engines.discovery.set_models(slow)
    await wait_until(lambda: engines.open == 4)
    engines.discovery.set_models(slow | {"other/one": [replace(INSTANCES[1], namespace="other")]})
    await asyncio.sleep(0)
    assert engines.most_open == 4
    assert not engines.queries[INSTANCES[1].url]
    engines.blocked.set()
    await wait_until(lambda: engines.queries[INSTANCES[1].url] > 0)
    assert "other" in engines.order[:6], "it had one of the next free slots"
    await engines.discovery.stop()


async def test_a_defect_ends_no_search(caplog: pytest.LogCaptureFixture) -> None:
    engines, failures = Engines(), [RuntimeError("a defect of the test")]
    engines.answers[INSTANCES[0].url] = PUBLISHES

    def on_found(key: str) -> None:
        if failures:
            raise failures.pop()
        engines.found.append(key)

    engines.discovery = EventDiscovery(engines.query, on_found, engines.pause)
    engines.discovery.set_models({"default/tiny": INSTANCES[:1]})
    await wait_until(lambda: engines.found == ["default/tiny"])
    assert "search for KV events" in caplog.text
