"""Seeded traffic for the autoscaler's scenarios.

- ``lengths``: prompts and answers, as quantiles
- ``arrivals``: rates over a day, noise, bursts, and loads made of other loads
"""

from fairlead_sim.autoscaling.traffic.arrivals import (
    CHAT_DAY,
    CODE_DAY,
    add_noise,
    bursty_load,
    daily_rates,
    densify,
    mix_loads,
    poisson_arrivals,
)
from fairlead_sim.autoscaling.traffic.lengths import (
    CHAT_LENGTHS,
    DOCUMENT_LENGTHS,
    SHORT_CHAT_LENGTHS,
    SHORT_OUTPUT_LENGTHS,
    VERY_LONG_LENGTHS,
    LengthDistribution,
)

__all__ = [
    "CHAT_DAY",
    "CHAT_LENGTHS",
    "CODE_DAY",
    "DOCUMENT_LENGTHS",
    "SHORT_CHAT_LENGTHS",
    "SHORT_OUTPUT_LENGTHS",
    "VERY_LONG_LENGTHS",
    "LengthDistribution",
    "add_noise",
    "bursty_load",
    "daily_rates",
    "densify",
    "mix_loads",
    "poisson_arrivals",
]
