"""What is known of a fleet's load without looking at all of it: our own part exactly, and the others' as it was seen last.

A fleet of up to ``SCAN_MOST`` instances is looked at as a whole for each request. A larger one is not: what others have on an
instance is remembered from the last time it was looked at, and a decision looks at its candidates, which are few, and at one more
in turn. The mean that prices recomputation, who of several holders is asked and who seems least busy come of what is remembered;
what a candidate costs comes of what is seen now. With nobody beside us what is remembered is nothing, and all of it is exact.
"""

from collections.abc import Collection
from typing import Final

from fairlead_gateway.routing.load.inflight import EndpointLoad, InflightTracker, least_busy, total_backlog_seconds

MAX_FULL_SCAN: Final = 16
MAX_SAMPLES: Final = 5
"""Instances of a larger fleet whose load is looked at for one decision."""


class SampledLoads:
    """Of one model's instances."""

    def __init__(self, inflight: InflightTracker) -> None:
        self._inflight = inflight
        self._other_loads: dict[str, EndpointLoad] = {}
        self._next_sample = 0
        self._samples = 0
        self._is_large = False

    def retain(self, instances: Collection[str]) -> None:
        """Those that are gone are forgotten."""
        self._other_loads = {name: beside for name, beside in self._other_loads.items() if name in instances}

    def begin_decision(self, instances: int) -> None:
        """A decision among so many begins."""
        self._is_large = instances > MAX_FULL_SCAN
        self._samples = 0

    def measure(self, local: EndpointLoad) -> EndpointLoad:
        """The load of an instance as it is."""
        total = self._inflight.total_load(local)
        if self._is_large:
            self._samples += 1
            if total is not local:
                self._remember(local, total)
        return total

    def estimate(self, local: EndpointLoad) -> EndpointLoad:
        """The same; of a large fleet as far as it is known without looking."""
        if not self._is_large:
            return self._inflight.total_load(local)
        other = self._other_loads.get(local.instance)
        return local if other is None else _add_load(local, other)

    def summarize(self, local: list[EndpointLoad]) -> tuple[float, EndpointLoad]:
        """Mean backlog in seconds, and who is the least busy, roughly where there are many."""
        if not self._is_large:
            loads = self._inflight.total_loads(local)
        elif self._other_loads:
            loads = [self.estimate(item) for item in local]
        else:
            loads = local
        return total_backlog_seconds(loads) / len(loads), least_busy(loads)

    def end_decision(self, local: list[EndpointLoad]) -> None:
        """A decision has looked at its candidates; one more in turn, so that what is remembered of the rest stays young."""
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
        )


def _add_load(local: EndpointLoad, other: EndpointLoad) -> EndpointLoad:
    return EndpointLoad(
        local.instance,
        local.inflight + other.inflight,
        local.waiting + other.waiting,
        local.backlog_seconds + other.backlog_seconds,
        local.inflight_tokens + other.inflight_tokens,
    )
