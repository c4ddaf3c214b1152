"""Streams at a constant rate against one address, with the time and cause of every failure.

It runs inside the cluster, in a pod of the gateway's image (which has httptools and uvloop). Its
options are JSON in the last argument. It stops when its standard input ends: no new stream begins,
and open ones are read to their ends. It prints a JSON line for each failure, one a second, and a
last one with all counts.

A stream is *complete* when its status is 200, a choice has a finish reason, ``[DONE]`` came, and
the body ended as HTTP requires. All requested tokens must have come, too. Anything else is a
failure, named by its first sign. Half of the requests use earlier connections, like HTTP clients
with a pool. A connection that the other side has closed is not used again.
"""

import asyncio
import json
import sys
import threading
import time
from collections import Counter, deque
from typing import Any

import httptools
import uvloop

STALL_SECONDS = 60.0
LAST_BYTES = 2_048


class StreamConnection(asyncio.Protocol):
    """One connection, and the stream that it carries now."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.stream: StreamRead | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.on_data(data)

    def eof_received(self) -> bool:
        self.closed = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.stream is not None:
            self.stream.on_connection_lost(exc)


class StreamRead:
    """A request and its answer, as httptools parses it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[None] = loop.create_future()
        self.begun = self.heard = time.monotonic()
        self.first: float | None = None
        self.gap = 0.0
        self.status = 0
        self.instance = ""
        self.tail = b""
        self.events = 0
        self.whole = False
        self.ended = ""
        self.keep = False
        self._parser = httptools.HttpResponseParser(self)

    def on_data(self, data: bytes) -> None:
        now = time.monotonic()
        if self.first is not None:
            self.gap = max(self.gap, now - self.heard)
        self.heard = now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.end(f"not HTTP: {error}")

    def on_connection_lost(self, error: Exception | None) -> None:
        self.end(f"connection lost: {error}" if error else "connection closed")

    def end(self, why: str) -> None:
        if not self.over.done():
            self.ended = why
            self.over.set_result(None)

    def on_status(self, _: bytes) -> None:
        self.status = self._parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-fairlead-instance":
            self.instance = value.decode()

    def on_body(self, body: bytes) -> None:
        found = body.count(b"data:")
        if found and self.first is None and self.status == 200:
            self.first = time.monotonic()
        self.events += found
        self.tail = (self.tail + body)[-LAST_BYTES:]

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.keep = self._parser.should_keep_alive()
        self.whole = True
        self.end("")

    def outcome(self, tokens: int) -> str:
        """Returns ``complete``, or what is wrong."""
        if self.status == 0:
            return f"no answer: {self.ended}"
        tail = self.tail.decode(errors="replace")
        if self.status != 200:
            return f"status {self.status}: {tail[-300:]}"
        lines = [line[5:].strip() for line in tail.splitlines() if line.startswith("data:")]
        told = [json.loads(line) for line in lines[1:] if line.startswith("{") and line.endswith("}")]
        if failed := next((one["error"] for one in told if "error" in one), None):
            return f"error event: {json.dumps(failed)[:300]}"
        finished = any(choice.get("finish_reason") for one in told for choice in one.get("choices") or ())
        if not (self.whole and finished and lines and lines[-1] == "[DONE]"):
            seen = (
                "no [DONE]"
                if not lines or lines[-1] != "[DONE]"
                else "no end of the body"
                if finished
                else "no finish_reason"
            )
            return f"truncated: {seen} after {self.events} events: {self.ended}"
        came = next((one["usage"]["completion_tokens"] for one in reversed(told) if one.get("usage")), None)
        return "complete" if came == tokens else f"short: {came} of {tokens} tokens"


class StreamLoad:
    """All streams of one run."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.stopping = asyncio.Event()
        self.outcomes: Counter[str] = Counter()
        self.instances: Counter[str] = Counter()
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.late = 0.0
        self._loop = asyncio.get_running_loop()
        self._idle: deque[StreamConnection] = deque()
        self._open: set[asyncio.Task[None]] = set()
        self._second: Counter[str] = Counter()
        self._slowest = 0.0

    async def run(self) -> None:
        """Runs until stopped and every stream has ended."""
        threading.Thread(target=self._until_told, args=(self._loop,), daemon=True).start()
        seconds = self._loop.create_task(self._seconds())
        begun, number, pause = time.monotonic(), 0, 1.0 / self.options["rate"]
        while not self.stopping.is_set():
            due = begun + number * pause
            try:
                await asyncio.wait_for(self.stopping.wait(), max(0.0, due - time.monotonic()))
            except TimeoutError:
                pass
            else:
                break
            self.late = max(self.late, time.monotonic() - due)
            task = self._loop.create_task(self._one(number))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            number += 1
        asked = time.monotonic() - begun
        while self._open:
            await asyncio.wait(set(self._open))
        seconds.cancel()
        say({"what": "end", **self._summary(number, asked)})

    def _until_told(self, loop: asyncio.AbstractEventLoop) -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(self.stopping.set)

    async def _one(self, number: int) -> None:
        self._second["begun"] += 1
        stream, reused = StreamRead(self._loop), False
        connection: StreamConnection | None = None
        try:
            connection = self._pooled() if number % 2 else None
            reused = connection is not None
            if connection is None:
                host, port = self.options["host"], self.options["port"]
                async with asyncio.timeout(10.0):
                    _, connection = await self._loop.create_connection(StreamConnection, host, port)
            connection.stream = stream
            connection.transport.write(self._request(number))
            await self._watched(stream)
        except (OSError, TimeoutError) as error:
            stream.ended = f"cannot connect: {error!r}"
        if connection is not None:
            connection.stream = None
            if stream.keep and not connection.closed:
                self._idle.append(connection)
            elif connection.transport is not None:
                connection.transport.close()
        self._counted(stream, reused)

    async def _watched(self, stream: StreamRead) -> None:
        while not stream.over.done():
            await asyncio.wait({stream.over}, timeout=STALL_SECONDS)
            if time.monotonic() - stream.heard >= STALL_SECONDS:
                stream.end(f"nothing came for {STALL_SECONDS:g} s")

    def _pooled(self) -> StreamConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    def _request(self, number: int) -> bytes:
        options = self.options
        about = f"Conversation {number % options.get('conversations', 50)}: "
        said = about + "and what became of it then? " * options.get("repeats", 8) + str(number)
        body = json.dumps(
            {
                "model": options["model"],
                "messages": [{"role": "user", "content": said}],
                "max_tokens": options["tokens"],
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {options['host']}\r\nauthorization: Bearer {options['key']}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def _counted(self, stream: StreamRead, reused: bool) -> None:
        outcome = stream.outcome(self.options["tokens"])
        self.outcomes[outcome.partition(":")[0]] += 1
        self.instances[stream.instance] += 1
        self._second["ended"] += 1
        if stream.first is not None:
            self.firsts.append(stream.first - stream.begun)
            self.gaps.append(stream.gap)
            self._slowest = max(self._slowest, self.firsts[-1])
        if outcome != "complete":
            self._second["failed"] += 1
            age = round(time.monotonic() - stream.begun, 3)
            told = {"outcome": outcome, "after": age, "reused": reused, "instance": stream.instance}
            say({"what": "failure", "at": time.time(), **told, "events": stream.events})

    async def _seconds(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            told = {"open": len(self._open), "slowest_first": round(self._slowest, 3)}
            say({"what": "second", "at": time.time(), **self._second, **told})
            self._second.clear()
            self._slowest = 0.0

    def _summary(self, number: int, seconds: float) -> dict[str, Any]:
        return {
            "streams": number,
            "seconds": round(seconds, 1),
            "per_second": round(number / seconds, 2),
            "outcomes": dict(self.outcomes),
            "instances": len(self.instances),
            "first_token_seconds": quantiles(self.firsts),
            "longest_gap_seconds": quantiles(self.gaps),
            "sent_late_seconds": round(self.late, 3),
            "client_processor_seconds": round(time.process_time(), 1),
        }


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p99 and the most; empty without values."""
    ordered = sorted(values)
    places = {"p50": 0.5, "p99": 0.99, "most": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
        for name, share in places.items()
        if ordered
    }


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


async def main() -> None:
    await StreamLoad(json.loads(sys.argv[-1])).run()


if __name__ == "__main__":
    uvloop.run(main())
