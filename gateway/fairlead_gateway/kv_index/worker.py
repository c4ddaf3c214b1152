"""Applies the corrections of the KV-cache index to a worker's routers."""

from array import array

from fairlead_gateway.kv_index.messages import IndexCorrections
from fairlead_gateway.router_registry import RouterRegistry


def apply_corrections(routers: RouterRegistry, message: IndexCorrections) -> None:
    """Applies the index's corrections of what a model's instances have cached to its routers."""
    for correction in message.corrections:
        removed = tuple(array("Q", correction.removed))
        cached = [tuple(array("Q", chain)) for chain in correction.cached]
        for router in routers.routers(message.model):
            router.apply_correction(correction.instance, correction.forget, removed, cached, correction.tier)
