"""A scenario with a tier of sleeping replicas, for beside the same without."""

from dataclasses import replace

from fairlead_autoscaler.core.types import SleepTier
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import SleepTimings


def with_sleep_tier(scenario: AutoscalingScenario, tier: SleepTier, sleep_timings: SleepTimings) -> AutoscalingScenario:
    """The same load on the same pools, of which each may let replicas sleep as ``tier`` says; how that really goes says ``bed``."""
    pools = tuple(
        replace(setup, facts=replace(setup.facts, tier=tier), sleep_timings=sleep_timings) for setup in scenario.pools
    )
    return replace(scenario, pools=pools, model=replace(scenario.model, pools=tuple(setup.facts for setup in pools)))
