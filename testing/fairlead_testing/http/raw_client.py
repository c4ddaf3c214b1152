"""A raw HTTP/1.1 client: sends exact bytes, and reads responses strictly."""

import asyncio
import json
import socket
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 120.0


@dataclass(slots=True)
class RawResponse:
    """A response. `pieces` are its chunks, or the whole body."""

    status: int
    fields: dict[str, str]
    pieces: list[bytes]
    complete: bool = True

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI error object in the body."""
        found = self.json["error"]
        assert set(found) == {"message", "type", "param", "code"}, found
        assert isinstance(found["message"], str)
        assert self.json["request_id"] == self.fields["x-request-id"]
        return dict(found)

    @property
    def events(self) -> list[str]:
        return [part[6:] for part in self.body.decode().split("\n\n") if part.startswith("data: ")]


class RawConnection:
    """A client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, url: str, tls: ssl.SSLContext | None = None) -> "RawConnection":
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24, ssl=tls))

    @classmethod
    async def from_socket(cls, connected: socket.socket) -> "RawConnection":
        return cls(*await asyncio.open_connection(sock=connected, limit=1 << 24))

    async def send(self, data: bytes) -> None:
        """Writes raw bytes. A server that has already closed is not an error."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            pass

    async def read_response(
        self, *, head_only: bool = False, patience_seconds: float = PATIENCE_SECONDS
    ) -> RawResponse:
        """Reads one response. Raises IncompleteReadError if the connection ends before its head.

        Raises TimeoutError if the response is not complete within ``patience_seconds``.
        """
        async with asyncio.timeout(patience_seconds):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            status = int(lines[0].split(" ")[1])
            assert lines[0].startswith("HTTP/1.1 "), lines[0]
            pairs = [line.partition(": ")[::2] for line in lines[1:]]
            fields = dict(pairs)
            assert len(fields) == len(pairs), pairs
            if head_only or status < 200:
                return RawResponse(status, fields, [])
            if fields.get("transfer-encoding") == "chunked":
                return await self._read_chunked(RawResponse(status, fields, [], complete=False))
            if "content-length" in fields:
                return RawResponse(status, fields, [await self.reader.readexactly(int(fields["content-length"]))])
            return RawResponse(status, fields, [await self.reader.read()])

    async def _read_chunked(self, answer: RawResponse) -> RawResponse:
        try:
            while True:
                size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
                data = await self.reader.readexactly(size + 2)
                assert data[-2:] == b"\r\n"
                if not size:
                    answer.complete = True
                    return answer
                answer.pieces.append(data[:-2])
        except (asyncio.IncompleteReadError, ConnectionError):
            return answer

    async def read_all_responses(self) -> list[RawResponse]:
        """Reads responses until the server closes the connection."""
        found = []
        while True:
            try:
                found.append(await self.read_response())
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    raise AssertionError(f"half an answer: {error.partial!r}") from error
                return found
            except ConnectionError:
                return found

    async def close(self) -> None:
        """Closes the connection."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


def post_request(body: object, *, path: str = "/v1/chat/completions", more: str = "", close: bool = True) -> bytes:
    """Returns a complete POST request. `body` is JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    last = "connection: close\r\n" if close else ""
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n{more}{last}\r\n".encode() + data


def get_request(path: str, *, more: str = "", close: bool = True, method: str = "GET") -> bytes:
    last = "connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{more}{last}\r\n".encode()


async def send(url: str, data: bytes, tls: ssl.SSLContext | None = None) -> list[RawResponse]:
    """Sends bytes over a new connection and returns every response."""
    connection = await RawConnection.connect(url, tls)
    try:
        await connection.send(data)
        return await connection.read_all_responses()
    finally:
        await connection.close()


async def request(url: str, body: object, *, path: str = "/v1/chat/completions", more: str = "") -> RawResponse:
    """Sends one request and returns its response."""
    answers = await send(url, post_request(body, path=path, more=more))
    assert len(answers) == 1, answers
    return answers[0]
