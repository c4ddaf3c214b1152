"""How much prefill is still before an engine, when nobody says that it is done.

A stream says when its first token comes; a plain answer says nothing before it is whole, and what other processes sent is known
as a sum alone. So a backlog is also taken to be worked off, at ``PACE`` seconds a second: slower than an engine that does nothing
else, so that it is not given the next prompt while the last is under way. What is told sooner counts at once.
"""

from typing import Final

DECAY_RATE: Final = 0.7


class BacklogDecay:
    """By engine: the sum as it was last told, what is left of it, and when that was."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, float]] = {}

    def remaining_seconds(self, engine: str, reported_seconds: float, now: float) -> float:
        """Seconds of prefill before it ``now``, of ``told_seconds`` that have had no first token yet."""
        if reported_seconds <= 0.0:
            self._known.pop(engine, None)
            return 0.0
        reported, left, at = self._known.get(engine, (0.0, 0.0, now))
        left = max(0.0, left - DECAY_RATE * (now - at)) + max(0.0, reported_seconds - reported)
        left = min(left, reported_seconds)
        self._known[engine] = (reported_seconds, left, now)
        return left
