"""The subscriber of a gateway: replicas of the index of its models, updated from Redis.

One blocking command waits at Redis for the next entry of any model's stream, so a change arrives as
soon as it is written. On a cluster, whose models are on different servers, the streams are polled:
every 4 ms while changes arrive, otherwise every 20 ms. Twice a second the subscriber also reads
lease and position of each index. A replica belongs to one epoch and has no gap. It is loaded again
after any of these:

- another epoch
- a missing sequence
- an ``at`` that is ahead of a stream without entries
- bytes that cannot be read

It is also loaded again some time after a load that could not read every instance.

Until the load succeeds, the old replica serves queries. It is correct as of an earlier time, so it
is *stale*, with a start and a reason. Queries never wait.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
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

INDEX_POLL_SECONDS: Final = 0.02
"""Limit: interval of polls of a cluster, where one command cannot wait for all models."""
INDEX_POLL_BUSY_SECONDS: Final = 0.004
"""Limit: the same while changes arrive: caches change quickly."""
INDEX_WAIT_SECONDS: Final = 0.1
"""Limit: blocking read of a mirror for changes of the index; a new model is noticed after that."""
INDEX_RELOAD_SECONDS: Final = 1.0
"""Limit: pause between two attempts to load an index."""
INDEX_STATUS_SECONDS: Final = 0.5
"""Limit: interval at which a mirror checks for a writer and its position."""

_LOG: Final = logging.getLogger("fairlead.index")
_SWEPT_BLOCKS: Final = 10_000
_ACTIVE_SECONDS: Final = 0.2
"""The time after changes in which more are expected soon."""
_UNREADABLE_RETRY_PAUSES: Final = 60
"""Reload pauses until a replica with an unreadable instance is loaded again."""


class _ModelReplica(msgspec.Struct, rename={"replica": "mirror"}):
    key: str
    stale_since: float
    why: str = "not loaded yet"
    replica: IndexReplica | None = None
    epoch: int = 0
    sequence: int = 0
    ahead: int = 0  # position in Redis at the last status; a lower one without entries is a gap
    current_at: float | None = None
    stale: bool = True
    load_at: float = 0.0
    again_at: float = 0.0
    unreadable: dict[str, str] = {}
    loads: int = 0
    led: bool | None = None  # whether a lease existed at the last status


class IndexSubscriber:
    """The index replicas of a gateway's models. The owner of the link starts and stops it.

    Callbacks run on the loop and must not wait.

    on_changes: called after a replica has the changes.
    on_reload: called with a new replica.
    """

    def __init__(
        self,
        link: RedisLink,
        clock: Clock,
        *,
        on_changes: Callable[[str, Sequence[Change]], None] | None = None,
        on_reload: Callable[[str, IndexReplica], None] | None = None,
        wait_seconds: float = INDEX_WAIT_SECONDS,
        status_seconds: float = INDEX_STATUS_SECONDS,
    ) -> None:
        self._link = link
        self._clock = clock
        self._wait_seconds, self._status_seconds = wait_seconds, status_seconds
        self._on_changes = on_changes
        self._on_reload = on_reload
        self._models: dict[str, _ModelReplica] = {}
        self._status_at = 0.0
        self._has_more = False
        self._last_change_at = clock.now() - _ACTIVE_SECONDS
        self._task: asyncio.Task[None] | None = None

    def set_models(self, model_keys: Iterable[str]) -> None:
        """Sets the models to follow; others are dropped. Raises BadInput for an invalid name."""
        wanted = list(model_keys)
        for key in wanted:
            redis_keys.index_keys(key)
            if key not in self._models:
                self._models[key] = _ModelReplica(key, self._clock.now())
                self._status_at = 0.0
        for key in self._models.keys() - set(wanted):
            del self._models[key]

    def replica(self, model_key: str) -> IndexReplica | None:
        """Returns the replica of a model; None before the first load and for an unknown model."""
        model = self._models.get(model_key)
        return None if model is None else model.replica

    def stale_since(self, model_key: str) -> float | None:
        """Returns since when results may be outdated (monotonic seconds); None when they are
        current. For an unknown model, returns the present time.
        """
        model = self._models.get(model_key)
        if model is None:
            return self._clock.now()
        return model.stale_since if model.stale else None

    def models_without_leader(self) -> list[str]:
        """Returns the models that no indexer leads; empty while Redis is unreachable."""
        if not self._link.state.connected:
            return []
        return [model.key for model in self._models.values() if model.led is False]

    def describe(self, model_key: str) -> str:
        """Returns the state of a replica as text, with the reason if it is stale."""
        model = self._models.get(model_key)
        if model is None:
            return "not followed"
        size = "no replica" if model.replica is None else f"{len(model.replica):,} blocks"
        text = f"{size}, as of {model.epoch}-{model.sequence}"
        if model.stale:
            text += f"; stale for {format_duration(max(0.0, self._clock.now() - model.stale_since))}: {model.why}"
        if model.unreadable:
            text += f"; unreadable: {', '.join(sorted(model.unreadable)[:4])}"
        return text

    def load_count(self, model_key: str) -> int:
        """Returns how often the replica was loaded as a whole."""
        model = self._models.get(model_key)
        return 0 if model is None else model.loads

    def start(self) -> None:
        """Starts to follow the index, in a task of the running loop."""
        if self._task is None:
            work = run_despite_defects(self._run, _LOG, "index replicas")
            self._task = asyncio.create_task(work, name="index feed")

    async def stop(self) -> None:
        """Stops following the index; the replicas stay as they are."""
        task, self._task = self._task, None
        await cancel_and_wait(task)

    async def step(self) -> None:
        """Polls the streams of all models once, applies new entries, and reloads replicas if
        needed.
        """
        now = self._clock.now()
        polls_status = now >= self._status_at
        if polls_status:
            self._status_at = now + self._status_seconds
        models = list(self._models.values())
        commands: list[Command] = []
        for model in models:
            lease, idx, _ = redis_keys.index_keys(model.key)
            commands.append(read_command(model.key, model.epoch, model.sequence))
            if polls_status:
                commands += [("GET", lease), ("HMGET", idx, POSITION_FIELD, META_FIELD)]
        replies = await self._link.run(commands) if commands else []
        self._has_more = False
        replies_per_model = 3 if polls_status else 1
        for number, model in enumerate(models):
            if replies is None:
                self._mark_stale(model, "Redis is away")
                continue
            try:
                await self._follow(model, replies[number * replies_per_model : (number + 1) * replies_per_model], now)
            except Exception:  # noqa: BLE001  # it is logged
                _LOG.exception("%s: a defect interrupted the reading of its index", model.key)
                self._mark_stale(model, "a defect interrupted its reading")
                model.epoch = 0  # it is loaded again

    async def _follow(self, model: _ModelReplica, replies: Sequence[Any], now: float) -> None:
        """Applies the replies about one model: its new entries and, if they were polled, lease and
        position.
        """
        follows = self._take_entries(model, replies[0], behind=model.ahead > model.sequence)
        wanted = self._check_status(model, replies[1], replies[2], now) if len(replies) > 1 else None
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
        """Waits for entries of any stream and applies them; returns False when every model must be
        polled.

        With a Redis Cluster, or before any replica is loaded, it only pauses and returns False.
        """
        waiting = [model for model in self._models.values() if model.replica is not None]
        left = self._status_at - self._clock.now()
        if not waiting or self._link.is_cluster:
            await asyncio.sleep(self._poll_pause())
            return False
        if left <= 0.0:
            return False
        positions = {model.key: (model.epoch, model.sequence) for model in waiting}
        replies = await self._link.run([wait_command(positions, min(left, self._wait_seconds))])
        if replies is None:
            return False
        follows = not isinstance(replies[0], ResponseError)  # if one key is no stream, the reply is an error
        received = {bytes(name): entries for name, entries in replies[0]} if follows and replies[0] else {}
        for model in waiting:
            entries = received.get(redis_keys.index_keys(model.key)[2].encode())
            if entries is not None and not self._take_entries(model, [(b"", entries)], behind=False):
                follows = False
                await self._load(model, self._clock.now())
        if not follows:
            await asyncio.sleep(INDEX_POLL_SECONDS)
        return follows and bool(received)

    def _poll_pause(self) -> float:
        """Returns the pause until the next poll: short after changes, longer with many models."""
        many = max(1.0, len(self._models) / 4)
        if self._clock.now() - self._last_change_at > _ACTIVE_SECONDS:
            return INDEX_POLL_SECONDS
        return min(INDEX_POLL_SECONDS, INDEX_POLL_BUSY_SECONDS * many)

    # --- helpers --------------------------------------------------------------------------------------------------------

    def _take_entries(self, model: _ModelReplica, reply: Any, behind: bool) -> bool:
        """Applies received entries. Returns False when the replica must be loaded again.

        behind: entries that Redis already had are still missing here.
        """
        replica = model.replica
        if replica is None:
            return True  # the status shows when to load
        applied: list[Change] = []
        why = ""
        try:
            if isinstance(reply, ResponseError):
                raise UnreadableError("the stream of changes has a wrong type", reason="shape")
            entries = parse_entries(reply)
            for epoch, sequence, data in entries:
                if (epoch, sequence) != (model.epoch, model.sequence + 1):
                    why = "another indexer leads" if epoch != model.epoch else "entries are missing"
                    why = why if model.epoch else model.why  # it waits to be loaded again
                    break
                changes = decode_changes(data, model.key, self._wall_offset())
                replica.apply(changes)
                applied += changes
                model.sequence = sequence
            if behind and not entries:
                why = "entries are missing"
            self._has_more |= len(entries) >= ENTRIES_PER_READ
            self._last_change_at = self._clock.now() if entries else self._last_change_at
            if not entries:
                replica.sweep(_SWEPT_BLOCKS)
        except UnreadableError as error:
            why = f"entry {model.epoch}-{model.sequence + 1} cannot be read: {error.message}"
        if applied and self._on_changes is not None:
            self._on_changes(model.key, applied)
        if why:
            self._mark_stale(model, why)
        return not why

    def _check_status(self, model: _ModelReplica, lease: Any, found: Any, now: float) -> bool:
        """Removes expired hints, and updates whether the replica is stale.

        Returns True if the replica must be loaded.

        lease, found: the values of the lease, and of position and metadata.
        """
        if model.replica is not None and (over := model.replica.expire(now)) and self._on_changes is not None:
            self._on_changes(model.key, [HintsExpired(model.key, over)])
        if isinstance(found, ResponseError) or isinstance(lease, ResponseError):
            self._mark_stale(model, "the index in Redis has a wrong type")
            return False
        model.led = isinstance(lease, bytes)
        at = decode_position(found[0])
        why = unreadable_reason(at, found[1])
        if at is None or why is not None:
            self._mark_stale(model, why or "Redis has no index")
            return False
        model.ahead = at[1] if at[0] == model.epoch else 0
        if model.replica is None or at[0] != model.epoch:
            return True
        if at[1] < model.sequence:
            self._mark_stale(model, "Redis has lost entries")
            return False
        if not isinstance(lease, bytes):
            self._mark_stale(model, "no indexer writes the index")
            return False
        if not lease.startswith(b"%d:" % model.epoch):
            self._mark_stale(model, "another indexer takes over")
            return False
        if model.unreadable and now >= model.again_at:
            return True
        model.stale, model.why, model.current_at = False, "", now
        return False

    async def _load(self, model: _ModelReplica, now: float) -> None:
        """Loads the replica again, unless that was tried just now."""
        if now < model.load_at:
            return
        pause = INDEX_RELOAD_SECONDS
        model.load_at = now + pause
        found = await load_index(self._link, model.key, self._wall_offset(), now)
        if isinstance(found, LoadFailure):
            self._mark_stale(model, found.why)
            return
        model.replica, model.epoch, model.sequence = found.replica, found.epoch, found.sequence
        model.unreadable = found.unreadable
        model.ahead = 0
        model.loads += 1
        model.again_at = now + pause * _UNREADABLE_RETRY_PAUSES
        self._status_at = 0.0
        if self._on_reload is not None:
            self._on_reload(model.key, found.replica)

    def _mark_stale(self, model: _ModelReplica, why: str) -> None:
        if not model.stale:
            model.stale = True
            model.stale_since = model.current_at if model.current_at is not None else self._clock.now()
        model.why = why

    def _wall_offset(self) -> float:
        return self._clock.wall() - self._clock.now()
