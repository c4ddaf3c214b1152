"""Schedules: which bounds a pool has at which time."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from fairlead.api.spec.autoscaling import Autoscaling, Schedule
from fairlead.api.v1alpha1 import ModelDeploymentSpec

OFFICE = {
    "name": "office",
    "days": ["Mon", "Fri"],
    "begin": "08:00",
    "end": "20:00",
    "timeZone": "Europe/Berlin",
    "minReplicas": 4,
}
NIGHT = {"name": "night", "days": ["Fri"], "begin": "22:00", "end": "06:00", "maxReplicas": 2}


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("given", "when", "zone", "on"),
    [
        (OFFICE, "2026-11-20T07:59", "Europe/Berlin", False),  # a Friday
        (OFFICE, "2026-11-20T08:00", "Europe/Berlin", True),
        (OFFICE, "2026-11-20T18:59", "UTC", True),
        (OFFICE, "2026-11-20T19:00", "UTC", False),
        (OFFICE, "2026-07-03T18:00", "UTC", False),  # summer: an hour earlier by UTC
        (OFFICE, "2026-11-21T12:00", "UTC", False),  # a Saturday
        (NIGHT, "2026-11-20T21:59", "UTC", False),
        (NIGHT, "2026-11-20T22:00", "UTC", True),
        (NIGHT, "2026-11-21T05:59", "UTC", True),
        (NIGHT, "2026-11-21T06:00", "UTC", False),
        (NIGHT, "2026-11-21T23:00", "UTC", False),
        ({**NIGHT, "begin": "00:00", "end": "00:00"}, "2026-11-20T23:59", "UTC", True),
    ],
)
def test_schedule_uses_its_own_time_zone(given: dict[str, object], when: str, zone: str, on: bool) -> None:
    assert Schedule.model_validate(given).is_active(at(when, zone)) is on


def bounds(*schedules: dict[str, object], pool: str = "main", least: int = 1, most: int = 8) -> tuple[int, int]:
    always = {"begin": "00:00", "end": "00:00"}
    named = [{"name": f"s{n}", **always, **schedule} for n, schedule in enumerate(schedules)]
    return Autoscaling.model_validate({"schedules": named}).bounds_at(pool, least, most, at("2026-11-20T12:00"))


def test_active_schedule_replaces_pool_bounds() -> None:
    assert bounds() == (1, 8)
    assert bounds({"minReplicas": 4}) == (4, 8)
    assert bounds({"maxReplicas": 16}) == (1, 16)
    assert bounds({"minReplicas": 4, "pool": "other"}) == (1, 8)
    assert bounds({"minReplicas": 3}, {"minReplicas": 5, "maxReplicas": 6}) == (5, 6)


def test_bounds_never_cross() -> None:
    assert bounds({"minReplicas": 12}) == (12, 12)
    assert bounds({"maxReplicas": 2}, least=4) == (2, 2)
    assert bounds({"minReplicas": 6}, {"maxReplicas": 2}) == (6, 6)


def test_unknown_time_zone_is_named() -> None:
    with pytest.raises(ValidationError, match='no time zone is called "Mars/Olympus"'):
        Schedule.model_validate({**OFFICE, "timeZone": "Mars/Olympus"})


@pytest.mark.parametrize(
    ("spec", "wakes"),
    [
        ({"pools": [{"minReplicas": 0, "maxReplicas": 4}]}, True),
        ({"pools": [{"minReplicas": 1, "maxReplicas": 4}]}, False),
        ({"pools": [{"minReplicas": 0, "maxReplicas": 4}], "autoscaling": {"mode": "Advise"}}, False),
        ({"pools": [{"minReplicas": 0, "maxReplicas": 4}, {"name": "two", "minReplicas": 1}]}, False),
        (
            {
                "pools": [{"minReplicas": 2, "maxReplicas": 4}],
                "autoscaling": {
                    "mode": "Auto",
                    "schedules": [{"name": "n", "begin": "22:00", "end": "06:00", "minReplicas": 0}],
                },
            },
            True,
        ),
        (
            {
                "pools": [
                    {"role": "Prefill", "minReplicas": 0, "maxReplicas": 4},
                    {"name": "two", "role": "Decode", "minReplicas": 0, "maxReplicas": 4},
                ],
                "kvCache": {"transfer": "NIXL"},
            },
            False,
        ),
    ],
)
def test_only_models_that_may_have_no_instance_scale_from_zero(spec: dict[str, Any], wakes: bool) -> None:
    pools = [{"name": f"p{n}", "acceleratorClassName": "nvidia-l4"} | pool for n, pool in enumerate(spec["pools"])]
    given = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "autoscaling": {"mode": "Auto"}} | spec | {"pools": pools}
    assert ModelDeploymentSpec.model_validate(given).scales_from_zero is wakes
