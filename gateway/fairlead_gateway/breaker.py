"""Which engines sit out for a while, because of what Fairlead saw of them and not of what they say.

An engine that refuses, breaks off, falls silent or answers nonsense is *ejected*: three faults in a row, or half of ten and
more answers within ten seconds. Load is no fault: a full engine, a 429 and a client that leaves change nothing here. At
most half of a model's ready instances sit out, so that a fault of the network or of the requests cannot empty a fleet. The
pause grows with every ejection and is jittered. Then one request probes; when it is answered, the engine *warms up*:
its share of the requests that would go there grows from a tenth to all. A fault on the way back ejects it again.

Pure: times come in as arguments, and the only randomness is the jitter that is handed in.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fairlead.limits import Limits

_WINDOW_SECONDS = 10.0
_REMEMBERED = 64
_LEAST_SHARE = 0.1
_FORGIVEN_SECONDS = 300.0
_WORDS = {
    "refused": "refusal",
    "connect-timeout": "connect timeout",
    "cut": "broken answer",
    "gone": "silence and refusal",
    "garbage": "unreadable answer",
    "error-event": "error event",
    "aborted": "abort",
}
_NONE: Mapping[str, str] = {}


class Standing(StrEnum):
    """How far an instance may be used."""

    HEALTHY = "Healthy"
    EJECTED = "Ejected"
    PROBING = "Probing"
    WARMING = "WarmingUp"


@dataclass(slots=True)
class _Record:
    standing: Standing = Standing.HEALTHY
    row: Counter[str] = field(default_factory=Counter)
    seen: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    times: int = 0
    since: float = 0.0
    until: float = 0.0
    probed: bool = False
    credit: float = 0.0
    why: str = ""


class Breaker:
    """The standing of all instances of a gateway by id. ``jitter`` gives numbers from 0 to 1."""

    def __init__(self, limits: Limits, jitter: Callable[[], float]) -> None:
        self._limits = limits
        self._jitter = jitter
        self._records: dict[str, _Record] = {}
        self._out: set[str] = set()

    @property
    def watching(self) -> bool:
        """Whether any instance is not simply healthy."""
        return bool(self._out)

    def keep_only(self, ids: Collection[str]) -> None:
        """Forget instances that have left the fleet."""
        for gone in self._records.keys() - set(ids):
            del self._records[gone]
            self._out.discard(gone)

    def sitting_out(self, ready: Collection[str], now: float) -> Mapping[str, str]:
        """Those of ``ready`` that should not get the next request, each with the reason in words."""
        if not self._out:
            return _NONE
        found: dict[str, str] = {}
        for item in ready:
            if item in self._out and (why := self._reason(item, self._records[item], now)):
                found[item] = why
        return found if len(found) < len(ready) else _NONE

    def may_try(self, instance: str, now: float) -> bool:
        """Whether a request that has nowhere else to go has a chance there."""
        if instance not in self._out:
            return True
        record = self._records[instance]
        self._advance(instance, record, now)
        return record.standing is not Standing.EJECTED and not record.probed

    def sent(self, instance: str) -> None:
        """A request goes there; when the pause is over, it is the probe."""
        if instance in self._out:
            record = self._records[instance]
            record.probed = record.standing is Standing.PROBING

    def good(self, instance: str, now: float) -> None:
        """The instance answered a request."""
        record = self._records.get(instance)
        if record is None:
            record = self._records[instance] = _Record()
        record.seen.append((now, True))
        if record.row:
            record.row.clear()
        if record.standing is Standing.PROBING and record.probed:
            record.standing, record.since, record.credit, record.probed = Standing.WARMING, now, 0.0, False

    def unknown(self, instance: str) -> None:
        """A request ended there and said nothing of the instance: it was full, or the client left."""
        if instance in self._out:
            self._records[instance].probed = False

    def fault(self, instance: str, why: str, now: float, ready: Collection[str]) -> bool:
        """The instance failed a request, ``why`` in one word of a closed list; whether that ejects it now."""
        record = self._records.get(instance)
        if record is None:
            record = self._records[instance] = _Record()
        record.seen.append((now, False))
        record.row[why] += 1
        if record.standing is Standing.EJECTED and now < record.until:
            return False  # the rest of what was there when it was ejected
        if record.standing is Standing.HEALTHY and not self._too_many(record, now):
            return False
        out = sum(item in self._out for item in ready if item != instance)
        if out + 1 > self._limits.ejected_share * len(ready):
            return False
        self._eject(instance, record, now)
        return True

    def standing(self, instance: str, now: float) -> tuple[Standing, str]:
        """The standing of one instance and its reason in words, empty when healthy."""
        if instance not in self._out:
            return Standing.HEALTHY, ""
        record = self._records[instance]
        self._advance(instance, record, now)
        if record.standing is Standing.HEALTHY:
            return Standing.HEALTHY, ""
        return record.standing, self._words(record, now)

    def _too_many(self, record: _Record, now: float) -> bool:
        if record.row.total() >= self._limits.breaker_row:
            return True
        recent = [good for at, good in record.seen if now - at <= _WINDOW_SECONDS]
        return len(recent) >= self._limits.breaker_answers and (
            recent.count(False) >= self._limits.breaker_share * len(recent)
        )

    def _eject(self, instance: str, record: _Record, now: float) -> None:
        if record.standing is Standing.HEALTHY and now - record.until > _FORGIVEN_SECONDS:
            record.times = 0
        limits = self._limits
        pause = min(limits.ejection_most_seconds, limits.ejection_seconds * 2.0**record.times)
        record.times = min(record.times + 1, 32)
        record.standing, record.since, record.probed = Standing.EJECTED, now, False
        record.until = now + pause * (0.8 + 0.4 * self._jitter())
        record.why = _counted(record.row)
        self._out.add(instance)

    def _advance(self, instance: str, record: _Record, now: float) -> None:
        """Time alone moves an instance from ejected to probing, and from warming up to healthy."""
        if record.standing is Standing.EJECTED and now >= record.until:
            record.standing, record.probed = Standing.PROBING, False
            record.row.clear()
        elif record.standing is Standing.WARMING and now - record.since >= self._limits.warm_up_seconds:
            record.standing, record.until = Standing.HEALTHY, now
            record.seen.clear()
            self._out.discard(instance)

    def _reason(self, instance: str, record: _Record, now: float) -> str:
        """Why the next request should not go there, empty when it may. Counts the warm-up's share of requests."""
        self._advance(instance, record, now)
        if record.standing is Standing.EJECTED or (record.standing is Standing.PROBING and record.probed):
            return self._words(record, now)
        if record.standing is Standing.WARMING:
            record.credit += self._share(record, now)
            if record.credit < 1.0:
                return self._words(record, now)
            record.credit -= 1.0
        return ""

    def _share(self, record: _Record, now: float) -> float:
        return max(_LEAST_SHARE, min(1.0, (now - record.since) / self._limits.warm_up_seconds))

    def _words(self, record: _Record, now: float) -> str:
        if record.standing is Standing.EJECTED:
            return f"ejected {now - record.since:.0f} s ago: {record.why}"
        if record.standing is Standing.PROBING:
            state = "one request probes it" if record.probed else "the next request probes it"
            return f"{state} after an ejection: {record.why}"
        return f"warming up ({self._share(record, now):.0%} of its share) after an ejection: {record.why}"


def _counted(row: Counter[str]) -> str:
    """Faults in words: ``3 timeouts, 1 reset``."""
    return ", ".join(
        f"{count} {_WORDS.get(why, why)}{'s' if count > 1 and not why.startswith('status') else ''}"
        for why, count in row.most_common(3)
    )
