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


class BacklogDecay:
    """The backlog of each instance: the last report, the estimated rest, and the time of the
    report.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, float]] = {}

    def remaining_seconds(self, engine: str, reported_seconds: float, now: float) -> float:
        """Returns the estimated seconds of prefill that wait at an instance.

        reported_seconds: prefill sent there that has had no first token.
        """
        if reported_seconds <= 0.0:
            self._known.pop(engine, None)
            return 0.0
        known = self._known.get(engine)
        left = reported_seconds
        if known is not None:
            reported, estimated, at = known
            left = min(left, max(0.0, estimated - DECAY_RATE * (now - at)) + max(0.0, reported_seconds - reported))
        self._known[engine] = (reported_seconds, left, now)
        return left
