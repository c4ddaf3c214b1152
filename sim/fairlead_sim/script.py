"""What happens to a fleet while it serves: engines are lost, come, are drained, or become slow. A script is a list of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from fairlead_sim.course import Course


class What(StrEnum):
    """Losing takes everything with it; a drained engine ends what it has; a slow one takes so many times as long for a step."""

    LOSE = "lose"
    JOIN = "join"
    DRAIN = "drain"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Happening:
    """At a moment, to one engine by name. ``factor`` is how many times slower it is from then on; 1 is as before."""

    at: float
    what: What
    engine: str
    factor: float = 1.0


def play(script: Sequence[Happening], course: Course) -> None:
    """Let it happen. What cannot (an engine that is not there any more) does not."""
    whole: dict[str, Callable[[Happening, float], None]] = {
        What.LOSE: lambda one, now: course.lose(one.engine, now),
        What.JOIN: lambda one, now: course.join(one.engine, now),
        What.DRAIN: lambda one, now: course.drain(one.engine, now),
        What.SLOW: lambda one, now: course.slow(one.engine, one.factor, now),
    }

    def happen(one: Happening, now: float) -> None:
        if (one.engine in course.cores) != (one.what is What.JOIN):
            whole[one.what](one, now)

    for one in script:
        course.later(one.at, partial(happen, one))


def scaling(first: int, most: int, up: float, down: float) -> tuple[Happening, ...]:
    """Engines ``sim-<first>`` to before ``sim-<most>`` come at ``up`` and are drained at ``down`` (6 → 8 → 6)."""
    names = [f"sim-{index}/0/0" for index in range(first, most)]
    return (
        *[Happening(up, What.JOIN, name) for name in names],
        *[Happening(down, What.DRAIN, name) for name in names],
    )
