"""Which events are to be written, as a pure table: a repeated one is counted, a flood is cut, everything is bounded.

An event is the same when it says the same about the same object. It is written when it first happens, then only how often it
happened, after 10 s, 20 s, 40 s … of gathering. An object that has more to say than anybody will read is cut off for a while, alone.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

from fairlead.kube.resource import EVENTS, Manifest, micro_time, name_of, namespace_of, uid_of
from fairlead.limits import Limits

NOTE_BYTES = 1024
WORD_BYTES = 128
"""What the API server takes of a note, and of a reason and an action."""


class EventType(StrEnum):
    """How bad it is."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Reference:
    """The object that an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    def __hash__(self) -> int:
        return hash((self.uid, self.name))  # nearly always enough to tell them apart


@dataclass(frozen=True, slots=True)
class Happening:
    """What one event says: ``reason`` and ``action`` are CamelCase words, ``note`` is a sentence for people."""

    regarding: Reference
    type: EventType
    reason: str
    action: str
    note: str

    def __hash__(self) -> int:
        return hash((self.regarding.uid, self.note))


@dataclass(frozen=True, slots=True)
class Write:
    """One thing to write: a new event, or (``patch``) how often it happened by now."""

    happening: Happening
    namespace: str
    name: str
    manifest: Manifest | None = None
    patch: Manifest | None = None


@dataclass(slots=True)
class _Told:
    """What became of one event. Times are monotonic seconds, but for ``last_wall``."""

    name: str
    first_wall: float
    last_wall: float
    seen_at: float
    due_at: float
    gather_seconds: float
    count: int = 1
    written: int = 0


@dataclass(slots=True)
class _Allowance:
    tokens: float
    at: float


@dataclass(slots=True)
class Ledger:
    """The events of one reporter. ``controller`` is a qualified name (``fairlead.io/operator``), ``instance`` that of the process."""

    controller: str
    instance: str
    limits: Limits
    dropped: int = 0
    waiting: int = 0
    _told: "OrderedDict[Happening, _Told]" = field(default_factory=OrderedDict)
    # Those that hold something unwritten, in the same order: what was told long ago is not looked through for every new one.
    _open: "OrderedDict[Happening, _Told]" = field(default_factory=OrderedDict)
    _allowed: "OrderedDict[Reference, _Allowance]" = field(default_factory=OrderedDict)

    def note(self, happening: Happening, now: float, wall: float) -> None:
        """It happened, now."""
        told = self._told.get(happening)
        if told is not None and told.written and now - told.seen_at > self.limits.kube_series_end_seconds:
            del self._told[happening]
            self._open.pop(happening, None)
            told = None
        if told is not None:
            told.count += 1
            told.last_wall, told.seen_at = wall, now
            self._told.move_to_end(happening)
            self._open[happening] = told
            self._open.move_to_end(happening)
        elif self.waiting >= self.limits.kube_events_waiting or not self._may(happening.regarding, now):
            self.dropped += 1
        else:
            name = _name(happening, self.instance, wall)
            told = _Told(name, wall, wall, now, now, self.limits.kube_series_seconds)
            self._told[happening] = self._open[happening] = told
            self.waiting += 1
            self._forget_oldest()

    def due(self, now: float) -> list[Write]:
        """What is to be written now; say of each what became of it: ``written``, ``later``, ``gone`` or ``lost``."""
        return [self._write(happening, told) for happening, told in self._open.items() if told.due_at <= now]

    def rest(self) -> list[Write]:
        """Everything that is not written yet, for the end of a process."""
        return [self._write(happening, told) for happening, told in self._open.items()]

    def next_due_at(self) -> float | None:
        """When something will be due; None while nothing is."""
        return min((told.due_at for told in self._open.values()), default=None)

    def written(self, write: Write, count: int, now: float) -> None:
        """It is written, with ``count``."""
        told = self._told.get(write.happening)
        if told is None:
            return
        self.waiting -= not told.written
        told.written = count
        if told.count <= count:
            self._open.pop(write.happening, None)
        self._put_off(told, now)

    def later(self, write: Write, now: float) -> None:
        """Not before a while has passed, a longer one each time."""
        told = self._told.get(write.happening)
        if told is not None:
            self._put_off(told, now)

    def lost(self, write: Write) -> None:
        """It cannot be written: forgotten, as if it had never happened."""
        told = self._told.pop(write.happening, None)
        if told is not None:
            self._open.pop(write.happening, None)
            self.waiting -= not told.written
            self.dropped += 1

    def gone(self, write: Write) -> None:
        """The event was there and has been deleted (the API server keeps them an hour): the next writing makes it anew."""
        told = self._told.get(write.happening)
        if told is not None:
            self.waiting += bool(told.written)
            told.written, told.due_at, told.name = (
                0,
                told.seen_at,
                _name(write.happening, self.instance, told.last_wall),
            )
            self._open[write.happening] = told

    def _put_off(self, told: _Told, now: float) -> None:
        told.due_at = now + told.gather_seconds
        told.gather_seconds = min(self.limits.kube_series_most_seconds, 2 * told.gather_seconds)

    def _write(self, happening: Happening, told: _Told) -> Write:
        about = happening.regarding
        namespace = about.namespace or "default"  # events about objects of the whole cluster live there
        series = {"count": told.count, "lastObservedTime": micro_time(told.last_wall)}
        if told.written:
            return Write(happening, namespace, told.name, patch={"series": series})
        event: Manifest = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": told.name, "namespace": namespace},
            "eventTime": micro_time(told.first_wall),
            "reportingController": self.controller,
            "reportingInstance": cut(self.instance, WORD_BYTES),
            "action": cut(happening.action, WORD_BYTES),
            "reason": cut(happening.reason, WORD_BYTES),
            "type": str(happening.type),
            "note": cut(happening.note, NOTE_BYTES),
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
        return Write(happening, namespace, told.name, manifest=event)

    def _may(self, about: Reference, now: float) -> bool:
        """One token of the object's bucket, if there is one."""
        full = float(self.limits.kube_event_burst)
        found = self._allowed.pop(about, None) or _Allowance(full, now)
        found.tokens = min(full, found.tokens + (now - found.at) / self.limits.kube_event_refill_seconds)
        found.at = now
        self._allowed[about] = found
        if len(self._allowed) > self.limits.kube_events:
            self._allowed.popitem(last=False)
        if found.tokens < 1.0:
            return False
        found.tokens -= 1.0
        return True

    def _forget_oldest(self) -> None:
        while len(self._told) > self.limits.kube_events:
            happening, told = self._told.popitem(last=False)
            self._open.pop(happening, None)
            self.waiting -= not told.written
            self.dropped += told.count > told.written


def reference_of(manifest: Manifest) -> Reference:
    """The object itself, as events name it."""
    return Reference(
        str(manifest.get("apiVersion", "")),
        str(manifest.get("kind", "")),
        namespace_of(manifest) or "",
        name_of(manifest),
        uid_of(manifest),
    )


def count_of(write: Write) -> int:
    """How often it had happened when this was to be written."""
    series = (write.manifest or write.patch or {}).get("series") or {}
    return int(series.get("count", 1))


def cut(text: str, most: int) -> str:
    """``text`` in at most ``most`` bytes of UTF-8, with an ellipsis where it was longer."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= most:
        return raw.decode()
    return raw[: most - 3].decode("utf-8", "ignore") + "…"


def _name(happening: Happening, instance: str, wall: float) -> str:
    """A name of its own in the namespace: the object's, and a digest of what was said, when, by whom."""
    said = "\0".join((instance, happening.type, happening.reason, happening.action, happening.note, f"{wall:.6f}"))
    digest = blake2b(f"{happening.regarding}\0{said}".encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"{happening.regarding.name[:200].rstrip('.-')}.{digest}"
