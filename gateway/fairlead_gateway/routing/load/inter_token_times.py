"""What this gateway saw of engines that decode: how far apart the tokens of its streams came, which tells one that is fuller than the
ledger knows, and what share of their time they computed prompts for it."""

from collections.abc import Collection
from math import exp
from typing import Final

SMOOTHING: Final = 0.25
"""How fast the mean follows: some four streams."""
WINDOW_SECONDS: Final = 10.0
"""What was computed counts for about so long: as long as the answers that meet it last."""
MIN_TOKENS: Final = 8
"""Of shorter answers the mean gap is mostly chance."""


class InterTokenTimes:
    """Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._first_token_at: dict[str, float] = {}
        self._means: dict[str, tuple[float, float]] = {}
        self._prefill: dict[str, tuple[float, float]] = {}

    def retain(self, instances: Collection[str]) -> None:
        """Forget the others."""
        self._means = {name: mean for name, mean in self._means.items() if name in instances}
        self._prefill = {name: sums for name, sums in self._prefill.items() if name in instances}

    def add_prefill(self, instance: str, seconds: float, now: float) -> None:
        """An instance was sent a prompt that takes it so long."""
        self._prefill[instance] = (self.prefill_share(instance, now) * WINDOW_SECONDS + seconds, now)

    def prefill_share(self, instance: str, now: float) -> float:
        """What share of its time the instance was given prompts for, lately."""
        known = self._prefill.get(instance)
        return 0.0 if known is None else known[0] * exp((known[1] - now) / WINDOW_SECONDS) / WINDOW_SECONDS

    def on_first_token(self, request_id: str, now: float) -> None:
        """A stream began."""
        self._first_token_at[request_id] = now

    def on_finish(self, request_id: str, instance: str, output_tokens: int | None, now: float) -> None:
        """A request is over, well (then with what it generated) or not (None)."""
        first = self._first_token_at.pop(request_id, None)
        if first is None or output_tokens is None or output_tokens < MIN_TOKENS:
            return
        gap = (now - first) / (output_tokens - 1)
        known = self._means.get(instance)
        self._means[instance] = (gap if known is None else known[0] + SMOOTHING * (gap - known[0]), now)

    def mean_gap(self, instance: str, now: float) -> tuple[float, float] | None:
        """The mean gap and its age; None where no stream from there has ended."""
        known = self._means.get(instance)
        return None if known is None else (known[0], now - known[1])
