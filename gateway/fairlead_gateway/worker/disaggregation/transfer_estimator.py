"""The duration of KV transfers, learned per model as seconds per token.

After a remote prefill, a decode engine's first event comes once it has the KV and has made a step.
The time beyond two of its steps and a fixed part, divided by the prompt's tokens, is averaged.
Before the first observation only the fixed part counts, so in doubt prompts are transferred.
"""

from collections.abc import Collection
from typing import Final

from fairlead.limits import Limits

SMOOTHING: Final = 0.1
"""Weight of the newest transfer in the mean; it follows in about ten transfers."""


class TransferEstimator:
    """The transfer times of all models of one process."""

    def __init__(self, limits: Limits) -> None:
        self._fixed_seconds = limits.handoff_transfer_seconds
        self._token_seconds: dict[str, float] = {}

    def retain(self, models: Collection[str]) -> None:
        """Forgets the transfer times of all other models."""
        self._token_seconds = {key: seconds for key, seconds in self._token_seconds.items() if key in models}

    def predict_seconds(self, model: str, prompt_tokens: float) -> float:
        """Returns the expected transfer time of a prompt's KV, in seconds."""
        return self._fixed_seconds + self._token_seconds.get(model, 0.0) * prompt_tokens

    def observe(self, model: str, prompt_tokens: float, seconds: float) -> None:
        """Adds a transfer to the mean of its model.

        seconds: from the dispatch to the decode engine's first event, without its two steps.
        """
        if prompt_tokens <= 0.0:
            return
        seconds_per_token = max(0.0, seconds - self._fixed_seconds) / prompt_tokens
        mean = self._token_seconds.get(model)
        self._token_seconds[model] = (
            seconds_per_token if mean is None else mean + SMOOTHING * (seconds_per_token - mean)
        )
