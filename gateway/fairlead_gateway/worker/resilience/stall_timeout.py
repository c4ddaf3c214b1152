"""How long one attempt waits for an engine that says nothing: long for one that speaks to others, short for a mute one whose
request another engine can take, and to the end where there is no other."""

from collections.abc import Callable

from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.upstream.connection import EndpointActivity


class StallTimeout:
    """One attempt's right to silence. When ``soft`` seconds have passed without a byte from the engine to anybody, ``elsewhere``
    says whether to give it up; without ``soft`` nobody is asked. At ``until`` on the clock the right ends in any case.

    ``key``, ``instance`` and the request's earlier ``failures`` are there for ``elsewhere``, which also notes what it held
    against the engine: ``blamed``."""

    __slots__ = (
        "_activity",
        "_deadline",
        "_now",
        "_receive_count",
        "_receive_count_at_start",
        "_should_abandon",
        "_soft_seconds",
        "_started_at",
        "failures",
        "instance_id",
        "is_counted",
        "model_key",
    )

    def __init__(
        self,
        activity: EndpointActivity,
        soft_seconds: float | None,
        deadline: float,
        now: Callable[[], float],
        should_abandon: "Callable[[StallTimeout], bool]",
        model_key: str,
        instance_id: str,
        failures: list[AttemptFailure],
    ) -> None:
        self._activity = activity
        self._receive_count = self._receive_count_at_start = activity.receive_count
        self._started_at = 0.0
        self._soft_seconds = soft_seconds
        self._deadline = deadline
        self._now = now
        self._should_abandon = should_abandon
        self.model_key = model_key
        self.instance_id = instance_id
        self.failures = failures
        self.is_counted = False

    def start(self, now: float) -> float:
        """The request is sent ``now``: seconds until silence is looked into."""
        self._started_at = now
        return self._seconds_left(now)

    def _seconds_left(self, now: float) -> float:
        left, soft = self._deadline - now, self._soft_seconds
        if soft is not None and soft < left:
            left = soft
        return left if left > 0.0 else 0.0

    def on_silence(self) -> float:
        """Silence has lasted that long: seconds more to wait, 0 to give up."""
        heard, self._receive_count = self._receive_count, self._activity.receive_count
        if heard != self._receive_count:
            return self._seconds_left(self._now())
        return (
            0.0
            if self._soft_seconds is None or self.is_exhausted or self._should_abandon(self)
            else self._seconds_left(self._now())
        )

    def silence_seconds(self) -> float:
        """Seconds since the request was sent, 0 when the engine has said anything to anybody since."""
        return self._now() - self._started_at if self._activity.receive_count == self._receive_count_at_start else 0.0

    @property
    def is_exhausted(self) -> bool:
        """Nobody has time for another engine."""
        return self._now() >= self._deadline
