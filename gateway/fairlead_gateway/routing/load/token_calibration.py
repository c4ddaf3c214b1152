"""Calibration of estimated prompt tokens by the token counts that engines report."""

from typing import Final

UNFORESEEN_SMOOTHING: Final = 0.02
"""Weight of a response in `unforeseen_share`: some fifty responses count."""
SCALE_SMOOTHING: Final = 0.05
MAX_SCALE: Final = 4.0
MIN_SCALE_TOKENS: Final = 64
"""Speed and bounds of the scale, and the shortest prompt that it learns from."""


class TokenCalibration:
    """The calibration of one model's token estimates.

    - scale: reported prompt tokens ÷ estimated ones.
    - unforeseen_share: mean share of a prompt that engines had cached beyond the expected share.
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self.unforeseen_share = 0.0
        self._samples = 1  # the estimate and the responses

    def observe(
        self, estimated_tokens: float, matched_share: float, prompt_tokens: int | None, cached_tokens: int | None
    ) -> None:
        """Learns from one response, unless the prompt has fewer than `MIN_SCALE_TOKENS` tokens.

        A value that was not reported is None.

        matched_share: share of the prompt that was expected to be cached.
        """
        if estimated_tokens < MIN_SCALE_TOKENS:
            return
        if cached_tokens is not None:
            share = min(1.0, cached_tokens / (prompt_tokens or estimated_tokens * self.scale))
            self.unforeseen_share += UNFORESEEN_SMOOTHING * (max(0.0, share - matched_share) - self.unforeseen_share)
        if prompt_tokens:
            ratio = min(MAX_SCALE, max(1 / MAX_SCALE, prompt_tokens / estimated_tokens))
            # A plain mean of the first responses. Why: each of several gateways sees only a part
            # of them, and a wrong scale makes caches look larger or smaller than they are.
            self._samples += 1
            self.scale += max(SCALE_SMOOTHING, 1.0 / self._samples) * (ratio - self.scale)
