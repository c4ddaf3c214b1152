"""Lessons in Redis, so that a gateway that starts does not ask engines for all of them again, and two do not ask for the same.

Each model has one stream of what its gateways learned lately. A prompt that goes on from a known one says all that the earlier lesson
said, so with its own entry the earlier one is deleted: a conversation is one entry, not one a turn. Entries are bounded in size, the
stream in their number, and it expires a day after the last.

One task reads what others wrote and writes what was learned here, every two seconds, all models in one round trip. Everything in the
stream is a hint: a lesson that is lost is learned again, one that is read twice changes nothing, one that is wrong is found by the
links' own means (drift), after which the model's stream is deleted, too.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import ResponseError

from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead_kvstore import keys
from fairlead_kvstore.exchange.records import DATA, GATEWAY, secret_print
from fairlead_kvstore.links.lesson import Lesson, packed, unpacked
from fairlead_kvstore.redis import RedisLink
from fairlead_kvstore.servers import Command

PAGE: Final = 32
_START: Final = b"0-0"


@dataclass(slots=True)
class _Stream:
    """One model: how far it was read, and where the lesson of each prompt lies, by the hash of its last block."""

    at: bytes = _START
    lies: OrderedDict[int, bytes] = field(default_factory=OrderedDict)


class KeptLinks:
    """``name`` is of this run of this gateway; ``learned`` gets what others learned. ``link`` is somebody else's to start."""

    def __init__(
        self,
        link: RedisLink,
        name: str,
        learned: Callable[[str, Lesson], None],
        *,
        secret: bytes,
        limits: Limits,
    ) -> None:
        self._link = link
        self._name = name.encode()
        self._learned = learned
        self._secret = secret_print(secret)
        self._limits = limits
        self._streams: dict[str, _Stream] = {}
        self._waiting: deque[tuple[str, int, bytes, Sequence[int]]] = deque(maxlen=limits.link_kept_waiting)
        self._wrong: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self.taken: dict[str, int] = {}
        self.unreadable = 0

    # What others call ----------------------------------------------------------------------------------------------------

    def follow(self, models: Iterable[str]) -> None:
        """Keep and read the links of these models, and of no others."""
        wanted = set(models)
        for gone in self._streams.keys() - wanted:
            del self._streams[gone]
            self.taken.pop(gone, None)
        for model in wanted - self._streams.keys():
            self._streams[model] = _Stream()

    def offer(self, model: str, lesson: Lesson) -> None:
        """A prompt was learned here."""
        if model not in self._streams or not lesson.owns:
            return
        data = packed(lesson, secret=self._secret)
        if len(data) <= self._limits.link_kept_bytes:
            self._waiting.append((model, lesson.hashes[-1], data, lesson.hashes))

    def forget(self, model: str) -> None:
        """What was learned of the model is wrong."""
        self._waiting = deque((one for one in self._waiting if one[0] != model), self._waiting.maxlen)
        self._wrong.add(model)

    def start(self) -> None:
        """Begin on the running loop; nothing is waited for."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="links kept in Redis")

    async def stop(self) -> None:
        """Write what waits, and read no more."""
        task, self._task = self._task, None
        await ended(task)
        await self.write()

    # Inside --------------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._link.wait_connected()
            await self.read()
            await self.write()
            await asyncio.sleep(self._limits.link_kept_seconds)

    async def read(self) -> None:
        """What was written since the last time, a page of each model at a time."""
        behind = list(self._streams)
        while behind:
            commands: list[Command] = [
                ("XRANGE", keys.links(model), b"(" + self._streams[model].at, "+", "COUNT", PAGE) for model in behind
            ]
            replies = await self._link.run(commands)
            if replies is None:
                return
            more = []
            for model, reply in zip(behind, replies, strict=True):
                if not isinstance(reply, ResponseError) and model in self._streams:
                    self._take(model, reply)
                    if len(reply) == PAGE:
                        more.append(model)
                await asyncio.sleep(0)
            behind = [model for model in more if model in self._streams]

    def _take(self, model: str, entries: Sequence[Any]) -> None:
        stream = self._streams[model]
        for identifier, fields in entries:
            stream.at = identifier
            if not fields or fields.get(GATEWAY) == self._name:
                continue
            data = fields.get(DATA, b"")
            lesson = unpacked(data, secret=self._secret, most_bytes=self._limits.link_kept_bytes)
            if lesson is None:
                self.unreadable += 1
                continue
            self.taken[model] = self.taken.get(model, 0) + 1
            self._lies(stream, lesson.hashes[-1], identifier)
            self._learned(model, lesson)

    async def write(self) -> None:
        """What was learned here since the last time; what it makes needless goes."""
        waiting, wrong = list(self._waiting), self._wrong
        self._waiting.clear()
        self._wrong = set()
        commands: list[Command] = []
        for model in wrong & self._streams.keys():
            self._streams[model].lies.clear()
            commands.append(("DEL", keys.links(model)))
        first = len(commands)
        written = [one for one in waiting if one[0] in self._streams]
        most = self._limits.link_kept_lessons
        for model, _, data, _ in written:
            commands.append(("XADD", keys.links(model), "MAXLEN", "~", most, "*", GATEWAY, self._name, DATA, data))
        seconds = int(self._limits.link_kept_day_seconds)
        commands += [("EXPIRE", keys.links(model), seconds) for model in {one[0] for one in written}]
        for model, _, _, hashes in written:
            lies = self._streams[model].lies
            gone = [lies.pop(digest) for digest in hashes if digest in lies]
            if gone:
                commands.append(("XDEL", keys.links(model), *gone))
        replies = await self._link.run(commands) if commands else []
        if replies is None:  # they are still linked here; only whoever starts now has to ask
            self._wrong |= wrong
            return
        for (model, tail, _, _), reply in zip(written, replies[first:], strict=False):
            if not isinstance(reply, ResponseError) and model in self._streams:
                self._lies(self._streams[model], tail, reply)

    def _lies(self, stream: _Stream, tail: int, identifier: bytes) -> None:
        stream.lies[tail] = identifier
        stream.lies.move_to_end(tail)
        while len(stream.lies) > self._limits.link_kept_lessons:
            stream.lies.popitem(last=False)
