"""Balance by moves: which running streams leave crowded instances for idle ones.

A stream can go on at another instance from its tokens. That costs the computation of its prompt and
of what it has generated, which delays the streams there. A plan has two parts:

- **Room**: a request waits because no instance has memory enough for its KV, although the fleet
  has. One that waits at an instance goes to another where it fits at once. Otherwise streams leave
  one instance until it fits there. Requests that wait in the gateway get room this way, too. Only
  streams of the same tier or a lower one leave.
- **Balance**: a stream leaves a crowded instance if that saves more than it costs.

All is compared in seconds of delay, summed over streams. W_i(t) is the KV of instance i in t steps:
each stream there has n tokens, and one more with each step until its forecast end. Reading KV makes
a step longer by c per token, for all streams of the instance. With streams of n̄ tokens, imbalance
delays them by c/n̄ · Σ_i (W_i - W̄)² per step. A move of x tokens from i to j reduces this by
c/n̄ · 2x (W_i - W_j - x). The sum is over `HORIZON_STEPS`, later ones count less. W_i(t) above the
memory means preemptions. Each costs what a move costs, and the wait until memory is free.

No stream moves while streams break, since each move fills an instance and breaks may follow. A
stream moves `MOVES_PER_STREAM` times at most, and not again for `REST_SECONDS`. Moves are bounded
in flight and per second. An instance gets a stream only if nothing waits there and it fits.

Source: ARES (arXiv 2510.13668) balances decoding by present and forecast load; Llumnix (arXiv
2406.03243) moves streams to make room. Both copy KV. Here it is computed again, so a price stands
against each gain. With a `pull`, the price is the time of a copy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource
from fairlead_gateway.admission import defragmentation
from fairlead_gateway.admission.defragmentation import (
    FILL_SHARE,
    FILL_STEPS,
    MAX_WAIT_SECONDS,
    WAITING_WEIGHT,
    InstanceMemory,
    MemoryWait,
    MovableStream,
    MovableStreams,
)
from fairlead_gateway.admission.kv_capacity import SequenceForecast

HORIZON_STEPS: Final = (0, 8, 32, 128, 512)
DECAY: Final = 0.998
"""The weight of a step, relative to the one before: a third is left after 512 steps."""
MOVES_PER_STREAM: Final = 3
MOVES_AT_ONCE: Final = 8
MOVES_PER_SECOND: Final = 8
REST_SECONDS: Final = 10.0
GAIN_FACTOR: Final = 3.0
"""A move for balance must save this many times its price.

Why: forecasts err, and new requests go where streams have left. With 1.5, moves made preemptions
more frequent instead of rarer (`bench/notes/stream-balance.md`).
"""
_PLACES: Final = 5
"""Instances in which room for a request is looked for: those with most free memory."""


@dataclass(frozen=True, slots=True)
class StreamLoad:
    """A request at an instance, running or waiting.

    - tokens: its KV: the prompt, and what was generated. A waiting request needs them.
    - remaining_tokens: forecast of the tokens still to come (`admission.output_lengths`).
    - tier: 0 is the highest, that of `Interactive`.
    - is_movable: it has a first token and can be continued; a waiting one, that it can be sent
      again.
    - moves: planned ones so far.
    - seconds_since_move: None if it never moved.
    """

    id: str
    tokens: float
    remaining_tokens: float
    tier: int = 0
    is_movable: bool = True
    moves: int = 0
    seconds_since_move: float | None = None


@dataclass(frozen=True, slots=True)
class InstanceStreams:
    """The streams of an instance.

    - kv_tokens: its KV memory.
    - waiting: requests that do not fit, in their order.
    - is_ready: it takes requests: not draining, and no breaker is open.
    - pull: how it gets the KV of moved streams; None: it computes them.
    """

    id: str
    profile: EngineProfile
    kv_tokens: float
    running: Sequence[StreamLoad]
    waiting: Sequence[StreamLoad] = ()
    is_ready: bool = True
    pull: KvPullSource | None = None


NOTHING_QUEUED: Final = MemoryWait()


@dataclass(frozen=True, slots=True)
class RecentMoves:
    """Moves and breaks of a model's streams just now.

    - inflight: moved streams without a token from their new instance.
    - last_second: moves that began within the last second.
    - broken: streams that broke within the last `REST_SECONDS`.
    """

    inflight: int = 0
    last_second: int = 0
    broken: int = 0


@dataclass(frozen=True, slots=True)
class StreamMove:
    """A move with its reason.

    gain_seconds, price_seconds: of delay, over all streams. Of moves that make room together, each
    has its share of the gain.
    """

    stream: str
    source: str
    destination: str
    gain_seconds: float
    price_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class MovePlan:
    """Moves to begin now, in order. reason: why there are no more."""

    moves: Sequence[StreamMove]
    reason: str


def plan_moves(
    instances: Sequence[InstanceStreams], recent: RecentMoves, queued: MemoryWait = NOTHING_QUEUED
) -> MovePlan:
    """Returns the moves that a model's streams begin now."""
    if recent.broken:
        return MovePlan((), f"{recent.broken} streams broke just now")
    budget = min(MOVES_AT_ONCE - recent.inflight, MOVES_PER_SECOND - recent.last_second)
    if budget <= 0:
        return MovePlan((), "as many streams as may move are moving")
    planner = _Planner(instances)
    if len(planner.loads) < 2:
        return MovePlan((), "no other instance")
    moves: list[StreamMove] = []
    for load in list(planner.loads):
        moves += planner.room_moves(load, budget - len(moves))
    if queued.count and not moves:
        moves += planner.room_for_queued(queued, budget)
    while len(moves) < budget:
        move = planner.best_balance_move()
        if move is None:
            return MovePlan(moves, "no other move is worth its price")
        moves.append(move)
    return MovePlan(moves, f"at most {budget} moves begin now")


class _Load:
    """The plan's view of an instance, which moves change.

    tokens: W(t), by horizon.
    """

    __slots__ = ("instance", "movable", "remaining", "streams", "tokens", "waiting")

    def __init__(self, instance: InstanceStreams) -> None:
        self.instance = instance
        self.tokens = [0.0] * len(HORIZON_STEPS)
        self.remaining = 0.0
        self.streams = 0
        self.waiting = list(instance.waiting)
        self.movable: list[StreamLoad] = []
        for stream in instance.running:
            self.add(stream)
            if _is_free(stream) and (stream.seconds_since_move is None or stream.seconds_since_move >= REST_SECONDS):
                self.movable.append(stream)

    def memory(self) -> InstanceMemory:
        """Returns the instance as the gateway's plan has it."""
        running = self.instance.running
        sequences = [SequenceForecast(stream.tokens, stream.remaining_tokens) for stream in running]
        free = 0.0 if self.waiting else math.inf
        return InstanceMemory(
            self.instance.id, self.instance.profile, self.instance.kv_tokens, sequences, free_sequences=free
        )

    def movable_streams(self) -> list[MovableStream]:
        """Returns the streams that may leave, as the gateway's plan has them."""
        return [
            MovableStream(stream.id, stream.tokens, stream.remaining_tokens, stream.tier) for stream in self.movable
        ]

    def add(self, stream: StreamLoad, sign: int = 1) -> None:
        """Adds a stream, or removes it."""
        for number, steps in enumerate(HORIZON_STEPS):
            self.tokens[number] += sign * tokens_after(stream, steps)
        self.remaining += sign * stream.remaining_tokens
        self.streams += sign

    def free_tokens(self, share: float = 1.0) -> float:
        """Returns the tokens that are free in this share of the memory, for the next steps."""
        near = [tokens for tokens, steps in zip(self.tokens, HORIZON_STEPS, strict=True) if steps <= FILL_STEPS[-1]]
        return share * self.instance.kv_tokens - max(near)

    def prefill_seconds(self, tokens: float) -> float:
        """Returns the delay of all streams here, and of one more that is computed here."""
        return self.instance.profile.prefill_time(tokens) * (1 + self.streams)

    def move_seconds(self, tokens: float) -> float:
        """Returns the delay by a move to here; a copy of KV delays its own stream alone."""
        pull = self.instance.pull
        return self.prefill_seconds(tokens) if pull is None else pull.transfer_seconds(tokens)

    def seconds_until_free(self, tokens: float) -> float:
        """Returns when streams that end leave so much memory; growing ones need a part of it."""
        if not self.streams:
            return 0.0
        mean, rest = self.tokens[0] / self.streams, max(1.0, self.remaining / self.streams)
        net = self.streams * max(0.1, mean / rest - 1.0)
        step = self.instance.profile.step_time(
            computed=self.streams, sequences=self.streams, resident=int(self.tokens[0])
        )
        return min(MAX_WAIT_SECONDS, tokens / net * step)

    def preemption_seconds(self) -> float:
        """Returns the delay by preemptions that are forecast here."""
        excess = max(
            DECAY**steps * (tokens - self.instance.kv_tokens)
            for tokens, steps in zip(self.tokens, HORIZON_STEPS, strict=True)
        )
        if excess <= 0.0 or not self.streams:
            return 0.0
        mean = self.tokens[0] / self.streams
        return excess / mean * (self.prefill_seconds(mean) + self.seconds_until_free(excess))


def tokens_after(stream: StreamLoad, steps: int) -> float:
    """Returns the KV of a stream in some steps; 0 once it has ended."""
    return stream.tokens + steps if stream.remaining_tokens >= steps else 0.0


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Streams that leave an instance together, each with its destination."""

    place: _Load
    streams: Sequence[tuple[StreamLoad, _Load]]
    price_seconds: float


class _Planner:
    """A plan in the making: each move changes the loads that the next one compares."""

    def __init__(self, instances: Sequence[InstanceStreams]) -> None:
        self.loads = [_Load(instance) for instance in instances if instance.is_ready]
        streams = sum(load.streams for load in self.loads)
        self._mean_tokens = max(1.0, sum(load.tokens[0] for load in self.loads) / max(1, streams))
        before = (-1, *HORIZON_STEPS[:-1])  # each entry stands for the steps since the one before
        self._weights = [DECAY**steps * (steps - earlier) for steps, earlier in zip(HORIZON_STEPS, before, strict=True)]

    # --- balance --------------------------------------------------------------------------------

    def best_balance_move(self) -> StreamMove | None:
        """Makes the move that saves most beyond its price; None if none is worth it."""
        by_load = sorted(self.loads, key=_crowding)
        best: tuple[float, float, float, StreamLoad, _Load, _Load] | None = None
        for source in by_load[-2:]:
            for destination in by_load[:2]:
                if destination is source or destination.waiting or not self._may_gain(source, destination):
                    continue
                for stream in source.movable:
                    found = self._gain(stream, source, destination)
                    if found is not None and (best is None or found[0] - found[1] > best[0]):
                        best = (found[0] - found[1], *found, stream, source, destination)
        if best is None:
            return None
        _, gain, price, stream, source, destination = best
        self._apply(stream, source, destination)
        reason = f"{source.instance.id} is the more crowded: {gain:.1f} s of delay are saved, and the move costs {price:.1f} s"
        return StreamMove(stream.id, source.instance.id, destination.instance.id, gain, price, reason)

    def _gain(self, stream: StreamLoad, source: _Load, destination: _Load) -> tuple[float, float] | None:
        """Returns gain and price of a move; None if it is not worth it, or does not fit."""
        if not _fits(stream, destination):
            return None
        price = destination.move_seconds(stream.tokens)
        gain = self._balance_gain(stream, source, destination)
        gain += source.preemption_seconds() + destination.preemption_seconds()
        self._shift(stream, source, destination)
        gain -= source.preemption_seconds() + destination.preemption_seconds()
        self._shift(stream, destination, source)
        return (gain, price) if gain > GAIN_FACTOR * price else None

    def _may_gain(self, source: _Load, destination: _Load) -> bool:
        """Returns False if no stream, whatever its size, is worth a move of the least price."""
        if not source.movable:
            return False
        bound = source.preemption_seconds()
        for number, weight in enumerate(self._weights):
            difference = source.tokens[number] - destination.tokens[number]
            if difference > 0.0:
                bound += self._seconds_per_token(source) * weight * difference * difference / 2.0
        return bound > GAIN_FACTOR * destination.move_seconds(min(stream.tokens for stream in source.movable))

    def _seconds_per_token(self, source: _Load) -> float:
        return source.instance.profile.resident_token_seconds / self._mean_tokens

    def _balance_gain(self, stream: StreamLoad, source: _Load, destination: _Load) -> float:
        """Returns the delay that a move saves by shorter steps."""
        total = 0.0
        for number, steps in enumerate(HORIZON_STEPS):
            moved = tokens_after(stream, steps)
            total += self._weights[number] * moved * (source.tokens[number] - destination.tokens[number] - moved)
        return 2.0 * self._seconds_per_token(source) * total

    def _shift(self, stream: StreamLoad, source: _Load, destination: _Load) -> None:
        source.add(stream, -1)
        destination.add(stream)

    def _apply(self, stream: StreamLoad, source: _Load, destination: _Load) -> None:
        self._shift(stream, source, destination)
        source.movable.remove(stream)

    # --- room -----------------------------------------------------------------------------------

    def room_moves(self, load: _Load, budget: int) -> list[StreamMove]:
        """Returns moves for the requests that wait at an instance because their KV does not fit."""
        moves: list[StreamMove] = []
        if load.waiting and load.waiting[0].tokens <= load.instance.kv_tokens - load.tokens[0]:
            return moves  # it waits for computation, not for memory
        for request in list(load.waiting):
            if len(moves) >= budget:
                break
            destination = self._roomiest(request, load) if _is_free(request) else None
            if destination is not None:
                load.waiting.remove(request)
                destination.add(request)
                gain = WAITING_WEIGHT * load.seconds_until_free(request.tokens)
                reason = f"it waits for memory at {load.instance.id}, and fits here"
                moves.append(StreamMove(request.id, load.instance.id, destination.instance.id, gain, 0.0, reason))
        if load.waiting and len(moves) < budget:
            moves += self._make_room(load, load.waiting[0], budget - len(moves))
        return moves

    def _make_room(self, load: _Load, request: StreamLoad, budget: int) -> list[StreamMove]:
        """Returns the cheapest moves that let a request begin, at its instance or another one."""
        gain = WAITING_WEIGHT * len(load.waiting) * load.seconds_until_free(request.tokens - load.free_tokens())
        places = [load]
        if _is_free(request):
            places += self._roomiest_loads([other for other in self.loads if other is not load])
        best: _Leaving | None = None
        for place in places:
            own = int(place is not load)  # the request moves, too
            missing = request.tokens - place.free_tokens()
            best = self._cheaper(best, self._leaving(place, missing, request.tier, budget - own))
        if best is None or gain <= best.price_seconds:
            return []
        moves = self._leave(best, gain, f"it makes room for a request of {request.tokens:.0f} tokens that waits")
        load.waiting.remove(request)
        best.place.add(request)
        if best.place is not load:
            reason = "streams leave this instance to make room for it"
            moves.append(StreamMove(request.id, load.instance.id, best.place.instance.id, gain, 0.0, reason))
        return moves

    def room_for_queued(self, queued: MemoryWait, budget: int) -> list[StreamMove]:
        """Returns the gateway's moves for the first request that waits there."""
        loads = {load.instance.id: load for load in self.loads}
        moves: list[StreamMove] = []
        movable = MovableStreams({name: load.movable_streams() for name, load in loads.items()})
        for move in defragmentation.plan_moves([load.memory() for load in self.loads], queued, budget, movable):
            source, to = loads[move.source], loads[move.destination]
            self._apply(next(stream for stream in source.movable if stream.id == move.stream), source, to)
            moves.append(
                StreamMove(
                    move.stream, move.source, move.destination, move.gain_seconds, move.price_seconds, move.reason
                )
            )
        return moves

    def _roomiest_loads(self, loads: Sequence[_Load]) -> Sequence[_Load]:
        return sorted([load for load in loads if not load.waiting], key=_Load.free_tokens)[-_PLACES:]

    def _cheaper(self, best: _Leaving | None, found: _Leaving | None) -> _Leaving | None:
        return found if best is None or (found is not None and found.price_seconds < best.price_seconds) else best

    def _leave(self, leaving: _Leaving, gain: float, reason: str) -> list[StreamMove]:
        moves = []
        for stream, to in leaving.streams:
            price = to.move_seconds(stream.tokens)
            self._apply(stream, leaving.place, to)
            share = gain / len(leaving.streams)
            moves.append(StreamMove(stream.id, leaving.place.instance.id, to.instance.id, share, price, reason))
        return moves

    def _leaving(self, place: _Load, missing: float, request_tier: int, budget: int) -> _Leaving | None:
        """Returns streams whose leaving makes room for a request, each with its destination.

        Lower tiers leave first. None if there are not enough, or the budget is too small.
        """
        leaving: list[tuple[StreamLoad, _Load]] = []
        taken: dict[str, float] = {}
        candidates = [stream for stream in place.movable if stream.tier >= request_tier]
        while missing > 0.0 and candidates and len(leaving) < budget:
            lowest = max(stream.tier for stream in candidates)
            tier = [stream for stream in candidates if stream.tier == lowest]
            enough = [stream for stream in tier if stream.tokens >= missing]
            stream = min(enough, key=_tokens) if enough else max(tier, key=_tokens)
            candidates.remove(stream)
            to = self._roomiest(stream, place, taken)
            if to is not None:
                leaving.append((stream, to))
                taken[to.instance.id] = taken.get(to.instance.id, 0.0) + stream.tokens
                missing -= stream.tokens
        if not leaving or missing > 0.0:
            return None
        return _Leaving(place, leaving, sum([to.move_seconds(stream.tokens) for stream, to in leaving]))

    def _roomiest(self, stream: StreamLoad, source: _Load, taken: dict[str, float] | None = None) -> _Load | None:
        """Returns the instance with most room in which a stream fits.

        taken: tokens by instance that others of the same plan take.
        """
        best: tuple[float, _Load] | None = None
        for load in self.loads:
            if load is source or load.waiting:
                continue
            used = 0.0 if taken is None else taken.get(load.instance.id, 0.0)
            if not _fits(stream, load, used):
                continue
            room = load.free_tokens(FILL_SHARE) - used
            if best is None or room > best[0]:
                best = room, load
        return None if best is None else best[1]


def _is_free(stream: StreamLoad) -> bool:
    return stream.is_movable and stream.moves < MOVES_PER_STREAM


def _fits(stream: StreamLoad, load: _Load, taken: float = 0.0) -> bool:
    grown = min(FILL_STEPS[-1], stream.remaining_tokens)
    return stream.tokens + grown + taken <= load.free_tokens(FILL_SHARE)


def _crowding(load: _Load) -> float:
    return max(load.tokens) / load.instance.kv_tokens


def _tokens(stream: StreamLoad) -> float:
    return stream.tokens
