"""Prefill placement: a decode instance computes a prompt only without harm or a later
first token.
"""

from dataclasses import replace
from math import e

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.decision import Decision
from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Instance, Model, Role, SloTargets
from fairlead_gateway.routing import ModelRouter, RouteRequest, prefix_chain
from fairlead_gateway.routing.load.inter_token_times import MIN_TOKENS, WINDOW_SECONDS, InterTokenTimes
from fairlead_gateway.routing.load.shared_memory import FIELDS_PER_SLOT, SharedLoadTable
from fairlead_gateway.routing.prefill_placement import (
    BATCH_SLACK,
    ITL_SHARE,
    LATE_SHARE,
    LIGHT_SHARE,
    LOCAL_RULES,
    MAX_GAP_AGE_SECONDS,
    MIN_ANSWER_TOKENS,
    REMOTE_RULES,
    PrefillEstimate,
    estimate_steps,
    place_prefill,
)

L = EngineProfile(
    "L",
    4e-5,
    step_seconds=12e-3,
    sequence_seconds=9e-5,
    resident_token_seconds=8.7e-8,
    kv_tokens=400_000,
    step_tokens=1_024,
)
ITL, TTFT, WAY = 0.1, 2.0, 0.02


def side(name: str = "decode", tokens: float = 1_000.0, hit: float = 0.0) -> PrefillEstimate:
    return PrefillEstimate(name, L, 0.0, L.prefill_time(tokens, hit), tokens, hit, 0, 0.0)


def decided(
    here: PrefillEstimate, there: PrefillEstimate | None = None, itl: float | None = ITL, way: float = WAY
) -> Decision:
    best = side("prefill", here.prompt_tokens) if there is None else there
    return place_prefill(here, best, itl_seconds=itl, ttft_seconds=TTFT, transfer_seconds=way, min_remote_tokens=1_024)


def busy(estimate: PrefillEstimate, sequences: int, context: int = 1_000) -> PrefillEstimate:
    return replace(estimate, inflight=sequences, inflight_tokens=float(sequences * context))


def test_an_idle_decode_engine_computes_a_prompt_itself_and_says_so() -> None:
    decision = decided(side())
    assert (decision.chosen, decision.rule) == ("decode", "slack")
    assert "decode has slack: a gap is 12.1ms with it, the longest 52.1ms, of 90ms" in decision.reason
    assert decision.inputs["prefill/predicted_ttft_seconds"].value is not None
    assert [item.id for item in decision.rejected] == ["prefill"]


@pytest.mark.parametrize(
    ("here", "rule"),
    [
        (busy(side(), 250, 100), "batch-full"),
        (busy(side(), 40, 9_000), "batch-full"),
        (busy(side(), 150, 2_000), "step-full"),
        (replace(side(), gap_seconds=0.095, gap_age_seconds=1.0), "gaps-long"),
        (replace(side(), backlog_seconds=0.2), "sooner-there"),
    ],
)
def test_each_reason_to_send_a_prompt_away_has_its_word(here: PrefillEstimate, rule: str) -> None:
    decision = decided(here)
    assert (decision.chosen, decision.rule) == ("prefill", rule)


def test_a_prompt_that_is_as_good_as_cached_stays_even_on_a_full_engine() -> None:
    full = busy(side(tokens=4_000.0, hit=3_990.0), 250, 100)
    assert decided(full).rule == "light"
    assert decided(replace(full, matched_tokens=0.0, prefill_seconds=L.prefill_time(4_000))).rule == "batch-full"


def test_old_gaps_are_ignored() -> None:
    old = replace(side(), gap_seconds=0.2, gap_age_seconds=MAX_GAP_AGE_SECONDS + 1.0)
    assert decided(old).rule == "slack"


@pytest.mark.parametrize("lacking", ["objective", "decode profile", "prefill profile"])
def test_where_a_number_is_missing_the_limit_decides(lacking: str) -> None:
    itl = None if lacking == "objective" else ITL
    profiles = {name: None if lacking == f"{name} profile" else L for name in ("decode", "prefill")}
    for tokens, rule, chosen in ((1_023.0, "short", "decode"), (1_024.0, "long", "prefill")):
        here, there = (replace(side(name, tokens), profile=profiles[name]) for name in ("decode", "prefill"))
        decision = decided(here, there, itl)
        assert (decision.rule, decision.chosen) == (rule, chosen)
        assert "is known" in decision.reason


def test_without_a_prefill_engine_the_limit_says_whether_one_is_missed() -> None:
    for tokens, rule in ((10.0, "short"), (5_000.0, "long")):
        decision = place_prefill(
            side(tokens=tokens), None, itl_seconds=ITL, ttft_seconds=TTFT, transfer_seconds=WAY, min_remote_tokens=1_024
        )
        assert (decision.rule, decision.chosen) == (rule, "decode" if rule == "short" else None)


@st.composite
def sides(draw: st.DrawFn, name: str, tokens: float) -> PrefillEstimate:
    hit = tokens * draw(st.floats(0.0, 1.0))
    profile = draw(
        st.sampled_from([L, builtin_profile("h100-llama8b"), builtin_profile("l4-qwen8b"), builtin_profile("tiny-cpu")])
    )
    inflight = draw(st.integers(0, 300))
    gap = draw(st.none() | st.floats(0.0, 0.3))
    return PrefillEstimate(
        name,
        draw(st.sampled_from([profile, profile, profile, None])),
        draw(st.floats(0.0, 5.0)) if inflight else 0.0,
        profile.prefill_time(tokens, hit),
        tokens,
        hit,
        inflight,
        inflight * draw(st.floats(1.0, 5_000.0)),
        draw(st.floats(0.0, 1.5)),
        gap,
        None if gap is None else draw(st.floats(0.0, 60.0)),
    )


@given(st.data(), st.floats(1.0, 30_000.0), st.floats(0.005, 0.5), st.floats(0.0, 0.5))
def test_never_to_a_decoder_without_slack_and_never_for_a_later_first_token(
    data: st.DataObject, tokens: float, itl: float, way: float
) -> None:
    here, there = data.draw(sides("decode", tokens)), data.draw(sides("prefill", tokens))
    decision = decided(here, there, itl, way)
    assert decision.rule in LOCAL_RULES | REMOTE_RULES
    assert decision.chosen == ("decode" if decision.rule in LOCAL_RULES else "prefill")
    if decision.rule in ("short", "long"):
        assert here.profile is None or there.profile is None
        return
    first = {name: decision.inputs[f"{name}/predicted_ttft_seconds"].value for name in ("decode", "prefill")}
    assert decision.ttft_seconds == first[decision.chosen]
    assert here.profile is not None
    assert first["decode"] is not None
    assert first["prefill"] is not None
    if decision.rule == "sooner-there":
        assert first["prefill"] < first["decode"]
    if decision.chosen != "decode":
        return
    assert first["decode"] <= first["prefill"]
    steps = estimate_steps(here, here.profile)
    if decision.rule == "light":
        assert steps.with_prompt_seconds <= (1.0 + LIGHT_SHARE) * steps.plain_seconds
        return
    most = ITL_SHARE * itl
    if steps.longest_seconds > most:
        assert first["prefill"] > LATE_SHARE * TTFT
        assert steps.mean_gap_seconds <= most
        assert steps.run_seconds <= MIN_ANSWER_TOKENS * (most - steps.plain_seconds)
    assert here.inflight + 1 <= BATCH_SLACK * here.profile.max_sequences
    assert here.inflight_tokens + tokens <= BATCH_SLACK * here.profile.kv_tokens
    if here.gap_age_seconds is not None and here.gap_age_seconds <= MAX_GAP_AGE_SECONDS:
        assert here.gap_seconds is not None
        assert here.gap_seconds <= ITL_SHARE * itl


@given(st.data(), st.floats(1.0, 30_000.0))
def test_a_busier_decode_engine_never_takes_what_it_sent_away(data: st.DataObject, tokens: float) -> None:
    here, there = (replace(data.draw(sides(name, tokens)), profile=L) for name in ("decode", "prefill"))
    if decided(here, there).rule in ("batch-full", "step-full"):
        busier = replace(here, inflight=here.inflight + 20, inflight_tokens=here.inflight_tokens + 20_000.0)
        assert decided(busier, there).rule not in ("slack", "short", "long")


@pytest.mark.parametrize(
    ("late", "backlog", "share", "rule"),
    [
        (0.9, 0.0, 0.0, "step-full"),
        (4.0, 0.0, 0.0, "slack"),
        (4.0, 0.0, 0.9, "share-full"),
        (4.0, 1.3, 0.0, "run-long"),
    ],
)
def test_if_prefill_is_late_gaps_may_exceed_the_objective_but_not_their_mean(
    late: float, backlog: float, share: float, rule: str
) -> None:
    small = replace(L, prefill_token_seconds=9e-5)
    here = replace(busy(side(tokens=3_000.0), 20), profile=small, prefill_share=share, backlog_seconds=backlog)
    assert decided(here, replace(side("prefill", 3_000.0), backlog_seconds=late)).rule == rule


# What the router knows of an engine ------------------------------------------------------------------------------------------


def make_router(profile: EngineProfile | None = L, shared_loads: SharedLoadTable | None = None) -> ModelRouter:
    router = ModelRouter(secret=b"secret", shared_loads=shared_loads)
    instance = Instance("d0", "default", "m", "d", "http://d0", role=Role.DECODE, transfer="nixl", profile=profile)
    router.update(Model("default", "m", SloTargets(itl_seconds=ITL)), (instance,))
    return router


def request(name: str, tokens: int = 1_000) -> RouteRequest:
    return RouteRequest(name, prefix_chain(b"a" * tokens * 4, secret=b"secret", seed=b"m"), tokens)


def observed(router: ModelRouter, asked: RouteRequest, now: float = 0.0) -> PrefillEstimate:
    estimate = router.estimate_prefill(asked, "d0", now)
    assert estimate is not None
    return estimate


def test_what_is_cached_there_and_what_is_in_flight_counts() -> None:
    router, asked = make_router(), request("a")
    assert router.estimate_prefill(asked, "d1", 0.0) is None
    assert observed(router, asked).uncached_tokens == pytest.approx(1_000)
    router.on_dispatch(request("before"), "d0", 0.0)
    estimate = observed(router, asked)
    assert estimate.inflight == 1
    assert estimate.backlog_seconds == pytest.approx(L.prefill_time(1_000))
    assert estimate.uncached_tokens < 100


def test_what_it_computed_lately_is_a_share_of_its_time_and_fades() -> None:
    router = make_router()
    router.on_dispatch(request("before", 8_000), "d0", 0.0)
    share = observed(router, request("a")).prefill_share
    assert share == pytest.approx(L.prefill_time(8_000) / WINDOW_SECONDS)
    router.on_finish("before", 1.0)
    assert observed(router, request("a"), WINDOW_SECONDS).prefill_share == pytest.approx(share / e)


def test_others_are_taken_to_keep_as_many_prompts_there_for_each_request() -> None:
    cells = memoryview(bytearray(2 * FIELDS_PER_SLOT * 8)).cast("q")
    ours, theirs = SharedLoadTable(cells, 1, 0), SharedLoadTable(cells, 1, 1)
    for rows in (ours, theirs):
        rows.set_slots({"d0": 0})
    ours.set_active_rows([1])
    router = make_router(shared_loads=ours)
    router.on_dispatch(request("before", 8_000), "d0", 0.0)
    alone = observed(router, request("a")).prefill_share
    theirs.write("d0", 2, 0, 0.0, 24_000.0)
    assert observed(router, request("a")).prefill_share == pytest.approx(3.0 * alone)


def test_a_prompt_that_was_computed_elsewhere_is_no_backlog_there() -> None:
    router = make_router()
    router.on_dispatch(request("before", 8_000), "d0", 0.0, prefilled_elsewhere=True)
    estimate = observed(router, request("a"))
    assert estimate.prefill_share == 0.0
    assert estimate.inflight == 1
    assert estimate.inflight_tokens >= 8_000
    assert estimate.backlog_seconds < 0.02


def test_an_unknown_profile_is_none() -> None:
    assert observed(make_router(None), request("a")).profile is None


def test_what_other_gateways_sent_there_takes_the_slack() -> None:
    cells = memoryview(bytearray(2 * FIELDS_PER_SLOT * 8)).cast("q")
    ours, theirs = SharedLoadTable(cells, 1, 0), SharedLoadTable(cells, 1, 1)
    for rows in (ours, theirs):
        rows.set_slots({"d0": 0})
    ours.set_active_rows([1])
    router = make_router(
        shared_loads=ours,
    )
    assert decided(observed(router, request("a"))).rule == "slack"
    theirs.write("d0", 240, 0, 0.0, 24_000.0)
    assert decided(observed(router, request("a"))).rule == "batch-full"


def test_a_gateway_that_hears_of_no_other_sees_it_by_the_gaps_of_its_own_streams() -> None:
    router = make_router()
    router.on_dispatch(request("b"), "d0", 0.0)
    router.on_first_token("b", 1.0)
    router.on_finish("b", 1.0 + 0.12 * 100, output_tokens=101)
    estimate = observed(router, request("a"), 14.0)
    assert estimate.gap_seconds == pytest.approx(0.12)
    assert estimate.gap_age_seconds == pytest.approx(1.0)
    assert decided(estimate).rule == "gaps-long"


def test_gaps_are_those_of_streams_that_ended_well() -> None:
    gaps = InterTokenTimes()
    for name, tokens in (("cut", None), ("short", MIN_TOKENS - 1)):
        gaps.on_first_token(name, 0.0)
        gaps.on_finish(name, "d0", tokens, 9.0)
    gaps.on_finish("never began", "d0", 100, 9.0)
    assert gaps.mean_gap("d0", 9.0) is None
    gaps.on_first_token("whole", 0.0)
    gaps.on_finish("whole", "d0", 101, 5.0)
    assert gaps.mean_gap("d0", 6.0) == (0.05, 1.0)
    gaps.retain(())
    assert gaps.mean_gap("d0", 6.0) is None
