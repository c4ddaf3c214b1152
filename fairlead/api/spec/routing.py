"""`spec.routing`: the routing policy."""

from typing import Annotated

from pydantic import (
    Field,
)

from fairlead.api.strict_model import StrictModel
from fairlead.fleet.model import RoutingPreset


class Routing(StrictModel):
    """The choice of an instance for each request."""

    preset: Annotated[
        RoutingPreset,
        Field(
            strict=False,
            description="dual-hash: prefers cached prefixes while the TTFT target holds. "
            "round-robin, least-request: ignore cached prefixes. "
            "session: keeps a conversation on one instance. "
            "Others: policies of other routers",
            examples=["dual-hash"],
        ),
    ] = RoutingPreset.DUAL_HASH
