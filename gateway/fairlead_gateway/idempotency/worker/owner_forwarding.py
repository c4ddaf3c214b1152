"""Carries a request with a key to the gateway that owns the key, and to the worker there.

**Gateways.** Each key has an owner among the addresses of all gateways, by a rendezvous hash. So
the end of one moves only its keys. Requests are forwarded to the public port of the owner. If that
cannot be reached, the next gateway takes its place.

Before a worker runs a request with a key that it does not know, it asks gateways that may have
computed it:

- those that rank above this one for the key, but have left the list;
- while the worker is new, the next ones by rank. They owned the key before it started.

Finally it tries those that rank above this one again, since one may have started meanwhile.

**Workers.** A digest of caller and key chooses the owner among the numbers of the workers, so all
workers agree without a message. The supervisor holds a listening socket for each number, on the
loopback interface. When a worker ends, its replacement accepts what has waited there. A request
whose owner ends before its answer starts is sent to the replacement once more.

Requests are forwarded whole, with their API key, and the owner checks them like any other.
"""

import asyncio
import hashlib
import ssl
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import EngineAuth
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import GatewayError, KeyOwnerUnavailable
from fairlead_gateway.http.listener import HttpRequest, ResponseWriter
from fairlead_gateway.http.tls_certificate import TlsCertificate
from fairlead_gateway.idempotency.messages import GatewayList
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.upstream.connection import ResponseSink, UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool

FORWARDED: Final = b"x-fairlead-key-owner"
"""The header of a forwarded request, with one of the next values."""
FOR_WORKER: Final = b"worker"
FOR_GATEWAY: Final = b"gateway"
"""The chooser of the owner: another worker, or another gateway."""
FINAL: Final = b"-final"
"""Behind such a value: no further gateway gets the request. So lists that differ make no circle."""
IF_KNOWN: Final = b"-known"
"""Behind such a value: an unknown key is not computed, but answered with `UNKNOWN_HEADER`."""
UNKNOWN_HEADER: Final = "x-fairlead-key-owner: unknown\r\n"
GATEWAYS_ASKED: Final = 3
"""Limit: gateways that are asked for the answer under a key before it is computed."""
GATEWAY_LOST_SECONDS: Final = 15
"""Limit: a gateway whose machine answers nothing for this long is lost. One that accepted no
connection in time is passed over for as long.
"""
_UNKNOWN: Final = "unknown-key"
_ATTEMPTS: Final = 3  # one over a connection that proves closed, one of a worker that ends, one more
_NOT_FORWARDED: Final = frozenset(
    b"connection content-length expect keep-alive proxy-connection te trailer transfer-encoding upgrade x-request-id "
    b"x-fairlead-key-owner".split()
)
_OWN_FIELDS: Final = frozenset(
    b"access-control-allow-origin access-control-expose-headers connection content-length date keep-alive request-id "
    b"transfer-encoding vary x-request-id".split()
)
"""Fields of an answer that each worker writes itself."""


class OwnerForwarding:
    """The way to the other workers of this gateway, and to other gateways.

    number: of this worker, from 1.
    ports: of the workers, by their numbers; empty for one.
    fail: answers a request with an error.
    on_owner_lost: called when the worker that owns a key ended under a request.
    certificate: that all gateways show; None if they listen without TLS.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        number: int,
        ports: Sequence[int],
        *,
        fail: Callable[[GatewayError, ResponseWriter, HttpRequest], None],
        on_owner_lost: Callable[[], None],
        certificate: TlsCertificate | None = None,
    ) -> None:
        limits = runtime.limits
        self._loop = runtime.loop
        self._now = runtime.now
        self._first_seconds: float = limits.idempotency_owner_seconds
        self._own_index = number - 1
        self._workers = [f"http://127.0.0.1:{port}" for port in ports]
        self._scheme = "http" if certificate is None else "https"
        self._gateways = GatewayList()
        self._young_seconds: float = 2 * limits.idempotency_window_seconds  # answers may end long after they began
        self._young_until = 0.0
        self._passed_over_until: dict[str, float] = {}
        self._fail = fail
        self._on_owner_lost = on_owner_lost
        self._pool = ConnectionPool(
            replace(limits, unresponsive_seconds=self._first_seconds),  # a gateway that drains refuses probes
            runtime.loop,
            _PeerCredentials(runtime.now, certificate),
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def update_gateways(self, gateways: GatewayList) -> None:
        """Replaces the list of gateways."""
        if self._is_listed(gateways) and not self._is_listed(self._gateways):
            self._young_until = self._now() + self._young_seconds
        self._gateways = gateways
        known = gateways.present + gateways.leaving
        self._passed_over_until = {name: end for name, end in self._passed_over_until.items() if name in known}
        self._pool.retain(frozenset([*self._workers, *[f"{self._scheme}://{name}" for name in known]]))

    def is_trusted_sender(self, client_address: str | None, value: bytes) -> bool:
        """Whether a `FORWARDED` header with this value counts when it comes from this address.

        Any sender on this machine is trusted. Other machines are if they are listed gateways and
        the value is not for workers.

        Why: else clients would choose where their requests are computed.
        """
        known = [] if value.startswith(FOR_WORKER) else [*self._gateways.present, *self._gateways.leaving]
        hosts = {name.rpartition(":")[0].strip("[]") for name in known}
        address = "" if client_address is None else client_address.removeprefix("::ffff:")
        return address.startswith("127.") or address == "::1" or address in hosts

    def worker_of(self, caller: CallerKey, key: bytes) -> str | None:
        """Returns the address of the worker that owns a key; None if it is this one."""
        index = owner_index(caller, key, len(self._workers)) if self._workers else self._own_index
        return None if index == self._own_index else self._workers[index]

    @property
    def owns_keys(self) -> bool:
        return self._is_listed(self._gateways) or not self._gateways.present

    def gateways_for(self, caller: CallerKey, key: bytes) -> list[str]:
        """Returns the gateways that a client's request goes to, the owner first.

        Those before this one; all others while it is not in the list.
        """
        before, behind = self._ranked(caller, key, self._gateways.present)
        return before if self.owns_keys else before + behind

    def gateways_before(self, caller: CallerKey, key: bytes) -> list[str]:
        return self._ranked(caller, key, self._gateways.present)[0] if self._gateways.own else []

    def earlier_owners(self, caller: CallerKey, key: bytes) -> list[str]:
        """Returns gateways that may have computed a key that this one owns now."""
        leaving, _ = self._ranked(caller, key, self._gateways.leaving)
        _, behind = self._ranked(caller, key, self._gateways.present)
        is_young = self._now() < self._young_until
        return [*leaving, *(behind if is_young else [])][:GATEWAYS_ASKED]

    def has_lost_owner(self, caller: CallerKey, key: bytes) -> bool:
        gateways = self._gateways
        return bool(self._ranked(caller, key, gateways.leaving + gateways.lost)[0])

    def forward_to_worker(
        self, address: str, value: bytes, http_request: HttpRequest, response: ResponseWriter
    ) -> None:
        self._start(self._forward_to_worker(address, value, http_request, response), response)

    def forward_to_gateways(
        self,
        addresses: list[str],
        value: bytes,
        http_request: HttpRequest,
        response: ResponseWriter,
        on_unanswered: Callable[[bool], None],
    ) -> None:
        """Sends a request to the first of these gateways that answers, and relays the answer.

        on_unanswered: called if none does, with whether one could not be reached.
        """
        if not addresses:
            on_unanswered(False)
            return
        work = self._forward_to_gateways(addresses, value, http_request, response, on_unanswered)
        self._start(work, response)

    def close(self) -> None:
        """Ends all requests on their way, and closes the connections."""
        for task in self._tasks:
            task.cancel()
        self._pool.close()

    def _is_listed(self, gateways: GatewayList) -> bool:
        return bool(gateways.own) and gateways.own in gateways.present

    def _ranked(self, caller: CallerKey, key: bytes, addresses: list[str]) -> tuple[list[str], list[str]]:
        """Returns the gateways before and behind this one. All are before it if it is not known."""
        own = self._gateways.own
        ranked = rank_gateways(caller, key, {own, *addresses})
        position = ranked.index(own) if own else len(ranked)
        before = [address for address in ranked[:position] if address]
        return before, ranked[position + 1 :]

    def _start(self, work: Coroutine[Any, Any, None], response: ResponseWriter) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        response.on_client_gone = partial(self._loop.call_soon, task.cancel)

    async def _forward_to_worker(
        self, address: str, value: bytes, http_request: HttpRequest, response: ResponseWriter
    ) -> None:
        message = encode_forwarded(http_request, response.request_id, value)
        error = await self._deliver(address, message, response, self._on_owner_lost)
        if error is not None and error.cause == _UNKNOWN:
            response.send(404, UNKNOWN_HEADER, b"{}")
        elif error is not None:
            self._fail(KeyOwnerUnavailable(), response, http_request)

    async def _forward_to_gateways(
        self,
        addresses: list[str],
        value: bytes,
        http_request: HttpRequest,
        response: ResponseWriter,
        on_unanswered: Callable[[bool], None],
    ) -> None:
        message = encode_forwarded(http_request, response.request_id, value)
        was_unreachable = False
        for address in addresses:
            if self._passed_over_until.get(address, 0.0) > self._now():
                was_unreachable = True
                continue
            error = await self._deliver(f"{self._scheme}://{address}", message, response, None)
            if error is None:
                return
            was_unreachable |= error.cause != _UNKNOWN
            if error.cause == "connect-timeout":
                self._passed_over_until[address] = self._now() + GATEWAY_LOST_SECONDS
        if response.finished:
            return
        response.on_client_gone = None
        try:
            on_unanswered(was_unreachable)
        except GatewayError as refused:
            self._fail(refused, response, http_request)

    async def _deliver(
        self, address: str, message: list[bytes], response: ResponseWriter, on_crash: Callable[[], None] | None
    ) -> UpstreamError | None:
        """Sends a request, and relays its answer. Returns why there is none; else None."""
        error: UpstreamError | None = None
        for _ in range(_ATTEMPTS):
            error = await self._try_once(address, message, response)
            if error is None or response.finished:
                return None
            if response.started:
                response.abort()
                return None
            if not error.is_stale:
                if not error.is_crash:
                    break
                if on_crash is not None:
                    on_crash()
        return error

    async def _try_once(self, address: str, message: list[bytes], response: ResponseWriter) -> UpstreamError | None:
        """Sends a request and relays its answer. Returns why that failed; None if it did not."""
        try:
            connection = self._pool.take_idle(address)
            if connection is None:
                connection = await self._pool.connect(address)
                connection.detect_lost_host(GATEWAY_LOST_SECONDS)
        except UpstreamError as error:
            return error
        answer = ForwardedAnswer(response, self._loop.create_future())
        response.on_backpressure = connection.set_paused
        connection.send_request(message, answer, self._first_seconds)
        try:
            return await answer.ended
        finally:
            connection.abandon(answer)
            response.on_backpressure = None


class _PeerCredentials(EngineCredentials):
    """The TLS of connections to other gateways, which show the certificate of this one."""

    def __init__(self, now: Callable[[], float], certificate: TlsCertificate | None) -> None:
        super().__init__({}, now)
        self._certificate = certificate

    def tls_context(self, access: EngineAuth) -> ssl.SSLContext:
        """Returns a context that accepts no other certificate."""
        if self._certificate is None or self._certificate.peer_context is None:
            return super().tls_context(access)
        return self._certificate.peer_context


class ForwardedAnswer(ResponseSink):
    """The answer of an owner, relayed as it comes.

    ended: set at its end, to the error if there is one.
    """

    def __init__(self, response: ResponseWriter, ended: "asyncio.Future[UpstreamError | None]") -> None:
        self._response = response
        self._is_unknown = False
        self.ended = ended

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Starts the client's response, with the id of the request that was computed."""
        response = self._response
        if status == 404 and fields.get(FORWARDED) == b"unknown":
            self._is_unknown = True
            return
        request_id = fields.get(b"x-request-id")
        if request_id is not None:
            response.request_id = request_id.decode("latin-1")
        lines = [b"%b: %b\r\n" % (name, value) for name, value in fields.items() if name not in _OWN_FIELDS]
        length = fields.get(b"content-length")
        response.start_stream(status, b"".join(lines).decode("latin-1"), length=None if length is None else int(length))
        is_event_stream = fields.get(b"content-type", b"").startswith(b"text/event-stream")
        response.accepts_comments = response.accepts_comments and is_event_stream

    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        """Relays parts of the body."""
        if not self._is_unknown:
            self._response.write_chunks(chunks, final=complete)
        if complete and not self.ended.done():
            self.ended.set_result(UpstreamError(_UNKNOWN) if self._is_unknown else None)

    def on_error(self, error: UpstreamError) -> None:
        if not self.ended.done():
            self.ended.set_result(error)

    def on_silence(self) -> float:
        return 0.0


def encode_forwarded(http_request: HttpRequest, request_id: str, value: bytes) -> list[bytes]:
    """Returns the bytes of a request for its owner, with all fields that are not of the connection.

    request_id: by which the client knows the request.
    value: of the header `FORWARDED`.
    """
    head = http_request.head
    target = quote(head.path).encode("ascii") + (b"?%b" % head.query if head.query else b"")
    lines = [b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), target)]
    lines += [b"%b: %b\r\n" % (name, value) for name, value in head.fields if name not in _NOT_FORWARDED]
    if head.get(b"host") is None:
        lines.append(b"host: 127.0.0.1\r\n")  # of HTTP/1.0
    lines.append(
        b"%b: %b\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n"
        % (FORWARDED, value, request_id.encode("latin-1"), len(http_request.body))
    )
    return [b"".join(lines), http_request.body] if http_request.body else [b"".join(lines)]


def owner_index(caller: CallerKey, key: bytes, workers: int) -> int:
    digest = hashlib.blake2b(b"%b\0%b" % (caller.encode(), key), digest_size=8).digest()
    return int.from_bytes(digest, "big") % workers


def rank_gateways(caller: CallerKey, key: bytes, addresses: Iterable[str]) -> list[str]:
    """Returns these gateways in the order in which they own a key."""
    name = b"%b\0%b" % (caller.encode(), key)

    def score(address: str) -> bytes:
        return hashlib.blake2b(b"%b\0%b" % (address.encode(), name), digest_size=8).digest()

    return sorted(addresses, key=score)
