"""The routing core: the choice of an instance for a request, with its reason.

Pure: gateway workers, the fleet simulator and the seams run the same code.

In reading order:

- `request`: the part of a request that routing reads
- `prefix`: prefix hashes, and the instances that cache them
- `load`: endpoints and their in-flight load
- `hash_ring`: the two homes of a prefix
- `candidates`: what a policy compares
- `policies`: the presets
- `accelerator_selection`, `prefill_placement`: parts of the default policy
- `router`: the state between decisions, and the router's callbacks
"""

from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_gateway.routing.policies.registry import PRESETS, QUEUEING_PRESETS
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, prefix_chain
from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.routing.router import ModelRouter

__all__ = ["PRESETS", "QUEUEING_PRESETS", "InstanceLoad", "ModelRouter", "PrefixChain", "RouteRequest", "prefix_chain"]
