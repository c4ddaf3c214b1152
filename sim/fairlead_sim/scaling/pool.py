"""A pool's replicas and their lives: ordered, starting, ready, draining, gone; what each costs from the first to the last second.

As on a cluster: what is asked for is a number, and whoever keeps it replaces what crashed or failed to start. Fewer are wanted: the
youngest still starting go first, then the ready ones with the least in flight, which take nothing new and end when all they had
is done. A replica that drains to end never comes back; one that drains to sleep turns back at once, and one that sleeps is woken
before another is ordered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling.values import PoolFacts, PoolSeen, ReplicaSeen, ReplicaState, Woken
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
class Bed:
    """How long waking really takes, and what a sleeping replica costs, as a share of one that is awake."""

    wake_seconds: float = 10.0
    price: float = 0.1


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """A pool of a scenario: what the autoscaler is told of it, what its engines really are, and how many are ready at the start."""

    facts: PoolFacts
    profile: EngineProfile
    startup: StartUp
    initial: int
    bed: Bed = Bed()


class Replica:
    """One of them. Times are seconds; ``ready_at`` is when it will be or became ready, ``awake_at`` when it will be or was awake
    after its last sleep. ``rests``: it drains to sleep, not to end."""

    def __init__(self, name: str, engine: Engine, created: float, startup: float, fails: bool) -> None:
        self.name = name
        self.engine = engine
        self.created = created
        self.ready_at = created + startup
        self.fails = fails
        self.draining_from = 0.0
        self.rests = False
        self.slept_at = 0.0
        self.slept_seconds = 0.0
        self.woken_at = 0.0
        self.awake_at = 0.0
        self.wakings = 0


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
        self.asleep_desired = 0
        self.pending: list[Replica] = []
        self.asleep: list[Replica] = []
        self.waking: list[Replica] = []
        self.ready: list[Replica] = []
        self.draining: list[Replica] = []
        self.next_change = float("inf")
        self.replica_seconds = 0.0
        self.factor = 1.0
        self.starts: list[tuple[float, float]] = []  # (ordered, ready) of those that became ready
        self.free = False  # from now on replicas cost nothing
        for _ in range(setup.initial):
            self.ready.append(self._ordered(0.0, 0.0, False))

    def scale(self, desired: int, now: float, asleep: int = 0) -> None:
        """So many are wanted from now on, and so many beside them that sleep."""
        self.desired, self.asleep_desired = desired, asleep
        while len(self.ready) + len(self.waking) < desired and self._resting():
            self._wake(now)
        over = self._awake() + self._resting() - desired - asleep
        for _ in range(min(over, len(self.pending))):
            self._over(self.pending.pop(), now)
            over -= 1
        while over > 0 and self._resting() > asleep:
            if self.asleep:
                self._ended(self.asleep.pop(), now)
            else:
                next(one for one in self.draining if one.rests).rests = False
            over -= 1
        for _ in range(min(len(self.ready), len(self.ready) + len(self.waking) - desired)):
            rests = self._resting() < asleep
            if not rests and over <= 0:
                break
            victim = min(self.ready, key=_in_flight)
            self.ready.remove(victim)
            victim.draining_from, victim.rests = now, rests
            self.draining.append(victim)
            over -= not rests
        self._complete(now)
        self.settle(now)

    def settle(self, now: float) -> None:
        """Starts and wakings that are over and drains that are done."""
        if self.next_change <= now:
            for replica in [one for one in self.waking if one.awake_at <= now]:
                self.waking.remove(replica)
                self.ready.append(replica)
            for replica in [one for one in self.pending if one.ready_at <= now]:
                self.pending.remove(replica)
                if replica.fails:
                    self._over(replica, replica.ready_at)
                    continue
                self.starts.append((replica.created, replica.ready_at))
                if len(self.ready) + len(self.waking) >= self.desired and self._resting() < self.asleep_desired:
                    self._sleep(replica, replica.ready_at)
                else:
                    self.ready.append(replica)
            self._complete(now)
        for replica in [one for one in self.draining if not _in_flight(one)]:
            self.draining.remove(replica)
            done = min(now, max(replica.draining_from, replica.engine.at))
            if replica.rests:
                self._sleep(replica, done)
            else:
                self._over(replica, done)

    def _awake(self) -> int:
        return len(self.pending) + len(self.waking) + len(self.ready)

    def _resting(self) -> int:
        """Asleep, or on the way."""
        return len(self.asleep) + len([one for one in self.draining if one.rests])

    def _sleep(self, replica: Replica, now: float) -> None:
        replica.rests, replica.slept_at = False, now
        self.asleep.append(replica)

    def _wake(self, now: float) -> None:
        """The one that is awake soonest."""
        falling = next((one for one in self.draining if one.rests), None)
        if falling is not None:
            falling.rests = False
            self.draining.remove(falling)
            self.ready.append(falling)
            return
        replica = self.asleep.pop()
        replica.slept_seconds += now - replica.slept_at
        replica.wakings += 1
        replica.woken_at, replica.awake_at = now, now + self.setup.bed.wake_seconds
        self.waking.append(replica)

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
        for replica in self._all():
            replica.engine.factor = factor

    def close(self, now: float) -> None:
        """What is there from now on costs nothing."""
        for replica in self._all():
            if replica in self.asleep:
                replica.slept_seconds += now - replica.slept_at
            self._over(replica, now)
        self.free = True

    def _all(self) -> list[Replica]:
        return [*self.pending, *self.waking, *self.ready, *self.draining, *self.asleep]

    def seen(self, now: float, *, blind: bool, lying: bool) -> PoolSeen:
        """What a controller sees: the API server's view, and what engines measured unless that is ``blind`` or ``lying``."""
        replicas: tuple[ReplicaSeen, ...] | None = (
            *[_silent(one, now, ReplicaState.PENDING) for one in self.pending],
            *[_seen(one, now, ReplicaState.READY, lying) for one in self.ready],
            *[_seen(one, now, _leaving(one), lying) for one in self.draining],
            *[_silent(one, now, ReplicaState.WAKING) for one in self.waking],
            *[_silent(one, now, ReplicaState.ASLEEP) for one in self.asleep],
        )
        if blind:
            replicas = None
        return PoolSeen(
            desired=self.desired,
            ready=len(self.ready),
            pending=len(self.pending) + len(self.waking),
            draining=len([one for one in self.draining if not one.rests]),
            pending_ages_seconds=tuple([now - one.created for one in self.pending]),
            replicas=replicas,
            asleep_desired=self.asleep_desired,
            asleep=self._resting(),
            waking=len(self.waking),
        )

    def _complete(self, now: float) -> None:
        """Order what is missing."""
        startup = self.setup.startup
        while self._awake() + self._resting() < self.desired + self.asleep_desired:
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
        starts, wakings = [one.ready_at for one in self.pending], [one.awake_at for one in self.waking]
        self.next_change = min([*starts, *wakings], default=float("inf"))

    def _ordered(self, now: float, seconds: float, fails: bool) -> Replica:
        self._numbers += 1
        engine = self._make()
        engine.factor = self.factor
        return Replica(f"{self.name}-{self._numbers}", engine, now, seconds, fails)

    def _ended(self, replica: Replica, now: float) -> None:
        """One that sleeps ends."""
        replica.slept_seconds += now - replica.slept_at
        self._over(replica, now)

    def _over(self, replica: Replica, now: float) -> None:
        if not self.free:
            self.replica_seconds += now - replica.created - (1.0 - self.setup.bed.price) * replica.slept_seconds


def _in_flight(replica: Replica) -> int:
    return replica.engine.running() + replica.engine.waiting()


def _leaving(replica: Replica) -> ReplicaState:
    return ReplicaState.FALLING_ASLEEP if replica.rests else ReplicaState.DRAINING


def _silent(replica: Replica, now: float, state: ReplicaState) -> ReplicaSeen:
    """One that does nothing."""
    started = None if state is ReplicaState.PENDING else replica.ready_at - replica.created
    return ReplicaSeen(replica.name, state, now - replica.created, started or None)


def _woken(replica: Replica) -> Woken | None:
    if not replica.wakings:
        return None
    return Woken(1, replica.wakings, replica.awake_at - replica.woken_at)


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
        woken=_woken(replica),
    )
