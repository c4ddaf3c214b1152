"""How long one attempt waits for an engine that says nothing: long for one that speaks to others, short for a mute one whose
request another engine can take, and to the end where there is no other."""

from collections.abc import Callable

from fairlead_gateway.retry import Failure
from fairlead_gateway.upstream import Peer


class Patience:
    """One attempt's right to silence. When ``soft`` seconds have passed without a byte from the engine to anybody, ``elsewhere``
    says whether to give it up; without ``soft`` nobody is asked. At ``until`` on the clock the right ends in any case.

    ``key``, ``instance`` and the request's earlier ``failures`` are there for ``elsewhere``, which also notes what it held
    against the engine: ``blamed``."""

    __slots__ = (
        "_begun",
        "_elsewhere",
        "_heard",
        "_heard_first",
        "_now",
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
        now: Callable[[], float],
        elsewhere: "Callable[[Patience], bool]",
        key: str,
        instance: str,
        failures: list[Failure],
    ) -> None:
        self._peer = peer
        self._heard = self._heard_first = peer.heard
        self._begun = 0.0
        self._soft = soft
        self._until = until
        self._now = now
        self._elsewhere = elsewhere
        self.key = key
        self.instance = instance
        self.failures = failures
        self.blamed = False

    def begin(self, now: float) -> float:
        """The request is sent ``now``: seconds until silence is looked into."""
        self._begun = now
        return self._left(now)

    def _left(self, now: float) -> float:
        left, soft = self._until - now, self._soft
        if soft is not None and soft < left:
            left = soft
        return left if left > 0.0 else 0.0

    def more(self) -> float:
        """Silence has lasted that long: seconds more to wait, 0 to give up."""
        heard, self._heard = self._heard, self._peer.heard
        if heard != self._heard:
            return self._left(self._now())
        return 0.0 if self._soft is None or self.exhausted or self._elsewhere(self) else self._left(self._now())

    def silence_seconds(self) -> float:
        """Seconds since the request was sent, 0 when the engine has said anything to anybody since."""
        return self._now() - self._begun if self._peer.heard == self._heard_first else 0.0

    @property
    def exhausted(self) -> bool:
        """Nobody has time for another engine."""
        return self._now() >= self._until
