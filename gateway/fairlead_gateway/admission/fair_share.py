"""Engine time served per tenant and weight: the tenant that was served least goes first.

A tenant that begins to wait starts `SAVED_SECONDS` below the least of the waiting tenants. If its
own count is higher, it starts there. So no tenant saves more than that while it is away, and none
pays for having been served while no other waited.

Why it saves some: a tenant that sends less than its share joins with each request. Without savings,
a flood would be as near to its turn as the tenant, each time.

All queues of a model in one process share one count. Requests that never wait count as well, and so
does the service that other processes report. What is served here is collected for their reports.

Source: the counter lift of VTC (arXiv 2401.00588).
"""

from collections.abc import Collection, Hashable, Mapping
from typing import Final

SAVED_SECONDS: Final = 1.0
"""Engine time that a tenant may save: twice the quantum by which others may be ahead."""
_MIN_COMPACTED: Final = 64


class FairShare:
    """Seconds of engine time by tenant, divided by the tenant's weight.

    reports: service is collected for `take_unreported`.
    """

    def __init__(self, *, reports: bool = False) -> None:
        self._seconds: dict[Hashable, float] = {}
        self._present: dict[Hashable, int] = {}
        self._compact_above = _MIN_COMPACTED
        self._reports = reports
        self._unreported: dict[str, float] = {}

    def served_seconds(self, tenant: Hashable) -> float:
        """Returns the weighted engine seconds served to a tenant; 0 for an unknown one."""
        return self._seconds.get(tenant, 0.0)

    def seconds_at_join(self, tenant: Hashable, weight: float) -> float:
        """Returns the service that counts for a tenant if it begins to wait now."""
        present = self._present
        if tenant in present or not present:
            return self.served_seconds(tenant)
        least = min([self.served_seconds(other) for other in present])
        return max(self.served_seconds(tenant), least - SAVED_SECONDS / weight)

    def present(self) -> Collection[Hashable]:
        """Returns the tenants that wait in a queue."""
        return self._present.keys()

    def on_join(self, tenant: Hashable, weight: float = 1.0) -> None:
        """Called when a tenant begins to wait in a queue.

        If it waits in no other one, its count rises to nearly the least of the tenants that wait.
        If there are none, all other counts are dropped.
        """
        present = self._present
        if tenant in present:
            present[tenant] += 1
            return
        if not present:
            if len(self._seconds) != 1 or tenant not in self._seconds:
                self._seconds = {tenant: self.served_seconds(tenant)}
            present[tenant] = 1
            return
        self._seconds[tenant] = self.seconds_at_join(tenant, weight)
        present[tenant] = 1
        self._compact()

    def on_leave(self, tenant: Hashable) -> None:
        """Called when none of a tenant's requests waits in a queue any more."""
        count = self._present.get(tenant, 0)
        if count > 1:
            self._present[tenant] = count - 1
        elif count:
            del self._present[tenant]

    def _compact(self) -> None:
        """Drops absent tenants that would start at the least count anyway, if there are many."""
        if len(self._seconds) <= self._compact_above:
            return
        present = self._present
        least = min([self.served_seconds(tenant) for tenant in present], default=float("inf"))
        self._seconds = {
            tenant: seconds
            for tenant, seconds in self._seconds.items()
            if seconds > least - SAVED_SECONDS or tenant in present
        }
        self._compact_above = max(_MIN_COMPACTED, 2 * len(self._seconds))

    def charge(self, tenant: Hashable, seconds: float, weight: float) -> None:
        """Charges a tenant for a request of `seconds` engine time.

        weight: share of the tenant against others, above 0.
        """
        self._seconds[tenant] = self.served_seconds(tenant) + seconds / weight
        if len(self._seconds) > self._compact_above:
            self._compact()
        self._collect(tenant, seconds / weight)

    def settle(self, tenant: Hashable, seconds: float, weight: float) -> None:
        """Corrects the charge for a request that has ended, by `seconds` more or less.

        A tenant whose count was dropped meanwhile stays without one.
        """
        if tenant in self._seconds:
            self._seconds[tenant] = max(0.0, self._seconds[tenant] + seconds / weight)
        self._collect(tenant, seconds / weight)

    def _collect(self, tenant: Hashable, seconds: float) -> None:
        if self._reports and isinstance(tenant, str):
            self._unreported[tenant] = self._unreported.get(tenant, 0.0) + seconds

    def add_reported(self, served: Mapping[str, float]) -> None:
        """Adds what other processes served, in seconds divided by weights, by tenant."""
        for tenant, seconds in served.items():
            self._seconds[tenant] = max(0.0, self.served_seconds(tenant) + seconds)
        self._compact()

    def take_unreported(self) -> dict[str, float]:
        """Returns what was served here since the last call, in seconds divided by weights."""
        unreported = self._unreported
        if unreported:
            self._unreported = {}
        return unreported
