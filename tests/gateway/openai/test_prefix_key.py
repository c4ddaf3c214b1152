"""The chain of a prompt begins with all that decides what an engine has cached for it."""

import json
from typing import Any

import pytest

from fairlead.fleet.model import RequestPolicy
from fairlead.limits import Limits
from fairlead_gateway.dialects.passed_on import GenericRequest
from fairlead_gateway.dialects.schemas import MEMBERS_DECODER
from fairlead_gateway.dialects.table import BODY_DECODERS
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.openai.body_parser import repeated_bytes
from fairlead_gateway.openai.request import build_route_request, parse_request
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, ChainStarts, shared_bytes
from fairlead_testing.gateway.running_gateway import fleet_of

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "long " * 500}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "long " * 500}


def route_request_of(body: dict[str, Any], request_id: str = "r") -> RouteRequest:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions" if "messages" in body else "/v1/rerank"
    data = json.dumps(body).encode()
    head = RequestHead("POST", path, [], 11, len(data), keep_alive=True, expects_continue=False)
    allowed = RequestPolicy(allowed_fields=frozenset({"chat_template", "input_ids", "lora_path", "prompt_embeds"}))
    request = parse_request(path, data, fleet_of([], requests=allowed), Limits())
    return build_route_request(request, head, request_id, ChainStarts(b"secret"))


def chain_of(body: dict[str, Any], request_id: str = "r") -> PrefixChain:
    return route_request_of(body, request_id).chain


@pytest.mark.parametrize(
    ("body", "sequences"),
    [
        (CHAT, 1),
        (CHAT | {"n": None}, 1),
        (CHAT | {"n": 128}, 128),
        (TEXT | {"n": 2, "best_of": 5}, 5),
        (TEXT | {"best_of": None}, 1),
    ],
)
def test_every_answer_that_an_engine_computes_counts(body: dict[str, Any], sequences: int) -> None:
    assert route_request_of(body).sequences == sequences


@pytest.mark.parametrize("body", [CHAT, TEXT])
@pytest.mark.parametrize(
    "field",
    [
        *("add_special_tokens", "chat_template", "chat_template_kwargs", "documents", "mm_processor_kwargs"),
        *("reasoning_effort", "truncate_prompt_tokens", "extra_key", "input_ids", "images_config", "video_config"),
        *("thinking", "prompt_embeds", "lora_path", "max_dynamic_patch"),
    ],
)
def test_field_that_changes_the_prompt_does_not_pass_for_a_cached_prompt(field: str, body: dict[str, Any]) -> None:
    plain = chain_of(body)
    first, second = chain_of(body | {field: {"a": 1}}), chain_of(body | {field: {"a": 2}})
    assert len({plain.hashes, first.hashes, second.hashes}) == 3
    assert chain_of(body | {field: {"a": 1}}).hashes == first.hashes
    assert chain_of(body | {"temperature": 1, "seed": 5, "metadata": {"a": 1}}).hashes == plain.hashes


@pytest.mark.parametrize(
    "body", [CHAT | {"prompt_logprobs": 0}, TEXT | {"prompt_logprobs": 1}, TEXT | {"echo": True, "logprobs": 0}]
)
def test_prompt_that_is_computed_for_its_logprobs_never_passes_for_cached(body: dict[str, Any]) -> None:
    assert chain_of(body, "one").hashes != chain_of(body, "two").hashes
    plain = {name: value for name, value in body.items() if name in ("model", "messages", "prompt")}
    assert chain_of(plain, "one").hashes == chain_of(plain, "two").hashes


TOOLS = [{"type": "function", "function": {"name": "f", "description": "long " * 5_000}}]


@pytest.mark.parametrize(
    "body",
    [
        CHAT | {"tools": TOOLS},
        CHAT | {"tools": TOOLS, "temperature": 1, "priority": None},
        CHAT | {"functions": [TOOLS[0]["function"]]},
        CHAT | {"documents": [{"text": "long " * 5_000}]},
        CHAT | {"messages": [{"role": "user", "content": "a", "x": 1}], "tools": TOOLS},
        TEXT | {"suffix": "long " * 5_000},
        TEXT | {"suffix": "long " * 5_000, "x": 1},
    ],
)
def test_every_text_of_the_prompt_counts_in_its_size(body: dict[str, Any]) -> None:
    prompt = body.get("messages") or body["prompt"]
    others = {name: value for name, value in body.items() if name not in ("model", "messages", "prompt")}
    size = len(json.dumps(prompt)) + max(len(json.dumps(value)) for value in others.values())
    assert route_request_of(body).prompt_tokens == pytest.approx(size / BYTES_PER_TOKEN, abs=8)


@pytest.mark.parametrize("body", [CHAT | {"tools": []}, CHAT | {"documents": None}, TEXT | {"suffix": ""}])
def test_empty_text_beside_a_prompt_changes_nothing_of_its_size(body: dict[str, Any]) -> None:
    plain = CHAT if "messages" in body else TEXT
    assert route_request_of(body).prompt_tokens == route_request_of(plain).prompt_tokens


def test_conversations_with_equal_tools_share_the_tools() -> None:
    chat, other = (CHAT | {"messages": [{"role": "user", "content": text}], "tools": TOOLS} for text in ("a", "b"))
    assert shared_bytes(chain_of(chat), chain_of(other)) > 0.9 * len(json.dumps(TOOLS))


LONG = "long " * 1_000


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"query": LONG, "documents": ["a"] * 10}, 10),
        ({"query": LONG, "documents": ["a"]}, 1),
        ({"query": LONG, "documents": {"content": []}}, 1),
        ({"query": LONG, "documents": {"content": ["a"] * 10}}, 10),
        ({"query": "a", "documents": [LONG] * 10}, 10),
        ({"query": LONG, "documents": ["a"] * 10, "instruction": LONG}, 20),
        ({"text_1": LONG, "text_2": ["a"] * 10}, 10),
        ({"text_1": [LONG], "text_2": ["a"] * 10}, 10),
        ({"text_1": ["a"] * 10, "text_2": LONG}, 10),
        ({"text_1": [LONG] * 10, "text_2": ["a"] * 10}, 10),
        ({"data_1": LONG, "data_2": ["a"] * 10}, 10),
        ({"queries": LONG, "documents": ["a"] * 10}, 10),
        ({"query": LONG, "items": [[1, 2]] * 10}, 10),
        ({"input": [LONG] * 10}, 10),
        ({"prompt": ["a"] * 10, "suffix": LONG}, 10),
        ({"prompt": [1, 2, 3], "suffix": LONG}, 1),
    ],
)
def test_text_that_is_computed_with_each_item_counts_with_each(body: dict[str, Any], texts: int) -> None:
    tokens = route_request_of({"model": "tiny", **body}).prompt_tokens
    assert tokens == pytest.approx(texts * len(LONG) / BYTES_PER_TOKEN, rel=0.02, abs=60)


def test_tools_of_a_batch_of_chats_count_for_each_conversation() -> None:
    body = {"model": "tiny", "messages": [CHAT["messages"]] * 3, "tools": TOOLS}
    members = MEMBERS_DECODER.decode(json.dumps(body).encode())
    fields = BODY_DECODERS[GenericRequest].decode(json.dumps(body).encode())
    assert repeated_bytes(fields, members) == 2 * len(json.dumps(TOOLS))
