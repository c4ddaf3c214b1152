"""How much engine time each tenant was served, for its weight: who was served least goes first.

A tenant that begins to wait anew starts at the least of those that wait, not at what it had long ago: nobody saves up credit by being
away, and nobody pays for having been served while no one else wanted to be (VTC's lift, arXiv 2401.00588).
"""

from collections.abc import Hashable, Iterable


class FairShare:
    """Seconds of engine time by tenant, divided by its weight."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}

    def served_seconds(self, tenant: Hashable) -> float:
        """What a tenant was served; 0 of one never seen."""
        return self._seconds.get(tenant, 0.0)

    def on_join(self, tenant: Hashable, present: Iterable[Hashable]) -> None:
        """A tenant waits now beside the ``present`` ones; where nobody else waits, everything begins anew."""
        served_others = [self.served_seconds(other) for other in present]
        if not served_others:
            self._seconds = {tenant: self.served_seconds(tenant)}
            return
        self._seconds[tenant] = max(self.served_seconds(tenant), min(served_others))

    def charge(self, tenant: Hashable, seconds: float, weight: float) -> None:
        """A request of ``seconds`` engine time went; ``weight`` > 0 is the tenant's share against others'."""
        self._seconds[tenant] = self.served_seconds(tenant) + seconds / weight
