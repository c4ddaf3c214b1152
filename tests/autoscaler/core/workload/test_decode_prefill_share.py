"""Prompts that decode engines compute are sized for once: as work of decode, not of prefill."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role
from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot, gateway_traffic
from fairlead_autoscaler.core import GatewayTraffic, ModelSpec, Observation, PoolObservation, PoolSpec, ScalingCore
from fairlead_autoscaler.core.signals.validation import valid_traffic
from fairlead_autoscaler.core.workload.mean_request import DecodePrefillShare, decode_prefill_share, mean_request
from fairlead_autoscaler.core.workload.request_lengths import DecayingRatio, RequestLengths

PROMPT = 2_000.0


def lengths(requests: float, tokens: float) -> RequestLengths:
    def known(mean: float) -> DecayingRatio:
        return DecayingRatio(1e6 * mean, 1e6, 1e6 * mean, 1e6)

    return RequestLengths(prompt=known(PROMPT), output=known(200.0), kept=known(requests), kept_tokens=known(tokens))


@given(st.floats(0.0, 0.9), st.floats(0.0, 1.0))
def test_every_prompt_token_is_counted_once(requests: float, shorter: float) -> None:
    tokens = requests * shorter
    told = lengths(requests, tokens)
    prefill, decode = (mean_request(told, role, decode_prefill_share(told)) for role in (Role.PREFILL, Role.DECODE))
    assert (1.0 - requests) * prefill.computed_tokens + decode.computed_tokens == pytest.approx(PROMPT)
    assert mean_request(told, Role.SERVE, decode_prefill_share(told)).computed_tokens == pytest.approx(PROMPT)


def needs(kept: GatewayTraffic, most: int | None = None) -> dict[str, float]:
    """Returns the replicas of each role after ten minutes of a steady load with this share kept."""
    profile = builtin_profile("a100-qwen7b")
    pools = tuple(PoolSpec(role.value, role, maximum=50, profile=profile) for role in (Role.PREFILL, Role.DECODE))
    core = ScalingCore(ModelSpec("m", 2.0, 0.1, pools, replicas_most=most))
    plan = {}
    for tick in range(120):
        seen = {pool.name: PoolObservation(8, 8, replicas=()) for pool in pools}
        plan = dict(core.step(Observation(5.0 * tick, kept, seen)).pools)
    found = {name: one.inputs["need_replicas"].value for name, one in plan.items()}
    return {name: value for name, value in found.items() if value is not None}


def test_what_decode_keeps_is_needed_there_and_no_more_for_prefill() -> None:
    base = GatewayTraffic(50.0, 50.0 * PROMPT)
    unknown, none = needs(base), needs(replace(base, kept=0.0, kept_tokens=0.0))
    assert unknown == none
    some = needs(replace(base, kept=20.0, kept_tokens=20.0 * 1_000.0))
    assert 0.75 * none["Prefill"] < some["Prefill"] < 0.95 * none["Prefill"]  # a fifth less work, of longer prompts
    assert some["Decode"] > none["Decode"]


def test_pools_that_share_a_number_divide_it_as_if_every_prompt_were_handed_over() -> None:
    base = GatewayTraffic(50.0, 50.0 * PROMPT)
    some = replace(base, kept=20.0, kept_tokens=20.0 * 1_000.0)
    assert needs(some, most=100) == needs(base, most=100)


@pytest.mark.parametrize("nonsense", [math.nan, -5.0, math.inf, None])
def test_what_cannot_be_a_count_is_not_known(nonsense: float | None) -> None:
    found = valid_traffic(GatewayTraffic(10.0, 1_000.0, kept=nonsense, kept_tokens=5.0))
    assert found is not None
    assert found.kept is None
    assert found.arrivals == 10.0


def test_more_kept_than_arrived_is_all_but_a_little() -> None:
    assert decode_prefill_share(lengths(3.0, 2.0)) == DecodePrefillShare(0.95, 0.95)
    assert decode_prefill_share(RequestLengths()) == DecodePrefillShare(0.0, 0.0)


def test_gateways_counts_are_added_up() -> None:
    counted: dict[tuple[str, ...], float] = {
        ("arrivals", "m"): 5.0,
        ("kept", "m"): 2.0,
        ("kept_tokens", "m"): 300.0,
        ("kept", "other"): 9.0,
    }
    found = gateway_traffic(
        "m", GatewaySnapshot((GatewayMetrics("a", counted), GatewayMetrics("b", counted), GatewayMetrics("c")))
    )
    assert found is not None
    assert (found.kept, found.kept_tokens) == (4.0, 600.0)
