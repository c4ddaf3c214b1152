"""Model specifications of the core, from the API's objects: costs, sleep tier, targets."""

from collections.abc import Iterable
from typing import Final

from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.fleet.model import SloTargets
from fairlead.units import NANO_USD_PER_USD, parse_duration
from fairlead_autoscaler.core import (
    ModelSpec,
    PoolSpec,
    SleepTier,
)

UNPRICED: Final = 1.0
"""The cost per hour of an accelerator without a price, so that all of them cost the same."""


def replica_cost(accelerator: AcceleratorClassSpec | None, pool: Pool) -> float:
    """Returns the cost of one replica of `pool` per hour, to compare pools; `UNPRICED` without a
    price.

    accelerator: None: its class is unknown.
    """
    priced = replica_usd(accelerator, pool)
    return UNPRICED if priced is None else priced


def replica_usd(accelerator: AcceleratorClassSpec | None, pool: Pool) -> float | None:
    """Returns the price of one replica of `pool` in dollars per hour; None if its accelerator has
    none.
    """
    price = None if accelerator is None else accelerator.replica_nano_usd_per_hour(pool.parallelism)
    return None if price is None else price / NANO_USD_PER_USD


def sleep_tier(spec: ModelDeploymentSpec) -> SleepTier | None:
    """Returns the sleep tier that every pool of the model has; None if no replica sleeps."""
    sleep = spec.autoscaling.sleep
    if sleep is None:
        return None
    return SleepTier(sleep.max, sleep.min, sleep.level, None if sleep.after is None else parse_duration(sleep.after))


def scaled_model(
    name: str,
    targets: SloTargets,
    pools: Iterable[PoolSpec],
    *,
    interval_seconds: float,
    patience_seconds: float | None = None,
    replicas_most: int | None = None,
) -> ModelSpec:
    """Returns the model specification that the core gets.

    The only edges of the histograms are the targets, since gateways count the requests within them.
    """
    ttft, itl = targets.ttft_seconds, targets.itl_seconds
    return ModelSpec(
        name=name,
        ttft_seconds=ttft,
        itl_seconds=itl,
        pools=tuple(pools),
        target=targets.target,
        patience_seconds=patience_seconds,
        interval_seconds=interval_seconds,
        ttft_bounds=() if ttft is None else (ttft,),
        itl_bounds=() if itl is None else (itl,),
        ttft_per_kilo_token_seconds=targets.ttft_per_kilo_token_seconds,
        replicas_most=replicas_most,
        period_seconds=targets.period_seconds,
    )
