"""What this gateway saw of engines that decode: how far apart the tokens of its streams came, which tells one that is fuller than the
ledger knows, and what share of their time they computed prompts for it."""

from collections.abc import Collection
from math import exp
from typing import Final

PACE: Final = 0.25
"""How fast the mean follows: some four streams."""
SECONDS: Final = 10.0
"""What was computed counts for about so long: as long as the answers that meet it last."""
LEAST_TOKENS: Final = 8
"""Of shorter answers the mean gap is mostly chance."""


class Gaps:
    """Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._means: dict[str, tuple[float, float]] = {}
        self._computed: dict[str, tuple[float, float]] = {}

    def keep(self, instances: Collection[str]) -> None:
        """Forget the others."""
        self._means = {name: mean for name, mean in self._means.items() if name in instances}
        self._computed = {name: sums for name, sums in self._computed.items() if name in instances}

    def computes(self, instance: str, seconds: float, now: float) -> None:
        """An instance was sent a prompt that takes it so long."""
        self._computed[instance] = (self.prefill_share(instance, now) * SECONDS + seconds, now)

    def prefill_share(self, instance: str, now: float) -> float:
        """What share of its time the instance was given prompts for, lately."""
        known = self._computed.get(instance)
        return 0.0 if known is None else known[0] * exp((known[1] - now) / SECONDS) / SECONDS

    def first_token(self, request: str, now: float) -> None:
        """A stream began."""
        self._first[request] = now

    def ended(self, request: str, instance: str, output_tokens: int | None, now: float) -> None:
        """A request is over, well (then with what it generated) or not (None)."""
        first = self._first.pop(request, None)
        if first is None or output_tokens is None or output_tokens < LEAST_TOKENS:
            return
        gap = (now - first) / (output_tokens - 1)
        known = self._means.get(instance)
        self._means[instance] = (gap if known is None else known[0] + PACE * (gap - known[0]), now)

    def seen(self, instance: str, now: float) -> tuple[float, float] | None:
        """The mean gap and its age; None where no stream from there has ended."""
        known = self._means.get(instance)
        return None if known is None else (known[0], now - known[1])
