"""The replicas of a pool, their cost and their lives: ordered, starting, ready, draining, ended.

As in a cluster, the pool keeps a desired number and replaces replicas that crash or fail to start.
On scale-down the youngest starting replicas go first, then surplus sleeping ones, then the ready
ones with the least in flight. Ready ones drain: they take no new request and end after their last
one. A replica that drains to sleep can return at once, and a sleeping one is woken before another
is ordered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core.types import PoolObservation, PoolSpec, ReplicaMetrics, ReplicaState, WakeTiming
from fairlead_sim.autoscaling.plant_engine import PlantEngine


@dataclass(frozen=True, slots=True)
class StartupDistribution:
    """The seconds from order to readiness: ``min + spread·u²`` with u uniform in 0..1.

    failure_share: share of the starts that fail at their end.
    """

    min_seconds: float = 60.0
    spread_seconds: float = 240.0
    failure_share: float = 0.0

    def quantile(self, share: float) -> float:
        """Returns the seconds within which this share of starts is over."""
        return self.min_seconds + self.spread_seconds * share * share


@dataclass(frozen=True, slots=True)
class SleepTimings:
    """The true duration of a wake-up, and the cost of a sleeping replica relative to an
    awake one.
    """

    wake_seconds: float = 10.0
    cost_share: float = 0.1


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """A pool of a scenario: the autoscaler's description, the true engines, and the initial
    replicas.
    """

    facts: PoolSpec
    profile: EngineProfile
    startup: StartupDistribution
    initial: int
    sleep_timings: SleepTimings = SleepTimings()


class Replica:
    """One replica. Times are seconds.

    - ready_at: when it will be or became ready; ``awake_at``: the same after its last sleep.
    - drains_to_sleep: it drains to sleep, not to end.
    """

    def __init__(self, name: str, engine: PlantEngine, created: float, startup: float, fails: bool) -> None:
        self.name = name
        self.engine = engine
        self.ordered_at = created
        self.ready_at = created + startup
        self.start_fails = fails
        self.draining_from = 0.0
        self.drains_to_sleep = False
        self.slept_at = 0.0
        self.slept_seconds = 0.0
        self.woken_at = 0.0
        self.awake_at = 0.0
        self.wake_count = 0


class Pool:
    """The replicas of one pool.

    - make_engine: returns a new engine.
    - next_change: when the next start or wake-up is over.
    - foresight: a replica is ready when it is wanted, and costs as if it had been ordered as long
      before as its start takes. The offline optimum uses this.
    """

    def __init__(
        self, setup: PoolSetup, make_engine: Callable[[], PlantEngine], random_: Random, *, foresight: bool = False
    ) -> None:
        self._foresight = foresight
        self.setup = setup
        self.name = setup.facts.name
        self._make_engine = make_engine
        self._random = random_
        self._ordered_count = 0
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
        self.starts: list[tuple[float, float]] = []  # (ordered, ready) of successful starts
        self.is_free = False  # replicas cost nothing any more
        for _ in range(setup.initial):
            self.ready.append(self._order(0.0, 0.0, False))

    def scale(self, desired: int, now: float, asleep: int = 0) -> None:
        """Sets the desired numbers of awake and of sleeping replicas.

        Wakes, ends, drains and orders replicas until they match.
        """
        self.desired, self.asleep_desired = desired, asleep
        while len(self.ready) + len(self.waking) < desired and self._asleep_count():
            self._wake(now)
        over = self._awake_count() + self._asleep_count() - desired - asleep
        for _ in range(min(over, len(self.pending))):
            self._account(self.pending.pop(), now)
            over -= 1
        while over > 0 and self._asleep_count() > asleep:
            if self.asleep:
                self._end_sleeping(self.asleep.pop(), now)
            else:
                next(replica for replica in self.draining if replica.drains_to_sleep).drains_to_sleep = False
            over -= 1
        for _ in range(min(len(self.ready), len(self.ready) + len(self.waking) - desired)):
            rests = self._asleep_count() < asleep
            if not rests and over <= 0:
                break
            victim = min(self.ready, key=_inflight_count)
            self.ready.remove(victim)
            victim.draining_from, victim.drains_to_sleep = now, rests
            self.draining.append(victim)
            over -= not rests
        self._order_missing(now)
        self.apply_due(now)

    def apply_due(self, now: float) -> None:
        """Completes due starts, wake-ups and drains."""
        if self.next_change <= now:
            for replica in [one for one in self.waking if one.awake_at <= now]:
                self.waking.remove(replica)
                self.ready.append(replica)
            for replica in [one for one in self.pending if one.ready_at <= now]:
                self.pending.remove(replica)
                if replica.start_fails:
                    self._account(replica, replica.ready_at)
                    continue
                self.starts.append((replica.ordered_at, replica.ready_at))
                if len(self.ready) + len(self.waking) >= self.desired and self._asleep_count() < self.asleep_desired:
                    self._sleep(replica, replica.ready_at)
                else:
                    self.ready.append(replica)
            self._order_missing(now)
        for replica in [one for one in self.draining if not _inflight_count(one)]:
            self.draining.remove(replica)
            done = min(now, max(replica.draining_from, replica.engine.next_step_at))
            if replica.drains_to_sleep:
                self._sleep(replica, done)
            else:
                self._account(replica, done)

    def _awake_count(self) -> int:
        return len(self.pending) + len(self.waking) + len(self.ready)

    def _asleep_count(self) -> int:
        return len(self.asleep) + len([replica for replica in self.draining if replica.drains_to_sleep])

    def _sleep(self, replica: Replica, now: float) -> None:
        replica.drains_to_sleep, replica.slept_at = False, now
        self.asleep.append(replica)

    def _wake(self, now: float) -> None:
        """Wakes the replica that will be awake first: one that still drains, else one asleep."""
        falling = next((one for one in self.draining if one.drains_to_sleep), None)
        if falling is not None:
            falling.drains_to_sleep = False
            self.draining.remove(falling)
            self.ready.append(falling)
            return
        replica = self.asleep.pop()
        replica.slept_seconds += now - replica.slept_at
        replica.wake_count += 1
        replica.woken_at, replica.awake_at = now, now + self.setup.sleep_timings.wake_seconds
        self.waking.append(replica)

    def crash(self, now: float) -> list[int]:
        """Crashes a random ready replica and orders another.

        Returns the requests of the crashed replica; an empty list if no replica is ready.
        """
        if not self.ready:
            return []
        replica = self.ready.pop(self._random.randrange(len(self.ready)))
        self._account(replica, now)
        requests = replica.engine.evict()
        self._order_missing(now)
        return requests

    def slow(self, factor: float) -> None:
        """Sets the factor on the duration of all further steps."""
        self.factor = factor
        for replica in self._all_replicas():
            replica.engine.slowdown = factor

    def close(self, now: float) -> None:
        """Stops counting the cost of the replicas."""
        for replica in self._all_replicas():
            if replica in self.asleep:
                replica.slept_seconds += now - replica.slept_at
            self._account(replica, now)
        self.is_free = True

    def _all_replicas(self) -> list[Replica]:
        return [*self.pending, *self.waking, *self.ready, *self.draining, *self.asleep]

    def observe(self, now: float, *, missing: bool, zeroed: bool) -> PoolObservation:
        """Returns what a controller sees: the API server's view and the engines' metrics.

        Resets the engines' counters.

        - missing: no metrics.
        - zeroed: metrics of 0.
        """
        replicas: tuple[ReplicaMetrics, ...] | None = (
            *[_idle_metrics(replica, now, ReplicaState.PENDING) for replica in self.pending],
            *[_replica_metrics(replica, now, ReplicaState.READY, zeroed) for replica in self.ready],
            *[_replica_metrics(replica, now, _draining_state(replica), zeroed) for replica in self.draining],
            *[_idle_metrics(replica, now, ReplicaState.WAKING) for replica in self.waking],
            *[_idle_metrics(replica, now, ReplicaState.ASLEEP) for replica in self.asleep],
        )
        if missing:
            replicas = None
        return PoolObservation(
            desired=self.desired,
            ready=len(self.ready),
            pending=len(self.pending) + len(self.waking),
            draining=len([replica for replica in self.draining if not replica.drains_to_sleep]),
            pending_ages_seconds=tuple([now - replica.ordered_at for replica in self.pending]),
            replicas=replicas,
            asleep_desired=self.asleep_desired,
            asleep=self._asleep_count(),
            waking=len(self.waking),
        )

    def _order_missing(self, now: float) -> None:
        """Orders replicas until as many exist as are desired, and updates ``next_change``."""
        startup = self.setup.startup
        while self._awake_count() + self._asleep_count() < self.desired + self.asleep_desired:
            seconds = startup.quantile(self._random.random())
            fails = self._random.random() < startup.failure_share
            if not self._foresight:
                self.pending.append(self._order(now, seconds, fails))
                continue
            replica = self._order(now - seconds, seconds, fails)
            if fails:
                self._account(replica, now)
            else:
                self.ready.append(replica)
        starts, wakings = [one.ready_at for one in self.pending], [one.awake_at for one in self.waking]
        self.next_change = min([*starts, *wakings], default=float("inf"))

    def _order(self, now: float, seconds: float, fails: bool) -> Replica:
        self._ordered_count += 1
        engine = self._make_engine()
        engine.slowdown = self.factor
        return Replica(f"{self.name}-{self._ordered_count}", engine, now, seconds, fails)

    def _end_sleeping(self, replica: Replica, now: float) -> None:
        replica.slept_seconds += now - replica.slept_at
        self._account(replica, now)

    def _account(self, replica: Replica, now: float) -> None:
        if not self.is_free:
            self.replica_seconds += (
                now - replica.ordered_at - (1.0 - self.setup.sleep_timings.cost_share) * replica.slept_seconds
            )


def _inflight_count(replica: Replica) -> int:
    return replica.engine.running() + replica.engine.waiting()


def _draining_state(replica: Replica) -> ReplicaState:
    return ReplicaState.FALLING_ASLEEP if replica.drains_to_sleep else ReplicaState.DRAINING


def _idle_metrics(replica: Replica, now: float, state: ReplicaState) -> ReplicaMetrics:
    started = None if state is ReplicaState.PENDING else replica.ready_at - replica.ordered_at
    return ReplicaMetrics(replica.name, state, now - replica.ordered_at, started or None)


def _wake_timing(replica: Replica) -> WakeTiming | None:
    if not replica.wake_count:
        return None
    return WakeTiming(1, replica.wake_count, replica.awake_at - replica.woken_at)


def _replica_metrics(replica: Replica, now: float, state: ReplicaState, zeroed: bool) -> ReplicaMetrics:
    """Returns the metrics of a serving replica, and resets its counters.

    zeroed: gauges and counters are 0.
    """
    engine = replica.engine
    totals = engine.totals
    engine.totals = totals.empty_copy()
    if zeroed:
        totals = totals.empty_copy()
    return ReplicaMetrics(
        id=replica.name,
        state=state,
        age_seconds=now - replica.ordered_at,
        startup_seconds=(replica.ready_at - replica.ordered_at) or None,
        running=0 if zeroed else engine.running(),
        waiting=0 if zeroed else engine.waiting(),
        kv_share=0.0 if zeroed else engine.kv_share(),
        prompt_tokens=totals.prompt_tokens,
        generated_tokens=totals.generated_tokens,
        itl_seconds=totals.gap_seconds,
        finished=totals.finished,
        first_tokens=totals.first_tokens,
        cached_tokens=totals.cached_tokens,
        ttft_seconds=totals.ttft_seconds,
        ttft_counts=tuple(totals.ttft_counts),
        itl_counts=tuple(totals.itl_counts),
        woken=_wake_timing(replica),
    )
