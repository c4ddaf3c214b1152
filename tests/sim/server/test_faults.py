"""Failures on demand: each does what a broken engine does, as often and as long as it was told to."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_sim.server import faults
from fairlead_sim.server.process import Served
from fairlead_sim.server.testing import fleet, serving
from fairlead_sim.transcripts.exchange import connected, exchange, get, post, until
from fairlead_sim.transcripts.recording import Request, Response

ASK = {"prompt": "x", "max_tokens": 20}


def with_engine(check: Callable[[Served, str], Coroutine[Any, Any, None]]) -> None:
    async def scenario() -> None:
        async with serving() as served:
            await check(served, served.url.removeprefix("http://"))

    asyncio.run(scenario())


async def arm(authority: str, **fault: Any) -> Response:
    return await exchange(authority, post("/sim/faults", fault))


async def told(authority: str, **body: Any) -> bytes:
    """Everything an engine says to one request until it closes or the answer is whole."""
    async with connected(authority) as connection:
        await connection.send(post("/v1/completions", {**ASK, **body}).wire(authority))
        try:
            while await connection.more():
                if connection.received.endswith(b"0\r\n\r\n"):
                    break
        except ConnectionError:
            pass
        return bytes(connection.received)


def test_refused_connections_get_not_a_byte() -> None:
    async def check(_served: Served, authority: str) -> None:
        await arm(authority, kind="refuse", count=2)
        assert [await told(authority) for _ in range(2)] == [b"", b""]
        assert (await exchange(authority, get("/health"))).status == 200

    with_engine(check)


def test_a_hanging_engine_takes_requests_and_never_answers() -> None:
    async def check(served: Served, authority: str) -> None:
        await arm(authority, kind="hang", count=1)
        async with connected(authority) as stuck:
            await stuck.send(post("/v1/completions", ASK).wire(authority))
            assert (await exchange(authority, post("/v1/completions", ASK))).status == 200
            assert (bytes(stuck.received), stuck.ended) == (b"", False)
        assert served.app.requests_seen == 1

    with_engine(check)


@pytest.mark.parametrize(("kind", "closed"), [("hang", False), ("refuse", True)])
def test_connections_that_are_already_open_hang_and_break_as_well(kind: str, closed: bool) -> None:
    async def check(_served: Served, authority: str) -> None:
        async with connected(authority) as pooled:
            await pooled.send(get("/health").wire(authority))
            await pooled.answer()
            await pooled.send(post("/sim/faults", {"kind": kind}).wire(authority))
            await pooled.answer()
            await pooled.send(post("/v1/completions", ASK).wire(authority))
            if closed:
                with pytest.raises((EOFError, ConnectionError)):
                    await pooled.answer()
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(pooled.more(), 0.2)

    with_engine(check)


def test_a_cut_stream_ends_behind_some_tokens_without_an_end() -> None:
    async def check(served: Served, authority: str) -> None:
        await arm(authority, kind="cut", after=4, count=1)
        broken = await told(authority, stream=True)
        assert broken.count(b"data: {") == 4
        assert b"[DONE]" not in broken
        await until(lambda: _inside(served), lambda inside: inside == 0, "answers inside")
        assert (await told(authority, stream=True)).endswith(b"0\r\n\r\n")

    with_engine(check)


async def _inside(served: Served) -> float:
    return len(served.engine.answers)


def test_garbage_is_no_http() -> None:
    async def check(_served: Served, authority: str) -> None:
        await arm(authority, kind="garbage", count=1)
        assert not (await told(authority)).startswith(b"HTTP/")

    with_engine(check)


def test_a_wrong_content_type_and_an_error_status() -> None:
    async def check(_served: Served, authority: str) -> None:
        await arm(authority, kind="content-type", count=1)
        await arm(authority, kind="error", status=502, count=1)
        page = await exchange(authority, post("/v1/completions", ASK))
        assert page.fields["content-type"].startswith("text/html")
        assert (await exchange(authority, post("/v1/completions", ASK))).status == 502
        assert (await exchange(authority, get("/health"))).status == 200

    with_engine(check)


def test_a_share_hits_some_requests_and_a_fault_can_be_cleared() -> None:
    async def check(_served: Served, authority: str) -> None:
        await arm(authority, kind="error", share=0.5)
        found = {(await exchange(authority, post("/v1/completions", ASK))).status for _ in range(40)}
        assert found == {200, 500}
        cleared = await exchange(authority, Request("DELETE", "/sim/faults", (("Host", ""),), b""))
        assert cleared.json()["armed"] == []
        assert {(await exchange(authority, post("/v1/completions", ASK))).status for _ in range(10)} == {200}

    with_engine(check)


def test_a_slow_engine_takes_longer_steps_until_the_time_is_over() -> None:
    async def check(served: Served, authority: str) -> None:
        core = served.engine.drivers[0].core
        usual = core.profile.weights_seconds
        await arm(authority, kind="slow", factor=4, seconds=0.2)
        assert core.profile.weights_seconds == pytest.approx(4 * usual)

        async def weights() -> float:
            return core.profile.weights_seconds

        await until(weights, lambda seen: seen == pytest.approx(usual), "the step's length")

    with_engine(check)


def test_a_dead_core_is_told_and_one_dead_engine_leaves_the_others() -> None:
    async def scenario() -> None:
        async with fleet(3) as (first, second, third):
            one, two, other = (served.url.removeprefix("http://") for served in (first, second, third))
            async with connected(one) as stream:
                body = {**ASK, "max_tokens": 20_000, "stream": True}
                await stream.send(post("/v1/completions", body).wire(one))
                await stream.until(b"text")
                await arm(one, kind="core-dead")
                answer = await stream.answer()
                assert answer.events()[-2]["error"]["code"] == 500
                await first.left()
            assert await told(two) != b""
            with pytest.raises((EOFError, ConnectionError)):
                await arm(two, kind="die")
            await second.left()
            with pytest.raises(ConnectionError):
                await exchange(two, get("/health"))
            assert (await exchange(other, get("/health"))).status == 200

    asyncio.run(scenario())


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
        faults.from_mapping(fault)
    assert caught.value.field == field


def test_faults_are_written_on_the_command_line_as_kind_and_values() -> None:
    fault = faults.parse("cut,after=9,share=0.25,count=3,everywhere=true")
    assert (fault.kind, fault.after, fault.share, fault.count, fault.everywhere) == ("cut", 9, 0.25, 3, True)
    with pytest.raises(BadInput):
        faults.parse("cut,after")


def test_the_clock_is_monotonic_here() -> None:
    """Arrivals are told in the monotonic clock that steps are timed in."""
    before = time.monotonic()

    async def check(served: Served, authority: str) -> None:
        await exchange(authority, post("/v1/completions", ASK))
        page = (await exchange(authority, get("/metrics"))).body.decode()
        (line,) = (each for each in page.splitlines() if each.startswith("vllm:e2e_request_latency_seconds_sum"))
        assert 0 < float(line.rpartition(" ")[2]) <= time.monotonic() - before
        assert served.engine.drivers[0].given_up_seconds == 0

    with_engine(check)
