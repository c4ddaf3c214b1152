"""The helper's own count of hot prefixes: what this gateway would put into the table that all gateways route by.

It counts every dispatch that it hears of, its workers' and the other gateways', as each router would: prompts for instances that
answer and for those that only prefill apart, since these have homes of their own.
"""

from array import array
from collections.abc import Iterable
from typing import Any

from fairlead.fleet import Fleet, InstanceState, Role
from fairlead.limits import Limits
from fairlead_gateway.routing.hotness import HotPrefixes
from fairlead_gateway.routing.prefix import PrefixChain
from fairlead_gateway.telling import hashes_of
from fairlead_kvstore.exchange.records import HotTable

ACTIVE_SECONDS = 60.0


class _Side:
    """The instances of one kind, and what is counted of prompts for them."""

    __slots__ = ("count", "ready")

    def __init__(self) -> None:
        self.ready: frozenset[str] = frozenset()
        self.count = HotPrefixes()


class _Model:
    __slots__ = ("at", "prefilling", "serving")

    def __init__(self) -> None:
        self.serving = _Side()
        self.prefilling = _Side()
        self.at = float("-inf")


class HotCounts:
    """Of all models of the fleet."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.hot_prefixes
        self._models: dict[str, _Model] = {}

    def apply(self, fleet: Fleet) -> None:
        """Take over who is ready for what."""
        self._models = {key: self._models.get(key) or _Model() for key in fleet.models}
        for key, model in self._models.items():
            ready = [one for one in fleet.instances.get(key, ()) if one.state is InstanceState.READY]
            model.prefilling.ready = frozenset([one.id for one in ready if one.role is Role.PREFILL])
            model.serving.ready = frozenset([one.id for one in ready if one.role is not Role.PREFILL])

    def sent(self, key: str, instance: str, chain: PrefixChain, now: float) -> None:
        """A prompt was sent there, by whomever."""
        model = self._models.get(key)
        if model is None:
            return
        for side in (model.serving, model.prefilling):
            if instance in side.ready:
                side.count.observe(chain, len(side.ready))
                model.at = now

    def active(self, now: float) -> list[str]:
        """The models that had traffic within a minute."""
        return [key for key, model in self._models.items() if now - model.at <= ACTIVE_SECONDS]

    def table(self, key: str) -> HotTable | None:
        """As counted here."""
        model = self._models.get(key)
        if model is None:
            return None
        return HotTable(*[_packed(side.count.table(self._most)) for side in (model.serving, model.prefilling)])

    def adopt(self, key: str, table: HotTable) -> None:
        """Go on from the table of a gateway that kept it until now."""
        model = self._models.get(key)
        if model is not None:
            model.serving.count.adopt(hashes_of(table.serving))
            model.prefilling.count.adopt(hashes_of(table.prefilling))


def _packed(hashes: Iterable[Any]) -> bytes:
    return array("Q", sorted(hashes)).tobytes()
