"""What a replica costs an hour, from what its devices cost."""

from collections.abc import Iterable
from typing import Final

from fairlead.api import AcceleratorClassSpec, ModelDeploymentSpec, Pool
from fairlead.fleet.model import SloTargets
from fairlead.units import parse_duration
from fairlead_autoscaler.core import (
    ModelSpec,
    PoolSpec,
    SleepTier,
)

UNPRICED: Final = 1.0
"""Dollars an hour of an accelerator whose class names none: then all cost the same."""


def replica_cost(accelerator: AcceleratorClassSpec | None, pool: Pool) -> float:
    """What one replica of ``pool`` is taken to cost an hour, beside others; ``accelerator`` None: nobody described it."""
    priced = replica_usd(accelerator, pool)
    return UNPRICED if priced is None else priced


def replica_usd(accelerator: AcceleratorClassSpec | None, pool: Pool) -> float | None:
    """Dollars an hour of one replica of ``pool``; None where nobody priced its accelerator."""
    if accelerator is None or accelerator.cost_per_hour is None:
        return None
    return float(accelerator.cost_per_hour) * max(1, accelerator.devices(pool.parallelism) * pool.parallelism.nodes)


def sleep_tier(spec: ModelDeploymentSpec) -> SleepTier | None:
    """Of each of its pools; None where none sleeps."""
    sleep = spec.autoscaling.sleep
    if sleep is None:
        return None
    return SleepTier(sleep.max, sleep.min, sleep.level, None if sleep.after is None else parse_duration(sleep.after))


def scaled_model(
    name: str,
    objectives: SloTargets,
    pools: Iterable[PoolSpec],
    *,
    interval_seconds: float,
    patience_seconds: float | None = None,
    replicas_most: int | None = None,
) -> ModelSpec:
    """A model as the core knows it. Gateways count what was within the objectives, so these are the only edges of the histograms."""
    ttft, itl = objectives.ttft_seconds, objectives.itl_seconds
    return ModelSpec(
        name=name,
        ttft_seconds=ttft,
        itl_seconds=itl,
        pools=tuple(pools),
        target=objectives.target,
        patience_seconds=patience_seconds,
        interval_seconds=interval_seconds,
        ttft_bounds=() if ttft is None else (ttft,),
        itl_bounds=() if itl is None else (itl,),
        ttft_per_kilo_token_seconds=objectives.ttft_per_kilo_token_seconds,
        replicas_most=replicas_most,
    )
