"""A bound on how long the requests of one caller hold back those of others, until memory is free.

A queued request whose memory fits nowhere holds back all others, so that small requests do not pass
a large one for ever. Among several callers, each may do so for `HOLD_SECONDS` in a row, then not
again for `PAUSE_SECONDS`. Meanwhile the other callers pass its requests.

Why: one prompt as large as a cache, sent again and again, would otherwise stop a model for all
callers.
"""

from collections.abc import Hashable
from typing import Final

HOLD_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 50.0
_MIN_COMPACTED: Final = 64


class MemoryHold:
    """The start of the last hold of each caller."""

    def __init__(self) -> None:
        self._started_at: dict[Hashable, float] = {}

    def may_hold(self, caller: Hashable, now: float) -> bool:
        """Whether a request of the caller holds back the others now; begins a hold if it may."""
        started_at = self._started_at.get(caller)
        if started_at is not None and now - started_at < HOLD_SECONDS + PAUSE_SECONDS:
            return now - started_at < HOLD_SECONDS
        if len(self._started_at) >= _MIN_COMPACTED:
            oldest = now - HOLD_SECONDS - PAUSE_SECONDS
            self._started_at = {known: at for known, at in self._started_at.items() if at > oldest}
        self._started_at[caller] = now
        return True
