"""What simulated engines tell, as the index of a whole installation has it, and what they really hold."""

from collections import Counter
from collections.abc import Sequence

from fairlead_kvstore.index.mirror import IndexMirror
from fairlead_kvstore.truth import changes as said
from fairlead_kvstore.truth.tiers import Tier
from fairlead_sim.blocks import Cleared, KvEvent, Removed, Stored
from fairlead_sim.engine import EngineCore


class ToldIndex:
    """What engines tell, as changes of an index: the first and the last copy of a block only."""

    def __init__(self, engines: Sequence[str]) -> None:
        self.mirror = IndexMirror()
        self._copies: dict[str, Counter[int]] = {name: Counter() for name in engines}
        self._epoch = 0
        self.mirror.apply([said.Marked(name, True, "", 0.0) for name in engines])

    def left(self, instance: str) -> list[said.Change]:
        """It is gone with all it held."""
        self._copies[instance].clear()
        self._epoch += 1
        found: list[said.Change] = [said.Cleared(instance, self._epoch, "left"), said.Marked(instance, True, "", 0.0)]
        self.mirror.apply(found)
        return found

    def changes(self, instance: str, events: Sequence[KvEvent]) -> list[said.Change]:
        """In their order; the mirror has taken them over."""
        copies = self._copies[instance]
        found: list[said.Change] = []
        for event in events:
            match event:
                case Stored():
                    new = [key for key in event.keys if not copies[key]]
                    copies.update(event.keys)
                    found.append(said.Stored(instance, Tier.GPU, event.parent or 0, new))
                case Removed():
                    copies[event.key] -= 1
                    if copies[event.key] <= 0:
                        del copies[event.key]
                        found.append(said.Removed(instance, Tier.GPU, [event.key]))
                case Cleared():
                    copies.clear()
                    found.append(said.Cleared(instance, 0, "cleared"))
        self.mirror.apply(found)
        return found


def held_blocks(core: EngineCore, keys: Sequence[int]) -> int:
    """How many blocks of a prompt an engine holds or is about to compute for somebody else."""
    most = len(core.pool.match(keys, len(keys)))
    for sequence in core.sequences():
        shared = 0
        for one, other in zip(sequence.keys[most:], keys[most:], strict=False):
            if one != other:
                break
            shared += 1
        if shared:
            most += shared
    return most
