"""An engine that executes a script: when it reads, what it sends, how slowly, and how it ends.

A client that executes a script: how it sends its requests, how it reads, and when it leaves.

A strict reader of what a client receives: responses in order, and nothing else.
"""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from fairlead_testing.simulated.event_loop import LinkSocket

_STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-9][0-9]{2}) [ -~]*")
_FIELD_LINE = re.compile(r"([a-z][a-z0-9-]*): ?([\t -~\x80-\xff]*)")
_SIZE_LINE = re.compile(rb"[0-9a-f]{1,8}\r\n")

PATIENCE_SECONDS = 60.0
NONCE_HEADER = "user-agent"
CHAT_PATH = "/v1/chat/completions"
ANSWER_BYTES_HEADER = "accept-language"

TAG = b"tag-0000"
"""A mark in answers. An engine replaces it by the number of the connection, in as many bytes."""
_NONCE = re.compile(NONCE_HEADER.encode() + rb": ([a-z0-9-]+)\r\n")
_ANSWER_BYTES = re.compile(ANSWER_BYTES_HEADER.encode() + rb": ([0-9]+)\r\n")
_LENGTH = re.compile(rb"content-length: ([0-9]+)\r\n")
_MAX_DRIPS = 2_000


@dataclass(slots=True)
class ReceivedResponse:
    """A response.

    is_complete: its framing says that all of it has arrived.
    is_cut: the connection was reset, or ended before that.
    """

    status: int
    fields: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    is_complete: bool = False
    is_cut: bool = False

    @property
    def closes(self) -> bool:
        return self.fields.get("connection") == "close"

    @property
    def events(self) -> list[bytes]:
        lines = bytes(self.body).replace(b"\r\n", b"\n").split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class ResponseReader:
    """The reader of one connection.

    allowed: the number of requests that were begun; there may be as many responses.
    Raises AssertionError for bytes that no valid response has.
    """

    def __init__(self) -> None:
        self.responses: list[ReceivedResponse] = []
        self.allowed = 0
        self.interim_count = 0
        self._buffer = bytearray()
        self._current: ReceivedResponse | None = None
        self._bytes_left: int | None = None
        self._is_chunked = False

    @property
    def complete_count(self) -> int:
        return sum(response.is_complete for response in self.responses)

    def feed(self, data: bytes) -> None:
        """Takes bytes as they arrive."""
        self._buffer += data
        while self._read_head() if self._current is None else self._read_body(self._current):
            pass

    def on_end(self, *, is_reset: bool) -> None:
        """Takes the end of the connection."""
        current, self._current = self._current, None
        if current is not None:
            current.is_cut = is_reset or self._is_chunked or self._bytes_left is not None
            current.is_complete = not current.is_cut
        else:
            probe = b"HTTP/1.1 "  # what a half-closed client gets before its response
            assert is_reset or self._buffer in (b"", probe), f"half a head: {bytes(self._buffer)!r}"

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if self._buffer:
            assert len(self.responses) < self.allowed, f"bytes without a request: {bytes(self._buffer[:200])!r}"
        if end < 0:
            assert b"HTTP/1.1 ".startswith(self._buffer[:9]) or self._buffer.startswith(b"HTTP/1.1 "), self._buffer
            return False
        line, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        found = _STATUS_LINE.fullmatch(line)
        assert found, line
        fields: dict[str, str] = {}
        for text in lines:
            pair = _FIELD_LINE.fullmatch(text)
            assert pair, text
            assert pair[1] not in fields, text
            fields[pair[1]] = pair[2]
        self._start(int(found[1]), fields)
        return True

    def _start(self, status: int, fields: dict[str, str]) -> None:
        if status < 200:
            assert (status, fields) == (100, {}), (status, fields)
            self.interim_count += 1
            return
        response = ReceivedResponse(status, fields)
        self.responses.append(response)
        self._is_chunked = "transfer-encoding" in fields
        length = fields.get("content-length")
        if self._is_chunked:
            assert fields["transfer-encoding"] == "chunked", fields
            assert length is None, fields
        if length is not None:
            assert length.isdigit(), fields
        if status in (204, 304):
            assert not self._is_chunked, fields
            length = "0"
        self._bytes_left = None if length is None else int(length)
        if length is None and not self._is_chunked:
            assert response.closes, fields
        if self._bytes_left == 0:
            response.is_complete = True
        else:
            self._current = response

    def _read_body(self, response: ReceivedResponse) -> bool:
        if not self._buffer:
            return False
        if self._is_chunked:
            return self._read_chunk(response)
        left = len(self._buffer) if self._bytes_left is None else self._bytes_left
        response.body += self._buffer[:left]
        taken = min(left, len(self._buffer))
        del self._buffer[:taken]
        if self._bytes_left is not None:
            self._bytes_left -= taken
            if not self._bytes_left:
                self._complete(response)
        return True

    def _read_chunk(self, response: ReceivedResponse) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            assert re.fullmatch(rb"[0-9a-f]{0,8}\r?", self._buffer), self._buffer[:40]
            return False
        assert _SIZE_LINE.fullmatch(self._buffer[: end + 2]), self._buffer[:40]
        size = int(self._buffer[:end], 16)
        stop = end + 2 + size
        if len(self._buffer) < stop + 2:
            return False
        assert self._buffer[stop : stop + 2] == b"\r\n", self._buffer[stop : stop + 40]
        response.body += self._buffer[end + 2 : stop]
        del self._buffer[: stop + 2]
        if not size:
            self._complete(response)
        return True

    def _complete(self, response: ReceivedResponse) -> None:
        response.is_complete = True
        self._current = None


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


def tag(number: int) -> bytes:
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


class _Engine:
    """An engine with its ends of all connections, `links`, and the tasks that serve them."""

    def __init__(self) -> None:
        self.links: list[LinkSocket] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def close(self) -> None:
        """Ends all connections."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for link in self.links:
            link.close()


class HostileEngine(_Engine):
    """An engine in action.

    first_number: of its connections, in its tags.
    """

    def __init__(self, script: EngineScript, first_number: int = 1) -> None:
        super().__init__()
        self.script = script
        self.first_number = first_number
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
    text = f"good {nonce} {'x' * size}"
    return f'{{"object":"chat.completion","choices":[{{"index":0,"message":"{text}"}}]}}'.encode()


class GoodEngine(_Engine):
    """An engine without defects."""

    async def accept(self, link: LinkSocket) -> None:
        self.links.append(link)
        self.tasks.append(asyncio.get_running_loop().create_task(self._serve(link), name="peer"))

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
