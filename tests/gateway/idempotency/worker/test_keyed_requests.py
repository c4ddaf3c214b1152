"""Requests with an idempotency key, over HTTP: one engine call, equal bytes, and what ends that."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead.tenants.model import Tenant
from fairlead_gateway.idempotency.worker.keyed_requests import MAX_READERS
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    PausedStream,
    SilentEngine,
    responds,
    token,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import GOOD, STREAM, RunningGateway, gateway_of
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated
KEY = "idempotency-key: stainless-python-retry-7d3c\r\n"


def _counts(running: RunningGateway) -> dict[str, int]:
    telemetry: MetricsRecorder = running.gateway.telemetry
    prefix = "idempotency_"
    return {
        name.removeprefix(prefix): count
        for name, count in telemetry.non_model_counters.items()
        if name.startswith(prefix)
    }


async def _open(running: RunningGateway, body: object, more: str = KEY) -> RawConnection:
    connection = await RawConnection.connect(running.url)
    await connection.send(post_request(body, more=more))
    return connection


@pytest.mark.parametrize("body", [GOOD, STREAM], ids=["plain", "stream"])
async def test_two_equal_requests_at_once_are_one_engine_call_and_equal_bytes(body: dict[str, Any]) -> None:
    silent = SilentEngine()
    async with gateway_of(silent.script) as (running, engine):
        first, second = await _open(running, body), await _open(running, body)
        await wait_until(lambda: _counts(running) == {"run": 1, "joined": 1})
        silent.go_on.set()
        answers: list[RawResponse] = [await first.read_response(), await second.read_response()]
        assert len(engine.calls) == 1
        assert answers[0].body == answers[1].body != b""
        assert all(answer.complete for answer in answers)
        assert [answer.fields.get("idempotent-replayed") for answer in answers] == [None, "true"]
        for name in ("x-request-id", "x-fairlead-decision", "x-fairlead-instance"):
            assert answers[0].fields[name] == answers[1].fields[name]
        await first.close()
        await second.close()


@pytest.mark.parametrize("body", [GOOD, STREAM], ids=["plain", "stream"])
async def test_a_finished_answer_is_returned_within_its_window_and_computed_after_it(body: dict[str, Any]) -> None:
    limits = replace(Limits(), idempotency_window_seconds=50.0)
    async with gateway_of(well_behaved, limits=limits) as (running, engine):
        first, second = await request(running.url, body, more=KEY), await request(running.url, body, more=KEY)
        assert first.body == second.body
        assert (first.status, second.status) == (200, 200)
        assert len(engine.calls) == 1
        assert running.gateway.inflight_count() == 0
        await asyncio.sleep(51.0)
        assert (await request(running.url, body, more=KEY)).status == 200
        assert len(engine.calls) == 2
        assert _counts(running) == {"run": 2, "returned": 1}
        await asyncio.sleep(100.0)
        assert running.gateway.keyed_requests.table.size == 0


async def test_another_body_or_path_under_the_key_is_refused_and_runs_nothing() -> None:
    async with gateway_of(well_behaved) as (running, engine):
        await request(running.url, GOOD, more=KEY)
        for body, path in ((GOOD | {"seed": 1}, "/v1/chat/completions"), (GOOD, "/v1/messages")):
            refused = await request(running.url, body, path=path, more=KEY)
            assert refused.status == 422
            assert refused.fields["x-should-retry"] == "false"
            assert "Idempotency-Key" in refused.json["error"]["message"]
        assert len(engine.calls) == 1
        again = await request(running.url, GOOD | {"seed": 1}, more=KEY)
        assert again.error["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("more", [f"idempotency-key: {'x' * 256}\r\n", "idempotency-key:\r\n", KEY + KEY])
async def test_an_invalid_key_is_refused_by_the_name_of_the_header(more: str) -> None:
    async with gateway_of(well_behaved) as (running, engine):
        refused = await request(running.url, GOOD, more=more)
        assert refused.status == 400
        assert (refused.error["code"], refused.error["param"]) == ("invalid_idempotency_key", "idempotency-key")
        assert engine.calls == []


async def test_keys_of_two_tenants_are_apart() -> None:
    keys = keys_of(Tenant("acme"), Tenant("globex"))
    async with gateway_of(well_behaved, api_keys=keys) as (running, engine):
        for tenant in ("acme", "globex", "acme"):
            answer = await request(running.url, GOOD, more=KEY + authorization(tenant))
            assert answer.status == 200
        assert len(engine.calls) == 2
        assert _counts(running) == {"run": 2, "returned": 1}
        unknown = await request(running.url, GOOD, more=KEY + authorization("unknown"))
        assert unknown.status == 401


async def test_a_stream_is_joined_from_its_beginning_and_outlives_its_first_client() -> None:
    gate = PausedStream()
    async with gateway_of(gate.script) as (running, engine):
        first = await _open(running, STREAM)
        await first.reader.readuntil(b'"content":"a"')
        second = await _open(running, STREAM)
        await second.reader.readuntil(b'"content":"a"')
        await first.close()
        await wait_until(lambda: running.gateway.listener.count_busy() == 1)
        third = await _open(running, STREAM)
        await third.reader.readuntil(b'"content":"a"')
        gate.go_on.set()
        for connection in (second, third):
            assert b"[DONE]" in await connection.reader.read()
            await connection.close()
        assert len(engine.calls) == 1
        assert _counts(running) == {"run": 1, "joined": 2}
        whole = await request(running.url, STREAM, more=KEY)
        assert whole.events[-1] == "[DONE]"
        assert '"content":"a"' in whole.events[0]


async def test_a_request_runs_on_for_a_while_without_clients_and_is_then_cancelled() -> None:
    silent = SilentEngine()
    limits = replace(Limits(), idempotency_unread_seconds=10.0)
    async with gateway_of(silent.script, limits=limits) as (running, engine):
        first = await _open(running, GOOD)
        await wait_until(lambda: len(engine.calls) == 1)
        await first.close()
        await asyncio.sleep(9.0)
        second = await _open(running, GOOD)
        await wait_until(lambda: _counts(running) == {"run": 1, "joined": 1})
        await second.close()
        await asyncio.sleep(9.0)
        assert running.gateway.inflight_count() == 1
        await wait_until(lambda: not running.gateway.inflight_count())
        silent.go_on.set()
        assert (await request(running.url, GOOD, more=KEY)).status == 200
        assert len(engine.calls) == 2
        assert _counts(running) == {"run": 1, "joined": 1, "rerun_abandoned": 1}


@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests"])
async def test_a_failure_is_not_kept(status: str) -> None:
    async with gateway_of(responds({"error": "full"}, status)) as (running, engine):
        for _ in range(2):
            assert (await request(running.url, GOOD, more=KEY)).status >= 429
        assert _counts(running) == {"run": 1, "rerun_failed": 1}
        assert len(engine.calls) >= 2


async def test_a_refusal_of_the_engine_is_kept() -> None:
    async with gateway_of(responds({"error": {"message": "no"}}, "400 Bad Request")) as (running, engine):
        first, second = [await request(running.url, GOOD, more=KEY) for _ in range(2)]
        assert (first.status, first.body) == (second.status, second.body)
        assert len(engine.calls) == 1


async def test_a_broken_stream_reaches_all_its_clients_and_is_not_kept() -> None:
    gate = PausedStream(breaks=True)
    async with gateway_of(gate.script) as (running, _):
        first, second = await _open(running, STREAM), await _open(running, STREAM)
        await wait_until(lambda: _counts(running) == {"run": 1, "joined": 1})
        gate.go_on.set()
        answers = [await connection.read_response() for connection in (first, second)]
        assert answers[0].body == answers[1].body
        assert b"stream_cut" in answers[0].body
        await request(running.url, STREAM, more=KEY)
        assert _counts(running)["rerun_failed"] == 1
        await first.close()
        await second.close()


async def test_a_long_answer_is_passed_on_whole_and_not_kept() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        for _ in range(50):
            await call.event(token("x" * 1_000))
        await call.finish()

    limits = replace(Limits(), idempotency_answer_bytes=10_000)
    async with gateway_of(script, limits=limits) as (running, engine):
        answers = [await request(running.url, STREAM, more=KEY) for _ in range(2)]
        assert [len(answer.events) for answer in answers] == [51, 51]
        assert len(engine.calls) == 2
        assert _counts(running) == {"run": 1, "rerun_too-long": 1}
        assert running.gateway.keyed_requests.table.size < 2_000


async def test_a_slow_client_slows_the_engine_only_if_the_answer_is_not_kept() -> None:
    sent = 0

    async def script(call: EngineCall) -> None:
        nonlocal sent
        await call.start_stream()
        for _ in range(100):
            await call.event(token("x" * 100_000))
            sent += 1
        await call.finish()

    limits = replace(Limits(), idempotency_answer_bytes=500_000)
    async with gateway_of(script, limits=limits) as (running, _):
        connection = await RawConnection.connect(running.url)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await connection.send(post_request(STREAM, more=KEY))
        await asyncio.sleep(5.0)
        before = sent
        await asyncio.sleep(5.0)
        assert 5 < sent == before < 50
        connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
        answer = await connection.read_response()
        assert len(answer.events) == 101
        await connection.close()


async def test_a_request_without_a_key_is_not_kept() -> None:
    async with gateway_of(well_behaved) as (running, engine):
        for _ in range(2):
            assert (await request(running.url, GOOD)).status == 200
        assert len(engine.calls) == 2
        assert len(running.gateway.keyed_requests.table) == 0
        assert _counts(running) == {}


async def test_engines_do_not_get_the_key() -> None:
    async with gateway_of(well_behaved) as (running, engine):
        await request(running.url, GOOD, more=KEY)
        assert engine.calls[0].header("idempotency-key") is None
        assert running.gateway.telemetry.models["default/tiny"].kept_back == {}


async def test_an_engine_that_dies_under_two_equal_requests_is_replaced_once() -> None:
    async def dies(call: EngineCall) -> None:
        raise HangUp

    async with gateway_of(dies, well_behaved) as (running, *engines):
        answers = await asyncio.gather(*[request(running.url, GOOD, more=KEY) for _ in range(2)])
        assert [answer.status for answer in answers] == [200, 200]
        assert answers[0].body == answers[1].body
        assert len(engines[1].calls) == 1


async def test_few_clients_read_one_running_answer() -> None:
    silent = SilentEngine()
    async with gateway_of(silent.script) as (running, engine):
        clients = [await _open(running, STREAM) for _ in range(MAX_READERS)]
        await wait_until(lambda: _counts(running) == {"run": 1, "joined": MAX_READERS - 1})
        refused = await request(running.url, STREAM, more=KEY)
        assert (refused.status, len(engine.calls)) == (503, 1)
        silent.go_on.set()
        for client in clients:
            assert (await client.read_response()).complete
            await client.close()
        assert (await request(running.url, STREAM, more=KEY)).status == 200, "an ended answer is for all"
