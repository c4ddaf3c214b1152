"""`spec.rollout`: the replacement of instances after a change."""

import math
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.alias_generators import to_snake

from fairlead import units
from fairlead.api.strict_model import Rule, StrictModel, api_field
from fairlead.api.value_types import Choice, CountOrPercent, Int32, PositiveDuration

MAX_DRAIN_SECONDS = 24 * 3600.0
MAX_OBSERVE_SECONDS = 24 * 3600.0


class OnMiss(StrEnum):
    """The treatment of a canary that is worse than the running revision."""

    ROLLBACK = "Rollback"
    PAUSE = "Pause"


def _hours_rule(field: str, max_seconds: float) -> Rule:
    """Returns the rule that a duration is at most a day, and written without days."""

    def is_too_long(value: Any) -> bool:
        text = getattr(value, to_snake(field))
        return "d" in text or units.parse_duration(text) > max_seconds

    return Rule(
        # Durations in CEL have no days.
        cel=f"!self.{field}.contains('d') && duration(self.{field}) <= duration('24h')",
        message=f"{field} is at most 24h, without days",
        fix="write it like 10m or 2h30m",
        at=(field,),
        violation=is_too_long,
    )


class Canary(StrictModel):
    """A new revision on instances of its own, judged before it replaces the running one."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.steps.isSorted() && self.steps.all(step, self.steps.exists_one(other, other == step))",
            message="each step is above the one before",
            fix="write them like [10, 50]",
            at=("steps",),
            violation=lambda canary: sorted(set(canary.steps)) != canary.steps,
        ),
        _hours_rule("observe", MAX_OBSERVE_SECONDS),
    )

    steps: list[Annotated[Int32, Field(ge=1, le=99)]] = api_field(
        "percentages of the conversations that the canary gets, one after another",
        "[10, 50]",
        default=[10, 50],
        min_length=1,
        max_length=5,
    )
    observe: Annotated[
        PositiveDuration, api_field("least time of each step, from its first reading of the gateways on", "10m")
    ] = "10m"
    on_miss: Annotated[
        Choice[OnMiss],
        api_field(
            "what happens when the canary misses what the running revision does: it is slower, fails more or "
            "answers otherwise. Rollback: the running revision gets all conversations. "
            "Pause: the canary stays at its step until you decide",
            "Rollback",
        ),
    ] = OnMiss.ROLLBACK

    @property
    def observe_seconds(self) -> float:
        return units.parse_duration(self.observe)


class Rollout(StrictModel):
    """Replacement of instances after a change: new ones start first, old ones end after their last
    request.
    """

    rules: ClassVar[tuple[Rule, ...]] = (_hours_rule("drainTimeout", MAX_DRAIN_SECONDS),)

    max_surge: Annotated[
        CountOrPercent, api_field("instances above a pool's desired number while it is replaced, or a percentage", "1")
    ] = 1
    drain_timeout: Annotated[
        PositiveDuration,
        api_field("time for requests in flight on an instance that is removed; then they are cut off", "5m"),
    ] = "5m"
    paused: Annotated[bool, api_field("changes wait; replica counts are still applied", "true")] = False
    canary: Annotated[
        Canary | None,
        api_field(
            "try a new revision on some conversations first; left out = replace instances at once",
            "{steps: [10, 50], observe: 10m}",
        ),
    ] = None

    def surge_for(self, instances: int) -> int:
        """Returns how many instances above `instances` may run during a rollout; at least one."""
        if isinstance(self.max_surge, int):
            return self.max_surge
        return max(1, math.ceil(instances * int(self.max_surge.removesuffix("%")) / 100))

    @property
    def drain_seconds(self) -> float:
        return units.parse_duration(self.drain_timeout)
