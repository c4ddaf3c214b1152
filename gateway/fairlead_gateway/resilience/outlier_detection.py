"""Outlier detection: the ejection of instances that fail, and their return step by step.

An instance is ejected after three failures in a row, or if half of ten or more responses within ten
seconds failed. A failure is a refused or broken connection, a stall or an unreadable response. Full
engines, 429 and disconnecting clients do not count. Failures that may be the fault of one request
count once they come from several callers or bodies (`FaultEvidence`). The same evidence leaves a
full instance out while others have room: for its Retry-After, else for a second, two, four, eight.

At most half of a model's ready instances are ejected, so that a fault of the network or of the
requests cannot empty a fleet. The ejection time grows with each ejection, and has jitter.

Then one request probes the instance. If it succeeds, the instance *warms up*: its share of requests
grows from a tenth to all. A failure meanwhile ejects it again. The probe is a client's request, or
one of the worker itself (`ejection_prober`).

If the probe fails, and that may be the fault of one caller's request, the worker's own probe
decides at once, without other requests meanwhile. So no caller keeps an instance out that serves
others. Where no probe of the worker decides, three failures do.

A record of an ejection by silence or 5xx lasts until the instance answers. It outlives the pause: a
probe that fails does not reset it. It shows that an engine hangs although its `/health` says 200,
and must be replaced (`fairlead.fleet.hung_engines`). A refused connection ends it: nothing listens,
and what runs the engine sees that itself.

Why no connect timeout: an engine that hangs takes connections. A gateway that cannot connect may be
cut off itself, and a restart of the engine would not help it.

The only ready instance of a model is never ejected. It gets a record instead when its failures
would suffice.

A request can fail on every instance that gets it. So failures that depend on the request count from
two sources on: two callers, or two bodies if no other caller had an answer from the instance
lately. A body that another instance has answered is harmless, so each of its failures is a source.

The module is pure: times are arguments, and the jitter is passed in.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fairlead.limits import Limits
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.telemetry.status_types import HealthState

MAX_EJECTION_SECONDS: Final = 120.0
"""Limit: longest ejection."""

EJECTED_SHARE: Final = 0.5
"""Limit: of a model's ready instances, ejected at the same time at most."""

BREAKER_FAULT_SHARE: Final = 0.5
"""Limit: share of faults among them that ejects the engine."""

BREAKER_WINDOW_RESPONSES: Final = 10
"""Limit: responses of one engine within 10 s that its share of faults needs."""

REQUEST_INDEPENDENT_CAUSES: Final = frozenset({"refused", "connect-timeout", "gone", "tls"})
"""Causes of failures that depend on no request."""
_MAX_REMEMBERED: Final = 8

_SILENCE: Final = "timeout"
_ENDING_CAUSES: Final = frozenset({"refused", "gone"})
_SERVER_ERROR_PREFIX: Final = "status-5"

_WINDOW_SECONDS = 10.0
_MAX_RECENT = 64
_MAX_ANSWERED = 8  # one caller is not to displace the others
_MIN_WARM_UP_SHARE = 0.1
_WORKER_PROBE_SECONDS = 3.0  # until the worker's own probe has begun: it polls every second
_BACKOFF_RESET_SECONDS = 300.0
_CAUSE_TEXTS = {
    "refused": "refusal",
    "connect-timeout": "connect timeout",
    "cut": "broken answer",
    "gone": "silence and refusal",
    "garbage": "unreadable answer",
    "empty": "empty answer",
    "token-refused": "refusal of the gateway's token",
    "error-event": "error event",
    "aborted": "abort",
}
_MAX_FULL_PAUSE_SECONDS: Final = 8.0
MAX_REASONS = 16
_NONE_EJECTED: Mapping[str, str] = {}


class FaultSource(NamedTuple):
    """The request that failed.

    fingerprint: of its body.
    is_harmless: another instance has answered it.
    """

    caller: CallerKey
    fingerprint: bytes
    is_harmless: bool = False


class FaultEvidence:
    """The sources of several failures of one instance."""

    __slots__ = ("_bodies", "_callers", "_harmless_count", "_is_independent_of_requests")

    def __init__(self) -> None:
        self._callers: set[CallerKey] = set()
        self._bodies: set[bytes] = set()
        self._harmless_count = 0
        self._is_independent_of_requests = False

    def add(self, source: FaultSource | None) -> None:
        """Adds a failure.

        source: None if the failure does not depend on the request, such as a refused connection.
        """
        if source is None:
            self._is_independent_of_requests = True
            return
        if len(self._callers) < _MAX_REMEMBERED:
            self._callers.add(source.caller)
        if source.is_harmless:
            self._harmless_count += 1
        elif len(self._bodies) < _MAX_REMEMBERED:
            self._bodies.add(source.fingerprint)

    def is_sufficient(self, min_sources: int, answered: Collection[CallerKey]) -> bool:
        """Whether the failures have enough sources to count against the instance.

        answered: the callers that had an answer from the instance lately.
        """
        if self._is_independent_of_requests or len(self._callers) >= min_sources:
            return True
        if any(caller not in self._callers for caller in answered):
            return False
        return len(self._bodies) + self._harmless_count >= min_sources


@dataclass(slots=True)
class EjectionRecord:
    """One instance that has not answered since it was ejected.

    since: the ejection, in monotonic seconds.
    cause: the failures that led to it, as text.
    failed_probes: one-token probes of this worker that failed since then.
    probed_at: when the last of these probes was sent; None: none was.
    is_probing: a probe has been sent and has not ended.
    has_silence: silence was among the failures.
    """

    since: float
    cause: str
    failed_probes: int = 0
    probed_at: float | None = None
    is_probing: bool = False
    has_silence: bool = True


class EjectionRecords:
    """The ejection records of one worker, by instance.

    on_begin: called when a record begins, or a probe is requested; replaced by the prober.
    """

    def __init__(self, limits: Limits) -> None:
        self.by_instance: dict[str, EjectionRecord] = {}
        self.on_begin: Callable[[], None] = _ignore
        self._after_seconds: float = limits.ejection_probe_after_seconds
        self._interval_seconds: float = limits.ejection_probe_interval_seconds
        self._requested: set[str] = set()
        self._probing: set[str] = set()

    def begin(self, instance: str, causes: Collection[str], text: str, now: float) -> None:
        """Begins a record, unless there is one or no cause can be that of an engine that hangs.

        causes: words of the closed list of failures.
        text: the same failures as text.
        """
        if instance not in self.by_instance and any(is_hang_cause(cause) for cause in causes):
            self.by_instance[instance] = EjectionRecord(now, text, has_silence=_SILENCE in causes)
            self.on_begin()

    @property
    def needs_probes(self) -> bool:
        return bool(self.by_instance or self._requested)

    def request_probe(self, instance: str) -> None:
        self._requested.add(instance)
        self.on_begin()

    def cancel_probe(self, instance: str) -> None:
        self._requested.discard(instance)

    def end(self, instance: str) -> None:
        self.by_instance.pop(instance, None)

    def restart(self, instance: str, now: float) -> None:
        """Restarts the record of an instance that has sent bytes to another request."""
        record = self.by_instance.get(instance)
        if record is not None:
            record.since, record.failed_probes = now, 0

    def retain(self, ids: Container[str]) -> None:
        for instance in [known for known in self.by_instance if known not in ids]:
            del self.by_instance[instance]

    def on_failure(self, instance: str, cause: str) -> None:
        if is_ending_cause(cause):
            self.end(instance)

    def due(self, now: float) -> list[str]:
        """Returns the instances that are to be probed now."""
        due = [instance for instance, record in self.by_instance.items() if self._is_due(record, now)]
        if self._requested:
            due += [instance for instance in self._requested - self._probing if instance not in due]
        return due

    def on_probe_sent(self, instance: str, now: float) -> None:
        """Records that a probe was sent."""
        self._requested.discard(instance)
        self._probing.add(instance)
        record = self.by_instance.get(instance)
        if record is not None:
            record.probed_at, record.is_probing = now, True

    def on_probe_ended(self, instance: str, *, has_failed: bool) -> None:
        """Records the end of a probe; `has_failed` if the engine may hang."""
        self._probing.discard(instance)
        record = self.by_instance.get(instance)
        if record is not None and record.is_probing:
            record.is_probing = False
            record.failed_probes += has_failed

    def on_probe_refused(self, instance: str) -> None:
        """Ends a record of 5xx alone, since the probe was answered with 4xx.

        Why: the server answers, and no probe can succeed there, as at a model of embeddings. One
        client could keep such a record alive with bodies that the engine fails.
        """
        record = self.by_instance.get(instance)
        if record is not None and not record.has_silence:
            self.end(instance)

    def _is_due(self, record: EjectionRecord, now: float) -> bool:
        if record.is_probing or now - record.since < self._after_seconds:
            return False
        return record.probed_at is None or now - record.probed_at >= self._interval_seconds


def is_hang_cause(cause: str) -> bool:
    return cause == _SILENCE or cause.startswith(_SERVER_ERROR_PREFIX)


def is_ending_cause(cause: str) -> bool:
    return cause in _ENDING_CAUSES


def _ignore() -> None:
    """Ignores that a record begins; the default of `on_begin`."""


_Response = tuple[float, bool, CallerKey, FaultSource | None]
"""A recent response: time, success, caller, and the source of a failure."""


@dataclass(slots=True)
class _InstanceHealth:
    """The health of one instance.

    kept_until: until then the instance is kept for the worker's own probe.
    undecided_probes: requests of one caller that failed as probes since the last ejection.
    full_at, full_until: when it said last that it is full, and until when it gets no requests then.
    """

    state: HealthState = HealthState.HEALTHY
    consecutive_failures: Counter[str] = field(default_factory=Counter)
    evidence: FaultEvidence = field(default_factory=FaultEvidence)
    recent: deque[_Response] = field(default_factory=lambda: deque(maxlen=_MAX_RECENT))
    answered: dict[CallerKey, float] = field(default_factory=dict)
    ejection_count: int = 0
    since: float = 0.0
    ejected_until: float = 0.0
    is_probed: bool = False
    kept_until: float = 0.0
    undecided_probes: int = 0
    warm_up_credit: float = 0.0
    answered_at: float | None = None
    reason: str = ""
    full_evidence: FaultEvidence = field(default_factory=FaultEvidence)
    full_at: float = 0.0
    full_until: float = 0.0
    full_pause_seconds: float = 1.0

    def clear_failures(self) -> None:
        self.consecutive_failures.clear()
        self.evidence = FaultEvidence()

    def answered_callers(self, now: float) -> set[CallerKey]:
        return {caller for caller, at in self.answered.items() if now - at <= _WINDOW_SECONDS}

    def on_answered(self, caller: CallerKey, now: float) -> None:
        """Remembers the last answer of a caller, as long as few others had one since."""
        answered = self.answered
        if len(answered) > 1 and caller in answered:
            del answered[caller]  # the newest is the last
        answered[caller] = now
        if len(answered) > _MAX_ANSWERED:
            del answered[next(iter(answered))]


class OutlierDetector:
    """The health of every instance as one worker sees it, and which instances are ejected.

    jitter: returns numbers from 0 to 1.
    ejection_records: the instances that have not answered since they were ejected.
    full: those that have said that they are full, and have answered no request sent since.
    """

    def __init__(self, limits: Limits, jitter: Callable[[], float]) -> None:
        self.ejection_records = EjectionRecords(limits)
        self._limits = limits
        self._jitter = jitter
        self._records: dict[str, _InstanceHealth] = {}
        self.unhealthy: set[str] = set()
        self.full: set[str] = set()

    def retain(self, ids: Collection[str]) -> None:
        """Forgets instances that have left the fleet."""
        for departed in self._records.keys() - set(ids):
            del self._records[departed]
            self.unhealthy.discard(departed)
            self.full.discard(departed)
            self.ejection_records.cancel_probe(departed)

    def retain_ready(self, ids: Collection[str]) -> None:
        self.ejection_records.retain(ids)

    def answer_times(self) -> dict[str, float]:
        """Returns when each instance answered last, in monotonic seconds."""
        return {name: record.answered_at for name, record in self._records.items() if record.answered_at is not None}

    def ejected(self, ready: Collection[str], now: float) -> Mapping[str, str]:
        """Returns the ready instances that should not get the next request, with reasons as text.

        Empty if that would be all of them; full ones if others are left. Reasons after
        the first `MAX_REASONS` are empty: each request would make texts about all instances.
        """
        if not (self.unhealthy or self.full):
            return _NONE_EJECTED
        reasons: dict[str, str] = {}
        for name in ready:
            if name in self.unhealthy:
                record = self._records[name]
                if self._is_rejected(name, record, now):
                    reasons[name] = self._describe(record, now) if len(reasons) < MAX_REASONS else ""
        full = [name for name in ready if name in self.full and now < self._records[name].full_until]
        if len(reasons.keys() | full) < len(ready):
            reasons = dict.fromkeys(full, "it says that it is full") | reasons
        return reasons if len(reasons) < len(ready) else _NONE_EJECTED

    def on_full(self, instance: str, retry_after: int | None, now: float, source: FaultSource) -> None:
        """Records that the instance is full.

        retry_after: the seconds for which it asks to wait; None if it does not.
        """
        record = self._records.setdefault(instance, _InstanceHealth())
        self.full.add(instance)
        record.full_at = now
        record.full_evidence.add(source)
        answered, min_sources = record.answered_callers(now), self._limits.breaker_fault_sources
        if now >= record.full_until and record.full_evidence.is_sufficient(min_sources, answered):
            record.full_until = now + (retry_after or record.full_pause_seconds)
            record.full_pause_seconds = min(2.0 * record.full_pause_seconds, _MAX_FULL_PAUSE_SECONDS)

    def on_room(self, instance: str, sent_at: float) -> None:
        """Records that the instance has answered a request that was sent at `sent_at`."""
        record = self._records[instance]
        if instance in self.full and sent_at >= record.full_at:
            self.full.discard(instance)
            record.full_evidence, record.full_until, record.full_pause_seconds = FaultEvidence(), 0.0, 1.0

    def is_usable(self, instance: str, now: float) -> bool:
        """Whether a request that has no other instance may go to this one."""
        if instance not in self.unhealthy:
            return True
        record = self._records[instance]
        self._advance(instance, record, now)
        return record.state is not HealthState.EJECTED and not _is_taken(record, now)

    def on_dispatch(self, instance: str) -> None:
        """Records a request to the instance; the first one after an ejection is the probe."""
        if instance in self.unhealthy:
            record = self._records[instance]
            record.is_probed = record.state is HealthState.PROBING

    def on_success(self, instance: str, now: float, caller: CallerKey = ANONYMOUS) -> None:
        """Records a response of the instance."""
        record = self._records.get(instance)
        if record is None:
            record = self._records[instance] = _InstanceHealth()
        record.recent.append((now, True, caller, None))
        record.on_answered(caller, now)
        record.answered_at = now
        if self.ejection_records.by_instance:
            self.ejection_records.end(instance)
        if record.consecutive_failures:
            record.clear_failures()
        if record.is_probed and record.state is HealthState.PROBING:
            record.state, record.since, record.warm_up_credit, record.is_probed = HealthState.WARMING, now, 0.0, False
            self.ejection_records.cancel_probe(instance)

    def on_inconclusive(self, instance: str) -> None:
        if instance in self.unhealthy:
            self._records[instance].is_probed = False

    def on_failure(
        self, instance: str, cause: str, now: float, ready: Collection[str], source: FaultSource | None = None
    ) -> bool:
        """Records a failure of the instance; returns whether it is ejected now.

        cause: one word of a closed list.
        source: the request that failed; None if the failure does not depend on it.
        """
        record = self._records.get(instance)
        if record is None:
            record = self._records[instance] = _InstanceHealth()
        self._advance(instance, record, now)
        record.recent.append((now, False, ANONYMOUS if source is None else source.caller, source))
        record.consecutive_failures[cause] += 1
        record.evidence.add(source)
        self.ejection_records.on_failure(instance, cause)
        if record.state is HealthState.EJECTED and now < record.ejected_until:
            return False  # a request that was there when it was ejected
        if record.state is HealthState.PROBING and self._awaits_worker_probe(record, source, now):
            self.ejection_records.request_probe(instance)
            return False
        if self._needs_threshold(record, source, now) and not self._exceeds_threshold(record, now):
            return False
        ejected = sum(name in self.unhealthy for name in ready if name != instance)
        # The rest would fail under the whole load, and such a fault is hardly that of one instance.
        if ejected + 1 > EJECTED_SHARE * len(ready):
            if len(ready) == 1 and instance in ready:
                self._begin_ejection_record(instance, record, cause, now)
            return False
        self._eject(instance, record, now)
        self._begin_ejection_record(instance, record, cause, now)
        return True

    def health(self, instance: str, now: float) -> tuple[HealthState, str]:
        """Returns the state of an instance and the reason as text; no reason if it is healthy."""
        if instance not in self.unhealthy:
            return HealthState.HEALTHY, ""
        record = self._records[instance]
        self._advance(instance, record, now)
        if record.state is HealthState.HEALTHY:
            return HealthState.HEALTHY, ""
        return record.state, self._describe(record, now)

    def _needs_threshold(self, record: _InstanceHealth, source: FaultSource | None, now: float) -> bool:
        """Whether one failure does not suffice: the instance is healthy, or warms up and has
        answered another caller.
        """
        if record.state is not HealthState.WARMING or source is None:
            return record.state is HealthState.HEALTHY
        return any(caller != source.caller for caller in record.answered_callers(now))

    def _awaits_worker_probe(self, record: _InstanceHealth, source: FaultSource | None, now: float) -> bool:
        """Whether the worker's own probe decides, since the failures may be the fault of one caller
        and the instance has answered others. Keeps the instance for that probe.
        """
        if source is None or all(caller == source.caller for caller in record.answered):
            return False
        if record.evidence.is_sufficient(self._limits.breaker_fault_sources, record.answered):
            return False
        if now >= record.kept_until:
            record.undecided_probes += 1
            if record.undecided_probes >= self._limits.breaker_consecutive_faults:
                return False
            record.kept_until, record.is_probed = now + _WORKER_PROBE_SECONDS, False
        return True

    def _exceeds_threshold(self, record: _InstanceHealth, now: float) -> bool:
        limits = self._limits
        if record.consecutive_failures.total() >= limits.breaker_consecutive_faults and (
            record.evidence.is_sufficient(limits.breaker_fault_sources, record.answered_callers(now))
        ):
            return True
        recent = [response for response in record.recent if now - response[0] <= _WINDOW_SECONDS]
        failures = [source for _, is_success, _, source in recent if not is_success]
        if len(recent) < BREAKER_WINDOW_RESPONSES or len(failures) < BREAKER_FAULT_SHARE * len(recent):
            return False
        evidence = FaultEvidence()
        for source in failures:
            evidence.add(source)
        return evidence.is_sufficient(limits.breaker_fault_sources, record.answered_callers(now))

    def _eject(self, instance: str, record: _InstanceHealth, now: float) -> None:
        if record.state is HealthState.HEALTHY and now - record.ejected_until > _BACKOFF_RESET_SECONDS:
            record.ejection_count = 0
        limits = self._limits
        pause = min(MAX_EJECTION_SECONDS, limits.ejection_seconds * 2.0**record.ejection_count)
        record.ejection_count = min(record.ejection_count + 1, 32)
        record.state, record.since, record.is_probed = HealthState.EJECTED, now, False
        record.ejected_until = now + pause * (0.8 + 0.4 * self._jitter())
        record.reason = _describe_failures(record.consecutive_failures)
        self.unhealthy.add(instance)

    def _begin_ejection_record(self, instance: str, record: _InstanceHealth, cause: str, now: float) -> None:
        """Begins a record, unless `cause`, the last failure, shows that nothing listens."""
        failures = record.consecutive_failures
        if not is_ending_cause(cause):
            self.ejection_records.begin(instance, failures, _describe_failures(failures), now)

    def _advance(self, instance: str, record: _InstanceHealth, now: float) -> None:
        """Applies the transitions of time: from ejected to probing, and from warming to healthy."""
        if record.state is HealthState.EJECTED and now >= record.ejected_until:
            record.state, record.is_probed = HealthState.PROBING, False
            record.kept_until, record.undecided_probes = 0.0, 0
            record.clear_failures()
            record.recent.clear()
        elif record.state is HealthState.WARMING and now - record.since >= self._limits.warm_up_seconds:
            record.state, record.ejected_until = HealthState.HEALTHY, now
            record.recent.clear()
            self.unhealthy.discard(instance)

    def _is_rejected(self, instance: str, record: _InstanceHealth, now: float) -> bool:
        """Whether the next request should not go to the instance.

        Counts the share of an instance that warms up.
        """
        self._advance(instance, record, now)
        if record.state is HealthState.EJECTED or (record.state is HealthState.PROBING and _is_taken(record, now)):
            return True
        if record.state is HealthState.WARMING:
            record.warm_up_credit += self._warm_up_share(record, now)
            if record.warm_up_credit < 1.0:
                return True
            record.warm_up_credit -= 1.0
        return False

    def _warm_up_share(self, record: _InstanceHealth, now: float) -> float:
        return max(_MIN_WARM_UP_SHARE, min(1.0, (now - record.since) / self._limits.warm_up_seconds))

    def _describe(self, record: _InstanceHealth, now: float) -> str:
        if record.state is HealthState.EJECTED:
            return f"ejected {now - record.since:.0f} s ago: {record.reason}"
        if record.state is HealthState.PROBING:
            state = "one request probes it" if _is_taken(record, now) else "the next request probes it"
            return f"{state} after an ejection: {record.reason}"
        return f"warming up ({self._warm_up_share(record, now):.0%} of its share) after an ejection: {record.reason}"


def _is_taken(record: _InstanceHealth, now: float) -> bool:
    return record.is_probed or now < record.kept_until


def _describe_failures(failures: Counter[str]) -> str:
    """Returns failures as text: `3 timeouts, 1 reset`."""
    return ", ".join(
        f"{count} {_CAUSE_TEXTS.get(cause, cause)}{'s' if count > 1 and not cause.startswith('status') else ''}"
        for cause, count in failures.most_common(3)
    )
