"""Which events are to be written, as a pure table: a repeated one is counted, a flood is cut, everything is bounded.

An event is the same when it says the same about the same object. It is written when it first happens, then only how often it
happened, after 10 s, 20 s, 40 s … of gathering. An object that has more to say than anybody will read is cut off for a while, alone.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b

from fairlead.kube.events.event import EventKey, ObjectReference
from fairlead.kube.resources import EVENTS, Manifest, format_micro_time
from fairlead.limits import Limits

MAX_NOTE_BYTES = 1024
MAX_WORD_BYTES = 128
"""What the API server takes of a note, and of a reason and an action."""


@dataclass(frozen=True, slots=True)
class EventWrite:
    """One thing to write: a new event, or (``patch``) how often it happened by now."""

    key: EventKey
    namespace: str
    name: str
    manifest: Manifest | None = None
    patch: Manifest | None = None


@dataclass(slots=True)
class _EventState:
    """What became of one event. Times are monotonic seconds, but for ``last_wall``."""

    name: str
    first_wall: float
    last_wall: float
    last_at: float
    due_at: float
    gather_seconds: float
    count: int = 1
    written: int = 0


@dataclass(slots=True)
class _TokenBucket:
    tokens: float
    updated_at: float


@dataclass(slots=True)
class EventAggregator:
    """The events of one reporter. ``controller`` is a qualified name (``fairlead.io/operator``), ``instance`` that of the process."""

    controller: str
    instance: str
    limits: Limits
    dropped: int = 0
    waiting: int = 0
    _states: "OrderedDict[EventKey, _EventState]" = field(default_factory=OrderedDict)
    # Those that hold something unwritten, in the same order: what was told long ago is not looked through for every new one.
    _unwritten: "OrderedDict[EventKey, _EventState]" = field(default_factory=OrderedDict)
    _buckets: "OrderedDict[ObjectReference, _TokenBucket]" = field(default_factory=OrderedDict)

    def add(self, key: EventKey, now: float, wall: float) -> None:
        """It happened, now."""
        told = self._states.get(key)
        if told is not None and told.written and now - told.last_at > self.limits.kube_series_end_seconds:
            del self._states[key]
            self._unwritten.pop(key, None)
            told = None
        if told is not None:
            told.count += 1
            told.last_wall, told.last_at = wall, now
            self._states.move_to_end(key)
            self._unwritten[key] = told
            self._unwritten.move_to_end(key)
        elif self.waiting >= self.limits.kube_events_pending or not self._take_token(key.regarding, now):
            self.dropped += 1
        else:
            name = _event_name(key, self.instance, wall)
            told = _EventState(name, wall, wall, now, now, self.limits.kube_series_seconds)
            self._states[key] = self._unwritten[key] = told
            self.waiting += 1
            self._forget_oldest()

    def due_writes(self, now: float) -> list[EventWrite]:
        """What is to be written now; say of each what became of it: ``written``, ``later``, ``gone`` or ``lost``."""
        return [self._to_write(happening, told) for happening, told in self._unwritten.items() if told.due_at <= now]

    def pending_writes(self) -> list[EventWrite]:
        """Everything that is not written yet, for the end of a process."""
        return [self._to_write(happening, told) for happening, told in self._unwritten.items()]

    def next_due_at(self) -> float | None:
        """When something will be due; None while nothing is."""
        return min((told.due_at for told in self._unwritten.values()), default=None)

    def on_written(self, write: EventWrite, count: int, now: float) -> None:
        """It is written, with ``count``."""
        told = self._states.get(write.key)
        if told is None:
            return
        self.waiting -= not told.written
        told.written = count
        if told.count <= count:
            self._unwritten.pop(write.key, None)
        self._defer(told, now)

    def on_postponed(self, write: EventWrite, now: float) -> None:
        """Not before a while has passed, a longer one each time."""
        told = self._states.get(write.key)
        if told is not None:
            self._defer(told, now)

    def on_rejected(self, write: EventWrite) -> None:
        """It cannot be written: forgotten, as if it had never happened."""
        told = self._states.pop(write.key, None)
        if told is not None:
            self._unwritten.pop(write.key, None)
            self.waiting -= not told.written
            self.dropped += 1

    def on_deleted(self, write: EventWrite) -> None:
        """The event was there and has been deleted (the API server keeps them an hour): the next writing makes it anew."""
        told = self._states.get(write.key)
        if told is not None:
            self.waiting += bool(told.written)
            told.written, told.due_at, told.name = (
                0,
                told.last_at,
                _event_name(write.key, self.instance, told.last_wall),
            )
            self._unwritten[write.key] = told

    def _defer(self, told: _EventState, now: float) -> None:
        told.due_at = now + told.gather_seconds
        told.gather_seconds = min(self.limits.max_kube_series_seconds, 2 * told.gather_seconds)

    def _to_write(self, happening: EventKey, told: _EventState) -> EventWrite:
        about = happening.regarding
        namespace = about.namespace or "default"  # events about objects of the whole cluster live there
        series = {"count": told.count, "lastObservedTime": format_micro_time(told.last_wall)}
        if told.written:
            return EventWrite(happening, namespace, told.name, patch={"series": series})
        event: Manifest = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": told.name, "namespace": namespace},
            "eventTime": format_micro_time(told.first_wall),
            "reportingController": self.controller,
            "reportingInstance": truncate_utf8(self.instance, MAX_WORD_BYTES),
            "action": truncate_utf8(happening.action, MAX_WORD_BYTES),
            "reason": truncate_utf8(happening.reason, MAX_WORD_BYTES),
            "type": str(happening.type),
            "note": truncate_utf8(happening.note, MAX_NOTE_BYTES),
            "regarding": {
                "apiVersion": about.api_version,
                "kind": about.kind,
                "name": about.name,
                **({"namespace": about.namespace} if about.namespace else {}),
                **({"uid": about.uid} if about.uid else {}),
            },
        }
        if told.count > 1:
            event["series"] = series
        return EventWrite(happening, namespace, told.name, manifest=event)

    def _take_token(self, about: ObjectReference, now: float) -> bool:
        """One token of the object's bucket, if there is one."""
        full = float(self.limits.kube_event_burst)
        found = self._buckets.pop(about, None) or _TokenBucket(full, now)
        found.tokens = min(full, found.tokens + (now - found.updated_at) / self.limits.kube_event_refill_seconds)
        found.updated_at = now
        self._buckets[about] = found
        if len(self._buckets) > self.limits.kube_events:
            self._buckets.popitem(last=False)
        if found.tokens < 1.0:
            return False
        found.tokens -= 1.0
        return True

    def _forget_oldest(self) -> None:
        while len(self._states) > self.limits.kube_events:
            happening, told = self._states.popitem(last=False)
            self._unwritten.pop(happening, None)
            self.waiting -= not told.written
            self.dropped += told.count > told.written


def write_count(write: EventWrite) -> int:
    """How often it had happened when this was to be written."""
    series = (write.manifest or write.patch or {}).get("series") or {}
    return int(series.get("count", 1))


def truncate_utf8(text: str, max_bytes: int) -> str:
    """``text`` in at most ``most`` bytes of UTF-8, with an ellipsis where it was longer."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    return raw[: max_bytes - 3].decode("utf-8", "ignore") + "…"


def _event_name(happening: EventKey, instance: str, wall: float) -> str:
    """A name of its own in the namespace: the object's, and a digest of what was said, when, by whom."""
    said = "\0".join((instance, happening.type, happening.reason, happening.action, happening.note, f"{wall:.6f}"))
    digest = blake2b(f"{happening.regarding}\0{said}".encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"{happening.regarding.name[:200].rstrip('.-')}.{digest}"
