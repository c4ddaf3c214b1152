"""A fuzz target: the policy on body fields, compared with a second implementation.

The second implementation reads the body with the standard library's JSON parser. It says which
members an engine should get, or which field is refused. The description of a body by the checking
process must lead to the same result as the worker's own parse.
"""

import json
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any
from zlib import crc32

from fuzzing.splice_target import WORDS as BODY_WORDS
from fuzzing.splice_target import Member, Obj, grow_from, members
from fuzzing.target import Target, refused
from msgspec import Raw

from fairlead.fleet.model import Model, RequestPolicy, UnknownFields
from fairlead.limits import Limits
from fairlead_gateway.body_check.process import check_body
from fairlead_gateway.dialects.table import BODY_TYPES
from fairlead_gateway.errors import BadRequest, GatewayError
from fairlead_gateway.openai.body_parser import parse_body
from fairlead_gateway.openai.field_policy import (
    REFUSED_FIELDS,
    REMOVED_FIELDS,
    apply_field_policy,
    known_fields,
)

LIMITS = Limits()
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize")
_ALLOWED = tuple(REFUSED_FIELDS)
_ENGINES: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"vllm"}),
    frozenset({"sglang"}),
    frozenset({"vllm", "sglang"}),
)
_GATEWAY_FIELD = "session_id"
_INT64 = range(-(2**63), 2**63)


class PolicyRefusal(Exception):
    """Raised by the second implementation; the argument is the set of fields to choose from."""


def drawn_policy(number: int) -> RequestPolicy:
    """Returns the policy that a number stands for."""
    allowed = frozenset(name for bit, name in enumerate(_ALLOWED) if number >> 8 & 1 << bit)
    unknown = UnknownFields.REFUSE if number % 3 == 0 else UnknownFields.PASS
    return RequestPolicy(_ENGINES[number >> 4 & 3], unknown, allowed | ({"odd"} if number & 1 else set()))


def check(body: bytes) -> Hashable:
    """Checks that both implementations give the same members, or refuse the same field."""
    number = crc32(body)
    path, policy = _PATHS[number % len(_PATHS)], drawn_policy(number)
    kind = BODY_TYPES[path]
    try:
        parsed = parse_body(kind, body, LIMITS)
    except GatewayError as error:
        refused(error)
        return path, error.code
    listed = members(body)
    checked = check_body(kind.__name__, body, LIMITS)
    assert checked.problem is None, "the checking process refuses what the worker accepts"
    results = [
        applied(body, known, path, policy)
        for known in (parsed.members, {name: Raw(value) for name, value in checked.members.items()})
    ]
    try:
        meant = expected(listed, path, policy)
    except PolicyRefusal as refusal:
        (fields,) = refusal.args
        for result in results:
            assert isinstance(result, BadRequest), "a field that should be refused passes"
            assert result.param in fields, result.param
        return path, "refused", tuple(sorted(map(str, fields)))[:2]
    for result in results:
        assert isinstance(result, bytes), f"refused: {result}"
        after = members(result)
        assert [(name, value) for name, _, value in after] == [(name, value) for name, _, value in meant]
        for (_, text, _), (_, text_after, _) in zip(meant, after, strict=True):
            assert text in (None, text_after), "bytes that should stay have changed"
        if len(after) == len(listed) and all(text is not None for _, text, _ in meant):
            assert result == body, "nothing was to be changed"
    return path, len(listed) - len(meant), parsed.members is None, policy.unknown_fields, len(meant)


def applied(body: bytes, known: Mapping[str, Raw] | None, path: str, policy: RequestPolicy) -> bytes | BadRequest:
    """Returns the body for engines, or the error, which repeats the name of a field at most."""
    try:
        return apply_field_policy(body, known, path, Model("default", "tiny", requests=policy))
    except BadRequest as error:
        refusal = error
    if refusal.code == "field_not_allowed" and refusal.param is not None:
        assert all(map(is_shown, refusal.param.split(".")))
    else:
        refused(refusal)
    return refusal


def expected(fields: list[Member], path: str, policy: RequestPolicy) -> list[tuple[str, str | None, Any]]:
    """Returns the members that an engine should get; the text is None where it differs.

    Raises PolicyRefusal.
    """
    last = {name: value for name, _, value in fields}
    bad: set[str | None] = set()
    removed = set(REMOVED_FIELDS)
    for name in REFUSED_FIELDS:
        if name not in last:
            continue
        if last[name] is None:
            removed.add(name)
        elif name not in policy.allowed_fields or (name == "priority" and not is_int64(last[name])):
            bad.add(name)
    for name in last:
        is_object = name.endswith("_kwargs") or name in ("vllm_xargs", "custom_params")
        if is_object and name not in policy.allowed_fields:
            bad |= program_arguments(name, fields, policy)
    bad |= unchecked_ids({name: value_text(text) for name, text, _ in fields}, policy)
    if bad:
        raise PolicyRefusal(bad)
    if policy.unknown_fields is UnknownFields.REFUSE:
        unknown = unknown_names(last, path, policy, removed)
        if unknown:
            raise PolicyRefusal({name if is_shown(name) else None for name in unknown})
    meant: list[tuple[str, str | None, Any]] = []
    for name, text, value in fields:
        if name == "vllm_xargs" and isinstance(value, Obj):
            inner = Obj(pair for pair in value if pair[0] not in removed)
            meant.append((name, text if inner == value else None, inner))
        elif name not in removed:
            meant.append((name, text, value))
    return meant


def program_arguments(field: str, fields: list[Member], policy: RequestPolicy) -> set[str | None]:
    """Returns where an object of arguments holds more than plain values."""
    text = [value_text(text) for name, text, _ in fields if name == field][-1]
    value = json.loads(text)
    if value is None:
        return set()
    if not isinstance(value, dict) or len(text.encode()) > 4_096:
        return {field}
    names = {"chat_template", "tokenize", "truncation", "tools"} | (
        set(REFUSED_FIELDS) if field == "vllm_xargs" else set()
    )
    bad: set[str | None] = set()
    waiting: list[tuple[str, Any, int]] = [(field, value, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        if isinstance(value, list | dict) and depth == 4:
            bad.add(path)
        elif isinstance(value, list):
            waiting += [(path, item, depth + 1) for item in value]
        elif isinstance(value, dict):
            for name, item in value.items():
                inner = f"{path}.{name}" if is_shown(name) else path
                if name in names - policy.allowed_fields:
                    bad.add(inner)
                waiting.append((inner, item, depth + 1))
        elif isinstance(value, str) and len(value) > 256:
            bad.add(path)
    return bad


def value_text(member: str) -> str:
    """Returns the text of a member's value."""
    _, end = json.JSONDecoder().raw_decode(member)
    return member[end:].partition(":")[2].strip()


def unchecked_ids(texts: Mapping[str, str], policy: RequestPolicy) -> set[str | None]:
    """Returns the fields with token ids that an engine would use without a check."""
    bad: set[str | None] = set()
    stop, minimum = texts.get("stop_token_ids", "null"), texts.get("min_tokens", "null")
    if stop not in ("null", "[]") and minimum not in ("null", "0") and "stop_token_ids" not in policy.allowed_fields:
        bad.add("stop_token_ids")
    if "sglang" in policy.engines and "input_ids" not in policy.allowed_fields:
        for name in ("prompt", "input", "query", "items"):
            if re.fullmatch(r'\[[^"]*[^\[\]\s,"][^"]*', texts.get(name, "")):
                bad.add(name)
    return bad


def unknown_names(last: Mapping[str, Any], path: str, policy: RequestPolicy, removed: set[str]) -> list[str]:
    """Returns the fields that no engine of the model has."""
    tables = [known_fields(engine, path) for engine in policy.engines or ("",)]
    if any(table is None for table in tables):
        return []
    known = {_GATEWAY_FIELD}.union(*(table for table in tables if table is not None))
    return [name for name in last if name not in known | removed | policy.allowed_fields]


def is_shown(name: str) -> bool:
    """Returns whether an error may repeat the name of a field."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) is not None


def is_int64(value: Any) -> bool:
    """Returns whether an engine can take the value as a priority."""
    if not isinstance(value, tuple) or value[0] != "number":
        return False
    number = json.loads(value[1])
    return isinstance(number, int) and number in _INT64


_FIELD_WORDS = [
    *[f'"{name}":{value}'.encode() for name in REFUSED_FIELDS for value in ("null", "1", '"x"')],
    *[f'"{name}":1'.encode() for name in sorted(REMOVED_FIELDS)],
    b'"prior\\u0069ty":3', b'"prior\\u0069ty":null', b'"\\u0072id":1', b'"request\\u005fid":{"a":[1,"]"]}',
    b'"priority":9223372036854775808', b'"priority":-9223372036854775808', b'"priority":1.0', b'"priority":1e0',
    b'"priority":true', b'"odd":1', b'"odd one":1', b'"session_id":"s"', b'"bootstrap\\u005Froom":0',
    b'"stop_token_ids":[5]', b'"stop_token_ids":[]', b'"min_tokens":1', b'"min_tokens":0', b'"stop_token_ids":[5],"min_tokens":1',
    b'"prompt":[5]', b'"input":[[],[5]]', b'"query":["5"]', b'"items":[[]]',
    b'"vllm_xargs":{"rid":1,"a":1}', b'"vllm_xargs":{"priority":1}', b'"vllm_xargs":{"priority":null,"\\u0072id":[]}',
    b'"vllm_xargs":"rid"', b'"vllm_xargs":null', b'"vllm_xargs": { "request_id" : 1 } ', b'"x":{"rid":1}', b'"rid":null',
    b'"chat_template_kwargs":{"a":true}', b'"chat_template_kwargs":{"chat_template":"x"}', b'"chat_template_kwargs":[]',
    b'"odd_kwargs":{"a":[{"b c":[{"d":[1]}]}]}', b'"odd_kwargs":{"a":{"b c":{"t\\u006fols":1}}}', b'"custom_params":"x"',
    b'"chat_template_kwargs":null', b'"chat_template_kwargs":{"a":"' + b"x" * 257 + b'"}',
    b'"c\\u0068at_template_kwargs":{"tools":1}',
]  # fmt: skip
WORDS = [*BODY_WORDS, *_FIELD_WORDS, *[word + b"," for word in _FIELD_WORDS], *[b"," + word for word in _FIELD_WORDS]]
PIECES = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\],:]|[^"{}\[\],:]+', re.DOTALL)
_PROMPTS = (b'"messages":[{"role":"user","content":"hi"}]', b'"prompt":"x"', b'"input":"x"', b'"query":"q"')
SEEDS = [b'{"model":"tiny",' + prompt + b"," + word + b"}" for prompt in _PROMPTS for word in _FIELD_WORDS[::3]]


def grow(draw: Callable[[], float]) -> bytes:
    """Returns an object with model, prompt and fields of the policy, in any order."""
    return grow_from(_FIELD_WORDS, draw)


POLICY = Target("policy", "the policy on body fields", check, SEEDS, WORDS, PIECES, 0.06, grow)
