"""Disaggregated prefill in the plant, with the gateway's decision on placement."""

from dataclasses import replace
from random import Random

import pytest

from fairlead.fleet.model import Role
from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, Plant, PlantFaults
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.routing import PrefillPolicy


def mixed(rate: float, seconds: float, seed: int = 1) -> ArrivalTrace:
    """Returns a load whose every fourth prompt is long."""
    draw, at = Random(seed), 0.0
    arrivals, prompts = [], []
    while (at := at + draw.expovariate(rate)) < seconds:
        arrivals.append(at)
        prompts.append(draw.randint(4_000, 12_000) if draw.random() < 0.25 else draw.randint(100, 1_500))
    return ArrivalTrace(arrivals, prompts, [draw.randint(1, 400) for _ in arrivals])


def apart(
    load: ArrivalTrace, computing: PrefillPolicy, prefill: int = 2, decode: int = 2, seconds: float = 60.0
) -> AutoscalingScenario:
    setups = [
        reference_pools.reference_pool(
            reference_pools.large_profile(),
            count,
            role=role,
            name=role.value.lower(),
            startup=reference_pools.WARM_START,
        )
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode))
    ]
    return AutoscalingScenario(
        "apart",
        1,
        seconds,
        reference_pools.reference_model(setups, 2.0, 0.1),
        tuple(setups),
        load,
        prefill_policy=computing,
    )


def fixed(scenario: AutoscalingScenario) -> ControllerOutcome:
    return run_controller(scenario, ScheduleController([]))


def test_each_prompt_is_computed_once_where_it_was_decided() -> None:
    load = mixed(6.0, 60.0)
    for computing in PrefillPolicy:
        plant = Plant(apart(load, computing))
        plant.run(60.0)
        plant.finish()
        kept = [prompt for prompt, here in zip(load.prompts, plant.requests.computed_at_decode, strict=True) if here]
        away = sum(load.prompts) - sum(kept)
        counted = {
            name: sum([one.engine.totals.prompt_tokens for one in pool.ready]) for name, pool in plant.pools.items()
        }
        assert plant.requests.abandoned == 0
        assert counted == {"prefill": away, "decode": sum(kept) + len(load) - len(kept)}
        assert bool(kept) == (computing is not PrefillPolicy.APART)
        if computing is PrefillPolicy.BY_LENGTH:
            assert max(kept) < 1_024


def test_what_the_ledger_has_is_nothing_when_all_is_over() -> None:
    for engines in (EngineModelKind.AGGREGATED, EngineModelKind.TOKEN_LEVEL):
        plant = Plant(apart(mixed(6.0, 20.0), PrefillPolicy.SLACK), engine_model=engines)
        plant.run(20.0)
        assert any(one.engine.inflight_tokens > 0.0 for one in plant.pools["decode"].ready)
        plant.finish()
        for pool in plant.pools.values():
            for one in pool.ready:
                assert one.engine.backlog_seconds == pytest.approx(0.0, abs=1e-9)
                assert one.engine.inflight_tokens == 0.0


def test_both_kinds_of_engines_come_to_the_same() -> None:
    scenario = apart(mixed(6.0, 20.0), PrefillPolicy.SLACK, seconds=20.0)
    one, other = (
        run_controller(scenario, ScheduleController([]), engine_model=kind)
        for kind in (EngineModelKind.AGGREGATED, EngineModelKind.TOKEN_LEVEL)
    )
    assert one.request_table.computed_at_decode == other.request_table.computed_at_decode
    assert one.request_table.first == pytest.approx(other.request_table.first, abs=1e-6)
    assert one.request_table.end == pytest.approx(other.request_table.end, abs=1e-6)


def test_decode_engines_take_what_too_few_prefill_engines_cannot() -> None:
    load = mixed(7.0, 120.0)
    away, ours = (fixed(apart(load, how, 1, 3, 120.0)) for how in (PrefillPolicy.APART, PrefillPolicy.SLACK))
    assert away.attainment < 0.5
    assert ours.attainment > 0.9


def test_what_a_crash_sends_again_is_decided_again() -> None:
    scenario = replace(apart(mixed(7.0, 60.0), PrefillPolicy.SLACK), faults=PlantFaults(crashes=(20.0, 40.0)))
    outcome = fixed(scenario)
    ended = sum(end >= 0.0 for end in outcome.request_table.end)
    assert ended + outcome.abandoned + outcome.lost == outcome.requests
