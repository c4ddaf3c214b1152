"""Engines that compute a few requests at a time: the gateway keeps the others, in its own order."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead_gateway.admission.kv_capacity import HOLD_SECONDS, REQUESTS_AHEAD, EngineLoad, KvCapacityPlanner
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import EngineCall, scripted_engine
from fairlead_testing.gateway.limited_gateway import answer
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

SEQUENCES = 4
QUICK = EngineProfile("quick", 1e-6, sequence_seconds=1.0, kv_tokens=10_000_000, max_sequences=SEQUENCES)
"""Its prefill takes no time, and it has memory for everybody: sequences alone are scarce."""
FOURTH = 200
SMALL = replace(QUICK, kv_tokens=4 * FOURTH, max_sequences=64)
"""Memory alone is scarce: it suffices for three answers of `FOURTH` tokens with their prompts."""
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
        await call.respond(answer(output=call.json["max_tokens"]))
        self.ended += 1

    @property
    def running(self) -> int:
        return len(self.order) - self.ended


class Scene:
    def __init__(self, gateway: RunningGateway, engine: HoldingEngine) -> None:
        self.gateway = gateway
        self.engine = engine
        self.tasks: list[asyncio.Task[RawResponse]] = []

    def send(self, caller: str, *names: str, max_tokens: int = 2) -> None:
        for name in names:
            messages = [{"role": "user", "content": "w"}]
            body = {"model": "tiny", "messages": messages, "user": name, "max_tokens": max_tokens}
            self.tasks.append(
                asyncio.ensure_future(request(self.gateway.url, body, more=f"authorization: Bearer {caller}\r\n"))
            )

    def queued(self) -> int:
        return self.gateway.gateway.stages.admission.queued().get(MODEL_KEY, 0)

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
    plain = fleet_of([url], preset=preset)
    instances = tuple(replace(instance, profile=profile) for instance in plain.instances[MODEL_KEY])
    return replace(plain, instances={MODEL_KEY: instances})


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


@EITHER_QUEUE
@pytest.mark.parametrize(
    ("path", "several"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "w"}], "n": SEQUENCES}),
        ("/v1/completions", {"prompt": ["w"] * SEQUENCES}),
        ("/v1/completions", {"prompt": [[1], [2]], "n": SEQUENCES // 2}),
    ],
)
async def test_each_answer_of_a_request_takes_a_sequence(preset: str, path: str, several: dict[str, Any]) -> None:
    async with scene(preset, "flood", "steady") as now:
        for number in range(3):
            body = {"model": "tiny", "user": f"f{number}", "max_tokens": 2, **several}
            more = "authorization: Bearer flood\r\n"
            now.tasks.append(asyncio.ensure_future(request(now.gateway.url, body, path=path, more=more)))
            await wait_until(lambda number=number: now.queued() == number and now.engine.running == 1)  # type: ignore[misc]
        now.send("steady", "s0")
        await wait_until(lambda: now.queued() == 3)
        await now.finish()
        assert "s0" in now.engine.order[:3], "callers with equal shares take turns"


@pytest.mark.parametrize(("others", "most_ahead"), [(0.0, 0), (100.0, REQUESTS_AHEAD)])
def test_callers_with_small_shares_go_ahead_of_what_other_processes_would_take(others: float, most_ahead: int) -> None:
    """A sequence that becomes free is seen at once where no other process takes it."""

    def may_start(free: int, *, small_share: bool) -> bool:
        engine = EngineLoad("e", 0.0, 1.0, other_tokens=others)
        engine.free_sequences = float(free)
        return engine.has_free_sequence(small_share=small_share)

    assert [may_start(free, small_share=False) for free in (1, 0, -1)] == [True, False, False]
    assert may_start(1 - most_ahead, small_share=True)
    assert not may_start(-most_ahead, small_share=True)


def test_tokens_of_others_are_those_of_requests_that_an_instance_has() -> None:
    local = EndpointLoad("e", inflight=3, inflight_tokens=300.0, queued=1)
    total = EndpointLoad("e", inflight=3 + 8, inflight_tokens=300.0 + 4_000.0, queued=1 + 6)
    assert local.tokens_of_others(total) == 1_000.0, "six of their eight requests wait in a process"
    assert local.tokens_of_others(local) == 0.0


async def test_a_burst_larger_than_the_memory_waits_in_the_gateway() -> None:
    async with scene("dual-hash", "flood", "steady", profile=SMALL) as now:
        now.send("flood", *[f"f{number}" for number in range(20)], max_tokens=FOURTH)
        await wait_until(lambda: now.engine.running > 0 and now.queued() + now.engine.running == 20)
        assert now.engine.running == 3, "a fourth one would not fit until the first ends"
        now.send("steady", "s0", max_tokens=FOURTH)
        await wait_until(lambda: now.queued() + now.engine.running == 21)
        await now.finish()
        assert now.engine.order[3] == "s0"


async def test_the_memory_of_each_request_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: Counter[str] = Counter()
    plan = KvCapacityPlanner.on_dispatch

    def count(planner: KvCapacityPlanner, request: RouteRequest, *rest: Any, **more: Any) -> None:
        planned[request.id] += 1
        plan(planner, request, *rest, **more)

    monkeypatch.setattr(KvCapacityPlanner, "on_dispatch", count)
    async with scene("dual-hash", "flood", profile=SMALL) as now:
        now.send("flood", *[f"f{number}" for number in range(8)], max_tokens=FOURTH)
        await wait_until(lambda: now.engine.running == 3 and now.queued() == 5)
        assert len(planned) == 3, "a waiting request has no memory"
        await now.finish()
        assert [*planned.values()] == [1] * 8


async def test_a_request_too_large_for_what_is_free_holds_back_a_flood_for_a_while() -> None:
    async with scene("dual-hash", "flood", "large", profile=SMALL) as now:
        now.send("flood", "f0", "f1", "f2", max_tokens=FOURTH)
        await wait_until(lambda: now.engine.running == 3)
        now.send("large", "all", max_tokens=3 * FOURTH)
        await wait_until(lambda: now.queued() == 1)
        now.send("flood", "f3", max_tokens=1)
        await wait_until(lambda: now.queued() == 2)
        await asyncio.sleep(HOLD_SECONDS - 1)
        assert len(now.engine.order) == 3
        await asyncio.sleep(1.1)
        assert now.engine.order[3:] == ["f3"]
        await now.finish()
        assert now.engine.order[4:] == ["all"]


@pytest.mark.parametrize("profile", [QUICK, SMALL], ids=["sequences", "memory"])
async def test_a_request_waits_for_no_longer_than_the_limit(profile: EngineProfile) -> None:
    seconds = Limits().queue_seconds
    async with scene("dual-hash", "flood", profile=profile) as now:
        now.send("flood", "f0", max_tokens=FOURTH)
        await wait_until(lambda: now.engine.running == 1)
        now.send("flood", *[f"f{number}" for number in range(1, 6)], max_tokens=2 * FOURTH)
        await wait_until(lambda: now.queued() + now.engine.running == 6)
        waiting = now.queued()
        assert waiting > 0
        await asyncio.sleep(seconds - 1)
        assert now.queued() == waiting
        now.send("flood", "late", max_tokens=2 * FOURTH)
        await asyncio.sleep(1.1)
        refused = [task.result() for task in now.tasks if task.done()]
        assert [response.status for response in refused] == [503] * waiting
        assert refused[0].error["code"] == "overloaded"
        assert f"for {seconds:.0f}." in refused[0].error["message"]
        assert int(refused[0].fields["retry-after"]) > 0
        assert now.queued() == 1, "the last one has not waited for long"
        while not all(task.done() for task in now.tasks):
            await now.finish_one()
        assert now.engine.order[-1] == "late"


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
        serving = now.gateway.gateway.stages.routers.serving
        (instance,) = serving.ready_instances(MODEL_KEY)
        serving.set_sequence_bounds({instance: 3})
        await now.flood(waiting=5, sequences=3)
        await now.finish()
