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

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead.units import format_duration
from fairlead_kvstore.blockstore.changes import Change, HintsExpired
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.bootstrap import (
    ENTRIES_PER_READ,
    LoadFailure,
    decode_changes,
    load_index,
    parse_entries,
    read_command,
    unreadable_reason,
    wait_command,
)
from fairlead_kvstore.index.format import META_FIELD, POSITION_FIELD, decode_position
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

_LIMITS: Final = Limits()
_SWEPT_BLOCKS: Final = 10_000
_ACTIVE_SECONDS: Final = 0.2
"""So long after changes have come others are expected soon."""
_UNREADABLE_RETRY_PAUSES: Final = 60
"""A mirror that lacks an instance which could not be read is loaded anew after so many pauses between attempts."""


class _ModelReplica(msgspec.Struct):
    key: str
    stale_since: float
    why: str = "not asked yet"
    mirror: IndexReplica | None = None
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


class IndexSubscriber:
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
        on_reload: Callable[[str, IndexReplica], None] | None = None,
    ) -> None:
        self._link = link
        self._clock = clock
        self._limits = limits
        self._on_changes = on_changes
        self._on_reload = on_reload
        self._models: dict[str, _ModelReplica] = {}
        self._status_at = 0.0
        self._has_more = False
        self._last_change_at = clock.now() - _ACTIVE_SECONDS
        self._task: asyncio.Task[None] | None = None

    def set_models(self, model_keys: Iterable[str]) -> None:
        """The models to keep mirrors of; others are forgotten. Raises BadInput for a bad name."""
        wanted = list(model_keys)
        for key in wanted:
            redis_keys.index_keys(key)
            if key not in self._models:
                self._models[key] = _ModelReplica(key, self._clock.now())
                self._status_at = 0.0
        for key in self._models.keys() - set(wanted):
            del self._models[key]

    def replica(self, model_key: str) -> IndexReplica | None:
        """What is known of a model; None before the first load."""
        model = self._models.get(model_key)
        return None if model is None else model.mirror

    def stale_since(self, model_key: str) -> float | None:
        """Monotonic seconds since when answers may be old; None when they are not."""
        model = self._models.get(model_key)
        if model is None:
            return self._clock.now()
        return model.stale_since if model.stale else None

    def models_without_leader(self) -> list[str]:
        """The models that no indexer leads, as far as a Redis that is there tells."""
        if not self._link.state.connected:
            return []
        return [model.key for model in self._models.values() if model.led is False]

    def describe(self, model_key: str) -> str:
        """For people: how good the mirror is, and why it is not better."""
        model = self._models.get(model_key)
        if model is None:
            return "not followed"
        size = "no mirror" if model.mirror is None else f"{len(model.mirror):,} blocks"
        words = f"{size}, as of {model.epoch}-{model.sequence}"
        if model.stale:
            words += f"; stale for {format_duration(max(0.0, self._clock.now() - model.stale_since))}: {model.why}"
        if model.unreadable:
            words += f"; not readable: {', '.join(sorted(model.unreadable)[:4])}"
        return words

    def load_count(self, model_key: str) -> int:
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
        await cancel_and_wait(task)

    async def step(self) -> None:
        """Ask once, and do what the answers ask for."""
        now = self._clock.now()
        asked = now >= self._status_at
        if asked:
            self._status_at = now + self._limits.index_status_seconds
        models = list(self._models.values())
        commands: list[Command] = []
        for model in models:
            own, idx, _ = redis_keys.index_keys(model.key)
            commands.append(read_command(model.key, model.epoch, model.sequence))
            if asked:
                commands += [("GET", own), ("HMGET", idx, POSITION_FIELD, META_FIELD)]
        replies = await self._link.run(commands) if commands else []
        self._has_more = False
        each = 3 if asked else 1
        for number, model in enumerate(models):
            if replies is None:
                self._mark_stale(model, "Redis is away")
                continue
            some = replies[number * each : (number + 1) * each]
            behind = model.ahead > model.sequence
            follows = self._take_entries(model, some[0], behind)
            wanted = self._check_status(model, some[1], some[2], now) if asked else None
            if not follows or wanted:
                await self._load(model, now)

    async def _run(self) -> None:
        while True:
            if not self._link.state.connected:
                for model in self._models.values():
                    self._mark_stale(model, "Redis is away")
                await self._link.wait_connected()
                self._status_at = 0.0
            await self.step()
            while not self._has_more and await self._wait_for_changes():
                pass

    async def _wait_for_changes(self) -> bool:
        """Wait until a stream goes on, and take what came; False when everything is to be looked at by itself."""
        waiting = [model for model in self._models.values() if model.mirror is not None]
        left = self._status_at - self._clock.now()
        if not waiting or self._link.is_cluster:
            await asyncio.sleep(self._poll_pause())
            return False
        if left <= 0.0:
            return False
        places = {model.key: (model.epoch, model.sequence) for model in waiting}
        replies = await self._link.run([wait_command(places, min(left, self._limits.index_wait_seconds))])
        if replies is None:
            return False
        follows = not isinstance(replies[0], ResponseError)  # where one of them is no stream, none is told
        came = {bytes(name): some for name, some in replies[0]} if follows and replies[0] else {}
        for model in waiting:
            some = came.get(redis_keys.index_keys(model.key)[2].encode())
            if some is not None and not self._take_entries(model, [(b"", some)], behind=False):
                follows = False
                await self._load(model, self._clock.now())
        if not follows:
            await asyncio.sleep(self._limits.index_poll_seconds)
        return follows and bool(came)

    def _poll_pause(self) -> float:
        """Until the next look: short after changes have come, less so with many models, each of which is a command."""
        limits, many = self._limits, max(1.0, len(self._models) / 4)
        if self._clock.now() - self._last_change_at > _ACTIVE_SECONDS:
            return limits.index_poll_seconds
        return min(limits.index_poll_seconds, limits.index_poll_busy_seconds * many)

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _take_entries(self, model: _ModelReplica, reply: Any, behind: bool) -> bool:
        """Take the entries that came; whether they follow."""
        mirror = model.mirror
        if mirror is None:
            return True  # the status says when there is something to load
        told: list[Change] = []
        why = ""
        try:
            if isinstance(reply, ResponseError):
                raise UnreadableError("the stream of changes is not what it should be", reason="shape")
            some = parse_entries(reply)
            for epoch, sequence, data in some:
                if (epoch, sequence) != (model.epoch, model.sequence + 1):
                    why = "another indexer leads" if epoch != model.epoch else "entries are missing"
                    break
                changes = decode_changes(data, model.key, self._wall_offset(), self._limits)
                mirror.apply(changes)
                told += changes
                model.sequence = sequence
            if behind and not some:
                why = "entries are missing"
            self._has_more |= len(some) >= ENTRIES_PER_READ
            self._last_change_at = self._clock.now() if some else self._last_change_at
            if not some:
                mirror.sweep(_SWEPT_BLOCKS)
        except UnreadableError as error:
            why = f"entry {model.epoch}-{model.sequence + 1} cannot be read: {error.message}"
        if told and self._on_changes is not None:
            self._on_changes(model.key, told)
        if why:
            self._mark_stale(model, why)
        return not why

    def _check_status(self, model: _ModelReplica, own: Any, found: Any, now: float) -> bool:
        """Note how good the mirror is; whether it is to be loaded."""
        if model.mirror is not None and (over := model.mirror.expire(now)) and self._on_changes is not None:
            self._on_changes(model.key, [HintsExpired(model.key, over)])
        if isinstance(found, ResponseError) or isinstance(own, ResponseError):
            self._mark_stale(model, "what Redis holds is not an index")
            return False
        model.led = isinstance(own, bytes)
        at = decode_position(found[0])
        why = unreadable_reason(at, found[1])
        if at is None or why is not None:
            self._mark_stale(model, why or "Redis holds no index")
            return False
        model.ahead = at[1] if at[0] == model.epoch else 0
        if model.mirror is None or at[0] != model.epoch:
            return True
        if at[1] < model.sequence:
            self._mark_stale(model, "Redis has lost some of what it told")
            return False
        if not isinstance(own, bytes):
            self._mark_stale(model, "nobody writes the index")
            return False
        if not own.startswith(b"%d:" % model.epoch):
            self._mark_stale(model, "another indexer begins")
            return False
        if model.unreadable and now >= model.again_at:
            return True
        model.stale, model.why, model.current_at = False, "", now
        return False

    async def _load(self, model: _ModelReplica, now: float) -> None:
        """Load it anew, unless it was tried just now."""
        if now < model.load_at:
            return
        pause = self._limits.index_reload_seconds
        model.load_at = now + pause
        found = await load_index(self._link, model.key, self._wall_offset(), now, self._limits)
        if isinstance(found, LoadFailure):
            self._mark_stale(model, found.why)
            return
        model.mirror, model.epoch, model.sequence = found.mirror, found.epoch, found.sequence
        model.unreadable = found.unreadable
        model.ahead = 0
        model.loads += 1
        model.again_at = now + pause * _UNREADABLE_RETRY_PAUSES
        self._status_at = 0.0
        if self._on_reload is not None:
            self._on_reload(model.key, found.mirror)

    def _mark_stale(self, model: _ModelReplica, why: str) -> None:
        if not model.stale:
            model.stale = True
            model.stale_since = model.current_at if model.current_at is not None else self._clock.now()
        model.why = why

    def _wall_offset(self) -> float:
        return self._clock.wall() - self._clock.now()
