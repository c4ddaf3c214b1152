"""The sampled load of a large fleet: the exact load of this process, the last known one of others.

With up to `MAX_FULL_SCAN` instances, each decision reads the load of all. With more, it reads its
candidates and one instance in rotation, and uses the last known load of the others. Remembered
values give the mean backlog, the instance to pull KV blocks from and the least busy endpoint. The
cost of a candidate comes from its current load. Without other processes, all of it is exact.
"""

from collections.abc import Collection
from typing import Final

from fairlead_gateway.routing.load.inflight import EndpointLoad, InflightTracker, least_busy, total_backlog_seconds

MAX_FULL_SCAN: Final = 16
MAX_SAMPLES: Final = 5
"""Loads that one decision reads in a large fleet."""


class SampledLoads:
    """The loads of one model's endpoints: exact in a small fleet, partly remembered in a
    large one.
    """

    def __init__(self, inflight: InflightTracker) -> None:
        self._inflight = inflight
        self._other_loads: dict[str, EndpointLoad] = {}
        self._next_sample = 0
        self._samples = 0
        self._is_large = False

    def retain(self, instances: Collection[str]) -> None:
        """Forgets all other instances."""
        self._other_loads = {name: beside for name, beside in self._other_loads.items() if name in instances}

    def begin_decision(self, instances: int) -> None:
        """Starts a decision among `instances` instances, which sets whether the fleet counts as
        large.
        """
        self._is_large = instances > MAX_FULL_SCAN and not self._inflight.defers
        self._samples = 0

    def measure(self, local: EndpointLoad) -> EndpointLoad:
        """Returns the current load of an endpoint."""
        total = self._inflight.total_load(local)
        if self._is_large:
            self._samples += 1
            if total is not local:
                self._remember(local, total)
        return total

    def estimate(self, local: EndpointLoad) -> EndpointLoad:
        """Returns the load of an endpoint. In a large fleet, the part of other processes is the
        last known one.
        """
        if not self._is_large:
            return self._inflight.total_load(local)
        other = self._other_loads.get(local.instance)
        if other is None:
            return local
        return local.plus(other.inflight, other.waiting, other.backlog_seconds, other.inflight_tokens, other.queued)

    def summarize(self, local: list[EndpointLoad]) -> tuple[float, EndpointLoad]:
        """Returns the mean backlog in seconds and the least busy load. In a large fleet, both are
        estimates.
        """
        if not self._is_large:
            loads = self._inflight.total_loads(local)
        elif self._other_loads:
            loads = [self.estimate(load) for load in local]
        else:
            loads = local
        return total_backlog_seconds(loads) / len(loads), least_busy(loads)

    def end_decision(self, local: list[EndpointLoad]) -> None:
        """In a large fleet, reads one more load in rotation, unless `MAX_SAMPLES` were read."""
        if self._is_large and self._samples < MAX_SAMPLES:
            self._next_sample = (self._next_sample + 1) % len(local)
            self.measure(local[self._next_sample])

    def _remember(self, local: EndpointLoad, total: EndpointLoad) -> None:
        self._other_loads[local.instance] = EndpointLoad(
            local.instance,
            max(0, total.inflight - local.inflight),
            max(0, total.waiting - local.waiting),
            max(0.0, total.backlog_seconds - local.backlog_seconds),
            max(0.0, total.inflight_tokens - local.inflight_tokens),
            max(0, total.queued - local.queued),
        )
