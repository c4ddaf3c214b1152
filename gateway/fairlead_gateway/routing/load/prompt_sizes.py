"""The sizes of prompts, learned from the token counts that engines report.

- The tokens of a picture, of audio and of other parts, by model, caller, kind and size class.
- The tokens of a byte of text, by model and caller: text of digits or of a rare script has several
  times those of English.

Why by caller: what the text of a prompt does not explain counts as its pictures. With dense text, a
caller would make those of others look 64 times as large, beyond their limits.

`token_calibration` learns the mean of a model, which is what routing needs. What a request costs is
that of its caller.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final

from fairlead_gateway.routing.load.token_calibration import MIN_SCALE_TOKENS
from fairlead_gateway.routing.prefix.media_parts import MediaPart
from fairlead_gateway.routing.request import RouteRequest

_MAX_ENTRIES: Final = 16_384
_ALL_LEARNED: Final = 256
_INTERVAL: Final = 7
"""Odd, since callers often alternate."""
_SMOOTHING: Final = 0.05
_MAX_RATIO: Final = 64.0
"""A part has no more than so many times its nominal tokens, and text no more than 16 a byte."""


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
        """Returns the tokens of a part, in the unit of `RouteRequest.prompt_tokens`."""
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
