"""Carries a request with a key to the worker of this gateway that owns the key.

A digest of caller and key chooses the owner among the numbers of the workers, so all workers agree
without a message. The supervisor holds a listening socket for each number, on the loopback
interface. When a worker ends, its replacement accepts what has waited there. Requests are forwarded
whole, with their API key, and the owner checks them like any other.

A request whose owner ends before its answer starts is sent to the replacement once more.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from urllib.parse import quote

from fairlead.engines.credentials import EngineCredentials
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import GatewayError, KeyOwnerUnavailable
from fairlead_gateway.http.listener import HttpRequest, ResponseWriter
from fairlead_gateway.upstream.connection import ResponseSink, UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.runtime import WorkerRuntime

FORWARDED: Final = b"x-fairlead-key-owner"
"""The header of a forwarded request: it is not forwarded again."""
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
    """The way to the other workers of this gateway.

    number: of this worker, from 1.
    ports: of the workers, by their numbers.
    fail: answers a request with an error.
    on_owner_lost: called when an owner ended under a request.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        number: int,
        ports: Sequence[int],
        *,
        fail: Callable[[GatewayError, ResponseWriter, HttpRequest], None],
        on_owner_lost: Callable[[], None],
    ) -> None:
        self._loop = runtime.loop
        self._first_seconds: float = runtime.limits.idempotency_owner_seconds
        self._own_index = number - 1
        self._addresses = [f"http://127.0.0.1:{port}" for port in ports]
        self._fail = fail
        self._on_owner_lost = on_owner_lost
        self._pool = ConnectionPool(runtime.limits, runtime.loop, EngineCredentials({}, runtime.now))
        self._tasks: set[asyncio.Task[None]] = set()

    def owner(self, caller: CallerKey, key: bytes) -> str | None:
        """Returns the address of the worker that owns a key; None if it is this one."""
        index = owner_index(caller, key, len(self._addresses))
        return None if index == self._own_index else self._addresses[index]

    def forward(self, address: str, http_request: HttpRequest, response: ResponseWriter) -> None:
        """Sends a request to the owner of its key, and relays the answer."""
        task = self._loop.create_task(self._forward(address, http_request, response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        response.on_client_gone = partial(self._loop.call_soon, task.cancel)

    def close(self) -> None:
        """Ends all requests on their way, and closes the connections."""
        for task in self._tasks:
            task.cancel()
        self._pool.close()

    async def _forward(self, address: str, http_request: HttpRequest, response: ResponseWriter) -> None:
        message = encode_forwarded(http_request, response.request_id)
        for _ in range(_ATTEMPTS):
            error = await self._try_once(address, message, response)
            if error is None or response.finished:
                return
            if response.started:
                response.abort()
                return
            if not error.is_stale:
                if not error.is_crash:
                    break
                self._on_owner_lost()
        self._fail(KeyOwnerUnavailable(), response, http_request)

    async def _try_once(self, address: str, message: list[bytes], response: ResponseWriter) -> UpstreamError | None:
        """Sends a request and relays its answer. Returns why that failed; None if it did not."""
        try:
            connection = self._pool.take_idle(address) or await self._pool.connect(address)
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


class ForwardedAnswer(ResponseSink):
    """The answer of an owner, relayed as it comes.

    ended: set at its end, to the error if there is one.
    """

    def __init__(self, response: ResponseWriter, ended: "asyncio.Future[UpstreamError | None]") -> None:
        self._response = response
        self.ended = ended

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Starts the client's response, with the id of the request that was computed."""
        response = self._response
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
        self._response.write_chunks(chunks, final=complete)
        if complete and not self.ended.done():
            self.ended.set_result(None)

    def on_error(self, error: UpstreamError) -> None:
        """Ends the answer."""
        if not self.ended.done():
            self.ended.set_result(error)

    def on_silence(self) -> float:
        """Returns 0: the owner has its own time limits, which are shorter."""
        return 0.0


def encode_forwarded(http_request: HttpRequest, request_id: str) -> list[bytes]:
    """Returns the bytes of a request for its owner, with all fields that are not of the connection.

    request_id: by which the client knows the request.
    """
    head = http_request.head
    target = quote(head.path).encode("ascii") + (b"?%b" % head.query if head.query else b"")
    lines = [b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), target)]
    lines += [b"%b: %b\r\n" % (name, value) for name, value in head.fields if name not in _NOT_FORWARDED]
    if head.get(b"host") is None:
        lines.append(b"host: 127.0.0.1\r\n")  # of HTTP/1.0
    lines.append(
        b"%b: 1\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n"
        % (FORWARDED, request_id.encode("latin-1"), len(http_request.body))
    )
    return [b"".join(lines), http_request.body] if http_request.body else [b"".join(lines)]


def owner_index(caller: CallerKey, key: bytes, workers: int) -> int:
    """Returns which of so many workers owns a key, from 0."""
    digest = hashlib.blake2b(b"%b\0%b" % (caller.encode(), key), digest_size=8).digest()
    return int.from_bytes(digest, "big") % workers
