"""Retry policy: when a request may be sent to another instance, and how long its attempt waits.

Retries that add load are limited to a share of the requests, so that they cannot amplify an
overload. The share holds for all requests together and for those of each caller, so that no caller
uses up the retries of others. This applies after error responses, overload and stalls. A refused
connection or a crash costs the other instances nothing extra, so that retry is free: an instance
that crashes under load loses no request.

A request is never retried after its first byte, after an error of the client (4xx), or once two
instances have crashed on it.

The stall timeout of an attempt: the time that it waits for an instance that sends nothing.

- The instance sends to other requests: until the deadline.
- It sends to none, and the request is a plain one: as long as its engine computes. Where that is
  unknown, as long as such answers take.
- It sends to none, and another instance can take the request: `soft_seconds`.
- It sends to none, no other instance can take the request, but another model of its route can:
  until it is known to hang.
- It sends to none, and nothing else can take the request: until the deadline.

Computes `Retry-After`, in whole seconds from 1.

- No instance is ready, but one is starting: the mean startup time of the model, less the time since
  that instance began to start.
- All instances are full: the backlog of the least busy one.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from fairlead.fleet.model import Fleet, Instance, InstanceState
from fairlead.limits import Limits
from fairlead_gateway.caller_key import ANONYMOUS, Caller, CallerKey
from fairlead_gateway.errors import NO_RETRY, AdapterNotLoaded, EngineFailed, EngineTimeout, GatewayError, Overloaded
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.upstream.connection import LOCAL_CAUSES, EndpointActivity

MAX_REFUSALS: Final = 64
"""Limit: attempts of one request, with those that are refused: each costs a decision, and a fleet
has thousands.
"""
RETRY_CALLERS: Final = 1_024
"""Limit: callers whose retries are counted apart in a worker; the idle one is dropped."""
MAX_RETRY_AFTER_SECONDS: Final = 60.0
"""Limit: longest Retry-After in a response."""

_WINDOW_SECONDS: Final = 10
MIN_RETRIES: Final = 10
"""Retries in ten seconds that need no share of the requests. An engine that drains or hangs ends as
many answers at once as it computes, and a small installation has few other requests.
"""
MAX_CRASHES: Final = 2
"""Instances that may break off on a request before it ends."""
ADAPTER_LOAD: Final = "adapter-load"
"""The instance did not load the request's adapter."""
ADAPTER_SLOTS: Final = "adapter-slots"
"""All slots of the instance hold adapters with requests in flight."""
ADAPTER_MISSING: Final = "adapter-missing"
"""The instance had the adapter no longer when the request came."""
DOWNLOAD_FAILED: Final = "adapter-download"
"""The downloader of the instance's pod did not answer, or could not reach the source."""
DOWNLOAD_REFUSALS: Final = {
    "source_not_found": "adapter-source-not-found",
    "credentials_refused": "adapter-credentials-refused",
    "digest_mismatch": "adapter-digest-mismatch",
    "invalid_content": "adapter-invalid-content",
    "no_room": "adapter-no-room",
}
"""The causes of failed downloads, by the downloader's code."""
FIELD_REFUSED: Final = "field-refused"
"""The instance refuses a field that the gateway added to the request."""
TOKENS_REFUSED: Final = "tokens-refused"
"""The instance refuses to send token ids, for which the gateway has asked."""
_REFUSED_FIELDS: Final = (FIELD_REFUSED, TOKENS_REFUSED)
_QUICK_CAUSES: Final = ("refused", ADAPTER_MISSING, *_REFUSED_FIELDS)
_ADAPTER_CAUSES: Final = frozenset(
    {ADAPTER_LOAD, ADAPTER_SLOTS, ADAPTER_MISSING, DOWNLOAD_FAILED, *DOWNLOAD_REFUSALS.values()}
)

_DEFAULT_SECONDS = 2
_SMOOTHING = 0.3

_MAX_MODELS: Final = 1_024
_ENOUGH_ANSWERS: Final = 16
_FADING: Final = 0.98
"""The share of an answer that each later one leaves: after some 35, it counts half."""


class AttemptFailure(Exception):
    """Raised when an attempt failed before its first byte.

    cause: one word of a closed list.
    crashed: the engine had the request and broke off.
    is_final: another instance would do no better.
    is_overload: the engine is full.
    was_sent: the request reached the engine.
    refusal: the engine's own words, for a client whom no other engine takes.
    retry_after: the seconds for which a full engine asks to wait; None if it does not.
    """

    def __init__(
        self,
        cause: str,
        *,
        crashed: bool = False,
        is_final: bool = False,
        is_overload: bool = False,
        was_sent: bool = True,
        refusal: GatewayError | None = None,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.crashed = crashed
        self.is_final = is_final
        self.is_overload = is_overload
        self.was_sent = was_sent
        self.refusal = refusal
        self.instance_id = ""
        self.retry_after: int | None = None

    @property
    def is_local(self) -> bool:
        return self.cause in LOCAL_CAUSES

    @property
    def is_of_adapter(self) -> bool:
        return self.cause in _ADAPTER_CAUSES

    @property
    def is_no_fault(self) -> bool:
        return self.is_of_adapter or self.cause in _REFUSED_FIELDS

    @property
    def is_exempt_from_budget(self) -> bool:
        return self.crashed or not self.was_sent or self.cause == "gone" or self.is_no_fault


class _RetryCounts:
    """The counts of requests and retries of the last ten seconds."""

    __slots__ = ("_requests", "_retries", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._requests = [0] * _WINDOW_SECONDS
        self._retries = [0] * _WINDOW_SECONDS

    def on_request(self, now: float) -> None:
        """Counts a request."""
        self._advance(now)
        slot, requests = self._second % _WINDOW_SECONDS, self._requests
        requests[slot] = requests[slot] + 1

    def on_retry(self, now: float) -> None:
        self._advance(now)
        self._retries[self._second % _WINDOW_SECONDS] += 1

    def counts(self, now: float) -> tuple[int, int]:
        self._advance(now)
        return sum(self._requests), sum(self._retries)

    def _advance(self, now: float) -> None:
        second = int(now)
        if second == self._second:
            return
        for passed in range(max(self._second + 1, second - _WINDOW_SECONDS + 1), second + 1):
            self._requests[passed % _WINDOW_SECONDS] = 0
            self._retries[passed % _WINDOW_SECONDS] = 0
        self._second = max(self._second, second)


class RetryBudget:
    """The retries that are left, to each caller and to all.

    Why all have `MIN_RETRIES` more than their share: one caller may take so many without a share,
    and the others keep theirs. A gateway with one caller is bounded by that caller's budget.
    """

    def __init__(self, limits: Limits, max_callers: int = RETRY_CALLERS) -> None:
        self._share: float = limits.retry_share
        self._max_callers = max_callers
        self._total = _RetryCounts()
        self._callers: OrderedDict[CallerKey, _RetryCounts] = OrderedDict()

    def on_request(self, caller: CallerKey, now: float) -> None:
        self._total.on_request(now)
        self._counts(caller).on_request(now)

    def has_left(self, caller: CallerKey, now: float) -> bool:
        """Whether one more retry of the caller is allowed."""
        requests, retries = self._counts(caller).counts(now)
        if retries >= max(MIN_RETRIES, self._share * requests):
            return False
        requests, retries = self._total.counts(now)
        return retries < MIN_RETRIES + self._share * requests

    def take(self, caller: CallerKey, now: float) -> bool:
        """Counts a retry, if one more is allowed; returns whether it is."""
        if not self.has_left(caller, now):
            return False
        self._total.on_retry(now)
        self._counts(caller).on_retry(now)
        return True

    def _counts(self, caller: CallerKey) -> _RetryCounts:
        counts = self._callers.get(caller)
        if counts is None:
            counts = self._callers[caller] = _RetryCounts()
            if len(self._callers) > self._max_callers:
                self._callers.popitem(last=False)
        elif len(self._callers) > 1:
            self._callers.move_to_end(caller)
        return counts


def should_retry(failures: list[AttemptFailure], limits: Limits, max_attempts: int | None = None) -> bool:
    """Whether the failures of a request allow another attempt.

    max_attempts: of the request's model; None for that of `limits`.
    """
    if len(failures) >= MAX_REFUSALS:
        return False
    # Refusals take little time, as do answers of engines that lack an adapter; others are counted.
    attempts = sum(failure.cause not in _QUICK_CAUSES for failure in failures)
    if failures[-1].is_final or attempts >= (limits.max_attempts if max_attempts is None else max_attempts):
        return False
    return sum(failure.crashed for failure in failures) < MAX_CRASHES


def to_client_error(failures: list[AttemptFailure], retry_after_seconds: int = 1) -> GatewayError:
    """Returns the error for a client whose request no engine answered.

    retry_after_seconds: until a full engine should have room.
    """
    attempts = f"{len(failures)} engine{'s' if len(failures) > 1 else ''} tried, last: {failures[-1].cause}"
    if sum(failure.crashed for failure in failures) >= MAX_CRASHES:
        return EngineFailed(
            f"two engines broke off on this request ({attempts})",
            code="engines_broke_off",
            hint="do not send the request again unchanged",
            headers=(NO_RETRY,),
        )
    if failures[-1].is_of_adapter:
        return AdapterNotLoaded(
            f"no engine could load the adapter ({attempts})", hint="try again later", retry_after=retry_after_seconds
        )
    if failures[-1].is_local:
        return Overloaded(
            f"the gateway could not connect to an engine ({attempts})",
            hint="try again later",
            retry_after=retry_after_seconds,
        )
    refusal = failures[-1].refusal
    if refusal is not None:
        return refusal
    if all(failure.is_overload for failure in failures):
        return Overloaded(
            f"all engines that were tried are full ({attempts})",
            hint="try again later",
            retry_after=failures[-1].retry_after or retry_after_seconds,
        )
    if failures[-1].cause == "timeout":
        return EngineTimeout(f"the engine did not answer in time ({attempts})")
    return EngineFailed(f"no engine answered ({attempts})", hint="try again", retry_after=1)


class StartupTimes:
    """The mean startup time of each model's instances, observed in fleet updates."""

    def __init__(self) -> None:
        self._starting_since: dict[str, float] = {}
        self._mean_seconds: dict[str, float] = {}

    def observe_fleet(self, fleet: Fleet, now: float) -> None:
        """Records which instances are starting, and how long newly ready ones have taken."""
        since: dict[str, float] = {}
        for key, instances in fleet.instances.items():
            for instance in instances:
                started_at = self._starting_since.get(instance.id)
                if instance.state is InstanceState.STARTING:
                    since[instance.id] = now if started_at is None else started_at
                elif instance.state is InstanceState.READY and started_at is not None:
                    mean = self._mean_seconds.get(key, now - started_at)
                    self._mean_seconds[key] = mean + _SMOOTHING * (now - started_at - mean)
        self._starting_since = since
        for departed in self._mean_seconds.keys() - fleet.models.keys():
            del self._mean_seconds[departed]

    def retry_after(self, fleet: Fleet, key: str, now: float) -> int:
        """Returns the seconds until an instance of the model should be ready; 2 if unknown."""
        start_times = [
            self._starting_since[instance.id]
            for instance in fleet.instances.get(key, ())
            if instance.id in self._starting_since
        ]
        mean = self._mean_seconds.get(key)
        if not start_times or mean is None:
            return _DEFAULT_SECONDS
        return retry_after_seconds(min(start_times) + mean - now)


def retry_after_seconds(value: float) -> int:
    """Returns the seconds for the header: rounded up, from 1 to `MAX_RETRY_AFTER_SECONDS`."""
    return max(1, min(math.ceil(value), int(MAX_RETRY_AFTER_SECONDS)))


class StallTimeout:
    """The stall timeout of one attempt.

    soft_seconds: seconds without a byte from the whole instance, after which `should_abandon` is
    called, unless `on_silent` grants more.
    answer_seconds: the longest time that a whole answer should take; None if it has no limit.
    instance: the same; set by the creator.
    on_silent: returns how many more seconds a plain answer may take, from the seconds of silence by
    now; set by the creator.
    on_opened: the same for a stream that its engine has opened; set by the creator.
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
        "on_opened",
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
        self.on_opened: Callable[[StallTimeout, float], float] | None = None
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

    def on_silence(self, has_opened: bool) -> float:
        """Returns how many more seconds to wait; 0 to give up.

        has_opened: the engine has opened the stream of the answer.
        """
        received, self._receive_count = self._receive_count, self._activity.receive_count
        now = self._now()
        if received != self._receive_count:
            self._silent_since = now
            return self._seconds_left(now)
        if self.is_exhausted:
            return 0.0
        on_silent = self.on_opened if has_opened else self.on_silent
        if on_silent is not None:
            more = on_silent(self, now - self._silent_since)
            if more > 0.0:
                return min(more, self._deadline - now)
        return 0.0 if self._should_abandon(self) else self._seconds_left(now)

    def silence_seconds(self) -> float:
        """Returns the seconds since the start, 0 if the instance has sent anything since."""
        is_silent = self._activity.receive_count == self._receive_count_at_start
        return self._now() - self._started_at if is_silent else 0.0

    @property
    def is_exhausted(self) -> bool:
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
