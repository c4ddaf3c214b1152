"""Where a request goes, and why: a pure core that gateway, simulator and seams share.

In the order of a decision: ``prefix`` (what of the prompt counts), ``hotness`` (how deep its key reaches), ``ring`` (its two
homes), ``holdings`` (who has how much of it), ``ledger`` (who is busy), ``presets`` (the rules), and ``router``, which holds
the state between them; ``held`` for presets that keep requests before engines.
"""

from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_gateway.routing.policies.registry import PRESETS, QUEUEING_PRESETS
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, prefix_chain
from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.routing.router import ModelRouter

__all__ = ["PRESETS", "QUEUEING_PRESETS", "InstanceLoad", "ModelRouter", "PrefixChain", "RouteRequest", "prefix_chain"]
