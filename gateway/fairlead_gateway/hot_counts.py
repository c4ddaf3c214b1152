"""The helper's own count of hot prefixes: what this gateway would put into the table that all gateways route by, and how many prompts
begin with each of them.

It counts every dispatch that it hears of, its workers' and the other gateways', as each router would: prompts for instances that
answer and for those that only prefill apart, since these have homes of their own.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from fairlead.fleet import Fleet, InstanceState, Role
from fairlead.limits import Limits
from fairlead_gateway.routing.hotness import HotPrefixes, level_blocks, wanted
from fairlead_gateway.routing.prefix import PrefixChain
from fairlead_gateway.telling import hashes_of
from fairlead_kvstore.exchange.records import HotTable

ACTIVE_SECONDS = 60.0


class HotShare(NamedTuple):
    """A hot prefix: the hash of its text, the share of the last prompts that begin with it, and how many a second do."""

    digest: int
    share: float
    per_second: float


class _Side:
    """The instances of one kind, and what is counted of prompts for them. ``last``: when the last ones were sent, and the hashes of
    their levels."""

    __slots__ = ("count", "last", "ready")

    def __init__(self) -> None:
        self.ready: frozenset[str] = frozenset()
        self.count = HotPrefixes()
        self.last: deque[tuple[float, tuple[Any, ...]]] = deque()

    def sent(self, chain: PrefixChain, now: float) -> None:
        """A prompt was sent to one of them."""
        self.count.observe(chain, len(self.ready))
        if chain.ends:
            self.last.append((now, tuple([chain.hashes[block] for block in level_blocks(chain.ends)])))
        while len(self.last) > wanted(len(self.ready)):
            self.last.popleft()


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
                side.sent(chain, now)
                model.at = now

    def active(self, now: float) -> list[str]:
        """The models that had traffic within a minute."""
        return [key for key, model in self._models.items() if now - model.at <= ACTIVE_SECONDS]

    def shared(self, key: str, now: float) -> list[HotShare]:
        """The hot prefixes of prompts for instances that answer, as counted here, deepest or not, and how much they are used."""
        model = self._models.get(key)
        if model is None or not model.serving.last:
            return []
        last = model.serving.last
        hot = dict.fromkeys(model.serving.count.table(self._most), 0)
        for _, levels in last:
            for digest in levels:
                if digest in hot:
                    hot[digest] += 1
        seconds = max(1.0, now - last[0][0])
        return [HotShare(digest, count / len(last), count / seconds) for digest, count in hot.items() if count]  # type: ignore[arg-type]

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
