"""A model on two kinds of accelerator, scaled for two hours: with the mix, without it, and on one
kind alone.

The plant is the simulator's, with the profiles and prices of the roofline table for L4 and H100,
which differ most. The traffic is short chat and a fifth of documents. The gateway routes by shape,
as the real one does, or by load alone.
"""

from dataclasses import replace

from fairlead_autoscaler.core import ScalingCore
from fairlead_autoscaler.mix import simulation_solver
from fairlead_bench.mix.roofline import price_lists
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, run_controller
from fairlead_sim.autoscaling.pool import PoolSetup
from fairlead_sim.autoscaling.reference_pools import reference_pool
from fairlead_sim.autoscaling.scenarios import mixed_shapes

PRICES = "hyperscalers"
SMALL, LARGE = "L4", "H100-80GB"
FLEETS = ("mix, by shape", "mean request, by shape", "mix, by load", "mean request, by load", SMALL, LARGE)


def run_fleet(way: str, seed: int) -> ControllerOutcome:
    """Runs the two hours in one of ``WAYS``, or on the only accelerator.

    A way divides the demand among pools and sets the gateway's choice between them.
    """
    pools = (_pool(way, 3, 1),) if way in (SMALL, LARGE) else (_pool(SMALL, 8, 0), _pool(LARGE, 1, 0))
    scenario = replace(mixed_shapes(seed, pools), by_shape=way.endswith("by shape"))
    return run_controller(
        scenario, ScalingCore(scenario.model), solver=simulation_solver() if way.startswith("mix") else None
    )


def _pool(name: str, initial: int, minimum: int) -> PoolSetup:
    one = next(one for one in price_lists()[PRICES] if one.profile.name == name)
    return reference_pool(one.profile, initial, cost=one.cost_per_hour, minimum=minimum, name=name)
