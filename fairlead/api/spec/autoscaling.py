"""`spec.autoscaling`: the role of the autoscaler, and the bounds of its decisions."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field

from fairlead.api.strict_model import Rule, StrictModel, api_field, api_list, field_error
from fairlead.api.value_types import Choice, CountOrPercent, Int32, Label, PositiveDuration

_TIME_PATTERN = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
_ZONE_PATTERN = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$"

TimeOfDay = Annotated[str, Field(pattern=_TIME_PATTERN, max_length=5)]


class ScalingMode(StrEnum):
    """The autoscaler's role for a model: set replica counts, advise, or nothing."""

    AUTO = "Auto"
    ADVISE = "Advise"
    DISABLED = "Disabled"


class Weekday(StrEnum):
    """A day of the week, in order."""

    MON = "Mon"
    TUE = "Tue"
    WED = "Wed"
    THU = "Thu"
    FRI = "Fri"
    SAT = "Sat"
    SUN = "Sun"


def _check_time_zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (
        ValueError,
        OSError,
        KeyError,
    ):  # an unknown zone raises KeyError, a folder of zones OSError
        raise field_error(f'no time zone is called "{text:.70}"', "write it like UTC or Europe/Berlin") from None
    return text


def _check_mode(value: Any) -> Any:
    """Returns the value of `mode` unchecked, but raises for booleans."""
    if value is False:
        raise field_error(
            "must be one of Auto, Advise, Disabled; YAML reads off and no without quotes as false",
            "write `mode: Disabled`",
        )
    if value is True:
        raise field_error(
            "must be one of Auto, Advise, Disabled; YAML reads on and yes without quotes as true", "write `mode: Auto`"
        )
    return value


TimeZone = Annotated[
    str,
    AfterValidator(_check_time_zone),
    Field(json_schema_extra={"pattern": _ZONE_PATTERN, "minLength": 1, "maxLength": 64}),
]


class Schedule(StrictModel):
    """Other bounds for some hours of the week. They replace the pool's own bounds while active."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.minReplicas) || has(self.maxReplicas)",
            message="a schedule needs minReplicas or maxReplicas",
            fix="add one, for example `minReplicas: 4`",
            violation=lambda schedule: schedule.min_replicas is None and schedule.max_replicas is None,
        ),
        Rule(
            cel="!has(self.minReplicas) || !has(self.maxReplicas) || self.maxReplicas >= self.minReplicas",
            message="maxReplicas is less than minReplicas",
            fix="raise maxReplicas, or lower minReplicas",
            at=("maxReplicas",),
            violation=lambda schedule: (
                schedule.min_replicas is not None
                and schedule.max_replicas is not None
                and schedule.max_replicas < schedule.min_replicas
            ),
        ),
    )

    name: Annotated[Label, api_field("unique within the model", "office-hours")]
    days: list[Choice[Weekday]] = api_field(
        "days on which it begins; left out = every day",
        "[Mon, Tue, Wed, Thu, Fri]",
        default_factory=lambda: list(Weekday),
        min_length=1,
        max_length=7,
        json_schema_extra={"default": [*map(str, Weekday)]},
    )
    begin: Annotated[TimeOfDay, api_field("beginning, 24-hour clock", '"08:00"')]
    end: Annotated[TimeOfDay, api_field("end; if not after begin, it is on the next day", '"20:00"')]
    time_zone: Annotated[TimeZone, api_field("time zone of begin and end", "Europe/Berlin")] = "UTC"
    pool: Annotated[Label | None, api_field("pool to which it applies; left out = all pools", "main")] = None
    min_replicas: Annotated[
        Int32 | None,
        api_field(
            "replaces the pool's minReplicas, and its maxReplicas where that is lower; left out = the pool's",
            "4",
            ge=0,
            le=4096,
        ),
    ] = None
    max_replicas: Annotated[
        Int32 | None,
        api_field(
            "replaces the pool's maxReplicas, and its minReplicas where that is higher; left out = the pool's",
            "16",
            ge=1,
            le=4096,
        ),
    ] = None

    def is_active(self, wall: float) -> bool:
        """Returns True if the schedule applies at this Unix time."""
        local = datetime.fromtimestamp(wall, ZoneInfo(self.time_zone))
        begin, end, now = _minute_of_day(self.begin), _minute_of_day(self.end), local.hour * 60 + local.minute
        weekdays = list(Weekday)
        today = weekdays[local.weekday()] in self.days
        yesterday = weekdays[(local - timedelta(days=1)).weekday()] in self.days
        if begin < end:
            return today and begin <= now < end
        return (today and now >= begin) or (yesterday and now < end)


def _minute_of_day(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])


class ZeroPolicy(StrictModel):
    """Conditions under which a pool whose minReplicas is 0 has no instance."""

    after: Annotated[
        PositiveDuration,
        api_field(
            "shortest time without requests after which a pool has no instance. It keeps one for longer while "
            "another start would cost more than idling. The next request starts an instance",
            "10m",
        ),
    ] = "10m"


class SleepPolicy(StrictModel):
    """Instances that sleep instead of ending. A sleeping instance keeps its process and releases
    its device memory.

    Waking takes seconds; starting takes minutes.
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.max >= self.min",
            message="max is less than min",
            fix="raise max, or lower min",
            at=("max",),
            violation=lambda sleep: sleep.max < sleep.min,
        ),
    )

    min: Annotated[
        Int32,
        api_field(
            "instances that always sleep in addition to the active ones; they are started if needed", "1", ge=0, le=4096
        ),
    ] = 0
    max: Annotated[
        Int32,
        api_field(
            "maximum number of sleeping instances; they count towards the pool's maxReplicas and "
            "`autoscaling.maxReplicas`",
            "2",
            ge=1,
            le=4096,
        ),
    ]
    level: Annotated[
        Int32,
        api_field(
            "1: the weights stay in the host's memory, which must be large enough; 2: they are loaded again",
            "1",
            ge=1,
            le=2,
        ),
    ] = 1
    after: Annotated[
        PositiveDuration | None,
        api_field(
            "an instance that was not needed for this time is removed; left out = once sleeping costs more than "
            "starting again, estimated from start times and earlier idle periods",
            "1h",
        ),
    ] = None


class Autoscaling(StrictModel):
    """Autoscaling of the pools whose maxReplicas is above minReplicas."""

    unique: ClassVar[Mapping[str, str]] = {"schedules": "name"}

    misplaced: ClassVar[Mapping[str, str]] = {"minReplicas": "spec.pools[].minReplicas"}

    mode: Annotated[
        Choice[ScalingMode],
        api_field(
            "Auto: the autoscaler sets replica counts; Advise: it only reports them; Disabled: it does nothing. If "
            "another writer sets a count (`spec.replicas`, `kubectl scale`, an HPA, KEDA), Auto keeps it and reports that",
            "Auto",
        ),
        BeforeValidator(_check_mode),
    ] = ScalingMode.DISABLED
    max_replicas: Annotated[
        Int32 | None,
        api_field(
            "maximum number of instances of all pools together. If more are needed, prefill and decode "
            "share them so that both carry the same part of the load; left out = the sum of the pools' maxReplicas",
            "16",
            ge=1,
            le=4096,
        ),
    ] = None
    stabilization_window: Annotated[
        PositiveDuration | None,
        api_field(
            "a pool keeps the maximum number of instances that it needed within this time; left out = twice "
            "the time of a slow start, from 1m to 5m",
            "5m",
        ),
    ] = None
    step_up: Annotated[
        CountOrPercent | None,
        api_field(
            "maximum number of instances added to a pool per minute, or a percentage of the pool, at least one; "
            "left out = no limit",
            '"100%"',
        ),
    ] = None
    step_down: Annotated[
        CountOrPercent | None,
        api_field(
            "maximum number of instances removed from a pool per minute, or a percentage of the pool, at least "
            "one; left out = no limit",
            "1",
        ),
    ] = None
    zero: Annotated[ZeroPolicy, Field(examples=["{after: 10m}"])] = ZeroPolicy()
    sleep: Annotated[
        SleepPolicy | None,
        api_field("unneeded instances of each pool sleep instead of being removed; VLLM and Sim", "{max: 2}"),
    ] = None
    schedules: list[Schedule] = api_list(
        "other bounds for some hours of the week; of several active ones, the highest bounds apply",
        '[{name: day, begin: "08:00", end: "20:00", minReplicas: 4}]',
        max_length=16,
        key="name",
    )

    def bounds_at(self, pool: str, minimum: int, maximum: int, wall: float) -> tuple[int, int]:
        """Returns the minimum and maximum instances of a pool at this Unix time.

        minimum, maximum: the pool's own bounds.
        """
        active = [schedule for schedule in self.schedules if schedule.pool in (None, pool) and schedule.is_active(wall)]
        low = max((schedule.min_replicas for schedule in active if schedule.min_replicas is not None), default=minimum)
        high = max((schedule.max_replicas for schedule in active if schedule.max_replicas is not None), default=maximum)
        # A schedule with only a max may lower the min; one with only a min may raise the max.
        return (low, max(low, high)) if _sets_minimum(active) else (min(low, high), high)


def _sets_minimum(on: Sequence[Schedule]) -> bool:
    return any(schedule.min_replicas is not None for schedule in on)
