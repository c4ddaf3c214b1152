"""Replies with reasoning and tool calls of their own, and their continuation from any token."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest

from fairlead_sim.engine.block_pool import chain_root
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.generation.markup_writer import ChainedDraws, MarkupPlan, MarkupWriter, SeededDraws
from fairlead_sim.generation.reply_parser import ParsedReply, ReplyMarkup, parse_reply
from fairlead_sim.generation.reply_script import ReplyLimits, ReplyScript
from fairlead_sim.runtime.settings import ApiSurface, EngineSettings
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.recording import HttpResponse
from fairlead_testing.transcripts.replay import post_request, send_request

pytestmark = pytest.mark.simulated
TOKENIZER = Tokenizer()
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "days": {"type": "integer", "minimum": 1},
        "unit": {"enum": ["C", "F"]},
        "exact": {"type": "boolean"},
    },
    "required": ["city", "days", "unit", "exact"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
ALL = MarkupPlan(reasons=True, tools=TOOLS, call_share=0.7, may_end=True)
LIMITS = ReplyLimits(2_000, length_factor=0.3)


def prompt_of(number: int) -> list[int]:
    return TOKENIZER.encode_chat([{"role": "user", "content": f"question {number}"}], tools=TOOLS)


def greedy(prompt: Sequence[int], plan: MarkupPlan = ALL, limits: ReplyLimits = LIMITS) -> ReplyScript:
    root = chain_root()
    return MarkupWriter(TOKENIZER, plan, limits, prompt, lambda ids: ChainedDraws(root, ids, 16, 0)).write()


def sampled(prompt: Sequence[int], seed: str, plan: MarkupPlan = ALL, limits: ReplyLimits = LIMITS) -> ReplyScript:
    return MarkupWriter(TOKENIZER, plan, limits, prompt, lambda _: SeededDraws(seed)).write()


def parsed(ids: Sequence[int]) -> ParsedReply:
    return parse_reply(TOKENIZER.decode(ids[:-1]), ReplyMarkup(reasoning=True, calls=True))


def validate(reply: ParsedReply) -> None:
    assert reply.reasoning
    assert "<" not in reply.reasoning + (reply.content or "")
    for call in reply.calls:
        assert call.name in ("weather", "now")
        jsonschema.validate(json.loads(call.arguments), WEATHER if call.name == "weather" else {"type": "object"})


@pytest.mark.parametrize("number", range(8))
def test_greedy_reply_continues_from_every_token_as_if_it_was_unbroken(number: int) -> None:
    prompt = prompt_of(number)
    whole = greedy(prompt)
    assert whole.reason == "stop"
    validate(parsed(whole.ids))
    for cut in range(1, len(whole.ids)):
        rest = greedy([*prompt, *whole.ids[:cut]])
        assert rest.ids == whole.ids[cut:]


@pytest.mark.parametrize("number", range(8))
def test_sampled_reply_continues_from_every_token_with_valid_parts(number: int) -> None:
    prompt = prompt_of(number)
    whole = sampled(prompt, f"{number}")
    for cut in range(1, len(whole.ids), 3):
        rest = sampled([*prompt, *whole.ids[:cut]], f"{number}/{cut}")
        validate(parsed([*whole.ids[:cut], *rest.ids]))
        rest.text.decode()


def test_share_of_replies_ends_in_calls_and_some_of_these_in_two() -> None:
    replies = [parsed(sampled(prompt_of(0), f"{number}").ids) for number in range(300)]
    counts = Counter(len(reply.calls) for reply in replies)
    assert set(counts) == {0, 1, 2}
    assert 0.63 < (counts[1] + counts[2]) / 300 < 0.77
    assert counts[2] > 30
    assert len({call.arguments for reply in replies for call in reply.calls}) > 8
    for reply in replies:
        validate(reply)


def test_text_of_a_reply_reads_back_as_its_tokens_and_has_words_of_several() -> None:
    script = sampled(prompt_of(0), "7")
    assert TOKENIZER.encode(script.text.decode()) == script.ids[:-1]
    words = script.text.decode().split(" ")
    assert max(len(TOKENIZER.encode(word)) for word in words) > 2
    assert script.ends is not None
    assert len(set(script.ends)) < len(script.ends)  # a character of several tokens


def test_required_text_stands_behind_the_reasoning_and_starts_anew() -> None:
    plan = MarkupPlan(reasons=True, tools=(), call_share=0.0, may_end=True)
    limits = ReplyLimits(2_000, length_factor=0.3, forced_text='{"answer":"simulated"}')
    prompt = prompt_of(1)
    whole = greedy(prompt, plan, limits)
    text = whole.text.decode()
    assert text.startswith("<think>")
    assert text.endswith('</think>{"answer":"simulated"}')
    inside = greedy([*prompt, *whole.ids[:6]], plan, limits)
    assert inside.ids == whole.ids[6:]
    behind = greedy([*prompt, *whole.ids[:-4]], plan, limits)
    assert behind.text.decode() == '{"answer":"simulated"}'


@pytest.mark.parametrize("limit", [1, 3, 4, 7, 8, 9, 10, 20, 30])
def test_a_limit_cuts_a_reply_between_characters(limit: int) -> None:
    cut = sampled(prompt_of(2), "7", limits=ReplyLimits(limit))
    whole = sampled(prompt_of(2), "7", limits=ReplyLimits(2_000))
    assert cut.ids == whole.ids[:limit]
    assert whole.text.startswith(cut.text.decode().encode())
    assert cut.reason == "length"


def test_nothing_ends_a_reply_that_ignores_its_end() -> None:
    script = sampled(prompt_of(0), "1", MarkupPlan(True, TOOLS, 1.0, may_end=False), ReplyLimits(900))
    assert (len(script.ids), script.reason) == (900, "length")


def test_call_that_no_tool_has_begun_is_closed() -> None:
    begun = TOKENIZER.encode('<think> abc</think><tool_call>\n{"name": "other"')
    rest = sampled([*prompt_of(0), *begun], "1")
    assert rest.text.decode().startswith("\n</tool_call>") or rest.text.decode().startswith("</tool_call>")


SETTINGS = EngineSettings(
    served_names=("tiny",), reply_markup=1.0, answer_length=0.3, surface=ApiSurface(reasoning_parser=True)
)
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": TOOLS,
    "stream": True,
    "temperature": 0,
    "return_token_ids": True,
}


async def chat(engine: RunningEngine, **more: Any) -> HttpResponse:
    body = {name: value for name, value in {**CHAT, **more}.items() if value is not None}
    return await send_request(engine.url.removeprefix("http://"), post_request("/v1/chat/completions", body))


def deltas(answer: HttpResponse) -> dict[str, str]:
    """The text of each part of a stream; calls by their names."""
    parts: dict[str, str] = {}
    name = ""
    for event in answer.events()[:-1]:
        for choice in event["choices"]:
            for kind in ("reasoning", "content"):
                parts[kind] = parts.get(kind, "") + (choice["delta"].get(kind) or "")
            for call in choice["delta"].get("tool_calls", []):
                name = call["function"].get("name", name)
                key = f"{name} {call['index']}"
                parts[key] = parts.get(key, "") + call["function"].get("arguments", "")
    return parts


async def test_a_stream_and_a_whole_reply_have_the_same_parts() -> None:
    async with running_engine(SETTINGS) as engine:
        streamed = await chat(engine)
        whole = (await chat(engine, stream=None)).json()["choices"][0]
    parts, message = deltas(streamed), whole["message"]
    assert (parts["reasoning"], parts["content"]) == (message["reasoning"], message["content"] or "")
    assert [parts[f"{call['function']['name']} {at}"] for at, call in enumerate(message["tool_calls"])] == [
        call["function"]["arguments"] for call in message["tool_calls"]
    ]
    assert whole["finish_reason"] == "tool_calls"
    assert streamed.events()[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
async def test_injected_ids_continue_a_stream_with_its_reasoning_and_calls(share: float) -> None:
    async with running_engine(SETTINGS) as engine:
        answer = await chat(engine, tool_choice="auto")
        events = answer.events()[:-1]
        prompt = events[0]["prompt_token_ids"]
        ids = [token for event in events[1:] for token in event["choices"][0]["token_ids"]]
        before_calls = TOKENIZER.decode(ids).index("<tool_call>")
        cut = int(share * next(at for at in range(len(ids)) if len(TOKENIZER.decode(ids[:at])) >= before_calls))
        shown = parse_reply(TOKENIZER.decode(ids[:cut]).rstrip("\ufffd"), ReplyMarkup(reasoning=True, calls=True))
        params = {"prompt_token_ids": [*prompt, *ids[:cut]]}
        rest = await chat(engine, messages=[{"role": "user", "content": "-"}], kv_transfer_params=params)
    parts, more = deltas(answer), deltas(rest)
    assert [token for event in rest.events()[1:-1] for token in event["choices"][0]["token_ids"]] == ids[cut:]
    whole_reasoning = (shown.reasoning or "") + more["reasoning"]
    assert parts["reasoning"].replace("€", "").startswith(whole_reasoning.replace("€", ""))
    calls = [name for name in parts if name[-1].isdigit()]
    assert calls
    assert all(parts[name] == more[name] for name in calls)


async def test_usage_counts_the_reasoning_of_a_continued_reply() -> None:
    async with running_engine(SETTINGS) as engine:
        events = (await chat(engine)).events()[:-1]
        ids = [token for event in events[1:] for token in event["choices"][0]["token_ids"]]
        params = {"prompt_token_ids": [*events[0]["prompt_token_ids"], *ids[:6]]}
        counted = [
            (await chat(engine, stream=None, kv_transfer_params=more)).json()["usage"]["completion_tokens_details"]
            for more in (None, params)
        ]
    assert counted[0]["reasoning_tokens"] - counted[1]["reasoning_tokens"] == 2  # behind the mark of four


async def test_reasoning_can_be_turned_off_and_the_option_is_off_by_itself() -> None:
    async with running_engine(SETTINGS) as engine:
        assert not deltas(await chat(engine, chat_template_kwargs={"enable_thinking": False}))["reasoning"]
        assert not deltas(await chat(engine, tools=None, stop=["zzz"]))["reasoning"]
    plain = EngineSettings(served_names=("tiny",), surface=ApiSurface(reasoning_parser=True))
    async with running_engine(plain) as engine:
        assert set(deltas(await chat(engine))) == {"reasoning", "content"}
        assert not deltas(await chat(engine))["reasoning"]
