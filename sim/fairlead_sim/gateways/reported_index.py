"""The KV-cache index that gateways build from simulated engines' events, and the true cache."""

from collections import Counter
from collections.abc import Sequence

from fairlead_kvstore.blockstore import changes as said
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, KvEvent
from fairlead_sim.engine.scheduler import EngineCore


class ReportedIndex:
    """A translator of engines' KV events to index changes, with the resulting index replica.

    Only the first and the last copy of a block change the index.
    """

    def __init__(self, engines: Sequence[str]) -> None:
        self.mirror = IndexReplica()
        self._copies: dict[str, Counter[int]] = {name: Counter() for name in engines}
        self._epoch = 0
        self.mirror.apply([said.CompletenessChanged(name, True, "", 0.0) for name in engines])

    def remove_instance(self, instance: str) -> list[said.Change]:
        """Drops the cache of an instance that left. Returns the index changes."""
        self._copies[instance].clear()
        self._epoch += 1
        changes: list[said.Change] = [
            said.InstanceCleared(instance, self._epoch, "left"),
            said.CompletenessChanged(instance, True, "", 0.0),
        ]
        self.mirror.apply(changes)
        return changes

    def apply_events(self, instance: str, events: Sequence[KvEvent]) -> list[said.Change]:
        """Applies the KV events of an instance. Returns the index changes in order."""
        copies = self._copies[instance]
        changes: list[said.Change] = []
        for event in events:
            match event:
                case BlocksStored():
                    new = [key for key in event.keys if not copies[key]]
                    copies.update(event.keys)
                    changes.append(said.BlocksStored(instance, StorageTier.GPU, event.parent or 0, new))
                case BlockEvicted():
                    copies[event.key] -= 1
                    if copies[event.key] <= 0:
                        del copies[event.key]
                        changes.append(said.BlocksRemoved(instance, StorageTier.GPU, [event.key]))
                case CacheCleared():
                    copies.clear()
                    changes.append(said.InstanceCleared(instance, 0, "cleared"))
        self.mirror.apply(changes)
        return changes


def cached_or_pending_blocks(core: EngineCore, keys: Sequence[int]) -> int:
    """Returns how many blocks of a prompt an engine has cached or is about to compute."""
    matched = len(core.pool.match(keys, len(keys)))
    for sequence in core.sequences():
        shared = 0
        for key, wanted in zip(sequence.keys[matched:], keys[matched:], strict=False):
            if key != wanted:
                break
            shared += 1
        if shared:
            matched += shared
    return matched
