"""Streams whose engine dies: another engine resumes those that allow it, and no others."""

import asyncio
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.limits import Limits
from fairlead_gateway.profiles.messages import TimingEventKind
from fairlead_gateway.proxy.continuation import SentText, splice_events
from fairlead_gateway.upstream.sent_tokens import TokenMemory
from fairlead_gateway.worker.journal import Journal, JournalBounds, Reporters
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    Script,
    event,
    role,
    scripted_engine,
    streams,
    token,
    usage,
)
from fairlead_testing.gateway.running_gateway import (
    MODEL_KEY,
    RecordedReports,
    RunningGateway,
    fleet_of,
    gateway_of,
    running_gateway,
)
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

PROFILE = builtin_profile("h100-llama8b")
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "tell me a story"}],
    "max_tokens": 200,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}
TEXT: dict[str, Any] = {**CHAT, "prompt": "once upon a time"}
del TEXT["messages"]


def text_of(events: list[str]) -> str:
    """The text of a stream."""
    parts = []
    for data in events:
        for choice in [] if data == "[DONE]" else json.loads(data).get("choices", []):
            parts.append(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
    return "".join(parts)


async def broken_by(
    number: signal.Signals, running: RunningGateway, engines: list[Any], body: dict[str, Any], path: str
) -> RawResponse:
    """The answer to a request whose engine gets a signal once some of it has come."""
    connection = await RawConnection.connect(running.url)
    await connection.send(post_request(body, path=path))
    head = await connection.reader.readuntil(b"\r\n\r\n")
    used = next(line for line in head.split(b"\r\n") if line.startswith(b"x-fairlead-instance"))
    got = b""
    for _ in range(8):
        got += await connection.reader.readuntil(b"\n\n\r\n")
    engines[int(used.split(b"e-")[1][:1])].send(number)
    raw = asyncio.StreamReader()
    raw.feed_data(head + got + await connection.reader.read())
    raw.feed_eof()
    answer = await RawConnection(raw, connection.writer).read_response()
    await connection.close()
    return answer


@pytest.mark.sockets
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_greedy_stream_is_the_same_when_its_engine_is_killed(path: str, body: dict[str, Any]) -> None:
    async with (
        engine_processes(2, "--speed", "0.5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
    ):
        whole = await request(running.url, body, path=path)
        broken = await broken_by(signal.SIGKILL, running, engines, body, path)
        assert broken.complete
        assert broken.events[-1] == "[DONE]"
        assert text_of(broken.events) == text_of(whole.events)
        shown = [json.loads(data) for data in broken.events[:-1]]
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in shown}) == 1
        counted, expected = shown[-1]["usage"], json.loads(whole.events[-2])["usage"]
        assert counted["completion_tokens"] == expected["completion_tokens"] == 200
        assert counted["prompt_tokens"] == expected["prompt_tokens"]
        assert counted["total_tokens"] == expected["total_tokens"]
        logged = running.gateway.decisions.latest(1)[0]
        assert [record.decision.rule for record in logged.records][-1] == "continue-1"
        assert (logged.status, logged.error, logged.output_tokens) == (200, None, 200)
        assert running.gateway.telemetry.models[MODEL_KEY].continued == {"whole": 1}
        assert {load.inflight for load in running.loads().values()} == {0}


@pytest.mark.sockets
async def test_greedy_stream_of_a_silent_engine_that_no_longer_listens_is_resumed() -> None:
    limits = Limits(unresponsive_seconds=0.1)
    async with (
        engine_processes(2, "--speed", "0.5", "--on-sigterm", "silence") as engines,
        running_gateway(fleet_of([engine.url for engine in engines]), limits) as running,
    ):
        path = "/v1/chat/completions"
        whole = await request(running.url, CHAT, path=path)
        rest = await broken_by(signal.SIGTERM, running, engines, CHAT, path)
        assert rest.events[-1] == "[DONE]"
        assert text_of(rest.events) == text_of(whole.events)
        reason = running.gateway.decisions.latest(1)[0].latest.decision.reason
        assert reason.startswith("continued after gone, behind "), reason


def breaks_then_goes_on(met: list[EngineCall]) -> Script:
    """Says two tokens and breaks off; the next engine says two more."""

    async def script(call: EngineCall) -> None:
        met.append(call)
        await call.start_stream()
        named = {"id": f"chatcmpl-{len(met)}", "created": len(met), "model": "tiny"}
        await call.event({**named, **role()})
        if len(met) == 1:
            await call.event({**named, **token("one ")})
            await call.event({**named, **token("two ")})
            raise HangUp
        await call.event({**named, **token("three ")})
        await call.event({**named, **token("four", "stop")})
        await call.event({**named, **usage(9, 4, 2)})
        await call.finish()

    return script


async def test_the_other_engine_gets_the_answer_so_far_and_what_is_left_of_the_tokens() -> None:
    met: list[EngineCall] = []
    script = breaks_then_goes_on(met)
    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, CHAT)
        assert text_of(answer.events) == "one two three four"
        assert answer.events[-1] == "[DONE]"
        first, second = met[0].json, met[1].json
        assert second["messages"] == [*first["messages"], {"role": "assistant", "content": "one two "}]
        assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
        assert {call.header("x-request-id") for call in met} == {answer.fields["x-fairlead-decision"]}
        assert second["max_tokens"] == 198
        roles = [data for data in answer.events if '"role"' in data]
        assert len(roles) == 1
        assert json.loads(answer.events[-2])["usage"]["completion_tokens"] == 4
        assert json.loads(answer.events[-2])["usage"]["prompt_tokens"] == 7
        assert {json.loads(data)["id"] for data in answer.events[:-1]} == {"chatcmpl-1"}


async def test_each_engine_of_a_resumed_stream_is_credited_with_its_own_tokens() -> None:
    calls: list[EngineCall] = []
    sender = RecordedReports()
    journal = Journal(sender, asyncio.get_running_loop(), bounds=JournalBounds(timing_seconds=0.01))
    script = breaks_then_goes_on(calls)
    async with gateway_of(script, script, reporters=Reporters(journal)) as (running, *_):
        assert (await request(running.url, CHAT)).events[-1] == "[DONE]"
        await wait_until(lambda: bool(sender.timings) and sender.timings[-1].kind == TimingEventKind.FINISHED)
        logged = running.gateway.decisions.latest(1)[0]
    broken, resumed = (record.decision.chosen for record in logged.records)
    assert broken != resumed
    assert [(event.kind, event.instance) for event in sender.timings] == [
        (TimingEventKind.DISPATCHED, broken),
        (TimingEventKind.FIRST_TOKEN, ""),
        (TimingEventKind.ABANDONED, ""),
        (TimingEventKind.DISPATCHED, resumed),
        (TimingEventKind.FIRST_TOKEN, ""),
        (TimingEventKind.FINISHED, ""),
    ]
    times = [event.at for event in sender.timings]
    assert times == sorted(times)  # the second engine's first token comes after its dispatch
    assert sender.timings[-1].output == 2  # the second engine's own; the client was sent four


@pytest.mark.parametrize(
    ("fields", "output", "kind"),
    [
        ({}, 2, TimingEventKind.FINISHED),
        ({}, 2_000, TimingEventKind.UNMEASURED),  # reasoning that no event shows
        ({"n": 2}, 4, TimingEventKind.UNMEASURED),
    ],
)
async def test_only_tokens_with_steps_of_their_own_teach_the_speed_of_an_engine(
    fields: dict[str, object], output: int, kind: TimingEventKind
) -> None:
    script = streams(role(), token("a"), token("b", "stop"), usage(7, 0, output))

    sender = RecordedReports()
    journal = Journal(sender, asyncio.get_running_loop(), bounds=JournalBounds(timing_seconds=0.01))
    async with gateway_of(script, reporters=Reporters(journal)) as (running, *_):
        assert (await request(running.url, CHAT | fields)).events[-1] == "[DONE]"
        await wait_until(lambda: len(sender.timings) == 3)
    assert [event.kind for event in sender.timings][1:] == [TimingEventKind.FIRST_TOKEN, kind]


def planned_sequences(running: RunningGateway) -> dict[str, int]:
    """Returns the number of sequences that the KV planner counts at each instance."""
    planner = running.gateway.stack.admission.models[MODEL_KEY].policy.kv_capacity
    return {instance: len(usage.sequences) for instance, usage in planner._usage.items() if usage.sequences}


async def test_the_kv_of_a_resumed_stream_is_planned_at_the_engine_that_resumes_it() -> None:
    calls: list[EngineCall] = []
    streaming, done = asyncio.Event(), asyncio.Event()

    async def script(call: EngineCall) -> None:
        calls.append(call)
        await call.start_stream()
        await call.event({"id": "a", "created": 1, "model": "tiny", **token("one ")})
        if len(calls) == 1:
            raise HangUp
        streaming.set()
        await done.wait()
        await call.event({"id": "b", "created": 2, "model": "tiny", **token("two", "stop")})
        await call.finish()

    async with scripted_engine(script) as first, scripted_engine(script) as second:
        fleet = fleet_of([first.url, second.url])
        instances = tuple(replace(instance, profile=PROFILE) for instance in fleet.instances[MODEL_KEY])
        fleet = replace(fleet, instances={MODEL_KEY: instances})
        async with running_gateway(fleet) as running, asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(request(running.url, CHAT))
            await streaming.wait()
            record = running.gateway.decisions.latest(1)[0].latest
            assert planned_sequences(running) == {record.decision.chosen: 1}
            done.set()
            assert (await answer).events[-1] == "[DONE]"
            assert planned_sequences(running) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.7},
        {"n": 2},
        {"stop": ["x"]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"frequency_penalty": 0.5},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"return_token_ids": True},
        {"prompt_logprobs": 0},
        {"logit_bias": {"5": 1}},
        {"structured_outputs": {"regex": "a+"}},
        {"max_tokens": 2},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_what_more_than_text_decides_ends_with_an_error_event_as_before(change: dict[str, Any]) -> None:
    met: list[EngineCall] = []
    script = breaks_then_goes_on(met)
    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, {**CHAT, **change})
        assert '"code":"stream_cut"' in answer.events[-1]
        assert "[DONE]" not in answer.events
        assert len(met) == 1


_NULLS = (
    *("stop", "n", "logit_bias", "response_format", "structured_outputs", "frequency_penalty", "presence_penalty"),
    *("repetition_penalty", "min_tokens", "prompt_logprobs", "return_token_ids", "use_beam_search", "user", "seed"),
    *("continue_final_message", "add_generation_prompt", "max_completion_tokens", "stream_options", "logprobs"),
)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, **dict.fromkeys((*_NULLS, "top_logprobs", "tools", "tool_choice"))}),
        ("/v1/completions", {**TEXT, **dict.fromkeys((*_NULLS, "echo", "suffix", "best_of"))}),
        ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True, "continuous_usage_stats": None}}),
        ("/v1/chat/completions", {**CHAT, "continue_final_message": False, "return_token_ids": False}),
        ("/v1/chat/completions", {**CHAT, "metadata": {"use_beam_search": "yes"}}),
    ],
)
async def test_what_is_null_is_absent_and_the_stream_goes_on(path: str, body: dict[str, Any]) -> None:
    met: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await call.start_stream()
        first = len(met) == 1
        piece: dict[str, Any] = token("one " if first else "two", None if first else "stop")
        if path == "/v1/completions":
            piece["choices"][0] = {
                "index": 0,
                "text": "one " if first else "two",
                "finish_reason": None if first else "stop",
            }
        await call.event({"id": "x", **piece})
        if first:
            raise HangUp
        await call.finish()

    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, body, path=path)
        assert text_of(answer.events) == "one two"
        assert answer.events[-1] == "[DONE]"
        assert len(met) == 2


async def test_a_seed_allows_it_too() -> None:
    met: list[EngineCall] = []
    script = breaks_then_goes_on(met)
    async with gateway_of(script, script) as (running, *_):
        assert (await request(running.url, {**CHAT, "temperature": 0.7, "seed": 3})).events[-1] == "[DONE]"


async def test_resumed_stream_that_breaks_again_ends_with_an_error_at_no_third_engine() -> None:
    met: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await call.start_stream()
        await call.chunk(event({"id": "x", **token("a ")}))
        raise HangUp

    async with gateway_of(script, script, script) as (running, *_):
        answer = await request(running.url, CHAT)
        assert text_of(answer.events[:-1]) == "a a "
        assert '"code":"stream_cut"' in answer.events[-1]
        assert len(met) == 2
        assert running.gateway.telemetry.models[MODEL_KEY].continued == {"broken": 1}


async def test_silent_resumption_is_awaited_however_long_ago_the_stream_began() -> None:
    met: list[EngineCall] = []
    old, go_on = asyncio.Event(), asyncio.Event()

    async def script(call: EngineCall) -> None:
        met.append(call)
        first = len(met) == 1
        if not first:
            await go_on.wait()
        await call.start_stream()
        await call.event({"id": "x", **token("one " if first else "two", None if first else "stop")})
        if first:
            await old.wait()
            raise HangUp
        await call.finish()

    limits = Limits(first_token_seconds=0.5, first_token_min_seconds=0.05, first_token_factor=0.0)
    async with gateway_of(script, script, limits=limits) as (running, *_):
        breaker, clock = running.gateway.stack.failures.outlier_detector, running.gateway.runtime.clock
        asked = asyncio.create_task(request(running.url, CHAT))
        late = clock.now() + limits.first_token_seconds
        await wait_until(lambda: clock.now() > late)
        old.set()
        await wait_until(lambda: any(record.consecutive_failures["timeout"] for record in breaker._records.values()))
        go_on.set()
        assert text_of((await asked).events) == "one two"


async def test_a_stream_longer_than_what_is_kept_is_not_continued() -> None:
    met: list[EngineCall] = []
    script = breaks_then_goes_on(met)
    async with gateway_of(script, script, limits=Limits(resumable_bytes=50)) as (running, *_):
        assert "[DONE]" not in (await request(running.url, CHAT)).events
        assert len(met) == 1


EVENT = b'data: {"id":1,"choices":[{"text":"a"}]}\n\n'


async def test_streams_that_break_at_once_are_parsed_one_by_one_and_in_slices() -> None:
    slices: list[int] = []

    class NumberedText(SentText):
        def __init__(self, number: int) -> None:
            super().__init__(1 << 20)
            self.number = number
            self.add([EVENT] * 1_000)

        def parse_slices(self) -> Iterator[bool]:
            for is_text in super().parse_slices():
                slices.append(self.number)
                yield is_text

    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        resume = running.gateway.stack.relay._stream_resume
        parsing = asyncio.gather(*(resume._parse(NumberedText(number)) for number in range(3)))
        turns = 0
        while not parsing.done():
            await asyncio.sleep(0)
            turns += 1
        assert await parsing == [True, True, True]
        assert slices == sorted(slices)
        assert turns >= len(slices) >= 3 * 15


def test_sent_text_of_all_streams_is_bounded_and_freed_when_they_end() -> None:
    memory = TokenMemory(1_000)
    first, second = SentText(600, memory), SentText(600, memory)
    first.add([EVENT] * 10)
    second.add([EVENT] * 10)
    assert memory.used_bytes == 20 * len(EVENT)
    second.add([EVENT] * 5)  # too much for both
    assert memory.used_bytes == 10 * len(EVENT)
    second.add([EVENT])
    assert memory.used_bytes == 10 * len(EVENT)
    assert (all(first.parse_slices()), all(second.parse_slices())) == (True, False)
    first.add([EVENT] * 10)  # too long for one
    assert (memory.used_bytes, all(first.parse_slices())) == (0, False)
    third = SentText(600, memory)
    third.add([EVENT] * 10)
    third.release()
    third.release()
    assert memory.used_bytes == 0


async def test_stream_that_has_ended_keeps_no_text_for_a_resumption() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, CHAT)).events[-1] == "[DONE]"
        assert running.gateway.stack.relay._sent_text_memory.used_bytes == 0


@pytest.mark.parametrize("number", [b"9" * 4_300, b"-1", b"1e400"])
def test_impossible_token_count_does_not_end_the_reading_of_a_resumed_stream(number: bytes) -> None:
    sent = SentText(1_000)
    sent.tokens = 3
    (spliced,) = splice_events([b'data: {"usage":{"completion_tokens":%b}}\n\n' % number], sent)
    assert number in spliced
