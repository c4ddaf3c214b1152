"""A scenario with a tier of sleeping replicas, for beside the same without."""

from dataclasses import replace

from fairlead_autoscaler.scaling.values import Tier
from fairlead_sim.scaling.plant import Scenario
from fairlead_sim.scaling.pool import Bed


def with_tier(scenario: Scenario, tier: Tier, bed: Bed) -> Scenario:
    """The same load on the same pools, of which each may let replicas sleep as ``tier`` says; how that really goes says ``bed``."""
    pools = tuple(replace(one, facts=replace(one.facts, tier=tier), bed=bed) for one in scenario.pools)
    return replace(scenario, pools=pools, model=replace(scenario.model, pools=tuple(one.facts for one in pools)))
