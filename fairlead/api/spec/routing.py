"""`spec.routing`: the routing policy."""

from typing import Annotated, Final

from fairlead.api.strict_model import StrictModel, api_field
from fairlead.api.value_types import Choice, Int32
from fairlead.fleet.model import ModelRouting, RoutingPreset, StreamResume

MAX_ATTEMPTS: Final = 10


class Routing(StrictModel):
    """The choice of an instance for each request."""

    preset: Annotated[
        Choice[RoutingPreset],
        api_field(
            "dual-hash: prefers cached prefixes while the TTFT target holds. "
            "round-robin, least-request: ignore cached prefixes. "
            "session: keeps a conversation on one instance. "
            "Others: policies of other routers",
            "dual-hash",
        ),
    ] = RoutingPreset.DUAL_HASH
    max_attempts: Annotated[
        Int32 | None,
        api_field(
            "instances tried for one request before the first byte of its answer, the first included; "
            "refused connections do not count. Left out = 3",
            "1",
            ge=1,
            le=MAX_ATTEMPTS,
        ),
    ] = None
    resume: Annotated[
        Choice[StreamResume] | None,
        api_field(
            "Auto: a stream whose engine ends goes on at another engine, and tool calls are sent when they are whole. "
            "Never: it ends with an error event, and tool calls are sent in parts. Left out = Auto",
            "Never",
        ),
    ] = None

    def to_routing(self) -> ModelRouting:
        return ModelRouting(**self.model_dump(exclude_none=True))
