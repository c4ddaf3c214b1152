"""The exchange of dispatches and loads with other gateways, over one Redis stream per model.

`add_dispatch` appends to a bounded queue and returns. One task writes what is due, at most every 20
ms. Another reads what was written since, every 50 ms, all models in one round trip. While there is
no other gateway, it reads less often. Nothing else waits for these tasks.

A stream may be replaced: by a server without its data, or by a promoted one that missed the last
entries. Then the ids of own entries fall behind what was read, and the stream is read from its
start. Its content is hints, so reading an entry twice changes nothing. A stream that takes no
entry any more, or a key of another type, is deleted.

Why: XRANGE has its key at a fixed position, and XREAD has not. So in a cluster, no server has to be
queried for the position.

The rates at which a gateway applies the dispatches of other gateways. Pure: time is an argument.

Each worker applies every dispatch of another gateway. A process that has the password of Redis can
write any number of them, under any names. So each sender has a rate, and all together have one that
they share equally. What comes faster is dropped: it is a hint, and loads are sent apart from it.

What a gateway reads back at its start comes at once. It has budgets of its own, which are larger.

Reports of loads have budgets in instances. A report beyond them is passed over. The next one
counts: a gateway with requests in flight reports all of its loads at least twice a second.

Reports of the service of tenants have budgets in tenants. What is beyond them counts in its own
gateway only.

The choice, in rotation, of the models' streams that a gateway reads in one round. Pure.

Up to a limit, every round reads all. Beyond it, recently active streams come first, with three
quarters of the places, and the others take turns. `rounds_per_cycle` says how late an entry of
an idle model is read.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import structs
from redis.exceptions import ResponseError

from fairlead.errors import first_line
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead.units import format_duration
from fairlead_gateway.peers.peer_messages import (
    DATA_FIELD,
    DISPATCH_ENTRY_BYTES,
    ENTRY_OVERHEAD_BYTES,
    GATEWAY_FIELD,
    PEER_LOADS,
    PEER_TENANTS,
    PeerBatch,
    PeerLoad,
    SentPrompt,
    decode_batch,
)
from fairlead_gateway.peers.peer_outbox import HEARTBEAT_SECONDS, PeerOutbox
from fairlead_gateway.peers.peer_state import (
    DISPATCH_BATCH_SECONDS,
    DISPATCH_POLL_SECONDS,
    PEERS,
    InstanceGroups,
    KnownPeer,
    PeerState,
)
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.codec import encode
from fairlead_kvstore.redis.link import RedisLink

BUSY_SECONDS: Final = 10.0
DISPATCH_PEER_BYTES: Final = 2 * 1024 * 1024
"""Limit: dispatches of one other gateway applied per second, each 128 bytes and 8 a block: some
8,000; more are dropped.
"""
DISPATCH_PEERS_BYTES: Final = 8 * 1024 * 1024
"""Limit: the same of all other gateways, which share it equally."""
DISPATCH_BURST_SECONDS: Final = 5.0
"""Limit: of these rates, what may come at once."""
DISPATCH_HISTORY_SECONDS: Final = 60.0
"""Limit: the same of what a gateway reads back at its start."""
PEER_LOAD_ROWS: Final = 20_000
"""Limit: loads of instances that one other gateway may report per second, and services of tenants;
a report beyond is passed over.
"""
PEERS_LOAD_ROWS: Final = 50_000
"""Limit: the same of all other gateways: some 0.2 s of the supervisor."""

_MAX_NAME_BYTES: Final = 512
_OTHER_SENDERS = b""
"""The sender that stands for all beyond ``peers``; no gateway has an empty name."""
_PRUNE_SECONDS = 1.0

DISPATCH_RETENTION_SECONDS: Final = 300.0
"""Limit: how long they are kept, for gateways that start."""
DISPATCH_IDLE_POLL_SECONDS: Final = 0.5
"""Limit: the same without other gateways."""
DISPATCH_STREAMS: Final = 200
"""Limit: streams read in one poll; beyond, quiet models are read in rotation."""
DISPATCH_ENTRIES: Final = 10_000
"""Limit: entries of one model's dispatch stream, some 3 kB each."""

TRIM_SECONDS: Final = 10.0
PAGE_ENTRIES: Final = 256
_PAUSE_FACTOR: Final = 4.0
_STREAM_START: Final = (0, 0)
_DAMAGED_KEY_ERRORS: Final = ("WRONGTYPE", "ID specified", "exhausted the last possible ID")


class StreamRotation:
    """The streams of all models, of which `max_streams` are read per round."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._order: deque[str] = deque()
        self._busy_since: dict[str, float] = {}

    def set_models(self, models: Collection[str]) -> None:
        known = set(self._order)
        self._order = deque(
            [model for model in self._order if model in models] + [model for model in models if model not in known]
        )
        for gone in [model for model in self._busy_since if model not in models]:
            del self._busy_since[gone]

    def on_activity(self, model: str, now: float) -> None:
        self._busy_since[model] = now

    def next_round(self, now: float) -> list[str]:
        """Returns the keys of the models to read in this round."""
        order, most = self._order, self._max_streams
        if len(order) <= most:
            return list(order)
        for gone in [model for model, at in self._busy_since.items() if now - at > BUSY_SECONDS]:
            del self._busy_since[gone]
        found: list[str] = []
        for model in list(self._busy_since)[: most - most // 4]:
            self._busy_since[model] = self._busy_since.pop(model)  # moves it behind the others
            found.append(model)
        for _ in range(len(order)):
            if len(found) >= most:
                break
            if order[0] not in self._busy_since:
                found.append(order[0])
            order.rotate(-1)
        return found

    def rounds_per_cycle(self) -> int:
        return -(-len(self._order) // max(1, self._max_streams // 4)) if len(self._order) > self._max_streams else 1


class DispatchBudget:
    """The budgets of all senders.

    dropped: number of prompts that were over a budget.
    dropped_loads, dropped_service: number of reports of loads and of service that were.
    rates: bytes per second of one sender, and of all.
    rows: rows per second of one sender, and of all.
    """

    def __init__(
        self,
        *,
        max_senders: int = PEERS,
        rates: tuple[int, int] = (DISPATCH_PEER_BYTES, DISPATCH_PEERS_BYTES),
        rows: tuple[int, int] = (PEER_LOAD_ROWS, PEERS_LOAD_ROWS),
        burst_seconds: float = DISPATCH_BURST_SECONDS,
        history_seconds: float = DISPATCH_HISTORY_SECONDS,
    ) -> None:
        self._live = _SenderBudgets(*rates, 2 * DISPATCH_ENTRY_BYTES, max_senders, burst_seconds)
        self._history = _SenderBudgets(*rates, 2 * DISPATCH_ENTRY_BYTES, max_senders, history_seconds)
        self._loads = _SenderBudgets(*rows, PEER_LOADS, max_senders, burst_seconds)
        self._service = _SenderBudgets(*rows, PEER_TENANTS, max_senders, burst_seconds)
        self.dropped = 0
        self.dropped_loads = self.dropped_service = 0

    def admits(self, sender: bytes, prompts: Sequence[SentPrompt], now: float, *, is_live: bool) -> bool:
        """Returns whether a batch of prompts is to be applied, and counts it if not.

        is_live: False for what was written before this gateway had read up to the end.
        """
        cost = sum([len(hashes) for _, hashes, _, _ in prompts]) + ENTRY_OVERHEAD_BYTES * len(prompts)
        budgets = self._live if is_live else self._history
        if not cost or budgets.take(sender, cost, now):
            return True
        self.dropped += len(prompts)
        return False

    def admits_loads(self, sender: bytes, instances: int, now: float) -> bool:
        """Returns whether a report of the loads of so many instances is to be applied, and counts
        it if not.
        """
        if self._loads.take(sender, instances, now):
            return True
        self.dropped_loads += 1
        return False

    def admits_service(self, sender: bytes, tenants: int, now: float) -> bool:
        """Returns whether a report of the service of so many tenants is to be applied, and counts
        it if not.
        """
        if self._service.take(sender, tenants, now):
            return True
        self.dropped_service += 1
        return False


class _SenderBudgets:
    """Token buckets by sender, in bytes or another unit.

    own_rate, total_rate: units a second of one sender, and of all together.
    max_batch: a larger batch is never admitted.
    burst_seconds: how many seconds of its rate a bucket holds.
    """

    def __init__(
        self, own_rate: float, total_rate: float, max_batch: int, max_senders: int, burst_seconds: float
    ) -> None:
        self._own_rate = own_rate
        self._total_rate = total_rate
        self._max_batch = max_batch
        self._max_senders = max_senders
        self._burst_seconds = burst_seconds
        self._buckets: dict[bytes, tuple[float, float]] = {}  # level, and when it was current
        self._pruned_at = float("-inf")

    def take(self, sender: bytes, cost: int, now: float) -> bool:
        """Takes a batch from the budget of its sender; returns False if that is used up."""
        if cost > self._max_batch:
            return False  # a gateway splits such a batch
        if now - self._pruned_at >= _PRUNE_SECONDS:
            self._prune(now)
        if sender not in self._buckets and len(self._buckets) >= self._max_senders:
            sender = _OTHER_SENDERS
        if sender not in self._buckets:
            self._buckets[sender] = (self._capacity(len(self._buckets) + 1), now)
        level = self._level(sender, now)
        is_admitted = level >= min(cost, self._capacity(len(self._buckets)))
        self._buckets[sender] = (level - cost if is_admitted else level, now)
        return is_admitted

    def _rate(self, senders: int) -> float:
        return min(self._own_rate, self._total_rate / max(1, senders))

    def _capacity(self, senders: int) -> float:
        return self._rate(senders) * self._burst_seconds

    def _level(self, sender: bytes, now: float) -> float:
        level, at = self._buckets[sender]
        senders = len(self._buckets)
        return min(self._capacity(senders), level + max(0.0, now - at) * self._rate(senders))

    def _prune(self, now: float) -> None:
        """Forgets senders whose budget is full again, which a new sender has too."""
        self._pruned_at = now
        full = self._capacity(len(self._buckets))
        for sender in [one for one in self._buckets if self._level(one, now) >= full]:
            del self._buckets[sender]


_log = logging.getLogger("fairlead.gateway")


@dataclass(slots=True)
class _Cursor:
    """The read position in a model's stream.

    is_caught_up: all earlier entries were read, so what is read now was just written.
    """

    position: tuple[int, int] = _STREAM_START
    is_caught_up: bool = False


def _ignore_service(model: str, service: Mapping[str, float]) -> None: ...


@dataclass(slots=True)
class ExchangeHooks:
    """The callbacks of the exchange.

    - models: returns the models to follow, each with its ready instances.
    - loads: returns this gateway's loads, by model with requests in flight and by instance.
    - on_dispatches: called with model and prompts that other gateways sent.
    - on_loads_changed: called with the expected loads of other gateways, by instance.
    - on_service: called with model and service by tenant, as another gateway reports it.
    """

    models: Callable[[], Mapping[str, InstanceGroups]]
    loads: Callable[[], Mapping[str, Mapping[str, PeerLoad]]]
    on_dispatches: Callable[[str, Sequence[SentPrompt]], None]
    on_loads_changed: Callable[[Mapping[str, PeerLoad]], None]
    on_service: Callable[[str, Mapping[str, float]], None] = _ignore_service


@dataclass(slots=True)
class ExchangeStats:
    """Statistics of the exchange.

    - sent, received: numbers of prompts.
    - undecodable: entries that could not be decoded.
    - write_errors, read_errors: reasons of Redis, by model.
    """

    sent: int = 0
    received: int = 0
    undecodable: int = 0
    write_errors: dict[str, str] = field(default_factory=dict)
    read_errors: dict[str, str] = field(default_factory=dict)


class PeerExchange:
    """The exchange of one run of this gateway. The caller starts and stops `link`.

    name: identifies this run in the streams.
    """

    def __init__(
        self,
        link: RedisLink,
        name: str,
        clock: Clock,
        hooks: ExchangeHooks,
        *,
        secret_fingerprint: bytes,
        max_entries: int = DISPATCH_ENTRIES,
    ) -> None:
        self._max_entries = max_entries
        self._link = link
        self._name = name
        self._gateway_field = name.encode()
        self._clock = clock
        self._hooks = hooks
        self._cursors: dict[str, _Cursor] = {}
        self._rotation = StreamRotation(DISPATCH_STREAMS)
        self._trimmed_at: dict[str, float] = {}
        self._last_entry_ms: dict[str, int] = {}  # time of the own last entry, by the server's clock
        self._write_due = asyncio.Event()
        self._last_beat = float("-inf")
        self._reported_loads: Mapping[str, PeerLoad] = {}
        self._update_at = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []
        self.outbox = PeerOutbox(secret_fingerprint)
        self.peer_state = PeerState(secret_fingerprint)
        self.budget = DispatchBudget()
        self.stats = ExchangeStats()

    # What others call ----------------------------------------------------------------------------------------------------

    def add_dispatch(self, model: str, instance: str, hashes: bytes, tail: int, session_hash: int = 0) -> None:
        self.outbox.add(model, instance, hashes, tail, session_hash)
        self._write_due.set()

    def on_loads_changed(self) -> None:
        self._write_due.set()

    def start(self) -> None:
        """Starts the tasks on the running loop. Does not block."""
        if not self._tasks:
            loops = {
                "exchange out": self._write_loop,
                "exchange in": self._read_loop,
                "exchange ages": self._expire_loop,
            }
            self._tasks = [
                asyncio.create_task(run_despite_defects(loop, _log, name), name=name) for name, loop in loops.items()
            ]

    async def stop(self) -> None:
        """Sends what is queued, and that there is no more, so that other gateways need not wait."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await cancel_and_wait(task)
        await self.flush()
        entries = self.outbox.farewell_batches()
        if entries:
            await self._link.run([self._add_command(model, batch) for model, batch in entries])

    @property
    def is_caught_up(self) -> bool:
        """True if everything in the streams was read."""
        return bool(self._cursors) and all(cursor.is_caught_up for cursor in self._cursors.values())

    def known_peers(self) -> list[KnownPeer]:
        return self.peer_state.known_peers(self._clock.now())

    def warnings(self) -> list[str]:
        """Returns what is missing or late, as text, except that Redis is away."""
        warnings: list[str] = []
        with_other_secret = [peer.name for peer in self.known_peers() if not peer.shares_secret]
        if with_other_secret:
            warnings.append(
                f"{len(with_other_secret)} other gateways hash prompts under another secret, so prefixes are not shared with them: "
                f"{with_other_secret[0]}; set the same FAIRLEAD_HASH_SECRET on all gateways"
            )
        rounds = self._rotation.rounds_per_cycle()
        if rounds > 1:
            warnings.append(
                f"{len(self._cursors)} models: the dispatches of other gateways for an idle model are applied after "
                f"up to {format_duration(rounds * DISPATCH_POLL_SECONDS)}"
            )
        if self._link.state.connected:
            catching_up = [
                model
                for model, cursor in self._cursors.items()
                if not cursor.is_caught_up and cursor.position != _STREAM_START
            ]
            if catching_up:
                warnings.append(f"dispatches of other gateways are still being read back for {len(catching_up)} models")
            errors = self.stats.write_errors | self.stats.read_errors
            warnings += [f"Redis refuses the dispatches of {model}: {why}" for model, why in list(errors.items())[:1]]
        return warnings

    # Out -----------------------------------------------------------------------------------------------------------------

    async def _write_loop(self) -> None:
        while True:
            await self._link.wait_connected()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS / 2):
                    await self._write_due.wait()
            self._write_due.clear()
            await self.flush()
            await asyncio.sleep(DISPATCH_BATCH_SECONDS)

    async def flush(self) -> None:
        """Writes the batches that are due now."""
        now, models = self._clock.now(), self._hooks.models()
        is_beat = now - self._last_beat >= HEARTBEAT_SECONDS / 2
        batches = self.outbox.take_due(models, self._hooks.loads(), now, is_beat=is_beat)
        if is_beat:
            self._last_beat = now
        if not batches:
            return
        commands = [self._add_command(model, batch) for model, batch in batches]
        try:
            replies = await self._link.run(commands + self._trim_commands({model for model, _ in batches}, now))
        except asyncio.CancelledError:
            self.outbox.requeue(batches)
            raise
        if replies is None:
            self.outbox.requeue(batches)
            self._trimmed_at.clear()
            return
        for (model, batch), reply in zip(batches, replies, strict=False):
            self._on_written(model, batch, reply, now)
        await self._delete_damaged({model for model, _ in batches})

    async def _delete_damaged(self, written: Collection[str]) -> None:
        """Deletes the keys to which nothing can be written.

        written: the models of the last write. An earlier error may be of a key that is replaced.
        """
        models = [
            model
            for model, error in self.stats.write_errors.items()
            if model in written and any(sign in error for sign in _DAMAGED_KEY_ERRORS)
        ]
        if models and await self._link.run([("DEL", redis_keys.sent_prompts(model)) for model in models]) is not None:
            for model in models:
                if model in self._cursors:
                    self._cursors[model] = _Cursor()

    def _on_written(self, model: str, batch: PeerBatch, reply: Any, now: float) -> None:
        if isinstance(reply, ResponseError):
            self.outbox.on_refused(batch)
            self.stats.write_errors[model] = first_line(reply)
            return
        self.outbox.on_written(model, batch, now)
        self.stats.write_errors.pop(model, None)
        self.stats.sent += len(batch.sent)
        identifier = _parse_entry_id(reply)
        self._last_entry_ms[model] = identifier[0]
        cursor = self._cursors.get(model)
        if cursor is not None and identifier <= cursor.position:
            self._cursors[model] = _Cursor()  # the stream was replaced

    def _add_command(self, model: str, batch: PeerBatch) -> Command:
        max_entries = self._max_entries
        return (
            "XADD",
            redis_keys.sent_prompts(model),
            "MAXLEN",
            "~",
            max_entries,
            "*",
            GATEWAY_FIELD,
            self._gateway_field,
            DATA_FIELD,
            encode(batch),
        )

    def _trim_commands(self, models: Collection[str], now: float) -> list[Command]:
        """Returns commands that drop old entries and let an unused stream expire."""
        commands: list[Command] = []
        seconds = DISPATCH_RETENTION_SECONDS
        for model in models:
            written = self._last_entry_ms.get(model)
            if written is None or now - self._trimmed_at.get(model, -TRIM_SECONDS) < TRIM_SECONDS:
                continue
            self._trimmed_at[model] = now
            oldest = max(0, written - int(seconds * 1000))  # by the server's clock
            commands.append(("XTRIM", redis_keys.sent_prompts(model), "MINID", "~", oldest))
            commands.append(("EXPIRE", redis_keys.sent_prompts(model), max(1, int(seconds))))
        return commands

    # In ------------------------------------------------------------------------------------------------------------------

    async def _read_loop(self) -> None:
        while True:
            await self._link.wait_connected()
            await self.read_once()
            has_no_peers = not len(self.peer_state) and self.is_caught_up
            await asyncio.sleep(DISPATCH_IDLE_POLL_SECONDS if has_no_peers else DISPATCH_POLL_SECONDS)

    async def read_once(self) -> None:
        """Reads the new entries of one round of models, and reports changed loads."""
        self._set_models(self._hooks.models())
        cursors = {model: self._cursors[model] for model in self._rotation.next_round(self._clock.now())}
        commands: list[Command] = []
        for model, cursor in cursors.items():
            first, second = cursor.position
            commands.append(
                ("XRANGE", redis_keys.sent_prompts(model), f"({first}-{second}", "+", "COUNT", PAGE_ENTRIES)
            )
        replies = await self._link.run(commands) if commands else None
        for model, reply in zip(cursors, replies or (), strict=False):
            if self._cursors.get(model) is not cursors[model]:
                continue  # the stream was replaced meanwhile, or the model has left
            if isinstance(reply, ResponseError):
                self.stats.read_errors[model] = first_line(reply)
            else:
                self.stats.read_errors.pop(model, None)
                self._apply_entries(model, reply)
        self.update_loads()

    async def _expire_loop(self) -> None:
        """Drops the loads of late gateways, also while a read waits for Redis."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS / 2)
            self.update_loads()

    def update_loads(self) -> None:
        """Reports the expected loads of other gateways if they have changed.

        After an update that took long, the next ones are left out: they take a fifth of the time.
        """
        begun = self._clock.now()
        if begun < self._update_at:
            return
        self.peer_state.expire(begun)
        loads = self.peer_state.expected_loads(self._hooks.models()) if len(self.peer_state) else {}
        if loads != self._reported_loads:
            self._reported_loads = loads
            self._hooks.on_loads_changed(loads)
        now = self._clock.now()
        self._update_at = now + _PAUSE_FACTOR * (now - begun)

    def _set_models(self, models: Collection[str]) -> None:
        if len(models) == len(self._cursors) and all(model in self._cursors for model in models):
            return
        for gone in [model for model in self._cursors if model not in models]:
            del self._cursors[gone]
            self._trimmed_at.pop(gone, None)
            self._last_entry_ms.pop(gone, None)
            self.stats.write_errors.pop(gone, None)
            self.stats.read_errors.pop(gone, None)
            self.peer_state.forget_model(gone)
        for model in models:
            self._cursors.setdefault(model, _Cursor())
        self._rotation.set_models(models)
        self.outbox.retain(models)

    def _apply_entries(self, model: str, entries: Sequence[Any]) -> None:
        cursor = self._cursors.get(model)
        if cursor is None:
            return
        now, is_live = self._clock.now(), cursor.is_caught_up
        instances = {instance for group in self._hooks.models().get(model, ()) for instance in group}
        for identifier, fields in entries:
            cursor.position = max(cursor.position, _parse_entry_id(identifier))
            name = fields.get(GATEWAY_FIELD) if fields else None
            if name is None or name == self._gateway_field:
                continue
            batch = decode_batch(fields.get(DATA_FIELD, b""))
            if batch is None or len(name) > _MAX_NAME_BYTES:
                self.stats.undecodable += 1
                continue
            self._rotation.on_activity(model, now)
            if is_live and batch.service and self.budget.admits_service(name, len(batch.service), now):
                self._hooks.on_service(model, batch.service)
            if is_live and batch.loads is not None:
                batch = self._with_known_loads(batch, name, instances, now)
            if not self.budget.admits(name, batch.sent, now, is_live=is_live):
                batch = structs.replace(batch, sent=())
            items = self.peer_state.apply_batch(model, name.decode(errors="replace"), batch, now, is_live=is_live)
            if items:
                self.stats.received += len(items)
                self._hooks.on_dispatches(model, items)
        cursor.is_caught_up = is_live or len(entries) < PAGE_ENTRIES

    def _with_known_loads(self, batch: PeerBatch, sender: bytes, instances: Set[str], now: float) -> PeerBatch:
        """Returns the batch with the loads of these instances, or without loads if the sender has
        reported too many.
        """
        reported = batch.loads or {}
        if not self.budget.admits_loads(sender, len(reported), now):
            return structs.replace(batch, loads=None)
        if reported.keys() <= instances:
            return batch
        return structs.replace(batch, loads={name: load for name, load in reported.items() if name in instances})


def _parse_entry_id(text: bytes) -> tuple[int, int]:
    first, _, second = text.partition(b"-")
    return int(first), int(second or b"0")
