"""The prefill that decode engines could take keeps both SLOs."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fairlead.decision import DecisionInput
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.decode_slack import DecodeLoad, decode_slack
from fairlead_autoscaler.core.plan_inputs import add_decode_slack
from fairlead_autoscaler.core.types import ModelSpec, PoolObservation, PoolPlan, PoolSpec

L = EngineProfile(
    "L",
    9e-5,
    step_seconds=12e-3,
    sequence_seconds=4e-5,
    resident_token_seconds=8.7e-8,
    kv_tokens=400_000,
    step_tokens=1024,
)


def test_idle_decode_engines_could_take_prompts_and_full_ones_could_not() -> None:
    quiet = decode_slack(L, DecodeLoad(0.25, 100.0, 1_050.0), itl_seconds=0.1, ttft_seconds=2.0)
    assert quiet.rule == "slack"
    assert 0.0 < quiet.prompt_tokens < L.kv_tokens
    assert decode_slack(L, DecodeLoad(7.5, 800.0, 1_400.0), itl_seconds=0.1, ttft_seconds=2.0).rule == "batch-full"
    assert decode_slack(L, DecodeLoad(0.01, 100.0, 1_050.0), itl_seconds=0.013, ttft_seconds=2.0).rule == "step-full"
    endless = decode_slack(L, DecodeLoad(0.25, 100.0, 1_050.0), itl_seconds=0.1, ttft_seconds=None)
    assert endless.prompt_tokens == L.kv_tokens


@given(st.floats(0.01, 10.0), st.floats(100, 4_000), st.floats(10, 1_000), st.floats(0, 1e-8), st.floats(0, 0.05))
def test_what_decode_could_take_keeps_both_objectives(
    rate: float, prompt: float, output: float, attention: float, weights: float
) -> None:
    profile = replace(L, attention_seconds=attention, weights_seconds=weights)
    decoding = DecodeLoad(rate, output, prompt + output / 2)
    found = decode_slack(profile, decoding, itl_seconds=0.1, ttft_seconds=2.0)
    if found.rule != "slack":
        assert found.tokens_per_second == found.prompt_tokens == 0.0
        return
    batch, chunk = rate * output * 0.09, found.tokens_per_second * 0.09
    step = 12e-3 + max(weights, 9e-5 * (batch + chunk)) + batch * (4e-5 + 8.7e-8 * decoding.context_tokens)
    assert step + attention * chunk * found.prompt_tokens / 2 <= 0.09 + 1e-6
    assert chunk + batch <= L.step_tokens + 1e-6
    assert found.prompt_tokens * 0.09 / chunk <= 1.0 + 1e-6
    busier = decode_slack(profile, replace(decoding, requests_per_second=rate * 1.5), itl_seconds=0.1, ttft_seconds=2.0)
    assert busier.prompt_tokens <= found.prompt_tokens


def test_it_is_told_with_the_number_of_a_decode_pool_and_no_other() -> None:
    pools = (PoolSpec("pre", Role.PREFILL, profile=L), PoolSpec("dec", Role.DECODE, profile=L))
    model = ModelSpec("m", 2.0, 0.1, pools)
    numbers = {
        "level_replicas": 1.0,
        "capacity_requests_per_second": 5.0,
        "prompt_tokens": 1_000.0,
        "output_tokens": 100.0,
        "speed_factor": 1.0,
    }
    inputs = {name: DecisionInput(value) for name, value in numbers.items()}
    plans = {name: PoolPlan(2, "enough", "", inputs) for name in ("pre", "dec")}
    seen = {name: PoolObservation(2, 2) for name in plans}
    told = add_decode_slack(model, plans, seen)
    assert told["pre"] == plans["pre"]
    two = told["dec"].inputs["convertible_tokens_per_second"].value
    four = (
        add_decode_slack(model, plans, {**seen, "dec": PoolObservation(4, 4)})["dec"]
        .inputs["convertible_tokens_per_second"]
        .value
    )
    assert two is not None
    assert four is not None
    assert four > 2 * two > 0.0
    for less in (replace(model, itl_seconds=None), replace(model, pools=(replace(pools[1], profile=None),))):
        assert add_decode_slack(less, {"dec": plans["dec"]}, seen)["dec"] == plans["dec"]
    assert add_decode_slack(model, {"dec": PoolPlan(2, "metrics-missing", "")}, seen)["dec"].inputs == {}
    assert add_decode_slack(model, plans, {**seen, "dec": PoolObservation(2, 0)})["dec"] == plans["dec"]
