"""How much engine time each tenant was served, for its weight: who was served least goes first.

A tenant that begins to wait anew starts at the least of those that wait, not at what it had long ago: nobody saves up credit by being
away, and nobody pays for having been served while no one else wanted to be (VTC's lift, arXiv 2401.00588).
"""

from collections.abc import Hashable, Iterable


class Credits:
    """Seconds of engine time by tenant, divided by its weight."""

    def __init__(self) -> None:
        self._served: dict[Hashable, float] = {}

    def of(self, tenant: Hashable) -> float:
        """What a tenant was served; 0 of one never seen."""
        return self._served.get(tenant, 0.0)

    def joined(self, tenant: Hashable, present: Iterable[Hashable]) -> None:
        """A tenant waits now beside the ``present`` ones; where nobody else waits, everything begins anew."""
        others = [self.of(other) for other in present]
        if not others:
            self._served = {tenant: self.of(tenant)}
            return
        self._served[tenant] = max(self.of(tenant), min(others))

    def served(self, tenant: Hashable, seconds: float, weight: float) -> None:
        """A request of ``seconds`` engine time went; ``weight`` > 0 is the tenant's share against others'."""
        self._served[tenant] = self.of(tenant) + seconds / weight
