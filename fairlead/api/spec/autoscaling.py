"""``spec.autoscaling``: who decides on the numbers of instances, and what holds those decisions."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fairlead.api.strict_model import Rule, StrictModel, field_error
from fairlead.api.value_types import CountOrPercent, Label, PositiveDuration, check_unique, list_map_schema

_INT32 = {"format": "int32"}
_TIME_PATTERN = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
_ZONE_PATTERN = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$"


class ScalingMode(StrEnum):
    """What the autoscaler does about a model."""

    AUTO = "Auto"
    ADVISE = "Advise"
    OFF = "Off"


class Weekday(StrEnum):
    """A day, in the order of the week."""

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
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError; a folder of zones an OSError
        raise field_error(f'no time zone is called "{text:.70}"', "write it like UTC or Europe/Berlin") from None
    return text


def _check_mode(value: Any) -> Any:
    """YAML of before 2009, which most tools still read, has ``Off`` for false."""
    if value is False:
        raise field_error(
            "must be one of Auto, Advise, Off; YAML reads Off without quotes as false", 'write `mode: "Off"`'
        )
    if value is True:
        raise field_error(
            "must be one of Auto, Advise, Off; YAML reads on and yes without quotes as true", "write `mode: Auto`"
        )
    return value


TimeOfDay = Annotated[str, Field(pattern=_TIME_PATTERN, max_length=5)]
TimeZone = Annotated[
    str,
    AfterValidator(_check_time_zone),
    Field(json_schema_extra={"pattern": _ZONE_PATTERN, "minLength": 1, "maxLength": 64}),
]


class Schedule(StrictModel):
    """Other bounds for some hours of the week. They stand instead of the pool's own while it is on."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.min) || has(self.max)",
            message="a schedule needs a min or a max",
            fix="add one, for example `min: 4`",
            violation=lambda one: one.min is None and one.max is None,
        ),
        Rule(
            cel="!has(self.min) || !has(self.max) || self.max >= self.min",
            message="max is less than min",
            fix="raise max, or lower min",
            at=("max",),
            violation=lambda one: one.min is not None and one.max is not None and one.max < one.min,
        ),
    )

    name: Annotated[Label, Field(description="unique within the model", examples=["office-hours"])]
    days: list[Annotated[Weekday, Field(strict=False)]] = Field(
        default_factory=lambda: list(Weekday),
        min_length=1,
        max_length=7,
        description="on which it begins; left out = every day",
        examples=["[Mon, Tue, Wed, Thu, Fri]"],
        json_schema_extra={"default": [*map(str, Weekday)]},
    )
    begin: Annotated[TimeOfDay, Field(description="when it begins, of 24 hours", examples=['"08:00"'])]
    end: Annotated[
        TimeOfDay,
        Field(description="when it ends; one that is not after begin is of the next day", examples=['"20:00"']),
    ]
    time_zone: Annotated[
        TimeZone, Field(description="whose clock begin and end are of", examples=["Europe/Berlin"])
    ] = "UTC"
    pool: Annotated[Label | None, Field(description="of one pool; left out = of every pool", examples=["main"])] = None
    min: Annotated[
        int | None,
        Field(ge=0, le=4096, description="instead of the pool's min", examples=["4"], json_schema_extra=_INT32),
    ] = None
    max: Annotated[
        int | None,
        Field(ge=1, le=4096, description="instead of the pool's max", examples=["16"], json_schema_extra=_INT32),
    ] = None

    def is_active(self, wall: float) -> bool:
        """Does it hold at this Unix time?"""
        here = datetime.fromtimestamp(wall, ZoneInfo(self.time_zone))
        begin, end, now = _minute_of_day(self.begin), _minute_of_day(self.end), here.hour * 60 + here.minute
        weekdays = list(Weekday)
        today = weekdays[here.weekday()] in self.days
        yesterday = weekdays[(here - timedelta(days=1)).weekday()] in self.days
        if begin < end:
            return today and begin <= now < end
        return (today and now >= begin) or (yesterday and now < end)


def _minute_of_day(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])


class ZeroPolicy(StrictModel):
    """When a pool whose min is 0 may have no instance."""

    after: Annotated[
        PositiveDuration,
        Field(description="without a request for so long; the first request starts one again", examples=["10m"]),
    ] = "10m"


class SleepPolicy(StrictModel):
    """How many instances of a pool may sleep instead of ending. One that sleeps keeps its process and gives its device's memory back;
    to serve again takes it seconds, where a start takes minutes."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.max >= self.min",
            message="max is less than min",
            fix="raise max, or lower min",
            at=("max",),
            violation=lambda one: one.max < one.min,
        ),
    )

    min: Annotated[
        int,
        Field(
            ge=0,
            le=4096,
            description="so many sleep beside those that serve, whatever is asked; they are started for it",
            examples=["1"],
            json_schema_extra=_INT32,
        ),
    ] = 0
    max: Annotated[
        int,
        Field(
            ge=1,
            le=4096,
            description="no more than so many; each counts as an instance within the pool's max and `autoscaling.max`",
            examples=["2"],
            json_schema_extra=_INT32,
        ),
    ]
    level: Annotated[
        int,
        Field(
            ge=1,
            le=2,
            description="1: the weights wait in the host's memory, which must hold them; 2: they are loaded anew",
            examples=["1"],
            json_schema_extra=_INT32,
        ),
    ] = 1
    after: Annotated[
        PositiveDuration | None,
        Field(
            description="one that was not needed for so long ends; left out = when sleeping on costs more than starting anew, by how "
            "long that takes and how silences went",
            examples=["1h"],
        ),
    ] = None


class Autoscaling(StrictModel):
    """Who decides on the numbers of instances of the pools whose max is above their min."""

    mode: Annotated[
        ScalingMode,
        Field(
            strict=False,
            description="Auto: the autoscaler sets them; Advise: it only says what it would do; Off: it does nothing. Where "
            "somebody else sets a number (`spec.replicas`, `kubectl scale`, an HPA, KEDA), Auto leaves it alone and says so",
            examples=["Auto"],
        ),
        BeforeValidator(_check_mode),
    ] = ScalingMode.OFF
    max: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="of instances of all pools together, as where accelerators are counted. Where more are wanted, prefill "
            "and decode share them so that both carry the same part of the load; left out = what the pools' max add up to",
            examples=["16"],
            json_schema_extra=_INT32,
        ),
    ] = None
    down_window: Annotated[
        PositiveDuration | None,
        Field(
            description="a pool keeps the most instances that it needed at any moment of so long; left out = what the autoscaler "
            "finds from how long starting takes",
            examples=["5m"],
        ),
    ] = None
    step_up: Annotated[
        CountOrPercent | None,
        Field(
            description="instances that a pool may gain within a minute, or a percentage of it; left out = any",
            examples=['"100%"'],
        ),
    ] = None
    step_down: Annotated[
        CountOrPercent | None,
        Field(
            description="instances that a pool may lose within a minute, or a percentage of it; left out = any",
            examples=["1"],
        ),
    ] = None
    zero: Annotated[ZeroPolicy, Field(examples=["{after: 10m}"])] = ZeroPolicy()
    sleep: Annotated[
        SleepPolicy | None,
        Field(
            description="instances of each pool that are not needed sleep instead of ending; of engines of the kinds vllm and sim",
            examples=["{max: 2}"],
        ),
    ] = None
    schedules: list[Schedule] = Field(
        default_factory=list,
        max_length=16,
        description="other bounds for some hours of the week; of several that are on, the highest min and the highest max hold",
        examples=['[{name: day, begin: "08:00", end: "20:00", min: 4}]'],
        json_schema_extra=list_map_schema("name"),
    )

    @model_validator(mode="after")
    def _check_unique_names(self) -> Self:
        check_unique("schedules", [one.name for one in self.schedules])
        return self

    def bounds_at(self, pool: str, minimum: int, maximum: int, wall: float) -> tuple[int, int]:
        """The bounds of a pool at this Unix time, whose own are ``least`` and ``most``."""
        on = [one for one in self.schedules if one.pool in (None, pool) and one.is_active(wall)]
        low = max((one.min for one in on if one.min is not None), default=minimum)
        high = max((one.max for one in on if one.max is not None), default=maximum)
        # A lone max below the pool's own min is meant to lower it; a lone min above its max to raise it.
        return (low, max(low, high)) if _sets_minimum(on) else (min(low, high), high)


def _sets_minimum(on: Sequence[Schedule]) -> bool:
    return any(one.min is not None for one in on)
