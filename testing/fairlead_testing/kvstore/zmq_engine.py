"""An engine's events on real ZMQ sockets with all faults of the wire; a loop with manual timers.

Steps and short outcomes for tests of the event sequencer.

A ZMTP 3.0 peer on a plain socket, which sends what a ZMQ library does not send.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import zmq

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import (
    AcceptBatch,
    BatchesLost,
    DuplicateBatch,
    EventFrame,
    ProcessRestarted,
    SequenceGap,
    StreamComplete,
    StreamOutcome,
    StreamResumed,
    StreamSuspended,
)
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine

_ATTEMPTS = 30_000
END_OF_REPLAY = [b"", b"", b"\xff" * 8, b""]

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


class ZmqEngine:
    """Publishes the events of ``engine`` and answers replays, as vLLM does.

    mute: answers no replay.
    hold: keeps replay requests until ``answer_held``.
    most: cuts every answer short, without its end.
    folder: binds unix sockets there instead of ports.

    Sockets are XPUB, which reports subscribers.
    """

    def __init__(
        self,
        engine: PrefixCacheEngine,
        context: "zmq.Context[zmq.Socket[bytes]]",
        *,
        ports: tuple[int, int] = (0, 0),
        replays: bool = True,
        folder: Path | None = None,
    ) -> None:
        self.engine = engine
        self.topic = b"kv"
        self.ignores_replays = False
        self.holds_replays = False
        self.max_replayed: int | None = None
        self.replay_requests: list[int] = []
        self.listeners = 0
        self._held: list[tuple[bytes, int]] = []
        self._loop = asyncio.get_running_loop()
        self._publisher = context.socket(zmq.XPUB)
        self._publisher.setsockopt(zmq.LINGER, 0)
        self._publisher.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._router = context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.SNDHWM, 100_000)
        host = "tcp://127.0.0.1:" if folder is None else f"ipc://{folder}/"
        _bind(self._publisher, f"{host}{ports[0] if folder is None else 'events'}")
        _bind(self._router, f"{host}{ports[1] if folder is None else 'replay'}")
        self.events = _bound(self._publisher)
        self.replay = _bound(self._router) if replays else None
        for each in (self._publisher, self._router):
            self._loop.add_reader(each.fileno(), self._handle_sockets)
        self._handle_sockets()

    @property
    def ports(self) -> tuple[int, int]:
        replay = self.replay
        return int(self.events.rsplit(":", 1)[1]), int(replay.rsplit(":", 1)[1]) if replay else 0

    def publish(self, *, lose: bool = False) -> EventFrame | None:
        """Sends the events since the last batch; ``lose`` only puts them into the buffer."""
        frame = self.engine.publish()
        if frame is not None and not lose:
            self.send(frame)
        return frame

    def send(self, *frames: EventFrame) -> None:
        for frame in frames:
            self.send_raw([self.topic, frame.number.to_bytes(8, "big"), frame.payload])

    def send_raw(self, parts: Sequence[bytes]) -> None:
        self._publisher.send_multipart(list(parts))
        self._handle_sockets()

    def serve_prompt(self, *tokens: int, lose: bool = False) -> None:
        self.engine.serve_prompt(tokens)
        self.publish(lose=lose)

    def answer_held(self) -> None:
        """Answers the requests that were kept."""
        self.holds_replays = False
        held, self._held = self._held, []
        for peer, start in held:
            self._answer(peer, start)

    def answer_in_part(self) -> None:
        """Answers the requests that are kept with their first batch alone, and keeps them."""
        for peer, start in self._held:
            frame = self.engine.replay(start)[0]
            self._router.send_multipart([peer, b"", self.topic, frame.number.to_bytes(8, "big"), frame.payload])
        self._handle_sockets()

    def close(self) -> None:
        """Closes the sockets without an event."""
        for each in (self._publisher, self._router):
            if not each.closed:
                self._loop.remove_reader(each.fileno())
                each.close(linger=0)

    def _handle_sockets(self) -> None:
        if self._publisher.closed:
            return
        while self._publisher.poll(0, zmq.POLLIN):
            told = self._publisher.recv()
            self.listeners += 1 if told[:1] == b"\x01" else -1
        while not self._router.closed and self._router.poll(0, zmq.POLLIN):
            peer, _, start = self._router.recv_multipart()
            number = int.from_bytes(start, "big")
            self.replay_requests.append(number)
            if self.holds_replays:
                self._held.append((peer, number))
            elif not self.ignores_replays:
                self._answer(peer, number)

    def _answer(self, peer: bytes, start: int) -> None:
        frames = self.engine.replay(start)
        for frame in frames[: self.max_replayed]:
            parts = [peer, b"", self.topic, frame.number.to_bytes(8, "big"), frame.payload]
            self._router.send_multipart(parts)
        if self.max_replayed is None:
            self._router.send_multipart([peer, *END_OF_REPLAY])
        self._handle_sockets()


class ManualLoop:
    """The running loop with manual timers. They fire in ``advance``, which also moves ``clock``."""

    def __init__(self, clock: ManualClock) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._timers: list[_Timer] = []

    def call_later(self, delay: float, callback: Callable[[], object], /) -> "_Timer":
        """Replaces the method of asyncio's loop."""
        timer = _Timer(self._clock.now() + delay, callback)
        self._timers.append(timer)
        return timer

    def call_soon(self, callback: Callable[[], object], /) -> asyncio.Handle:
        return self._loop.call_soon(callback)

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> None:
        self._loop.add_reader(fd, callback)

    def remove_reader(self, fd: int, /) -> bool:
        return self._loop.remove_reader(fd)

    def advance(self, seconds: float) -> None:
        """Moves the clock, and fires all timers that become due, in order."""
        until = self._clock.now() + seconds
        while due := [timer for timer in self._timers if not timer.cancelled and timer.at <= until]:
            first = min(due, key=lambda timer: timer.at)
            self._timers.remove(first)
            self._clock.advance(max(0.0, first.at - self._clock.now()))
            first.callback()
        self._timers = [timer for timer in self._timers if not timer.cancelled]
        self._clock.advance(until - self._clock.now())


class _Timer:
    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def _bind(socket: "zmq.Socket[bytes]", endpoint: str) -> None:
    """Binds a port that its last owner may not have closed yet: ZMQ closes in the background."""
    for _ in range(_ATTEMPTS):
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise
            socket.poll(1, zmq.POLLIN)
        else:
            return
    raise AssertionError(f"{endpoint} is not free")


def _bound(socket: "zmq.Socket[bytes]") -> str:
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def frame(number: int, process: str = "first") -> EventFrame:
    return EventFrame(number, f"{process} {number}".encode())


def short(outcomes: Iterable[StreamOutcome]) -> list[str]:
    """Returns outcomes in short form.

    ``A5`` accepts 5, ``G3-6?2`` misses 3 to 6 and requests from 2, ``L3-6`` lost them; others are
    ``D5``, ``R``, ``C``, ``S``, ``resumed``.
    """
    found = []
    for outcome in outcomes:
        if isinstance(outcome, AcceptBatch):
            found.append(f"A{outcome.number}")
        elif isinstance(outcome, DuplicateBatch):
            found.append(f"D{outcome.number}")
        elif isinstance(outcome, SequenceGap):
            found.append(f"G{outcome.first}-{'' if outcome.last is None else outcome.last}?{outcome.ask}")
        elif isinstance(outcome, BatchesLost):
            found.append(f"L{outcome.first}-{outcome.last}")
        else:
            found.append(
                {ProcessRestarted: "R", StreamComplete: "C", StreamSuspended: "S", StreamResumed: "resumed"}[
                    type(outcome)
                ]
            )
    return found


def live(stream: EventSequencer, *numbers: int, process: str = "first") -> list[str]:
    return short([one for number in numbers for one in stream.on_live_frame(frame(number, process))])


def replay(stream: EventSequencer, *numbers: int, process: str = "first", end: bool = True) -> list[str]:
    found = [one for number in numbers for one in stream.on_replayed_frame(frame(number, process))]
    return short([*found, *(stream.on_replayed_frame(None) if end else [])])


def begun(*, replayable: bool = True, upto: int = 3, limits: Limits | None = None) -> EventSequencer:
    """Returns a stream that has accepted everything up to ``upto``."""
    stream = EventSequencer(replayable=replayable, limits=limits or Limits())
    if replayable:
        assert short(stream.on_connected()) == ["G0-?0"]
        assert replay(stream) == []
    live(stream, *range(upto + 1))
    return stream


_MORE, _LONG, _COMMAND = 1, 2, 4


class ZmtpPeer:
    """One side of a connection that has been made. All calls block.

    kind: the type of ZMQ socket that it pretends to be.
    """

    def __init__(self, connection: socket.socket, kind: bytes) -> None:
        self._connection = connection
        connection.settimeout(30)
        connection.sendall(GREETING)
        self._read(len(GREETING))
        body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        connection.sendall(bytes([_COMMAND, len(body)]) + body)
        self.read_frame()

    def read_frame(self) -> bytes:
        """Returns the body of the next frame."""
        flags = self._read(1)[0]
        size = struct.unpack(">Q", self._read(8))[0] if flags & _LONG else self._read(1)[0]
        return self._read(size)

    def send_part(self, data: bytes, *, more: bool) -> None:
        """Sends one part of a message. Raises OSError when the other side has closed."""
        flags = (_MORE if more else 0) | _LONG
        self._connection.sendall(bytes([flags]) + struct.pack(">Q", len(data)) + data)

    def send_bytes(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._connection.sendall(data)

    def send_until_closed(self, data: bytes) -> None:
        """Sends bytes again and again, and reads nothing, until the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while True:
                self._connection.sendall(data)

    def send_what_fits(self, size: int) -> int:
        """Sends up to ``size`` bytes while the kernel takes them; returns how many it took."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        self._connection.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < size:
                sent += self._connection.send(bytes(16_384))
        return sent

    def close(self) -> None:
        self._connection.close()

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = self._connection.recv(size - len(found))
            if not data:
                raise ConnectionResetError("closed")
            found += data
        return found
