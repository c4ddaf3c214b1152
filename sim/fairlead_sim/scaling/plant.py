"""The plant that a controller runs: pools of replicas, the gateway before them, and what goes wrong.

The gateway sends each request at its arrival to the ready replica with the least to do (tokens in flight, those of prompts not yet
computed twice, times what a prompt token costs there, so that unlike pools share the load by their speed); where a scenario goes
by shape, to that of the kind which the gateway's own rule names (``shaped``). It keeps a request only while no replica is ready;
what it kept goes out in the order of arrival, to each replica as many as its batch takes, and who arrives meanwhile queues behind.
A client gives up when it has no first token after its patience. A replica that crashes cuts the
answers that had begun (those requests are lost); the others are sent again.

With a prefill and a decode pool a prompt is computed in the first, or in the second where the scenario's ``Computing`` says so
(``prefilling``). In the first its KV moves: the decode engine has the request
``base + tokens · per token`` seconds after the prompt was done, and the client's first token is the decode engine's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import heappop, heappush
from random import Random

from fairlead.fleet import Role
from fairlead_autoscaler.scaling.need import has_choice
from fairlead_autoscaler.scaling.values import GatewaySeen, Observation, ScaledModel, ShapeSeen
from fairlead_gateway.routing.convertible import STAYS
from fairlead_gateway.routing.gaps import Gaps
from fairlead_sim.scaling.book import Book, Load
from fairlead_sim.scaling.engine import AggregatedEngine, Engine, Tally
from fairlead_sim.scaling.pool import Pool, PoolSetup, Replica
from fairlead_sim.scaling.prefilling import Computing, decided
from fairlead_sim.scaling.shaped import Shaped
from fairlead_sim.scaling.token_engine import TokenEngine

_END = float("inf")
_POLL_SECONDS = 0.25
_HAND_OVER_SECONDS = 0.02


class Engines(Enum):
    """What a plant's replicas are: engines in closed form; token by token, which gives the same answers and takes thirty times as
    long; or token by token and admitting more than their memory may bear in the end, as vLLM does, so that they preempt."""

    AGGREGATED = auto()
    TOKENS = auto()
    PREEMPTING = auto()


@dataclass(frozen=True, slots=True)
class Troubles:
    """What goes wrong, in seconds from the start. ``blind`` and ``lying``: stretches (from, to) without metrics, and with zeros;
    ``slow``: from when on steps take how many times as long."""

    crashes: tuple[float, ...] = ()
    slow: tuple[tuple[float, float], ...] = ()
    blind: tuple[tuple[float, float], ...] = ()
    lying: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """What moving KV from prefill to decode takes."""

    base_seconds: float = 0.02
    token_seconds: float = 131e3 / 12e9


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load, the pools that carry it, what is wanted and what goes wrong; the same seed draws the same start-ups and crashes.
    ``by_shape``: between unlike pools the gateway goes by the shapes of requests, as the real one does (``shaped``)."""

    name: str
    seed: int
    seconds: float
    model: ScaledModel
    pools: tuple[PoolSetup, ...]
    load: Load
    troubles: Troubles = field(default_factory=Troubles)
    transfer: Transfer = field(default_factory=Transfer)
    computing: Computing = Computing.APART
    by_shape: bool = False


class Plant:
    """``foresight``: see ``Pool``."""

    def __init__(self, scenario: Scenario, *, engines: Engines = Engines.AGGREGATED, foresight: bool = False) -> None:
        self.scenario = scenario
        self.book = Book(scenario.load, scenario.model.patience_seconds or _END)
        self.pools: dict[str, Pool] = {}
        for setup in scenario.pools:
            draw = Random(f"{scenario.name} {scenario.seed} {setup.facts.name}")
            self.pools[setup.facts.name] = Pool(setup, self._maker(setup, engines), draw, foresight=foresight)
        both = list(self.pools.values())
        self._decoders = [pool for pool in both if pool.setup.facts.role is Role.DECODE]
        self._entries = [pool for pool in both if pool.setup.facts.role is not Role.DECODE]
        self._cursor = 0
        self._held: list[int] = []  # at the gateway, in the order of arrival
        self._held_decode: list[int] = []
        self._moving: list[tuple[float, int]] = []  # heap: when its KV arrives, request
        self._drawn = Random(f"{scenario.name} {scenario.seed} troubles")
        happenings = [(at, 0, 0.0) for at in scenario.troubles.crashes]
        happenings += [(at, 1, factor) for at, factor in scenario.troubles.slow]
        self._happenings = sorted(happenings, reverse=True)
        self._seen_arrivals = 0
        self._seen_abandoned = 0
        self._gaps = Gaps()
        self._shaped = Shaped(scenario.model) if scenario.by_shape else None
        self._open: list[int] = []  # arrived and not ended as of the last look; only where somebody wants to know
        self._choice = has_choice(scenario.model)
        self._now = 0.0

    def _maker(self, setup: PoolSetup, engines: Engines) -> "_Maker":
        model = self.scenario.model
        return _Maker(setup, self.book, Tally(model.ttft_bounds, model.itl_bounds), engines)

    # Time ----------------------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """Let everything happen that happens before ``until``."""
        arrivals = self.book.arrival
        count = len(arrivals)
        while True:
            arrival = arrivals[self._cursor] if self._cursor < count else _END
            change = self._next_change()
            if self._held or self._held_decode:
                change = min(change, self._now + _POLL_SECONDS)
            if self._decoders:
                change = min(change, self._moving[0][0] if self._moving else _END, self._now + _HAND_OVER_SECONDS)
            if min(arrival, change) >= until:
                break
            if arrival < change:
                self._now = arrival
                request = self._cursor
                self._cursor += 1
                if self._held or not self._enter(request, arrival):
                    self._held.append(request)
            else:
                self._now = max(self._now, change)
                self._changed(self._now)
        self._now = until
        self._changed(until)
        for pool in self.pools.values():
            for replica in pool.draining:
                replica.engine.advance(until)
            pool.settle(until)

    def _next_change(self) -> float:
        change = self._happenings[-1][0] if self._happenings else _END
        for pool in self.pools.values():
            change = min(change, pool.next_change)
        return change

    def _changed(self, now: float) -> None:
        """Start-ups end, replicas die, KV arrives, what was held goes out."""
        self._advance(now)
        while self._happenings and self._happenings[-1][0] <= now:
            _, kind, factor = self._happenings.pop()
            if kind:
                for pool in self.pools.values():
                    pool.slow(factor)
            else:
                self._crash(now)
        for pool in self.pools.values():
            if pool.next_change <= now:
                pool.settle(now)
        self._hand_over(now)
        self._held = self._release(self._held, self._entries, now)
        if self._decoders:
            self._held_decode = self._release(self._held_decode, self._decoders, now)

    def _advance(self, now: float) -> None:
        for pool in self.pools.values():
            for replica in pool.ready:
                replica.engine.advance(now)
            if self._decoders:  # what they hand on must not wait for the end of a tick
                for replica in pool.draining:
                    replica.engine.advance(now)

    # The gateway ---------------------------------------------------------------------------------------------------------

    def _enter(self, request: int, now: float) -> bool:
        """To whoever computes its prompt; False when none is ready."""
        self.book.kept[request] = self._stays(request, now)
        return self._send(request, self._decoders if self.book.kept[request] else self._entries, now)

    def _stays(self, request: int, now: float) -> bool:
        """Does the decode engine that would answer compute the prompt?"""
        scenario, here = self.scenario, None
        if scenario.computing is not Computing.APART and not self._held_decode:
            here = self._best(self._decoders, now)
        if here is None:
            return False
        prompt, transfer = self.book.prompt[request], scenario.transfer
        way = transfer.base_seconds + transfer.token_seconds * prompt
        there = self._best(self._entries, now)
        return decided(scenario.computing, here, there, prompt, scenario.model, way, self._gaps, now).rule in STAYS

    def _send(self, request: int, pools: list[Pool], now: float) -> bool:
        """To the ready replica with the least to do; False when none is ready."""
        if self._shaped is None:
            best = self._best(pools, now)
        else:
            best = self._shaped.best(self.book.prompt[request], pools, lambda some: self._best(some, now))
        if best is None:
            return False
        self.book.sent[request] = now
        best[1].engine.add(request, now)
        return True

    def _best(self, pools: Sequence[Pool], now: float) -> tuple[Pool, Replica] | None:
        """The ready replica with the least to do, and its pool."""
        best: tuple[Pool, Replica] | None = None
        least = _END
        for pool in pools:
            price = pool.setup.profile.prefill_token_seconds
            for replica in pool.ready:
                engine = replica.engine
                if engine.at < now:
                    engine.advance(now)
                burden = engine.burden_tokens() * price
                if burden < least:
                    best, least = (pool, replica), burden
        return best

    def _release(self, held: list[int], pools: list[Pool], now: float) -> list[int]:
        """Send what was held, each replica as much as its batch takes: what still has to wait."""
        if not held:
            return held
        book = self.book
        staying = [request for request in held if not book.gone(request, now)]
        book.abandoned += len(held) - len(staying)
        room = sum([_room(replica, pool) for pool in pools for replica in pool.ready])
        for request in staying[:room]:
            self._send(request, pools, now)
        return staying[room:]

    def _hand_over(self, now: float) -> None:
        """From prefill to decode."""
        book, transfer = self.book, self.scenario.transfer
        for done, request in book.prefilled:
            heappush(
                self._moving, (done + transfer.base_seconds + transfer.token_seconds * book.prompt[request], request)
            )
        book.prefilled.clear()
        while self._moving and self._moving[0][0] <= now:
            request = heappop(self._moving)[1]
            if self._held_decode or not self._send(request, self._decoders, now):
                self._held_decode.append(request)

    def _crash(self, now: float) -> None:
        pool = self._drawn.choice(list(self.pools.values()))
        for request in pool.crash(now):
            if self.book.first[request] >= 0.0:
                self.book.lost += 1
            elif not self._enter(request, now):
                self._held.append(request)

    # The controller's side -----------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """What a controller sees now; counters begin anew."""
        now, troubles = self._now, self.scenario.troubles
        blind = _inside(troubles.blind, now)
        lying = _inside(troubles.lying, now)
        for pool in self.pools.values():
            for replica in [*pool.ready, *pool.draining]:
                replica.engine.sweep(now)
        arrived = range(self._seen_arrivals, self._cursor)
        abandoned = self.book.abandoned - self._seen_abandoned
        self._seen_arrivals, self._seen_abandoned = self._cursor, self.book.abandoned
        gateway = None
        if lying:
            gateway = GatewaySeen(0, 0)
        elif not blind:
            tokens = sum([self.book.prompt[request] for request in arrived])
            gateway = GatewaySeen(len(arrived), tokens, len(self._held), abandoned, *self._kept(arrived))
        pools = {name: pool.seen(now, blind=blind, lying=lying) for name, pool in self.pools.items()}
        ended = self._ended(arrived) if self._choice else ()
        return Observation(now, gateway, pools, shapes=None if blind or lying or not self._choice else ended)

    def _kept(self, arrived: range) -> tuple[float | None, float | None]:
        """How many of those that arrived are computed where they are answered, and their prompt tokens."""
        if not self._decoders:
            return None, None
        here = [request for request in arrived if self.book.kept[request]]
        return float(len(here)), float(sum([self.book.prompt[request] for request in here]))

    def _ended(self, arrived: range) -> tuple[ShapeSeen, ...]:
        """The shapes of what ended since the last look."""
        book, staying, found = self.book, [], []
        for request in (*self._open, *arrived):
            if 0.0 <= book.end[request] <= self._now:
                found.append(ShapeSeen(book.prompt[request], book.output[request], 1.0))
                if self._shaped is not None:
                    self._shaped.ended(book.prompt[request], book.output[request])
            elif not book.gone(request, self._now):
                staying.append(request)
        self._open = staying
        return tuple(found)

    def scale(self, pool: str, desired: int, asleep: int = 0) -> None:
        """Order so many replicas and so many beside them that sleep, within the pool's bounds."""
        found = self.pools[pool]
        facts = found.setup.facts
        desired = max(facts.minimum, min(facts.maximum, desired))
        asleep = min(asleep, facts.maximum - desired)
        if (desired, asleep) != (found.desired, found.asleep_desired):
            found.scale(desired, self._now, asleep)

    def finish(self) -> None:
        """Stop the costs and let what has arrived come to its end."""
        for pool in self.pools.values():
            pool.close(self._now)
        seconds = (self.scenario.model.patience_seconds or 0.0) + 600.0
        end = self._now + seconds
        while self._now < end and self._unfinished():
            self.run(min(end, self._now + 5.0))

    def _unfinished(self) -> bool:
        replicas = [one for pool in self.pools.values() for one in [*pool.ready, *pool.draining]]
        return bool(
            self._held
            or self._held_decode
            or self._moving
            or any(one.engine.running() or one.engine.waiting() for one in replicas)
        )


class _Maker:
    """Makes a pool's engines."""

    def __init__(self, setup: PoolSetup, book: Book, tally: Tally, engines: Engines) -> None:
        self._setup = setup
        self._book = book
        self._tally = tally
        self._engines = engines

    def __call__(self) -> Engine:
        given = self._setup.profile, self._setup.facts.role, self._book, self._tally.fresh()
        if self._engines is Engines.AGGREGATED:
            return AggregatedEngine(*given)
        return TokenEngine(*given, preempting=self._engines is Engines.PREEMPTING)


def _room(replica: Replica, pool: Pool) -> int:
    engine = replica.engine
    return max(0, pool.setup.profile.max_sequences - engine.running() - engine.waiting())


def _inside(stretches: tuple[tuple[float, float], ...], now: float) -> bool:
    return any(begin <= now < end for begin, end in stretches)
