"""The room of an instance for copies: work of clients goes before them."""

from typing import Final

from fairlead.fleet.model import Instance
from fairlead_gateway.routing.load.inflight import EndpointLoad

_MAX_KV_SHARE: Final = 0.8
"""Share of an instance's KV cache that requests may fill if one of them is a copy.

Why: an engine without KV blocks puts requests back, those of clients too.
"""


def has_room(
    instance: Instance, load: EndpointLoad, max_backlog_seconds: float, *, tokens: float, copied_seconds: float = 0.0
) -> bool:
    """Returns whether an instance has room for copies.

    load: of the instance, with sibling workers.
    tokens: of a copy that is to be sent; 0 for the copies that are there.
    copied_seconds: the part of the backlog that is of these copies themselves.
    """
    if load.backlog_seconds - copied_seconds > max_backlog_seconds:
        return False
    profile = instance.profile
    return profile is None or load.inflight_tokens + tokens <= _MAX_KV_SHARE * profile.kv_tokens
