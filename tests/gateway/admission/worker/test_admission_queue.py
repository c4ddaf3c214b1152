"""Requests queued in the gateway, over real sockets: their order, and every way out."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from fairlead.fleet.model import Fleet, InstanceState, SloTargets
from fairlead.limits import Limits
from fairlead.tenants.model import Tenant
from fairlead_gateway.journal import Reporters
from fairlead_gateway.telemetry import counters as at
from fairlead_testing.engines.scripted import PausedStream, scripted_engine, well_behaved
from fairlead_testing.gateway.running_gateway import (
    ALIKE,
    GROWING,
    MODEL_KEY,
    SLOW,
    chat,
    count_queued,
    fleet_of,
    gateway_before_busy_engine,
    gateway_of,
    queue_exits,
    running_gateway,
    slow_fleet,
)
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

READY, STARTING = InstanceState.READY, InstanceState.STARTING
SHORT = chat(2)


def timings(fields: Mapping[str, str]) -> list[str]:
    return fields["server-timing"].split(", ")


async def test_while_the_engine_is_busy_the_tighter_objective_overtakes() -> None:
    async with gateway_before_busy_engine() as (running, engine, silent, first):
        loop = asyncio.get_running_loop()
        later = loop.create_task(request(running.url, chat(150)))
        await wait_until(lambda: count_queued(running) == 1)
        sooner = loop.create_task(request(running.url, SHORT))
        await wait_until(lambda: count_queued(running) == 2)
        assert len(engine.calls) == 1
        silent.go_on.set()
        answers = [await first, await later, await sooner]
        assert [answer.status for answer in answers] == [200] * 3
        assert [len(call.json["messages"][0]["content"]) for call in engine.calls] == [800, 4, 300]
        entry = running.gateway.decisions.find(answers[2].fields["x-fairlead-decision"])[0]
        assert entry.latest.decision.reason.startswith("queued for 0.")
        assert "(deadline: has the earliest deadline" in entry.latest.decision.reason
        assert queue_exits(running) == {"deadline": 2}


async def test_plain_requests_wait_as_streams_do() -> None:
    async with gateway_before_busy_engine() as (running, engine, silent, first):
        plain = asyncio.get_running_loop().create_task(request(running.url, SHORT | {"stream": False}))
        await wait_until(lambda: count_queued(running) == 1)
        silent.go_on.set()
        assert (await first).status == (await plain).status == 200
        assert len(engine.calls) == 2


@pytest.mark.parametrize("objectives", [GROWING, ALIKE])
async def test_a_client_that_goes_leaves_the_line(objectives: SloTargets) -> None:
    async with gateway_before_busy_engine(objectives=objectives) as (running, engine, silent, first):
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(SHORT))
        await wait_until(lambda: count_queued(running) == 1)
        await connection.close()
        await wait_until(lambda: count_queued(running) == 0)
        assert {load.inflight for load in running.loads().values()} == {1}
        silent.go_on.set()
        assert (await first).status == 200
        assert len(engine.calls) == 1
        assert queue_exits(running) == {"left": 1}
        assert running.gateway.telemetry.models[MODEL_KEY].ints[at.ABANDONED] == 1


@pytest.mark.parametrize("objectives", [GROWING, ALIKE])
async def test_what_is_held_goes_elsewhere_when_its_engine_is_lost(objectives: SloTargets) -> None:
    async with (
        gateway_before_busy_engine(objectives=objectives) as (running, engine, silent, first),
        scripted_engine() as other,
    ):
        waiting = asyncio.get_running_loop().create_task(request(running.url, SHORT))
        await wait_until(lambda: count_queued(running) == 1)
        states = [InstanceState.DRAINING, READY]
        running.gateway.update_fleet(slow_fleet([engine.url, other.url], objectives, version=2, states=states))
        assert (await waiting).fields["x-fairlead-instance"] == "e-1/1/0"
        assert len(engine.calls) == 1
        silent.go_on.set()
        assert (await first).status == 200


async def test_a_clients_deadline_ends_its_waiting() -> None:
    async with gateway_before_busy_engine() as (running, engine, _, _):
        assert (await request(running.url, SHORT, more="x-request-timeout: 0.2\r\n")).status == 504
        assert count_queued(running) == 0
        assert len(engine.calls) == 1


async def test_a_full_line_refuses_with_a_time_to_come_back() -> None:
    async with gateway_before_busy_engine(replace(Limits(), queued_requests=1)) as (running, _, silent, _):
        waiting = asyncio.get_running_loop().create_task(request(running.url, SHORT))
        await wait_until(lambda: count_queued(running) == 1)
        answer = await request(running.url, SHORT)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert "queued already" in answer.error["message"]
        assert int(answer.fields["retry-after"]) >= 1
        silent.go_on.set()
        assert (await waiting).status == 200


async def test_a_request_waits_for_the_first_instance_that_is_starting() -> None:
    async with gateway_of(well_behaved, states=[STARTING]) as (running, engine):
        waiting = asyncio.get_running_loop().create_task(request(running.url, SHORT))
        await wait_until(lambda: count_queued(running) == 1)
        running.gateway.update_fleet(fleet_of([engine.url], version=2))
        assert (await waiting).status == 200


async def test_when_nothing_is_starting_any_more_the_wait_is_over() -> None:
    async with running_gateway(fleet_of(["http://127.0.0.1:1"], states=[STARTING])) as running:
        waiting = asyncio.get_running_loop().create_task(request(running.url, SHORT))
        await wait_until(lambda: count_queued(running) == 1)
        running.gateway.update_fleet(replace(fleet_of([], version=2)))
        answer = await waiting
        assert (answer.status, answer.error["code"]) == (503, "no_ready_instance")
        assert queue_exits(running) == {"none-ready": 1}


def waking_fleet(urls: list[str], version: int = 1) -> Fleet:
    """A model that may have no instance, and gets one when a request waits."""
    fleet = fleet_of(urls, version=version)
    return replace(fleet, models={MODEL_KEY: replace(fleet.models[MODEL_KEY], wakes=True)})


async def test_a_request_for_a_model_that_sleeps_wakes_it_and_waits() -> None:
    woken: list[str] = []
    reporters = Reporters(on_needs_instance=woken.append)
    async with scripted_engine() as engine, running_gateway(waking_fleet([]), reporters=reporters) as running:
        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(request(running.url, body)) for body in (SHORT, SHORT | {"stream": False})]
        await wait_until(lambda: count_queued(running) == 2)
        await wait_until(lambda: woken == [MODEL_KEY])
        running.gateway.update_fleet(waking_fleet([engine.url], 2))
        assert [(await task).status for task in waiting] == [200, 200]
        assert woken == [MODEL_KEY]  # once for all that wait


async def test_batch_tenant_does_not_wake_a_model_and_waits_only_while_one_starts() -> None:
    woken: list[str] = []
    reporters, keys = (
        Reporters(on_needs_instance=woken.append),
        keys_of(Tenant("batch", may_wake_models=False), Tenant("live")),
    )
    async with (
        scripted_engine() as engine,
        running_gateway(waking_fleet([]), reporters=reporters, api_keys=keys) as running,
    ):
        refused = await request(running.url, SHORT, more=authorization("batch"))
        assert (refused.status, refused.error["code"], woken) == (503, "no_ready_instance", [])
        loop = asyncio.get_running_loop()
        live = loop.create_task(request(running.url, SHORT, more=authorization("live")))
        await wait_until(lambda: count_queued(running) == 1)
        batch = loop.create_task(request(running.url, SHORT, more=authorization("batch")))
        await wait_until(lambda: count_queued(running) == 2)
        assert woken == [MODEL_KEY]
        running.gateway.update_fleet(waking_fleet([engine.url], 2))
        assert [(await live).status, (await batch).status] == [200, 200]


async def test_a_model_that_nobody_wakes_is_waited_for_as_long_as_the_limit_says() -> None:
    limits = replace(Limits(), queue_waking_seconds=0.05, queue_seconds=0.01)
    async with running_gateway(waking_fleet([]), limits) as running:
        answer = await request(running.url, SHORT)
        assert (answer.status, answer.error["code"]) == (503, "no_ready_instance")
        assert queue_exits(running) == {"none-ready": 1}


async def test_time_without_an_instance_is_not_held_against_those_who_waited() -> None:
    limits = replace(Limits(), queue_seconds=0.2)
    async with scripted_engine() as engine, running_gateway(waking_fleet([]), limits) as running:
        waiting = asyncio.get_running_loop().create_task(request(running.url, SHORT))
        await wait_until(lambda: count_queued(running) == 1)
        began = running.gateway.runtime.clock.now()
        await wait_until(lambda: running.gateway.runtime.clock.now() > began + 2 * limits.queue_seconds)
        running.gateway.update_fleet(waking_fleet([engine.url], 2))
        assert (await waiting).status == 200


async def test_memory_that_would_overflow_is_waited_for() -> None:
    gate = PausedStream()
    async with scripted_engine(gate.script) as engine:
        fleet = fleet_of([engine.url])
        small = replace(SLOW, kv_tokens=700, prefill_token_seconds=1e-6)
        fleet = replace(
            fleet,
            instances={MODEL_KEY: tuple(replace(instance, profile=small) for instance in fleet.instances[MODEL_KEY])},
        )
        async with running_gateway(fleet) as running, asyncio.TaskGroup() as group:
            body = chat(600, max_tokens=200)
            first = group.create_task(request(running.url, body))
            await wait_until(lambda: len(engine.calls) == 1)
            second = group.create_task(request(running.url, body | {"user": json.dumps({})}))
            await wait_until(lambda: count_queued(running) == 1)
            gate.go_on.set()
            assert (await first).status == (await second).status == 200
            assert len(engine.calls) == 2


async def test_at_a_busy_engine_the_shortest_goes_first_although_all_want_the_same() -> None:
    async with gateway_before_busy_engine(objectives=ALIKE) as (running, engine, silent, first):
        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(request(running.url, chat(150)))]
        await wait_until(lambda: count_queued(running) == 1)
        waiting.append(loop.create_task(request(running.url, SHORT | {"stream": False})))
        await wait_until(lambda: count_queued(running) == 2)
        assert len(engine.calls) == 1
        assert {load.waiting for load in running.loads().values()} == {3}  # the next choice sees them
        silent.go_on.set()
        assert [answer.status for answer in [await first, *[await task for task in waiting]]] == [200] * 3
        assert [len(call.json["messages"][0]["content"]) for call in engine.calls] == [800, 4, 300]
        assert queue_exits(running) == {"dispatch-queue": 2}


@pytest.mark.parametrize("objectives", [ALIKE, GROWING], ids=["late-binding", "admission"])
async def test_a_wait_for_an_engine_is_not_the_gateways_own_time(objectives: SloTargets) -> None:
    async with gateway_before_busy_engine(objectives=objectives) as (running, _, silent, first):
        now = running.gateway.stages.admission._runtime.now
        waiting = asyncio.get_running_loop().create_task(request(running.url, SHORT))
        await wait_until(lambda: count_queued(running) == 1)
        queued_at = now()
        await wait_until(lambda: now() > queued_at + 0.05)
        released_at = now()
        silent.go_on.set()
        fields = (await waiting).fields
        plain = (await first).fields
        outcome = running.gateway.decisions.find(fields["x-fairlead-decision"])[0]
        assert outcome.overhead_seconds is not None
        assert outcome.queued_seconds >= released_at - queued_at
        assert 0.0 < outcome.overhead_seconds < outcome.duration_seconds - outcome.queued_seconds
        timing = {part.partition(";dur=")[0]: float(part.partition("=")[2]) for part in timings(fields)}
        assert timing["queue"] == pytest.approx(outcome.queued_seconds * 1e3, abs=0.01)
        assert timing["gateway"] == pytest.approx(outcome.overhead_seconds * 1e3, abs=0.01)
        assert running.gateway.decisions.find(plain["x-fairlead-decision"])[0].queued_seconds == 0.0
        assert "queue" not in plain["server-timing"]


async def test_a_preset_that_binds_at_once_holds_nothing_for_a_busy_engine() -> None:
    async with gateway_before_busy_engine(objectives=ALIKE, preset="min-ttft") as (running, engine, silent, _):
        other = asyncio.get_running_loop().create_task(request(running.url, SHORT))
        await wait_until(lambda: len(engine.calls) == 2)
        silent.go_on.set()
        assert (await other).status == 200
        assert queue_exits(running) == {}


@pytest.mark.sockets
async def test_where_there_is_no_reason_to_hold_nobody_looks() -> None:
    gate = PausedStream()
    async with (
        scripted_engine(gate.script) as engine,
        running_gateway(fleet_of([engine.url])) as running,
        asyncio.TaskGroup() as group,
    ):
        for number in range(20):
            group.create_task(request(running.url, chat(200, user=f"{number}")))
        await wait_until(lambda: len(engine.calls) == 20)
        assert count_queued(running) == 0
        assert queue_exits(running) == {}
        gate.go_on.set()
