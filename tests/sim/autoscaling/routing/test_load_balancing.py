"""The gateway's load policies: which replica each prefers, on both engine models."""

from dataclasses import replace
from random import Random

import pytest

from fairlead.fleet.model import Role
from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineFactory, EngineModelKind
from fairlead_sim.autoscaling.plant_engine import StepTotals
from fairlead_sim.autoscaling.pool import Pool
from fairlead_sim.autoscaling.request_table import ArrivalTrace, RequestTable
from fairlead_sim.autoscaling.routing import LoadBalancer, LoadPolicy
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, poisson_arrivals

MODELS = (EngineModelKind.AGGREGATED, EngineModelKind.TOKEN_LEVEL)


def pool(load: ArrivalTrace, replicas: int, model: EngineModelKind, role: Role = Role.SERVE) -> Pool:
    setup = reference_pools.reference_pool(reference_pools.small_profile(), replicas, role=role)
    make = EngineFactory(setup, RequestTable(load, 60.0), StepTotals((1.0,), (1.0,)), model)
    return Pool(setup, make, Random(1))


def picked(policy: LoadPolicy, served: Pool, now: float) -> str:
    best = LoadBalancer(policy, Random(1)).pick([served], now)
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
    balancer, names = LoadBalancer(LoadPolicy.RANDOM_TWO, Random(1)), []
    for _ in range(300):
        best = balancer.pick([served], 15.0)
        assert best is not None
        names.append(best[1].name)
    assert names.count("S-3") == 0  # it has the most in flight, whatever the other is
    assert 70 <= names.count("S-1") <= 130
    assert 170 <= names.count("S-2") <= 230


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


def test_without_a_choice_of_two_the_only_replica_is_taken() -> None:
    load = ArrivalTrace([], [], [])
    assert picked(LoadPolicy.RANDOM_TWO, pool(load, 1, EngineModelKind.AGGREGATED), 0.0) == "S-1"
    empty = pool(load, 0, EngineModelKind.AGGREGATED)
    for policy in LoadPolicy:
        assert LoadBalancer(policy, Random(1)).pick([empty], 0.0) is None


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


def test_random_two_is_drawn_from_the_seed() -> None:
    load = poisson_arrivals([3.0], CHAT_LENGTHS, Random(7))
    setups = (reference_pools.reference_pool(reference_pools.small_profile(), 4),)
    scenario = AutoscalingScenario(
        "policy",
        1,
        60.0,
        reference_pools.reference_model(setups, 3.0, 0.15),
        setups,
        load,
        load_policy=LoadPolicy.RANDOM_TWO,
    )

    def first_tokens(made: AutoscalingScenario) -> list[float]:
        return run_controller(made, ScheduleController([])).request_table.first

    assert first_tokens(scenario) == first_tokens(scenario)
    assert first_tokens(scenario) != first_tokens(replace(scenario, seed=2))
