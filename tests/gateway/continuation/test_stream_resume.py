"""Streams whose engine dies: another engine resumes those that allow it, and no others."""

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.limits import Limits
from fairlead_gateway.continuation.sent_tokens import TokenMemory
from fairlead_gateway.continuation.stream_text import SentText, splice_events
from fairlead_gateway.journal import Journal, JournalBounds, Reporters
from fairlead_gateway.profiles.messages import TimingEventKind
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, role, scripted_engine, streams, token, usage
from fairlead_testing.gateway.broken_streams import CHAT as SAMPLED_CHAT
from fairlead_testing.gateway.broken_streams import TEXT as SAMPLED_TEXT
from fairlead_testing.gateway.broken_streams import Part, broken_after, send_part, shown, text_of
from fairlead_testing.gateway.running_gateway import (
    MODEL_KEY,
    RecordedReports,
    RunningGateway,
    fleet_of,
    gateway_of,
    running_gateway,
    with_profile,
)
from fairlead_testing.http.raw_client import request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

CHAT = SAMPLED_CHAT | {"max_tokens": 200, "temperature": 0}
TEXT = SAMPLED_TEXT | {"max_tokens": 200, "temperature": 0}
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


@pytest.mark.sockets
@pytest.mark.parametrize(("path", "body"), [(CHAT_PATH, CHAT), (TEXT_PATH, TEXT)])
async def test_greedy_stream_is_the_same_when_its_engine_is_killed(path: str, body: dict[str, Any]) -> None:
    async with (
        engine_processes(2, "--speed", "0.5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
    ):
        whole = await request(running.url, body, path=path)
        broken = await broken_after(8, running, engines, (path, body))
        assert broken.complete
        events = shown(broken)
        assert text_of(events) == text_of(shown(whole))
        assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
        counted, expected = events[-1]["usage"], shown(whole)[-1]["usage"]
        for name in ("completion_tokens", "prompt_tokens", "total_tokens"):
            assert counted[name] == expected[name]
        assert counted["completion_tokens"] == 200
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
        whole = await request(running.url, CHAT)
        rest = await broken_after(8, running, engines, (CHAT_PATH, CHAT), signal.SIGTERM)
        assert text_of(shown(rest)) == text_of(shown(whole))
        reason = running.gateway.decisions.latest(1)[0].latest.decision.reason
        assert reason.startswith("continued after gone, behind "), reason


PARTS: list[Part] = [
    [role(), token("one "), token("two ")],
    [role(), token("three "), token("four", "stop"), usage(9, 4, 2)],
]


def breaks_then_goes_on(met: list[EngineCall], *parts: Part) -> Script:
    """Sends one part for each call, and breaks off but after the last."""

    async def script(call: EngineCall) -> None:
        met.append(call)
        await call.start_stream()
        named = {"id": f"chatcmpl-{len(met)}", "created": len(met), "model": "tiny"}
        named_parts = [
            [named | event if isinstance(event, dict) else event for event in part] for part in parts or PARTS
        ]
        await send_part(call, named_parts, len(met))

    return script


async def test_the_other_engine_gets_the_answer_so_far_and_what_is_left_of_the_tokens() -> None:
    met: list[EngineCall] = []
    script = breaks_then_goes_on(met)
    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, CHAT)
        assert text_of(shown(answer)) == "one two three four"
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
    planner = running.gateway.stages.admission.models[MODEL_KEY].policy.kv_capacity
    return {instance: len(usage.sequences) for instance, usage in planner._usage.items() if usage.sequences}


async def test_the_kv_of_a_resumed_stream_is_planned_at_the_engine_that_resumes_it() -> None:
    calls: list[EngineCall] = []
    done = asyncio.Event()
    script = breaks_then_goes_on(calls, [token("one ")], [token("one "), done, token("two", "stop")])
    async with scripted_engine(script) as first, scripted_engine(script) as second:
        fleet = with_profile(fleet_of([first.url, second.url]), builtin_profile("h100-llama8b"))
        async with running_gateway(fleet) as running, asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(request(running.url, CHAT))
            await wait_until(lambda: len(calls) == 2)
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
        (CHAT_PATH, {**CHAT, **dict.fromkeys((*_NULLS, "top_logprobs", "tools", "tool_choice"))}),
        (TEXT_PATH, {**TEXT, **dict.fromkeys((*_NULLS, "echo", "suffix", "best_of"))}),
        (CHAT_PATH, {**CHAT, "stream_options": {"include_usage": True, "continuous_usage_stats": None}}),
        (CHAT_PATH, {**CHAT, "continue_final_message": False, "return_token_ids": False}),
        (CHAT_PATH, {**CHAT, "metadata": {"use_beam_search": "yes"}}),
    ],
)
async def test_what_is_null_is_absent_and_the_stream_goes_on(path: str, body: dict[str, Any]) -> None:
    met: list[EngineCall] = []
    pieces = token("one "), token("two", "stop")
    for piece in pieces if path == TEXT_PATH else ():
        piece["choices"][0]["text"] = piece["choices"][0].pop("delta")["content"]
    script = breaks_then_goes_on(met, *[[piece] for piece in pieces])
    async with gateway_of(script, script) as (running, *_):
        assert text_of(shown(await request(running.url, body, path=path))) == "one two"
        assert len(met) == 2


async def test_a_seed_allows_it_too() -> None:
    met: list[EngineCall] = []
    script = breaks_then_goes_on(met)
    async with gateway_of(script, script) as (running, *_):
        assert (await request(running.url, {**CHAT, "temperature": 0.7, "seed": 3})).events[-1] == "[DONE]"


async def test_resumed_stream_that_breaks_again_ends_with_an_error_at_no_third_engine() -> None:
    met: list[EngineCall] = []
    script = breaks_then_goes_on(met, *[[token("a ")]] * 3, [])
    async with gateway_of(script, script, script) as (running, *_):
        answer = await request(running.url, CHAT)
        assert text_of([json.loads(data) for data in answer.events[:-1]]) == "a a "
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
        breaker, clock = running.gateway.stages.failures.outlier_detector, running.gateway.runtime.clock
        asked = asyncio.create_task(request(running.url, CHAT))
        late = clock.now() + limits.first_token_seconds
        await wait_until(lambda: clock.now() > late)
        old.set()
        await wait_until(lambda: any(record.consecutive_failures["timeout"] for record in breaker._records.values()))
        go_on.set()
        assert text_of(shown(await asked)) == "one two"


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
        resume = running.gateway.stages.relay.continuation
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
        assert running.gateway.stages.relay.continuation.text_memory.used_bytes == 0


@pytest.mark.parametrize("number", [b"9" * 4_300, b"-1", b"1e400"])
def test_impossible_token_count_does_not_end_the_reading_of_a_resumed_stream(number: bytes) -> None:
    sent = SentText(1_000)
    sent.tokens = 3
    (spliced,) = splice_events([b'data: {"usage":{"completion_tokens":%b}}\n\n' % number], sent)
    assert number in spliced
