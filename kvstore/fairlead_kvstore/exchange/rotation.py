"""Which streams are looked at in one round. Pure.

Up to a limit all of them, every round. Beyond, those that something was heard of lately come first, with three quarters of the
places, and the others take turns: a model that rests is then heard a little later when it wakes, which ``rounds`` tells.
"""

from collections import deque
from collections.abc import Collection
from typing import Final

BUSY_SECONDS: Final = 10.0


class Rotation:
    """``most`` streams a round."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._order: deque[str] = deque()
        self._busy: dict[str, float] = {}

    def follow(self, models: Collection[str]) -> None:
        """From now on these."""
        known = set(self._order)
        self._order = deque([one for one in self._order if one in models] + [one for one in models if one not in known])
        for gone in [one for one in self._busy if one not in models]:
            del self._busy[gone]

    def woke(self, model: str, now: float) -> None:
        """Something was heard of it."""
        self._busy[model] = now

    def round(self, now: float) -> list[str]:
        """The models to look at."""
        order, most = self._order, self._most
        if len(order) <= most:
            return list(order)
        for gone in [one for one, at in self._busy.items() if now - at > BUSY_SECONDS]:
            del self._busy[gone]
        found: list[str] = []
        for model in list(self._busy)[: most - most // 4]:
            self._busy[model] = self._busy.pop(model)  # behind the others, so that all get their turn
            found.append(model)
        for _ in range(len(order)):
            if len(found) >= most:
                break
            if order[0] not in self._busy:
                found.append(order[0])
            order.rotate(-1)
        return found

    def rounds(self) -> int:
        """Within so many rounds every model is looked at."""
        return -(-len(self._order) // max(1, self._most // 4)) if len(self._order) > self._most else 1
