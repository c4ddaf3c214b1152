"""A fuzz target: request bodies.

A body is refused with a field's name, or it reaches the engine with exactly the intended changes.

The second reader is the standard library's JSON parser. It locates the members of the body before
and after. Every member that should not change must be there byte for byte, in order.
"""

import json
import re
from collections.abc import Callable, Hashable, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any
from zlib import crc32

import msgspec
from fuzzing.target import CANARY, Target, refused

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.continuation.stream_text import SentText, resume_body
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.dialects.responses import RESPONSES
from fairlead_gateway.dialects.schemas import GenerationFields
from fairlead_gateway.dialects.table import BODY_TYPES
from fairlead_gateway.disaggregation.worker.kv_connectors import ineligible_reason, nixl_prefill_fields, prefill_body
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.field_policy import REMOVED_FIELDS, remove_fields
from fairlead_gateway.openai.json_edit import set_members
from fairlead_gateway.openai.request import (
    build_route_request,
    can_resume,
    parse_passthrough_request,
    parse_request,
)
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts

LIMITS = Limits()
PARAMS = b'{"do_remote_prefill":true,"remote_host":"a"}'
_NAMES = ("tiny", "other", "a/b"[:1])
_MODELS = {f"default/{name}": Model("default", name, SloTargets()) for name in _NAMES} | {
    "chat/tiny": Model("chat", "tiny", SloTargets())
}
FLEET = Fleet(
    1,
    1,
    _MODELS,
    {key: (Instance(f"{key}/0", model.namespace, model.name, "main", "http://127.0.0.1:1", state=InstanceState.READY),)
     for key, model in _MODELS.items()},
)  # fmt: skip
HEAD = RequestHead("POST", "/v1/odd", [(b"host", b"x")], 11, 0, True, False, b"a=b&model=c")
_PATHS = (*BODY_TYPES, "/v1/chat/completions", "/v1/completions", "/v1/odd", "/v1/chat/completions")
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBERS = re.compile(r"\d+")


class Obj(tuple):  # type: ignore[type-arg]
    """A JSON object as its members in order, doubles included."""


_scan = json.JSONDecoder(
    object_pairs_hook=Obj,
    parse_int=lambda text: ("number", text),
    parse_float=lambda text: ("number", text),
    parse_constant=lambda text: ("constant", text),
).scan_once  # type: ignore[attr-defined]
Member = tuple[str, str, Any]  # name, text from the name to the end of the value, value


def members(body: bytes) -> list[Member]:
    """Returns the members of a JSON object. Raises ValueError if it is invalid."""
    text = body.decode()
    at = _SPACE.match(text).end()  # type: ignore[union-attr]
    if text[at : at + 1] != "{":
        raise ValueError("no object")
    at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    fields: list[Member] = []
    while text[at : at + 1] != "}":
        if fields:
            if text[at : at + 1] != ",":
                raise ValueError("no comma")
            at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
        if text[at : at + 1] != '"':
            raise ValueError("no name")
        name, end = scanstring(text, at + 1, True)
        end = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[end : end + 1] != ":":
            raise ValueError("no colon")
        end = _SPACE.match(text, end + 1).end()  # type: ignore[union-attr]
        try:
            value, end = _scan(text, end)
        except StopIteration:
            raise ValueError("no value") from None
        fields.append((name, text[at:end], value))
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
    if _SPACE.match(text, at + 1).end() != len(text):  # type: ignore[union-attr]
        raise ValueError("more behind")
    return fields


def check(body: bytes) -> Hashable:
    """Checks that a body is refused with a 4xx that repeats nothing, or changed as intended."""
    path = _PATHS[crc32(body) % len(_PATHS)]
    try:
        ask = (
            parse_passthrough_request(HEAD, body, FLEET, LIMITS)
            if path == "/v1/odd"
            else parse_request(path, body, FLEET, LIMITS)
        )
    except GatewayError as error:
        refused(error)
        _bare(body)
        return path, error.code, _NUMBERS.sub("#", error.param or ""), _NUMBERS.sub("#", str(error))[:40]
    if path == "/v1/odd" and not body:
        return path, "empty"
    before = members(body)
    meant = expected(before, ask)
    after = members(ask.body)
    assert plain(after) == plain(meant), "a member is not what was meant"
    for (_, was, _), (_, now, _) in zip(meant, after, strict=True):
        assert was is None or was == now, "bytes that should stay have changed"
    if plain(before) == plain(after):
        assert ask.body == body, "nothing was to be changed"
    build_route_request(ask, HEAD, "r", ChainStarts(b"secret"))
    legs(ask, after)
    return path, len(before), ask.stream, ask.strip_usage, tuple(sorted({name for name, _, _ in before}))[:6]


def plain(fields: list[Any]) -> list[tuple[str, Any]]:
    """Returns names and values."""
    return [(name, value) for name, _, value in fields]


def expected(before: list[Member], ask: ModelRequest) -> list[Any]:
    """Returns the members that an engine should get; the text is None for Fairlead's own."""
    wanted: list[Any] = []
    rename = ask.fields.model != ask.model.name
    options = next((value for name, _, value in reversed(before) if name == "stream_options"), None)
    given = any(name == "stream_options" for name, _, _ in before)
    for name, text, value in before:
        if name in REMOVED_FIELDS:
            continue
        if name == "vllm_xargs" and isinstance(value, Obj):
            inner = Obj(pair for pair in value if pair[0] not in REMOVED_FIELDS)
            wanted.append((name, text if inner == value else None, inner))
        elif name == "model" and rename:
            wanted.append((name, None, ask.model.name))
        elif name == "stream_options" and ask.strip_usage:
            wanted.append((name, None, _with_usage(options)))
        else:
            wanted.append((name, text, value))
    if ask.strip_usage and not given:
        wanted.insert(0, ("stream_options", None, _with_usage(None)))
    return wanted


def _with_usage(options: Any) -> Obj:
    pairs = options if isinstance(options, Obj) else Obj()
    if any(name == "include_usage" for name, _ in pairs):
        return Obj((name, True if name == "include_usage" else value) for name, value in pairs)
    return Obj([("include_usage", True), *pairs])


def legs(ask: ModelRequest, after: list[Member]) -> None:
    """Checks that bodies for prefill, decode and resumption change their own fields only."""
    if not isinstance(ask.fields, GenerationFields):
        return
    ineligible_reason(ask)
    changes: dict[str, Any] = {
        ask.dialect.output_limit: ("number", "1"),
        "stream": False,
        "kv_transfer_params": Obj([("do_remote_decode", True), ("do_remote_prefill", False)]),
    }
    if ask.dialect.form is not None and ask.dialect.form.has_min_tokens:
        changes["min_tokens"] = ("number", "1")
    if ask.dialect is RESPONSES:
        changes["store"] = False
    if isinstance(ask.fields, ChatRequest) and ask.fields.max_completion_tokens is not None:
        changes["max_completion_tokens"] = ("number", "1")
    if ask.fields.n is not None:
        changes["n"] = ("number", "1")
    prefill = members(prefill_body(ask, nixl_prefill_fields()))
    if any(name == "stream_options" for name, _, _ in prefill):
        changes["stream_options"] = None
    _set(after, prefill, changes)
    decode = members(set_members(ask.body, {"kv_transfer_params": PARAMS}))
    _set(after, decode, {"kv_transfer_params": Obj([("do_remote_prefill", True), ("remote_host", "a")])})
    if can_resume(ask):
        sent = SentText(100)
        sent.text, sent.tokens = 'so "far"\u2028', 1
        rest = resume_body(ask, sent)
        if rest is not None:
            resumed = dict(plain(members(rest)))
            if isinstance(ask.fields, ChatRequest):
                old = dict(plain(after))["messages"]
                assert resumed["messages"] == [*old, Obj([("role", "assistant"), ("content", sent.text)])]
                assert resumed["continue_final_message"] is True
                assert resumed["add_generation_prompt"] is False
            elif isinstance(ask.fields, CompletionRequest):
                assert resumed["prompt"] == msgspec.json.decode(ask.fields.prompt) + sent.text


def _set(before: list[Member], after: list[Member], changes: dict[str, Any]) -> None:
    """Checks that ``after`` is ``before`` with ``changes`` set, at every occurrence or in front."""
    names = {name for name, _, _ in before}
    added = {name: value for name, value in changes.items() if name not in names}
    front = plain(after[: len(added)])
    assert sorted(front) == sorted(added.items(), key=str) or dict(front) == added, (
        "what was added is not what was meant"
    )
    for (name, was, value), (name_now, now, value_now) in zip(before, after[len(added) :], strict=True):
        assert name == name_now
        if name in changes:
            assert value_now == changes[name]
        else:
            assert (was, value) == (now, value_now)


def _bare(body: bytes) -> None:
    """Checks that transfer fields are cut out of all bodies with valid syntax."""
    named = b"transfer_params" in body or b"kv_cache_report_mode" in body
    if (not named and b"\\u00" not in body) or not body.lstrip().startswith(b"{"):
        return
    try:
        msgspec.json.decode(body)
        fields = members(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return
    try:
        after = members(remove_fields(body))
    except GatewayError as error:
        refused(error)
        return
    assert [name for name, _, _ in after] == [name for name, _, _ in fields if name not in REMOVED_FIELDS]


_FIELD_WORDS = [
    b'"model":"tiny"', b'"model":"default/tiny"', b'"model":"chat/tiny"', b'"model":"other"',
    b'"mod\\u0065l":"default/other"', b'"stream":true',
    b'"stream":false', b'"stream_options":{"include_usage":true}', b'"stream_options":{"include_usage":false}',
    b'"stream_options":null',
    b'"stream_options":{}', b'"stream_options":{"continuous_usage_stats":true}',
    b'"stream_options":{"include_usage":false,"x":[1]}',
    b'"kv_transfer_params":{"a":1}', b'"ec_transfer_params":null', b'"kv\\u005ftransfer_params":[1]',
    b'"\\u006bv_transfer_params":"}"',
    b'"vllm_xargs":{"kv_transfer_params":"x","a":1}', b'"vllm_xargs":{"ec\\u005Ftransfer_params":1}',
    b'"vllm\\u005fxargs":{}',
    b'"messages":[{"role":"user","content":"hi"}]',
    b'"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}]',
    b'"messages":[{"role":"user","content":"\\u00e9\\\\"},{"role":"assistant","content":null}]', b'"prompt":"x"',
    b'"prompt":[1,2]',
    b'"prompt":["a","b"]', b'"prompt":[[1],[2]]', b'"input":"x"', b'"temperature":0', b'"seed":7', b'"n":1',
    b'"n":2', b'"max_tokens":5',
    b'"max_completion_tokens":9', b'"min_tokens":1', b'"tools":[]',
    b'"tools":[{"type":"function","function":{"name":"f"}}]', b'"stop":"x"',
    b'"stop":["a","b"]', b'"response_format":{"type":"json_object"}', b'"logprobs":true', b'"echo":true',
    b'"user":"' + CANARY + b'"',
    b'"' + CANARY + b'":1', b'"cache_salt":"s"', b'"session_id":"s"', b'"logit_bias":{"5":-1}',
    b'"x":12345678901234567890', b'"x":1e400',
    b'"x":"\\ud83d\\ude00"', b'"x":"\\ud800"', b'"x":{"kv_transfer_params":1}', b'"x":"kv_transfer_params"',
    b'"best_of":2', b'"suffix":"s"',
]  # fmt: skip
WORDS = [
    *_FIELD_WORDS, *[word + b"," for word in _FIELD_WORDS], *[b"," + word for word in _FIELD_WORDS],
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0065", b"\\u005f", b'\\"', b"\\\\", b"null", b"true",
    b"false", b"0", b"-1", b"1.5", b"1e5",
    b" ", b"\n", b"\t", b"\r\n", b"\0", b"\xff", b"\xc3\xa9", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"NaN", b"[[[[[[[[", b'{"a":' * 9,
    b'"kv_transfer_params":', b'"vllm_xargs":{', b'"stream_options":{', b'"model":', b"kv_transfer_params", CANARY,
]  # fmt: skip
PIECES = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\],:]|[^"{}\[\],:]+', re.DOTALL)
_SEED_FIELDS = (
    (b'"model":"tiny"', b'"messages":[{"role":"user","content":"hi"}]'),
    (b'"model":"default/tiny"', b'"messages":[{"role":"user","content":"hi"}]', b'"stream":true', b'"temperature":0'),
    (
        b'"model":"chat/tiny"',
        b'"prompt":"once"',
        b'"stream":true',
        b'"seed":1',
        b'"stream_options":{"include_usage":false}',
    ),
    (b'"kv_transfer_params":{"do_remote_prefill":true}', b'"model":"default/other"', b'"prompt":"x"'),
    (b'"model":"default/other"', b'"prompt":"x"', b'"vllm_xargs":{"kv_transfer_params":"x"}'),
    (b'"model":"default/tiny"', b'"input":["a","b"]'),
    (
        b'"model":"chat/tiny"',
        b'"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]',
        b'"n":1',
        b'"stream":true',
        b'"seed":3',
        b'"max_completion_tokens":30',
        b'"stream_options":{"x":1}',
        b'"ec\\u005ftransfer_params":{"a":[1,"]}"]}',
    ),
    (b' "model" : "default/tiny" ', b'\n"prompt" : [1 , 2]\t', b' "stream":true , "stream_options" : null '),
    (b'"model":"default/tiny"', b'"prompt":"x"', b'"query":"q"', b'"documents":["a"]', b'"text_1":"a"', b'"n":2'),
)
SEEDS = [b"{" + b",".join(fields) + b"}" for fields in _SEED_FIELDS]
_SPACES = (b"", b"", b"", b"", b"", b" ", b"\n", b" \t ")
_GOOD_WORDS = [word for word in _FIELD_WORDS if b"ud800" not in word]
_PROMPTS = (b'"messages":[{"role":"user","content":"hi"}]', b'"prompt":"x"', b'"input":"x"', b'"prompt":[5,6]')


def grow(draw: Callable[[], float]) -> bytes:
    """Returns an object with fields in any order and doubles, mostly with model and prompt."""
    return grow_from(_GOOD_WORDS, draw)


def grow_from(words: Sequence[bytes], draw: Callable[[], float]) -> bytes:
    """Returns such an object whose other fields are from `words`."""
    fields = [words[int(draw() * len(words))] for _ in range(int(draw() * 7))]
    fields.insert(int(draw() * (len(fields) + 1)), _GOOD_WORDS[int(draw() * 5)])
    for _ in range(1 + int(draw() * 2)):
        fields.insert(int(draw() * (len(fields) + 1)), _PROMPTS[int(draw() * draw() * len(_PROMPTS))])
    if draw() < 0.5:
        return b"{" + b",".join(fields) + b"}"
    space = _SPACES[int(draw() * 8)]
    spaced = [
        _SPACES[int(draw() * 8)] + field.replace(b'":', b'"' + space + b":" + space, 1) + space for field in fields
    ]
    return space + b"{" + b",".join(spaced) + b"}" + space


SPLICE = Target(
    "splice",
    "request bodies: parsing, hand-off fields cut out, fields spliced",
    check,
    SEEDS,
    WORDS,
    PIECES,
    0.21,
    grow,
)
