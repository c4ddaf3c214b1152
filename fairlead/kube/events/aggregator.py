"""Decides which events to write, and when: counts repetitions and limits floods. Pure.

Events are equal if they say the same about the same object. An event is written when it first
happens. After that, only its count is written, after gathering for 10 s, 20 s, 40 s, and so on. An
object with too many different events is limited for a while; other objects are not affected.
Namespaces share the places of events that wait. In a full queue, an event takes the place of the
newest one of the namespace with the most.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from fairlead.kube.events.event import EventKey, ObjectReference
from fairlead.kube.resources import EVENTS, Manifest, format_micro_time

KUBE_EVENTS: Final = 4_096
"""Limit: different events remembered; a repeated one is counted, not written again."""
KUBE_EVENTS_PENDING: Final = 1_024
"""Limit: events that wait to be written, shared by namespaces; more are dropped and counted."""
KUBE_EVENT_BURST: Final = 25
"""Limit: different events about one object at once; then they are dropped and counted."""
KUBE_EVENT_REFILL_SECONDS: Final = 30.0
"""Limit: time after which an object with a full burst may have one more event."""
KUBE_SERIES_SECONDS: Final = 10.0
"""Limit: repetitions of an event are batched this long at first; the time doubles with each batch.
"""
MAX_KUBE_SERIES_SECONDS: Final = 300.0
"""Limit: longest time for which repetitions of an event are batched."""
KUBE_SERIES_END_SECONDS: Final = 360.0
"""Limit: an event without repetition for this long is a new one."""

MAX_NOTE_BYTES = 1024
MAX_WORD_BYTES = 128
"""The API server's limits for a note, and for a reason or action."""


@dataclass(frozen=True, slots=True)
class EventWrite:
    """A write to the API server: a new event (`manifest`), or the current count (`patch`)."""

    key: EventKey
    namespace: str
    name: str
    manifest: Manifest | None = None
    patch: Manifest | None = None


@dataclass(slots=True)
class _EventState:
    """The state of one event. Times are monotonic seconds, except `first_wall` and `last_wall`."""

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
class _WaitingEvents:
    """The events that were never written, by namespace and in their order."""

    count: int = 0
    _keys: "dict[str, OrderedDict[EventKey, None]]" = field(default_factory=dict)

    def add(self, key: EventKey) -> None:
        self._keys.setdefault(key.regarding.namespace, OrderedDict())[key] = None
        self.count += 1

    def discard(self, key: EventKey) -> None:
        """Removes an event if it is here."""
        keys = self._keys.get(key.regarding.namespace)
        if keys is not None and key in keys:
            del keys[key]
            self.count -= 1
            if not keys:
                del self._keys[key.regarding.namespace]

    def newest_to_displace(self, namespace: str) -> EventKey | None:
        """Returns the newest event of the namespace with the most, if `namespace` has a smaller
        share; else None.
        """
        largest = max(self._keys.values(), key=len, default=None)
        if largest is None or len(self._keys.get(namespace, ())) + 1 >= len(largest):
            return None
        return next(reversed(largest))


@dataclass(slots=True)
class EventAggregator:
    """The recent events of one reporter, with their counts and the times of their next writes.

    controller: qualified name, such as `fairlead.io/operator`.
    instance: name of the process.
    """

    controller: str
    instance: str
    max_events: int = KUBE_EVENTS
    max_pending: int = KUBE_EVENTS_PENDING
    dropped: int = 0
    _waiting: _WaitingEvents = field(default_factory=_WaitingEvents)
    _states: "OrderedDict[EventKey, _EventState]" = field(default_factory=OrderedDict)
    # The events with unwritten occurrences, in the same order, so that old events are not scanned.
    _unwritten: "OrderedDict[EventKey, _EventState]" = field(default_factory=OrderedDict)
    _buckets: "OrderedDict[ObjectReference, _TokenBucket]" = field(default_factory=OrderedDict)

    @property
    def waiting(self) -> int:
        return self._waiting.count

    def add(self, key: EventKey, now: float, wall: float) -> None:
        """Adds one occurrence of an event.

        A new event is dropped if too many of its namespace wait, or if its object's token bucket is
        empty.
        """
        state = self._states.get(key)
        if state is not None and state.written and now - state.last_at > KUBE_SERIES_END_SECONDS:
            del self._states[key]
            self._unwritten.pop(key, None)
            state = None
        if state is not None:
            state.count += 1
            state.last_wall, state.last_at = wall, now
            self._states.move_to_end(key)
            self._unwritten[key] = state
            self._unwritten.move_to_end(key)
        elif not self._can_wait(key.regarding.namespace) or not self._take_token(key.regarding, now):
            self.dropped += 1
        else:
            name = _event_name(key, self.instance, wall)
            state = _EventState(name, wall, wall, now, now, KUBE_SERIES_SECONDS)
            self._make_room(key.regarding.namespace)
            self._states[key] = self._unwritten[key] = state
            self._waiting.add(key)
            self._forget_oldest()

    def due_writes(self, now: float) -> list[EventWrite]:
        """Returns the writes that are due. Report the result of each with one of the `on_…`
        methods.
        """
        return [self._to_write(key, state) for key, state in self._unwritten.items() if state.due_at <= now]

    def pending_writes(self) -> list[EventWrite]:
        return [self._to_write(key, state) for key, state in self._unwritten.items()]

    def next_due_at(self) -> float | None:
        """Returns the monotonic time of the next due write, in seconds; None if there is none."""
        return min((state.due_at for state in self._unwritten.values()), default=None)

    def on_written(self, write: EventWrite, count: int, now: float) -> None:
        """Records that `count` was written."""
        state = self._states.get(write.key)
        if state is None:
            return
        self._waiting.discard(write.key)
        state.written = count
        if state.count <= count:
            self._unwritten.pop(write.key, None)
        self._defer(state, now)

    def on_postponed(self, write: EventWrite, now: float) -> None:
        """Retries a write after a pause, which doubles each time up to a maximum."""
        state = self._states.get(write.key)
        if state is not None:
            self._defer(state, now)

    def on_rejected(self, write: EventWrite) -> None:
        """Forgets an event that cannot be written, and counts it as dropped."""
        state = self._states.pop(write.key, None)
        if state is not None:
            self._unwritten.pop(write.key, None)
            self._waiting.discard(write.key)
            self.dropped += 1

    def on_deleted(self, write: EventWrite) -> None:
        """Makes the next write create the event again.

        Why: the API server deletes events after an hour.
        """
        state = self._states.get(write.key)
        if state is not None:
            if state.written:
                self._waiting.add(write.key)
            state.written, state.due_at, state.name = (
                0,
                state.last_at,
                _event_name(write.key, self.instance, state.last_wall),
            )
            self._unwritten[write.key] = state

    def _defer(self, state: _EventState, now: float) -> None:
        state.due_at = now + state.gather_seconds
        state.gather_seconds = min(MAX_KUBE_SERIES_SECONDS, 2 * state.gather_seconds)

    def _to_write(self, key: EventKey, state: _EventState) -> EventWrite:
        about = key.regarding
        namespace = about.namespace or "default"  # for cluster-scoped objects
        series = {"count": state.count, "lastObservedTime": format_micro_time(state.last_wall)}
        if state.written:
            return EventWrite(key, namespace, state.name, patch={"series": series})
        event: Manifest = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": state.name, "namespace": namespace},
            "eventTime": format_micro_time(state.first_wall),
            "reportingController": self.controller,
            "reportingInstance": truncate_utf8(self.instance, MAX_WORD_BYTES),
            "action": truncate_utf8(key.action, MAX_WORD_BYTES),
            "reason": truncate_utf8(key.reason, MAX_WORD_BYTES),
            "type": str(key.type),
            "note": truncate_utf8(key.note, MAX_NOTE_BYTES),
            "regarding": {
                "apiVersion": about.api_version,
                "kind": about.kind,
                "name": about.name,
                **({"namespace": about.namespace} if about.namespace else {}),
                **({"uid": about.uid} if about.uid else {}),
            },
        }
        if state.count > 1:
            event["series"] = series
        return EventWrite(key, namespace, state.name, manifest=event)

    def _can_wait(self, namespace: str) -> bool:
        return self.waiting < self.max_pending or self._waiting.newest_to_displace(namespace) is not None

    def _make_room(self, namespace: str) -> None:
        """Drops the newest event of the namespace with the most if no place is free."""
        if self.waiting < self.max_pending:
            return
        displaced = self._waiting.newest_to_displace(namespace)
        if displaced is not None:
            self._waiting.discard(displaced)
            del self._states[displaced]
            self._unwritten.pop(displaced, None)
            self.dropped += 1

    def _take_token(self, about: ObjectReference, now: float) -> bool:
        """Takes one token from the object's token bucket. Returns False if it is empty."""
        full = float(KUBE_EVENT_BURST)
        bucket = self._buckets.pop(about, None) or _TokenBucket(full, now)
        bucket.tokens = min(full, bucket.tokens + (now - bucket.updated_at) / KUBE_EVENT_REFILL_SECONDS)
        bucket.updated_at = now
        self._buckets[about] = bucket
        if len(self._buckets) > self.max_events:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def _forget_oldest(self) -> None:
        while len(self._states) > self.max_events:
            key, state = self._states.popitem(last=False)
            self._unwritten.pop(key, None)
            self._waiting.discard(key)
            self.dropped += state.count > state.written


def write_count(write: EventWrite) -> int:
    series = (write.manifest or write.patch or {}).get("series") or {}
    return int(series.get("count", 1))


def truncate_utf8(text: str, max_bytes: int) -> str:
    """Returns `text` in at most `max_bytes` bytes of UTF-8, with an ellipsis if it was longer."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    return raw[: max_bytes - 3].decode("utf-8", "ignore") + "…"


def _event_name(key: EventKey, instance: str, wall: float) -> str:
    """Returns a unique name: the object's name and a digest of content, time and writer."""
    content = "\0".join((instance, key.type, key.reason, key.action, key.note, f"{wall:.6f}"))
    digest = blake2b(f"{key.regarding}\0{content}".encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"{key.regarding.name[:200].rstrip('.-')}.{digest}"
