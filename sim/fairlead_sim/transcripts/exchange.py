"""A plain HTTP/1.1 client that keeps every byte: what an answer is made of matters more here than comfort."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fairlead_sim.transcripts.recording import Request, Response, is_whole, parse_response

ANSWER_SECONDS = 60.0
_READ_BYTES = 65_536


class Connection:
    """One TCP connection to an engine. ``received`` is everything it said so far."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = bytearray()
        self.ended = False

    async def send(self, raw: bytes) -> None:
        """Write bytes as they are."""
        self._writer.write(raw)
        await self._writer.drain()

    async def more(self) -> bytes:
        """The next bytes; empty when the peer closed."""
        data = await asyncio.wait_for(self._reader.read(_READ_BYTES), ANSWER_SECONDS)
        self.received += data
        self.ended = not data
        return data

    async def until(self, mark: bytes) -> None:
        """Read until ``mark`` was received. Raises EOFError when the peer closes first."""
        while mark not in self.received:
            if not await self.more():
                raise EOFError(f"the engine closed before {mark!r}")

    async def answer(self) -> Response:
        """One whole answer. Raises EOFError when the engine closes before its end."""
        while not is_whole(bytes(self.received)):
            if not await self.more():
                raise EOFError(f"the engine closed after {len(self.received)} bytes")
        whole = parse_response(bytes(self.received))
        self.received.clear()
        return whole

    async def close(self) -> None:
        """Close this side; the engine sees the client leave."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass  # the other side was faster


@asynccontextmanager
async def connected(authority: str) -> AsyncIterator[Connection]:
    """A connection to ``host:port``, closed at the end."""
    host, _, port = authority.rpartition(":")
    connection = Connection(*await asyncio.open_connection(host, int(port)))
    try:
        yield connection
    finally:
        await connection.close()


async def exchange(authority: str, request: Request) -> Response:
    """One request on a connection of its own."""
    async with connected(authority) as connection:
        await connection.send(request.wire(authority))
        return await connection.answer()


def get(target: str) -> Request:
    """A GET."""
    return Request("GET", target, (("Host", ""), ("Accept", "*/*")), b"")


def post(target: str, document: object = None) -> Request:
    """A POST of a JSON document, or of nothing."""
    if document is None:
        return Request("POST", target, (("Host", ""), ("Accept", "*/*"), ("Content-Length", "0")), b"")
    headers = (("Host", ""), ("Content-Type", "application/json"), ("Content-Length", ""))
    return Request("POST", target, headers, json.dumps(document).encode())


async def metric(authority: str, *names: str) -> float:
    """The sum of the series of one or more metrics, over all their labels."""
    page = (await exchange(authority, get("/metrics"))).body.decode()
    found = 0.0
    for line in page.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] in names:
            found += float(value)
    return found


async def load(authority: str) -> float:
    """Requests inside the engine's server, as ``/load`` tells: also those it holds back while it sleeps."""
    return float((await exchange(authority, get("/load"))).json()["server_load"])


async def metric_until(authority: str, wanted: Callable[[float], bool], *names: str) -> float:
    """Read metrics again and again until their sum is as wanted. Raises TimeoutError naming the last one seen."""
    return await until(lambda: metric(authority, *names), wanted, " + ".join(names))


async def until(ask: Callable[[], Awaitable[float]], wanted: Callable[[float], bool], what: str) -> float:
    """Ask again and again until the answer is as wanted. Raises TimeoutError naming the last one."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ANSWER_SECONDS
    while not wanted(seen := await ask()):
        if loop.time() > deadline:
            raise TimeoutError(f"{what} was still {seen} after {ANSWER_SECONDS:.0f} s")
        await asyncio.sleep(0.005)
    return seen
