"""Serves requests with an `Idempotency-Key`: each runs once, for all clients that send it.

Each key has one gateway that owns it, and one worker there; others forward requests to it.

A request whose clients have all left runs on for `idempotency_unread_seconds`, since they may come
back. Then it is cancelled, as one without a key is at once. Meanwhile its body counts among the
bytes of its caller, who has at most `MAX_UNREAD` such requests.
"""

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Final

from fairlead_gateway.caller_key import Caller, CallerKey, caller_key
from fairlead_gateway.errors import Overloaded
from fairlead_gateway.http.listener import DetachedTransport, HttpRequest, ResponseWriter
from fairlead_gateway.http.timers import TimeoutEntry, TimeoutQueue
from fairlead_gateway.idempotency.answer_table import ABANDONED, HEADER, AnswerTable, KeyedAnswer, check_key
from fairlead_gateway.idempotency.worker.answer_recording import ClientReader, RecordedResponse
from fairlead_gateway.idempotency.worker.owner_forwarding import (
    FINAL,
    FOR_GATEWAY,
    FOR_WORKER,
    FORWARDED,
    IF_KNOWN,
    UNKNOWN_HEADER,
    OwnerForwarding,
)
from fairlead_gateway.runtime import WorkerRuntime

RUN: Final = "idempotency_run"
JOINED: Final = "idempotency_joined"
RETURNED: Final = "idempotency_returned"
RERUN: Final = "idempotency_rerun_"
"""Names of counters, the last with a reason behind it."""
WORKER_LOST: Final = "worker-lost"
"""The reason of a request whose owner ended before its answer started."""
GATEWAY_LOST: Final = "gateway-lost"
"""The reason of a request that a gateway may have computed which does not answer any more."""
MAX_UNREAD: Final = 32
"""Limit: requests of one caller that run without a client; above it, the oldest are cancelled."""
MAX_READERS: Final = 64
"""Limit: clients of one running answer, since each part of it goes to all of them at once."""
_SWEEP_SHARE: Final = 0.25  # of the window, at most until ended answers are forgotten

StartRequest = Callable[[HttpRequest, ResponseWriter], None]


class _UnreadAnswer(TimeoutEntry):
    """A running answer that no client reads."""

    __slots__ = ("_abandon", "_answer")

    def __init__(self, answer: KeyedAnswer, abandon: Callable[[KeyedAnswer], None]) -> None:
        super().__init__()
        self._answer = answer
        self._abandon = abandon

    def on_timeout(self) -> None:
        self._abandon(self._answer)


class KeyedRequests:
    """The requests with a key of one worker.

    start_request: serves a request.
    forwarding: to the workers and gateways that own other keys; None without them.
    count_replay: counts an answer that is returned once more; raises GatewayError beyond a limit.
    on_replayed: called with the status of an answer that was sent to a further client.
    counters: of the process, by name.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        start_request: StartRequest,
        on_replayed: Callable[[HttpRequest, ResponseWriter, int], None],
        counters: dict[str, int],
    ) -> None:
        self._limits = runtime.limits
        self._loop = runtime.loop
        self._runtime = runtime
        self._now = runtime.now
        self._start_request = start_request
        self._on_replayed = on_replayed
        self._counters = counters
        self.table = AnswerTable(runtime.limits)
        self.forwarding: OwnerForwarding | None = None
        self.count_replay: Callable[[Caller | None], object] = caller_key  # set by the gateway
        self._running: dict[KeyedAnswer, RecordedResponse] = {}
        self._unread: dict[CallerKey, dict[KeyedAnswer, _UnreadAnswer]] = {}  # oldest first
        self._unread_times = TimeoutQueue(runtime.loop, runtime.limits.idempotency_unread_seconds, runtime.now)
        self._sweeper: asyncio.TimerHandle | None = None

    def handle(self, http_request: HttpRequest, response: ResponseWriter) -> None:
        """Answers a request with a key.

        Raises BadRequest for an invalid key, and IdempotencyKeyReused for that of another request.
        """
        key, caller = request_key(http_request, self._limits.idempotency_key_bytes), caller_key(http_request.caller)
        forwarding, value = self.forwarding, http_request.head.get(FORWARDED)
        if forwarding is not None and (
            value is None or not forwarding.is_trusted_sender(response.client_address(), value)
        ):
            value = b""  # a client's request: only a trusted sender chooses where a key is computed
            owners = forwarding.gateways_for(caller, key)
            if owners and (forwarding.owns_keys or not self.table.has(caller, key)):
                forwarding.forward_to_gateways(
                    owners,
                    FOR_GATEWAY,
                    http_request,
                    response,
                    lambda _: self._handle_here(caller, key, b"", http_request, response),
                )
                return
        self._handle_here(caller, key, value or b"", http_request, response)

    def _handle_here(
        self, caller: CallerKey, key: bytes, value: bytes, http_request: HttpRequest, response: ResponseWriter
    ) -> None:
        """Answers a request in this gateway: here, or by the worker that owns its key.

        value: of the header of another gateway or worker; empty for a client's request.
        """
        forwarding = self.forwarding
        if forwarding is not None and not response.is_draining and not value.startswith(FOR_WORKER):
            worker = forwarding.worker_of(caller, key)
            if worker is not None:
                suffix = next((suffix for suffix in (IF_KNOWN, FINAL) if value.endswith(suffix)), b"")
                forwarding.forward_to_worker(worker, FOR_WORKER + suffix, http_request, response)
                return
        self.serve(caller, key, value, http_request, response)

    def count_lost_owner(self) -> None:
        self.count(RERUN + WORKER_LOST)

    def serve(
        self, caller: CallerKey, key: bytes, value: bytes, http_request: HttpRequest, response: ResponseWriter
    ) -> None:
        """Answers a request from this worker's answers or another gateway's, or runs it."""
        forwarding, fingerprint = self.forwarding, request_fingerprint(http_request)
        answer = self.table.find(caller, key, fingerprint, self._now())
        if forwarding is not None and answer is None and value.endswith(IF_KNOWN):
            response.send(404, UNKNOWN_HEADER, b"{}")
            return
        if answer is not None or forwarding is None:
            self._join_or_run(caller, key, fingerprint, http_request, response)
            return

        def run(was_unreachable: bool) -> None:
            is_lost = was_unreachable or forwarding.has_lost_owner(caller, key)
            self._join_or_run(caller, key, fingerprint, http_request, response, GATEWAY_LOST if is_lost else "")

        def forward_or_run(_: bool) -> None:
            owners = [] if value.endswith(FINAL) else forwarding.gateways_before(caller, key)
            forwarding.forward_to_gateways(owners, FOR_GATEWAY + FINAL, http_request, response, run)

        earlier = forwarding.earlier_owners(caller, key)
        forwarding.forward_to_gateways(earlier, FOR_GATEWAY + IF_KNOWN, http_request, response, forward_or_run)

    def _join_or_run(
        self,
        caller: CallerKey,
        key: bytes,
        fingerprint: bytes,
        http_request: HttpRequest,
        response: ResponseWriter,
        lost: str = "",
    ) -> None:
        """Answers a request from this worker's answers, or runs it.

        lost: why an answer elsewhere may be lost; empty if there was none.
        """
        answer = self.table.find(caller, key, fingerprint, self._now())
        if answer is not None and not answer.lost:
            if len(answer.readers) >= MAX_READERS:
                raise Overloaded("too many clients wait for the answer under this key", hint="try again later")
            if not answer.is_running:
                self.count_replay(http_request.caller)
            self.count(JOINED if answer.is_running else RETURNED)
            self._forget_unread(answer)
            self._attach(answer, response, partial(self._on_replay_left, http_request, response), is_replay=True)
            return
        reason = lost if answer is None else answer.lost
        self.count(RERUN + reason if reason else RUN)
        answer = self.table.start(caller, key, fingerprint)
        count_bytes = partial(self._runtime.count_detached_bytes, caller)
        transport = DetachedTransport(response.client_address(), count_bytes)
        recorded = RecordedResponse(self.table, answer, http_request, transport, self._now, self._on_end)
        self._running[answer] = recorded
        size = len(http_request.body)
        self._attach(answer, response, partial(self._on_first_left, transport, size), is_replay=False)
        self._start_request(http_request, recorded)
        self._schedule_sweep()

    def count(self, name: str) -> None:
        self._counters[name] = self._counters.get(name, 0) + 1

    def close(self) -> None:
        """Stops all timers, and ends requests that are forwarded."""
        if self.forwarding is not None:
            self.forwarding.close()
        self._unread_times.clear()
        self._unread.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _attach(
        self,
        answer: KeyedAnswer,
        response: ResponseWriter,
        on_left: Callable[[KeyedAnswer], None],
        *,
        is_replay: bool,
    ) -> None:
        running = self._running.get(answer)
        on_read = running.adjust_speed if running is not None else None
        ClientReader(answer, response, on_left, on_read, is_replay=is_replay)

    def _on_replay_left(self, http_request: HttpRequest, response: ResponseWriter, answer: KeyedAnswer) -> None:
        if answer.head is not None:
            self._on_replayed(http_request, response, answer.head.status)
        self._on_left(answer)

    def _on_first_left(self, transport: DetachedTransport, size: int, answer: KeyedAnswer) -> None:
        """Counts the body of a request whose own client has left."""
        if answer.is_running:
            transport.hold(size)
        self._on_left(answer)

    def _on_left(self, answer: KeyedAnswer) -> None:
        """Gives clients of a running answer a while to come back, once the last has left."""
        running = self._running.get(answer)
        if running is None or not answer.is_running:
            return
        running.adjust_speed()
        if answer.readers:
            return
        if answer.lost:
            self._loop.call_soon(self._abandon, answer)
            return
        unread = self._unread.setdefault(answer.caller, {})
        entry = unread[answer] = _UnreadAnswer(answer, self._abandon)
        self._unread_times.add(entry, self._now())
        if len(unread) > MAX_UNREAD:
            oldest = next(iter(unread))
            self._forget_unread(oldest)
            self._loop.call_soon(self._abandon, oldest)

    def _forget_unread(self, answer: KeyedAnswer) -> None:
        unread = self._unread.get(answer.caller, {})
        entry = unread.pop(answer, None)
        if entry is not None:
            self._unread_times.remove(entry)
            if not unread:
                del self._unread[answer.caller]

    def _abandon(self, answer: KeyedAnswer) -> None:
        if answer.readers:
            return
        self._forget_unread(answer)
        recorded = self._running.pop(answer, None)
        if recorded is not None:
            self.table.lose(answer, ABANDONED)
            recorded.on_connection_lost()

    def _on_end(self, answer: KeyedAnswer) -> None:
        self._running.pop(answer, None)
        self._forget_unread(answer)

    def _schedule_sweep(self) -> None:
        if self._sweeper is None:
            seconds = self._limits.idempotency_window_seconds * _SWEEP_SHARE
            self._sweeper = self._loop.call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        if self.table.expire(self._now()):
            self._loop.call_soon(self._sweep)
        elif len(self.table):
            self._schedule_sweep()


def request_key(http_request: HttpRequest, max_bytes: int) -> bytes:
    """Returns the key of a request that has the header. Raises BadRequest if it is not valid."""
    return check_key([value for name, value in http_request.head.fields if name == HEADER], max_bytes)


def request_fingerprint(http_request: HttpRequest) -> bytes:
    """Returns the digest of path, query and body, which equal requests share."""
    head = http_request.head
    digest = hashlib.blake2b(digest_size=32)
    for part in (head.path.encode("utf-8", "surrogateescape"), head.query, http_request.body):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
