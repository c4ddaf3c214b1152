"""Seeded traffic for the autoscaler's scenarios.

- ``lengths``: prompts and answers, as quantiles
- ``drifting_lengths``: lengths whose means drift within an hour
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
from fairlead_sim.autoscaling.traffic.drifting_lengths import CONVERSATIONS_BY_BLOCK, TrafficBlock, drifting_arrivals
from fairlead_sim.autoscaling.traffic.lengths import (
    CHAT_LENGTHS,
    DOCUMENT_LENGTHS,
    LONG_CHAT_LENGTHS,
    SHORT_CHAT_LENGTHS,
    SHORT_OUTPUT_LENGTHS,
    VERY_LONG_LENGTHS,
    LengthDistribution,
)

__all__ = [
    "CHAT_DAY",
    "CHAT_LENGTHS",
    "CODE_DAY",
    "CONVERSATIONS_BY_BLOCK",
    "DOCUMENT_LENGTHS",
    "LONG_CHAT_LENGTHS",
    "SHORT_CHAT_LENGTHS",
    "SHORT_OUTPUT_LENGTHS",
    "VERY_LONG_LENGTHS",
    "LengthDistribution",
    "TrafficBlock",
    "add_noise",
    "bursty_load",
    "daily_rates",
    "densify",
    "drifting_arrivals",
    "mix_loads",
    "poisson_arrivals",
]
