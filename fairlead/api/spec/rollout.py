"""`spec.rollout`: the replacement of instances after a change."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from fairlead import units
from fairlead.api.strict_model import Rule, StrictModel
from fairlead.api.value_types import CountOrPercent, PositiveDuration

MAX_DRAIN_SECONDS = 24 * 3600.0


class Rollout(StrictModel):
    """Replacement of instances after a change: new ones start first, old ones end after their last
    request.
    """

    renamed: ClassVar[Mapping[str, str]] = {"surge": "maxSurge", "drain": "drainTimeout"}
    planned: ClassVar[frozenset[str]] = frozenset({"canary"})
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            # Durations in CEL have no days.
            cel="!self.drainTimeout.contains('d') && duration(self.drainTimeout) <= duration('24h')",
            message="drainTimeout is at most 24h, without days",
            fix="write it like 10m or 2h30m",
            at=("drainTimeout",),
            violation=lambda rollout: (
                "d" in rollout.drain_timeout or units.parse_duration(rollout.drain_timeout) > MAX_DRAIN_SECONDS
            ),
        ),
    )

    max_surge: Annotated[
        CountOrPercent,
        Field(
            description="instances above a pool's desired number while it is replaced, or a percentage",
            examples=["1"],
        ),
    ] = 1
    drain_timeout: Annotated[
        PositiveDuration,
        Field(
            description="time for requests in flight on an instance that is removed; then they are cut off",
            examples=["5m"],
        ),
    ] = "5m"
    paused: Annotated[bool, Field(description="changes wait; replica counts are still applied", examples=["true"])] = (
        False
    )

    def surge_for(self, instances: int) -> int:
        """Returns how many instances above `instances` may run during a rollout; at least one."""
        if isinstance(self.max_surge, int):
            return self.max_surge
        return max(1, math.ceil(instances * int(self.max_surge.removesuffix("%")) / 100))

    @property
    def drain_seconds(self) -> float:
        """Time that an instance has to finish its requests."""
        return units.parse_duration(self.drain_timeout)
