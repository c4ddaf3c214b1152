"""How long one attempt waits for an engine that says nothing: long for one that speaks to others, short for a mute one whose
request another engine can take, and to the end where there is no other."""

from collections.abc import Callable

from fairlead.clock import Clock
from fairlead_gateway.retry import Failure
from fairlead_gateway.upstream import Peer


class Patience:
    """One attempt's right to silence. When ``soft`` seconds have passed without a byte from the engine to anybody, ``elsewhere``
    says whether to give it up; without ``soft`` nobody is asked. At ``until`` on the clock the right ends in any case.

    ``key``, ``instance`` and the request's earlier ``failures`` are there for ``elsewhere``, which also notes what it held
    against the engine: ``blamed``."""

    __slots__ = (
        "_begun",
        "_clock",
        "_elsewhere",
        "_heard",
        "_heard_first",
        "_peer",
        "_soft",
        "_until",
        "blamed",
        "failures",
        "instance",
        "key",
    )

    def __init__(
        self,
        peer: Peer,
        soft: float | None,
        until: float,
        clock: Clock,
        elsewhere: "Callable[[Patience], bool]",
        key: str,
        instance: str,
        failures: list[Failure],
    ) -> None:
        self._peer = peer
        self._heard = self._heard_first = peer.heard
        self._begun = clock.now()
        self._soft = soft
        self._until = until
        self._clock = clock
        self._elsewhere = elsewhere
        self.key = key
        self.instance = instance
        self.failures = failures
        self.blamed = False

    def first(self) -> float:
        """Seconds until silence is looked into."""
        left = max(0.0, self._until - self._clock.now())
        return left if self._soft is None else min(left, self._soft)

    def more(self) -> float:
        """Silence has lasted that long: seconds more to wait, 0 to give up."""
        heard, self._heard = self._heard, self._peer.heard
        if heard != self._heard:
            return self.first()
        return 0.0 if self._soft is None or self.exhausted or self._elsewhere(self) else self.first()

    def silence_seconds(self) -> float:
        """Seconds since the request was sent, 0 when the engine has said anything to anybody since."""
        return self._clock.now() - self._begun if self._peer.heard == self._heard_first else 0.0

    @property
    def exhausted(self) -> bool:
        """Nobody has time for another engine."""
        return self._clock.now() >= self._until
