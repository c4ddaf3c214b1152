"""Injected faults: each acts like a broken engine, as often and as long as requested."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_sim.runtime import fault_injection
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.sim.engines import running_engine, running_engines
from fairlead_testing.transcripts.recording import HttpResponse, RecordedRequest
from fairlead_testing.transcripts.replay import (
    get_request,
    open_client,
    post_request,
    read_metric,
    send_request,
    wait_for_metric,
    wait_for_value,
)

pytestmark = pytest.mark.simulated

ASK = {"prompt": "x", "max_tokens": 20}


@asynccontextmanager
async def engine_with_address() -> AsyncIterator[tuple[RunningEngine, str]]:
    async with running_engine() as engine:
        yield engine, engine.url.removeprefix("http://")


async def arm(authority: str, **fault: Any) -> HttpResponse:
    return await send_request(authority, post_request("/sim/faults", fault))


async def post_fault(authority: str, **body: Any) -> bytes:
    """Returns everything that an engine sends for one request until it closes or the answer is
    whole.
    """
    async with open_client(authority) as connection:
        await connection.send(post_request("/v1/completions", {**ASK, **body}).to_bytes(authority))
        try:
            while await connection.read_more():
                if connection.received.endswith(b"0\r\n\r\n"):
                    break
        except ConnectionError:
            pass
        return bytes(connection.received)


async def test_refused_connections_get_not_a_byte() -> None:
    async with engine_with_address() as (_, authority):
        await arm(authority, kind="refuse", count=2)
        assert [await post_fault(authority) for _ in range(2)] == [b"", b""]
        assert (await send_request(authority, get_request("/health"))).status == 200


async def test_a_hanging_engine_takes_requests_and_never_answers() -> None:
    async with engine_with_address() as (engine, authority):
        await arm(authority, kind="hang", count=1)
        async with open_client(authority) as stuck:
            await stuck.send(post_request("/v1/completions", ASK).to_bytes(authority))
            assert (await send_request(authority, post_request("/v1/completions", ASK))).status == 200
            assert (bytes(stuck.received), stuck.is_closed) == (b"", False)
        assert engine.app.requests_seen == 1


@pytest.mark.parametrize(("kind", "closed"), [("hang", False), ("refuse", True)])
async def test_connections_that_are_already_open_hang_and_break_as_well(kind: str, closed: bool) -> None:
    async with engine_with_address() as (_, authority), open_client(authority) as pooled:
        await pooled.send(get_request("/health").to_bytes(authority))
        await pooled.read_response()
        await pooled.send(post_request("/sim/faults", {"kind": kind}).to_bytes(authority))
        await pooled.read_response()
        await pooled.send(post_request("/v1/completions", ASK).to_bytes(authority))
        if closed:
            with pytest.raises((EOFError, ConnectionError)):
                await pooled.read_response()
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pooled.read_more(), 0.2)


async def test_a_cut_stream_ends_behind_some_tokens_without_an_end() -> None:
    async with engine_with_address() as (engine, authority):
        await arm(authority, kind="cut", after=4, count=1)
        broken = await post_fault(authority, stream=True)
        assert broken.count(b"data: {") == 4
        assert b"[DONE]" not in broken
        await wait_for_value(lambda: _inside(engine), lambda inside: inside == 0, "answers inside")
        assert (await post_fault(authority, stream=True)).endswith(b"0\r\n\r\n")


async def _inside(engine: RunningEngine) -> float:
    return len(engine.engine.responses)


async def test_garbage_is_rejected() -> None:
    async with engine_with_address() as (_, authority):
        await arm(authority, kind="garbage", count=1)
        assert not (await post_fault(authority)).startswith(b"HTTP/")


async def test_a_wrong_content_type_and_an_error_status() -> None:
    async with engine_with_address() as (_, authority):
        await arm(authority, kind="content-type", count=1)
        await arm(authority, kind="error", status=502, count=1)
        page = await send_request(authority, post_request("/v1/completions", ASK))
        assert page.fields["content-type"].startswith("text/html")
        assert (await send_request(authority, post_request("/v1/completions", ASK))).status == 502
        assert (await send_request(authority, get_request("/health"))).status == 200


async def test_a_share_hits_some_requests_and_a_fault_can_be_cleared() -> None:
    async with engine_with_address() as (_, authority):
        await arm(authority, kind="error", share=0.5)
        found = {(await send_request(authority, post_request("/v1/completions", ASK))).status for _ in range(40)}
        assert found == {200, 500}
        cleared = await send_request(authority, RecordedRequest("DELETE", "/sim/faults", (("Host", ""),), b""))
        assert cleared.json()["armed"] == []
        assert {(await send_request(authority, post_request("/v1/completions", ASK))).status for _ in range(10)} == {
            200
        }


async def test_a_slow_engine_takes_longer_steps_until_the_time_is_over() -> None:
    async with engine_with_address() as (engine, authority):
        core = engine.engine.drivers[0].core
        usual = core.profile.weights_seconds
        await arm(authority, kind="slow", factor=4, seconds=0.2)
        assert core.profile.weights_seconds == pytest.approx(4 * usual)

        async def weights() -> float:
            return core.profile.weights_seconds

        await wait_for_value(weights, lambda seen: seen == pytest.approx(usual), "the step's length")


async def test_engine_with_a_hung_core_is_healthy_and_sends_no_token_until_it_recovers() -> None:
    async with (
        engine_with_address() as (engine, authority),
        open_client(authority) as stream,
        open_client(authority) as late,
    ):
        body = {**ASK, "max_tokens": 20_000, "stream": True}
        await stream.send(post_request("/v1/completions", body).to_bytes(authority))
        await stream.read_until(b"text")
        assert (await arm(authority, kind="core-hung")).status == 200
        tokens = await read_metric(authority, "vllm:generation_tokens_total")
        await late.send(post_request("/v1/completions", ASK).to_bytes(authority))
        await wait_for_value(lambda: _inside(engine), lambda inside: inside == 2, "answers inside")
        for _ in range(5):
            assert (await send_request(authority, get_request("/health"))).status == 200
            assert await read_metric(authority, "vllm:generation_tokens_total") == tokens
        await send_request(authority, RecordedRequest("DELETE", "/sim/faults", (("Host", ""),), b""))
        answer = await late.read_response()
        assert (answer.status, answer.json()["usage"]["completion_tokens"]) == (200, 20)
        await wait_for_metric(authority, lambda found: found > tokens + 20, "vllm:generation_tokens_total")


async def test_a_dead_core_is_reported_and_the_other_engines_go_on() -> None:
    async with running_engines(3) as (first, second, third):
        one, two, other = (engine.url.removeprefix("http://") for engine in (first, second, third))
        async with open_client(one) as stream:
            body = {**ASK, "max_tokens": 20_000, "stream": True}
            await stream.send(post_request("/v1/completions", body).to_bytes(one))
            await stream.read_until(b"text")
            await arm(one, kind="core-dead")
            answer = await stream.read_response()
            assert answer.events()[-2]["error"]["code"] == 500
            await first.wait_gone()
        assert await post_fault(two) != b""
        with pytest.raises((EOFError, ConnectionError)):
            await arm(two, kind="die")
        await second.wait_gone()
        with pytest.raises(ConnectionError):
            await send_request(two, get_request("/health"))
        assert (await send_request(other, get_request("/health"))).status == 200


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"kind": "sulk"}, "kind"),
        ({"kind": "cut", "after": "x"}, "after"),
        ({"kind": "cut", "often": 1}, "often"),
        ({"kind": "slow", "factor": 0}, "factor"),
        ({"kind": "error", "status": 200}, "status"),
    ],
)
def test_a_wrong_fault_is_refused_by_its_field(fault: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        fault_injection.fault_from_mapping(fault)
    assert caught.value.field == field


def test_the_command_line_takes_faults_as_kind_and_values() -> None:
    fault = fault_injection.parse_fault("cut,after=9,share=0.25,count=3,everywhere=true")
    assert (fault.kind, fault.after, fault.share, fault.count, fault.everywhere) == ("cut", 9, 0.25, 3, True)
    with pytest.raises(BadInput):
        fault_injection.parse_fault("cut,after")


@pytest.mark.sockets  # the real clock is the subject
async def test_the_clock_is_monotonic_here() -> None:
    """Arrivals are given in the monotonic clock that steps are timed in."""
    before = time.monotonic()
    async with engine_with_address() as (engine, authority):
        await send_request(authority, post_request("/v1/completions", ASK))
        page = (await send_request(authority, get_request("/metrics"))).body.decode()
        (line,) = (each for each in page.splitlines() if each.startswith("vllm:e2e_request_latency_seconds_sum"))
        assert 0 < float(line.rpartition(" ")[2]) <= time.monotonic() - before
        assert engine.engine.drivers[0].skipped_seconds == 0
