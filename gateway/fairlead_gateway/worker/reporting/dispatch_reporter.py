"""Reports dispatches, crashes, decisions and loads to the supervisor.

Dispatches and crashes go on to the sibling workers; dispatches, decisions and loads to Redis. A
worker without siblings and without Redis has no reporter.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Mapping

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.ipc.batch_sender import BatchSender, MessageSender
from fairlead_gateway.ipc.decision_codec import encode_record
from fairlead_gateway.ipc.messages import Dispatch, EncodedLoad, WorkerReport
from fairlead_gateway.routing import InstanceLoad, PrefixChain, RouteRequest
from fairlead_gateway.telemetry.decision_log import DecisionRecord

_IMMEDIATE_FLUSH_COUNT = 64
_encode = msgspec.msgpack.Encoder().encode


class DispatchReporter:
    """The collector of one worker's reports. Its methods are hooks of routers and decision log.

    publish: decisions and loads go to Redis.
    loads: returns the worker's own load by instance.
    take_service: returns what was served since its last call, by model and tenant.
    """

    def __init__(
        self,
        sender: MessageSender,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        *,
        publish: bool,
        loads: Callable[[], Mapping[str, InstanceLoad]],
        take_service: Callable[[], dict[str, dict[str, float]]] = dict,
    ) -> None:
        self._take_service = take_service
        self._limits = limits
        self._publish = publish
        self._loads = loads
        self._dispatched: deque[tuple[str, str, PrefixChain, Hashable]] = deque()
        self._crashes: list[tuple[bytes, str, float, float]] = []
        self._cleared: list[tuple[bytes, float]] = []
        self._decisions: deque[DecisionRecord] = deque()
        self._reported_loads: dict[str, EncodedLoad] = {}
        self._batch = BatchSender(sender, loop, limits.sibling_batch_seconds, self._take)

    def on_dispatch(self, model: str, request: RouteRequest, instance: str) -> None:
        """Reports a dispatched prompt with the next batch; drops the oldest if too many wait."""
        if len(self._dispatched) >= self._limits.sibling_decisions_pending:
            self._dispatched.popleft()
        self._dispatched.append((model, instance, request.chain, request.session_hash))
        self._schedule(len(self._dispatched))

    def on_crash(self, fingerprint: bytes, instance: str, sent_at: float, crashed_at: float) -> None:
        """Reports at once that an instance broke off on a body.

        Why: a sibling worker may be about to send the same body.
        """
        if len(self._crashes) < self._limits.quarantined_fingerprints:
            self._crashes.append((fingerprint, instance, sent_at, crashed_at))
        self.flush()

    def on_cleared(self, fingerprint: bytes, answered_at: float) -> None:
        """Reports at once that a suspect body was answered."""
        if len(self._cleared) < self._limits.quarantined_fingerprints:
            self._cleared.append((fingerprint, answered_at))
        self.flush()

    def on_decision(self, record: DecisionRecord) -> None:
        """Reports a decision with the next batch; drops the oldest if too many wait."""
        if len(self._decisions) >= self._limits.published_decisions_pending:
            self._decisions.popleft()
            self._batch.dropped += 1
        self._decisions.append(record)
        self._schedule(len(self._decisions))

    def flush(self) -> None:
        """Sends the collected reports now."""
        self._batch.flush()

    def _schedule(self, count: int) -> None:
        if count == _IMMEDIATE_FLUSH_COUNT:
            self._batch.hurry()
        else:
            self._batch.schedule()

    def _take(self, dropped: int) -> tuple[WorkerReport | None, int]:
        dispatches = None
        if self._dispatched:
            dispatches = _encode([_encode_dispatch(*dispatch) for dispatch in self._dispatched])
            self._dispatched.clear()
        crashes, self._crashes = self._crashes, []
        cleared, self._cleared = self._cleared, []
        decisions = [encode_record(record) for record in self._decisions]
        self._decisions.clear()
        loads = self._changed_loads() if self._publish else None
        if self._reported_loads:  # requests are in flight, and their end is to be reported too
            self._batch.schedule()
        service = self._take_service()
        is_empty = dispatches is None and not crashes and not cleared and not decisions and loads is None
        if is_empty and not service:
            return None, 0
        return WorkerReport(dispatches, crashes, decisions, loads, dropped, cleared, service), len(decisions)

    def _changed_loads(self) -> dict[str, EncodedLoad] | None:
        loads = {
            name: EncodedLoad(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens, load.queued)
            for name, load in self._loads().items()
            if load.inflight
        }
        if loads == self._reported_loads:
            return None
        self._reported_loads = loads
        return loads


def _encode_dispatch(model: str, instance: str, chain: PrefixChain, session_hash: Hashable) -> Dispatch:
    hashes = array("Q", chain.hashes).tobytes()
    return Dispatch(model, instance, hashes, chain.tail, session_hash if isinstance(session_hash, int) else 0)
