"""Prefills that outlive their requests: each caller has a few of them."""

import asyncio
from collections.abc import Callable

import pytest

from fairlead.fleet.model import Fleet, Instance, Model, Role
from fairlead.limits import Limits
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.disaggregation.worker.prefill_coordinator import MAX_WITHOUT_REQUEST, ConcurrentPrefills
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_testing.engines.disaggregated import make_prompt
from fairlead_testing.engines.scripted import EngineCall, scripted_engine
from fairlead_testing.gateway.running_gateway import running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.simulated.event_loop import running_clock
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated


async def test_prefills_of_a_caller_that_leaves_at_once_are_bounded() -> None:
    runtime, counted = WorkerRuntime(running_clock(), Limits(), asyncio.get_running_loop()), dict[CallerKey, int]()

    def count(caller: CallerKey, change: int) -> None:
        counted[caller] = counted.get(caller, 0) + change

    runtime.count_detached_bytes = count
    prefills = ConcurrentPrefills(runtime)
    may_end = asyncio.Event()

    async def prefill() -> None:
        await may_end.wait()

    other, running = prefills.start(prefill()), prefills.start(prefill())
    prefills.on_request_ended(other, CallerKey("other"), 7)
    for _ in range(1_000):
        prefills.on_request_ended(prefills.start(prefill()), CallerKey("leaves"), 100)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(prefills) <= MAX_WITHOUT_REQUEST + 3
    assert not other.done()
    assert not running.done()
    assert counted == {"other": 7, "leaves": 100 * MAX_WITHOUT_REQUEST}, "bodies count while prefills run"
    may_end.set()
    await asyncio.gather(other, running)
    await wait_until(lambda: len(prefills) == 0)
    assert not prefills._without_request
    assert counted == {"other": 0, "leaves": 0}


async def test_requests_that_leave_during_their_prefill_keep_few_connections() -> None:
    calls: list[EngineCall] = []

    async def silent(call: EngineCall) -> None:
        calls.append(call)
        await call.wait_closed()

    async with scripted_engine(silent) as prefill, scripted_engine(silent) as decode:
        instances = (_instance("p-0/1/0", prefill.url, Role.PREFILL), _instance("d-0/1/0", decode.url, Role.DECODE))
        fleet = Fleet(1, 1, {"default/tiny": Model("default", "tiny")}, {"default/tiny": instances})
        async with running_gateway(fleet, Limits(handoff_min_tokens=1)) as running:
            prefills = running.gateway.stages.prefill_coordinator.concurrent_prefills
            for number in range(MAX_WITHOUT_REQUEST + 8):
                client = await RawConnection.connect(running.url)
                body = {"model": "tiny", "prompt": make_prompt(2_000, f"{number}x"), "max_tokens": 4}
                await client.send(post_request(body, path="/v1/completions"))
                await wait_until(_has(calls, 2 * (number + 1)))
                await client.close()
                await wait_until(lambda: running.gateway.inflight_count() == 0)
            assert len(prefills) <= MAX_WITHOUT_REQUEST + 1


def _has(calls: list[EngineCall], count: int) -> Callable[[], bool]:
    return lambda: len(calls) >= count


def _instance(name: str, url: str, role: Role) -> Instance:
    return Instance(name, "default", "tiny", "main", url, engine="sglang", role=role, transfer="sglang")
