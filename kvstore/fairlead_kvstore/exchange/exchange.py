"""The tasks that tell the other gateways of ours and hear of theirs, over one stream a model.

``sent`` is called as the workers tell what they did: it appends to a bounded queue and returns. One task writes what is due, at
most every fiftieth of a second per batch and model; another reads what was written since, every twentieth of a second, all models
in one round trip. Neither is waited for by anything else. XRANGE is used and not XREAD: its key stands in a fixed place, so that in
a cluster no server has to be asked which it is.

Where the stream begins anew (a server without its data, or one that was promoted and had not seen the last entries) the identifiers
of our own entries fall behind what was read: then it is read from its start again. Everything in it is a hint, and hearing one
twice changes nothing.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import ResponseError

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead.units import duration
from fairlead_kvstore import keys
from fairlead_kvstore.exchange.outgoing import Outgoing
from fairlead_kvstore.exchange.peers import Groups, Heard, Peers
from fairlead_kvstore.exchange.records import DATA, GATEWAY, Batch, Load, Sent, decode_batch
from fairlead_kvstore.exchange.rotation import Rotation
from fairlead_kvstore.record import encode
from fairlead_kvstore.redis import RedisLink
from fairlead_kvstore.servers import Command

TRIM_SECONDS: Final = 10.0
PAGE: Final = 256
_START: Final = (0, 0)


@dataclass(slots=True)
class _Cursor:
    """How far a model's stream was read. ``live``: what is read now was written just now."""

    at: tuple[int, int] = _START
    live: bool = False


@dataclass(slots=True)
class Hooks:
    """``models`` are followed, each with its instances that are ready; ``loads`` are our own, of the models in which anything is in
    flight. ``heard`` gets what others sent (model, prompts), ``changed`` what of theirs is probably in flight now, by instance,
    whenever that has changed."""

    models: Callable[[], Mapping[str, Groups]]
    loads: Callable[[], Mapping[str, Mapping[str, Load]]]
    heard: Callable[[str, Sequence[Sent]], None]
    changed: Callable[[Mapping[str, Load]], None]


@dataclass(slots=True)
class Counts:
    """Prompts ``told`` and ``heard``; entries that could not be understood (``poisoned``); of which models Redis refused to write
    or to read what was sent, and why."""

    told: int = 0
    heard: int = 0
    poisoned: int = 0
    unwritten: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


class Exchange:
    """``name`` is of this run of this gateway, ``secret`` the print of the installation's. ``link`` is somebody else's to start."""

    def __init__(
        self, link: RedisLink, name: str, clock: Clock, hooks: Hooks, *, secret: bytes, limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._link = link
        self._name = name
        self._field = name.encode()
        self._clock = clock
        self._hooks = hooks
        self._cursors: dict[str, _Cursor] = {}
        self._rotation = Rotation(self._limits.sent_streams)
        self._trimmed: dict[str, float] = {}
        self._written_at: dict[str, int] = {}  # milliseconds of the server's clock, of our own last entry
        self._due = asyncio.Event()
        self._beaten = float("-inf")
        self._shown: Mapping[str, Load] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.out = Outgoing(secret, self._limits)
        self.peers = Peers(secret, self._limits)
        self.counts = Counts()

    # What others call ----------------------------------------------------------------------------------------------------

    def sent(self, model: str, instance: str, hashes: bytes, tail: int, pin: int = 0) -> None:
        """One of our workers sent a prompt there; the others are told at once, or with the next batch."""
        self.out.sent(model, instance, hashes, tail, pin)
        self._due.set()

    def loads_changed(self) -> None:
        """What our workers have in flight is not what it was."""
        self._due.set()

    def start(self) -> None:
        """Begin on the running loop; nothing is waited for."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._write(), name="exchange out"),
                asyncio.create_task(self._read(), name="exchange in"),
                asyncio.create_task(self._age(), name="exchange ages"),
            ]

    async def stop(self) -> None:
        """Tell what waits and that there is no more, so that nobody waits for us to be late."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await ended(task)
        await self.flush()
        entries = self.out.farewell()
        if entries:
            await self._link.run([self._entry(model, batch) for model, batch in entries])

    @property
    def caught_up(self) -> bool:
        """Whether all that the streams held has been read."""
        return bool(self._cursors) and all(cursor.live for cursor in self._cursors.values())

    def live(self, model: str) -> bool:
        """The same of one model."""
        cursor = self._cursors.get(model)
        return cursor is not None and cursor.live

    def present(self) -> list[Heard]:
        """The other gateways that are heard."""
        return self.peers.present(self._clock.now())

    def notes(self) -> list[str]:
        """What is missing or late, in words. That Redis is away is said by others."""
        found: list[str] = []
        strange = [peer.name for peer in self.present() if not peer.alike]
        if strange:
            found.append(
                f"{len(strange)} other gateways hash prompts under another secret, so their prefixes are not shared: "
                f"{strange[0]}; set FAIRLEAD_HASH_SECRET alike"
            )
        rounds = self._rotation.rounds()
        if rounds > 1:
            found.append(
                f"{len(self._cursors)} models: what other gateways do with a model that was quiet is seen after "
                f"up to {duration(rounds * self._limits.sent_look_seconds)}"
            )
        if self._link.state.connected:
            late = [model for model, cursor in self._cursors.items() if not cursor.live and cursor.at != _START]
            if late:
                found.append(f"what other gateways sent is still being read back for {len(late)} models")
            refused = self.counts.unwritten | self.counts.unread
            found += [f"what gateways tell of {model} is refused: {why}" for model, why in list(refused.items())[:1]]
        return found

    # Out -----------------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            await self._link.wait_connected()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.beat_seconds / 2):
                    await self._due.wait()
            self._due.clear()
            await self.flush()
            await asyncio.sleep(self._limits.sent_seconds_gathered)

    async def flush(self) -> None:
        """Write what is due now."""
        now, models = self._clock.now(), self._hooks.models()
        beats = now - self._beaten >= self._limits.beat_seconds / 2
        batches = self.out.batches(models, self._hooks.loads(), now, beats=beats)
        if beats:
            self._beaten = now
        if not batches:
            return
        commands = [self._entry(model, batch) for model, batch in batches]
        try:
            replies = await self._link.run(commands + self._trimming({model for model, _ in batches}, now))
        except asyncio.CancelledError:
            self.out.back(batches)
            raise
        if replies is None:
            self.out.back(batches)
            self._trimmed.clear()
            return
        for (model, batch), reply in zip(batches, replies, strict=False):
            self._written(model, batch, reply, now)

    def _written(self, model: str, batch: Batch, reply: Any, now: float) -> None:
        if isinstance(reply, ResponseError):
            self.out.refused(batch)
            self.counts.unwritten[model] = str(reply).splitlines()[0][:120]
            return
        self.out.written(model, batch, now)
        self.counts.unwritten.pop(model, None)
        self.counts.told += len(batch.sent)
        identifier = _identifier(reply)
        self._written_at[model] = identifier[0]
        cursor = self._cursors.get(model)
        if cursor is not None and identifier <= cursor.at:
            self._cursors[model] = _Cursor()  # the stream has begun anew

    def _entry(self, model: str, batch: Batch) -> Command:
        most = self._limits.sent_entries
        return ("XADD", keys.sent(model), "MAXLEN", "~", most, "*", GATEWAY, self._field, DATA, encode(batch))

    def _trimming(self, models: Collection[str], now: float) -> list[Command]:
        """Now and then, of a model that is written to: what is old goes, and a stream that nobody writes to expires."""
        commands: list[Command] = []
        seconds = self._limits.sent_kept_seconds
        for model in models:
            written = self._written_at.get(model)
            if written is None or now - self._trimmed.get(model, -TRIM_SECONDS) < TRIM_SECONDS:
                continue
            self._trimmed[model] = now
            oldest = max(0, written - int(seconds * 1000))  # by the server's own clock
            commands.append(("XTRIM", keys.sent(model), "MINID", "~", oldest))
            commands.append(("EXPIRE", keys.sent(model), max(1, int(seconds))))
        return commands

    # In ------------------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            await self._link.wait_connected()
            await self.look()
            alone = not len(self.peers) and self.caught_up
            await asyncio.sleep(self._limits.sent_alone_seconds if alone else self._limits.sent_look_seconds)

    async def look(self) -> None:
        """One round."""
        self._follow(self._hooks.models())
        models = self._rotation.round(self._clock.now())
        commands: list[Command] = []
        for model in models:
            first, second = self._cursors[model].at
            commands.append(("XRANGE", keys.sent(model), f"({first}-{second}", "+", "COUNT", PAGE))
        replies = await self._link.run(commands) if commands else None
        for model, reply in zip(models, replies or (), strict=False):
            if isinstance(reply, ResponseError):
                self.counts.unread[model] = str(reply).splitlines()[0][:120]
            else:
                self.counts.unread.pop(model, None)
                self._take(model, reply)
        self.settle()

    async def _age(self) -> None:
        """Whoever falls silent is gone in time, also while a look waits for a Redis that says nothing."""
        while True:
            await asyncio.sleep(self._limits.beat_seconds / 2)
            self.settle()

    def settle(self) -> None:
        """Tell what is in flight elsewhere, where that has changed."""
        self.peers.expire(self._clock.now())
        loads = self.peers.expected(self._hooks.models()) if len(self.peers) else {}
        if loads != self._shown:
            self._shown = loads
            self._hooks.changed(loads)

    def _follow(self, models: Collection[str]) -> None:
        if len(models) == len(self._cursors) and all(model in self._cursors for model in models):
            return
        for gone in [model for model in self._cursors if model not in models]:
            del self._cursors[gone]
            self._trimmed.pop(gone, None)
            self._written_at.pop(gone, None)
            self.counts.unwritten.pop(gone, None)
            self.counts.unread.pop(gone, None)
            self.peers.forget(gone)
        for model in models:
            self._cursors.setdefault(model, _Cursor())
        self._rotation.follow(models)
        self.out.keep_only(models)

    def _take(self, model: str, entries: Sequence[Any]) -> None:
        cursor = self._cursors.get(model)
        if cursor is None:
            return
        now, live = self._clock.now(), cursor.live
        for identifier, fields in entries:
            cursor.at = max(cursor.at, _identifier(identifier))
            name = fields.get(GATEWAY) if fields else None
            if name is None or name == self._field:
                continue
            batch = decode_batch(fields.get(DATA, b""))
            if batch is None or len(name) > 512:
                self.counts.poisoned += 1
                continue
            self._rotation.woke(model, now)
            items = self.peers.heard(model, name.decode(errors="replace"), batch, now, live=live)
            if items:
                self.counts.heard += len(items)
                self._hooks.heard(model, items)
        cursor.live = live or len(entries) < PAGE


def _identifier(text: bytes) -> tuple[int, int]:
    first, _, second = text.partition(b"-")
    return int(first), int(second or b"0")
