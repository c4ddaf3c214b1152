"""`spec.routing`: the routing policy."""

from typing import Annotated, Final

from pydantic import (
    Field,
)

from fairlead.api.strict_model import StrictModel
from fairlead.fleet.model import RoutingPreset

MAX_ATTEMPTS: Final = 10


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
    max_attempts: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_ATTEMPTS,
            description="instances tried for one request before the first byte of its answer, the first included; "
            "refused connections do not count. Left out = 3",
            examples=["1"],
            json_schema_extra={"format": "int32"},
        ),
    ] = None
