"""Engine time served per tenant and weight: the tenant that was served least goes first.

A tenant that begins to wait starts at the least of the waiting tenants. So no tenant gains credit
while it is away, and none pays for having been served while no other waited.

Source: the counter lift of VTC (arXiv 2401.00588).
"""

from collections.abc import Collection, Hashable
from typing import Final

_MIN_COMPACTED: Final = 64


class FairShare:
    """Seconds of engine time by tenant, divided by the tenant's weight."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}
        self._compact_above = _MIN_COMPACTED

    def served_seconds(self, tenant: Hashable) -> float:
        """Returns the weighted engine seconds served to a tenant; 0 for an unknown one."""
        return self._seconds.get(tenant, 0.0)

    def on_join(self, tenant: Hashable, present: Collection[Hashable]) -> None:
        """Called when a tenant begins to wait: raises its count to the least of the others.

        present: the other tenants that wait. If there are none, all other counts are dropped.
        """
        if not present:
            if len(self._seconds) != 1 or tenant not in self._seconds:
                self._seconds = {tenant: self.served_seconds(tenant)}
            return
        served_others = [self.served_seconds(other) for other in present]
        self._seconds[tenant] = max(self.served_seconds(tenant), min(served_others))
        if len(self._seconds) > self._compact_above:
            self._compact({tenant, *present}, min(served_others))

    def _compact(self, present: set[Hashable], least: float) -> None:
        """Drops the absent tenants that would start at the least count anyway."""
        self._seconds = {
            tenant: seconds for tenant, seconds in self._seconds.items() if seconds > least or tenant in present
        }
        self._compact_above = max(_MIN_COMPACTED, 2 * len(self._seconds))

    def charge(self, tenant: Hashable, seconds: float, weight: float) -> None:
        """Charges a tenant for a request of `seconds` engine time.

        weight: share of the tenant against others, above 0.
        """
        self._seconds[tenant] = self.served_seconds(tenant) + seconds / weight

    def settle(self, tenant: Hashable, seconds: float, weight: float) -> None:
        """Corrects the charge for a request that has ended, by `seconds` more or less.

        A tenant whose count was dropped meanwhile stays without one.
        """
        if tenant in self._seconds:
            self._seconds[tenant] = max(0.0, self._seconds[tenant] + seconds / weight)
