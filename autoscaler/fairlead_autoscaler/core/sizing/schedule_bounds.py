"""Schedule bounds: the bounds of a pool, or those of the schedule that is active now."""

from fairlead_autoscaler.core.types import PoolSpec, ReplicaSchedule

_DAY_SECONDS = 86_400.0


def replica_bounds(pool: PoolSpec, wall: float | None) -> tuple[int, int]:
    """Returns minimum and maximum of `pool`. The first active schedule applies.

    wall: Unix seconds, UTC; None: unknown, so no schedule is active.
    """
    minimum, maximum = pool.minimum, pool.maximum
    if wall is not None:
        active = next((schedule for schedule in pool.schedules if _is_active(schedule, wall)), None)
        if active is not None:
            minimum = active.minimum if active.minimum is not None else minimum
            maximum = active.maximum if active.maximum is not None else maximum
    minimum = max(0, minimum)
    return minimum, max(minimum, maximum)


def _is_active(schedule: ReplicaSchedule, wall: float) -> bool:
    now = wall + schedule.offset_seconds
    weekday = int(now // _DAY_SECONDS + 3) % 7  # 1 January 1970 was a Thursday
    second, start, end = now % _DAY_SECONDS, schedule.start_seconds, schedule.end_seconds
    if start < end:
        return weekday in schedule.days and start <= second < end
    # Across midnight, the hours after it belong to the day on which the interval began.
    return (weekday in schedule.days and second >= start) or ((weekday - 1) % 7 in schedule.days and second < end)
