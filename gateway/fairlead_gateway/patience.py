"""How long one attempt waits for an engine that says nothing: long for one that speaks to others, short for a mute one."""

from fairlead.clock import Clock
from fairlead_gateway.upstream import Peer


class Patience:
    """One attempt's right to silence. ``soft`` seconds may pass without a byte from the engine to anybody, and the clock
    may reach ``until`` without one for this request; without ``soft`` only the latter counts."""

    __slots__ = ("_begun", "_clock", "_heard", "_heard_first", "_peer", "_soft", "_until")

    def __init__(self, peer: Peer, soft: float | None, until: float, clock: Clock) -> None:
        self._peer = peer
        self._heard = self._heard_first = peer.heard
        self._begun = clock.now()
        self._soft = soft
        self._until = until
        self._clock = clock

    def first(self) -> float:
        """Seconds until silence is looked into."""
        left = max(0.0, self._until - self._clock.now())
        return left if self._soft is None else min(left, self._soft)

    def more(self) -> float:
        """Silence has lasted that long: seconds more to wait, 0 to give up."""
        heard, self._heard = self._heard, self._peer.heard
        return 0.0 if heard == self._heard else self.first()

    def silence_seconds(self) -> float:
        """Seconds since the request was sent, 0 when the engine has said anything to anybody since."""
        return self._clock.now() - self._begun if self._peer.heard == self._heard_first else 0.0

    @property
    def exhausted(self) -> bool:
        """Nobody has time for another engine."""
        return self._clock.now() >= self._until
