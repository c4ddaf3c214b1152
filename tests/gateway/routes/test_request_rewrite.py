"""Parameters that routes set in bodies, against a reference that decodes and encodes JSON."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.fleet.model import Model
from fairlead.limits import Limits
from fairlead.routes.model import RequestRewrite, Route, RouteTarget
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.passed_on import GenericRequest
from fairlead_gateway.dialects.table import BODY_TYPES
from fairlead_gateway.openai.body_parser import ModelRequest, ScanBounds, parse_body, parse_scanned
from fairlead_gateway.openai.model_names import ModelEntry
from fairlead_gateway.openai.request import bind_to_entry
from fairlead_gateway.proxy.route_choice import apply_rewrite
from fairlead_gateway.routes.rewriting import RewritePlan
from fairlead_gateway.routes.target_choice import RouteDecision

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    *("/v1/chat/completions", "/v1/completions"),
    *("/v1/responses", "/v1/messages"),
)
LIMITS = Limits()
LIMIT_NAMES = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    COMPLETIONS: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
}
DEFAULTED = {
    CHAT: {"temperature", "top_p", "top_k", "min_p", "presence_penalty"},
    COMPLETIONS: {"temperature", "top_p", "top_k", "min_p", "presence_penalty"},
    RESPONSES: {"temperature", "top_p"},
    MESSAGES: {"temperature", "top_p", "top_k"},
}


def expected(body: dict[str, Any], rewrite: RequestRewrite, path: str) -> dict[str, Any]:
    """Returns the body as the engine must get it, computed on the decoded object."""
    defaults, caps = dict(rewrite.defaults), dict(rewrite.caps)
    edited = {**body, "model": "tiny"}
    cap, names = caps.get("max_tokens"), LIMIT_NAMES[path]
    minimum = edited.get("min_tokens") if path in (CHAT, COMPLETIONS) else None
    if all(edited.get(name) is None for name in names):
        limit = defaults.get("max_tokens")
        if limit is None and cap is not None:
            limit = min(cap, 16) if path == COMPLETIONS else cap
        if limit is not None:
            limit = max(limit, minimum or 0)
            edited[names[-1]] = limit if cap is None else min(limit, cap)
    elif cap is not None:
        edited |= {name: min(edited[name], cap) for name in names if edited.get(name) is not None}
    if minimum is not None and cap is not None:
        edited["min_tokens"] = min(minimum, cap)
    for name, value in defaults.items():
        if name in DEFAULTED[path] and edited.get(name) is None:
            edited[name] = value
    for name in {CHAT: ("n",), COMPLETIONS: ("n", "best_of")}.get(path, ()):
        if "n" in caps and edited.get(name) is not None:
            edited[name] = min(edited[name], caps["n"])
    return edited


def scan(body: bytes, max_tokens: int) -> Any:
    """Stands in for the compiled scanner, on chats of this module."""
    fields = json.loads(body)
    if {"n", "min_tokens", "tools"} & fields.keys() or b"\\u" in body:
        return None
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
    start = body.index(b'"messages"')
    start = body.index(b"[", start) + 1
    end = start + len(body[start:].split(b'"}]')[0]) + 2
    return fields["model"], None, None, limit, bool(fields.get("stream")), start, end, 0, 0


def rewritten(body: bytes, rewrite: RequestRewrite, path: str, *, is_scanned: bool = False) -> ModelRequest:
    request: ModelRequest | None = None
    if is_scanned and path == CHAT:
        request = parse_scanned(scan, ChatRequest, body, ScanBounds(LIMITS))
    if request is None:
        request = parse_body(BODY_TYPES.get(path, GenericRequest), body, LIMITS)
    bind_to_entry(path, request, ModelEntry("chat/tiny", Model("chat", "tiny")), LIMITS)
    decision = RouteDecision("a", "chat/a", "chat/tiny", "session", None, (1, 1))
    decision.rewrite = RewritePlan(rewrite)
    apply_rewrite(request, decision)
    request.route = decision
    return request


PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.none() | st.integers(1, 5_000),
    "max_completion_tokens": st.none() | st.integers(1, 5_000),
    "max_output_tokens": st.none() | st.integers(1, 5_000),
    "min_tokens": st.none() | st.integers(0, 3_000),
    "n": st.none() | st.integers(1, 9),
    "best_of": st.none() | st.integers(1, 9),
    "temperature": st.none() | st.sampled_from([0, 0.5, 1.25]),
    "top_p": st.none() | st.sampled_from([0.5, 1]),
    "top_k": st.none() | st.integers(-1, 50),
    "user": st.sampled_from(["temperature", 'a "max_tokens": 9', "\\", "é", "\u2028"]),
    "extra": st.recursive(st.sampled_from(["max_tokens", "n", 1]), lambda inner: st.dictionaries(st.just("n"), inner)),
}
BODIES = st.fixed_dictionaries({}, optional=PARAMETERS)
REWRITES = st.builds(
    lambda defaults, caps: RequestRewrite(tuple(defaults.items()), tuple(caps.items())),
    st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": st.integers(1, 500),
            "temperature": st.sampled_from([0.0, 0.2]),
            "top_p": st.just(0.9),
            "top_k": st.integers(1, 40),
            "min_p": st.just(0.05),
            "presence_penalty": st.just(-0.5),
        },
    ),
    st.fixed_dictionaries({}, optional={"max_tokens": st.integers(500, 2_000), "n": st.integers(1, 4)}),
)
PROMPTS = {
    CHAT: {"messages": [{"role": "user", "content": 'say "temperature": 3 and max_tokens'}]},
    COMPLETIONS: {"prompt": '"max_tokens"'},
    RESPONSES: {"input": "top_p"},
    MESSAGES: {"messages": [{"role": "user", "content": "a"}]},
}


@settings(max_examples=300)
@given(
    path=st.sampled_from([CHAT, COMPLETIONS, RESPONSES, MESSAGES]),
    parameters=BODIES,
    rewrite=REWRITES,
    order=st.randoms(use_true_random=False),
    form=st.sampled_from(["compact", "spaced", "escaped"]),
    is_scanned=st.booleans(),
)
def test_body_is_that_of_the_reference(
    path: str, parameters: dict[str, Any], rewrite: RequestRewrite, order: Any, form: str, is_scanned: bool
) -> None:
    if path != COMPLETIONS:
        parameters.pop("best_of", None)
    if path == CHAT:
        parameters.pop("max_output_tokens", None)
    if is_scanned:
        parameters.pop("extra", None)
    pairs = list({"model": "a", **PROMPTS[path], **parameters}.items())
    order.shuffle(pairs)
    separators = (",", ":") if form == "compact" else (", ", ": ")
    body = json.dumps(dict(pairs), separators=separators, ensure_ascii=form == "escaped").encode()
    if form == "escaped":
        body = body.replace(b'"max_tokens": ', b'"m\\u0061x_tokens": ').replace(b'"top_p": ', b'"top\\u005fp": ')
    request = rewritten(body, rewrite, path, is_scanned=is_scanned)
    result = json.loads(request.body)
    wanted = expected(dict(pairs), rewrite, path)
    assert result == wanted
    assert {type(result[name]) for name in wanted} == {type(value) for value in wanted.values()}
    assert request.client_body in (body, b"")
    prompt = json.dumps(next(iter(PROMPTS[path].values())), separators=separators, ensure_ascii=form == "escaped")
    assert prompt.encode() in request.body
    if path in (CHAT, COMPLETIONS):
        limits = [wanted[name] for name in LIMIT_NAMES[path] if wanted.get(name) is not None]
        assert request.max_tokens == (limits[0] if limits else None)
        assert request.sequences == max(1, wanted.get("n") or 1, wanted.get("best_of") or 1)
        for name in ("temperature", "n", "min_tokens", "max_tokens"):
            assert getattr(request.fields, name) == wanted.get(name)


def test_a_repeated_or_escaped_parameter_does_not_evade_a_cap() -> None:
    rewrite = RequestRewrite((), (("max_tokens", 10),))
    for text in (
        b'{"model":"a","max_tokens":5,"messages":[{"role":"user","content":"b"}],"max_tokens":9000}',
        b'{"model":"a","messages":[{"role":"user","content":"b"}],"m\\u0061x_tokens":null}',
        b'{"model":"a","max_completion_tokens":null,"messages":[{"role":"user","content":"b"}],"max_tokens":9000}',
    ):
        body = rewritten(text, rewrite, CHAT).body
        assert json.loads(body)["max_tokens"] == 10
        assert b"9000" not in body


@pytest.mark.parametrize("text", ['"90"', "[]", "1e400"])
def test_a_number_of_another_kind_on_a_passed_path_stays_the_engines(text: str) -> None:
    rewrite = RequestRewrite((("temperature", 0.2),), ())
    body = b'{"model":"a","messages":[[]],"temperature":%b}' % text.encode()
    assert b'"temperature":%b' % text.encode() in rewritten(body, rewrite, "/v1/chat/completions/batch").body


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize"])
def test_other_paths_are_not_rewritten(path: str) -> None:
    rewrite = RequestRewrite((("temperature", 0.2),), (("max_tokens", 10),))
    body = b'{"model":"tiny","input":"b"}'
    assert rewritten(body, rewrite, path).body == body


def test_decision_says_what_was_set() -> None:
    rewrite = RequestRewrite((("temperature", 0.2),), (("max_tokens", 10),))
    route = rewritten(b'{"model":"a","messages":[{"role":"user","content":"b"}]}', rewrite, CHAT).route
    assert route.describe().endswith("; sets max_tokens=10, temperature=0.2")


def test_rule_without_a_rewrite_has_no_plan() -> None:
    from fairlead_gateway.routes.target_choice import RouteTable

    facts = SimpleNamespace(header=lambda name: None, tenant=lambda: None, conversation=lambda: (b"a", "session"))
    for rewrite in (None, RequestRewrite()):
        route = Route("chat", "a", (RouteTarget("chat/tiny"),), names=("a",), rewrite=rewrite)
        assert RouteTable([route]).resolve("a", facts).rewrite is None
