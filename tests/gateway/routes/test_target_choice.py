"""The target of a request: Gateway API's weights, stickiness, and the conditions of overrides."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.routes.model import RequestRewrite, Route, RouteRule, RouteTarget, Shadow, visible_route
from fairlead_gateway.routes.target_choice import NO_TARGET, ONLY_TARGET, RouteDecision, RouteTable
from fairlead_testing.pytest_hooks.nightly import shortened

WEIGHTS = st.lists(st.integers(0, 1_000_000), min_size=1, max_size=8)


@dataclass
class Facts:
    """A request for a test. Its conversation counts how often it was asked for."""

    session: str = "s"
    headers: Mapping[str, str] = field(default_factory=dict)
    caller: str | None = None
    asked: int = 0
    prompt: int = 0
    limit: int | None = None

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def tenant(self) -> str | None:
        return self.caller

    def conversation(self) -> tuple[bytes, str]:
        self.asked += 1
        return hashlib.blake2b(self.session.encode(), digest_size=8).digest(), "session"

    def prompt_tokens(self) -> int:
        return self.prompt

    def answer_limit(self) -> int | None:
        return self.limit


def targets(weights: Sequence[int]) -> tuple[RouteTarget, ...]:
    return tuple(RouteTarget(f"chat/m{number}", weight) for number, weight in enumerate(weights))


def table(weights: Sequence[int], *overrides: RouteRule, names: tuple[str, ...] = ("a", "x/a")) -> RouteTable:
    return RouteTable([Route("chat", "a", targets(weights), overrides, names)])


def decide(routes: RouteTable, facts: Facts, name: str = "a") -> RouteDecision:
    decision = routes.resolve(name, facts)
    assert decision is not None
    return decision


def chosen(weights: Sequence[int], sessions: int) -> list[str | None]:
    routes = table(weights)
    return [decide(routes, Facts(f"session {number}")).target for number in range(sessions)]


@pytest.mark.parametrize("weights", [(90, 10), (1, 1), (1, 2, 3, 4), (999_999, 1)])
def test_split_of_many_sessions_is_within_one_percent(weights: tuple[int, ...]) -> None:
    sessions = shortened(100_000, 20_000)
    counts = Counter(chosen(weights, sessions))
    for number, weight in enumerate(weights):
        assert counts[f"chat/m{number}"] / sessions == pytest.approx(weight / sum(weights), abs=0.01)


def test_a_session_never_changes_its_target() -> None:
    assert chosen((3, 2, 1), 2_000) == chosen((3, 2, 1), 2_000)


@given(WEIGHTS, st.text(max_size=20))
def test_weight_zero_gets_nothing_and_sums_are_free(weights: list[int], session: str) -> None:
    decision = decide(table(weights), Facts(session))
    if not any(weights):
        assert (decision.target, decision.basis) == (None, NO_TARGET)
        return
    assert decision.target is not None
    assert decision.weight == weights[int(decision.target.removeprefix("chat/m"))] > 0
    assert decision.total_weight == sum(weights) or decision.basis == ONLY_TARGET


@given(WEIGHTS, st.integers(1, 50), st.text(max_size=20))
def test_only_proportions_of_weights_count(weights: list[int], factor: int, session: str) -> None:
    scaled = [weight * factor for weight in weights]
    assert decide(table(weights), Facts(session)).target == decide(table(scaled), Facts(session)).target


@given(WEIGHTS, st.data())
def test_a_change_of_one_weight_moves_sessions_to_or_from_it_only(weights: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(weights) - 1))
    changed = [*weights]
    changed[index] = data.draw(st.integers(0, 1_000_000))
    model = f"chat/m{index}"
    for before, after in zip(chosen(weights, 50), chosen(changed, 50), strict=True):
        if before != after:
            assert (after if changed[index] > weights[index] else before) in (model, None)


@given(st.permutations(range(5)))
def test_the_order_of_targets_does_not_count(order: list[int]) -> None:
    listed = targets((5, 4, 3, 2, 1))
    shuffled = RouteTable([Route("chat", "a", tuple(listed[index] for index in order), (), ("a",))])
    for number in range(50):
        facts = Facts(f"{number}")
        assert decide(shuffled, facts).target == decide(table((5, 4, 3, 2, 1)), facts).target


def test_routes_split_independently() -> None:
    first_table, two = (RouteTable([Route("chat", name, targets((1, 1)), (), (name,))]) for name in ("one", "two"))
    pairs = Counter(
        (decide(first_table, Facts(f"{number}"), "one").target, decide(two, Facts(f"{number}"), "two").target)
        for number in range(4_000)
    )
    assert all(count == pytest.approx(1_000, abs=150) for count in pairs.values())
    assert len(pairs) == 4


def test_one_target_needs_no_conversation() -> None:
    facts = Facts()
    decision = decide(table((7, 0)), facts)
    assert (decision.target, decision.basis, facts.asked) == ("chat/m0", ONLY_TARGET, 0)
    assert decision.describe() == "a is the route chat/a → chat/m0, its only target"


def test_first_override_whose_conditions_are_met_counts() -> None:
    canary = RouteRule((RouteTarget("chat/new"),), headers=(("x-canary", "yes"),))
    both = RouteRule((RouteTarget("chat/vip"),), headers=(("x-vip", "1"),), tenants=frozenset({"acme"}))
    acme = RouteRule((RouteTarget("chat/acme"),), tenants=frozenset({"acme", "beta"}))
    routes = table((1,), canary, both, acme)

    def target(caller: str | None = None, **headers: str) -> str | None:
        return decide(
            routes, Facts(headers={f"x-{key}": value for key, value in headers.items()}, caller=caller)
        ).target

    assert target() == "chat/m0"
    assert target(canary="no") == "chat/m0"
    assert target("acme", canary="yes", vip="1") == "chat/new"
    assert target("acme", vip="1") == "chat/vip"
    assert target("other", vip="1") == "chat/m0"
    assert target("beta", vip="1") == "chat/acme"
    assert decide(routes, Facts(caller="beta")).describe() == (
        "a is the route chat/a, overrides[2] → chat/acme, its only target"
    )


def test_route_has_its_names_and_its_key_but_no_name_of_a_model() -> None:
    routes = RouteTable([Route("chat", "a", targets((1,)), (), ("a", "x/a"))], {"x/a"})
    assert [routes.resolve(name, Facts()) is not None for name in ("a", "chat/a", "x/a", "b")] == [
        True,
        True,
        False,
        False,
    ]


def test_reason_names_weights_and_source() -> None:
    decision = decide(table((90, 10)), Facts("session 1"), "x/a")
    share = {"chat/m0": 90, "chat/m1": 10}[str(decision.target)]
    assert decision.describe() == (
        f"x/a is the route chat/a → {decision.target}, which gets {share} of 100, by session"
    )


def test_tenant_sees_a_route_whose_targets_it_may_all_use() -> None:
    canary = RouteRule((RouteTarget("chat/new"),), headers=(("x-canary", "yes"),))
    route = Route("chat", "a", targets((1, 1, 0)), (canary,), ("a",))
    usable = {"chat/m0", "chat/m1"}
    seen = visible_route(route, usable.__contains__)
    assert seen is not None
    assert (seen.targets, seen.overrides) == (route.targets, ())
    assert visible_route(route, {*usable, "chat/new"}.__contains__) is route
    assert visible_route(route, {"chat/m0", "chat/new"}.__contains__) is None


def shadowed(percent: int, weights: Sequence[int] = (1,), model: str = "chat/next") -> RouteTable:
    return RouteTable([Route("chat", "a", targets(weights), names=("a",), shadow=Shadow(model, percent))])


@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_share_of_copied_sessions_is_within_one_percent_and_grows_only(percent: int) -> None:
    def copied(share: int) -> set[int]:
        routes = shadowed(share, (3, 1))
        return {number for number in range(20_000) if decide(routes, Facts(f"session {number}")).shadow}

    sessions = copied(percent)
    assert abs(len(sessions) / 20_000 - percent / 100) < 0.01
    assert sessions <= copied(percent + 1)


def test_copies_are_independent_of_the_target() -> None:
    routes = shadowed(50, (1, 1))
    decisions = [decide(routes, Facts(f"session {number}")) for number in range(20_000)]
    counts = Counter((decision.target, decision.shadow) for decision in decisions)
    assert all(abs(count / 20_000 - 0.25) < 0.02 for count in counts.values())
    assert len(counts) == 4


@pytest.mark.parametrize(("percent", "expected"), [(0, None), (100, "chat/next")])
def test_none_or_all_are_copied_without_a_look_at_the_conversation(percent: int, expected: str | None) -> None:
    facts = Facts()
    decision = decide(shadowed(percent), facts)
    assert (decision.shadow, facts.asked) == (expected, 0)
    assert ("a copy is for chat/next" in decision.describe()) == bool(expected)


def test_request_for_the_shadow_itself_is_not_copied() -> None:
    assert decide(shadowed(100, model="chat/m0"), Facts()).shadow is None


def test_tenant_that_may_not_use_the_shadow_has_none() -> None:
    route = Route("chat", "a", targets((1,)), shadow=Shadow("chat/next"))
    visible = visible_route(route, lambda model: model == "chat/m0")
    assert visible is not None
    assert visible.shadow is None
    assert visible_route(route, lambda _: True) == route


def long_rule(tokens: int, model: str = "chat/long", **more: Any) -> RouteRule:
    return RouteRule((RouteTarget(model),), min_context_tokens=tokens, **more)


@pytest.mark.parametrize(
    ("prompt", "limit", "target"),
    [(99, None, "chat/m0"), (100, None, "chat/long"), (50, 49, "chat/m0"), (50, 50, "chat/long"), (5_000, None, "chat/longest")],
)  # fmt: skip
def test_request_goes_to_the_first_override_whose_context_it_needs(prompt: int, limit: int | None, target: str) -> None:
    routes = table((1,), long_rule(1_000, "chat/longest"), long_rule(100))
    decision = decide(routes, Facts(prompt=prompt, limit=limit))
    needed = prompt + (limit or 0)
    assert (decision.target, decision.context_tokens) == (target, 0 if target == "chat/m0" else needed)
    assert (f"by about {needed:,} tokens of context" in decision.describe()) == (target != "chat/m0")


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 2_000))
def test_conversation_that_grows_moves_once_at_most(turns: list[int], threshold: int) -> None:
    routes, prompt, models = table((1, 1), long_rule(threshold)), 0, []
    for more in turns:
        prompt += more
        models.append(decide(routes, Facts(prompt=prompt, limit=20)).target)
    assert sum(first != second for first, second in pairwise(models)) <= 1


def test_limit_counts_as_the_route_would_set_it() -> None:
    def target(rewrite: RequestRewrite | None, limit: int | None) -> str | None:
        route = Route("chat", "a", targets((1,)), (long_rule(100),), ("a",), rewrite)
        return decide(RouteTable([route]), Facts(prompt=50, limit=limit)).target

    capped, given_ = RequestRewrite(caps=(("max_tokens", 40),)), RequestRewrite(defaults=(("max_tokens", 60),))
    assert target(capped, 9_000) == target(capped, None) == "chat/m0"
    assert target(None, None) == target(given_, 10) == "chat/m0"
    assert target(None, 9_000) == target(given_, None) == "chat/long"


def test_length_counts_beside_other_conditions() -> None:
    routes = table((1,), long_rule(100, headers=(("x-team", "a"),)))
    assert decide(routes, Facts(prompt=500)).target == "chat/m0"
    assert decide(routes, Facts(prompt=500, headers={"x-team": "a"})).target == "chat/long"
