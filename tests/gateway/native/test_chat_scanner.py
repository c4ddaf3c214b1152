"""A chat that the scanner accepts is valid, with the values that the way in Python reads."""

import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.schemas import CommonFields
from fairlead_gateway.dialects.table import dialect_of
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.kv_index.messages import CHAT_SAMPLE, PromptSample
from fairlead_gateway.kv_index.prompt_samples import PromptSampleBuffer
from fairlead_gateway.openai.body_parser import ScanBounds, parse_body, parse_scanned
from fairlead_gateway.openai.request import bind_by_name, build_route_request, can_resume
from fairlead_gateway.openai.validation import decode_body
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts
from fairlead_testing.gateway.running_gateway import fleet_of

LIMITS = replace(Limits(), max_tokens=1_000)
TEXTS = [
    *(b'"hi"', b'""', b'"a\\nb"', b'"\\u00e9"', b'"\\ud83d\\ude00"', b'"\\ud83d"', b'"\\ude00\\ud83d"', b'"\\u12"'),
    *(
        b'"\xc3\xa9"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"a\tb"',
        b'"a\x00b"',
        b'"\x7f"',
        b'"\\x"',
        b'"unfinished',
        b"null",
    ),
    *(b'"' + b"word " * 9 + b'"', b'"' + b"w" * 15 + b'\xe2\x82\xac\\""', b'"' + b"w" * 31 + b'\n"', b"5", b"true"),
]
NUMBERS = [
    *(b"0", b"-0", b"1", b"7", b"-7", b"07", b"0.7", b"1.", b".5", b"1e3", b"1E400", b"-", b"1.5e-2", b"1000", b"1001"),
    *(b"999999999", b"9999999999", b"123456789012345678901", b"0.1234567890123456789", b"+1", b"NaN", b"1_0"),
]
LITERALS = [b"true", b"false", b"null", b"tru", b"True", b"nul", b"[]", b"{}"]
NAMES = [
    *("model", "user", "session_id", "stream", "max_tokens", "max_completion_tokens", "temperature", "top_p", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "top_k", "logprobs", "ignore_eos"),
    *("store", "parallel_tool_calls", "skip_special_tokens", "include_reasoning", "service_tier", "prompt_cache_key"),
    *("safety_identifier", "n", "stop", "tools", "mode\\u006c", "models", "cache_salt", "priority", "messages", ""),
]
MESSAGE_NAMES = [
    *("role", "content", "name", "tool_call_id", "tool_calls", "reasoning_content", "refusal", "function_call"),
    *("audio", "strange", "rol\\u0065"),
]
SPACES = st.sampled_from([b"", b"", b"", b" ", b"\n\t\r ", b"\x0b"])


def _values(fields: CommonFields) -> dict[str, object]:
    return {name: getattr(fields, name) for name in fields.__struct_fields__ if name != "messages"}


def check_equal(modules: dict[str, ModuleType], body: bytes) -> bool:
    """Compares both ways; returns whether the scanner accepts the body."""
    parsed = parse_scanned(modules["chat_scanner"].scan_chat, ChatRequest, body, ScanBounds(LIMITS))
    if parsed is None:
        return False
    fields = decode_body(ChatRequest, body, LIMITS)  # raises for a body that must be refused
    assert isinstance(fields, ChatRequest)
    limit = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    assert (parsed.model_name, parsed.session) == (fields.model, fields.session_id or fields.user)
    assert parsed.has_session_id is bool(fields.session_id)
    assert (parsed.stream, parsed.max_tokens, parsed.sequences) == (bool(fields.stream), limit, fields.n or 1)
    assert body[parsed.messages_start - 1 : parsed.messages_end + 1] == bytes(fields.messages)
    assert fields.is_listed
    assert parsed.members is None
    assert not parsed.has_cache_variants
    assert not (fields.cache_salt)
    assert not (fields.tools)
    assert not (fields.response_format)
    assert not (fields.prompt_logprobs)
    assert repr(_values(parsed.fields)) == repr(_values(fields))
    return True


@st.composite
def objects(draw: st.DrawFn, names: list[str], required: dict[str, bytes]) -> bytes:
    """An object with fields of these names and some values, valid or not."""
    members = {name: value for name, value in required.items() if draw(st.integers(0, 9))}
    pairs = [*members.items()]
    for name in draw(st.lists(st.sampled_from(names), max_size=4)):
        pairs.append((name, draw(st.sampled_from([*TEXTS, *NUMBERS, *LITERALS]))))
    space = draw(SPACES)
    joined = (b"," + space).join(b'"%s"%s:%s%s' % (name.encode(), space, space, value) for name, value in pairs)
    return b"{" + space + joined + space + b"}"


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A chat's body, valid or not."""
    part = objects(["type", "text", "url"], {"type": b'"text"'})
    parts = st.lists(part, max_size=2).map(lambda drawn: b"[" + b",".join(drawn) + b"]")
    content = draw(st.one_of(st.sampled_from(TEXTS), parts))
    message = objects(MESSAGE_NAMES, {"role": b'"user"', "content": content})
    messages = b"[" + draw(SPACES) + b" ,".join(draw(st.lists(message, min_size=1, max_size=3))) + b"]"
    body = draw(objects(NAMES, {"messages": messages, "model": b'"m"'}))
    return body + draw(st.sampled_from([b"", b"", b"", b" \n", b"x", b"}", b"\x00"]))


@given(body=bodies())
def test_accepted_chats_are_valid_and_equal(native_modules: dict[str, ModuleType], body: bytes) -> None:
    check_equal(native_modules, body)


USUAL = json.dumps(
    {
        "model": "m",
        "messages": [
            {"role": "system", "content": 'a "word"\n' * 9},
            {"role": "user", "content": [{"type": "text", "text": "é😀"}], "name": None},
        ],
        "max_tokens": 128,
        "temperature": 0.7,
        "stream": True,
        "user": "somebody",
        "seed": -7,
    }
).encode()


@given(data=st.data())
def test_changed_bytes_are_judged_alike(native_modules: dict[str, ModuleType], data: st.DataObject) -> None:
    body = bytearray(USUAL)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        removed = data.draw(st.integers(0, 3))
        body[start : start + removed] = data.draw(
            st.one_of(st.binary(max_size=3), st.text('"\\{}[]:, 0eE-+.ntu', max_size=3).map(str.encode))
        )
    check_equal(native_modules, bytes(body))


@pytest.mark.parametrize(
    "body",
    [
        USUAL,
        json.dumps(json.loads(USUAL), indent=1).encode(),
        json.dumps(json.loads(USUAL), ensure_ascii=False).encode(),
        b'{"messages":[{"role":"user","content":null,"tool_calls":null}],"model":"m","max_completion_tokens":9}',
    ],
)
def test_usual_chats_are_accepted(native_modules: dict[str, ModuleType], body: bytes) -> None:
    assert check_equal(native_modules, body)


def test_every_cut_of_a_chat_is_refused(native_modules: dict[str, ModuleType]) -> None:
    assert not any(check_equal(native_modules, USUAL[:size]) for size in range(len(USUAL)))


def test_small_limits_are_kept(native_modules: dict[str, ModuleType]) -> None:
    scan = native_modules["chat_scanner"].scan_chat
    for limits in (replace(LIMITS, json_depth=5), replace(LIMITS, json_values=9), replace(LIMITS, json_containers=9)):
        assert parse_scanned(scan, ChatRequest, USUAL, ScanBounds(limits)) is None
    assert parse_scanned(scan, ChatRequest, USUAL, ScanBounds(replace(LIMITS, max_tokens=127))) is None


@pytest.mark.parametrize("stream", [b"true", b"false", b"null"])
def test_no_field_of_a_scanned_chat_is_decoded_on_its_way(native_modules: dict[str, ModuleType], stream: bytes) -> None:
    body = b'{"messages":[{"role":"user","content":"%s"}],"model":"tiny","user":"u","stream":' % (b"hi" * 4_000)
    body += stream + b"}"
    scanned = parse_scanned(native_modules["chat_scanner"].scan_chat, ChatRequest, body, ScanBounds(LIMITS))
    assert scanned is not None
    bound, expected = (
        bind_by_name("/v1/chat/completions", parsed, fleet_of([]), LIMITS)
        for parsed in (scanned, parse_body(ChatRequest, body, LIMITS))
    )
    assert (bound.body, bound.strip_usage) == (expected.body, expected.strip_usage)
    head = RequestHead("POST", "/v1/chat/completions", [], 11, len(body), keep_alive=True, expects_continue=False)
    starts = ChainStarts(b"secret")
    routes = [build_route_request(request, head, "r", starts) for request in (bound, expected)]
    assert routes[0].chain == routes[1].chain
    assert [route.session_hash for route in routes] == [None, None]
    for request in (bound, expected):
        samples = PromptSampleBuffer()
        samples.offer(request, routes[0])
        tail = routes[0].chain.tail
        assert samples.take(request.model_key, (tail,)) == [PromptSample(tail, CHAT_SAMPLE, request.body)]
        assert not can_resume(request)
    assert bound.decoded_fields is None
    bound.release_body()
    assert (bound.body, bound.decoded_fields) == (b"", None)


@pytest.mark.parametrize(
    ("more", "is_decoded"),
    [
        (b"", False),
        *[(b'"temperature":%s,' % value, False) for value in (b"0.7", b"1", b"12.5", b"0.001")],
        *[(b'"temperature": %s ,' % value, True) for value in (b"0", b"0.0", b"-0", b"null")],
        (b'"seed":3,', True),
        (b'"temperature":1,"seed":0,', True),
        (b'"user":"seed",', True),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_scanned_stream_is_resumable_where_its_decoded_fields_say_so(
    native_modules: dict[str, ModuleType], more: bytes, is_decoded: bool, is_first: bool
) -> None:
    messages = b'"messages":[{"role":"user","content":"\\"seed\\": \\"temperature\\":0"}],'
    body = b"{" + (more + messages if is_first else messages + more) + b'"model":"tiny","stream":true}'
    scanned = parse_scanned(native_modules["chat_scanner"].scan_chat, ChatRequest, body, ScanBounds(LIMITS))
    assert scanned is not None
    bound, expected = (
        bind_by_name("/v1/chat/completions", parsed, fleet_of([]), LIMITS)
        for parsed in (scanned, parse_body(ChatRequest, body, LIMITS))
    )
    assert can_resume(bound) is can_resume(expected)
    assert (bound.decoded_fields is not None) is is_decoded


_TURNS = [{"role": "user", "content": "long " * 200}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
NAMED: dict[str, list[tuple[dict[str, Any], bool]]] = {
    "/v1/messages": [
        ({"messages": _TURNS, "max_tokens": 9}, True),
        ({"system": 'Say "hi".\n', "messages": _TURNS, "max_tokens": 9, "stream": True, "top_k": 5}, True),
        ({"messages": _TURNS, "system": [{"type": "text", "text": "a"}, {"type": "text", "text": "é"}]}, True),
        ({"messages": _TURNS, "system": None, "session_id": "s", "temperature": 0.5}, True),
        ({"messages": _TURNS, "max_tokens": 0}, False),
        ({"messages": _TURNS, "tools": []}, False),
        ({"messages": _TURNS, "cache_salt": "s"}, False),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, False),
    ],
    "/v1/responses": [
        ({"input": "long \u2028 " * 200, "max_output_tokens": 9}, True),
        ({"input": _TURNS, "instructions": "Be brief.", "stream": True, "store": True}, True),
        ({"input": [{"type": "message", **_TURNS[0]}], "prompt_cache_key": "k", "user": "u"}, True),
        ({"input": _TURNS, "safety_identifier": "u", "instructions": None}, True),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, False),
        ({"input": _TURNS, "previous_response_id": "resp_1"}, False),
        ({"input": _TURNS, "background": True}, False),
        ({"input": _TURNS, "reasoning": {"effort": "low"}}, False),
        ({"input": []}, False),
    ],
}


@pytest.mark.parametrize(
    ("path", "fields", "is_scanned"), [(path, *case) for path, cases in NAMED.items() for case in cases]
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_messages_and_responses_are_scanned_as_they_are_parsed(
    native_modules: dict[str, Any], path: str, fields: dict[str, Any], is_scanned: bool, separators: tuple[str, str]
) -> None:
    kind = dialect_of(path).body_type
    body = json.dumps({"model": "tiny", **fields}, separators=separators, ensure_ascii=False).encode()
    scan = getattr(native_modules["chat_scanner"], f"scan_{path.rpartition('/')[2]}")
    scanned = parse_scanned(scan, kind, body, ScanBounds(LIMITS))
    assert (scanned is not None) is is_scanned
    if scanned is None:
        return
    parsed = parse_body(kind, body, LIMITS)
    seen = []
    for request in (scanned, parsed):
        bind_by_name(path, request, fleet_of([]), LIMITS)
        head = RequestHead("POST", path, [], 11, len(body), keep_alive=True, expects_continue=False)
        route = build_route_request(request, head, "r", ChainStarts(b"secret"))
        copied = (request.model_name, request.session, request.has_session_id, request.max_tokens, request.stream)
        own = [(name, getattr(request.fields, name)) for name in ("stream", "temperature", "top_p", "top_k")]
        seen.append((copied, own, route.chain, route.prompt_tokens, request.body, request.dialect.name))
    assert seen[0] == seen[1]
