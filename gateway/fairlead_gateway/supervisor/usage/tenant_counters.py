"""Counters of the tenants that use most, with a bounded number of series.

The first tenants get series of their own until there are no more. A tenant without one that has
recently used twice as much as the smallest one with one takes its place. What a tenant uses while
it has no series counts as `other`. So each use is counted once, and no shown counter falls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fairlead.units import NANO_USD_PER_USD
from fairlead.usage.record import UsageRecord

OTHER: Final = "other"
_HALF_LIFE_SECONDS: Final = 3_600.0
_PROMOTION_FACTOR: Final = 2.0


@dataclass(slots=True)
class TenantCounts:
    """The use of a tenant since it has a series."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    saved_nano_usd: int = 0
    engine_microseconds: int = 0

    def add(self, record: UsageRecord) -> None:
        """Adds a request."""
        self.requests += 1
        self.input_tokens += record.input_tokens
        self.cached_tokens += record.cached_tokens
        self.output_tokens += record.output_tokens
        self.cost_nano_usd += record.cost_nano_usd or 0
        self.saved_nano_usd += record.saved_nano_usd or 0
        self.engine_microseconds += record.engine_microseconds + record.prefill_microseconds


class TenantCounters:
    """The counters of at most `max_tenants` tenants, and of all others together."""

    def __init__(self, max_tenants: int) -> None:
        self._max_tenants = max_tenants
        self._counts: dict[str, TenantCounts] = {}
        self._other: TenantCounts | None = None
        self._recent: dict[str, float] = {}
        self._decayed_at = 0.0

    def add(self, record: UsageRecord, now: float) -> None:
        """Adds a request at monotonic seconds `now`."""
        self._decay(now)
        weight = 1.0 + record.input_tokens - record.cached_tokens + 2.0 * record.output_tokens
        self._recent[record.tenant] = self._recent.get(record.tenant, 0.0) + weight
        counts = self._counts.get(record.tenant)
        if counts is None and self._makes_room(record.tenant):
            counts = self._counts[record.tenant] = TenantCounts()
        if counts is None:
            counts = self._other = self._other or TenantCounts()
        counts.add(record)

    def series(self) -> list[tuple[str, TenantCounts]]:
        """Returns the counters by tenant; those of all others are last."""
        found = sorted(self._counts.items())
        return found if self._other is None else [*found, (OTHER, self._other)]

    def metric_values(self) -> dict[str, list[tuple[str, float]]]:
        """Returns the values of each metric, by its name without prefix."""
        series = self.series()

        def values(read: Callable[[TenantCounts], float]) -> list[tuple[str, float]]:
            return [(tenant, read(counts)) for tenant, counts in series]

        return {
            "tenant_requests_total": values(lambda counts: counts.requests),
            "tenant_input_tokens_total": values(lambda counts: counts.input_tokens),
            "tenant_cached_tokens_total": values(lambda counts: counts.cached_tokens),
            "tenant_output_tokens_total": values(lambda counts: counts.output_tokens),
            "tenant_cost_usd_total": values(lambda counts: counts.cost_nano_usd / NANO_USD_PER_USD),
            "tenant_saved_usd_total": values(lambda counts: counts.saved_nano_usd / NANO_USD_PER_USD),
            "tenant_engine_seconds_total": values(lambda counts: counts.engine_microseconds / 1e6),
        }

    def _makes_room(self, tenant: str) -> bool:
        if tenant == OTHER:
            return False
        if len(self._counts) < self._max_tenants:
            return True
        smallest = min(self._counts, key=lambda name: self._recent.get(name, 0.0))
        if self._recent[tenant] <= _PROMOTION_FACTOR * self._recent.get(smallest, 0.0):
            return False
        del self._counts[smallest]
        return True

    def _decay(self, now: float) -> None:
        if now - self._decayed_at < _HALF_LIFE_SECONDS:
            return
        self._decayed_at = now
        self._recent = {tenant: used / 2 for tenant, used in self._recent.items() if used > 1.0}
