"""The helper's own count of hot prefixes: what this gateway would put into the table that all gateways route by, and how many prompts
begin with each of them.

It counts every dispatch that it hears of, its workers' and the other gateways', as each router would: prompts for instances that
answer and for those that only prefill apart, since these have homes of their own.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from fairlead.fleet.model import Fleet, InstanceState, Role
from fairlead.limits import Limits
from fairlead_gateway.routing.prefix.hot_prefixes import HotPrefixes, level_blocks, window_size
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, unpack_hashes
from fairlead_gateway.supervisor.peers.peer_messages import HotPrefixTable

ACTIVE_SECONDS = 60.0


class HotShare(NamedTuple):
    """A hot prefix: the hash of its text, the share of the last prompts that begin with it, and how many a second do."""

    digest: int
    share: float
    per_second: float


class _RoleCounts:
    """The instances of one kind, and what is counted of prompts for them. ``last``: when the last ones were sent, and the hashes of
    their levels."""

    __slots__ = ("hot_prefixes", "ready", "recent")

    def __init__(self) -> None:
        self.ready: frozenset[str] = frozenset()
        self.hot_prefixes = HotPrefixes()
        self.recent: deque[tuple[float, tuple[Any, ...]]] = deque()

    def on_dispatch(self, chain: PrefixChain, now: float) -> None:
        """A prompt was sent to one of them."""
        self.hot_prefixes.observe(chain, len(self.ready))
        if chain.ends:
            self.recent.append((now, tuple([chain.hashes[block] for block in level_blocks(chain.ends)])))
        while len(self.recent) > window_size(len(self.ready)):
            self.recent.popleft()


class _ModelCounts:
    __slots__ = ("last_dispatch_at", "prefilling", "serving")

    def __init__(self) -> None:
        self.serving = _RoleCounts()
        self.prefilling = _RoleCounts()
        self.last_dispatch_at = float("-inf")


class HotPrefixCounter:
    """Of all models of the fleet."""

    def __init__(self, limits: Limits) -> None:
        self._max_prefixes = limits.hot_prefixes
        self._models: dict[str, _ModelCounts] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Take over who is ready for what."""
        self._models = {key: self._models.get(key) or _ModelCounts() for key in fleet.models}
        for key, model in self._models.items():
            ready = [one for one in fleet.instances.get(key, ()) if one.state is InstanceState.READY]
            model.prefilling.ready = frozenset([one.id for one in ready if one.role is Role.PREFILL])
            model.serving.ready = frozenset([one.id for one in ready if one.role is not Role.PREFILL])

    def on_dispatch(self, key: str, instance: str, chain: PrefixChain, now: float) -> None:
        """A prompt was sent there, by whomever."""
        model = self._models.get(key)
        if model is None:
            return
        for side in (model.serving, model.prefilling):
            if instance in side.ready:
                side.on_dispatch(chain, now)
                model.last_dispatch_at = now

    def active_models(self, now: float) -> list[str]:
        """The models that had traffic within a minute."""
        return [key for key, model in self._models.items() if now - model.last_dispatch_at <= ACTIVE_SECONDS]

    def hot_prefixes(self, key: str, now: float) -> list[HotShare]:
        """The hot prefixes of prompts for instances that answer, as counted here, deepest or not, and how much they are used."""
        model = self._models.get(key)
        if model is None or not model.serving.recent:
            return []
        last = model.serving.recent
        hot = dict.fromkeys(model.serving.hot_prefixes.top_prefixes(self._max_prefixes), 0)
        for _, levels in last:
            for digest in levels:
                if digest in hot:
                    hot[digest] += 1
        seconds = max(1.0, now - last[0][0])
        return [HotShare(digest, count / len(last), count / seconds) for digest, count in hot.items() if count]  # type: ignore[arg-type]

    def table(self, key: str) -> HotPrefixTable | None:
        """As counted here."""
        model = self._models.get(key)
        if model is None:
            return None
        return HotPrefixTable(
            *[
                _pack_hashes(side.hot_prefixes.top_prefixes(self._max_prefixes))
                for side in (model.serving, model.prefilling)
            ]
        )

    def start_from_table(self, key: str, table: HotPrefixTable) -> None:
        """Go on from the table of a gateway that kept it until now."""
        model = self._models.get(key)
        if model is not None:
            model.serving.hot_prefixes.start_from_table(unpack_hashes(table.serving))
            model.prefilling.hot_prefixes.start_from_table(unpack_hashes(table.prefilling))


def _pack_hashes(hashes: Iterable[Any]) -> bytes:
    return array("Q", sorted(hashes)).tobytes()
