"""What engines report of the prompts they answered, against what was thought of them before: how many tokens there are to one of
the caller's estimate, and how much was cached that nobody had told of."""

from typing import Final

UNFORESEEN_SMOOTHING: Final = 0.02
"""How fast what engines had beyond what was known of is followed: some fifty answers."""
SCALE_SMOOTHING: Final = 0.05
MAX_SCALE: Final = 4.0
MIN_SCALE_TOKENS: Final = 64
"""How fast, how far and from which prompts the estimate of tokens follows what engines report."""


class TokenCalibration:
    """Of one model. ``scale`` is reported prompt tokens ÷ the caller's estimate, ``unforeseen_share`` that of prompts which engines
    had cached and nobody had told of."""

    def __init__(self) -> None:
        self.scale = 1.0
        self.unforeseen_share = 0.0
        self._samples = 1  # what the scale is the mean of: the estimate, and answers

    def observe(
        self, estimated_tokens: float, matched_share: float, prompt_tokens: int | None, cached_tokens: int | None
    ) -> None:
        """An answer came whose prompt was thought to be so long, and so large a share of it to be cached; what was not reported is
        None."""
        if estimated_tokens < MIN_SCALE_TOKENS:
            return
        if cached_tokens is not None:
            share = cached_tokens / (prompt_tokens or estimated_tokens * self.scale)
            self.unforeseen_share += UNFORESEEN_SMOOTHING * (max(0.0, share - matched_share) - self.unforeseen_share)
        if prompt_tokens:
            ratio = min(MAX_SCALE, max(1 / MAX_SCALE, prompt_tokens / estimated_tokens))
            # The mean of the first answers: of several gateways each hears a part of them, and one that does not know yet how long
            # prompts are takes engines' caches for larger or smaller than they are.
            self._samples += 1
            self.scale += max(SCALE_SMOOTHING, 1.0 / self._samples) * (ratio - self.scale)
