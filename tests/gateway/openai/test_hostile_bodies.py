"""Hostile JSON crashes no parser, stalls no loop and brings no fatal value to an engine."""

import json
import tracemalloc

import pytest

from fairlead.limits import Limits
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.passed_on import GenericRequest
from fairlead_gateway.dialects.responses import ResponsesRequest
from fairlead_gateway.dialects.schemas import CommonFields
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.openai.body_parser import parse_body
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request

pytestmark = pytest.mark.simulated


def chat(**fields: object) -> bytes:
    return json.dumps(GOOD | fields).encode()


def raw(text: str) -> bytes:
    """A good body with one more field of raw JSON text."""
    return b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"extra":' + text.encode() + b"}"


BAD: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", None),
    "not JSON": (b"hello", None),
    "cut off": (b'{"model":"tiny",', None),
    "single quotes": (b"{'model':'tiny'}", None),
    "two values": (chat() + b"{}", None),
    "trailing comma": (b'{"model":"tiny","messages":[],}', None),
    "array": (b"[]", None),
    "string": (b'"tiny"', None),
    "null": (b"null", None),
    "number": (b"17", None),
    "true": (b"true", None),
    "nested 500 deep": (raw("[" * 500 + "]" * 500), None),
    "nested 1,100 deep": (raw("[" * 1_100 + "]" * 1_100), None),
    "nested 100,000 deep": (raw("[" * 100_000 + "]" * 100_000), None),
    "nested 1,000,000 deep and open": (raw("[" * 1_000_000), None),
    "objects nested 400 deep": (raw('{"a":' * 400 + "1" + "}" * 400), None),
    "nested messages": (b'{"model":"tiny","messages":' + b"[" * 300 + b"]" * 300 + b"}", None),
    "NaN": (raw("NaN"), None),
    "Infinity": (raw("-Infinity"), None),
    "NaN in a known field": (b'{"model":"tiny","messages":[],"temperature":NaN}', None),
    "1e400": (b'{"model":"tiny","messages":[{"role":"user"}],"temperature":1e400}', "temperature"),
    "leading zero": (raw("01"), None),
    "lone surrogate": (chat(model="\ud800"), None),
    "lone surrogate in a message": (chat(messages=[{"role": "user", "content": "\ud800"}]), None),
    "lone surrogate in an unknown field": (raw('"\\ud800x"'), None),
    "low surrogate first": (raw('"\\udc00\\ud800"'), None),
    "invalid UTF-8": (b'{"model":"tiny","messages":[{"role":"user","content":"\xff\xfe"}]}', None),
    "invalid UTF-8 in an unknown field": (b'{"model":"tiny","messages":[{"role":"u"}],"x":"\xc3\x28"}', None),
    "UTF-8 of a surrogate": (b'{"model":"tiny","messages":[{"role":"u"}],"x":"\xed\xa0\x80"}', None),
    "raw control character": (raw('"\x01"'), None),
    "raw newline in a string": (raw('"a\nb"'), None),
    "bad escape": (raw('"\\x41"'), None),
    "byte order mark, twice": (b"\xef\xbb\xbf" * 2 + chat(), None),
    "UTF-16": (chat().decode().encode("utf-16"), None),
    "UTF-32": (chat().decode().encode("utf-32"), None),
    "NUL behind": (chat() + b"\0", None),
    "no model": (b'{"messages":[]}', "model"),
    "model null": (chat(model=None), "model"),
    "model a number": (chat(model=7), "model"),
    "model a list": (chat(model=["tiny"]), "model"),
    "model empty": (chat(model=""), "model"),
    "model very long": (chat(model="m" * 10_000), "model"),
    "model with a control character": (chat(model="ti\x07ny"), "model"),
    "no messages": (b'{"model":"tiny"}', "messages"),
    "messages null": (chat(messages=None), "messages"),
    "messages a string": (chat(messages="hi"), "messages"),
    "messages an object": (chat(messages={"role": "user"}), "messages"),
    "messages empty": (chat(messages=[]), "messages"),
    "a message a string": (chat(messages=["hi"]), "messages[0]"),
    "a message null": (chat(messages=[None]), "messages[0]"),
    "no role": (chat(messages=[{"content": "hi"}]), "messages[0].role"),
    "role a number": (chat(messages=[{"role": 1, "content": "hi"}]), "messages[0].role"),
    "content a number": (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
    "content an object": (chat(messages=[{"role": "user", "content": {}}]), "messages[0].content"),
    "content of the third": (
        chat(messages=[{"role": "u", "content": "x"}, {"role": "u", "content": "x"}, {"role": "u", "content": True}]),
        "messages[2].content",
    ),
    "part text a number": (
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": 5}]}]),
        "messages[0].content[0].text",
    ),
    "stream a string": (chat(stream="perhaps"), "stream"),
    "stream a number": (chat(stream=2), "stream"),
    "stream_options a list": (chat(stream_options=[]), "stream_options"),
    "include_usage a string": (chat(stream_options={"include_usage": "z"}), "stream_options.include_usage"),
    "temperature a string": (chat(temperature="hot"), "temperature"),
    "max_tokens a string": (chat(max_tokens="5 or 6"), "max_tokens"),
    "max_tokens a fraction": (chat(max_tokens=1.5), "max_tokens"),
    "max_tokens true": (chat(max_tokens=True), "max_tokens"),
    "max_tokens zero": (chat(max_tokens=0), "max_tokens"),
    "max_tokens negative": (chat(max_tokens=-1), "max_tokens"),
    "max_tokens of 20 digits": (chat(max_tokens=10**19), "max_tokens"),
    "max_tokens of 5,000 digits": (b'{"model":"tiny","messages":[],"max_tokens":' + b"9" * 5_000 + b"}", "max_tokens"),
    "max_completion_tokens zero": (chat(max_completion_tokens=0), "max_completion_tokens"),
    "n of a billion": (chat(n=10**9), "n"),
    "n zero": (chat(n=0), "n"),
    "n a list": (chat(n=[1]), "n"),
    "top_logprobs of a million": (chat(top_logprobs=10**6), "top_logprobs"),
    "stop a number": (chat(stop=5), "stop"),
    "stop with a number": (chat(stop=["a", 5]), "stop[1]"),
    "stop with 1,000 strings": (chat(stop=["a"] * 1_000), "stop"),
    "user a number": (chat(user=5), "user"),
    "stop strings of 1 MiB": (chat(stop="x" * 1_048_576), "stop"),
    "seed beyond 64 bits": (chat(seed=2**63), "seed"),
    "top_k beyond 32 bits": (chat(top_k=10**30), "top_k"),
    "priority beyond 64 bits": (chat(priority=-(10**30)), "priority"),
    "min_tokens of a billion": (chat(min_tokens=10**9), "min_tokens"),
    "prompt_logprobs of a million": (chat(prompt_logprobs=10**6), "prompt_logprobs"),
    "seed a string": (chat(seed="x"), "seed"),
    "tools an object": (chat(tools={}), "tools"),
    "10,000 tools": (chat(tools=[{"function": {"name": "f"}}] * 10_000), "tools"),
    "a tool a number": (chat(tools=[1]), "tools[0]"),
    "a tool null": (chat(tools=[None]), "tools[0]"),
    "a tool without a function": (chat(tools=[{"type": "function"}]), "tools[0].function"),
    "a function without a name": (chat(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
    "tools of 5 MiB": (chat(tools=[{"function": {"name": "f" * 5_242_880}}]), "tools"),
    "a schema of 1 MiB": (chat(response_format={"x": "y" * 1_048_576}), "response_format"),
    "logit_bias a list": (chat(logit_bias=[1]), "logit_bias"),
    "logit_bias with a text": (chat(logit_bias={"5": "x"}), "logit_bias[...]"),
    "logit_bias of 1 MiB": (chat(logit_bias={str(n): 1 for n in range(100_000)}), "logit_bias"),
    "three million values": (raw("[" + "1," * 3_000_000 + "1]"), None),
    "three million tools": (b'{"model":"tiny","messages":[{"role":"u"}],"tools":[' + b"0," * 3_000_000 + b"0]}", None),
    "300,000 objects": (raw("[" + ",".join(["{}"] * 300_000) + "]"), None),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_body_gets_a_4xx_that_names_the_field(name: str) -> None:
    body, param = BAD[name]
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, body)
        assert answer.status == 400
        error = answer.error
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param, error
        assert param is None or error["message"].startswith(param)
        assert engine.calls == []
        assert (await request(running.url, GOOD)).status == 200


HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]
BREAKERS, PATTERN = "dry_sequence_breakers", "repetition_detection.max_pattern_size"
LONG = "(a|b)" * 60_000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "tiny"}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": None}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": 5}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": {"a": 1}}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": [1, 2.5]}, "prompt[1]"),
        ("/v1/completions", {"model": "tiny", "prompt": [["a"]]}, "prompt[0][0]"),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", 5]}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": [[1], "a"]}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 3_000}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 100, "n": 100}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "best_of": 10**9}, "best_of"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "logprobs": 10**6}, "logprobs"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "logprobs": -1}, "logprobs"),
        ("/v1/completions", {"model": "tiny", "prompt": [-1]}, "prompt[0]"),
        ("/v1/completions", {"model": "tiny", "prompt": [[5, 2**31]]}, "prompt[0][1]"),
        ("/v1/embeddings", {"model": "tiny", "input": [[-1]]}, "input[0][0]"),
        ("/v1/responses", {"model": "tiny", "input": "x", "stop": ["a"] * 65}, "stop"),
        ("/v1/messages", {"model": "tiny", "messages": [], "stop_sequences": ["a"] * 65}, "stop_sequences"),
        ("/v1/messages", {"model": "tiny", "messages": [], "stop_sequences": ["a" * 65_536]}, "stop_sequences"),
        ("/v1/chat/completions/batch", {"model": "tiny", "messages": [[]] * 2_049}, "messages"),
        ("/v1/chat/completions", {**HI, "regex": LONG}, "regex"),
        ("/v1/chat/completions", {**HI, "ebnf": LONG, "top_k": 5}, "ebnf"),
        ("/v1/chat/completions", {**HI, "messages": PARTS, "guided_regex": LONG}, "guided_regex"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "json_schema": LONG}, "json_schema"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "grammar": LONG}, "grammar"),
        ("/v1/responses", {"model": "tiny", "input": "x", "text": {"format": {"schema": LONG}}}, "text"),
        ("/v1/responses", {"model": "tiny", "input": "x", "structured_outputs": {"regex": LONG}}, "structured_outputs"),
        ("/v1/messages", {**HI, "output_config": {"format": {"schema": LONG}}}, "output_config"),
        ("/v1/messages", {**HI, "tools": [{"name": "f", "input_schema": {"a": LONG * 16}}]}, "tools"),
        ("/v1/rerank", {"model": "tiny", "query": "x", "documents": ["a"] * 2_049}, "documents"),
        ("/v1/rerank", {"model": "tiny", "query": "x", "documents": {"content": [{}] * 2_049}}, "documents"),
        ("/v1/score", {"model": "tiny", "queries": "x", "items": ["a"] * 2_049}, "items"),
        ("/v1/score", {"model": "tiny", "text_1": "x", "text_2": ["a"] * 2_049}, "text_2"),
        ("/v1/classify", {"model": "tiny", "input": ["a"] * 2_049}, "input"),
        ("/v1/classify", b'{"model":"tiny","input":[ "a"' + b',"a"' * 2_048 + b"]}", "input"),
        ("/v1/pooling", {"model": "tiny", "input": [[1]] * 2_049}, "input"),
        ("/v1/pooling", {"model": "tiny", "data": ["a"] * 2_049}, "data"),
        ("/v1/chat/completions", {**HI, "bad_words": ["a"] * 65}, "bad_words"),
        ("/v1/chat/completions", {**HI, "messages": PARTS, "bad_words": ["a" * 65_536]}, "bad_words"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "bad_words": ["a"] * 65}, "bad_words"),
        ("/v1/responses", {"model": "tiny", "input": "x", "bad_words": ["a"] * 65}, "bad_words"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "dry_sequence_breakers": ["a"] * 65}, BREAKERS),
        ("/v1/chat/completions", {**HI, "repetition_detection": {"max_pattern_size": 257}}, PATTERN),
        ("/v1/responses", {"model": "tiny", "input": "x", "repetition_detection": {"max_pattern_size": "9"}}, PATTERN),
        ("/v1/chat/completions", {**HI, "samplers": ["penalties"] * 100}, "samplers"),
        ("/v1/chat/completions", {**HI, "samplers": "k" * 1_024}, "samplers"),
        ("/v1/chat/completions", {**HI, "n_probs": 101}, "n_probs"),
        ("/v1/chat/completions", {**HI, "repeat_last_n": 2**31 - 1}, "repeat_last_n"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "repeat_last_n": 1e9}, "repeat_last_n"),
        ("/v1/messages", {**HI, "dry_penalty_last_n": 2**31 - 1}, "dry_penalty_last_n"),
        ("/v1/messages", {**HI, "dry_penalty_last_n": "9"}, "dry_penalty_last_n"),
        ("/v1/embeddings", {"model": "tiny"}, "input"),
        ("/v1/embeddings", {"model": "tiny", "input": 7}, "input"),
        ("/v1/embeddings", {"model": "tiny", "input": [[1]] * 3_000}, "input"),
        ("/v1/embeddings", {"model": "tiny", "input": "x", "dimensions": 0}, "dimensions"),
    ],
)
async def test_bad_values_are_refused_on_every_path_by_their_own_field(path: str, body: object, param: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, body, path=path)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert engine.calls == []


GOOD_ONES = {
    "a 20-digit integer": raw("12345678901234567890"),
    "1e400 in a field that nobody reads": raw("1e400"),
    "a pair of surrogates": raw('"\\ud83d\\ude00"'),
    "escaped text that looks like a surrogate": raw('"\\\\ud800"'),
    "other fields": raw('{"a":[1,2,{"b":null}]}'),
    "nesting within bounds": raw("[" * 100 + "]" * 100),
    "brackets in strings": chat(messages=[{"role": "user", "content": '[{"' * 2_000 + '\\"[\\\\'}]),
    "parts": chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, "y"]}]),
    "an image": chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]),
    "tool calls": chat(
        messages=[{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]
    ),
    "fields that are null": chat(n=None, stop=None, stream=None, temperature=None, user=None, tools=None),
    "a whole number as temperature": chat(temperature=1),
    "one stop string": chat(stop="x"),
    "tools": chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}, {"type": "other"}]),
    "a bias": chat(logit_bias={"5": -100, "6": 0.5}),
    "fields of vLLM": chat(bad_words=["a"] * 64, repetition_detection={"max_pattern_size": 256, "min_count": 2}),
    "documents of a chat": chat(documents=[{"text": "x"}] * 2_048),
    "fields of vLLM that are null": chat(bad_words=None, repetition_detection=None),
    "fields of llama.cpp": chat(samplers=["top_k"], n_probs=5, repeat_last_n=-1, dry_penalty_last_n=None),
    "the largest seed": chat(seed=2**63 - 1, top_k=-1, prompt_logprobs=-1),
    "a prompt of 2 MiB": chat(messages=[{"role": "user", "content": "x" * 2_097_152}]),
}


@pytest.mark.parametrize("name", GOOD_ONES)
async def test_what_is_legal_reaches_the_engine_byte_for_byte(name: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, GOOD_ONES[name])
        assert answer.status == 200, answer.body
        assert [call.body for call in engine.calls] == [GOOD_ONES[name]]


async def test_of_a_duplicate_key_the_last_counts_for_gateway_and_engine_alike() -> None:
    body = b'{"model":"nope","model":"tiny","stream":true,"messages":[{"role":"u"}],"stream":false,"n":1,"n":2}'
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, body)
        assert answer.status == 200
        assert answer.fields["content-type"] == "application/json"
        assert engine.calls[0].body == body
        swapped = body.replace(b'"nope","model":"tiny"', b'"tiny","model":"nope"')
        assert (await request(running.url, swapped)).status == 404


async def test_a_million_keys_do_not_hold_up_other_requests() -> None:
    body = b"{" + b",".join(b'"k%d":1' % n for n in range(1_000_000)) + b',"model":"tiny","messages":[{"role":"u"}]}'
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        heavy, light = await RawConnection.connect(running.url), await RawConnection.connect(running.url)
        await heavy.send(post_request(body))
        await light.send(get_request("/readyz"))
        assert (await light.read_response()).status == 200
        assert (await heavy.read_response()).status == 200
        assert len(engine.calls[0].body) == len(body)
        await heavy.close()
        await light.close()


async def test_a_body_that_is_changed_has_a_bounded_number_of_fields() -> None:
    body = (
        b"{" + b",".join(b'"k%d":1' % n for n in range(5_000)) + b',"model":"default/tiny","messages":[{"role":"u"}]}'
    )
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, body)
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")
        assert (await request(running.url, body.replace(b"default/", b""))).status == 200


async def test_the_body_limit_counts_decoded_bytes() -> None:
    limits = Limits(body_bytes=1_000)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        assert (await request(running.url, chat(user="x" * 800))).status == 200
        answer = await request(running.url, chat(user="x" * 1_000))
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("kind", [ChatRequest, ResponsesRequest, GenericRequest])
@pytest.mark.parametrize("sign", ["uuid", "image_embeds", "audio_embeds", "video_embeds", "u\\u0075id"])
@pytest.mark.parametrize("item", [b"{}", b"[]", b'{"a":{}}', b"[[],{}]", b'""'])
def test_body_of_too_many_values_is_refused_before_it_is_decoded(
    kind: type[CommonFields], sign: str, item: bytes
) -> None:
    items = b",".join([item] * 400_000)
    body = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"%b":[%b]}' % (sign.encode(), items)
    limits = Limits(json_values=300_000)
    tracemalloc.start()
    with pytest.raises(BadRequest, match="the body holds more than"):
        parse_body(kind, body, limits)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * len(body) + 1_000_000
