"""A token-level engine keeps the throughput of the table, and not much more."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead_autoscaler.mix import throughput
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind
from fairlead_sim.autoscaling.reference_pools import reference_model, reference_pool
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_testing.pytest_hooks.nightly import shortened

H100, L4 = builtin_profile("h100-llama8b"), replace(builtin_profile("l4-qwen8b"), kv_tokens=60_000)
KEPT = SloTargets(target=0.99, ttft_seconds=3.0, ttft_per_kilo_token_seconds=0.5, itl_seconds=0.12)


def attained(profile: EngineProfile, prompt: int, output: int, rate: float) -> float:
    """Returns the share of 1,500 equal requests within the SLO, on one engine.

    They come at random, at exactly this rate: by chance alone it would be up to 5 % higher.
    """
    draw, at, drawn = Random(f"{profile.name} {prompt} {output}"), 0.0, []
    for _ in range(1_500):
        at += draw.expovariate(1.0)
        drawn.append(at)
    at = len(drawn) / rate
    arrivals = [each * at / drawn[-1] for each in drawn]
    ttft, itl = KEPT.ttft_limit_seconds(prompt), KEPT.itl_seconds
    assert ttft is not None
    assert itl is not None
    pools = (reference_pool(profile, 1),)
    load = ArrivalTrace(arrivals, [prompt] * len(arrivals), [output] * len(arrivals))
    return run_controller(
        AutoscalingScenario("one", 1, at, reference_model(pools, ttft, itl), pools, load),
        ScheduleController([]),
        engine_model=EngineModelKind.TOKEN_LEVEL,
    ).attainment


@pytest.mark.parametrize(
    ("profile", "prompt", "output"),
    shortened(
        [(H100, 300, 150), (H100, 4_000, 200), (L4, 300, 150), (L4, 600, 300)], [(H100, 4_000, 200), (L4, 600, 300)]
    ),
    ids=lambda value: value.name if isinstance(value, EngineProfile) else str(value),
)
def test_an_engine_keeps_what_the_table_says(profile: EngineProfile, prompt: int, output: int) -> None:
    assert attained(profile, prompt, output, throughput(profile, prompt, output, KEPT)) >= KEPT.target


@pytest.mark.parametrize(("prompt", "output"), shortened([(300, 150), (4_000, 200)], [(4_000, 200)]))
def test_half_as_much_again_it_does_not_keep(prompt: int, output: int) -> None:
    assert attained(H100, prompt, output, 1.5 * throughput(H100, prompt, output, KEPT)) < KEPT.target


def test_what_fits_no_memory_or_misses_an_objective_alone_is_not_served() -> None:
    assert throughput(L4, 70_000, 10, KEPT) == 0.0
    assert throughput(L4, 30_000, 10, replace(KEPT, ttft_per_kilo_token_seconds=0.0)) == 0.0
    assert throughput(L4, 100, 100, replace(KEPT, itl_seconds=0.05)) == 0.0
    assert throughput(L4, 100, 1, replace(KEPT, itl_seconds=0.05)) > 0.0, "one token has no gap"


sizes = st.floats(1, 20_000)


@given(sizes, sizes, st.floats(1.0, 4.0))
def test_faster_engines_never_serve_less(prompt: float, output: float, factor: float) -> None:
    each = throughput(H100, prompt, output, KEPT)
    assert throughput(H100.sped_up(factor), prompt, output, KEPT) >= each * (1 - 1e-3)
