"""What KV takes from a prefill to a decode engine, by what was seen: seconds a token, of each model.

A decode engine's first event after a hand-off comes when the KV is there and it has made a step. What that took beyond two of its
steps and a fixed part, divided by the prompt's tokens, is averaged. Nothing is known before the first one; the fixed part
is then all that is counted on, so that in doubt prompts travel.
"""

from collections.abc import Collection
from typing import Final

from fairlead.limits import Limits

PACE: Final = 0.1
"""How fast the mean follows: some ten hand-offs."""


class Ways:
    """Of all models of one process."""

    def __init__(self, limits: Limits) -> None:
        self._fixed = limits.handoff_way_seconds
        self._each: dict[str, float] = {}

    def keep(self, models: Collection[str]) -> None:
        """Forget the others."""
        self._each = {key: each for key, each in self._each.items() if key in models}

    def seconds(self, model: str, prompt_tokens: float) -> float:
        """For a prompt of that length."""
        return self._fixed + self._each.get(model, 0.0) * prompt_tokens

    def took(self, model: str, prompt_tokens: float, seconds: float) -> None:
        """A hand-off's second leg had its first event after so many seconds, the engine's own steps not counted."""
        if prompt_tokens <= 0.0:
            return
        each = max(0.0, seconds - self._fixed) / prompt_tokens
        known = self._each.get(model)
        self._each[model] = each if known is None else known + PACE * (each - known)
