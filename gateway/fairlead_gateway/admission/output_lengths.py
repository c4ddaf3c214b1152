"""Distributions of output lengths, by length class and prompt size.

A *length class* is what the caller distinguishes: a tenant, a route. The results are quantiles of
the whole length, or of the rest after `generated` tokens. Lengths are counted in bins whose edges
have a fixed ratio.

Counts decay with a half-life of an hour. To follow a new release of an application sooner, the last
`RECENT_ANSWERS` are kept as well. If they contradict the distribution (Kolmogorov–Smirnov test),
they replace it.

A class with few answers is completed by the next wider one: class and prompt size, class,
everything. Each level counts as `PRIOR_ANSWERS` answers of the level below.

Why: equal prompts get outputs whose lengths differ by a factor, so a single estimate says little.

Source: CASTILLO (arXiv 2505.16881) for the finding. Histogram, decay, back-off and the test for
change are ours.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from fairlead_gateway.admission.kv_capacity import LengthForecast

BIN_RATIO: Final = 2.0 ** (1 / 8)
BINS: Final = 140
"""Up to 2^17.5, some 185,000 tokens. Longer outputs count as that long."""
HALF_LIFE_SECONDS: Final = 3_600.0
PRIOR_ANSWERS: Final = 20.0
RECENT_ANSWERS: Final = 128
CHANGE_THRESHOLD: Final = 2.2
"""Bound on the distance times the root of the number of answers: passed by chance once in 8,000."""
TABLE_SECONDS: Final = 2.0
PLANNED_SHARE: Final = 0.6
"""A little over the median: the tail is heavy, and the sum of medians is below the median of the
sum.
"""
_CHECK_INTERVAL: Final = 32
_MAX_POWER: Final = 32
_MAX_WEIGHT: Final = 1e9
_LOG_RATIO: Final = math.log(BIN_RATIO)
LOWER_EDGES: Final = tuple([math.exp(index * _LOG_RATIO) for index in range(BINS + 2)])


class LengthHistogram:
    """Answers of one class, counted by length.

    Later answers weigh more instead of earlier ones decaying, so an answer costs one addition.
    """

    __slots__ = ("_answers", "_recent", "counts", "total")

    def __init__(self) -> None:
        self._recent: list[int] = []  # once full, a ring
        self._answers = 0
        self.counts = [0.0] * BINS
        self.total = 0.0

    def add(self, bin_: int, weight: float) -> None:
        """Counts an answer. weight: that of an answer now."""
        counts, recent = self.counts, self._recent
        counts[bin_] = counts[bin_] + weight  # not `+=`, which mypyc adds as objects
        self.total += weight
        if len(recent) < RECENT_ANSWERS:
            recent.append(bin_)
        else:
            recent[self._answers % RECENT_ANSWERS] = bin_
        self._answers += 1
        if self._answers % _CHECK_INTERVAL == 0 and len(recent) == RECENT_ANSWERS and self._has_changed():
            counts = self.counts = [0.0] * BINS
            for bin_index in recent:
                counts[bin_index] += weight
            self.total = RECENT_ANSWERS * weight

    def rescale(self, weight: float) -> None:
        self.counts = [count / weight for count in self.counts]
        self.total /= weight

    def _has_changed(self) -> bool:
        counts = [0] * BINS
        for bin_index in self._recent:
            counts[bin_index] += 1
        before = latest = farthest = 0.0
        for index in range(BINS):
            before += self.counts[index] / self.total
            latest += counts[index] / RECENT_ANSWERS
            farthest = max(farthest, abs(before - latest))
        return farthest * math.sqrt(RECENT_ANSWERS) > CHANGE_THRESHOLD


class OutputLengths:
    """Length histograms of one model. Beyond `max_classes`, the classes without an answer for the
    longest time are dropped.
    """

    def __init__(self, *, max_classes: int) -> None:
        self._max_classes = max(2, max_classes)  # each answer has two
        self._histograms: OrderedDict[Hashable, LengthHistogram] = OrderedDict()
        self._all = LengthHistogram()
        self._since: float | None = None
        self._last_class: Hashable = None  # the narrow class of the last answer, and its histograms
        self._last_histograms: tuple[LengthHistogram, LengthHistogram] | None = None

    def learn(self, length_class: Hashable, prompt_tokens: float, output_tokens: int, now: float) -> None:
        """Counts a complete response. Callers must not pass responses that their client cut off."""
        if output_tokens < 1:
            return
        bin_, weight = bin_of(output_tokens), self._weight(now)
        self._all.add(bin_, weight)
        narrow, wide = _class_keys(length_class, prompt_tokens)
        histograms = self._last_histograms
        if histograms is None or narrow != self._last_class:  # else both are the latest already
            histograms = self._last_histograms = (self._latest(narrow), self._latest(wide))
            self._last_class = narrow
        histograms[0].add(bin_, weight)
        histograms[1].add(bin_, weight)

    def _latest(self, key: Hashable) -> LengthHistogram:
        """Returns the histogram of a class, and makes it the one that is dropped last."""
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._histograms[key] = LengthHistogram()
            if len(self._histograms) > self._max_classes:
                self._histograms.popitem(last=False)
        else:
            self._histograms.move_to_end(key)
        return histogram

    def _weight(self, now: float) -> float:
        """Returns the weight of an answer now, in all histograms."""
        if self._since is None:
            self._since = now
        weight = math.exp2((now - self._since) / HALF_LIFE_SECONDS)
        if weight > _MAX_WEIGHT:  # rescale before numbers get large
            for histogram in (self._all, *self._histograms.values()):
                histogram.rescale(weight)
            self._since, weight = now, 1.0
        return max(weight, 1.0 / _MAX_WEIGHT)

    def quantile(
        self, share: float, length_class: Hashable, prompt_tokens: float, now: float, *, generated: int = 0
    ) -> float | None:
        """Returns the `share` quantile of the lengths of answers longer than `generated` tokens.

        None if no answer was counted.
        """
        counts = self.shares(length_class, prompt_tokens, now)
        if counts is None:
            return None
        return conditional_quantile(counts, share, generated)

    def shares(self, length_class: Hashable, prompt_tokens: float, now: float) -> list[float] | None:
        """Returns the share of answers in each bin; None if no answer was counted.

        Classes with few answers are completed by wider ones.
        """
        shares: list[float] | None = None
        weight = self._weight(now)
        narrow, wide = _class_keys(length_class, prompt_tokens)
        for histogram in (self._all, self._histograms.get(wide), self._histograms.get(narrow)):
            if histogram is None or histogram.total <= 0.0:
                continue
            size = histogram.total / weight  # the effective number of answers
            own = [count / histogram.total for count in histogram.counts]
            if shares is None:
                shares = own
            else:
                trust = size / (size + PRIOR_ANSWERS)
                shares = [trust * one + (1.0 - trust) * other for one, other in zip(own, shares, strict=True)]
        return shares


class OutputForecast(LengthForecast):
    """The output length to plan for: a quantile (`PLANNED_SHARE`) of the answers that reached the
    current length.

    Its tables are computed at most every few seconds, since every sequence needs them.
    """

    def __init__(self, output_lengths: OutputLengths) -> None:
        self._output_lengths = output_lengths
        self._tables: dict[Hashable, tuple[float, list[float] | None]] = {}
        self._last_class: Hashable = None  # of the last forecast, with its table
        self._last_power = -1
        self._last_table: tuple[float, list[float] | None] | None = None

    def expected_remaining(
        self, length_class: Hashable, prompt_tokens: float, generated: int, now: float
    ) -> float | None:
        """Returns the number of further tokens to plan for; None if no answer was counted."""
        power = _prompt_power(prompt_tokens)
        known = self._last_table
        if known is None or power != self._last_power or length_class != self._last_class:
            known = self._tables.get((length_class, power))
        if known is None or not 0.0 <= now - known[0] < TABLE_SECONDS:
            if len(self._tables) > BINS:
                self._tables.clear()
            counts = self._output_lengths.shares(length_class, prompt_tokens, now)
            known = self._tables[length_class, power] = (now, None if counts is None else forecast_table(counts))
        self._last_class, self._last_power, self._last_table = length_class, power, known
        table = known[1]
        if table is None:
            return None
        return max(1.0, table[0 if generated < 1 else bin_of(generated)] - generated)


def forecast_table(counts: list[float]) -> list[float]:
    """Returns the length to plan for, by bin: the `PLANNED_SHARE` quantile of the longer answers.

    It is the next token if no answer was that long.
    """
    after, sums = 0.0, [0.0] * BINS
    for index in range(BINS - 1, -1, -1):
        after += counts[index]
        sums[index] = after
    lengths, quantile_bin = [], 0
    for index in range(BINS):
        rest = sums[index] * (1.0 - PLANNED_SHARE)
        quantile_bin = max(quantile_bin, index)
        while quantile_bin + 1 < BINS and sums[quantile_bin + 1] > rest:
            quantile_bin += 1
        lower, upper, held = LOWER_EDGES[quantile_bin], LOWER_EDGES[quantile_bin + 1], counts[quantile_bin]
        lengths.append(
            LOWER_EDGES[index] + 1.0 if rest <= 0.0 else lower + (upper - lower) * (sums[quantile_bin] - rest) / held
        )
    return lengths


def bin_of(tokens: float) -> int:
    return min(BINS - 1, max(0, math.floor(math.log(max(1.0, tokens)) / _LOG_RATIO + 1e-9)))


def conditional_quantile(counts: list[float], share: float, generated: int) -> float:
    """Returns the `share` quantile of the lengths above `generated`, interpolated within a bin.

    Returns `generated` + 1 if no answer was that long.
    """
    if share <= 0.0:
        return float(generated + 1)
    first, part = _after(counts, generated)
    wanted = share * (part + sum(counts[first + 1 :]))
    if wanted <= 0.0:
        return float(generated + 1)
    lower = max(float(generated), LOWER_EDGES[first])
    held = part
    for index in range(first, BINS):
        if index > first:
            lower, held = LOWER_EDGES[index], counts[index]
        if wanted <= held and held > 0.0:
            return lower + (LOWER_EDGES[index + 1] - lower) * wanted / held
        wanted -= held
    return LOWER_EDGES[BINS]


def _after(counts: list[float], generated: int) -> tuple[int, float]:
    """Returns the bin of `generated`, and the part of its count that is longer."""
    if generated < 1:
        return 0, counts[0]
    first = bin_of(generated)
    lower, upper = LOWER_EDGES[first], LOWER_EDGES[first + 1]
    return first, counts[first] * max(0.0, upper - max(generated, lower)) / (upper - lower)


def _class_keys(length_class: Hashable, prompt_tokens: float) -> tuple[Hashable, Hashable]:
    return (length_class, _prompt_power(prompt_tokens)), (length_class,)


def _prompt_power(prompt_tokens: float) -> int:
    """Returns the class of a prompt's size."""
    power, limit = 0, 4.0
    while prompt_tokens >= limit and power < _MAX_POWER:  # costs less than a logarithm
        power += 1
        limit *= 4.0
    return power
