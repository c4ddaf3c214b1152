"""Calibration of estimated prompt tokens by the token counts that engines report.

Why by caller: text of digits or of a rare script has several times the tokens of English. With
cheap requests of such text, one caller would make the prompts of all others look as large. They
would wait for memory that is free. Every caller therefore has a mean of its own, and the model's is
the mean of these.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

UNFORESEEN_SMOOTHING: Final = 0.02
"""Weight of a response in `unforeseen_share`: some fifty responses count."""
SCALE_SMOOTHING: Final = 0.05
MAX_SCALE: Final = 4.0
MIN_SCALE_TOKENS: Final = 64
"""Speed and bounds of the scale, and the shortest prompt that it learns from."""
_MAX_CALLERS: Final = 1_024


class _CallerMeans:
    """The means of one caller."""

    __slots__ = ("samples", "scale", "unforeseen_share")

    def __init__(self) -> None:
        self.scale = 1.0
        self.unforeseen_share = 0.0
        self.samples = 1  # the estimate and the responses


class TokenCalibration:
    """The calibration of one model's token estimates: the means of its callers' means.

    - scale: reported prompt tokens ÷ estimated ones.
    - unforeseen_share: mean share of a prompt that engines had cached beyond the expected share.

    Beyond `_MAX_CALLERS`, the caller without a response for the longest time is dropped.
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self.unforeseen_share = 0.0
        self._callers: OrderedDict[Hashable, _CallerMeans] = OrderedDict()
        self._last_caller: Hashable = None
        self._scale_sum = self._unforeseen_sum = 0.0

    def scale_of(self, caller: Hashable) -> float:
        """Returns the scale of a caller's prompts: the model's until one was reported."""
        means = self._callers.get(caller)
        return self.scale if means is None else means.scale

    def observe(
        self,
        caller: Hashable,
        estimated_tokens: float,
        matched_share: float,
        prompt_tokens: int | None,
        cached_tokens: int | None,
    ) -> None:
        """Learns from one response, unless the prompt has fewer than `MIN_SCALE_TOKENS` tokens.

        A value that was not reported is None.

        matched_share: share of the prompt that was expected to be cached.
        """
        if estimated_tokens < MIN_SCALE_TOKENS or (cached_tokens is None and not prompt_tokens):
            return
        means = self._means_of(caller)
        scale, unforeseen_share = means.scale, means.unforeseen_share
        if cached_tokens is not None:
            share = min(1.0, cached_tokens / (prompt_tokens or estimated_tokens * scale))
            means.unforeseen_share += UNFORESEEN_SMOOTHING * (max(0.0, share - matched_share) - unforeseen_share)
        if prompt_tokens:
            ratio = min(MAX_SCALE, max(1 / MAX_SCALE, prompt_tokens / estimated_tokens))
            # A plain mean of the first responses. Why: each of several gateways sees only a part
            # of them, and a wrong scale makes caches look larger or smaller than they are.
            means.samples += 1
            means.scale += max(SCALE_SMOOTHING, 1.0 / means.samples) * (ratio - scale)
        if len(self._callers) == 1:  # without rounding, so that decisions replay
            self._scale_sum = self.scale = means.scale
            self._unforeseen_sum = self.unforeseen_share = means.unforeseen_share
        else:
            self._add(means.scale - scale, means.unforeseen_share - unforeseen_share)

    def _means_of(self, caller: Hashable) -> _CallerMeans:
        """Returns the means of a caller; a new one counts in the model's at once."""
        callers = self._callers
        means = callers.get(caller)
        if means is not None:
            if caller != self._last_caller:
                self._last_caller = caller
                callers.move_to_end(caller)
            return means
        if len(callers) >= _MAX_CALLERS:
            _, dropped = callers.popitem(last=False)
            self._add(-dropped.scale, -dropped.unforeseen_share)
        means = callers[caller] = _CallerMeans()
        self._last_caller = caller
        self._add(means.scale, means.unforeseen_share)
        return means

    def _add(self, scale: float, unforeseen_share: float) -> None:
        """Adds to the sums of all callers, of which the model has the mean."""
        self._scale_sum += scale
        self._unforeseen_sum += unforeseen_share
        count = max(1, len(self._callers))
        self.scale, self.unforeseen_share = self._scale_sum / count, self._unforeseen_sum / count
