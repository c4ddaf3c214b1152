"""The gateway's rules on the plant: prefill placement, accelerators by shape, and load."""

from dataclasses import replace
from functools import cache
from random import Random

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role
from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineFactory, EngineModelKind, Plant, PlantFaults
from fairlead_sim.autoscaling.plant_engine import StepTotals
from fairlead_sim.autoscaling.pool import Pool
from fairlead_sim.autoscaling.reference_pools import reference_pool
from fairlead_sim.autoscaling.request_table import ArrivalTrace, RequestTable
from fairlead_sim.autoscaling.routing import LoadBalancer, LoadPolicy, PrefillPolicy
from fairlead_sim.autoscaling.scenarios import mixed_shapes
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, poisson_arrivals
from fairlead_testing.pytest_hooks.nightly import shortened


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
            name: sum([replica.engine.totals.prompt_tokens for replica in pool.ready])
            for name, pool in plant.pools.items()
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
        assert any(replica.engine.inflight_tokens > 0.0 for replica in plant.pools["decode"].ready)
        plant.finish()
        for pool in plant.pools.values():
            for replica in pool.ready:
                assert replica.engine.backlog_seconds == pytest.approx(0.0, abs=1e-9)
                assert replica.engine.inflight_tokens == 0.0


def test_both_kinds_of_engines_come_to_the_same() -> None:
    scenario = apart(mixed(6.0, 20.0), PrefillPolicy.SLACK, seconds=20.0)
    outcome, other = (
        run_controller(scenario, ScheduleController([]), engine_model=kind)
        for kind in (EngineModelKind.AGGREGATED, EngineModelKind.TOKEN_LEVEL)
    )
    assert outcome.request_table.computed_at_decode == other.request_table.computed_at_decode
    assert outcome.request_table.first == pytest.approx(other.request_table.first, abs=1e-6)
    assert outcome.request_table.end == pytest.approx(other.request_table.end, abs=1e-6)


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


SECONDS = shortened(400.0, 200.0)


@cache
def scenario(*, by_shape: bool, large: int = 1, seconds: float = SECONDS) -> AutoscalingScenario:
    """Returns some minutes in front of small engines and one large engine."""
    case = mixed_shapes(
        3,
        [
            reference_pool(builtin_profile("l4-qwen8b"), 8),
            reference_pool(builtin_profile("h100-llama8b"), large, minimum=0),
        ],
    )
    count = sum(at < seconds for at in case.load.arrivals)
    load = ArrivalTrace(case.load.arrivals[:count], case.load.prompts[:count], case.load.outputs[:count])
    return replace(case, seconds=seconds, load=load, by_shape=by_shape)


def served(case: AutoscalingScenario) -> ControllerOutcome:
    """Returns the outcome with the initial replicas."""
    return run_controller(case, ScheduleController([]))


def test_routing_by_shape_keeps_more_objectives() -> None:
    apart, together = (served(scenario(by_shape=by_shape)) for by_shape in (True, False))
    assert apart.requests == together.requests > 7.5 * SECONDS
    assert apart.attainment >= 0.994
    assert together.attainment < apart.attainment
    assert served(scenario(by_shape=True)).request_table.first == apart.request_table.first, "equal scenarios are equal"


def test_where_only_one_kind_is_ready_shape_is_no_matter() -> None:
    outcome, other = (served(scenario(by_shape=each, large=0, seconds=40.0)) for each in (True, False))
    assert outcome.request_table.first == other.request_table.first


MODELS = (EngineModelKind.AGGREGATED, EngineModelKind.TOKEN_LEVEL)


def pool(load: ArrivalTrace, replicas: int, model: EngineModelKind, role: Role = Role.SERVE) -> Pool:
    setup = reference_pools.reference_pool(reference_pools.small_profile(), replicas, role=role)
    make = EngineFactory(setup, RequestTable(load, 60.0), StepTotals((1.0,), (1.0,)), model)
    return Pool(setup, make, Random(1))


def picked(policy: LoadPolicy, served: Pool, now: float) -> str:
    best = LoadBalancer(policy).pick([served], now)
    assert best is not None
    return best[1].name


@pytest.mark.parametrize("model", MODELS)
def test_each_policy_prefers_what_it_counts_as_least(model: EngineModelKind) -> None:
    # S-1 decodes two long contexts, S-2 computes a prompt, S-3 decodes three short ones.
    load = ArrivalTrace([0.0] * 6, [9_000, 9_000, 3_000, 10, 10, 10], [600] * 6)
    served = pool(load, 3, model)
    for request, place in enumerate((0, 0, 1, 2, 2, 2)):
        if place != 1:
            served.ready[place].engine.add(request, 0.0)
    served.ready[0].engine.advance(15.0)
    served.ready[2].engine.advance(15.0)
    served.ready[1].engine.add(2, 15.0)
    assert [replica.engine.uncomputed_tokens() for replica in served.ready] == [0, 3_000, 0]
    assert [replica.engine.running() + replica.engine.waiting() for replica in served.ready] == [2, 1, 3]
    assert picked(LoadPolicy.RESIDENT_KV, served, 15.0) == "S-3"
    assert picked(LoadPolicy.PROMPT_WORK, served, 15.0) == "S-1"


@pytest.mark.parametrize("model", MODELS)
def test_uncomputed_tokens_fall_as_the_prompt_is_computed(model: EngineModelKind) -> None:
    served = pool(ArrivalTrace([0.0, 0.0], [1_200, 700], [5, 5]), 1, model)
    engine = served.ready[0].engine
    engine.add(0, 0.0)
    engine.add(1, 0.0)
    assert engine.uncomputed_tokens() == 1_900
    engine.advance(0.01)  # a step with a chunk of 512
    assert engine.uncomputed_tokens() == 1_900 - 512
    engine.advance(30.0)
    assert engine.uncomputed_tokens() == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_transferred_prompt_is_computed_already(model: EngineModelKind) -> None:
    served = pool(ArrivalTrace([0.0], [1_200], [5]), 1, model, Role.DECODE)
    served.ready[0].engine.add(0, 0.0)
    assert served.ready[0].engine.uncomputed_tokens() == 1


@pytest.mark.parametrize("policy", LoadPolicy)
def test_an_empty_pool_has_no_replica_to_pick(policy: LoadPolicy) -> None:
    assert LoadBalancer(policy).pick([pool(ArrivalTrace([], [], []), 0, EngineModelKind.AGGREGATED)], 0.0) is None


@pytest.mark.parametrize("policy", LoadPolicy)
def test_both_engine_models_come_to_the_same_under_each_policy(policy: LoadPolicy) -> None:
    load = poisson_arrivals([2.0, 4.0], CHAT_LENGTHS, Random(7))
    setups = (reference_pools.reference_pool(reference_pools.small_profile(), 3),)
    scenario = AutoscalingScenario(
        "policy", 1, 120.0, reference_pools.reference_model(setups, 3.0, 0.15), setups, load, load_policy=policy
    )
    quick, exact = (
        run_controller(scenario, ScheduleController([]), engine_model=model).request_table for model in MODELS
    )
    assert quick.first == pytest.approx(exact.first, abs=1e-6)
    assert quick.end == pytest.approx(exact.end, abs=1e-6)
