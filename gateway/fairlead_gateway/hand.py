"""One worker as the helper sees it: its process, its end of the channel, what it last said, and whether it answers.

A question has a deadline. A worker that misses it is *mute*: it is shown as such and not asked again until the answer has come
after all; nobody waits for it a second time.
"""

import asyncio
import logging
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_gateway import channel_messages as say
from fairlead_gateway.channel import Channel
from fairlead_gateway.early import Spawned
from fairlead_gateway.learning.rows import Rows
from fairlead_gateway.telemetry.parts import ModelPart

T = TypeVar("T")
_log = logging.getLogger("fairlead.gateway")


@dataclass(slots=True)
class Events:
    """What the crew wants to hear of a worker."""

    ready: Callable[["Hand"], None]
    applied: Callable[["Hand"], None]
    leaving: Callable[["Hand"], None]
    told: Callable[["Hand", say.Told], None]
    indexed: Callable[["Hand", say.Seen | say.Given], None]
    learned: Callable[[Rows], None]
    waking: Callable[[str], None]
    ended: Callable[["Hand"], None]


@dataclass(slots=True)
class _Asked:
    at: float
    answer: asyncio.Future[list[bytes] | None]
    pieces: list[bytes] = field(default_factory=list)


class Hand:
    """``number`` is what people call it, ``row`` its place in the shared memory."""

    def __init__(self, number: int, row: int, spawned: Spawned, events: Events, clock: Clock, limits: Limits) -> None:
        self.number = number
        self.row = row
        self.process = spawned.process
        self.started_at = clock.now()
        self.is_ready = False
        self.is_leaving = False
        self.failure: str | None = None
        self.version = -1
        self.problem: str | None = None
        self.owed = False  # something that it must know did not reach it
        self.said_last = False
        self.mute_since: float | None = None
        self.counters: dict[str, ModelPart] = {}
        self.own: dict[str, int] = {}
        self.loads: Mapping[str, say.WireLoad] = {}
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._sock = spawned.sock
        self._events = events
        self._clock = clock
        self._limits = limits
        self._asked: dict[int, _Asked] = {}
        self._count = 0
        self._channel: Channel[say.FromWorker] = Channel(say.FromWorker, self._received, self._lost, limits)
        self._waiting_for: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to listen to it."""
        await self._channel.open(self._sock)

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        return self._channel.send(message)

    def send_encoded(self, message: bytes) -> bool:
        """The same, encoded once for several."""
        return self._channel.send_encoded(message)

    @property
    def waiting_bytes(self) -> int:
        """What it has not read yet."""
        return self._channel.waiting_bytes

    @property
    def connected(self) -> bool:
        """Whether it can be told anything."""
        return self._channel.open_still

    @property
    def serves(self) -> bool:
        """Whether it takes new connections."""
        return self.is_ready and not self.is_leaving and not self.exited.done()

    async def ask(self, question: Callable[[int], say.Question], kind: type[T]) -> list[T] | None:
        """The pieces of its answer; None where it does not answer in time, or has not answered the question before."""
        if not self.is_ready or self.exited.done() or self.mute_since is not None:
            return None
        self._count += 1
        number = self._count
        asked = _Asked(self._clock.now(), asyncio.get_running_loop().create_future())
        self._asked[number] = asked
        if not self._channel.send(question(number)):
            del self._asked[number]
            return None
        await asyncio.wait({asked.answer}, timeout=self._limits.worker_answer_seconds)
        if not asked.answer.done():
            self.mute_since = asked.at
            _log.warning("worker %d does not answer", self.number)
            return None
        pieces = asked.answer.result()
        if pieces is None:
            return None
        return [msgspec.msgpack.decode(piece, type=kind) for piece in pieces if piece]

    def kill(self) -> None:
        """End it now; ``exited`` tells when it has."""
        if self.process.poll() is None:
            self.process.kill()
        self._wait_for_it()

    def cause(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        if self.failure is not None:
            return self.failure
        return f"killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"

    # What it says --------------------------------------------------------------------------------------------------------

    def _received(self, message: say.FromWorker) -> None:
        match message:
            case say.Told():
                if message.loads is not None:
                    self.loads = message.loads
                self._events.told(self, message)
            case say.Seen() | say.Given():
                self._events.indexed(self, message)
            case Rows():
                self._events.learned(message)
            case say.Waking(model):
                self._events.waking(model)
            case say.Piece(ask, data, last):
                self._piece(ask, data, last)
            case say.Applied(version, problem):
                self.version, self.problem = version, problem
                self._events.applied(self)
            case say.Ready(version):
                self.is_ready, self.version = True, version
                self._events.ready(self)
            case say.Leaving():
                self.is_leaving = True
                self._events.leaving(self)
            case say.Last(models, own):
                self.counters = {part.key: part for part in models}
                self.own, self.said_last = own, True
            case say.Failed(text):
                self.failure = text

    def _piece(self, number: int, data: bytes, last: bool) -> None:
        asked = self._asked.get(number)
        if asked is None:
            return
        asked.pieces.append(data)
        if last:
            del self._asked[number]
            if self.mute_since is not None and not self._asked:
                _log.info("worker %d answers again", self.number)
                self.mute_since = None
            asked.answer.set_result(asked.pieces)

    def _lost(self) -> None:
        """The channel ended, and with it the process; one that lingers is helped."""
        self.is_ready = False
        for asked in self._asked.values():
            asked.answer.set_result(None)
        self._asked.clear()
        self._wait_for_it()

    def _wait_for_it(self) -> None:
        if not self.exited.done() and self._waiting_for is None:
            self._waiting_for = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        code = await asyncio.get_running_loop().run_in_executor(None, self._waited)
        self._channel.close()
        self.exited.set_result(code)
        self._events.ended(self)

    def _waited(self) -> int:
        try:
            return self.process.wait(self._limits.worker_answer_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
