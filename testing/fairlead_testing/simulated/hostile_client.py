"""A client that executes a script: how it sends its requests, how it reads, and when it leaves."""

import asyncio
import json
from dataclasses import dataclass
from enum import Enum

from fairlead_testing.simulated.link import LinkSocket
from fairlead_testing.simulated.responses import ResponseReader

PATIENCE_SECONDS = 60.0
NONCE_HEADER = "user-agent"
CHAT_PATH = "/v1/chat/completions"
ANSWER_BYTES_HEADER = "accept-language"


class Leaving(Enum):
    """The way in which a client or an engine ends its connection."""

    CLOSE = "close"
    RESET = "reset"
    HALF_CLOSE = "half-close"


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One request.

    path: one that the gateway knows, or that it passes through.
    padding: bytes that make its body longer.
    answer_bytes: bytes that make the response of a good engine longer.
    timeout: its own deadline, in seconds; 0: none.
    resumable: another engine may continue its stream.
    has_length: its body has a Content-Length; else it comes in chunks.
    """

    model: str = "tiny"
    stream: bool = False
    path: str = CHAT_PATH
    padding: int = 0
    answer_bytes: int = 0
    timeout: float = 0.0
    resumable: bool = False
    has_length: bool = True
    expects_continue: bool = False
    is_http10: bool = False
    closes: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether a stream is requested, which only chats have."""
        return self.stream and self.path == CHAT_PATH

    def encode(self, nonce: str) -> bytes:
        """Returns the request's bytes."""
        text = f"{nonce} {'x' * self.padding}"
        content = {"messages": [{"role": "user", "content": text}]} if self.path == CHAT_PATH else {"input": text}
        fields = {"model": self.model, **content}
        more = {"stream": True} if self.is_stream else {}
        body = json.dumps({**fields, **more, **({"temperature": 0} if self.resumable else {})}).encode()
        has_length = self.has_length or self.is_http10
        head = [f"POST {self.path} HTTP/1.{0 if self.is_http10 else 1}", "host: x", f"{NONCE_HEADER}: {nonce}"]
        head.append(f"{ANSWER_BYTES_HEADER}: {self.answer_bytes}")
        head.append(f"content-length: {len(body)}" if has_length else "transfer-encoding: chunked")
        head += [f"x-request-timeout: {self.timeout}"] if self.timeout else []
        head += ["expect: 100-continue"] if self.expects_continue else []
        head += ["connection: close"] if self.closes else ["connection: keep-alive"] if self.is_http10 else []
        sent = body if has_length else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        return "\r\n".join([*head, "", ""]).encode() + sent


@dataclass(frozen=True, slots=True)
class ClientScript:
    """The behaviour of one client.

    starts_after: seconds until it connects.
    pipelined: it sends the next request without waiting for a response.
    piece_bytes, piece_seconds: it sends so many bytes, then pauses.
    read_bytes, read_seconds: it reads so many bytes, then pauses; 0 bytes: it never reads.
    leaves_after: seconds from the start; after `PATIENCE_SECONDS` it closes in any case.
    """

    requests: tuple[ClientRequest, ...]
    starts_after: float = 0.0
    pipelined: bool = False
    piece_bytes: int = 1 << 20
    piece_seconds: float = 0.0
    read_bytes: int = 65_536
    read_seconds: float = 0.0
    leaves_after: float = PATIENCE_SECONDS
    leaving: Leaving = Leaving.CLOSE


class HostileClient:
    """A client in action.

    sent_count: requests that it has sent whole.
    has_left: it ended the connection; else the gateway did.
    """

    def __init__(self, script: ClientScript, number: int) -> None:
        self.script = script
        self.number = number
        self.reader = ResponseReader()
        self.sent_count = 0
        self.is_ended = self.is_reset = self.has_left = False
        self.ended_at = 0.0

    def nonce(self, index: int) -> str:
        """Returns the mark of a request."""
        return f"n-{self.number}-{index}"

    async def run(self, link: LinkSocket) -> None:
        """Runs the script to its end."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        sending = loop.create_task(self._send(link, changed), name="peer")
        reading = loop.create_task(self._read(link, changed), name="peer")
        script = self.script
        try:
            await asyncio.wait([reading], timeout=script.leaves_after)
            if not self.is_ended and script.leaving is Leaving.HALF_CLOSE:
                link.shutdown(1)
                await asyncio.wait([reading], timeout=max(0.0, PATIENCE_SECONDS - script.leaves_after))
            if reading.done():
                reading.result()
        finally:
            self.has_left = not self.is_ended
            self.ended_at = loop.time()
            sending.cancel()
            reading.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)
            if self.has_left and script.leaving is Leaving.RESET:
                link.reset()
            else:
                link.close()

    async def _send(self, link: LinkSocket, changed: asyncio.Event) -> None:
        loop, script = asyncio.get_running_loop(), self.script
        try:
            for index, request in enumerate(script.requests):
                while not script.pipelined and self.reader.complete_count < index:
                    changed.clear()
                    await changed.wait()
                data = request.encode(self.nonce(index))
                self.reader.allowed += 1
                for start in range(0, len(data), script.piece_bytes):
                    await loop.sock_sendall(link, data[start : start + script.piece_bytes])
                    await asyncio.sleep(script.piece_seconds)
                self.sent_count += 1
        except OSError:
            pass

    async def _read(self, link: LinkSocket, changed: asyncio.Event) -> None:
        loop, script = asyncio.get_running_loop(), self.script
        if not script.read_bytes:
            await asyncio.sleep(PATIENCE_SECONDS + 1.0)
        while True:
            try:
                data = await loop.sock_recv(link, script.read_bytes)
            except OSError:
                data, self.is_reset = b"", True
            if not data:
                break
            self.reader.feed(data)
            changed.set()
            await asyncio.sleep(script.read_seconds)
        self.is_ended = True
        self.reader.on_end(is_reset=self.is_reset)
