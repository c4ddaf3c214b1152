"""Inter-token times of decode instances, as this gateway's streams observed them.

They show instances that are fuller than the in-flight load says. They also show the share of time
for which an instance was given prompts to compute.
"""

from collections.abc import Collection
from math import exp
from typing import Final

SMOOTHING: Final = 0.25
"""Weight of a stream in the mean: some four streams count."""
WINDOW_SECONDS: Final = 10.0
"""Prefill counts for about so long: as long as the responses that meet it last."""
MIN_TOKENS: Final = 8
"""The mean gap of shorter outputs is mostly chance."""


class InterTokenTimes:
    """Mean inter-token times and prefill shares by instance. `now` is seconds of the caller's
    clock.
    """

    def __init__(self) -> None:
        self._first_token_at: dict[str, float] = {}
        self._means: dict[str, tuple[float, float]] = {}
        self._prefill: dict[str, tuple[float, float]] = {}

    def retain(self, instances: Collection[str]) -> None:
        self._means = {name: mean for name, mean in self._means.items() if name in instances}
        self._prefill = {name: sums for name, sums in self._prefill.items() if name in instances}

    def add_prefill(self, instance: str, seconds: float, now: float) -> None:
        """Counts a prompt whose prefill takes `seconds` at an instance."""
        self._prefill[instance] = (self.prefill_share(instance, now) * WINDOW_SECONDS + seconds, now)

    def prefill_share(self, instance: str, now: float) -> float:
        """Returns the share of the instance's recent time that dispatched prompts take to
        compute.
        """
        known = self._prefill.get(instance)
        return 0.0 if known is None else known[0] * exp((known[1] - now) / WINDOW_SECONDS) / WINDOW_SECONDS

    def on_first_token(self, request_id: str, now: float) -> None:
        self._first_token_at[request_id] = now

    def on_finish(self, request_id: str, instance: str, output_tokens: int | None, now: float) -> None:
        """Adds the mean gap between the tokens of a finished request to the instance's mean.

        output_tokens: None if the request failed; then, and for short outputs, nothing is added.
        """
        first = self._first_token_at.pop(request_id, None)
        if first is None or output_tokens is None or output_tokens < MIN_TOKENS:
            return
        gap = (now - first) / (output_tokens - 1)
        known = self._means.get(instance)
        self._means[instance] = (gap if known is None else known[0] + SMOOTHING * (gap - known[0]), now)

    def mean_gap(self, instance: str, now: float) -> tuple[float, float] | None:
        """Returns the mean gap and its age, in seconds; None before the first stream of at least
        `MIN_TOKENS` tokens has ended there.
        """
        known = self._means.get(instance)
        return None if known is None else (known[0], now - known[1])
