"""How much prefill is still before an engine, when nobody says that it is done.

A stream says when its first token comes; a plain answer says nothing before it is whole, and what other processes sent is known
as a sum alone. So a backlog is also taken to be worked off, at ``PACE`` seconds a second: slower than an engine that does nothing
else, so that it is not given the next prompt while the last is under way. What is told sooner counts at once.
"""

from typing import Final

PACE: Final = 0.7


class Backlogs:
    """By engine: the sum as it was last told, what is left of it, and when that was."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, float]] = {}

    def left(self, engine: str, told_seconds: float, now: float) -> float:
        """Seconds of prefill before it ``now``, of ``told_seconds`` that have had no first token yet."""
        if told_seconds <= 0.0:
            self._known.pop(engine, None)
            return 0.0
        told, left, at = self._known.get(engine, (0.0, 0.0, now))
        left = max(0.0, left - PACE * (now - at)) + max(0.0, told_seconds - told)
        left = min(left, told_seconds)
        self._known[engine] = (told_seconds, left, now)
        return left
