"""Replicas of the fleet plant under random plans and faults, and their sleep."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_autoscaler.core.types import SleepTier
from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.autoscaling.pool import SleepTimings, StartupDistribution
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.scenarios import with_sleep_tier

TICK_SECONDS = 5.0
SECONDS = 150.0
REQUESTS = st.lists(
    st.tuples(st.floats(0.0, 140.0), st.integers(1, 4_000), st.integers(1, 300)), min_size=1, max_size=60
)
PLANS = st.dictionaries(st.integers(0, 28), st.integers(0, 5), max_size=6)


def scenario(load: ArrivalTrace, crashes: tuple[float, ...] = (), *, initial: int = 1) -> AutoscalingScenario:
    startup = StartupDistribution(5.0, 20.0, failure_share=0.2)
    setup = reference_pools.reference_pool(reference_pools.small_profile(), initial, startup=startup, minimum=0)
    model = reference_pools.reference_model([setup], 3.0, 0.15)
    return AutoscalingScenario("made", 1, SECONDS, model, (setup,), load, PlantFaults(crashes=crashes))


@settings(max_examples=40, deadline=None)
@given(REQUESTS, PLANS, st.lists(st.floats(1.0, 149.0), max_size=3))
def test_each_request_ends_once_and_cost_is_the_sum_of_lifetimes(
    drawn: list[tuple[float, int, int]], plans: dict[int, int], crashes: list[float]
) -> None:
    arrivals, prompts, outputs = zip(*sorted(drawn), strict=True)
    plant = FleetPlant(scenario(ArrivalTrace(arrivals, prompts, outputs), tuple(crashes)))
    born: dict[str, float] = {}
    seen: dict[str, float] = {}
    for tick in range(int(SECONDS / TICK_SECONDS)):
        now = (tick + 1) * TICK_SECONDS
        plant.run(now)
        for replica in plant.observe().pools["S"].replicas or ():
            born[replica.id] = now - replica.age_seconds
            seen[replica.id] = now
        if tick in plans:
            plant.scale("S", plans[tick])
    plant.finish()
    table, pool = plant.requests, plant.pools["S"]
    ended = sum(end >= 0.0 for end in table.end)
    assert ended + table.abandoned + table.lost == len(arrivals)
    for at, sent, first, end in zip(table.arrival, table.sent, table.first, table.end, strict=True):
        if end >= 0.0:
            assert at <= sent < first <= end
            assert first - at <= 60.0
    # A replica ends at most a tick after it was observed last. Some are never observed.
    observed = sum(seen[name] - at for name, at in born.items())
    unseen = TICK_SECONDS * (len(born) + sum(plans.values()) + 10)
    assert observed - 1e-6 <= pool.replica_seconds <= observed + unseen


def test_a_replica_returns_from_its_sleep_with_an_empty_cache() -> None:
    load = ArrivalTrace([1.0, 100.0, 120.0], [1_000, 2_000, 3_000], [10, 10, 10])
    made = with_sleep_tier(scenario(load), SleepTier(most=2), SleepTimings(wake_seconds=10.0))
    made = replace(made, pools=tuple(replace(setup, startup=StartupDistribution(10.0, 0.0)) for setup in made.pools))
    plant = FleetPlant(made)
    plant.run(30.0)
    plant.scale("S", 0, 1)
    plant.run(50.0)
    observation = plant.observe().pools["S"]
    assert (observation.ready, observation.asleep) == (0, 1)
    plant.scale("S", 1)
    plant.run(150.0)
    assert plant.pools["S"].starts == []
    assert plant.cached_share == pytest.approx(31 * 64 / 6_000)
    assert min(plant.requests.end) > 0.0
