"""What a worker tells without being asked: its dispatches, for its siblings' mirrors; its decisions and loads, for Redis.

The request's way only puts things aside. They go out together a twentieth of a second after the first of them. A worker that has
neither siblings nor a Redis tells nothing, and then nothing of this is called.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.ipc.decision_codec import encode_record
from fairlead_gateway.ipc.messages import Dispatch, EncodedLoad, WorkerReport
from fairlead_gateway.routing import InstanceLoad, PrefixChain, RouteRequest
from fairlead_gateway.telemetry.decision_log import DecisionRecord

_IMMEDIATE_FLUSH_COUNT = 64
_encode = msgspec.msgpack.Encoder().encode


class MessageSender(Protocol):
    """Where it goes: the channel."""

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        ...


class DispatchReporter:
    """``loads`` says what is in flight by instance. Its methods are hooks of the router and of the decision log."""

    def __init__(
        self,
        sender: MessageSender,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        *,
        publish: bool,
        loads: Callable[[], Mapping[str, InstanceLoad]],
    ) -> None:
        self._sender = sender
        self._loop = loop
        self._limits = limits
        self._publish = publish
        self._loads = loads
        self._dispatched: deque[tuple[str, str, PrefixChain, Hashable]] = deque()
        self._crashes: list[tuple[bytes, str, float, float]] = []
        self._cleared: list[tuple[bytes, float]] = []
        self._records: deque[DecisionRecord] = deque()
        self._reported_loads: dict[str, EncodedLoad] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._dropped = 0

    def on_dispatch(self, model: str, request: RouteRequest, instance: str) -> None:
        """A prompt was sent to an instance."""
        if len(self._dispatched) >= self._limits.sibling_decisions_pending:
            self._dispatched.popleft()
        self._dispatched.append((model, instance, request.chain, request.session_hash))
        self._schedule_flush(len(self._dispatched))

    def on_crash(self, fingerprint: bytes, instance: str, sent_at: float, crashed_at: float) -> None:
        """An instance broke off on a body that it had since ``began``: the siblings should know before it is sent to them."""
        if len(self._crashes) < self._limits.quarantined_fingerprints:
            self._crashes.append((fingerprint, instance, sent_at, crashed_at))
        self.flush()

    def on_cleared(self, fingerprint: bytes, answered_at: float) -> None:
        """A body on which an instance broke off was answered."""
        if len(self._cleared) < self._limits.quarantined_fingerprints:
            self._cleared.append((fingerprint, answered_at))
        self.flush()

    def on_decision(self, record: DecisionRecord) -> None:
        """A choice was made."""
        if len(self._records) >= self._limits.published_decisions_pending:
            self._records.popleft()
            self._dropped += 1
        self._records.append(record)
        self._schedule_flush(len(self._records))

    def flush(self) -> None:
        """Tell what waits now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sent = None
        if self._dispatched:
            sent = _encode([_encode_dispatch(*item) for item in self._dispatched])
            self._dispatched.clear()
        deaths, self._crashes = self._crashes, []
        cleared, self._cleared = self._cleared, []
        records = [encode_record(record) for record in self._records]
        self._records.clear()
        loads = self._changed_loads() if self._publish else None
        if sent is None and not deaths and not cleared and not records and loads is None:
            return
        if self._sender.send(WorkerReport(sent, deaths, records, loads, self._dropped, cleared)):
            self._dropped = 0
        else:
            self._dropped += len(records)
        if self._reported_loads:  # in flight: its end is to be told too
            self._schedule_flush(0)

    def _changed_loads(self) -> dict[str, EncodedLoad] | None:
        found = {
            item: EncodedLoad(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
            for item, load in self._loads().items()
            if load.inflight
        }
        if found == self._reported_loads:
            if found:
                self._schedule_flush(0)
            return None
        self._reported_loads = found
        return found

    def _schedule_flush(self, waiting: int) -> None:
        if waiting == _IMMEDIATE_FLUSH_COUNT and self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(0, self.flush)
        elif self._timer is None:
            self._timer = self._loop.call_later(self._limits.sibling_batch_seconds, self.flush)


def _encode_dispatch(model: str, instance: str, chain: PrefixChain, pin: Hashable) -> Dispatch:
    return Dispatch(model, instance, array("Q", chain.hashes).tobytes(), chain.tail, pin if isinstance(pin, int) else 0)
