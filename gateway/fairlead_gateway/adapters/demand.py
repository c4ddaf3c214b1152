"""The demand of LoRA adapters: how often requests name them, and how long loading them takes."""

from math import log
from typing import Final

HALF_LIFE_SECONDS: Final = 60.0
"""A request counts half as much after this time."""
FIRST_LOAD_SECONDS: Final = 1.0
"""The load time of an adapter while none has been measured."""
_DECAY: Final = log(2.0) / HALF_LIFE_SECONDS
_LEARNING_SHARE: Final = 0.3


class _DecayingCount:
    """A decaying count of requests, as of `at`."""

    __slots__ = ("at", "value")

    def __init__(self, now: float) -> None:
        self.value = 0.0
        self.at = now

    def value_at(self, now: float) -> float:
        """Returns the count as of `now`."""
        return float(self.value * 2.0 ** (-max(0.0, now - self.at) / HALF_LIFE_SECONDS))


class AdapterDemand:
    """The request rates and load times of the adapters of one model."""

    def __init__(self) -> None:
        self._counts: dict[str, _DecayingCount] = {}
        self._total = _DecayingCount(0.0)
        self._load_seconds: dict[str, float] = {}
        self._mean_load_seconds = 0.0

    def on_request(self, name: str, now: float) -> None:
        """Counts a request for an adapter."""
        count = self._counts.get(name)
        if count is None:
            count = self._counts[name] = _DecayingCount(now)
        for counted in (count, self._total):
            counted.value, counted.at = counted.value_at(now) + 1.0, now

    def rate(self, name: str, now: float) -> float:
        """Returns the requests a second for an adapter."""
        count = self._counts.get(name)
        return 0.0 if count is None else count.value_at(now) * _DECAY

    def share(self, name: str, now: float) -> float:
        """Returns the share of the model's adapter requests that name this one, from 0 to 1."""
        total, count = self._total.value_at(now), self._counts.get(name)
        return 0.0 if count is None or total <= 0.0 else min(1.0, count.value_at(now) / total)

    def on_loaded(self, name: str, seconds: float) -> None:
        """Learns the time that a load took."""
        self._load_seconds[name] = _smoothed(self._load_seconds.get(name, 0.0), seconds)
        self._mean_load_seconds = _smoothed(self._mean_load_seconds, seconds)

    def load_seconds(self, name: str) -> float:
        """Returns the expected time to load an adapter; that of others if it was never loaded."""
        return self._load_seconds.get(name) or self._mean_load_seconds or FIRST_LOAD_SECONDS

    def retain(self, names: frozenset[str]) -> None:
        """Forgets adapters that the model has no longer."""
        for known in (self._counts, self._load_seconds):
            for name in known.keys() - names:
                del known[name]


def _smoothed(known: float, seconds: float) -> float:
    return seconds if known == 0.0 else known + _LEARNING_SHARE * (seconds - known)
