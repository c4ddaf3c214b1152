"""A chat parsed once gives the same values, prompt and refusals as one parsed twice."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.openai.body_parser import parse_body
from fairlead_gateway.openai.validation import decode_body

LIMITS = replace(Limits(), json_values=2_000, json_containers=2_000)
USER = b'{"role":"user","content":"hi"}'
MESSAGES = [
    b"[" + USER + b"]",
    b'[{"role":"system","content":"a]b}]"}, ' + USER + b"]",
    b'[{"role":"user","content":[{"type":"text","text":"hi"}]}]',
    b'[{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},'
    b'{"role":"tool","tool_call_id":"1","content":"\\"}]"}]',
    b'[{"role":"user","content":"\\u00e9 \\n \xc3\xa9"}]',
    b'[{"role":"user","content":"\xff"}]',
    b'[{"role":"user","content":"\\ud800"}]',
    b'[{"role":"user","content":5,"content":"x"}]',
    b'[{"role":"user","content":"x","strange":[[{"a":"b"}]]}]',
    b'[{"role":"user","content":"x","strange":' + b"[" * 200 + b"]" * 200 + b"}]",
    b'[{"role":5,"content":"x"}]',
    b'[{"content":"x"}]',
    b'[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]',
    b"[]",
    b"null",
    b'"[{"',
    b"[" + b",".join([USER] * 80) + b"]",
]
MEMBERS = [
    b'"model":"m"',
    b'"model":"n"',
    b'"model":5',
    b'"max_tokens":7',
    b'"max_tokens":0',
    b'"max_completion_tokens":9',
    b'"stream":true',
    b'"user":"messages"',
    b'"user":"a\\"b"',
    b'"user":"\\u0061"',
    b'"session_id":"s"',
    b'"cache_salt":"salt"',
    b'"priority":99999999999999999999',
    b'"n":500',
    b'"stop":["a"]',
    b'"tools":[{"type":"function","function":{"name":"f"}}]',
    b'"tools":[{"type":"function"}]',
    b'"response_format":{"type":"json_object"}',
    b'"kv_transfer_params":{}',
    b'"metadata":{"messages":[{"role":"user","content":"x"}]}',
    b'"metadata":' + b"[" * 200 + b"]" * 200,
    b'"\\u006dessages":[{"role":"user","content":"escaped"}]',
    b'"messages":[{"role":"user","content":"again"}]',
    b'"a\\"messages":[{"role":"user","content":"x"}]',
    b'"odd":tru',
]


def understood(body: bytes) -> tuple[object, ...]:
    """Returns the values of a body, or its refusal."""
    try:
        parsed = parse_body(ChatRequest, body, LIMITS)
    except BadRequest as error:
        return error.status, error.code, error.param, error.message
    fields = parsed.fields
    assert isinstance(fields, ChatRequest)
    text = body[parsed.messages_start - 1 : parsed.messages_end + 1] if parsed.messages_end else bytes(fields.messages)
    return (
        parsed.model_name,
        parsed.stream,
        parsed.max_tokens,
        parsed.session,
        parsed.has_cache_variants,
        sorted(parsed.members or {}),
        text,
    )


def parsed_twice(body: bytes) -> tuple[object, ...]:
    """The same, always by the long way."""
    try:
        request = decode_body(ChatRequest, body, LIMITS)
    except BadRequest as error:
        return error.status, error.code, error.param, error.message
    assert isinstance(request, ChatRequest)
    tools, shape = (bool(getattr(request, name)) for name in ("tools", "response_format"))
    unlisted = [] if request.is_listed else sorted(json.loads(body))
    most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    special = tools or shape or bool(request.cache_salt)
    session = request.session_id or request.user
    return request.model, bool(request.stream), most, session, special, unlisted, bytes(request.messages)


@given(
    members=st.lists(st.sampled_from(MEMBERS), max_size=4),
    model=st.booleans(),
    messages=st.sampled_from(MESSAGES),
    at=st.integers(0, 5),
    space=st.sampled_from([b"", b" ", b"\n  "]),
    end=st.sampled_from([b"}", b"} ", b"", b"}]", b"}x"]),
)
def test_what_is_parsed_once_is_what_is_parsed_twice(
    members: list[bytes], model: bool, messages: bytes, at: int, space: bytes, end: bytes
) -> None:
    fields = [*members, *([b'"model":"m"'] if model else [])]
    fields.insert(at, b'"messages":' + space + messages)
    body = b"{" + (b"," + space).join(fields) + end
    assert understood(body) == parsed_twice(body)


@pytest.mark.parametrize("messages", MESSAGES[:5])
def test_usual_chats_are_parsed_once(messages: bytes) -> None:
    for body in (b'{"model":"m","messages":%s}' % messages, b'{"messages": %s, "model": "m", "n": 2}' % messages):
        parsed = parse_body(ChatRequest, body, LIMITS)
        assert body[parsed.messages_start - 1 : parsed.messages_end + 1] == messages


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[%s],"messages":[%s]}' % (USER, USER),
        b'{"model":"m","messages":[%s],"\\u006dessages":[%s]}' % (USER, USER),
        b'{"model":"m","metadata":{"messages":[%s]},"messages":[%s]}' % (USER, USER),
        b'{"model":"m","messages":[{"role":"user","content":"x","strange":1}]}',
    ],
)
def test_others_are_parsed_twice(body: bytes) -> None:
    assert parse_body(ChatRequest, body, LIMITS).messages_end == 0


def test_shallow_limits_count_the_levels_of_messages_too() -> None:
    body = b'{"model":"m","messages":[%s]}' % b",".join([USER] * 3)
    with pytest.raises(BadRequest, match="nested deeper than 2 levels"):
        parse_body(ChatRequest, body, replace(LIMITS, json_depth=2))
