"""What a gateway has still to tell the others, and when. Pure: it makes batches, somebody else writes them.

A model's batch is due when prompts were sent or its loads have changed, and as a heartbeat: often while it has
requests in flight, since others count on these, and seldom while it has none. A thousand models that rest are not told of more
often than ``quiet_beats`` a second all together. What could not be written is kept, the newest of it.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fairlead.limits import Limits
from fairlead_kvstore.exchange.records import HASH_BYTES, Batch, Load, Sent

_ITEM_BYTES = 128
"""Around the hashes of one prompt: the instance's name, the end's hash."""


@dataclass(slots=True)
class _Told:
    number: int
    at: float
    loads: Mapping[str, Load]


class Outgoing:
    """``secret`` is the print of the installation's."""

    def __init__(self, secret: bytes, limits: Limits) -> None:
        self._secret = secret
        self._limits = limits
        self._waiting: dict[str, deque[Sent]] = {}
        self._count = 0
        self._told: dict[str, _Told] = {}
        self._busy: set[str] = set()
        self.dropped = 0

    def sent(self, model: str, instance: str, hashes: bytes, tail: int, pin: int = 0) -> None:
        """A prompt was sent to an instance; the oldest of the model that wait go when too many do. A long prompt's
        end is left out: what others know of its beginning decides well enough."""
        waiting = self._waiting.setdefault(model, deque())
        if self._count >= self._limits.sent_waiting:
            self.dropped += 1
            if not waiting:
                return
            waiting.popleft()
            self._count -= 1
        waiting.append((instance, hashes[: self._limits.sent_blocks * HASH_BYTES], tail, pin))
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def batches(
        self, models: Collection[str], loads: Mapping[str, Mapping[str, Load]], now: float, *, beats: bool
    ) -> list[tuple[str, Batch]]:
        """What is due now of these ``models``, by model and in order. ``beats``: also where nothing has happened, which
        is to be asked about twice a second or so. Every batch is then to be ``written``, ``refused`` or put ``back``."""
        limits = self._limits
        quiet = max(limits.beat_quiet_seconds, len(models) / limits.quiet_beats)
        busy = max(limits.beat_seconds, len(loads) / limits.busy_beats)
        asked = models if beats else [model for model in {*self._waiting, *loads, *self._busy} if model in models]
        found: list[tuple[str, Batch]] = []
        for model in asked:
            told, present = self._told.get(model), loads.get(model, {})
            waiting = self._waiting.pop(model, ())
            self._count -= len(waiting)
            changed = present != (told.loads if told is not None else {})
            within = busy if present else quiet
            due = told is None or now - told.at >= within
            if waiting or due or changed:
                number = told.number if told is not None else 0
                shown = dict(present) if due or changed else None
                found += self._numbered(model, number, waiting, within, shown)
        return found

    def _numbered(
        self, model: str, number: int, waiting: Collection[Sent], within: float, shown: dict[str, Load] | None
    ) -> list[tuple[str, Batch]]:
        pieces = self._pieces(waiting)
        return [
            (model, Batch(number + index, within, self._secret, items, shown if index == 1 else None))
            for index, items in enumerate(pieces, 1)
        ]

    def _pieces(self, waiting: Collection[Sent]) -> list[tuple[Sent, ...]]:
        """At least one; each of a bounded size."""
        pieces: list[tuple[Sent, ...]] = []
        items: list[Sent] = []
        size = 0
        for item in waiting:
            if items and size + len(item[1]) + _ITEM_BYTES > self._limits.sent_entry_bytes:
                pieces.append(tuple(items))
                items, size = [], 0
            items.append(item)
            size += len(item[1]) + _ITEM_BYTES
        return [*pieces, tuple(items)]

    def written(self, model: str, batch: Batch, now: float) -> None:
        """The others can read it."""
        told = self._told.get(model)
        known = told.loads if told is not None else {}
        loads = known if batch.loads is None else batch.loads
        self._told[model] = _Told(batch.number, now, loads)
        if loads:
            self._busy.add(model)
        else:
            self._busy.discard(model)

    def refused(self, batch: Batch) -> None:
        """Redis would not take it: what it held is lost to the others."""
        self.dropped += len(batch.sent)

    def back(self, batches: Sequence[tuple[str, Batch]]) -> None:
        """Redis was away: keep what was sent, the newest of it."""
        for model, batch in reversed(batches):
            room = max(0, self._limits.sent_waiting - self._count)
            kept = batch.sent[max(0, len(batch.sent) - room) :]
            self.dropped += len(batch.sent) - len(kept)
            if kept:
                self._waiting.setdefault(model, deque()).extendleft(reversed(kept))
                self._count += len(kept)

    def keep_only(self, models: Collection[str]) -> None:
        """Forget models that have left the fleet."""
        for gone in [model for model in self._waiting if model not in models]:
            self._count -= len(self._waiting.pop(gone))
        for gone in [model for model in self._told if model not in models]:
            del self._told[gone]
            self._busy.discard(gone)

    def farewell(self) -> list[tuple[str, Batch]]:
        """For every model that others have heard of from here: that there is no more."""
        return [(model, Batch(told.number + 1, 0.0, self._secret, leaves=True)) for model, told in self._told.items()]
