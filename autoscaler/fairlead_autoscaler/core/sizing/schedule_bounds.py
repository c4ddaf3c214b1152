"""Between which numbers a pool may be: its own, or those of the schedule that holds now."""

from fairlead_autoscaler.core.types import PoolSpec

_DAY = 86_400.0


def replica_bounds(pool: PoolSpec, wall: float | None) -> tuple[int, int]:
    """Least and most replicas of ``pool`` at ``wall`` (seconds since 1970, UTC; None where that is not known: no schedule holds
    then). Of several schedules that hold, the first counts."""
    least, most = pool.minimum, pool.maximum
    if wall is not None:
        local = [(each, wall + each.offset_seconds) for each in pool.schedules]
        for schedule, now in local:
            weekday = int(now // _DAY + 3) % 7  # the first of January 1970 was a Thursday
            if _is_active(schedule.days, schedule.start_seconds, schedule.end_seconds, weekday, now % _DAY):
                least = schedule.minimum if schedule.minimum is not None else least
                most = schedule.maximum if schedule.maximum is not None else most
                break
    least = max(0, least)
    return least, max(least, most)


def _is_active(days: frozenset[int], start: float, end: float, weekday: int, second: float) -> bool:
    if start < end:
        return weekday in days and start <= second < end
    # Over midnight: the part after it belongs to the day on which it began.
    return (weekday in days and second >= start) or ((weekday - 1) % 7 in days and second < end)
