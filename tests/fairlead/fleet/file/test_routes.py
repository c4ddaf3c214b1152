"""Routes of a fleet file: targets, fallbacks and shadows, and messages about mistakes in them."""

import pytest

from fairlead.errors import ManifestError
from fairlead.fleet.file.format import format_fleet_file, parse_fleet_file
from fairlead.fleet.model import next_fleet
from fairlead.routes.model import FailureKind, Fallback, RequestRewrite, Route, RouteRule, RouteTarget, Shadow

TEXT = """\
models:
  - {name: tiny, servedNames: [org/tiny], instances: [{url: "http://127.0.0.1:9001"}]}
  - {name: big, namespace: chat, allowedRoutes: [default], instances: []}
routes:
  - name: assistant
    servedNames: [acme/assistant]
    targets: [{model: tiny, weight: 9}, {model: chat/big}]
    overrides:
      - {headers: {X-Canary: "yes"}, tenants: [acme], targets: [{model: chat/big, weight: 0}]}
      - {tenants: [beta], targets: [{model: tiny}], rewrite: {caps: {n: 1}}}
    rewrite: {defaults: {temperature: 0.2, top_k: 20}, caps: {max_tokens: 1024}}
"""
FALLBACKS = """\
models:
  - {name: big, instances: []}
  - {name: middle, instances: []}
  - {name: small, namespace: chat, allowedRoutes: ['*'], instances: []}
routes:
  - name: assistant
    targets: [{model: big}]
    onFailure:
      - {when: [Unavailable, NoCapacity], to: middle}
      - {when: [ContextTooLong], after: middle, to: chat/small}
"""
SHADOW = """\
models:
  - {name: big, instances: []}
  - {name: next, namespace: chat, allowedRoutes: [default], instances: []}
routes:
  - name: assistant
    targets: [{model: big}]
    shadow: {model: chat/next, percent: 20}
"""
REWRITE = RequestRewrite((("temperature", 0.2), ("top_k", 20)), (("max_tokens", 1024),))


def test_a_route_is_read_and_written() -> None:
    fleet = parse_fleet_file(TEXT, file="f")
    override = RouteRule((RouteTarget("chat/big", 0),), (("x-canary", "yes"),), frozenset({"acme"}), REWRITE)
    other = RouteRule((RouteTarget("default/tiny"),), (), frozenset({"beta"}), RequestRewrite((), (("n", 1),)))
    targets = (RouteTarget("default/tiny", 9), RouteTarget("chat/big", 1))
    route = Route("default", "assistant", targets, (override, other), ("assistant", "acme/assistant"), REWRITE)
    assert fleet.routes == {"default/assistant": route}
    assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet


def test_headers_that_yaml_takes_for_other_values_are_written_as_text() -> None:
    fleet = parse_fleet_file(TEXT.replace("X-Canary", '"on"'), file="f")
    assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet


def test_a_changed_route_is_a_new_fleet_with_the_same_members() -> None:
    fleet = parse_fleet_file(TEXT, file="f")
    edited = parse_fleet_file(TEXT.replace("weight: 9", "weight: 8"), file="f")
    updated = next_fleet(fleet, edited.models, edited.instances, routes=edited.routes)
    assert (updated.version, updated.membership_epoch, updated.routes) == (2, 1, edited.routes)
    assert next_fleet(fleet, fleet.models, fleet.instances, routes=fleet.routes) is fleet


def test_fallbacks_are_read_and_written() -> None:
    fleet = parse_fleet_file(FALLBACKS, file="f")
    unavailable = frozenset({FailureKind.UNAVAILABLE, FailureKind.NO_CAPACITY})
    assert fleet.routes["default/assistant"].fallbacks == (
        Fallback("default/middle", unavailable),
        Fallback("chat/small", frozenset({FailureKind.CONTEXT_TOO_LONG}), "default/middle"),
    )
    assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet


def test_shadow_is_read_and_written() -> None:
    fleet = parse_fleet_file(SHADOW, file="f")
    assert fleet.routes["default/assistant"].shadow == Shadow("chat/next", 20)
    assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet


def test_all_conversations_are_copied_by_default() -> None:
    fleet = parse_fleet_file(SHADOW.replace(", percent: 20", ""), file="f")
    assert fleet.routes["default/assistant"].shadow == Shadow("chat/next", 100)


MISTAKES: dict[str, list[tuple[str, str, int, str, str, str]]] = {
    TEXT: [
        ("acme/assistant", "tiny", 6, "routes[0].servedNames",
         'clients cannot reach the route by "tiny": default/tiny has it', "use another name"),
        ("acme/assistant", "org/tiny", 6, "routes[0].servedNames",
         'clients cannot reach the route by "org/tiny": default/tiny has it', "use another name"),
        ("name: assistant", "name: big", 5, "routes[0].name",
         'clients cannot reach the route by "big": chat/big has it', "use another name"),
        ("acme/assistant", "chat/assistant", 6, "routes[0].servedNames",
         'clients cannot reach the route by "chat/assistant": it begins with a namespace that holds models',
         "use another name"),
        ("chat/big}]\n", "chat/bigg}]\n", 7, "routes[0].targets[1].model",
         'no model of this file is "chat/bigg"', "did you mean chat/big?"),
        ("[{model: tiny, weight: 9}, {model: chat/big}]", "[]", 7, "routes[0].targets", "must not be empty", "fill it"),
        ("{model: chat/big}]", "{model: tiny}]", 7, "routes[0].targets[1].model",
         "the model is already a target here", "give it once, with one weight"),
        ("weight: 9", "weight: -1", 7, "routes[0].targets[0].weight", "", ""),
        ("weight: 9", "wieght: 9", 7, "routes[0].targets[0].wieght", "unknown field", "did you mean weight?"),
        ('headers: {X-Canary: "yes"}, tenants: [acme], ', "", 9, "routes[0].overrides[0]",
         "an override without conditions takes every request", "add `headers`, `tenants` or `minContextTokens`"),
        ("X-Canary", "Authorization", 9, "routes[0].overrides[0].headers.Authorization",
         "this header holds a key", "match `tenants` instead"),
        ("X-Canary", "X Canary", 9, "routes[0].overrides[0].headers.X Canary",
         '"X Canary" is not the name of a header', "write it like x-canary"),
    ],
    FALLBACKS: [
        ("to: chat/small", "to: chat/smal", 10, "routes[0].onFailure[1].to",
         'no model of this file is "chat/smal"', "did you mean chat/small?"),
        ("to: chat/small", "to: middle", 10, "routes[0].onFailure[1].to",
         "the fallbacks form a loop: default/middle → default/middle", "remove this entry"),
        ("to: chat/small", "to: big", 10, "routes[0].onFailure[1].to",
         "the fallbacks form a loop: default/big → default/middle → default/big", "or name with `after`"),
        ("to: chat/small", "to: default/big", 10, "routes[0].onFailure[1].to",
         "the fallbacks form a loop: default/big → default/middle → default/big", "or name with `after`"),
        ("after: middle, to: chat/small", "to: big", 10, "routes[0].onFailure[1].to",
         "the model is the only target of the route", "name another model"),
        ("after: middle", "after: chat/small", 10, "routes[0].onFailure[1].to",
         "the fallbacks form a loop: chat/small → chat/small", "remove this entry"),
        ("after: middle", "after: chat/tiny", 10, "routes[0].onFailure[1].after",
         "no request of the route goes to chat/tiny", "name a target"),
        ("ContextTooLong", "TooLong", 10, "routes[0].onFailure[1].when[0]", "TooLong", "ContextTooLong"),
        ("[ContextTooLong]", "[]", 10, "routes[0].onFailure[1].when", "must not be empty", "fill it"),
        ("[Unavailable, NoCapacity]", "[Unavailable, Unavailable]", 9, "routes[0].onFailure[0].when[1]",
         "is already given", ""),
    ],
    SHADOW: [
        ("chat/next, p", "chat/nxt, p", 7, "routes[0].shadow.model", 'no model of this file is "chat/nxt"',
         "did you mean chat/next?"),
        ("chat/next, p", "big, p", 7, "routes[0].shadow.model", "the model is the only target of the route",
         "name another model"),
        ("percent: 20", "percent: 101", 7, "routes[0].shadow.percent", "101", "100"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "old", "new", "line", "field", "message", "fix"),
    [(text, *row) for text, rows in MISTAKES.items() for row in rows],
)
def test_a_mistake_names_line_field_and_fix(
    text: str, old: str, new: str, line: int, field: str, message: str, fix: str
) -> None:
    assert old in text
    with pytest.raises(ManifestError) as refused:
        parse_fleet_file(text.replace(old, new), file="f")
    problem = refused.value.problems[0]
    assert (problem.line, problem.field) == (line, field)
    assert message in problem.message
    assert fix in problem.fix


def test_a_route_given_twice_is_refused() -> None:
    second = "  - {name: assistant, targets: [{model: tiny}]}\n"
    with pytest.raises(ManifestError) as refused:
        parse_fleet_file(TEXT + second, file="f")
    assert [problem.message for problem in refused.value.problems] == ["the route default/assistant is already given"]


def test_two_routes_do_not_share_a_name() -> None:
    second = "  - {name: other, servedNames: [acme/assistant], targets: [{model: tiny}]}\n"
    with pytest.raises(ManifestError) as refused:
        parse_fleet_file(TEXT + second, file="f")
    (problem,) = refused.value.problems
    assert "the route default/assistant has it" in problem.message


@pytest.mark.parametrize(
    ("route", "field"),
    [
        ("targets: [{model: b/x}]", "targets[0].model"),
        ("targets: [{model: own}], shadow: {model: b/x, percent: 100}", "shadow.model"),
        ("targets: [{model: own}], onFailure: [{when: [Unavailable], to: b/x}]", "onFailure[0].to"),
        (
            "targets: [{model: own}], overrides: [{tenants: [t], targets: [{model: b/x}]}]",
            "overrides[0].targets[0].model",
        ),
    ],
)
def test_a_model_of_another_namespace_must_allow_the_route(route: str, field: str) -> None:
    text = (
        "models:\n  - {name: own, namespace: a, instances: []}\n  - {name: x, namespace: b, instances: []}\n"
        f"routes:\n  - {{name: r, namespace: a, {route}}}\n"
    )
    with pytest.raises(ManifestError) as caught:
        parse_fleet_file(text, file="f")
    (problem,) = caught.value.problems
    assert (problem.field, problem.fix) == (f"routes[0].{field}", "add `allowedRoutes: [a]` to the model")
    for allowed, is_right in (("[a]", True), ('["*"]', True), ("[c]", False)):
        changed = text.replace("namespace: b,", f"namespace: b, allowedRoutes: {allowed},")
        if is_right:
            fleet = parse_fleet_file(changed, file="f")
            assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet
        else:
            with pytest.raises(ManifestError):
                parse_fleet_file(changed, file="f")
