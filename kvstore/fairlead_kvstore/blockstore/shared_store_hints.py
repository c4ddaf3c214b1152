"""Blocks that a model's instances wrote to a store they share, as hints that expire.

Why: a store such as Mooncake does not report its evictions. Of 4,961 blocks that were reported as
stored, none was ever reported as removed, while the store evicted most of them. Events therefore
cannot prove presence. A block counts as probably present for a time after its last write, for every
instance of the model alike. The first hint of a block is published; repetitions within half of its
time are not. So a busy block causes a change every few minutes and not one per request.
"""

from collections.abc import Iterable
from itertools import islice

from fairlead_kvstore.blockstore.changes import Change, HintsAdded, HintsExpired


class SharedStoreHints:
    """The shared-store hints of one model: block hash → expiry (monotonic seconds), oldest
    first.
    """

    def __init__(self, model_key: str, *, seconds: float, max_hints: int) -> None:
        self._model_key = model_key
        self._seconds = seconds
        self.max_hints = max_hints
        self._until: dict[int, float] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._until

    def items(self) -> Iterable[tuple[int, float]]:
        """Returns block hash and expiry (monotonic seconds) of every hint, oldest first."""
        return self._until.items()

    def restore(self, hints: Iterable[tuple[int, float]]) -> None:
        """Adds hints of a snapshot, oldest first. Known hints stay as they are, since they are
        newer.
        """
        newer, self._until = self._until, {}
        for block_hash, until in (*hints, *newer.items()):
            self._until.pop(block_hash, None)
            self._until[block_hash] = until
        while len(self._until) > self.max_hints:
            del self._until[next(iter(self._until))]
            self.dropped += 1

    def add(self, block_hash: int, now: float, out: list[Change]) -> None:
        """Adds or renews the hint of a block that was written to the store.

        A hint younger than half of its lifetime stays as it is.
        """
        known, until = self._until.get(block_hash), now + self._seconds
        if known is not None:
            if known - now > self._seconds / 2:
                return
            del self._until[block_hash]  # the order is by age
        self._until[block_hash] = until
        last = out[-1] if out else None
        if isinstance(last, HintsAdded) and last.model_key == self._model_key and last.until == until:
            last.hashes.append(block_hash)
        else:
            out.append(HintsAdded(self._model_key, [block_hash], until))
        if len(self._until) > self.max_hints:
            # Two where there are two too many, since the bound may have been lowered.
            oldest = list(islice(self._until, min(2, len(self._until) - self.max_hints)))
            for value in oldest:
                del self._until[value]
            self.dropped += len(oldest)
            out.append(HintsExpired(self._model_key, oldest))

    def remove(self, block_hash: int, out: list[Change]) -> None:
        """Removes a block that a store reported as removed."""
        if self._until.pop(block_hash, None) is not None:
            out.append(HintsExpired(self._model_key, [block_hash]))

    def expire(self, now: float, out: list[Change]) -> None:
        """Removes the hints that have expired."""
        over = []
        for block_hash, until in self._until.items():
            if until > now:
                break
            over.append(block_hash)
        for block_hash in over:
            del self._until[block_hash]
        if over:
            out.append(HintsExpired(self._model_key, over))
