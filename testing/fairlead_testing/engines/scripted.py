"""A scripted engine: a test writes every response, and sees who is still connected.

A script is an async function of an `EngineCall`: the request, and the means to respond well, badly
or not at all. When it returns, the connection waits for its next request.
"""

import asyncio
import functools
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fairlead_testing.http.scripted_servers import tcp_server


class HangUp(Exception):
    """Raised by a script to close the connection."""


@dataclass(slots=True)
class EngineCall:
    """A request. `fields` are its header fields in order, with lower-case names.

    head: the first line and header fields, as sent.
    """

    head: bytes
    path: str
    fields: list[tuple[str, str]]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.fields if known == name), None)

    async def send(self, data: bytes) -> None:
        """Writes raw bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def respond(
        self, value: object, status: str = "200 OK", kind: str = "application/json", more: str = ""
    ) -> None:
        """Sends a complete response with Content-Length. `value` is JSON unless it is bytes."""
        body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        await self.send(head.encode() + body)

    async def start_stream(self, kind: str = "text/event-stream; charset=utf-8", more: str = "") -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n{more}\r\n"
        await self.send(head.encode())

    async def chunk(self, data: bytes) -> None:
        """Sends one chunk; an empty one ends the response."""
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, value: object) -> None:
        await self.chunk(event(value))

    async def finish(self) -> None:
        await self.event("[DONE]")
        await self.chunk(b"")

    async def wait_closed(self) -> None:
        """Waits until the client has closed the connection."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        """Closes with RST, like a killed process with unread bytes."""
        bound: socket.socket = self.writer.get_extra_info("socket")
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[EngineCall], Awaitable[None]]


@dataclass(slots=True)
class ScriptedEngine:
    """A running scripted engine. `connections` counts all connections, `open` the current ones.

    max_model_len: in its list of models, which no script sees unless `scripts_models`.
    generated_tokens: the counter of its metrics page as workers get it; None: it has no page.
    scripts_metrics: its script answers that page.
    """

    url: str = ""
    generated_tokens: int | None = None
    max_model_len: int | None = None
    scripts_models: bool = False
    scripts_metrics: bool = False
    calls: list[EngineCall] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    server: asyncio.Server | None = None


def event(value: object) -> bytes:
    """Returns a server-sent event as bytes. Text is used as it is."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def role() -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def token(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def usage(prompt: int, cached: int, output: int) -> dict[str, Any]:
    """Returns the usage event."""
    details = {"cached_tokens": cached}
    return {
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details},
    }


def named_event(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


NAMED_STREAMS: dict[str, bytes] = {
    "/v1/messages": b"".join(
        [
            *(named_event("content_block_delta", index=0, delta={"text": text}) for text in ("a", "b", "c")),
            named_event(
                "message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 7, "output_tokens": 3}
            ),
            named_event("message_stop"),
        ]
    ),
    "/v1/responses": b"".join(
        [
            *(named_event("response.output_text.delta", delta=text) for text in ("a", "b", "c")),
            named_event("response.completed", response={"usage": {"input_tokens": 7, "output_tokens": 3}}),
        ]
    ),
}
"""Whole streams by path."""


async def well_behaved(call: EngineCall) -> None:
    """Answers a stream with three tokens in the dialect of the path, and others with a small
    completion.
    """
    asked = call.json
    if not asked.get("stream"):
        counted = usage(7, 4, 3)["usage"]
        await call.respond({"object": "chat.completion", "choices": [{"index": 0}], "usage": counted})
        return
    await call.start_stream()
    if call.path in NAMED_STREAMS:
        await call.chunk(NAMED_STREAMS[call.path])
        await call.chunk(b"")
        return
    for text in ("a", "b", "c"):
        await call.event(token(text, "stop" if text == "c" else None))
    if (asked.get("stream_options") or {}).get("include_usage"):
        await call.event(usage(7, 4, 3))
    await call.finish()


async def silent(call: EngineCall) -> None:
    await call.wait_closed()


async def silent_after_token(call: EngineCall) -> None:
    """Sends the first token of a stream, `a`, and waits until the client leaves."""
    await call.start_stream()
    await call.event(token("a"))
    await call.wait_closed()


async def hang_up(call: EngineCall) -> None:
    raise HangUp


async def reset(call: EngineCall) -> None:
    call.reset()


async def ends_without_done(call: EngineCall) -> None:
    await call.chunk(b"")


def responds(value: object, status: str = "200 OK", kind: str = "application/json", more: str = "") -> Script:
    return lambda call: call.respond(value, status, kind, more)


def streams(*parts: object, end: Script | None = EngineCall.finish) -> Script:
    """Returns a script that streams the same to every request.

    parts: chunks as bytes, and events. end: what it does then.
    """

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        for part in parts:
            await (call.chunk(part) if isinstance(part, bytes) else call.event(part))
        if end:
            await end(call)

    return script


class SilentEngine:
    """A script that sends nothing until `go_on` is set: no first token either."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def script(self, call: EngineCall) -> None:
        await self.go_on.wait()
        await well_behaved(call)


class PausedStream:
    """A script whose streams pause after their first token, `a`, until `go_on` is set.

    breaks: streams then end without their end.
    """

    def __init__(self, *, breaks: bool = False) -> None:
        self.go_on = asyncio.Event()
        self.breaks = breaks

    async def script(self, call: EngineCall) -> None:
        """Answers one request."""
        if not call.json.get("stream"):
            await well_behaved(call)
            return
        await call.start_stream()
        await call.event(token("a"))
        await self.go_on.wait()
        if self.breaks:
            raise HangUp
        await call.finish()


@asynccontextmanager
async def scripted_engine(
    script: Script = well_behaved, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[ScriptedEngine]:
    """Listens on a free loopback port and answers every request with `script`."""
    engine = ScriptedEngine()
    async with tcp_server(functools.partial(_connection, engine, script), host, tls=tls) as engine.server:
        shown = f"[{host}]" if ":" in host else host
        engine.url = f"http{'s' if tls else ''}://{shown}:{engine.server.sockets[0].getsockname()[1]}"
        yield engine


async def _connection(
    engine: ScriptedEngine, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    engine.connections += 1
    engine.open += 1
    try:
        while True:
            call = await _read(reader, writer)
            is_of_worker = call.path == "/metrics" and call.header("x-fairlead-hops")  # not of a scraper
            if is_of_worker and not engine.scripts_metrics:
                await _show_metrics(engine, call)
                continue
            if call.path == "/v1/models" and not engine.scripts_models:
                await call.respond({"data": [{"id": "tiny", "max_model_len": engine.max_model_len}]})
                continue
            engine.calls.append(call)
            await script(call)
    except (HangUp, asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        engine.open -= 1
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


async def _show_metrics(engine: ScriptedEngine, call: EngineCall) -> None:
    if engine.generated_tokens is None:
        await call.respond({"detail": "Not Found"}, "404 Not Found")
        return
    page = f"vllm:num_requests_running 1\nvllm:generation_tokens_total {engine.generated_tokens}\n"
    await call.respond(page.encode(), kind="text/plain; version=0.0.4")


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> EngineCall:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")[:-2]
    fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
    body = await reader.readexactly(int(dict(fields).get("content-length", "0")))
    return EngineCall(head, lines[0].split(" ")[1], fields, body, reader, writer)
