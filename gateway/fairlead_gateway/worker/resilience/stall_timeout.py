"""The stall timeout of an attempt: the time that it waits for an instance that sends nothing.

- The instance sends to other requests: until the deadline.
- It sends to none, and another instance can take the request: `soft_seconds`.
- It sends to none, no other instance can take the request, but another model of its route can:
  until it is known to hang.
- It sends to none, and nothing else can take the request: until the deadline.
"""

from collections.abc import Callable

from fairlead_gateway.caller_key import ANONYMOUS, Caller
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.upstream.connection import EndpointActivity


class StallTimeout:
    """The stall timeout of one attempt.

    soft_seconds: seconds without a byte from the whole instance, after which `should_abandon` is
    called; None: never.
    deadline: monotonic seconds at which the attempt ends in any case.
    request, instance_id, failures: the attempt and its request's earlier failures, for
    `should_abandon`.
    caller: whose request it is; set by the creator.
    client: its tenant and API key; set by the creator for requests of routes.
    is_counted: the silence counts as a failure of the instance already.

    Why 8 parameters: one object per attempt, without a second one for its subject.
    """

    __slots__ = (
        "_activity",
        "_deadline",
        "_now",
        "_receive_count",
        "_receive_count_at_start",
        "_should_abandon",
        "_soft_seconds",
        "_started_at",
        "caller",
        "client",
        "failures",
        "instance_id",
        "is_counted",
        "request",
    )

    def __init__(
        self,
        activity: EndpointActivity,
        soft_seconds: float | None,
        deadline: float,
        now: Callable[[], float],
        should_abandon: "Callable[[StallTimeout], bool]",
        request: ModelRequest,
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
        self.request = request
        self.caller = ANONYMOUS
        self.client: Caller | None = None
        self.instance_id = instance_id
        self.failures = failures
        self.is_counted = False

    def start(self, now: float) -> float:
        """Starts when the request is sent; returns the seconds until `on_silence` is due."""
        self._started_at = now
        return self._seconds_left(now)

    def on_silence(self) -> float:
        """Returns how many more seconds to wait; 0 to give up."""
        received, self._receive_count = self._receive_count, self._activity.receive_count
        if received != self._receive_count:
            return self._seconds_left(self._now())
        if self._soft_seconds is None or self.is_exhausted or self._should_abandon(self):
            return 0.0
        return self._seconds_left(self._now())

    def silence_seconds(self) -> float:
        """Returns the seconds since the start, 0 if the instance has sent anything since."""
        is_silent = self._activity.receive_count == self._receive_count_at_start
        return self._now() - self._started_at if is_silent else 0.0

    @property
    def is_exhausted(self) -> bool:
        """Whether no time is left for another instance."""
        return self._now() >= self._deadline

    def _seconds_left(self, now: float) -> float:
        left, soft_seconds = self._deadline - now, self._soft_seconds
        if soft_seconds is not None and soft_seconds < left:
            left = soft_seconds
        return left if left > 0.0 else 0.0
