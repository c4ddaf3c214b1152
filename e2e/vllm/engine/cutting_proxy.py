"""A proxy before one engine that cuts streams where a test says, and counts their bytes.

A request names itself in its field `user`. The engine goes on as before: only the connection ends.
"""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

AFTER_USAGE = -1
"""The cut behind the token counts, before the end of the stream."""
_NAME = re.compile(rb'"user": ?"([^"]+)"')
_IDS = re.compile(rb'"token_ids":\[([^\]]+)\]')
_NAMED = re.compile(rb"event: (?:content_block_delta|response\.(?:output|reasoning)_text\.delta)\n")
_TEXT = re.compile(rb'"(?:content|text)":"[^"]')
_USAGE = b'"usage":{"'
_END = b"\n\n\r\n"
_BYTES = 65_536


@dataclass(slots=True)
class CutPlan:
    """The cuts of streams, in their order: behind how many tokens of one engine.

    Events of messages and responses count as one.

    counts_texts: so do events with text, of an engine that sends no token ids.
    cuts: by the name of the request; one is taken for each engine that it reaches.
    made: those that were cut.
    """

    cuts: dict[str, list[int]] = field(default_factory=dict)
    made: int = 0
    counts_texts: bool = False

    def next_cut(self, name: str) -> int | None:
        """Takes the next cut of a request; None if it has no more."""
        cuts = self.cuts.get(name)
        return cuts.pop(0) if cuts else None


class CuttingProxy:
    """One listening proxy."""

    def __init__(self, engine: str, plan: CutPlan) -> None:
        self._engine = urlsplit(engine)
        self._plan = plan
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Ends it, with all connections."""
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            engine = await asyncio.open_connection(self._engine.hostname, self._engine.port)
            asked = _Requests()
            sending = asyncio.create_task(asked.relay(reader, engine[1]))
            try:
                await self._relay(engine[0], writer, asked)
            finally:
                sending.cancel()
                writer.transport.abort()
                engine[1].transport.abort()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._connections.discard(task)

    async def _relay(self, engine: asyncio.StreamReader, client: asyncio.StreamWriter, asked: "_Requests") -> None:
        """Passes the engine's bytes on, whole events in streams, until a cut or the end."""
        stream: _Stream | None = None
        while data := await engine.read(_BYTES):
            if asked.name:
                cut, asked.name = self._plan.next_cut(asked.name), ""
                stream = None if cut is None else _Stream(cut, counts_texts=self._plan.counts_texts)
            if stream is None:
                client.write(data)
            else:
                client.write(stream.take(data))
                if stream.is_cut:
                    await client.drain()
                    self._plan.made += 1
                    return
            await client.drain()


class _Requests:
    """The requests of a connection; `name` is that of the newest."""

    def __init__(self) -> None:
        self.name = ""

    async def relay(self, client: asyncio.StreamReader, engine: asyncio.StreamWriter) -> None:
        """Passes the client's bytes on."""
        tail = b""
        with suppress(OSError):
            while data := await client.read(_BYTES):
                tail += data
                if found := _NAME.findall(tail):
                    self.name, tail = found[-1].decode(), b""
                engine.write(data)
                await engine.drain()


class _Stream:
    """The events of one stream until its cut."""

    def __init__(self, cut: int, *, counts_texts: bool) -> None:
        self._cut = cut
        self._counts_texts = counts_texts
        self._tokens = 0
        self._partial = b""
        self.is_cut = False

    def take(self, data: bytes) -> bytes:
        """Returns the whole events of what has come, at most those before the cut."""
        self._partial += data
        passed = b""
        while not self.is_cut and (end := self._partial.find(_END) + len(_END)) >= len(_END):
            event, self._partial = self._partial[:end], self._partial[end:]
            passed += event
            self._tokens += sum(ids.count(b",") + 1 for ids in _IDS.findall(event))
            named = len(_NAMED.findall(event))
            self._tokens += named or (self._counts_texts and len(_TEXT.findall(event)))
            is_there = _USAGE in event if self._cut == AFTER_USAGE else self._tokens >= self._cut
            self.is_cut = is_there and b"data: " in event
        return passed
