"""The stall timeout of an attempt: the time that it waits for an instance that sends nothing.

- The instance sends to other requests: until the deadline.
- It sends to none, and the request is a plain one: as long as its engine computes. Where that is
  unknown, as long as such answers take.
- It sends to none, and another instance can take the request: `soft_seconds`.
- It sends to none, no other instance can take the request, but another model of its route can:
  until it is known to hang.
- It sends to none, and nothing else can take the request: until the deadline.
"""

from collections.abc import Callable
from typing import Final

from fairlead.fleet.model import Instance
from fairlead_gateway.caller_key import ANONYMOUS, Caller
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.upstream.connection import EndpointActivity

_MAX_MODELS: Final = 1_024
_ENOUGH_ANSWERS: Final = 16
_FADING: Final = 0.98
"""The share of an answer that each later one leaves: after some 35, it counts half."""


class StallTimeout:
    """The stall timeout of one attempt.

    soft_seconds: seconds without a byte from the whole instance, after which `should_abandon` is
    called, unless `on_silent` grants more.
    answer_seconds: the longest time that a whole answer should take; None if it has no limit.
    instance: the same; set by the creator with `on_silent`.
    on_silent: returns how many more seconds a plain answer may take, from the seconds of silence by
    now; set by the creator.
    deadline: monotonic seconds at which the attempt ends in any case.
    request, instance_id, failures: the attempt and its request's earlier failures, for
    `should_abandon`.
    caller: whose request it is; set by the creator.
    client: its tenant and API key; set by the creator for requests of routes.
    has_retry: the retry that follows was taken from the budget already.
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
        "_silent_since",
        "_started_at",
        "answer_seconds",
        "caller",
        "client",
        "failures",
        "has_retry",
        "instance",
        "instance_id",
        "is_counted",
        "on_silent",
        "request",
        "soft_seconds",
    )

    def __init__(
        self,
        activity: EndpointActivity,
        soft_seconds: float,
        deadline: float,
        now: Callable[[], float],
        should_abandon: "Callable[[StallTimeout], bool]",
        request: ModelRequest,
        instance_id: str,
        failures: list[AttemptFailure],
    ) -> None:
        self._activity = activity
        self._receive_count = self._receive_count_at_start = activity.receive_count
        self._started_at = self._silent_since = 0.0
        self.soft_seconds = soft_seconds
        self.answer_seconds: float | None = None
        self.on_silent: Callable[[StallTimeout, float], float] | None = None
        self._deadline = deadline
        self._now = now
        self._should_abandon = should_abandon
        self.request = request
        self.caller = ANONYMOUS
        self.client: Caller | None = None
        self.instance: Instance | None = None
        self.instance_id = instance_id
        self.failures = failures
        self.has_retry = self.is_counted = False

    def start(self, now: float) -> float:
        """Starts when the request is sent; returns the seconds until `on_silence` is due."""
        self._started_at = self._silent_since = now
        return self._seconds_left(now)

    def on_silence(self) -> float:
        """Returns how many more seconds to wait; 0 to give up."""
        received, self._receive_count = self._receive_count, self._activity.receive_count
        now = self._now()
        if received != self._receive_count:
            self._silent_since = now
            return self._seconds_left(now)
        if self.is_exhausted:
            return 0.0
        if self.on_silent is not None:
            more = self.on_silent(self, now - self._silent_since)
            if more > 0.0:
                return min(more, self._deadline - now)
        return 0.0 if self._should_abandon(self) else self._seconds_left(now)

    def silence_seconds(self) -> float:
        """Returns the seconds since the start, 0 if the instance has sent anything since."""
        is_silent = self._activity.receive_count == self._receive_count_at_start
        return self._now() - self._started_at if is_silent else 0.0

    @property
    def is_exhausted(self) -> bool:
        """Whether no time is left for another instance."""
        return self._now() >= self._deadline

    def _seconds_left(self, now: float) -> float:
        # A plain request begins to look at its engine after half of the time.
        soft_seconds = self.soft_seconds if self.on_silent is None else self.soft_seconds / 2.0
        return max(0.0, min(self._deadline - now, soft_seconds))


class LongestAnswer:
    """The longest plain answer of a model of late, in seconds, and how many there were."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count: int = 0
        self.seconds: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether there were enough answers to go by."""
        return self.count >= _ENOUGH_ANSWERS


class AnswerTimes:
    """The time that plain answers of each model take: the longest one of late."""

    __slots__ = ("_longest",)

    def __init__(self) -> None:
        self._longest: dict[str, LongestAnswer] = {}

    def learn(self, model_key: str, seconds: float) -> None:
        """Counts an answer. The longest one fades, so that others replace it in time."""
        longest = self._longest.get(model_key)
        if longest is None:
            if len(self._longest) >= _MAX_MODELS:
                self._longest.clear()
            longest = self._longest[model_key] = LongestAnswer()
        longest.count = longest.count + 1  # not `+=`, which mypyc adds as objects
        faded = longest.seconds * _FADING
        longest.seconds = seconds if seconds > faded else faded

    def of(self, model_key: str) -> LongestAnswer:
        """Returns the longest of the last answers; of none, 0 seconds."""
        return self._longest.get(model_key) or LongestAnswer()
