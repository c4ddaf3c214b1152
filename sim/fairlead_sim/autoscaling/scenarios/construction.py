"""Functions that make scenarios from loads, pools and an SLO, and that let replicas sleep."""

import math
from dataclasses import replace
from random import Random
from typing import Final

from fairlead.fleet.model import SloTargets
from fairlead_autoscaler.core.types import SleepTier
from fairlead_sim.autoscaling import traffic as loads
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import PoolSetup, SleepTimings, StartupDistribution
from fairlead_sim.autoscaling.reference_pools import COLD_START, reference_model, reference_pool, small_profile
from fairlead_sim.autoscaling.request_table import ArrivalTrace

CHAT_SLO: Final = SloTargets(ttft_seconds=3.0, itl_seconds=0.15)
_HOUR_SECONDS = 3600.0
_MINUTE_NOISE, _MINUTE_MEMORY = 0.06, 0.3


def slo_targets(ttft: float, itl: float) -> SloTargets:
    """Returns an SLO of these latencies, in seconds."""
    return SloTargets(ttft_seconds=ttft, itl_seconds=itl)


def make_scenario(
    name: str, seed: int, hours: float, load: ArrivalTrace, pools: list[PoolSetup], slo: SloTargets
) -> AutoscalingScenario:
    """Returns a scenario without faults whose gateway has the default policy."""
    model = reference_model(pools, slo.ttft_seconds, slo.itl_seconds)
    return AutoscalingScenario(name, seed, hours * _HOUR_SECONDS, model, tuple(pools), load)


def chat_scenario(
    name: str, seed: int, begin: float, hours: int, mean: float, startup: StartupDistribution = COLD_START
) -> AutoscalingScenario:
    """Returns ``hours`` of the day of conversations, from hour ``begin``.

    mean: requests per second over the whole day.
    """
    random_ = Random(f"{name} {seed}")
    day = loads.daily_rates(loads.CHAT_DAY, 24 * 60, mean)
    rates = with_minute_noise(day[int(begin * 60) : int(begin * 60) + hours * 60], random_)
    load = loads.poisson_arrivals(rates, loads.CHAT_LENGTHS, random_)
    pool = reference_pool(small_profile(), math.ceil(rates[0]), startup=startup)
    return make_scenario(name, seed, hours, load, [pool], CHAT_SLO)


def with_minute_noise(rates: list[float], random_: Random) -> list[float]:
    """Returns the rates of minutes with the noise of Azure's hour of conversations."""
    return loads.add_noise(rates, random_, sigma=_MINUTE_NOISE, memory=_MINUTE_MEMORY)


def duration_hours(load: ArrivalTrace) -> float:
    """Returns the hours until the last arrival, in whole minutes."""
    return math.ceil(load.arrivals[-1] / 60.0) / 60.0


def with_sleep_tier(scenario: AutoscalingScenario, tier: SleepTier, sleep_timings: SleepTimings) -> AutoscalingScenario:
    """Returns the scenario with pools whose replicas may sleep.

    - tier: what the autoscaler may do.
    - sleep_timings: how the replicas behave.
    """
    pools = tuple(
        replace(setup, facts=replace(setup.facts, tier=tier), sleep_timings=sleep_timings) for setup in scenario.pools
    )
    return replace(scenario, pools=pools, model=replace(scenario.model, pools=tuple(setup.facts for setup in pools)))
