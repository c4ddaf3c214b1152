"""A small HTTP server whose responses a test writes byte by byte, for misbehaving servers.

A script is an async generator that gets the request's body and yields raw bytes. When it returns,
the connection stays open for the next request; raising `CloseConnection` closes it.
"""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fairlead_testing.http.tcp_server import tcp_server

Script = Callable[[dict[str, Any]], AsyncIterator[bytes]]


class CloseConnection(Exception):
    """Raised by a script to close the connection at once."""


@dataclass(slots=True)
class ScriptedServer:
    """The received `requests` as (headers, body), and the number of connections ever opened."""

    url: str = ""
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    connections: int = 0


def head(status: str = "200 OK", *, kind: str = "text/event-stream", more: str = "") -> bytes:
    """Returns a response head with chunked framing."""
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n{more}\r\n".encode()


def chunk(data: bytes) -> bytes:
    """Returns one HTTP chunk; an empty one ends the message."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(value: object) -> bytes:
    """Returns a server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def token(text: str, finish: str | None = None) -> bytes:
    """Returns the event of one token of a chat completion."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def role() -> bytes:
    """Returns the first event of a chat completion, which has no token."""
    return event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})


def usage(prompt: int, output: int, cached: int) -> bytes:
    """Returns the usage event."""
    details = {"cached_tokens": cached}
    value = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}
    return event({"choices": [], "usage": value})


async def _serve(
    seen: ScriptedServer, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    seen.connections += 1
    try:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))))
            seen.requests.append((headers, body))
            async for data in script(body):
                writer.write(data)
                await writer.drain()
    except (CloseConnection, asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


@asynccontextmanager
async def scripted_server(script: Script) -> AsyncIterator[ScriptedServer]:
    """Listens on a free loopback port and answers every request with `script`."""
    seen = ScriptedServer()
    async with tcp_server(functools.partial(_serve, seen, script)) as server:
        seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield seen
