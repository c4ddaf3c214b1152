"""The routing core: chooses the instance for a request, and says why.

Pure: gateway workers, the fleet simulator and the seams run the same code.

In reading order: `request` and `endpoint` (values), `prefix` (prefix hashes, and which instance
caches them), `load` (in-flight load), `hash_ring` (the two homes) and `policies` (one file per
preset). `router` holds the state between decisions. `candidates` collects what a policy compares.
`session_affinity`, `accelerator_selection`, `kv_pull` and `prefill_placement` are parts of the
default policy. `hooks` are the router's callbacks.
"""

from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_gateway.routing.policies.registry import PRESETS, QUEUEING_PRESETS
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, prefix_chain
from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.routing.router import ModelRouter

__all__ = ["PRESETS", "QUEUEING_PRESETS", "InstanceLoad", "ModelRouter", "PrefixChain", "RouteRequest", "prefix_chain"]
