"""Prompts from block ids: equal ids give equal text, with the trace's number of tokens."""

import json

import pytest

from fairlead.errors import BadInput
from fairlead_cli.replay.traffic import PromptBuilder, ReplayTarget
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.workload.traces import TraceRequest

TOKENIZER = Tokenizer()


def request(tokens: int, *blocks: int) -> TraceRequest:
    return TraceRequest("r", 0.0, tokens, 5, blocks)


@pytest.mark.parametrize("tokens", [600, 1_024, 1_025, 1_030, 1_536])
def test_prompt_has_exactly_the_token_count_of_the_trace(tokens: int) -> None:
    blocks = range(-(-tokens // 512))
    text = PromptBuilder(TOKENIZER).text(request(tokens, *blocks))
    assert len(TOKENIZER.encode_chat([{"role": "user", "content": text}])) == tokens


def test_shared_text_ends_at_the_first_different_block() -> None:
    builder = PromptBuilder(TOKENIZER)
    first, second = builder.text(request(2_000, 0, 5, 6, 7)), builder.text(request(2_040, 0, 5, 8, 9))
    assert first[: 2 * 2_048] == second[: 2 * 2_048]
    assert first[2 * 2_048 :][:40] != second[2 * 2_048 :][:40]


def test_shared_trace_blocks_are_shared_engine_blocks() -> None:
    builder = PromptBuilder(TOKENIZER)
    first, second = (
        TOKENIZER.encode_chat([{"role": "user", "content": builder.text(request(2_000, 0, 5, 6, last))}])
        for last in (7, 8)
    )
    common_tokens = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    assert common_tokens // 16 * 16 == 3 * 512


def test_encoded_request_is_one_complete_http_request() -> None:
    target = ReplayTarget("http://[::1]:8000/v1", model="a", key="secret")
    head, _, body = target.encode(request(600, 0, 1), [{"role": "user", "content": " abc"}]).partition(b"\r\n\r\n")
    assert b"host: [::1]:8000" in head
    assert b"authorization: Bearer secret" in head
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["messages"] == [{"role": "user", "content": " abc"}]


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://127.0.0.1:99999", "http://", "http://host/api"])
def test_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(BadInput):
        ReplayTarget(url, model="a")
