"""The router as callers see it: affinity, spill, spread, presets, and a reason for everything."""

from collections import Counter
from dataclasses import replace
from random import Random
from unittest.mock import Mock

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, InstanceState, Model, ModelRouting, SloTargets
from fairlead_gateway.routing import ModelRouter, RouteRequest, prefix_chain
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.policies.dual_hash import choose, non_home_price

PROFILE = builtin_profile("910b4")


def instances(count: int, profile: EngineProfile | None = PROFILE) -> tuple[Instance, ...]:
    return tuple(
        Instance(f"pod-{n}", "default", "m", "main", f"http://127.0.0.1:{n}", profile=profile) for n in range(count)
    )


def make_router(count: int = 8, *, name: str = "dual-hash", ttft: float | None = 5.0) -> ModelRouter:
    router = ModelRouter(secret=b"secret")
    router.update(Model("default", "m", SloTargets(ttft_seconds=ttft), ModelRouting(name)), instances(count))
    return router


def prompt(name: str, session: int, turn: int = 0, session_id: str | None = None) -> RouteRequest:
    text = Random(session).randbytes(8_192) + Random(session).randbytes(4_096) * turn
    return RouteRequest(name, prefix_chain(text, secret=b"secret", seed=b"m"), len(text) / 4, session=session_id)


def send(router: ModelRouter, request: RouteRequest) -> str:
    decision = router.choose_instance(request, 0.0)
    assert decision.chosen is not None
    router.on_dispatch(request, decision.chosen, 0.0)
    return decision.chosen


def test_the_next_turn_goes_where_the_prefix_is() -> None:
    router = make_router()
    for session in range(20):
        first = prompt(f"{session}-0", session)
        at = send(router, first)
        router.on_first_token(first.id, 1.0)
        router.on_finish(first.id, 2.0)
        decision = router.choose_instance(prompt(f"{session}-1", session, 1), 3.0)
        assert decision.chosen == at
        assert decision.inputs[f"{at}/matched_tokens"].value == pytest.approx(2_048, rel=0.01)


def test_requests_that_wait_behind_do_not_hide_those_that_wait_before() -> None:
    router = make_router(20)
    for number in range(20):
        router.on_dispatch(prompt(f"flood-{number}", 100 + number), f"pod-{number}", 0.0)
    backlogs = {endpoint.id: load.backlog_seconds for endpoint, load in router.endpoint_loads()}
    request = prompt("next", 1)
    usual = router.preview(request, 0.0).chosen
    assert usual is not None
    deferred = {name: seconds for name, seconds in backlogs.items() if name != usual}
    assert router.choose_instance(request, 0.0, deferred=deferred).chosen != usual
    assert router.choose_instance(request, 0.0).chosen == usual, "the next decision counts all again"


def matched(router: ModelRouter, request: RouteRequest, instance: str) -> float:
    router._cache.drop_match()
    return router._cache.match(request).bytes_at(router._endpoints[instance].cache_bit)


@pytest.mark.parametrize("is_computed", [True, False])
def test_a_prompt_that_no_engine_computed_does_not_count_as_cached(is_computed: bool) -> None:
    router = make_router()
    refused = prompt("refused", 1, turn=4)
    at = send(router, refused)
    assert matched(router, refused, at) > 20_000
    router.on_abandoned(refused.id, 1.0, is_computed=is_computed)
    assert (matched(router, prompt("next", 1), at) > 0) is is_computed


def test_what_was_cached_before_a_refused_prompt_stays_cached() -> None:
    router = make_router()
    first, second = prompt("first", 1), prompt("second", 1, turn=4)
    at = send(router, first)
    router.on_finish(first.id, 1.0)
    router.on_dispatch(second, at, 1.0)
    assert matched(router, second, at) > 20_000
    router.on_abandoned(second.id, 2.0, is_computed=False)
    assert matched(router, second, at) == matched(router, first, at) == first.chain.ends[-1]


def test_what_another_prompt_in_flight_shares_with_a_refused_one_stays_cached() -> None:
    router = make_router()
    refused, other = prompt("refused", 1, turn=4), prompt("other", 1)
    at = send(router, refused)
    router.on_dispatch(other, at, 0.5)
    router.on_abandoned(refused.id, 1.0, is_computed=False)
    assert matched(router, refused, at) == other.chain.ends[-1]


def test_the_first_request_of_a_prefix_goes_to_one_of_its_homes_when_all_is_quiet() -> None:
    router = make_router()
    for session in range(50):
        request = prompt(str(session), session)
        homes = router.homes(request)
        decision = router.choose_instance(request, 0.0)
        assert decision.rule in ("affinity", "load")
        assert decision.chosen in homes


def test_a_home_over_its_objective_is_left_and_the_decision_says_so() -> None:
    router = make_router(ttft=1.0)
    busy = prompt("home", 1)
    at = send(router, busy)
    for number in range(30):
        router.on_dispatch(prompt(f"x{number}", 100 + number), at, 0.0)
    decision = router.choose_instance(prompt("again", 1), 0.0)
    assert decision.chosen != at
    assert "over the TTFT target of 1s" in next(item.why for item in decision.rejected if item.id == at)


def test_far_beyond_the_objective_the_soonest_first_token_wins() -> None:
    router = make_router(ttft=0.01)
    decision = router.choose_instance(prompt("r", 1), 0.0)
    assert decision.rule == "slo-spill"
    ttft = {key: item.value for key, item in decision.inputs.items() if key.endswith("/predicted_ttft_seconds")}
    assert ttft[f"{decision.chosen}/predicted_ttft_seconds"] == min(
        value for value in ttft.values() if value is not None
    )


def candidate(name: str, backlog: float, own: float) -> Candidate:
    return Candidate(EndpointLoad(name, 1, 0, backlog), 10_000, own, 0.0, is_home=True)


@pytest.mark.parametrize(
    ("before", "chosen"),
    [
        ((0.0, 0.0), "cached"),
        ((4.5, 0.0), "cached"),
        ((5.5, 3.0), "soon"),
        ((8.0, 5.0), "cached"),
        ((14.5, 12.0), "cached"),
        ((15.5, 12.0), "soon"),
        ((20.0, 16.0), "soon"),
    ],
)
def test_prices_hold_up_to_three_objectives_if_none_is_met(before: tuple[float, float], chosen: str) -> None:
    """An instance with the prompt (0.1 s) and a free one (1 s), priced 17 times; objective 5 s."""
    both = [candidate("cached", before[0], 0.1), candidate("soon", before[1], 1.0)]
    assert choose(both, mean_backlog_seconds=1.0, objective_seconds=5.0).chosen == chosen


@pytest.mark.parametrize(("unforeseen", "chosen"), [(0.0, "holder"), (0.005, "holder"), (0.03, "home")])
def test_the_holder_of_the_longest_prefix_costs_no_more_than_a_home_while_informed(
    unforeseen: float, chosen: str
) -> None:
    """A home that would compute 1 s, and a holder elsewhere that would compute 0.3 s; idle."""
    home = candidate("home", 0.0, 1.0)
    holder = Candidate(EndpointLoad("holder", 1, 0, 0.0), 10_000, 0.3, 4_000.0, is_holder=True)
    free = Candidate(EndpointLoad("free", 0, 0, 0.0), 10_000, 0.9, 0.0)
    decision = choose(
        [home, holder, free], mean_backlog_seconds=0.0, objective_seconds=5.0, unforeseen_share=unforeseen
    )
    assert decision.chosen == chosen
    assert decision.inputs["holder/longest_prefix"].value == 1.0
    assert "free/longest_prefix" not in decision.inputs
    if chosen == "holder":
        assert decision.reason.startswith("the holder of the longest prefix with about 4,000 tokens cached")


def test_conversations_stay_where_they_are_when_their_key_grows() -> None:
    """A system prompt that all share becomes hot, so the homes of every conversation change."""
    router, common = make_router(), Random(0).randbytes(8_192)
    at: dict[int, str] = {}
    homes = set()
    for turn in range(1, 7):
        for session in range(16):
            text = common + Random(session).randbytes(1_600 * turn)
            name = f"{session}-{turn}"
            request = RouteRequest(name, prefix_chain(text, secret=b"secret", seed=b"m"), len(text) / 4)
            chosen = send(router, request)
            assert at.setdefault(session, chosen) == chosen
            homes.add((session, router.homes(request)))
            router.on_first_token(name, 0.0)
            router.on_finish(name, 0.0)
    assert len(homes) > 16


def test_a_burst_of_one_prefix_spreads_beyond_its_homes() -> None:
    router = make_router()
    used = Counter(send(router, prompt(f"r{n}", 1)) for n in range(800))
    assert len(used) > 2


def test_unrelated_prompts_spread_over_all() -> None:
    router = make_router()
    used = Counter(send(router, prompt(f"r{n}", n)) for n in range(80))
    assert len(used) == 8
    assert max(used.values()) <= 2.0 * 80 / 8


def test_a_failed_instance_is_not_chosen_again_for_the_same_request() -> None:
    router = make_router(2)
    request = prompt("r", 1)
    first = send(router, request)
    router.on_abandoned(request.id, 0.0)
    second = router.choose_instance(request, 0.0, excluded=frozenset({first}))
    assert second.chosen is not None
    assert second.chosen != first
    assert second.rule == "only-one"
    assert router.choose_instance(request, 0.0, excluded=frozenset({"pod-0", "pod-1"})).chosen is None


def test_nothing_ready_gives_no_choice_and_says_so() -> None:
    router = ModelRouter(secret=b"s")
    drained = [Instance("a", "default", "m", "main", "http://127.0.0.1:1", state=InstanceState.DRAINING)]
    router.update(Model("default", "m"), drained)
    decision = router.choose_instance(prompt("r", 1), 0.0)
    assert decision.chosen is None
    assert decision.reason == "no instance is ready"


def test_a_draining_instance_gets_nothing_new() -> None:
    router = make_router(3)
    first = send(router, prompt("a", 1))
    changed = [
        Instance(
            item.id, "default", "m", "main", item.url, state=InstanceState.DRAINING if item.id == first else item.state
        )
        for item in instances(3)
    ]
    router.update(Model("default", "m"), changed)
    assert all(router.choose_instance(prompt(f"b{n}", n), 0.0).chosen != first for n in range(50))


def test_a_restarted_instance_has_lost_its_cache() -> None:
    router = make_router(2)
    at = send(router, prompt("a", 1))
    router.on_abandoned("a", 0.0)
    model = Model("default", "m")
    router.update(model, [item for item in instances(2) if item.id != at])
    router.update(model, instances(2))
    decision = router.choose_instance(prompt("b", 1), 0.0)
    assert decision.inputs[f"{at}/matched_tokens"].value == 0 if f"{at}/matched_tokens" in decision.inputs else True


def test_a_lost_cache_keeps_the_prompts_in_flight_at_the_instance() -> None:
    router = make_router()
    for name, session in (("answered", 1), ("waiting", 2)):
        router.on_dispatch(prompt(name, session), "pod-0", 0.0)
    router.on_finish("answered", 1.0)
    router.apply_correction("pod-0", "all", (), ())
    matched = [
        router.choose_instance(prompt("next", session, 1), 2.0).inputs.get("pod-0/matched_tokens") for session in (1, 2)
    ]
    assert [value.value if value else 0 for value in matched] == [0, pytest.approx(2_048, rel=0.01)]


def test_an_instance_that_left_while_it_drained_is_forgotten_too() -> None:
    router = make_router(2)
    at = send(router, prompt("a", 1))
    drained = [replace(item, state=InstanceState.DRAINING) if item.id == at else item for item in instances(2)]
    model, rest = Model("default", "m"), [item for item in instances(2) if item.id != at]
    for present in (drained, rest):
        router.update(model, present)
        assert (len(router._cache) == 0) is (present is rest)


def test_two_routers_with_one_secret_agree_on_homes() -> None:
    first, second = make_router(), make_router()
    assert all(first.homes(prompt("x", n)) == second.homes(prompt("y", n)) for n in range(100))


def test_round_robin_takes_turns() -> None:
    router = make_router(4, name="round-robin")
    assert [router.choose_instance(prompt(f"r{n}", n), 0.0).chosen for n in range(8)] == [
        f"pod-{n % 4}" for n in range(8)
    ]


def test_least_request_takes_the_emptiest_and_breaks_ties_without_order() -> None:
    router = make_router(4, name="least-request")
    assert len({router.choose_instance(prompt(f"r{n}", n), 0.0).chosen for n in range(40)}) == 4
    used = Counter(send(router, prompt(f"s{n}", n)) for n in range(40))
    assert set(used.values()) == {10}


def test_a_session_stays_where_it_is_whatever_its_prompts() -> None:
    router = make_router(8, name="session")
    chosen = {router.choose_instance(prompt(f"r{n}", n, session_id="talk-1"), 0.0).chosen for n in range(20)}
    assert len(chosen) == 1
    others = {router.choose_instance(prompt(f"q{n}", 1, session_id=f"talk-{n}"), 0.0).chosen for n in range(60)}
    assert len(others) == 8


def test_routing_keys_of_sessions_follow_from_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for secret in (b"one", b"two"):
        router = ModelRouter(secret=secret)
        router.update(Model("default", "m", routing=ModelRouting("session")), instances(8))
        pair = Mock(wraps=router._homes.pair)
        monkeypatch.setattr(router._homes, "pair", pair)
        for number in range(20):
            router.choose_instance(prompt(f"r{number}", number, session_id=f"talk-{number % 10}"), 0.0)
        keys.append({call.args[0] for call in pair.call_args_list})
    assert [len(distinct) for distinct in keys] == [10, 10]
    assert not keys[0] & keys[1]


def test_homes_of_sessions_stay_the_same_over_releases() -> None:
    router = ModelRouter(secret=b"secret")
    assert [router._session_key(f"talk-{number}") for number in range(2)] == [0xE4B0AC9AAB5E84A1, 0x941462EB92688C56]


def test_an_unknown_preset_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="no routing preset is called 'fastest'"):
        ModelRouter(secret=b"s").update(Model("default", "m", routing=ModelRouting("fastest")), instances(1))


def test_without_profiles_routing_still_works() -> None:
    router = ModelRouter(secret=b"s")
    router.update(Model("default", "m"), instances(4, None))
    assert router.choose_instance(prompt("r", 1), 0.0).chosen is not None


def test_a_clock_twice_as_fast_decides_alike() -> None:
    slow, fast = make_router(ttft=5.0), ModelRouter(secret=b"secret")
    fast.update(Model("default", "m", SloTargets(ttft_seconds=2.5)), instances(8, PROFILE.sped_up(2)))
    for number in range(300):
        request = prompt(f"r{number}", number % 40, number % 3)
        assert send(slow, request) == send(fast, request)
        if number > 20:
            for router in (slow, fast):
                router.on_first_token(f"r{number - 10}", 0.0)
                router.on_finish(f"r{number - 20}", 0.0, output_tokens=100)


def test_loads_are_those_of_requests_in_flight() -> None:
    router = make_router(2)
    at = send(router, prompt("r", 1))
    assert router.loads()[at].inflight == 1
    router.on_finish("r", 1.0)
    assert all(load.inflight == 0 for load in router.loads().values())


def test_token_estimates_follow_what_engines_report() -> None:
    router = make_router(2)
    for number in range(200):
        request = prompt(f"r{number}", number)
        send(router, request)
        router.on_finish(request.id, 1.0, prompt_tokens=int(request.prompt_tokens * 1.5))
    request = prompt("again", 199, 1)
    decision = router.choose_instance(request, 2.0)
    assert decision.inputs[f"{decision.chosen}/matched_tokens"].value == pytest.approx(1.5 * 8_192 / 4, rel=0.05)


def test_an_absurd_report_moves_the_estimate_within_bounds() -> None:
    router = make_router(1)
    for number in range(500):
        request = prompt(f"r{number}", number)
        send(router, request)
        router.on_finish(request.id, 1.0, prompt_tokens=10**9)
    assert router._calibration.scale <= 4.0


@pytest.mark.parametrize(
    ("unforeseen", "busy", "price"),
    [
        (0.0, 0.0, 4.0),
        (0.005, 0.5, 2.0),
        (0.005, 1.0, 0.0),
        (0.0175, 0.0, 18.0),
        (0.0175, 1.0, 16.0),
        (0.03, 0.0, 32.0),
        (1.0, 1.0, 32.0),
    ],
)
def test_leaving_home_is_dearer_the_less_is_foreseen_and_cheaper_the_busier_all_are(
    unforeseen: float, busy: float, price: float
) -> None:
    assert non_home_price(unforeseen, busy) == pytest.approx(price)


@pytest.mark.parametrize(("cached", "share"), [(0, 0.0), (1_024, 0.5), (None, 0.0)])
def test_what_engines_had_beyond_what_was_known_is_followed(cached: int | None, share: float) -> None:
    """Every prompt is new here; an unknown other gateway sent the first half of each before."""
    router = make_router()
    for number in range(400):
        asked = prompt(f"r{number}", number)
        send(router, asked)
        router.on_first_token(asked.id, 0.0)
        router.on_finish(asked.id, 0.0, prompt_tokens=2_048, cached_tokens=cached)
    unforeseen = router.choose_instance(prompt("last", 999), 0.0).inputs["mean/unforeseen_share"].value
    assert unforeseen == pytest.approx(share, abs=0.01)
