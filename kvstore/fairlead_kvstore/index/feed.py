"""A gateway's copy of the index: mirrors of the models it serves, fed from Redis.

One command waits at Redis for whatever follows in the stream of any model, so a change is here as soon as it is written. Of a
cluster, whose models lie on different servers, the streams are asked every 4 ms while changes come, else every 20. Twice a second
it is also asked who leads and where the index is. A mirror is of one epoch and unbroken: whatever does not follow, another epoch,
a number left out, an ``at`` that is ahead of a stream without entries, bytes that cannot be read, and the mirror is loaded anew.
Until that works the old one serves on. It is right as of some time ago, so it is *stale*; since when, and why, is told. Nobody who
asks a mirror ever waits.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead.units import duration
from fairlead_kvstore import keys
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index.layout import AT, META, parse_at
from fairlead_kvstore.index.load import ENTRIES_AT_ONCE, NotLoaded, awaiting, changes_of, entries, load, reading, ready
from fairlead_kvstore.index.mirror import IndexMirror
from fairlead_kvstore.redis import RedisLink
from fairlead_kvstore.servers import Command
from fairlead_kvstore.truth.changes import Change, Expired

_LIMITS: Final = Limits()
_SWEEP: Final = 10_000
_LIVELY_SECONDS: Final = 0.2
"""So long after changes have come others are expected soon."""
_UNREADABLE_AGAIN: Final = 60
"""A mirror that lacks an instance which could not be read is loaded anew after so many pauses between attempts."""


class _Model(msgspec.Struct):
    key: str
    stale_since: float
    why: str = "not asked yet"
    mirror: IndexMirror | None = None
    epoch: int = 0
    sequence: int = 0
    ahead: int = 0  # the sequence that was there at the last look; less than it, without entries, is a gap
    current_at: float | None = None
    stale: bool = True
    load_at: float = 0.0
    again_at: float = 0.0
    unreadable: dict[str, str] = {}
    loads: int = 0
    led: bool | None = None  # whether there was a lease at the last look


class Feed:
    """Mirrors by model. ``on_changes`` is told after a mirror has them; ``on_reload`` when there is a new mirror.

    The link is started and stopped by whoever made it. Both functions are called on the loop, and must not wait.
    """

    def __init__(
        self,
        link: RedisLink,
        clock: Clock,
        *,
        limits: Limits = _LIMITS,
        on_changes: Callable[[str, Sequence[Change]], None] | None = None,
        on_reload: Callable[[str, IndexMirror], None] | None = None,
    ) -> None:
        self._link = link
        self._clock = clock
        self._limits = limits
        self._on_changes = on_changes
        self._on_reload = on_reload
        self._models: dict[str, _Model] = {}
        self._status_at = 0.0
        self._busy = False
        self._came_at = clock.now() - _LIVELY_SECONDS
        self._task: asyncio.Task[None] | None = None

    def follow(self, model_keys: Iterable[str]) -> None:
        """The models to keep mirrors of; others are forgotten. Raises BadInput for a bad name."""
        wanted = list(model_keys)
        for key in wanted:
            keys.index_keys(key)
            if key not in self._models:
                self._models[key] = _Model(key, self._clock.now())
                self._status_at = 0.0
        for key in self._models.keys() - set(wanted):
            del self._models[key]

    def mirror(self, model_key: str) -> IndexMirror | None:
        """What is known of a model; None before the first load."""
        model = self._models.get(model_key)
        return None if model is None else model.mirror

    def stale_since(self, model_key: str) -> float | None:
        """Monotonic seconds since when answers may be old; None when they are not."""
        model = self._models.get(model_key)
        if model is None:
            return self._clock.now()
        return model.stale_since if model.stale else None

    def unled(self) -> list[str]:
        """The models that no indexer leads, as far as a Redis that is there tells."""
        if not self._link.state.connected:
            return []
        return [model.key for model in self._models.values() if model.led is False]

    def words(self, model_key: str) -> str:
        """For people: how good the mirror is, and why it is not better."""
        model = self._models.get(model_key)
        if model is None:
            return "not followed"
        size = "no mirror" if model.mirror is None else f"{len(model.mirror):,} blocks"
        words = f"{size}, as of {model.epoch}-{model.sequence}"
        if model.stale:
            words += f"; stale for {duration(max(0.0, self._clock.now() - model.stale_since))}: {model.why}"
        if model.unreadable:
            words += f"; not readable: {', '.join(sorted(model.unreadable)[:4])}"
        return words

    def loads(self, model_key: str) -> int:
        """How often the mirror was loaded as a whole."""
        model = self._models.get(model_key)
        return 0 if model is None else model.loads

    def start(self) -> None:
        """Begin on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="index feed")

    async def stop(self) -> None:
        """Leave; the mirrors stay as they are."""
        task, self._task = self._task, None
        await ended(task)

    async def step(self) -> None:
        """Ask once, and do what the answers ask for."""
        now = self._clock.now()
        asked = now >= self._status_at
        if asked:
            self._status_at = now + self._limits.index_status_seconds
        models = list(self._models.values())
        commands: list[Command] = []
        for model in models:
            own, idx, _ = keys.index_keys(model.key)
            commands.append(reading(model.key, model.epoch, model.sequence))
            if asked:
                commands += [("GET", own), ("HMGET", idx, AT, META)]
        replies = await self._link.run(commands) if commands else []
        self._busy = False
        each = 3 if asked else 1
        for number, model in enumerate(models):
            if replies is None:
                self._stale(model, "Redis is away")
                continue
            some = replies[number * each : (number + 1) * each]
            behind = model.ahead > model.sequence
            follows = self._follow(model, some[0], behind)
            wanted = self._status(model, some[1], some[2], now) if asked else None
            if not follows or wanted:
                await self._load(model, now)

    async def _run(self) -> None:
        while True:
            if not self._link.state.connected:
                for model in self._models.values():
                    self._stale(model, "Redis is away")
                await self._link.wait_connected()
                self._status_at = 0.0
            await self.step()
            while not self._busy and await self._news():
                pass

    async def _news(self) -> bool:
        """Wait until a stream goes on, and take what came; False when everything is to be looked at by itself."""
        waiting = [model for model in self._models.values() if model.mirror is not None]
        left = self._status_at - self._clock.now()
        if not waiting or self._link.spread:
            await asyncio.sleep(self._pause())
            return False
        if left <= 0.0:
            return False
        places = {model.key: (model.epoch, model.sequence) for model in waiting}
        replies = await self._link.run([awaiting(places, min(left, self._limits.index_wait_seconds))])
        if replies is None:
            return False
        follows = not isinstance(replies[0], ResponseError)  # where one of them is no stream, none is told
        came = {bytes(name): some for name, some in replies[0]} if follows and replies[0] else {}
        for model in waiting:
            some = came.get(keys.index_keys(model.key)[2].encode())
            if some is not None and not self._follow(model, [(b"", some)], behind=False):
                follows = False
                await self._load(model, self._clock.now())
        if not follows:
            await asyncio.sleep(self._limits.index_poll_seconds)
        return follows and bool(came)

    def _pause(self) -> float:
        """Until the next look: short after changes have come, less so with many models, each of which is a command."""
        limits, many = self._limits, max(1.0, len(self._models) / 4)
        if self._clock.now() - self._came_at > _LIVELY_SECONDS:
            return limits.index_poll_seconds
        return min(limits.index_poll_seconds, limits.index_poll_busy_seconds * many)

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _follow(self, model: _Model, reply: Any, behind: bool) -> bool:
        """Take the entries that came; whether they follow."""
        mirror = model.mirror
        if mirror is None:
            return True  # the status says when there is something to load
        told: list[Change] = []
        why = ""
        try:
            if isinstance(reply, ResponseError):
                raise UnreadableError("the stream of changes is not what it should be", reason="shape")
            some = entries(reply)
            for epoch, sequence, data in some:
                if (epoch, sequence) != (model.epoch, model.sequence + 1):
                    why = "another indexer leads" if epoch != model.epoch else "entries are missing"
                    break
                changes = changes_of(data, model.key, self._ahead(), self._limits)
                mirror.apply(changes)
                told += changes
                model.sequence = sequence
            if behind and not some:
                why = "entries are missing"
            self._busy |= len(some) >= ENTRIES_AT_ONCE
            self._came_at = self._clock.now() if some else self._came_at
            if not some:
                mirror.sweep(_SWEEP)
        except UnreadableError as error:
            why = f"entry {model.epoch}-{model.sequence + 1} cannot be read: {error.message}"
        if told and self._on_changes is not None:
            self._on_changes(model.key, told)
        if why:
            self._stale(model, why)
        return not why

    def _status(self, model: _Model, own: Any, found: Any, now: float) -> bool:
        """Note how good the mirror is; whether it is to be loaded."""
        if model.mirror is not None and (over := model.mirror.expire(now)) and self._on_changes is not None:
            self._on_changes(model.key, [Expired(model.key, over)])
        if isinstance(found, ResponseError) or isinstance(own, ResponseError):
            self._stale(model, "what Redis holds is not an index")
            return False
        model.led = isinstance(own, bytes)
        at = parse_at(found[0])
        why = ready(at, found[1])
        if at is None or why is not None:
            self._stale(model, why or "Redis holds no index")
            return False
        model.ahead = at[1] if at[0] == model.epoch else 0
        if model.mirror is None or at[0] != model.epoch:
            return True
        if at[1] < model.sequence:
            self._stale(model, "Redis has lost some of what it told")
            return False
        if not isinstance(own, bytes):
            self._stale(model, "nobody writes the index")
            return False
        if not own.startswith(b"%d:" % model.epoch):
            self._stale(model, "another indexer begins")
            return False
        if model.unreadable and now >= model.again_at:
            return True
        model.stale, model.why, model.current_at = False, "", now
        return False

    async def _load(self, model: _Model, now: float) -> None:
        """Load it anew, unless it was tried just now."""
        if now < model.load_at:
            return
        pause = self._limits.index_reload_seconds
        model.load_at = now + pause
        found = await load(self._link, model.key, self._ahead(), now, self._limits)
        if isinstance(found, NotLoaded):
            self._stale(model, found.why)
            return
        model.mirror, model.epoch, model.sequence = found.mirror, found.epoch, found.sequence
        model.unreadable = found.unreadable
        model.ahead = 0
        model.loads += 1
        model.again_at = now + pause * _UNREADABLE_AGAIN
        self._status_at = 0.0
        if self._on_reload is not None:
            self._on_reload(model.key, found.mirror)

    def _stale(self, model: _Model, why: str) -> None:
        if not model.stale:
            model.stale = True
            model.stale_since = model.current_at if model.current_at is not None else self._clock.now()
        model.why = why

    def _ahead(self) -> float:
        return self._clock.wall() - self._clock.now()
