"""Where a request goes, and why: a pure core that gateway, simulator and seams share.

In the order of a decision: ``prefix`` (what of the prompt counts), ``hotness`` (how deep its key reaches), ``ring``
(its two homes), ``ledger`` (who is busy), the presets ``dual_hash``, ``simple`` and ``published``, and ``router``, which holds the
state between them.
"""

from fairlead_gateway.routing.ledger import InstanceLoad
from fairlead_gateway.routing.prefix import PrefixChain, prefix_chain
from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.routing.router import PRESETS, ModelRouter

__all__ = ["PRESETS", "InstanceLoad", "ModelRouter", "PrefixChain", "RouteRequest", "prefix_chain"]
