"""The choice, in rotation, of the models' streams that a gateway reads in one round. Pure.

Up to a limit, every round reads all. Beyond it, recently active streams come first, with three
quarters of the places, and the others take turns. `rounds_per_cycle` says how late an entry of
an idle model is read.
"""

from collections import deque
from collections.abc import Collection
from typing import Final

BUSY_SECONDS: Final = 10.0


class StreamRotation:
    """The streams of all models, of which `max_streams` are read per round."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._order: deque[str] = deque()
        self._busy_since: dict[str, float] = {}

    def set_models(self, models: Collection[str]) -> None:
        known = set(self._order)
        self._order = deque([one for one in self._order if one in models] + [one for one in models if one not in known])
        for gone in [one for one in self._busy_since if one not in models]:
            del self._busy_since[gone]

    def on_activity(self, model: str, now: float) -> None:
        """Called when a message of the model was read."""
        self._busy_since[model] = now

    def next_round(self, now: float) -> list[str]:
        """Returns the keys of the models to read in this round."""
        order, most = self._order, self._max_streams
        if len(order) <= most:
            return list(order)
        for gone in [one for one, at in self._busy_since.items() if now - at > BUSY_SECONDS]:
            del self._busy_since[gone]
        found: list[str] = []
        for model in list(self._busy_since)[: most - most // 4]:
            self._busy_since[model] = self._busy_since.pop(model)  # moves it behind the others
            found.append(model)
        for _ in range(len(order)):
            if len(found) >= most:
                break
            if order[0] not in self._busy_since:
                found.append(order[0])
            order.rotate(-1)
        return found

    def rounds_per_cycle(self) -> int:
        """Returns the number of rounds after which every model has been read."""
        return -(-len(self._order) // max(1, self._max_streams // 4)) if len(self._order) > self._max_streams else 1
