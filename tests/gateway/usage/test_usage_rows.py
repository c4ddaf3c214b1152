"""A worker reports the use of each request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.tenants.model import Tenant, Tier
from fairlead_gateway.journal import Journal, JournalBounds, Reporters
from fairlead_gateway.messages import WorkerReport
from fairlead_gateway.usage.messages import UsageRow
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.engines.scripted import EngineCall, Script, responds, silent, streams
from fairlead_testing.gateway.running_gateway import (
    RecordedReports,
    RunningGateway,
    fleet_of,
    gateway_of,
    running_gateway,
)
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, request
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 9}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
ANSWER = {"id": "x", "choices": [{"index": 0, "message": {"content": "hi"}}], "usage": USAGE}
ACME = Tenant("acme", tier=Tier.INTERACTIVE)


@asynccontextmanager
async def gateway_before(script: Script, journal: Journal) -> AsyncIterator[RunningGateway]:
    """Runs a gateway with a key of `acme` before one scripted engine."""
    async with gateway_of(script, api_keys=keys_of(ACME), reporters=Reporters(journal)) as (running, *_):
        yield running


async def rows_of(
    use: Callable[[RunningGateway], Awaitable[object]], script: Script, *, expected: int = 1
) -> list[UsageRow]:
    """Returns the rows after `use` of a gateway before one scripted engine."""
    sent = RecordedReports()
    journal = Journal(sent, asyncio.get_running_loop(), bounds=JournalBounds(usage_seconds=0.0), keeps_usage=True)
    async with gateway_before(script, journal) as running:
        await use(running)

        async def is_reported() -> bool:
            journal.flush()
            return len(sent.usage) >= expected

        await wait_until(is_reported)
    return sent.usage


async def post(running: RunningGateway, body: object = CHAT) -> RawResponse:
    return await request(running.url, body, more=authorization("acme"))


async def test_row_has_the_engines_tokens_and_the_caller() -> None:
    (row,) = await rows_of(post, responds(ANSWER))
    assert (row.tenant, row.key, row.tier, row.model) == ("acme", "acme", "Interactive", "default/tiny")
    assert (row.instance, row.pool, row.status) == ("e-0/0/0", "main", 200)
    assert (row.input_tokens, row.cached_tokens, row.output_tokens, row.is_estimated) == (9, 3, 4, False)


async def test_failed_request_used_nothing() -> None:
    (row,) = await rows_of(post, responds({"error": {"message": "no", "code": 400}, "usage": USAGE}, "400 Bad Request"))
    assert (row.status, row.input_tokens, row.output_tokens, row.is_estimated) == (400, 0, 0, False)


async def test_stream_that_breaks_is_a_failure_that_used_nothing() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event({"choices": [{"index": 0, "delta": {"content": "a"}}]})
        call.writer.close()

    (row,) = await rows_of(lambda running: post(running, {**CHAT, "stream": True, "n": 2}), script)
    assert row.status >= 400
    assert (row.input_tokens, row.output_tokens) == (0, 0)


async def test_answer_without_usage_is_an_estimate() -> None:
    (row,) = await rows_of(post, responds({"id": "x", "choices": [{"index": 0, "message": {"content": "hi"}}]}))
    assert (row.status, row.is_estimated) == (200, True)
    assert row.input_tokens > 0


async def test_client_that_disconnects_has_used_what_it_was_sent() -> None:
    async def use(running: RunningGateway) -> None:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request({**CHAT, "stream": True}, more=authorization("acme")))
        data = b""
        while data.count(b'"delta"') < 3:
            data += await connection.reader.read(65_536)
        await connection.close()

    (row,) = await rows_of(use, streams(*[{"choices": [{"index": 0, "delta": {"content": "a"}}]}] * 3, end=silent))
    assert (row.status, row.output_tokens, row.is_estimated) == (499, 3, True)
    assert row.input_tokens > 0


async def test_rows_beyond_the_bound_are_counted() -> None:
    sent = RecordedReports()
    loop = asyncio.get_running_loop()
    bounds = JournalBounds(usage_seconds=60.0, timing_seconds=60.0, max_usage_rows=2)
    journal = Journal(sent, loop, bounds=bounds, keeps_usage=True)
    async with gateway_before(responds(ANSWER), journal) as running:
        for _ in range(3):
            await post(running)
    journal.flush()
    assert [(len(report.usage), report.lost_usage) for report in sent.reports if report.usage] == [(2, 1)]


async def test_a_report_that_is_dropped_takes_no_usage_with_it() -> None:
    class RoomForUsageAlone(RecordedReports):
        def send(self, message: object) -> bool:
            return isinstance(message, WorkerReport) and not message.timings and super().send(message)

    sent = RoomForUsageAlone()
    bounds = JournalBounds(usage_seconds=60.0, timing_seconds=60.0)
    journal = Journal(sent, asyncio.get_running_loop(), bounds=bounds, keeps_usage=True)
    async with gateway_before(responds(ANSWER), journal) as running:
        await post(running)
    journal.flush()
    assert [row.output_tokens for row in sent.usage] == [4]


REQUESTS = st.tuples(st.sampled_from(["acme", "zeta"]), st.booleans(), st.integers(1, 20), st.integers(1, 60))


@settings(deadline=None, max_examples=15)
@given(st.lists(REQUESTS, min_size=1, max_size=8))
def test_rows_are_exactly_what_simulated_engines_reported(wanted: list[tuple[str, bool, int, int]]) -> None:
    async def main() -> None:
        sent = RecordedReports()
        journal = Journal(sent, asyncio.get_running_loop(), bounds=JournalBounds(usage_seconds=0.0), keeps_usage=True)
        keys = keys_of(ACME, Tenant("zeta"))
        reported: dict[str, tuple[int, int]] = {"acme": (0, 0), "zeta": (0, 0)}
        async with (
            running_engine(EngineSettings("tiny", ("tiny",), speed=50.0)) as engine,
            running_gateway(fleet_of([engine.url]), api_keys=keys, reporters=Reporters(journal)) as running,
        ):
            for tenant, is_stream, tokens, words in wanted:
                body = {"model": "tiny", "prompt": "word " * words, "max_tokens": tokens, "stream": is_stream}
                if is_stream:
                    body["stream_options"] = {"include_usage": True}
                answer = await request(running.url, body, path="/v1/completions", more=authorization(tenant))
                assert answer.status == 200, answer.body
                usage = msgspec.json.decode(answer.events[-2] if is_stream else answer.body)["usage"]
                before = reported[tenant]
                reported[tenant] = (before[0] + usage["prompt_tokens"], before[1] + usage["completion_tokens"])

            async def is_reported() -> bool:
                journal.flush()
                return len(sent.usage) == len(wanted)

            await wait_until(is_reported)
        for tenant, tokens_by_kind in reported.items():
            rows = [row for row in sent.usage if row.tenant == tenant]
            assert (sum(row.input_tokens for row in rows), sum(row.output_tokens for row in rows)) == tokens_by_kind

    run_async(main())


async def test_a_client_who_leaves_has_used_a_prompt_as_dense_as_its_earlier_ones() -> None:
    dense = CHAT | {"messages": [{"role": "user", "content": "17 " * 1_000}]}

    async def script(call: EngineCall) -> None:
        if call.json.get("stream"):
            await call.start_stream()
            await call.event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]})
            await call.wait_closed()
        else:
            await call.respond(ANSWER | {"usage": {"prompt_tokens": 2_500, "completion_tokens": 4}})

    async def use(running: RunningGateway) -> None:
        for _ in range(10):
            await post(running, dense)
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(dense | {"stream": True}, more=authorization("acme")))
        await connection.reader.readuntil(b'"a"')
        await connection.close()

    rows = await rows_of(use, script, expected=11)
    assert [row.input_tokens for row in rows[:10]] == [2_500] * 10
    assert rows[10].input_tokens == pytest.approx(2_500, rel=0.01)
    assert rows[10].is_estimated
