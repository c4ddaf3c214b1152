"""The routing presets by name: their policies, and which of them queue, move or count requests.

The default preset is missing in `POLICIES`: it compares few endpoints and has its own input.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from fairlead.decision import Decision
from fairlead.fleet.model import RoutingPreset
from fairlead_gateway.routing.policies import baselines, dual_hash, preble, published_dualmap
from fairlead_gateway.routing.policies.policy_input import AssignedRequest, PolicyInput, QueueKey

PRESETS: Final = tuple(item.value for item in RoutingPreset)
"""All names, the default first."""
Policy = Callable[[PolicyInput], Decision]

POLICIES: Final[Mapping[str, Policy]] = MappingProxyType(
    {
        "dualmap": published_dualmap.choose,
        "round-robin": baselines.round_robin,
        "least-request": baselines.least_request,
        "session": baselines.session,
        "power-of-two": baselines.power_of_two,
        "chwbl": baselines.chwbl,
        "prefix-cache": baselines.prefix_cache,
        "cache-aware": baselines.cache_aware,
        "llm-d": baselines.llm_d,
        "lmetric": baselines.lmetric,
        "min-ttft": baselines.min_ttft,
        "preble": preble.choose,
    }
)
QUEUE_KEYS: Final[Mapping[str, Callable[[AssignedRequest], QueueKey]]] = MappingProxyType(
    {"dual-hash": dual_hash.queue_sort_key, "dualmap": published_dualmap.queue_sort_key}
)
"""Presets that queue assigned requests, with the sort key of their queues; the smallest
goes first.
"""
QUEUEING_PRESETS: Final = frozenset(QUEUE_KEYS)
REBALANCING_PRESETS: Final = frozenset({"dualmap"})
"""Presets that move assigned requests between instances."""
WINDOWED_PRESETS: Final = frozenset({"preble"})
"""Presets that use the dispatches of the last minutes."""
