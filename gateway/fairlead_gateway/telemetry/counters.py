"""The counters of one model or instance: a list of integers, a list of sums, and a one-minute
window.

The window is a ring of copies, one for each second with an event, taken before the first event of
that second. The last minute is the present state minus the first copy that is young enough. An
event adds once; only the first event of a second pays for the copy (about 1 µs).

The counters to which nearly every request adds are fields until the lists are read.

Why: compiled, an addition to a field costs a few instructions, one to a list 150.

Seconds have four buckets per doubling, so a quantile is within about 10 %; one per doubling is
exported. Bounds are the same for every metric and release, so histograms of all gateways add up.
"""

from collections import deque
from collections.abc import Sequence
from math import log
from typing import Final

from fairlead.request_shapes import RequestShapeGrid
from fairlead_gateway.telemetry.decision_log import RequestOutcome, is_client_fault

FINE_PER_DOUBLING: Final = 4
_MIN_SECONDS: Final = 0.00025
_SECONDS_DOUBLINGS: Final = 22
SECONDS_BOUNDS: Final[tuple[float, ...]] = tuple(
    _MIN_SECONDS * 2.0 ** (step / FINE_PER_DOUBLING) for step in range(_SECONDS_DOUBLINGS * FINE_PER_DOUBLING + 1)
)
"""Upper bounds from 0.25 ms to 1,049 s; one more bucket is for longer times."""

_TOKEN_BOUNDS: Final = 14
TOKEN_BOUNDS: Final[tuple[float, ...]] = tuple(float(4**power) for power in range(_TOKEN_BOUNDS))
"""Upper bounds from 1 to 67,108,864 tokens, as OpenTelemetry suggests."""

_MIN_OVERHEAD: Final = 0.00001
_OVERHEAD_BOUNDS: Final = 18
OVERHEAD_BOUNDS: Final[tuple[float, ...]] = tuple(_MIN_OVERHEAD * 2.0**step for step in range(_OVERHEAD_BOUNDS))
"""Upper bounds from 10 µs to 1.3 s, one per doubling, for the gateway's own time."""

WINDOW_SECONDS: Final = 60

# Positions in the list of integers: counters, then histograms. Compiled, they are constants.
RECEIVED: Final = 0
FINISHED: Final = 1
REJECTED: Final = 2
ERRORS: Final = 3
ABORTS: Final = 4
RETRIES: Final = 5
ROUTED: Final = 6
ON_HOME: Final = 7
PROMPT_TOKENS: Final = 8
COMPUTED_TOKENS: Final = 9
OUTPUT_TOKENS: Final = 10
CACHED_TOKENS: Final = 11
CACHE_KNOWN_PROMPT_TOKENS: Final = 12
PREDICTED_TOKENS: Final = 13
PREDICTION_KNOWN_PROMPT_TOKENS: Final = 14
PREDICTION_ERROR_TOKENS: Final = 15
JUDGED_TTFT: Final = 16
WITHIN_TTFT: Final = 17
JUDGED_ITL: Final = 18
WITHIN_ITL: Final = 19
JUDGED: Final = 20
WITHIN: Final = 21
ARRIVED_TOKENS: Final = 22
ABANDONED: Final = 23
LOCAL_PREFILLS: Final = 24
LOCAL_PREFILL_TOKENS: Final = 25
UNFINISHED: Final = 26
COUNTERS: Final = 27
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
TTFT_SUM: Final = 0
ITL_SUM: Final = 1
TPOT_SUM: Final = 2
DURATION_SUM: Final = 3
PREFILL_SUM: Final = 4
OVERHEAD_SUM: Final = 5
SUMS: Final = 6

# Positions for one instance.
I_ROUTED: Final = 0
I_FINISHED: Final = 1
I_ERRORS: Final = 2
I_RETRIED_AWAY: Final = 3
I_COMPUTED_TOKENS: Final = 4
I_OUTPUT_TOKENS: Final = 5
I_FIRST: Final = 6
I_GAPS: Final = 7
I_EJECTED: Final = 8
I_JUDGED_TTFT: Final = 9
I_WITHIN_TTFT: Final = 10
I_JUDGED_ITL: Final = 11
I_WITHIN_ITL: Final = 12
I_ANSWERS: Final = 13
I_INTS: Final = 14
I_TTFT_SUM: Final = 0
I_ITL_SUM: Final = 1
I_LOG_TOKENS_SUM: Final = 2
I_SUMS: Final = 3

# Keys of `moved`: streams, those of them with a forecast, and their rest in microseconds.
MOVED: Final = "moved"
MOVED_WITH_FORECAST: Final = "with-forecast"
MOVED_REST: Final = "rest"

REQUEST_SHAPES: Final = RequestShapeGrid()
"""The request shapes that are counted separately: a hundred of them."""

_HTTP_OK: Final = 200
_LOG_STEPS: Final = 1_048_576.0
"""Logarithms are cut to parts of a power of two, so that sums of several processes are exact."""


def seconds_bucket(seconds: float) -> int:
    """Returns the position of the first of `SECONDS_BOUNDS` that is not below a value.

    The result is that of `bisect_left`, here and in the next two functions.

    Why: compiled, a number is doubled in a few instructions. A comparison with an item of a tuple
    takes 50.
    """
    doublings, bound = 0, _MIN_SECONDS
    while bound < seconds and doublings < _SECONDS_DOUBLINGS:
        doublings += 1
        bound += bound
    first = (doublings - 1) * FINE_PER_DOUBLING + 1 if doublings else 0
    last = doublings * FINE_PER_DOUBLING
    while first <= last and SECONDS_BOUNDS[first] < seconds:
        first += 1
    return first


def token_bucket(tokens: float) -> int:
    """Returns the position of a value in `TOKEN_BOUNDS`, as `seconds_bucket`."""
    position, bound = 0, 1.0
    while bound < tokens and position < _TOKEN_BOUNDS:
        position += 1
        bound *= 4.0
    return position


def overhead_bucket(seconds: float) -> int:
    """Returns the position of a value in `OVERHEAD_BOUNDS`, as `seconds_bucket`."""
    position, bound = 0, _MIN_OVERHEAD
    while bound < seconds and position < _OVERHEAD_BOUNDS:
        position += 1
        bound += bound
    return position


def quantile(counts: Sequence[int], share: float, bounds: Sequence[float] = SECONDS_BOUNDS) -> float | None:
    """Returns the value below which `share` of the observations lie, interpolated; None without
    any.
    """
    total = sum(counts)
    if total == 0:
        return None
    wanted = share * total
    seen = 0
    for index, count in enumerate(counts):
        if count and seen + count >= wanted:
            if index >= len(bounds):
                return bounds[-1]
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * max(0.0, wanted - seen) / count
        seen += count
    return bounds[-1]


class CounterSet:
    """A list of integers and a list of sums, with their state of up to a minute ago."""

    __slots__ = ("_has_pending", "_history", "_ints", "_sums", "current_second")

    def __init__(self, ints: int, sums: int) -> None:
        self._ints: list[int] = [0] * ints
        self._sums: list[float] = [0.0] * sums
        self._has_pending = False  # something is still in fields of its own
        self.current_second = -1
        self._history: deque[tuple[int, list[int], list[float]]] = deque(maxlen=WINDOW_SECONDS + 1)

    @property
    def ints(self) -> list[int]:
        """Counters and histograms, by position."""
        if self._has_pending:
            self._flush_pending()
        return self._ints

    @property
    def sums(self) -> list[float]:
        """Sums of seconds, by position."""
        if self._has_pending:
            self._flush_pending()
        return self._sums

    def replace(self, ints: list[int], sums: list[float]) -> None:
        self._flush_pending()
        self._ints, self._sums = ints, sums

    def start_second(self, second: int) -> None:
        self._history.append((second, self.ints[:], self.sums[:]))
        self.current_second = second

    def last_minute(self, now: float) -> tuple[list[int], list[float]]:
        """Returns what was added in the last minute (60 to 61 seconds)."""
        oldest = int(now) - WINDOW_SECONDS
        for second, ints, sums in self._history:  # the properties include what is pending
            if second >= oldest:
                return (
                    [new - old for new, old in zip(self.ints, ints, strict=True)],
                    [new - old for new, old in zip(self.sums, sums, strict=True)],
                )
        return [0] * len(self._ints), [0.0] * len(self._sums)

    def _flush_pending(self) -> None:
        self._has_pending = False


class ModelCounters(CounterSet):
    """All counters of one model. Instances are in the order of first use."""

    __slots__ = (
        "_arrived_tokens",
        "_by_status",
        "_cache_known_tokens",
        "_cached_tokens",
        "_computed_tokens",
        "_duration_sum",
        "_finished",
        "_itl_sum",
        "_ok",
        "_on_home",
        "_output_tokens",
        "_overhead_sum",
        "_predicted_tokens",
        "_prediction_error_tokens",
        "_prediction_known_tokens",
        "_prompt_tokens",
        "_received",
        "_routed",
        "adapter_evictions",
        "adapter_load_failures",
        "adapter_load_microseconds",
        "adapter_loads",
        "adapter_requests",
        "by_kind",
        "by_route",
        "by_rule",
        "by_shape",
        "continued",
        "ejections_by_reason",
        "failed",
        "fallbacks",
        "handoffs",
        "held",
        "instances",
        "kept_back",
        "moved",
        "not_continued",
        "prefill_legs",
        "retries_by_reason",
        "shadow_copies",
        "shadow_sums",
    )

    def __init__(self) -> None:
        super().__init__(MODEL_INTS, SUMS)
        self._by_status: dict[int, int] = {}
        self.by_kind: dict[tuple[int, str], int] = {}
        self.by_route: dict[tuple[str, str], int] = {}
        self.by_rule: dict[str, int] = {}
        self.by_shape: dict[int, int] = {}
        self.retries_by_reason: dict[str, int] = {}
        self.ejections_by_reason: dict[str, int] = {}
        self.continued: dict[str, int] = {}
        self.not_continued: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.fallbacks: dict[tuple[str, str], int] = {}
        self.handoffs: dict[tuple[str, str], int] = {}
        self.prefill_legs: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.kept_back: dict[tuple[str, str], int] = {}
        self.moved: dict[str, int] = {}
        self.shadow_copies: dict[tuple[str, str], int] = {}
        self.shadow_sums: dict[tuple[str, str], int] = {}
        self.adapter_requests: dict[str, int] = {}
        self.adapter_loads: dict[str, int] = {}
        self.adapter_load_microseconds: dict[str, int] = {}
        self.adapter_load_failures: dict[str, int] = {}
        self.adapter_evictions: dict[str, int] = {}
        self.instances: dict[str, InstanceCounters] = {}
        self._reset_pending()

    def _reset_pending(self) -> None:
        self._received = self._arrived_tokens = self._routed = self._on_home = self._finished = self._ok = 0
        self._prompt_tokens = self._computed_tokens = self._output_tokens = self._cached_tokens = (
            self._cache_known_tokens
        ) = 0
        self._predicted_tokens = self._prediction_known_tokens = self._prediction_error_tokens = 0
        self._duration_sum = self._overhead_sum = self._itl_sum = 0.0

    def _flush_pending(self) -> None:
        self._has_pending = False
        ints, sums = self._ints, self._sums
        for position, more in (
            (RECEIVED, self._received),
            (ARRIVED_TOKENS, self._arrived_tokens),
            (ROUTED, self._routed),
            (ON_HOME, self._on_home),
            (FINISHED, self._finished),
            (PROMPT_TOKENS, self._prompt_tokens),
            (COMPUTED_TOKENS, self._computed_tokens),
            (OUTPUT_TOKENS, self._output_tokens),
            (CACHED_TOKENS, self._cached_tokens),
            (CACHE_KNOWN_PROMPT_TOKENS, self._cache_known_tokens),
            (PREDICTED_TOKENS, self._predicted_tokens),
            (PREDICTION_KNOWN_PROMPT_TOKENS, self._prediction_known_tokens),
            (PREDICTION_ERROR_TOKENS, self._prediction_error_tokens),
        ):
            ints[position] += more
        if self._ok:
            self._by_status[_HTTP_OK] = self._by_status.get(_HTTP_OK, 0) + self._ok
        sums[DURATION_SUM] += self._duration_sum
        sums[OVERHEAD_SUM] += self._overhead_sum
        sums[ITL_SUM] += self._itl_sum
        self._reset_pending()

    @property
    def by_status(self) -> dict[int, int]:
        """Requests that have ended, by status; 0 counts those outside of 100 to 599."""
        if self._has_pending:
            self._flush_pending()
        return self._by_status

    def count_received(self, prompt_tokens: int) -> None:
        """Counts a completely received request, with its estimated prompt tokens."""
        self._has_pending = True
        self._received += 1
        self._arrived_tokens += prompt_tokens

    def count_routed(self, rule: str, on_home: bool, max_rules: int) -> None:
        """Counts a chosen instance. At most `max_rules` rules are counted separately."""
        self._has_pending = True
        self._routed += 1
        if on_home:
            self._on_home += 1
        increment(self.by_rule, rule, max_rules)

    def observe_gap(self, seconds: float) -> None:
        """Counts a chunk of a stream that came `seconds` after the one before."""
        self._has_pending = True
        self._itl_sum += seconds
        ints, position = self._ints, ITL + seconds_bucket(seconds)
        ints[position] = ints[position] + 1  # not `+=`, which mypyc adds as objects

    def observe_first_token(self, seconds: float) -> None:
        """Counts a first token that came `seconds` after the request."""
        _add_one(self._ints, TTFT + seconds_bucket(seconds))
        self._sums[TTFT_SUM] += seconds

    def count_finished(self, outcome: RequestOutcome, limit: int) -> int:
        """Counts the outcome of a routed request; returns the prompt tokens that were computed."""
        self._has_pending = True
        self._finished += 1
        status = outcome.status
        if outcome.client_disconnected:
            self._ints[ABORTS] += 1
            if outcome.ttft_seconds is None:
                self._ints[ABANDONED] += 1
        elif (status >= 500 or outcome.error is not None) and not is_client_fault(outcome):
            self._ints[ERRORS] += 1
            increment(self.failed, outcome.error or f"status-{status}", limit)
        if status == _HTTP_OK:
            self._ok += 1
        else:
            self.count_status(status)
        seconds = outcome.duration_seconds
        self._duration_sum += seconds
        _add_one(self._ints, DURATION + seconds_bucket(seconds))
        tpot = outcome.itl_mean_seconds
        if tpot is not None:
            _add_one(self._ints, TPOT + seconds_bucket(tpot))
            self._sums[TPOT_SUM] += tpot
        overhead = outcome.overhead_seconds
        if overhead is not None:
            self._overhead_sum += overhead
            _add_one(self._ints, OVERHEAD + overhead_bucket(overhead))
        if outcome.within_objective is not None:
            self._count_objective(JUDGED, WITHIN, outcome.within_objective)
        if outcome.within_ttft is not None:
            self._count_objective(JUDGED_TTFT, WITHIN_TTFT, outcome.within_ttft)
        if outcome.within_itl is not None:
            self._count_objective(JUDGED_ITL, WITHIN_ITL, outcome.within_itl)
        return self._count_tokens(outcome)

    def adapter_tables(self) -> list[dict[str, int]]:
        """Returns the tables of LoRA adapters, in the order of `metric_series`."""
        return [
            self.adapter_requests,
            self.adapter_loads,
            self.adapter_load_microseconds,
            self.adapter_load_failures,
            self.adapter_evictions,
        ]

    def retain_adapters(self, names: frozenset[str]) -> None:
        """Drops the counts of adapters that the model has no longer."""
        for table in self.adapter_tables():
            for name in table.keys() - names:
                del table[name]

    def count_status(self, status: int) -> None:
        status = status if 100 <= status <= 599 else 0
        self._by_status[status] = self._by_status.get(status, 0) + 1

    def _count_tokens(self, outcome: RequestOutcome) -> int:
        """Counts the tokens of an outcome; returns the prompt tokens that were computed."""
        computed = 0
        prompt, cached, predicted = outcome.prompt_tokens, outcome.cached_tokens, outcome.predicted_cached_tokens
        if prompt is not None:
            self._prompt_tokens += prompt
            _add_one(self._ints, INPUT_SIZE + token_bucket(prompt))
            computed = max(0, prompt - (cached or 0))
            self._computed_tokens += computed
            if cached is not None:
                self._cached_tokens += cached
                self._cache_known_tokens += prompt
                if predicted is not None:
                    self._predicted_tokens += predicted
                    self._prediction_known_tokens += prompt
                    self._prediction_error_tokens += predicted - cached if predicted > cached else cached - predicted
        output = outcome.output_tokens
        if output is not None:
            self._output_tokens += output
            _add_one(self._ints, OUTPUT_SIZE + token_bucket(output))
            if (
                prompt is not None
                and outcome.status == _HTTP_OK
                and outcome.error is None
                and not outcome.client_disconnected
            ):
                shape = REQUEST_SHAPES.bucket_index(prompt, output)  # of complete responses only
                self.by_shape[shape] = self.by_shape.get(shape, 0) + 1
        return computed

    def _count_objective(self, judged: int, within: int, met: bool) -> None:
        self._ints[judged] += 1
        self._ints[within] += met


class InstanceCounters(CounterSet):
    """The counters of one instance. `last_seen` is when a scrape last found it in the fleet."""

    __slots__ = (
        "_answers",
        "_computed_tokens",
        "_finished",
        "_gaps",
        "_itl_sum",
        "_log_tokens_sum",
        "_output_tokens",
        "_routed",
        "last_seen",
    )

    def __init__(self, now: float) -> None:
        super().__init__(I_INTS, I_SUMS)
        self.last_seen = now
        self._reset_pending()

    def _reset_pending(self) -> None:
        self._routed = self._finished = self._computed_tokens = self._output_tokens = self._gaps = self._answers = 0
        self._itl_sum = self._log_tokens_sum = 0.0

    def _flush_pending(self) -> None:
        self._has_pending = False
        ints, sums = self._ints, self._sums
        ints[I_ROUTED] += self._routed
        ints[I_FINISHED] += self._finished
        ints[I_COMPUTED_TOKENS] += self._computed_tokens
        ints[I_OUTPUT_TOKENS] += self._output_tokens
        ints[I_GAPS] += self._gaps
        ints[I_ANSWERS] += self._answers
        sums[I_ITL_SUM] += self._itl_sum
        sums[I_LOG_TOKENS_SUM] += self._log_tokens_sum
        self._reset_pending()

    def count_routed(self) -> None:
        self._has_pending = True
        self._routed += 1

    def observe_gap(self, seconds: float) -> None:
        """Counts a chunk of a stream that came `seconds` after the one before."""
        self._has_pending = True
        self._gaps += 1
        self._itl_sum += seconds

    def observe_first_token(self, seconds: float, limit_seconds: float | None) -> None:
        """Counts a first token, and whether it came within its TTFT target, if there is one."""
        ints = self._ints
        _add_one(ints, I_FIRST)
        self._sums[I_TTFT_SUM] += seconds
        if limit_seconds is not None:
            _add_one(ints, I_JUDGED_TTFT)
            if seconds <= limit_seconds:
                _add_one(ints, I_WITHIN_TTFT)

    def count_finished(self, computed: int, output: int, *, is_answer: bool) -> None:
        """Counts a finished request, with prompt tokens computed and tokens generated.

        is_answer: it is complete, and has tokens.
        """
        self._has_pending = True
        self._finished += 1
        self._computed_tokens += computed
        self._output_tokens += output
        if is_answer:
            self._answers += 1
            self._log_tokens_sum += int(log(float(output)) * _LOG_STEPS) / _LOG_STEPS


def _add_one(ints: list[int], position: int) -> None:
    ints[position] = ints[position] + 1  # not `+=`, which mypyc adds as objects


def increment(table: dict[str, int], name: str, limit: int, amount: int = 1) -> None:
    """Adds to `table[name]`; to `table["other"]` if the table has `limit` names."""
    known = table.get(name)
    if known is None and len(table) >= limit:
        name = "other"
        known = table.get(name)
    table[name] = amount if known is None else known + amount


def increment_pair(table: dict[tuple[str, str], int], first: str, second: str, limit: int) -> None:
    """Adds one to a pair; its second word becomes `other` if the table is full."""
    pair = (first, second)
    if pair not in table and len(table) >= limit:
        pair = (first, "other")
    table[pair] = table.get(pair, 0) + 1
