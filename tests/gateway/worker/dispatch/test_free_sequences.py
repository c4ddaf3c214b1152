"""Engines that compute a few requests at a time: the gateway keeps the others, in its own order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet
from fairlead_gateway.admission.fair_share import FairShare
from fairlead_gateway.admission.kv_capacity import REQUESTS_AHEAD
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.worker.api_keys import ApiKeys, key_digest
from fairlead_gateway.worker.dispatch.free_sequences import FreeSequences
from fairlead_gateway.worker.dispatch.router_registry import RoleRouters
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, well_behaved
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

SEQUENCES = 4
QUICK = EngineProfile("quick", 1e-6, sequence_seconds=1.0, kv_tokens=10_000_000, max_sequences=SEQUENCES)
"""Its prefill takes no time, and it has memory for everybody: sequences alone are scarce."""
EITHER_QUEUE = pytest.mark.parametrize("preset", ["dual-hash", "least-request"])
"""With late binding, and without."""


class HoldingEngine:
    """A script that answers one request for each turn; `order` has the users of requests."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.ended = 0
        self.turns = asyncio.Semaphore(0)

    async def script(self, call: EngineCall) -> None:
        self.order.append(call.json["user"])
        await self.turns.acquire()
        await well_behaved(call)
        self.ended += 1

    @property
    def running(self) -> int:
        return len(self.order) - self.ended


class Scene:
    def __init__(self, gateway: RunningGateway, engine: HoldingEngine) -> None:
        self.gateway = gateway
        self.engine = engine
        self.tasks: list[asyncio.Task[RawResponse]] = []

    def send(self, caller: str, *names: str) -> None:
        for name in names:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "w"}], "user": name, "max_tokens": 2}
            self.tasks.append(
                asyncio.ensure_future(request(self.gateway.url, body, more=f"authorization: Bearer {caller}\r\n"))
            )

    def queued(self) -> int:
        return self.gateway.gateway.stack.admission.queued().get(MODEL_KEY, 0)

    async def flood(self, waiting: int, sequences: int = SEQUENCES) -> None:
        """Sends as many requests as the engine computes, then more, which wait."""
        self.send("flood", *[f"f{number}" for number in range(sequences)])
        await wait_until(lambda: self.engine.running == sequences)
        self.send("flood", *[f"f{number}" for number in range(sequences, sequences + waiting)])
        await wait_until(lambda: self.queued() == waiting)
        assert self.engine.running == sequences

    async def finish_one(self) -> None:
        """Answers the first request that the engine has."""
        expected = self.engine.ended + 1
        self.engine.turns.release()
        await wait_until(lambda: self.engine.ended == expected)

    async def finish(self) -> None:
        """Answers all, one after the other."""
        while self.engine.ended < len(self.tasks):
            await self.finish_one()
        assert {(await task).status for task in self.tasks} == {200}


def fleet(url: str, preset: str, profile: EngineProfile | None) -> Fleet:
    found = fleet_of([url], preset=preset)
    instances = tuple(replace(instance, profile=profile) for instance in found.instances[MODEL_KEY])
    return replace(found, instances={MODEL_KEY: instances})


@asynccontextmanager
async def scene(preset: str, *callers: str, profile: EngineProfile | None = QUICK) -> AsyncIterator[Scene]:
    holding = HoldingEngine()
    keys = ApiKeys(b"pepper", {key_digest(name.encode(), b"pepper"): name for name in callers}) if callers else None
    async with (
        scripted_engine(holding.script) as engine,
        running_gateway(fleet(engine.url, preset, profile), api_keys=keys) as running,
    ):
        yield Scene(running, holding)


@EITHER_QUEUE
async def test_flood_waits_in_the_gateway_and_a_caller_with_a_small_share_is_next(preset: str) -> None:
    async with scene(preset, "flood", "steady") as now:
        await now.flood(waiting=8)
        now.send("steady", "s0", "s1", "s2", "s3")
        await wait_until(lambda: now.queued() == 8 + 4)
        await now.finish()
        assert now.engine.order[SEQUENCES] == "s0"
        assert {"s0", "s1", "s2", "s3"} <= set(now.engine.order[:-2]), "callers with equal shares take turns"


def test_callers_with_small_shares_go_ahead_of_what_other_processes_would_take() -> None:
    share = FairShare(reports=True)
    share.charge("flood", 1.0, 1.0)

    def may_start(caller: CallerKey, sent: int, *, elsewhere: int) -> bool:
        local = EndpointLoad("e", inflight=sent + 3, queued=3)
        router = SimpleNamespace(
            endpoint=lambda _: SimpleNamespace(load=local),
            total_load=lambda load: EndpointLoad("e", inflight=load.inflight + elsewhere + 9, queued=load.queued + 9),
        )
        routers = cast(RoleRouters, SimpleNamespace(router=lambda _: router, sequence_bound=lambda *_: SEQUENCES))
        return FreeSequences(routers).may_start(MODEL_KEY, "e", share, caller)

    assert may_start("flood", 1, elsewhere=2), "what waits in a gateway takes no sequence"
    assert not may_start("flood", 2, elsewhere=2)
    assert [may_start("steady", 2, elsewhere=2 + ahead) for ahead in (0, REQUESTS_AHEAD - 1, REQUESTS_AHEAD)] == [
        True,
        True,
        False,
    ]
    assert not may_start("steady", SEQUENCES, elsewhere=0), "what becomes free is seen at once here"


@EITHER_QUEUE
async def test_engine_computes_as_many_as_it_can_at_all_times(preset: str) -> None:
    async with scene(preset, "flood") as now:
        await now.flood(waiting=4)
        for _ in range(4):
            await now.finish_one()
            await wait_until(lambda: now.engine.running == SEQUENCES)
        await now.finish()


@EITHER_QUEUE
@pytest.mark.parametrize(("callers", "profile"), [((), QUICK), (("flood",), None)], ids=["no-keys", "no-profile"])
async def test_nothing_is_kept_without_callers_or_a_number(
    preset: str, callers: tuple[str, ...], profile: EngineProfile | None
) -> None:
    async with scene(preset, *callers, profile=profile) as now:
        now.send("flood", *[f"f{number}" for number in range(12)])
        await wait_until(lambda: now.engine.running == 12)
        await now.finish()


@EITHER_QUEUE
async def test_learned_number_goes_before_that_of_the_profile(preset: str) -> None:
    async with scene(preset, "flood", profile=None) as now:
        serving = now.gateway.gateway.stack.routers.serving
        (instance,) = serving.ready_instances(MODEL_KEY)
        serving.set_sequence_bounds({instance: 3})
        await now.flood(waiting=5, sequences=3)
        await now.finish()
