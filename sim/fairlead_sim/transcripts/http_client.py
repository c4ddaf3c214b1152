"""A plain HTTP/1.1 client that keeps every byte of a response."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fairlead_sim.transcripts.recording import HttpResponse, RecordedRequest, is_complete, parse_response

RESPONSE_TIMEOUT_SECONDS = 60.0
_READ_BYTES = 65_536


class ClientConnection:
    """One TCP connection to an engine; ``received`` has its unread bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = bytearray()
        self.is_closed = False

    async def send(self, raw: bytes) -> None:
        self._writer.write(raw)
        await self._writer.drain()

    async def read_more(self) -> bytes:
        """Adds the next bytes to ``received`` and returns them; empty if the peer closed.

        Raises TimeoutError after ``RESPONSE_TIMEOUT_SECONDS``.
        """
        data = await asyncio.wait_for(self._reader.read(_READ_BYTES), RESPONSE_TIMEOUT_SECONDS)
        self.received += data
        self.is_closed = not data
        return data

    async def read_until(self, mark: bytes) -> None:
        """Reads until ``mark``. Raises EOFError if the peer closes first."""
        while mark not in self.received:
            if not await self.read_more():
                raise EOFError(f"the engine closed before {mark!r}")

    async def read_response(self) -> HttpResponse:
        """Returns one complete response. Raises EOFError if the engine closes before its end."""
        while not is_complete(bytes(self.received)):
            if not await self.read_more():
                raise EOFError(f"the engine closed after {len(self.received)} bytes")
        whole = parse_response(bytes(self.received))
        self.received.clear()
        return whole

    async def close(self) -> None:
        """Closes this side, so that the engine sees a disconnect."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass  # the other side was faster


@asynccontextmanager
async def open_client(authority: str) -> AsyncIterator[ClientConnection]:
    """Yields a connection to ``host:port``."""
    host, _, port = authority.rpartition(":")
    connection = ClientConnection(*await asyncio.open_connection(host, int(port)))
    try:
        yield connection
    finally:
        await connection.close()


async def send_request(authority: str, request: RecordedRequest) -> HttpResponse:
    """Sends one request on its own connection and returns the response."""
    async with open_client(authority) as connection:
        await connection.send(request.to_bytes(authority))
        return await connection.read_response()


def get_request(target: str) -> RecordedRequest:
    return RecordedRequest("GET", target, (("Host", ""), ("Accept", "*/*")), b"")


def post_request(target: str, document: object = None) -> RecordedRequest:
    """Returns a POST of a JSON document, or without a body."""
    if document is None:
        return RecordedRequest("POST", target, (("Host", ""), ("Accept", "*/*"), ("Content-Length", "0")), b"")
    headers = (("Host", ""), ("Content-Type", "application/json"), ("Content-Length", ""))
    return RecordedRequest("POST", target, headers, json.dumps(document).encode())


async def read_metric(authority: str, *names: str) -> float:
    """Returns the sum of all series of the named metrics."""
    page = (await send_request(authority, get_request("/metrics"))).body.decode()
    total = 0.0
    for line in page.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] in names:
            total += float(value)
    return total


async def read_load(authority: str) -> float:
    """Returns the number of requests in the engine's server, read from ``/load``.

    Requests that wait for a wake-up count.
    """
    return float((await send_request(authority, get_request("/load"))).json()["server_load"])


async def wait_for_metric(authority: str, is_wanted: Callable[[float], bool], *names: str) -> float:
    """Reads metrics until ``is_wanted`` accepts their sum.

    Raises TimeoutError with the last value.
    """
    return await wait_for_value(lambda: read_metric(authority, *names), is_wanted, " + ".join(names))


async def wait_for_value(
    read_value: Callable[[], Awaitable[float]], is_wanted: Callable[[float], bool], what: str
) -> float:
    """Reads a value until ``is_wanted`` accepts it. Raises TimeoutError with the last value."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + RESPONSE_TIMEOUT_SECONDS
    while not is_wanted(value := await read_value()):
        if loop.time() > deadline:
            raise TimeoutError(f"{what} was still {value} after {RESPONSE_TIMEOUT_SECONDS:.0f} s")
        await asyncio.sleep(0.005)
    return value
