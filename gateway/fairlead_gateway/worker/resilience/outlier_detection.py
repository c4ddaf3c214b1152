"""Which engines sit out for a while, because of what Fairlead saw of them and not of what they say.

An engine that refuses, breaks off, falls silent or answers nonsense is *ejected*: three faults in a
row, or half of ten and more answers within ten seconds. Load is no fault: a full engine, a 429 and
a client that leaves change nothing here. At most half of a model's ready instances sit out, so that
a fault of the network or of the requests cannot empty a fleet. The pause grows with every ejection
and is jittered. Then one request probes; when it is answered, the engine *warms up*: its share of
the requests that would go there grows from a tenth to all. A fault on the way back ejects it again.

Pure: times come in as arguments, and the only randomness is the jitter that is handed in.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from fairlead.limits import Limits
from fairlead_gateway.telemetry.status_types import HealthState

_WINDOW_SECONDS = 10.0
_MAX_RECENT = 64
_MIN_WARM_UP_SHARE = 0.1
_BACKOFF_RESET_SECONDS = 300.0
_CAUSE_TEXTS = {
    "refused": "refusal",
    "connect-timeout": "connect timeout",
    "cut": "broken answer",
    "gone": "silence and refusal",
    "garbage": "unreadable answer",
    "error-event": "error event",
    "aborted": "abort",
}
_NONE_EJECTED: Mapping[str, str] = {}


@dataclass(slots=True)
class _InstanceHealth:
    state: HealthState = HealthState.HEALTHY
    consecutive_failures: Counter[str] = field(default_factory=Counter)
    recent: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=_MAX_RECENT))
    ejection_count: int = 0
    since: float = 0.0
    ejected_until: float = 0.0
    is_probed: bool = False
    warm_up_credit: float = 0.0
    reason: str = ""


class OutlierDetector:
    """The standing of all instances of a gateway by id. ``jitter`` gives numbers from 0 to 1."""

    def __init__(self, limits: Limits, jitter: Callable[[], float]) -> None:
        self._limits = limits
        self._jitter = jitter
        self._records: dict[str, _InstanceHealth] = {}
        self._unhealthy: set[str] = set()

    @property
    def has_unhealthy(self) -> bool:
        """Whether any instance is not simply healthy."""
        return bool(self._unhealthy)

    def retain(self, ids: Collection[str]) -> None:
        """Forget instances that have left the fleet."""
        for gone in self._records.keys() - set(ids):
            del self._records[gone]
            self._unhealthy.discard(gone)

    def ejected(self, ready: Collection[str], now: float) -> Mapping[str, str]:
        """Those of ``ready`` that should not get the next request, each with the reason in
        words.
        """
        if not self._unhealthy:
            return _NONE_EJECTED
        found: dict[str, str] = {}
        for item in ready:
            if item in self._unhealthy and (why := self._rejection_reason(item, self._records[item], now)):
                found[item] = why
        return found if len(found) < len(ready) else _NONE_EJECTED

    def is_usable(self, instance: str, now: float) -> bool:
        """Whether a request that has nowhere else to go has a chance there."""
        if instance not in self._unhealthy:
            return True
        record = self._records[instance]
        self._advance(instance, record, now)
        return record.state is not HealthState.EJECTED and not record.is_probed

    def on_dispatch(self, instance: str) -> None:
        """A request goes there; when the pause is over, it is the probe."""
        if instance in self._unhealthy:
            record = self._records[instance]
            record.is_probed = record.state is HealthState.PROBING

    def on_success(self, instance: str, now: float) -> None:
        """The instance answered a request."""
        record = self._records.get(instance)
        if record is None:
            record = self._records[instance] = _InstanceHealth()
        record.recent.append((now, True))
        if record.consecutive_failures:
            record.consecutive_failures.clear()
        if record.state is HealthState.PROBING and record.is_probed:
            record.state, record.since, record.warm_up_credit, record.is_probed = HealthState.WARMING, now, 0.0, False

    def on_inconclusive(self, instance: str) -> None:
        """A request ended there and said nothing of the instance: it was full, or the
        client left.
        """
        if instance in self._unhealthy:
            self._records[instance].is_probed = False

    def on_failure(self, instance: str, why: str, now: float, ready: Collection[str]) -> bool:
        """The instance failed a request, ``why`` in one word of a closed list; whether that ejects
        it now.
        """
        record = self._records.get(instance)
        if record is None:
            record = self._records[instance] = _InstanceHealth()
        record.recent.append((now, False))
        record.consecutive_failures[why] += 1
        if record.state is HealthState.EJECTED and now < record.ejected_until:
            return False  # the rest of what was there when it was ejected
        if record.state is HealthState.HEALTHY and not self._exceeds_threshold(record, now):
            return False
        out = sum(item in self._unhealthy for item in ready if item != instance)
        if out + 1 > self._limits.ejected_share * len(ready):
            return False
        self._eject(instance, record, now)
        return True

    def health(self, instance: str, now: float) -> tuple[HealthState, str]:
        """The standing of one instance and its reason in words, empty when healthy."""
        if instance not in self._unhealthy:
            return HealthState.HEALTHY, ""
        record = self._records[instance]
        self._advance(instance, record, now)
        if record.state is HealthState.HEALTHY:
            return HealthState.HEALTHY, ""
        return record.state, self._describe(record, now)

    def _exceeds_threshold(self, record: _InstanceHealth, now: float) -> bool:
        if record.consecutive_failures.total() >= self._limits.breaker_consecutive_faults:
            return True
        recent = [good for at, good in record.recent if now - at <= _WINDOW_SECONDS]
        return len(recent) >= self._limits.breaker_window_responses and (
            recent.count(False) >= self._limits.breaker_fault_share * len(recent)
        )

    def _eject(self, instance: str, record: _InstanceHealth, now: float) -> None:
        if record.state is HealthState.HEALTHY and now - record.ejected_until > _BACKOFF_RESET_SECONDS:
            record.ejection_count = 0
        limits = self._limits
        pause = min(limits.max_ejection_seconds, limits.ejection_seconds * 2.0**record.ejection_count)
        record.ejection_count = min(record.ejection_count + 1, 32)
        record.state, record.since, record.is_probed = HealthState.EJECTED, now, False
        record.ejected_until = now + pause * (0.8 + 0.4 * self._jitter())
        record.reason = _describe_failures(record.consecutive_failures)
        self._unhealthy.add(instance)

    def _advance(self, instance: str, record: _InstanceHealth, now: float) -> None:
        """Time alone moves an instance from ejected to probing, and from warming up to healthy."""
        if record.state is HealthState.EJECTED and now >= record.ejected_until:
            record.state, record.is_probed = HealthState.PROBING, False
            record.consecutive_failures.clear()
        elif record.state is HealthState.WARMING and now - record.since >= self._limits.warm_up_seconds:
            record.state, record.ejected_until = HealthState.HEALTHY, now
            record.recent.clear()
            self._unhealthy.discard(instance)

    def _rejection_reason(self, instance: str, record: _InstanceHealth, now: float) -> str:
        """Why the next request should not go there, empty when it may. Counts the warm-up's share
        of requests.
        """
        self._advance(instance, record, now)
        if record.state is HealthState.EJECTED or (record.state is HealthState.PROBING and record.is_probed):
            return self._describe(record, now)
        if record.state is HealthState.WARMING:
            record.warm_up_credit += self._warm_up_share(record, now)
            if record.warm_up_credit < 1.0:
                return self._describe(record, now)
            record.warm_up_credit -= 1.0
        return ""

    def _warm_up_share(self, record: _InstanceHealth, now: float) -> float:
        return max(_MIN_WARM_UP_SHARE, min(1.0, (now - record.since) / self._limits.warm_up_seconds))

    def _describe(self, record: _InstanceHealth, now: float) -> str:
        if record.state is HealthState.EJECTED:
            return f"ejected {now - record.since:.0f} s ago: {record.reason}"
        if record.state is HealthState.PROBING:
            state = "one request probes it" if record.is_probed else "the next request probes it"
            return f"{state} after an ejection: {record.reason}"
        return f"warming up ({self._warm_up_share(record, now):.0%} of its share) after an ejection: {record.reason}"


def _describe_failures(row: Counter[str]) -> str:
    """Faults in words: ``3 timeouts, 1 reset``."""
    return ", ".join(
        f"{count} {_CAUSE_TEXTS.get(why, why)}{'s' if count > 1 and not why.startswith('status') else ''}"
        for why, count in row.most_common(3)
    )
