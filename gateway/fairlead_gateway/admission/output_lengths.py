"""How long answers get: distributions, never points.

Equal prompts give answers whose lengths differ by a factor (CASTILLO measured it over thirteen models), so what is asked here is a
quantile: of the whole length, or of what is still to come where ``generated`` tokens are out already. Counted are tokens, in bins
that grow by a fixed ratio, per model, class of request (whatever the caller tells apart: a tenant, a route) and size of the prompt.

Counts fade with a half-life of an hour. That is too slow for a new release of an application, so the last ``RECENT`` answers are kept
apart as well: where they contradict the picture (the largest distance of the cumulated shares is over what chance gives), they
become the picture, and the hour begins anew.

A class with few answers is completed by the next wider one: class and size of prompt, class, everything. Each level counts as
``SHY`` answers of the level below, in its shares.

Source: CASTILLO (arXiv 2505.16881) for the finding; histogram, fading, back-off and the test for change (Kolmogorov and Smirnov's)
are ours.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final

BIN_RATIO: Final = 2.0 ** (1 / 8)
BINS: Final = 140
"""Up to 2^17.5, some 185,000 tokens; longer ones count as that long."""
HALF_LIFE_SECONDS: Final = 3_600.0
PRIOR_ANSWERS: Final = 20.0
RECENT_ANSWERS: Final = 128
CHANGE_THRESHOLD: Final = 2.2
"""Bound on the distance times the root of the number of answers: passed by chance once in 8,000."""
TABLE_SECONDS: Final = 2.0
PLANNED_SHARE: Final = 0.6
"""A little over the median: the tail is heavy, and the sum of medians below the median of the sum."""
_CHECK_INTERVAL: Final = 32
_MAX_WEIGHT: Final = 1e9
_LOG_RATIO: Final = math.log(BIN_RATIO)


class LengthHistogram:
    """Answers of one class, counted by length. Later ones weigh more instead of earlier ones fading: one addition for an answer."""

    __slots__ = ("_answers", "_recent", "_since", "counts", "total")

    def __init__(self) -> None:
        self._since: float | None = None
        self._recent: deque[int] = deque(maxlen=RECENT_ANSWERS)
        self._answers = 0
        self.counts = [0.0] * BINS
        self.total = 0.0

    def add(self, bin_: int, now: float) -> None:
        """One more answer."""
        weight = self._weight(now)
        self.counts[bin_] += weight
        self.total += weight
        self._recent.append(bin_)
        self._answers += 1
        if self._answers % _CHECK_INTERVAL == 0 and len(self._recent) == RECENT_ANSWERS and self._has_changed():
            self.counts = [0.0] * BINS
            for bin_index in self._recent:
                self.counts[bin_index] += weight
            self.total = RECENT_ANSWERS * weight

    def size(self, now: float) -> float:
        """How many answers still count."""
        return self.total / self._weight(now)

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

    def _weight(self, now: float) -> float:
        if self._since is None:
            self._since = now
        weight = math.exp2((now - self._since) / HALF_LIFE_SECONDS)
        if weight > _MAX_WEIGHT:  # begin the scale anew before numbers get large
            self.counts = [count / weight for count in self.counts]
            self.total /= weight
            self._since, weight = now, 1.0
        return max(weight, 1.0 / _MAX_WEIGHT)


class OutputLengths:
    """Of one model. ``most`` classes are kept, those longest unused go first."""

    def __init__(self, *, max_classes: int) -> None:
        self._max_classes = max(1, max_classes)
        self._histograms: OrderedDict[Hashable, LengthHistogram] = OrderedDict()
        self._all = LengthHistogram()

    def learn(self, length_class: Hashable, prompt_tokens: float, output_tokens: int, now: float) -> None:
        """An answer of ``output_tokens`` is complete. Those that were cut off by their client are not to be told."""
        if output_tokens < 1:
            return
        bin_ = bin_of(output_tokens)
        self._all.add(bin_, now)
        for key in _class_keys(length_class, prompt_tokens):
            histogram = self._histograms.get(key)
            if histogram is None:
                histogram = self._histograms[key] = LengthHistogram()
                if len(self._histograms) > self._max_classes:
                    self._histograms.popitem(last=False)
            else:
                self._histograms.move_to_end(key)
            histogram.add(bin_, now)

    def quantile(
        self, share: float, length_class: Hashable, prompt_tokens: float, now: float, *, generated: int = 0
    ) -> float | None:
        """The length (tokens, all of the answer) that ``share`` of the answers that reach more than ``generated`` stay within. None
        where nothing was seen yet."""
        counts = self.shares(length_class, prompt_tokens, now)
        if counts is None:
            return None
        return conditional_quantile(counts, share, generated)

    def mean(self, length_class: Hashable, prompt_tokens: float, now: float, *, generated: int = 0) -> float | None:
        """The mean length of the answers that reach more than ``generated``; None where nothing was seen yet."""
        counts = self.shares(length_class, prompt_tokens, now)
        if counts is None:
            return None
        first, part = _after(counts, generated)
        total = part + sum(counts[first + 1 :])
        if total <= 0.0:
            return float(generated + 1)
        lower = max(float(generated), lower_edge(first))
        weighted = part * (lower + lower_edge(first + 1)) / 2
        weighted += sum(
            count * (lower_edge(index) + lower_edge(index + 1)) / 2
            for index, count in enumerate(counts[first + 1 :], first + 1)
        )
        return weighted / total

    @property
    def classes(self) -> int:
        """How many are kept."""
        return len(self._histograms)

    def weight(self, length_class: Hashable, prompt_tokens: float, now: float) -> float:
        """How many answers of that class still count."""
        found = self._histograms.get(_class_keys(length_class, prompt_tokens)[0])
        return 0.0 if found is None else found.size(now)

    def shares(self, length_class: Hashable, prompt_tokens: float, now: float) -> list[float] | None:
        """Shares by bin; what few answers leave open is filled in from wider classes."""
        shares: list[float] | None = None
        narrow, wide = _class_keys(length_class, prompt_tokens)
        for histogram in (self._all, self._histograms.get(wide), self._histograms.get(narrow)):
            if histogram is None or histogram.total <= 0.0:
                continue
            size = histogram.size(now)
            own = [count / histogram.total for count in histogram.counts]
            if shares is None:
                shares = own
            else:
                trust = size / (size + PRIOR_ANSWERS)
                shares = [trust * one + (1.0 - trust) * other for one, other in zip(own, shares, strict=True)]
        return shares


class OutputForecast:
    """What to plan for answers that got as far: the length that ``PLANNED`` of them stay within. Tables are made anew every few
    seconds at most: they are asked for once for each sequence of an engine."""

    def __init__(self, output_lengths: OutputLengths) -> None:
        self._output_lengths = output_lengths
        self._tables: dict[Hashable, tuple[float, list[float] | None]] = {}

    def expected_remaining(
        self, length_class: Hashable, prompt_tokens: float, generated: int, now: float
    ) -> float | None:
        """Tokens; None where nothing was seen yet."""
        key = _class_keys(length_class, prompt_tokens)[0]
        known = self._tables.get(key)
        if known is None or not 0.0 <= now - known[0] < TABLE_SECONDS:
            if len(self._tables) > BINS:
                self._tables.clear()
            counts = self._output_lengths.shares(length_class, prompt_tokens, now)
            known = self._tables[key] = (now, None if counts is None else forecast_table(counts))
        table = known[1]
        if table is None:
            return None
        return max(1.0, table[0 if generated < 1 else bin_of(generated)] - generated)


def forecast_table(counts: list[float]) -> list[float]:
    """By bin, the length that ``PLANNED`` of the answers beyond the bin's beginning stay within; the next token where none was."""
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
        lower, upper, held = lower_edge(quantile_bin), lower_edge(quantile_bin + 1), counts[quantile_bin]
        lengths.append(
            lower_edge(index) + 1.0 if rest <= 0.0 else lower + (upper - lower) * (sums[quantile_bin] - rest) / held
        )
    return lengths


def bin_of(tokens: float) -> int:
    """The bin of a length; bin 0 holds one token."""
    return min(BINS - 1, max(0, math.floor(math.log(max(1.0, tokens)) / _LOG_RATIO + 1e-9)))


def lower_edge(index: int) -> float:
    """The shortest length of a bin."""
    return math.exp(index * _LOG_RATIO)


def conditional_quantile(counts: list[float], share: float, generated: int) -> float:
    """The length that ``share`` of those longer than ``generated`` stay within; even within a bin. ``generated`` + 1 where no
    answer was ever so long."""
    if share <= 0.0:
        return float(generated + 1)
    first, part = _after(counts, generated)
    wanted = share * (part + sum(counts[first + 1 :]))
    if wanted <= 0.0:
        return float(generated + 1)
    lower = max(float(generated), lower_edge(first))
    held = part
    for index in range(first, BINS):
        if index > first:
            lower, held = lower_edge(index), counts[index]
        if wanted <= held and held > 0.0:
            return lower + (lower_edge(index + 1) - lower) * wanted / held
        wanted -= held
    return lower_edge(BINS)


def _after(counts: list[float], generated: int) -> tuple[int, float]:
    """The bin that ``generated`` lies in, and what of it is longer."""
    if generated < 1:
        return 0, counts[0]
    first = bin_of(generated)
    lower, upper = lower_edge(first), lower_edge(first + 1)
    return first, counts[first] * max(0.0, upper - max(generated, lower)) / (upper - lower)


def _class_keys(length_class: Hashable, prompt_tokens: float) -> tuple[Hashable, Hashable]:
    """The narrow class and the wide one: prompts are told apart by powers of four."""
    return (length_class, int(math.log(max(1.0, prompt_tokens), 4))), (length_class,)
