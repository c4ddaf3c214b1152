"""What KV takes from a prefill to a decode engine, by what was seen: seconds a token, of each
model.

A decode engine's first event after a hand-off comes when the KV is there and it has made a step.
What that took beyond two of its steps and a fixed part, divided by the prompt's tokens, is
averaged. Nothing is known before the first one; the fixed part is then all that is counted on, so
that in doubt prompts travel.
"""

from collections.abc import Collection
from typing import Final

from fairlead.limits import Limits

SMOOTHING: Final = 0.1
"""How fast the mean follows: some ten hand-offs."""


class TransferEstimator:
    """Of all models of one process."""

    def __init__(self, limits: Limits) -> None:
        self._fixed_seconds = limits.handoff_transfer_seconds
        self._token_seconds: dict[str, float] = {}

    def retain(self, models: Collection[str]) -> None:
        """Forget the others."""
        self._token_seconds = {key: each for key, each in self._token_seconds.items() if key in models}

    def predict_seconds(self, model: str, prompt_tokens: float) -> float:
        """For a prompt of that length."""
        return self._fixed_seconds + self._token_seconds.get(model, 0.0) * prompt_tokens

    def observe(self, model: str, prompt_tokens: float, seconds: float) -> None:
        """A hand-off's second leg had its first event after so many seconds, the engine's own steps
        not counted.
        """
        if prompt_tokens <= 0.0:
            return
        each = max(0.0, seconds - self._fixed_seconds) / prompt_tokens
        known = self._token_seconds.get(model)
        self._token_seconds[model] = each if known is None else known + SMOOTHING * (each - known)
