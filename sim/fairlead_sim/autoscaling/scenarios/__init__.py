"""The scenarios of the autoscaler benchmark, each from a seed.

- ``construction``: whole scenarios from loads, pools and an SLO
- ``reference_scenarios``: those with goals, in ``SCENARIOS``
- ``wider_scenarios``: further traffic and engine classes, in ``WIDER_SCENARIOS``
"""

from fairlead_sim.autoscaling.scenarios.construction import with_sleep_tier
from fairlead_sim.autoscaling.scenarios.reference_scenarios import (
    AZURE_CONVERSATIONS,
    MOONCAKE_CONVERSATIONS,
    SCENARIOS,
    mixed_shapes,
    smooth_chat,
    smooth_mixed,
    step_cold,
)
from fairlead_sim.autoscaling.scenarios.wider_scenarios import ALL_SCENARIOS, WIDER_SCENARIOS

__all__ = [
    "ALL_SCENARIOS",
    "AZURE_CONVERSATIONS",
    "MOONCAKE_CONVERSATIONS",
    "SCENARIOS",
    "WIDER_SCENARIOS",
    "mixed_shapes",
    "smooth_chat",
    "smooth_mixed",
    "step_cold",
    "with_sleep_tier",
]
