"""An engine that executes a script: when it reads, what it sends, how slowly, and how it ends."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from fairlead_testing.simulated.hostile_client import ANSWER_BYTES_HEADER, NONCE_HEADER, Leaving
from fairlead_testing.simulated.link import LinkSocket

TAG = b"tag-0000"
"""A mark in answers. An engine replaces it by the number of the connection, in as many bytes."""
_NONCE = re.compile(NONCE_HEADER.encode() + rb": ([a-z0-9-]+)\r\n")
_ANSWER_BYTES = re.compile(ANSWER_BYTES_HEADER.encode() + rb": ([0-9]+)\r\n")
_LENGTH = re.compile(rb"content-length: ([0-9]+)\r\n")
_MAX_DRIPS = 2_000


def tag(number: int) -> bytes:
    """Returns the mark of what an engine sends on one connection."""
    return b"tag-%04d" % number


class Start(Enum):
    """The moment at which an engine begins to answer."""

    AT_ONCE = "before the request"
    HEAD = "after the head of the request"
    BODY = "after the whole request"


class Accept(Enum):
    """An engine's reaction to a new connection."""

    YES = "accepts"
    REFUSE = "refuses"
    HANG = "does not respond"


@dataclass(frozen=True, slots=True)
class Step:
    """A part of an answer: bytes, and the pause after them.

    times: how often they are sent; 0: for ever.
    """

    data: bytes
    seconds: float = 0.0
    times: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    leaving: how the engine ends the connection; None: it stays open.
    stream_steps: instead of `steps` for a request for a stream, if the engine has read it.
    """

    steps: tuple[Step, ...]
    start: Start = Start.BODY
    leaving: Leaving | None = None
    stream_steps: tuple[Step, ...] | None = None


@dataclass(frozen=True, slots=True)
class EngineScript:
    """The behaviour of an engine.

    answers: to its requests, in turn, on each connection from the first.
    read_bytes, read_seconds: it reads so many bytes, then pauses; 0 bytes: it never reads.
    read_limit: it reads no more than that of each connection.
    accepts: for its connections, in turn.
    """

    answers: tuple[Answer, ...]
    read_bytes: int = 65_536
    read_seconds: float = 0.0
    read_limit: int = 1 << 40
    accepts: tuple[Accept, ...] = (Accept.YES,)


class _Connection:
    """The requests that have arrived on one connection."""

    def __init__(self) -> None:
        self.heads = self.bodies = 0
        self.is_ended = False
        self.changed = asyncio.Event()
        self.nonce = ""
        self.answer_bytes = 0
        self.is_stream = False
        self._buffer = bytearray()
        self._body_left = 0

    def feed(self, data: bytes) -> None:
        """Takes bytes of requests."""
        self._buffer += data
        while True:
            if self.heads == self.bodies:
                end = self._buffer.find(b"\r\n\r\n")
                if end < 0:
                    break
                head = bytes(self._buffer[: end + 4])
                nonce, length = _NONCE.search(head), _LENGTH.search(head)
                self.nonce = nonce[1].decode() if nonce else ""
                size = _ANSWER_BYTES.search(head)
                self.answer_bytes = int(size[1]) if size else 0
                self._body_left = int(length[1]) if length else 0
                del self._buffer[: end + 4]
                self.heads += 1
            if len(self._buffer) < self._body_left:
                break
            self.is_stream = b'"stream":true' in self._buffer[: self._body_left].replace(b" ", b"")
            del self._buffer[: self._body_left]
            self._body_left = 0
            self.bodies += 1
        self.changed.set()

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition of what has arrived. Raises EOFError if it cannot come."""
        while not condition():
            if self.is_ended:
                raise EOFError
            self.changed.clear()
            await self.changed.wait()


class HostileEngine:
    """An engine in action.

    links: its ends of all connections.
    first_number: of its connections, in its tags.
    """

    def __init__(self, script: EngineScript, first_number: int = 1) -> None:
        self.script = script
        self.first_number = first_number
        self.links: list[LinkSocket] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._attempts = 0

    async def accept(self, link: LinkSocket) -> None:
        """Takes a connection. Raises ConnectionRefusedError."""
        accepts = self.script.accepts[self._attempts % len(self.script.accepts)]
        self._attempts += 1
        if accepts is Accept.REFUSE:
            raise ConnectionRefusedError
        if accepts is Accept.HANG:
            await asyncio.Event().wait()
        loop, state = asyncio.get_running_loop(), _Connection()
        number = self.first_number + len(self.links)
        self.links.append(link)
        reading = loop.create_task(self._read(link, state), name="peer")
        self.tasks += [reading, loop.create_task(self._write(link, state, reading, number), name="peer")]

    async def close(self) -> None:
        """Ends all connections."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for link in self.links:
            link.close()

    async def _read(self, link: LinkSocket, state: _Connection) -> None:
        loop, script = asyncio.get_running_loop(), self.script
        left = script.read_limit if script.read_bytes else 0
        try:
            while left > 0:
                data = await loop.sock_recv(link, min(script.read_bytes, left))
                if not data:
                    break
                left -= len(data)
                state.feed(data)
                await asyncio.sleep(script.read_seconds)
            else:
                return
        except OSError:
            pass
        state.is_ended = True
        state.changed.set()

    async def _write(self, link: LinkSocket, state: _Connection, reading: asyncio.Task[None], number: int) -> None:
        count, resets = 0, False
        try:
            while True:
                answers = self.script.answers
                answer = answers[count % len(answers)]
                if answer.start is Start.BODY:
                    await state.wait(lambda: state.bodies > count)  # noqa: B023 - it is called in this iteration
                elif answer.start is Start.HEAD or count >= len(answers):
                    await state.wait(lambda: state.heads > count)  # noqa: B023 - it is called in this iteration
                count += 1
                steps = answer.stream_steps if state.is_stream and answer.stream_steps is not None else answer.steps
                await self._send(link, steps, tag(number))
                if answer.leaving is Leaving.HALF_CLOSE:
                    link.shutdown(1)
                    await state.wait(lambda: False)
                elif answer.leaving is not None:
                    resets = answer.leaving is Leaving.RESET
                    return
        except (OSError, EOFError):
            pass
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if resets:
                link.reset()
            else:
                link.close()

    async def _send(self, link: LinkSocket, steps: tuple[Step, ...], mark: bytes) -> None:
        loop = asyncio.get_running_loop()
        for step in steps:
            data = step.data.replace(TAG, mark)
            for _ in range(step.times or _MAX_DRIPS):
                await loop.sock_sendall(link, data)
                await asyncio.sleep(step.seconds)


def stream_events(nonce: str, size: int) -> list[bytes]:
    """Returns the events with which a good engine answers a stream."""
    text = '{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":%s}]}'
    texts = [f"good {nonce}", *["x" * 4_000] * (size // 4_000)]
    parts = [*[text % (part, "null") for part in texts], text % ("c", '"stop"'), "[DONE]"]
    return [f"data: {part}\n\n".encode() for part in parts]


def plain_body(nonce: str, size: int) -> bytes:
    """Returns the body with which a good engine answers."""
    text = f"good {nonce} {'x' * size}"
    return f'{{"object":"chat.completion","choices":[{{"index":0,"message":"{text}"}}]}}'.encode()


class GoodEngine:
    """An engine without defects."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.links: list[LinkSocket] = []

    async def accept(self, link: LinkSocket) -> None:
        """Takes a connection."""
        self.links.append(link)
        self.tasks.append(asyncio.get_running_loop().create_task(self._serve(link), name="peer"))

    async def close(self) -> None:
        """Ends all connections."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for link in self.links:
            link.close()

    async def _serve(self, link: LinkSocket) -> None:
        loop, state, answered = asyncio.get_running_loop(), _Connection(), 0
        try:
            while data := await loop.sock_recv(link, 65_536):
                state.feed(data)
                if state.bodies > answered:
                    answered += 1
                    await self._answer(link, state.nonce, state.answer_bytes, state.is_stream)
        except OSError:
            pass
        finally:
            link.close()

    async def _answer(self, link: LinkSocket, nonce: str, size: int, is_stream: bool) -> None:
        loop = asyncio.get_running_loop()
        if not is_stream:
            body = plain_body(nonce, size)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            await loop.sock_sendall(link, head + body)
            return
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        first, *events = [b"%x\r\n%b\r\n" % (len(event), event) for event in stream_events(nonce, size)]
        await loop.sock_sendall(link, head + first)
        await asyncio.sleep(0.02)
        await loop.sock_sendall(link, b"".join(events) + b"0\r\n\r\n")
