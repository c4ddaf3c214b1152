"""``spec.rollout``: how a change reaches the instances."""

import math
from typing import Annotated, ClassVar

from pydantic import Field

from fairlead import units
from fairlead.api.strict_model import Rule, StrictModel
from fairlead.api.value_types import CountOrPercent, PositiveDuration

MAX_DRAIN_SECONDS = 24 * 3600.0


class Rollout(StrictModel):
    """How a change reaches the instances: new ones first, old ones once those are ready and the last request is done."""

    planned: ClassVar[frozenset[str]] = frozenset({"canary"})
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            # A day is no unit of the server's durations, and more than may be written here in most cases.
            cel="!self.drain.contains('d') && duration(self.drain) <= duration('24h')",
            message="drain is at most 24h, in hours and less",
            fix="write it like 10m or 2h30m",
            at=("drain",),
            violation=lambda one: "d" in one.drain or units.parse_duration(one.drain) > MAX_DRAIN_SECONDS,
        ),
    )

    surge: Annotated[
        CountOrPercent,
        Field(
            description="instances of a pool that may run beyond its number while they are replaced, or a percentage of it",
            examples=["1"],
        ),
    ] = 1
    drain: Annotated[
        PositiveDuration,
        Field(
            description="how long requests in flight may go on at an instance that goes; then they are cut",
            examples=["5m"],
        ),
    ] = "5m"
    paused: Annotated[bool, Field(description="changes wait; numbers of instances still follow", examples=["true"])] = (
        False
    )

    def surge_for(self, instances: int) -> int:
        """How many more than ``instances`` may run; at least one."""
        if isinstance(self.surge, int):
            return self.surge
        return max(1, math.ceil(instances * int(self.surge.removesuffix("%")) / 100))

    @property
    def drain_seconds(self) -> float:
        """``drain`` as a number."""
        return units.parse_duration(self.drain)
