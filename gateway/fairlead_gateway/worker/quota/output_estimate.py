"""The output length that a request of a tenant probably reaches: the 90 % quantile of earlier ones.

Source of the histograms: `admission.output_lengths`.
"""

from typing import Final

from fairlead_gateway.admission.output_lengths import OutputLengths, conditional_quantile

SHARE: Final = 0.9
TABLE_SECONDS: Final = 2.0
"""An estimate is used for so long."""
_MAX_CLASSES: Final = 256


class OutputEstimator:
    """The learned output lengths of all tenants with limits, by model.

    default_tokens: expected before any answer was measured.
    """

    def __init__(self, default_tokens: int) -> None:
        self._default_tokens = default_tokens
        self._lengths: dict[str, OutputLengths] = {}
        self._estimates: dict[tuple[str, str, int], tuple[float, int]] = {}

    def estimate(self, model_key: str, tenant: str, prompt_tokens: int, now: float) -> int:
        """Returns the 90 % quantile of the lengths of similar answers."""
        key = (model_key, tenant, prompt_class(prompt_tokens))
        known = self._estimates.get(key)
        if known is not None and now - known[0] < TABLE_SECONDS:
            return known[1]
        lengths = self._lengths.get(model_key)
        counts = None if lengths is None else lengths.shares(tenant, float(prompt_tokens), now)
        tokens = self._default_tokens if counts is None else round(conditional_quantile(counts, SHARE, 0))
        if len(self._estimates) >= _MAX_CLASSES:
            self._estimates.clear()
        self._estimates[key] = (now, tokens)
        return tokens

    def learn(self, model_key: str, tenant: str, prompt_tokens: int, output_tokens: int, now: float) -> None:
        """Counts a complete answer."""
        lengths = self._lengths.get(model_key)
        if lengths is None:
            lengths = self._lengths[model_key] = OutputLengths(max_classes=_MAX_CLASSES)
        lengths.learn(tenant, float(prompt_tokens), output_tokens, now)

    def retain(self, model_keys: set[str]) -> None:
        """Forgets all other models."""
        self._lengths = {key: lengths for key, lengths in self._lengths.items() if key in model_keys}


def prompt_class(prompt_tokens: int) -> int:
    """Returns the class of a prompt's size, as `admission.output_lengths` has it: powers of
    four.
    """
    power = 0
    while prompt_tokens >= 4:
        power += 1
        prompt_tokens >>= 2
    return power
