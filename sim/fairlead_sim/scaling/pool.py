"""A pool's replicas and their lives: ordered, starting, ready, draining, gone; what each costs from the first to the last second.

As on a cluster: what is asked for is a number, and whoever keeps it replaces what crashed or failed to start. Fewer are wanted: the
youngest still starting go first, then the ready ones with the least in flight, which take nothing new and end when all they had
is done. A replica that drains never comes back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling.values import PoolFacts, PoolSeen, ReplicaSeen, ReplicaState
from fairlead_sim.scaling.engine import Engine


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds from the order to readiness: ``least + spread·u²``, u uniform in 0..1; so many starts in all fail at their end."""

    least_seconds: float = 60.0
    spread_seconds: float = 240.0
    failing: float = 0.0

    def quantile(self, share: float) -> float:
        """Seconds within which that share of starts is over."""
        return self.least_seconds + self.spread_seconds * share * share


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """A pool of a scenario: what the autoscaler is told of it, what its engines really are, and how many are ready at the start."""

    facts: PoolFacts
    profile: EngineProfile
    startup: StartUp
    initial: int


class Replica:
    """One of them. Times are seconds; ``ready_at`` is when it will be or became ready."""

    def __init__(self, name: str, engine: Engine, created: float, startup: float, fails: bool) -> None:
        self.name = name
        self.engine = engine
        self.created = created
        self.ready_at = created + startup
        self.fails = fails
        self.draining_from = 0.0


class Pool:
    """``make`` gives a fresh engine. ``next_change`` is when the next start is over. With ``foresight`` a replica is ready when it is
    asked for, and costs as if it had been ordered as long before as its start takes: what a clairvoyant would have done."""

    def __init__(self, setup: PoolSetup, make: Callable[[], Engine], draw: Random, *, foresight: bool = False) -> None:
        self._foresight = foresight
        self.setup = setup
        self.name = setup.facts.name
        self._make = make
        self._draw = draw
        self._numbers = 0
        self.desired = setup.initial
        self.pending: list[Replica] = []
        self.ready: list[Replica] = []
        self.draining: list[Replica] = []
        self.next_change = float("inf")
        self.replica_seconds = 0.0
        self.factor = 1.0
        self.starts: list[tuple[float, float]] = []  # (ordered, ready) of those that became ready
        self.free = False  # from now on replicas cost nothing
        for _ in range(setup.initial):
            self.ready.append(self._ordered(0.0, 0.0, False))

    def scale(self, desired: int, now: float) -> None:
        """So many are wanted from now on."""
        self.desired = desired
        while len(self.pending) + len(self.ready) > desired:
            if self.pending:
                self._over(self.pending.pop(), now)
                continue
            victim = min(self.ready, key=_in_flight)
            self.ready.remove(victim)
            victim.draining_from = now
            self.draining.append(victim)
        self._complete(now)
        self.settle(now)

    def settle(self, now: float) -> None:
        """Starts that are over and drains that are done."""
        if self.next_change <= now:
            for replica in [one for one in self.pending if one.ready_at <= now]:
                self.pending.remove(replica)
                if replica.fails:
                    self._over(replica, replica.ready_at)
                else:
                    self.ready.append(replica)
                    self.starts.append((replica.created, replica.ready_at))
            self._complete(now)
        for replica in [one for one in self.draining if not _in_flight(one)]:
            self.draining.remove(replica)
            self._over(replica, min(now, max(replica.draining_from, replica.engine.at)))

    def crash(self, now: float) -> list[int]:
        """A ready replica dies, and another is ordered: what was on it."""
        if not self.ready:
            return []
        replica = self.ready.pop(self._draw.randrange(len(self.ready)))
        self._over(replica, now)
        here = replica.engine.evict()
        self._complete(now)
        return here

    def slow(self, factor: float) -> None:
        """Every step takes so many times as long as its profile says, from now on."""
        self.factor = factor
        for replica in [*self.pending, *self.ready, *self.draining]:
            replica.engine.factor = factor

    def close(self, now: float) -> None:
        """What is there from now on costs nothing."""
        for replica in [*self.pending, *self.ready, *self.draining]:
            self._over(replica, now)
        self.free = True

    def seen(self, now: float, *, blind: bool, lying: bool) -> PoolSeen:
        """What a controller sees: the API server's view, and what engines measured unless that is ``blind`` or ``lying``."""
        replicas: tuple[ReplicaSeen, ...] | None = (
            *[_pending_seen(one, now) for one in self.pending],
            *[_seen(one, now, ReplicaState.READY, lying) for one in self.ready],
            *[_seen(one, now, ReplicaState.DRAINING, lying) for one in self.draining],
        )
        if blind:
            replicas = None
        return PoolSeen(
            desired=self.desired,
            ready=len(self.ready),
            pending=len(self.pending),
            draining=len(self.draining),
            pending_ages_seconds=tuple([now - one.created for one in self.pending]),
            replicas=replicas,
        )

    def _complete(self, now: float) -> None:
        """Order what is missing."""
        startup = self.setup.startup
        while len(self.pending) + len(self.ready) < self.desired:
            seconds = startup.quantile(self._draw.random())
            fails = self._draw.random() < startup.failing
            if not self._foresight:
                self.pending.append(self._ordered(now, seconds, fails))
                continue
            replica = self._ordered(now - seconds, seconds, fails)
            if fails:
                self._over(replica, now)
            else:
                self.ready.append(replica)
        self.next_change = min([one.ready_at for one in self.pending], default=float("inf"))

    def _ordered(self, now: float, seconds: float, fails: bool) -> Replica:
        self._numbers += 1
        engine = self._make()
        engine.factor = self.factor
        return Replica(f"{self.name}-{self._numbers}", engine, now, seconds, fails)

    def _over(self, replica: Replica, now: float) -> None:
        if not self.free:
            self.replica_seconds += now - replica.created


def _in_flight(replica: Replica) -> int:
    return replica.engine.running() + replica.engine.waiting()


def _pending_seen(replica: Replica, now: float) -> ReplicaSeen:
    return ReplicaSeen(id=replica.name, state=ReplicaState.PENDING, age_seconds=now - replica.created)


def _seen(replica: Replica, now: float, state: ReplicaState, lying: bool) -> ReplicaSeen:
    """Counters since the last look, which this ends."""
    engine = replica.engine
    tally = engine.tally
    engine.tally = tally.fresh()
    if lying:
        tally = tally.fresh()
    return ReplicaSeen(
        id=replica.name,
        state=state,
        age_seconds=now - replica.created,
        startup_seconds=(replica.ready_at - replica.created) or None,
        running=0 if lying else engine.running(),
        waiting=0 if lying else engine.waiting(),
        kv_share=0.0 if lying else engine.kv_share(),
        prompt_tokens=tally.prompt_tokens,
        generated_tokens=tally.generated_tokens,
        itl_seconds=tally.gap_seconds,
        finished=tally.finished,
        first_tokens=tally.first_tokens,
        ttft_seconds=tally.ttft_seconds,
        ttft_counts=tuple(tally.ttft_counts),
        itl_counts=tuple(tally.itl_counts),
    )
