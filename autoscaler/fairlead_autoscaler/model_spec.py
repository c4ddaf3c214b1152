"""What a replica costs an hour, from what its devices cost."""

from typing import Final

from fairlead.api import AcceleratorClassSpec, Pool

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
