"""The sizes of prompts, learned from the token counts that engines report.

- The tokens of a picture, of audio and of other parts, by model, caller, kind and size class.
- The tokens of a byte of text, by model and caller: text of digits or of a rare script has several
  times those of English.

Why by caller: what the text of a prompt does not explain counts as its pictures. With dense text, a
caller would make those of others look 64 times as large, beyond their limits.

`TokenCalibration` learns the mean of a model, which is what routing needs. What a request costs is
that of its caller.

Calibration of estimated prompt tokens by the token counts that engines report.

Why by caller: text of digits or of a rare script has several times the tokens of English. With
cheap requests of such text, one caller would make the prompts of all others look as large. They
would wait for memory that is free. Every caller therefore has a mean of its own, and the model's is
the mean of these.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final

from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, MediaPart, block_bytes
from fairlead_gateway.routing.request import RouteRequest

UNFORESEEN_SMOOTHING: Final = 0.02
"""Weight of a response in `unforeseen_share`: some fifty responses count."""
SCALE_SMOOTHING: Final = 0.05
MAX_SCALE: Final = 4.0
MIN_SCALE_TOKENS: Final = 64
"""Speed and bounds of the scale, and the shortest prompt that it learns from."""
_MAX_CALLERS: Final = 1_024

_MAX_ENTRIES: Final = 16_384
_ALL_LEARNED: Final = 256
_INTERVAL: Final = 7
"""Odd, since callers often alternate."""
_SMOOTHING: Final = 0.05
_MAX_RATIO: Final = 64.0
"""A part has no more than so many times its nominal tokens, and text no more than 16 a byte."""


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

        matched_share: share of the prompt that was expected to be cached. It is known in whole
            blocks of the prefix, so one block more counts as expected.
        """
        if estimated_tokens < MIN_SCALE_TOKENS or (cached_tokens is None and not prompt_tokens):
            return
        means = self._means_of(caller)
        scale, unforeseen_share = means.scale, means.unforeseen_share
        if cached_tokens is not None:
            share = min(1.0, cached_tokens / (prompt_tokens or estimated_tokens * scale))
            size, beyond = estimated_tokens * BYTES_PER_TOKEN, share - matched_share
            if beyond * size <= block_bytes(matched_share * size):
                beyond = 0.0
            means.unforeseen_share += UNFORESEEN_SMOOTHING * (beyond - unforeseen_share)
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


class _Mean:
    """A mean of values: plain of the first, then later values weigh more."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self.count = self.count + 1
        self.value = self.value + max(_SMOOTHING, 1.0 / self.count) * (value - self.value)


class PromptSizes:
    """The sizes that one worker has learned, of all models and callers."""

    def __init__(self) -> None:
        self._media: OrderedDict[tuple[str, str, str, int], _Mean] = OrderedDict()
        self._densities: OrderedDict[tuple[str, str], _Mean] = OrderedDict()
        self._answers: int = 0

    def measure_media(self, caller: str, model_key: str, request: RouteRequest) -> None:
        """Gives a request with parts that are not text the tokens that they have at the model."""
        tokens = sum([self._part_tokens(caller, model_key, part) for part in request.media])
        request.prompt_tokens += tokens - request.media_tokens
        request.media_tokens = tokens

    def _part_tokens(self, caller: str, model_key: str, part: MediaPart) -> float:
        mean = self._media.get((caller, model_key, part.kind, part.size_class))
        return float(part.nominal_tokens) if mean is None else mean.value

    def prompt_tokens(self, caller: str, model_key: str, request: RouteRequest, model_tokens: float) -> float:
        """Returns the tokens of a prompt, as an engine will report them.

        model_tokens: the same by the mean of the model.
        """
        mean = self._densities.get((caller, model_key))
        if mean is None or request.prompt_tokens <= 0.0:
            return model_tokens
        media = request.media_tokens * model_tokens / request.prompt_tokens
        return media + (request.prompt_tokens - request.media_tokens) * mean.value

    def is_due(self, request: RouteRequest) -> bool:
        """Returns whether to learn from a prompt: from the first ones, each with parts, and some.

        Why: it costs a thousandth of a request.
        """
        self._answers = self._answers + 1
        return self._answers <= _ALL_LEARNED or self._answers % _INTERVAL == 0 or bool(request.media)

    def learn(self, caller: str, model_key: str, request: RouteRequest, model_tokens: float, reported: int) -> None:
        """Learns from the tokens of a prompt that an engine has reported."""
        estimated = request.prompt_tokens
        if estimated < MIN_SCALE_TOKENS:
            return
        if request.media:
            self._learn_media(caller, model_key, request, reported * estimated / model_tokens)
        else:
            _entry(self._densities, (caller, model_key)).add(min(_MAX_RATIO, reported / estimated))

    def _learn_media(self, caller: str, model_key: str, request: RouteRequest, reported: float) -> None:
        """Learns from a prompt with parts: what its text does not explain is theirs, in proportion
        to what was expected of each.
        """
        rest = max(1.0, reported - (request.prompt_tokens - request.media_tokens))
        known = [self._part_tokens(caller, model_key, part) for part in request.media]
        ratio = rest / sum(known)
        for part, tokens in zip(request.media, known, strict=True):
            learned = min(tokens * ratio, _MAX_RATIO * part.nominal_tokens)
            _entry(self._media, (caller, model_key, part.kind, part.size_class)).add(max(1.0, learned))


def _entry(table: OrderedDict[Any, _Mean], key: Hashable) -> _Mean:
    mean = table.get(key)
    if mean is None:
        if len(table) >= _MAX_ENTRIES:
            table.popitem(last=False)
        mean = table[key] = _Mean()
    return mean
