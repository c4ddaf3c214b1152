"""What a model's instances have put into a store that they share, as hints that run out.

A store such as Mooncake evicts by itself and tells nobody: of 4,961 blocks announced, none was ever reported as removed while the
store threw most of them out. So presence cannot be known from events; a block counts as probably there for a while after it was
last written, for every member alike, and never as an instance's own. The first hint of a block is told, repetitions within half
of its time are not, so that a busy block costs a change every few minutes and not one per request.
"""

from collections.abc import Iterable

from fairlead_kvstore.blockstore.changes import Change, HintsAdded, HintsExpired


class SharedStoreHints:
    """The hints of one model: own hash → when it runs out (monotonic seconds), oldest first."""

    __slots__ = ("_model_key", "_most", "_seconds", "_until", "dropped")

    def __init__(self, model_key: str, *, seconds: float, most: int) -> None:
        self._model_key = model_key
        self._seconds = seconds
        self._most = most
        self._until: dict[int, float] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._until)

    def items(self) -> Iterable[tuple[int, float]]:
        """Every hint, oldest first."""
        return self._until.items()

    def restore(self, hints: Iterable[tuple[int, float]]) -> None:
        """Know these, oldest first, and what is known already, which is newer."""
        newer, self._until = self._until, {}
        for own, until in (*hints, *newer.items()):
            self._until.pop(own, None)
            self._until[own] = until
        while len(self._until) > self._most:
            del self._until[next(iter(self._until))]
            self.dropped += 1

    def expires_at(self, own: int) -> float | None:
        """When the hint runs out; None without one."""
        return self._until.get(own)

    def add(self, own: int, now: float, out: list[Change]) -> None:
        """A block was put into the store."""
        known, until = self._until.get(own), now + self._seconds
        if known is not None:
            if known - now > self._seconds / 2:
                return
            del self._until[own]  # the order is by age
        self._until[own] = until
        last = out[-1] if out else None
        if isinstance(last, HintsAdded) and last.model_key == self._model_key and last.until == until:
            last.hashes.append(own)
        else:
            out.append(HintsAdded(self._model_key, [own], until))
        if len(self._until) > self._most:
            oldest = next(iter(self._until))
            del self._until[oldest]
            self.dropped += 1
            out.append(HintsExpired(self._model_key, [oldest]))

    def remove(self, own: int, out: list[Change]) -> None:
        """Some store told after all that a block is gone."""
        if self._until.pop(own, None) is not None:
            out.append(HintsExpired(self._model_key, [own]))

    def expire(self, now: float, out: list[Change]) -> None:
        """Let go of what has run out."""
        over = []
        for own, until in self._until.items():
            if until > now:
                break
            over.append(own)
        for own in over:
            del self._until[own]
        if over:
            out.append(HintsExpired(self._model_key, over))
