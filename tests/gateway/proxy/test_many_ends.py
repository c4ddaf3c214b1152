"""Requests of one caller that end together: few in one turn of the loop, each at the usual cost."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead.tenants.model import Tenant
from fairlead_gateway.http.timers import MAX_ENDS_PER_TURN
from fairlead_gateway.idempotency.worker import keyed_requests
from fairlead_gateway.routing.load import inflight
from fairlead_testing.engines.scripted import silent, silent_after_token
from fairlead_testing.gateway.running_gateway import (
    ALIKE,
    GOOD,
    GROWING,
    SLOW,
    RunningGateway,
    fleet_of,
    running_gateway,
    scripted_engine,
    with_profile,
)
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.simulated.event_loop import SimulatedLoop
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated
COUNT = 200
PROMPT = "word " * 2_000
LIMITS = replace(Limits(), queue_seconds=20.0)


class Burst:
    """Requests of one caller that are in flight together.

    most_at_once: the most that have ended in one turn of the loop.
    """

    def __init__(self, running: RunningGateway, connections: list[RawConnection]) -> None:
        self.running = running
        self._connections = connections
        self.most_at_once = 0

    def leave(self) -> None:
        for connection in self._connections:
            connection.writer.transport.abort()

    async def watch(self) -> None:
        """Watches each turn of the loop until all requests have ended."""
        loop, before = asyncio.get_running_loop(), self.running.gateway.inflight_count()
        assert isinstance(loop, SimulatedLoop)
        select = loop.simulated.select

        def watching(timeout: float | None = None) -> Any:
            nonlocal before
            left = self.running.gateway.inflight_count()
            self.most_at_once, before = max(self.most_at_once, before - left), left
            return select(timeout)

        loop.simulated.select = watching  # type: ignore[method-assign]
        await wait_until(lambda: self.running.gateway.inflight_count() <= 1)  # the engine has one


@asynccontextmanager
async def _burst(kind: str, count: int = COUNT) -> AsyncIterator[Burst]:
    body: dict[str, Any] = GOOD | {"messages": [{"role": "user", "content": PROMPT}], "stream": kind == "relayed"}
    more = authorization("acme") + ("x-request-timeout: 30\r\n" if kind == "timed" else "")
    async with scripted_engine(silent_after_token if kind == "relayed" else silent) as engine:
        fleet = fleet_of([engine.url], objectives=GROWING if kind == "queued" else ALIKE)
        if kind in ("queued", "assigned"):
            fleet = with_profile(fleet, SLOW)
        async with running_gateway(fleet, LIMITS, api_keys=keys_of(Tenant("acme"))) as running:
            connections = []
            for number in range(count):
                connection = await RawConnection.connect(running.url)
                key = f"idempotency-key: key-{number}\r\n" if kind == "keyed" else ""
                await connection.send(post_request(body, more=more + key))
                connections.append(connection)
            await wait_until(lambda: running.gateway.inflight_count() == count)
            if kind == "relayed":
                await asyncio.gather(*[one.reader.readuntil(b'"content":"a"') for one in connections])
            yield Burst(running, connections)
            for connection in connections:
                connection.writer.transport.abort()


@pytest.mark.parametrize("kind", ["sent", "queued", "assigned", "relayed", "keyed", "timed"])
async def test_few_of_the_requests_whose_clients_leave_together_end_in_one_turn(kind: str) -> None:
    async with _burst(kind) as burst:
        burst.leave()
        await burst.watch()
        assert 0 < burst.most_at_once <= 2 * MAX_ENDS_PER_TURN  # a task may end a turn later


@pytest.mark.parametrize("kind", ["queued", "assigned", "timed"])
async def test_few_of_the_requests_whose_time_is_over_end_in_one_turn(kind: str) -> None:
    async with _burst(kind) as burst:
        await burst.watch()
        assert 0 < burst.most_at_once <= 2 * MAX_ENDS_PER_TURN  # a task may end a turn later


async def test_few_requests_of_a_caller_run_on_without_a_client_and_their_bodies_count() -> None:
    async with _burst("keyed") as burst:
        listener = burst.running.gateway.listener
        before = listener.buffered_bytes
        burst.leave()
        await wait_until(lambda: not listener.connections)
        await wait_until(lambda: burst.running.gateway.inflight_count() <= keyed_requests.MAX_UNREAD)
        left = burst.running.gateway.inflight_count()
        assert left == keyed_requests.MAX_UNREAD
        assert 0.9 * before < listener.buffered_bytes * COUNT / left <= before
        await asyncio.sleep(LIMITS.idempotency_unread_seconds + 1.0)
        assert (burst.running.gateway.inflight_count(), listener.buffered_bytes) == (0, 0)


async def _lines_of_ends(count: int) -> float:
    """Returns how many lines of the gateway run for each request of a burst that ends."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if "fairlead_gateway" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        return trace

    async with _burst("sent", count) as burst:
        burst.leave()
        sys.settrace(trace)
        try:
            await burst.watch()
        finally:
            sys.settrace(None)
    return lines / count


@pytest.mark.skipif(not (inflight.__file__ or "").endswith(".py"), reason="compiled code runs no lines")
async def test_end_of_a_request_costs_the_same_however_many_of_its_caller_end() -> None:
    few, many = await _lines_of_ends(COUNT), await _lines_of_ends(4 * COUNT)
    assert many <= 1.2 * few
