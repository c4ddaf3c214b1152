"""The experiment on wire forms: the words of its requests, the figures of a run, its rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead_bench.agents.benchmark import (
    ARMS,
    NAMED_ARMS,
    UNNAMED_ARMS,
    AgentRun,
    SentTurn,
    figures_of,
    measure,
    rows,
)
from fairlead_bench.agents.wire_forms import (
    BILLED_MESSAGES,
    CACHED_MESSAGES,
    CHAT,
    MESSAGES,
    RESPONSES,
    TOOLS,
    Usage,
    WireForm,
    draw_sessions,
    read_events,
)
from fairlead_bench.results import load_goals

(SESSION,) = draw_sessions(1, 3, seed=1)
RUN = AgentRun(
    0.9, 4, 0.02, 0.1, 96, 0, {"ttft": 96, "tpot": 96, "usage": 96}, [900, 800, 70], [900, 800, 70], [16, -16]
)


def said(form: WireForm, turn: int) -> list[str]:
    """Returns the texts of a request's turns, in their order."""
    body = form.body(SESSION, turn)
    turns = body.get("messages") or body["input"]
    texts = [item["content"] if isinstance(item["content"], str) else item["content"][0]["text"] for item in turns]
    return [text for text in texts if text != SESSION.system]


@pytest.mark.parametrize("form", [CHAT, MESSAGES, RESPONSES], ids=lambda form: form.path)
def test_all_dialects_say_the_same_words_in_turns_that_only_grow(form: WireForm) -> None:
    assert said(form, 2) == [
        SESSION.asked[0],
        SESSION.answers[0],
        SESSION.asked[1],
        SESSION.answers[1],
        SESSION.asked[2],
    ]
    assert said(form, 1) == said(form, 2)[:3]
    body = form.body(SESSION, 0)
    assert SESSION.system in json.dumps(body)
    assert len(body["tools"]) == TOOLS


def test_a_coding_agents_messages_have_its_order_of_fields() -> None:
    assert list(MESSAGES.body(SESSION, 0)) == [
        "model",
        "messages",
        "system",
        "tools",
        "metadata",
        "max_tokens",
        "stream",
    ]


def test_the_billing_line_is_the_only_text_that_differs_between_turns() -> None:
    first, second = (BILLED_MESSAGES.body(SESSION, turn)["system"] for turn in (0, 1))
    assert first[0]["text"].startswith("x-anthropic-billing-header: cc_version=")
    assert first[0] != second[0]
    assert first[1:] == second[1:] == MESSAGES.body(SESSION, 0)["system"]


def test_the_cache_breakpoint_moves_to_the_last_message() -> None:
    marked = [
        ["cache_control" in message["content"][0] for message in CACHED_MESSAGES.body(SESSION, turn)["messages"]]
        for turn in (0, 1)
    ]
    assert marked == [[True], [False, False, True]]


EVENTS: list[tuple[WireForm, dict[str, Any], bool, Usage | None]] = [
    (CHAT, {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None}, False, None),
    (CHAT, {"choices": [{"delta": {"content": "a"}}]}, True, None),
    (CHAT, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}, False, Usage(9, 0, 2)),
    (MESSAGES, {"type": "message_start", "message": {"usage": {"input_tokens": 9}}}, False, None),
    (MESSAGES, {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}, True, None),
    (
        MESSAGES,
        {
            "type": "message_delta",
            "usage": {
                "input_tokens": 1,
                "cache_creation_input_tokens": 2,
                "cache_read_input_tokens": 6,
                "output_tokens": 2,
            },
        },
        False,
        Usage(9, 6, 2),
    ),
    (RESPONSES, {"type": "response.output_text.delta", "delta": "a"}, True, None),
    (
        RESPONSES,
        {
            "type": "response.incomplete",
            "response": {
                "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 6}, "output_tokens": 2}
            },
        },
        False,
        Usage(9, 6, 2),
    ),
]


@pytest.mark.parametrize(("form", "event", "is_token", "usage"), EVENTS)
def test_streams_tell_tokens_and_usage(
    form: WireForm, event: dict[str, Any], is_token: bool, usage: Usage | None
) -> None:
    (read,) = read_events(["event: named", f"data: {json.dumps(event)}", "", "data: [DONE]"])
    assert (form.is_token(read), form.usage(read)) == (is_token, usage)


def test_first_turns_count_for_no_share_and_moves_are_within_a_session() -> None:
    sessions = [
        [SentTurn(0, "e-0", 200, 0.3, Usage(100, 0, 8)), SentTurn(1, "e-1", 200, 0.1, Usage(200, 100, 8))],
        [SentTurn(0, "e-1", 200, 0.2, Usage(100, 90, 8)), SentTurn(1, "e-1", 502, None, None)],
    ]
    run = figures_of(sessions, {"ttft": 3, "tpot": 2, "usage": 3}, [400, 190, 24], [400, 190, 23])
    assert (run.cached_share, run.moves, run.streams, run.failures) == (0.5, 1, 4, 1)
    assert (run.ttft_p50_seconds, run.ttft_p90_seconds) == (0.2, 0.3)
    assert (run.counted_share, run.token_difference) == (0.5, 1)


def test_rows_compare_unnamed_arms_with_chat_and_named_ones_with_one_pool() -> None:
    found = {name: [RUN, replace(RUN, moves=8)] for name in ARMS}
    found["messages"] = [replace(RUN, cached_share=0.85)] * 2
    made = rows(found, load_goals("agents"))
    values = {row.metric: row.value if row.ratio is None else row.ratio for row in made}
    assert values["cached share: chat − messages, points"] == pytest.approx(5)
    assert values["moves of 80 turns: responses with session_id"] == 6
    assert values["cached share: responses with session_id ÷ one pool"] == pytest.approx(1)
    assert {row.metric: row.goal for row in made if row.goal is not None} == load_goals("agents")
    assert [row.metric for row in made if not row.holds] == ["cached share: chat − messages, points"]
    assert {*UNNAMED_ARMS, *NAMED_ARMS} < set(ARMS)


@pytest.mark.nightly
@pytest.mark.timeout(120)
async def test_a_run_counts_every_stream_of_chat(tmp_path: Path) -> None:
    run = await measure(ARMS["chat"], 1, tmp_path, draw_sessions(4, 2, seed=1))
    assert (run.streams, run.failures) == (8, 0)
    assert run.counted == {"ttft": 8, "tpot": 8, "usage": 8}
    assert run.token_difference == 0
    assert 0.0 < run.cached_share < 1.0
