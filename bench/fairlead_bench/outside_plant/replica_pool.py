"""The replicas of one pool: starts that are paid from the order, drains and crashes."""

from collections.abc import Callable, Sequence

from fairlead_bench.outside_plant.engine import Engine
from fairlead_bench.outside_plant.profiles import startup_times
from fairlead_bench.outside_plant.scenario import PoolSetup

_MAX_ORDERS = 20_000


class Replica:
    """One replica with its engine.

    ordered_at: seconds; before 0 where the offline optimum orders ahead
    startup: None for a replica of the first moment
    """

    __slots__ = ("engine", "number", "ordered_at", "startup", "state")

    def __init__(self, number: int, engine: Engine, ordered_at: float, startup: float | None) -> None:
        self.number, self.engine = number, engine
        self.ordered_at, self.startup = ordered_at, startup
        self.state = "pending"


class ReplicaPool:
    """Replicas by state. Times are seconds.

    routable: engines of the ready replicas
    replica_seconds: of the replicas that are gone
    """

    def __init__(self, setup: PoolSetup, seed: int, make_engine: Callable[[], Engine], end: float) -> None:
        self.setup = setup
        self.desired = setup.initial
        self.replicas: list[Replica] = []
        self.routable: list[Engine] = []
        self.replica_seconds = 0.0
        self.orders = 0
        self._make_engine, self._end = make_engine, end
        self._startups: Sequence[float] = startup_times(seed, setup.name, _MAX_ORDERS)
        self._numbers = 0
        for _ in range(setup.initial):
            self.become_ready(self._add(0.0, None))

    def count(self, state: str) -> int:
        """Returns the replicas in a state."""
        return sum(replica.state == state for replica in self.replicas)

    def order(self, now: float) -> Replica:
        """Begins a start; it is ready after its start-up time."""
        startup = self._next_startup()
        return self._add(now, startup)

    def order_ahead(self, now: float) -> Replica:
        """Adds a replica that was ordered early enough to be ready now."""
        startup = self._next_startup()
        return self._add(now - startup, startup)

    def become_ready(self, replica: Replica) -> None:
        """Makes a replica routable."""
        replica.state = "ready"
        self.routable.append(replica.engine)

    def shrink(self, surplus: int, now: float) -> None:
        """Takes replicas away: first the youngest that start, then the least busy ready ones."""
        pending = [replica for replica in self.replicas if replica.state == "pending"]
        for replica in pending[::-1][:surplus]:
            self.remove(replica, now)
        surplus -= min(surplus, len(pending))
        ready = sorted(
            (replica for replica in self.replicas if replica.state == "ready"),
            key=lambda replica: (replica.engine.inflight, -replica.number),
        )
        for replica in ready[:surplus]:
            self.routable.remove(replica.engine)
            replica.state = "draining"
            if replica.engine.is_idle:
                self.remove(replica, now)

    def remove(self, replica: Replica, now: float) -> None:
        """Ends a replica and counts what it has cost."""
        if replica.state == "ready":
            self.routable.remove(replica.engine)
        replica.state = "gone"
        self.replicas.remove(replica)
        self.replica_seconds += max(min(now, self._end) - replica.ordered_at, 0.0)

    def paid_seconds(self) -> float:
        """Returns the replica-seconds until the end of the run."""
        return self.replica_seconds + sum(max(self._end - replica.ordered_at, 0.0) for replica in self.replicas)

    def _next_startup(self) -> float:
        self.orders += 1
        return self._startups[(self.orders - 1) % _MAX_ORDERS]

    def _add(self, ordered_at: float, startup: float | None) -> Replica:
        self._numbers += 1
        replica = Replica(self._numbers, self._make_engine(), ordered_at, startup)
        self.replicas.append(replica)
        return replica
