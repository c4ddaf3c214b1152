"""The outbox of a gateway: what is still to be published to other gateways, and when.

Pure: it creates batches, the caller writes them. A model's batch is due when prompts were sent or
its loads have changed. It is also a heartbeat: often while the model has requests in flight, seldom
while it has none. All idle models together send at most `idle_heartbeats` a second. What could not
be written is queued again; beyond the bound, the newest prompts are kept.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from fairlead_gateway.peers.peer_messages import (
    DISPATCH_ENTRY_BYTES,
    ENTRY_OVERHEAD_BYTES,
    HASH_BYTES,
    PEER_TENANTS,
    PeerBatch,
    PeerLoad,
    SentPrompt,
    split_loads,
)

HEARTBEAT_SECONDS: Final = 0.5
"""Limit: heartbeats of a gateway with requests in flight; after three missed ones its load counts
no more.
"""
IDLE_HEARTBEAT_SECONDS: Final = 5.0
"""Limit: the same for a model without requests in flight."""
BUSY_HEARTBEATS: Final = 500
"""Limit: models with requests in flight that one gateway reports per second."""
IDLE_HEARTBEATS: Final = 200
"""Limit: the same for models without."""
DISPATCHES_PENDING: Final = 4_096
"""Limit: dispatches buffered for other gateways while Redis is away; the oldest are dropped."""
DISPATCH_BLOCKS: Final = 512
"""Limit: prompt hashes sent to other gateways: the first 450,000 tokens."""


@dataclass(slots=True)
class _LastBatch:
    number: int
    sent_at: float
    loads: Mapping[str, PeerLoad]


class PeerOutbox:
    """The outbox of one run of this gateway."""

    def __init__(
        self,
        secret_fingerprint: bytes,
        *,
        max_pending: int = DISPATCHES_PENDING,
        max_blocks: int = DISPATCH_BLOCKS,
        max_entry_bytes: int = DISPATCH_ENTRY_BYTES,
    ) -> None:
        self._secret_fingerprint = secret_fingerprint
        self._max_pending, self._max_blocks, self._max_entry_bytes = max_pending, max_blocks, max_entry_bytes
        self._pending: dict[str, deque[SentPrompt]] = {}
        self._pending_count = 0
        self._last_batches: dict[str, _LastBatch] = {}
        self._busy_models: set[str] = set()
        self._service: dict[str, dict[str, float]] = {}
        self.dropped = 0

    def add(self, model: str, instance: str, hashes: bytes, tail: int, session_hash: int = 0) -> None:
        """Queues a dispatch. If too many wait, the model's oldest is dropped, or else this one.

        The end of a long prompt is left out: its start is enough for routing.
        """
        pending = self._pending.setdefault(model, deque())
        if self._pending_count >= self._max_pending:
            self.dropped += 1
            if not pending:
                return
            pending.popleft()
            self._pending_count -= 1
        pending.append((instance, hashes[: self._max_blocks * HASH_BYTES], tail, session_hash))
        self._pending_count += 1

    def add_service(self, model: str, service: Mapping[str, float]) -> None:
        """Adds what was served of each tenant; it goes with the model's next batch."""
        total = self._service.setdefault(model, {})
        for tenant, seconds in service.items():
            if tenant in total or len(total) < PEER_TENANTS:
                total[tenant] = total.get(tenant, 0.0) + seconds

    def __len__(self) -> int:
        return self._pending_count

    def take_due(
        self, models: Collection[str], loads: Mapping[str, Mapping[str, PeerLoad]], now: float, *, is_beat: bool
    ) -> list[tuple[str, PeerBatch]]:
        """Takes prompts from the queue; returns the batches that are due, by model and in order.

        is_beat: also models without changes; to be set about twice a second.

        Each batch must then be passed to `on_written`, `on_refused` or `requeue`.
        """
        quiet_seconds = max(IDLE_HEARTBEAT_SECONDS, len(models) / IDLE_HEARTBEATS)
        busy_seconds = max(HEARTBEAT_SECONDS, len(loads) / BUSY_HEARTBEATS)
        considered = (
            models
            if is_beat
            else [model for model in {*self._pending, *loads, *self._busy_models, *self._service} if model in models]
        )
        due_batches: list[tuple[str, PeerBatch]] = []
        for model in considered:
            last, present = self._last_batches.get(model), loads.get(model, {})
            pending = self._pending.pop(model, ())
            self._pending_count -= len(pending)
            changed = present != (last.loads if last is not None else {})
            within = busy_seconds if present else quiet_seconds
            due = last is None or now - last.sent_at >= within
            service = self._service.pop(model, {})
            if pending or due or changed or service:
                number = last.number if last is not None else 0
                reported = dict(present) if due or changed else None
                batches = self._number_batches(model, number, pending, within, reported)
                if service:
                    batches[0] = model, structs.replace(batches[0][1], service=service)
                due_batches += batches
        return due_batches

    def _number_batches(
        self,
        model: str,
        number: int,
        pending: Collection[SentPrompt],
        within: float,
        reported: dict[str, PeerLoad] | None,
    ) -> list[tuple[str, PeerBatch]]:
        pieces = self._split(pending)
        batches = [
            (model, PeerBatch(number + index, within, self._secret_fingerprint, items))
            for index, items in enumerate(pieces, 1)
        ]
        if reported is not None:
            loads, queued = split_loads(reported)
            batches[0] = model, structs.replace(batches[0][1], loads=loads, queued=queued)
        return batches

    def _split(self, pending: Collection[SentPrompt]) -> list[tuple[SentPrompt, ...]]:
        """Splits prompts into groups of bounded size; at least one."""
        pieces: list[tuple[SentPrompt, ...]] = []
        items: list[SentPrompt] = []
        size = 0
        for item in pending:
            if items and size + len(item[1]) + ENTRY_OVERHEAD_BYTES > self._max_entry_bytes:
                pieces.append(tuple(items))
                items, size = [], 0
            items.append(item)
            size += len(item[1]) + ENTRY_OVERHEAD_BYTES
        return [*pieces, tuple(items)]

    def on_written(self, model: str, batch: PeerBatch, now: float) -> None:
        """Records the last batch that other gateways can read: its number, time and loads."""
        last = self._last_batches.get(model)
        known = last.loads if last is not None else {}
        found = batch.peer_loads()
        loads = known if found is None else found
        self._last_batches[model] = _LastBatch(batch.number, now, loads)
        if loads:
            self._busy_models.add(model)
        else:
            self._busy_models.discard(model)

    def on_refused(self, batch: PeerBatch) -> None:
        self.dropped += len(batch.sent)

    def requeue(self, batches: Sequence[tuple[str, PeerBatch]]) -> None:
        """Queues batches again because Redis was away; the newest prompts are kept."""
        for model, batch in reversed(batches):
            self.add_service(model, batch.service)
            free = max(0, self._max_pending - self._pending_count)
            kept = batch.sent[max(0, len(batch.sent) - free) :]
            self.dropped += len(batch.sent) - len(kept)
            if kept:
                self._pending.setdefault(model, deque()).extendleft(reversed(kept))
                self._pending_count += len(kept)

    def retain(self, models: Collection[str]) -> None:
        """Forgets models that left the fleet."""
        for gone in [model for model in self._pending if model not in models]:
            self._pending_count -= len(self._pending.pop(gone))
        self._service = {model: service for model, service in self._service.items() if model in models}
        for gone in [model for model in self._last_batches if model not in models]:
            del self._last_batches[gone]
            self._busy_models.discard(gone)

    def farewell_batches(self) -> list[tuple[str, PeerBatch]]:
        """Returns, for every published model, a batch that says that there is no more."""
        return [
            (model, PeerBatch(told.number + 1, 0.0, self._secret_fingerprint, leaves=True))
            for model, told in self._last_batches.items()
        ]
