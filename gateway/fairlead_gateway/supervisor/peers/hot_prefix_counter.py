"""The supervisor's count of hot prefixes and of the prompts that begin with each.

From this count, a gateway makes its version of the table by which all gateways route.

The supervisor counts the dispatches of its workers and of other gateways, as a router does. Prompts
for instances that only prefill are counted apart, since these instances are homes of their own.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from fairlead.fleet.model import Fleet, InstanceState, Role
from fairlead_gateway.routing.prefix.hot_prefixes import HotPrefixes, level_blocks, window_size
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, unpack_hashes
from fairlead_gateway.supervisor.peers.peer_messages import HotPrefixTable

HOT_PREFIXES: Final = 10_000
"""Limit: entries of the hot-prefix table of one model."""

ACTIVE_SECONDS = 60.0


class HotShare(NamedTuple):
    """A hot prefix and its traffic.

    - digest: the hash of its text.
    - share: the share of recent prompts that begin with it, 0 to 1.
    - per_second: prompts per second that begin with it.
    """

    digest: int
    share: float
    per_second: float


class _RoleCounts:
    """The instances of one role and the counts of their prompts.

    recent: time and level hashes of each recent prompt.
    """

    __slots__ = ("hot_prefixes", "ready", "recent")

    def __init__(self) -> None:
        self.ready: frozenset[str] = frozenset()
        self.hot_prefixes = HotPrefixes()
        self.recent: deque[tuple[float, tuple[Any, ...]]] = deque()

    def on_dispatch(self, chain: PrefixChain, now: float) -> None:
        """Counts a prompt that was sent to one of the instances."""
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
    """The counts of all models of the fleet."""

    def __init__(self) -> None:
        self._max_prefixes = HOT_PREFIXES
        self._models: dict[str, _ModelCounts] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Takes over the ready instances of each role."""
        self._models = {key: self._models.get(key) or _ModelCounts() for key in fleet.models}
        for key, model in self._models.items():
            ready = [item for item in fleet.instances.get(key, ()) if item.state is InstanceState.READY]
            model.prefilling.ready = frozenset([item.id for item in ready if item.role is Role.PREFILL])
            model.serving.ready = frozenset([item.id for item in ready if item.role is not Role.PREFILL])

    def on_dispatch(self, key: str, instance: str, chain: PrefixChain, now: float) -> None:
        """Counts a prompt that this or another gateway sent to the instance."""
        model = self._models.get(key)
        if model is None:
            return
        for counts in (model.serving, model.prefilling):
            if instance in counts.ready:
                counts.on_dispatch(chain, now)
                model.last_dispatch_at = now

    def active_models(self, now: float) -> list[str]:
        """Returns the models that had traffic in the last minute."""
        return [key for key, model in self._models.items() if now - model.last_dispatch_at <= ACTIVE_SECONDS]

    def hot_prefixes(self, key: str, now: float) -> list[HotShare]:
        """Returns the hot prefixes of a model's serving instances, with their traffic.

        A prefix is included even if a longer one that begins with it is hot too.
        """
        model = self._models.get(key)
        if model is None or not model.serving.recent:
            return []
        recent = model.serving.recent
        hot = dict.fromkeys(model.serving.hot_prefixes.top_prefixes(self._max_prefixes), 0)
        for _, levels in recent:
            for digest in levels:
                if digest in hot:
                    hot[digest] += 1
        seconds = max(1.0, now - recent[0][0])
        return [HotShare(digest, count / len(recent), count / seconds) for digest, count in hot.items() if count]  # type: ignore[arg-type]

    def table(self, key: str) -> HotPrefixTable | None:
        """Returns a model's table as counted here; None for an unknown model."""
        model = self._models.get(key)
        if model is None:
            return None
        return HotPrefixTable(
            *[
                _pack_hashes(counts.hot_prefixes.top_prefixes(self._max_prefixes))
                for counts in (model.serving, model.prefilling)
            ]
        )

    def start_from_table(self, key: str, table: HotPrefixTable) -> None:
        """Continues from the table of the gateway that held the lease until now."""
        model = self._models.get(key)
        if model is not None:
            model.serving.hot_prefixes.start_from_table(unpack_hashes(table.serving))
            model.prefilling.hot_prefixes.start_from_table(unpack_hashes(table.prefilling))


def _pack_hashes(hashes: Iterable[Any]) -> bytes:
    return array("Q", sorted(hashes)).tobytes()
