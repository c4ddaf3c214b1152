"""An estimate of the prefill backlog of instances between reports.

A stream reports its first token. A plain response reports nothing before it is complete, and the
requests of other processes are known only as a sum. So a backlog also decays, at `DECAY_RATE`
seconds per second. A reported decrease counts at once.

Why: the rate is below that of an idle engine. So an instance does not get the next prompt while it
computes the last one.
"""

from typing import Final

DECAY_RATE: Final = 0.7
MIN_BACKLOG_SECONDS: Final = 0.005
"""With less, by its profile, an instance answers at once: late binding does not count it as busy.

Why: a wait would cost more than the order of so little work gains.
"""


class _Backlog:
    """The backlog of one instance: the last report, the estimated rest, and the time of both."""

    __slots__ = ("at", "estimated_seconds", "reported_seconds")

    def __init__(self, seconds: float, now: float) -> None:
        self.reported_seconds = self.estimated_seconds = seconds
        self.at = now


class BacklogDecay:
    """The backlog of each instance that has any."""

    def __init__(self) -> None:
        self._known: dict[str, _Backlog] = {}

    def remaining_seconds(self, engine: str, reported_seconds: float, now: float) -> float:
        """Returns the estimated seconds of prefill that wait at an instance.

        reported_seconds: prefill sent there that has had no first token.
        """
        known = self._known.get(engine)
        if reported_seconds <= 0.0:
            if known is not None:
                del self._known[engine]
            return 0.0
        if known is None:
            self._known[engine] = _Backlog(reported_seconds, now)
            return reported_seconds
        decayed = max(0.0, known.estimated_seconds - DECAY_RATE * (now - known.at))
        left = min(reported_seconds, decayed + max(0.0, reported_seconds - known.reported_seconds))
        known.reported_seconds, known.estimated_seconds, known.at = reported_seconds, left, now
        return left
