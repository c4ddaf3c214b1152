"""Everything counted for one model or one instance: a flat list of integers, a list of sums, and a window of a minute.

The window is a ring of copies, one for each second in which something happened, taken before that second's first event. What
happened in the last minute is then the present state minus the first copy that is young enough: the hot path adds
once, and only the first event of a second pays for the copy (about 1 µs).
"""

from collections import OrderedDict, deque
from typing import Final

from fairlead_gateway.telemetry.histogram import OVERHEAD_BOUNDS, SECONDS_BOUNDS, TOKEN_BOUNDS

WINDOW_SECONDS: Final = 60

# Positions in the flat list: counters first, histograms behind them.
(
    RECEIVED,
    FINISHED,
    REJECTED,
    ERRORS,
    ABORTS,
    RETRIES,
    ROUTED,
    ON_HOME,
    PROMPT_TOKENS,
    COMPUTED_TOKENS,
    OUTPUT_TOKENS,
    CACHED_TOKENS,
    CACHE_KNOWN_PROMPT_TOKENS,
    PREDICTED_TOKENS,
    PREDICTION_KNOWN_PROMPT_TOKENS,
    PREDICTION_ERROR_TOKENS,
    JUDGED_TTFT,
    WITHIN_TTFT,
    JUDGED_ITL,
    WITHIN_ITL,
    JUDGED,
    WITHIN,
    COUNTERS,
) = range(23)
SECONDS_BINS: Final = len(SECONDS_BOUNDS) + 1
TOKEN_BINS: Final = len(TOKEN_BOUNDS) + 1
OVERHEAD_BINS: Final = len(OVERHEAD_BOUNDS) + 1
TTFT: Final = COUNTERS
ITL: Final = TTFT + SECONDS_BINS
TPOT: Final = ITL + SECONDS_BINS
DURATION: Final = TPOT + SECONDS_BINS
INPUT_SIZE: Final = DURATION + SECONDS_BINS
OUTPUT_SIZE: Final = INPUT_SIZE + TOKEN_BINS
PREFILL: Final = OUTPUT_SIZE + TOKEN_BINS
OVERHEAD: Final = PREFILL + SECONDS_BINS
MODEL_INTS: Final = OVERHEAD + OVERHEAD_BINS

# Positions in the list of sums (seconds).
TTFT_SUM, ITL_SUM, TPOT_SUM, DURATION_SUM, PREFILL_SUM, OVERHEAD_SUM, SUMS = range(7)

# Positions for one instance.
(
    I_ROUTED,
    I_FINISHED,
    I_ERRORS,
    I_RETRIED_AWAY,
    I_COMPUTED_TOKENS,
    I_OUTPUT_TOKENS,
    I_FIRST,
    I_GAPS,
    I_EJECTED,
    I_INTS,
) = range(10)
I_TTFT_SUM, I_ITL_SUM, I_SUMS = range(3)


class Tally:
    """A list of integers and a list of sums that remember how they were up to a minute ago."""

    __slots__ = ("_ring", "ints", "second", "sums")

    def __init__(self, ints: int, sums: int) -> None:
        self.ints = [0] * ints
        self.sums = [0.0] * sums
        self.second = -1
        self._ring: deque[tuple[int, list[int], list[float]]] = deque(maxlen=WINDOW_SECONDS + 1)

    def roll(self, second: int) -> None:
        """Keep a copy of the state before the first event of ``second``; call when ``second`` is a new one."""
        self._ring.append((second, self.ints[:], self.sums[:]))
        self.second = second

    def window(self, now: float) -> tuple[list[int], list[float]]:
        """What was added in the last minute (60 to 61 seconds)."""
        oldest = int(now) - WINDOW_SECONDS
        for second, ints, sums in self._ring:
            if second >= oldest:
                return (
                    [new - old for new, old in zip(self.ints, ints, strict=True)],
                    [new - old for new, old in zip(self.sums, sums, strict=True)],
                )
        return [0] * len(self.ints), [0.0] * len(self.sums)


class ModelSeries(Tally):
    """All counts of one model; ``instances`` in the order in which they were first used."""

    __slots__ = (
        "by_kind",
        "by_rule",
        "by_status",
        "continued",
        "ejections_by_reason",
        "failed",
        "handoffs",
        "instances",
        "prefill_legs",
        "retries_by_reason",
    )

    def __init__(self) -> None:
        super().__init__(MODEL_INTS, SUMS)
        self.by_status: dict[int, int] = {}
        self.by_kind: dict[tuple[int, str], int] = {}
        self.by_rule: dict[str, int] = {}
        self.retries_by_reason: dict[str, int] = {}
        self.ejections_by_reason: dict[str, int] = {}
        self.continued: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.handoffs: dict[tuple[str, str], int] = {}
        self.prefill_legs: dict[str, int] = {}
        self.instances: OrderedDict[str, InstanceSeries] = OrderedDict()


class InstanceSeries(Tally):
    """The counts of one instance; ``seen`` is when a scrape last found it in the fleet."""

    __slots__ = ("seen",)

    def __init__(self, now: float) -> None:
        super().__init__(I_INTS, I_SUMS)
        self.seen = now


def count(table: dict[str, int], name: str, limit: int) -> None:
    """Add one to ``table[name]``, or to ``table["other"]`` when the table already holds ``limit`` names."""
    if name not in table and len(table) >= limit:
        name = "other"
    table[name] = table.get(name, 0) + 1


def count_pair(table: dict[tuple[str, str], int], first: str, second: str, limit: int) -> None:
    """The same for a pair, of which the second word becomes ``other``."""
    pair = (first, second)
    if pair not in table and len(table) >= limit:
        pair = (first, "other")
    table[pair] = table.get(pair, 0) + 1
