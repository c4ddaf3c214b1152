"""The cost of a next engine's event does not depend on how much the engine before it has sent."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fairlead_gateway.continuation import stream_blocks
from fairlead_gateway.continuation.sent_blocks import SentBlocks
from fairlead_gateway.continuation.sent_tokens import SentTokens, TokenMemory
from fairlead_gateway.continuation.stream_blocks import StreamMessage
from fairlead_gateway.continuation.stream_text import SentText, splice_events
from fairlead_gateway.dialects.messages import MESSAGES
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.proxy.attempt import external_refusal
from fairlead_gateway.upstream.sse import SseScanner
from fairlead_gateway.upstream.usage import hide_accounts
from fairlead_testing.engines.scripted import event, named_event, token, usage

EVENTS = 200
SIZES = [1, 3_000, 100_000, 2_000_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["id", "model", "created"])
def test_names_of_an_answer_that_are_long_are_not_given_to_each_event(name: str, size: int) -> None:
    sent = SentText(10_000_000)
    first: dict[str, Any] = {"id": "a", "model": "b", "created": 1, name: "n" * size}
    sent.add([event(first | token("a"))])
    assert all(sent.parse_slices())
    spliced = b"".join(splice_events([event(token("b"))] * EVENTS, sent))
    assert len(spliced) < EVENTS * 5_000


@pytest.mark.parametrize("size", SIZES[:-1])
def test_opening_of_a_message_is_read_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = {"message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 4}, "x": "a" * size}}
    blocks = SentBlocks(TokenMemory(100_000_000), b"{}", float)
    blocks.take([named_event("message_start", **opening)])
    message = StreamMessage(cast(ModelRequest, SimpleNamespace(dialect=MESSAGES)), blocks)
    read = []
    original = stream_blocks.event_data
    monkeypatch.setattr(stream_blocks, "event_data", lambda data: read.append(len(data)) or original(data))
    spliced = message.splice([named_event("message_delta", usage={"input_tokens": 9})] * EVENTS)
    assert all(b'"input_tokens":3' in part for part in spliced)
    assert sum(read) < size + EVENTS * 200


@pytest.mark.parametrize("members", [1, 40, 2_000])
@pytest.mark.parametrize("reports_before", [False, True])
def test_held_end_gets_the_members_of_one_event_of_counts(members: int, reports_before: bool) -> None:
    scanner = SseScanner(strip_usage=True, max_event_bytes=1 << 20)
    if reports_before:
        scanner.filter_chunks([event(token("a") | {"usage": usage(1, 0, 1)["usage"]})])
    end = event(token("b", "stop"))
    assert scanner.filter_chunks([end]) == []
    named = [event(usage(1, 0, 1) | {f"m{number}": 1 for number in range(at, at + members)}) for at in range(EVENTS)]
    shown = b"".join(scanner.filter_chunks(named))
    assert json.loads(shown[6:])["choices"] == token("b", "stop")["choices"]
    assert len(shown) < len(end) + len(named[0])
    assert scanner.waiting_bytes == 0


def test_long_opening_of_a_message_is_not_kept() -> None:
    blocks = SentBlocks(TokenMemory(100_000_000), b"{}", float)
    opening = named_event("message_start", message={"x": "a" * SIZES[-1]})
    assert blocks.take([opening]) == [opening]
    assert (blocks.problem, blocks.head) == ("memory", b"")


def test_text_beyond_any_answer_is_not_continued() -> None:
    blocks = SentBlocks(TokenMemory(100_000_000), b"{}", float)
    blocks.take([named_event("content_block_start", index=0, content_block={"type": "text", "text": ""})])
    part = named_event("content_block_delta", index=0, delta={"type": "text_delta", "text": "a" * 100_000})
    taken = [blocks.take([part]) for _ in range(30)]
    assert taken == [[part]] * 30
    assert (blocks.problem, blocks.parts) == ("memory", [])


def test_ids_beyond_any_context_are_not_continued() -> None:
    memory = TokenMemory(100_000_000)
    tokens = SentTokens(memory, strips=True)
    ids = ",".join(["7"] * 8_000)
    tokens.take(b'data: {"prompt_token_ids":[5],"token_ids":[6],"content":"a"}\n\n')
    part = b'data: {"token_ids":[%b],"content":"a"}\n\n' % ids.encode()
    shown = {tokens.take(part) for _ in range(140)}
    assert shown == {part.replace(b"[%b]" % ids.encode(), b"null")}
    assert (tokens.problem, memory.used_bytes) == ("memory", 0)


@pytest.mark.parametrize("slashes", ["//", r"\/\/", r"/\/"])
@pytest.mark.parametrize("length", [1, 60, 60_000])
def test_address_of_a_provider_is_hidden_to_its_end(slashes: str, length: int) -> None:
    separator = slashes[-2:] if slashes.endswith(r"\/") else "/"
    address = f"https:{slashes}{separator.join(['a' * length, 'b', 'c'])}"
    assert hide_accounts(f'{{"message":"\\"{address}\\" <{address}>"}}'.encode()) == (
        b'{"message":"\\"(hidden)\\" <(hidden)>"}'
    )


@pytest.mark.parametrize("words", ["https://" + "a" * 70_000, "org-aaaaaa " * 7_000])
def test_long_refusal_of_a_provider_is_not_shown(words: str) -> None:
    refusal = external_refusal(400, json.dumps({"error": {"message": words}}).encode(), "r")
    assert json.loads(refusal)["error"]["message"] == "the provider of this model refuses the request"
