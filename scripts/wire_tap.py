"""A wire tap between gateway and engine: records what the gateway sends, and breaks or stops the
connection.
"""

import asyncio
import socket
import struct
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECES = 6
_ENDLESS = ("silence", "stall")


@dataclass(slots=True)
class WireTap:
    """A proxy in front of one engine.

    fault: effect on the next request; None passes everything. A fault happens once, at whichever
    tap gets the request:

    - ``before``, ``middle``: the connection breaks before the first byte of the answer, or within
      it.
    - ``silence``, ``stall``: the engine is silent, or stops.

    request_seen: a request has arrived. ``gateway_left``: the gateway gave up a silent or stalled
    engine.
    """

    engine: str
    sent: list[bytes] = field(default_factory=list)
    fault: str | None = None
    peers: "list[WireTap]" = field(default_factory=list)
    request_seen: asyncio.Event = field(default_factory=asyncio.Event)
    gateway_left: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Accepts a connection of the gateway."""
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def take_fault(self) -> str | None:
        """Returns the fault and clears it on all taps."""
        fault = self.fault
        for tap in (self, *self.peers):
            tap.fault = None
        return fault

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(self.engine)
        try:
            from_engine, to_engine = await asyncio.open_connection(parts.hostname, parts.port)
            with ExitStack() as stack:
                stack.callback(to_engine.transport.abort)
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    body = await reader.readexactly(_length(head))
                    self.sent.append(body)
                    self.request_seen.set()
                    fault = self.take_fault()
                    if fault == "before":
                        return
                    if fault in _ENDLESS:
                        stack.callback(self.gateway_left.set)
                    if fault != "silence":
                        to_engine.write(head + body)
                        await _pass(from_engine, writer, truncate=fault is not None)
                    if fault in _ENDLESS:
                        await reader.read()
                    if fault is not None:
                        return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            _reset(writer)


def _length(head: bytes) -> int:
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    return int(fields.get(b"content-length", b"0"))


async def _pass(engine: asyncio.StreamReader, writer: asyncio.StreamWriter, *, truncate: bool) -> None:
    """Passes one answer on, or only its beginning."""
    head = await engine.readuntil(b"\r\n\r\n")
    writer.write(head)
    if b"transfer-encoding: chunked" not in head.lower():
        body = await engine.readexactly(_length(head))
        writer.write(body[: len(body) // 2] if truncate else body)
        await writer.drain()
        return
    chunks = 0
    while True:
        size = await engine.readuntil(b"\r\n")
        writer.write(size + await engine.readexactly(int(size, 16) + 2))
        await writer.drain()
        chunks += 1
        if int(size, 16) == 0 or (truncate and chunks == _PIECES):
            return


def _reset(writer: asyncio.StreamWriter) -> None:
    """Resets the connection, as a killed process does."""
    with suppress(OSError):
        bound: socket.socket | None = writer.get_extra_info("socket")
        if bound is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
