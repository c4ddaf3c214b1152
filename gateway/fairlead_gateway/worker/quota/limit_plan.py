"""The limits that apply to requests with one key for one model, prepared for the path of requests.

Why prepared: the modules of `Tenant`, `Model` and `TokenPrice` are not compiled. Each attribute
that is read there costs 140 instructions, and each call ten times that.
"""

import math
from typing import Final

from fairlead.fleet.model import MAX_REQUEST_COST, Model, TokenPrice
from fairlead.tenants.model import Limit, LimitUnit
from fairlead_gateway.quota.slices import LeasedLimit, report_step

REQUESTS: Final = 0
INPUT_TOKENS: Final = 1
OUTPUT_TOKENS: Final = 2
TOKENS: Final = 3
COST: Final = 4
CONCURRENCY: Final = 5
BYTES_IN_FLIGHT: Final = 6
_MAX_COST: Final[int] = MAX_REQUEST_COST
UNITS: Final = (
    LimitUnit.REQUESTS,
    LimitUnit.INPUT_TOKENS,
    LimitUnit.OUTPUT_TOKENS,
    LimitUnit.TOKENS,
    LimitUnit.COST,
    LimitUnit.CONCURRENCY,
    LimitUnit.BYTES_IN_FLIGHT,
)


class PlannedLimit:
    """A limit that applies to a request, with its slices.

    report_step: what may stay unreported until the next interval of reports.
    """

    __slots__ = ("amount", "leased", "limit", "report_step", "unit")

    def __init__(self, limit: Limit, leased: LeasedLimit) -> None:
        self.limit = limit
        self.leased = leased
        self.unit: int = UNITS.index(limit.unit)
        self.amount: int = limit.amount
        self.report_step: int = report_step(limit.amount)


class LimitHeaders:
    """The `x-ratelimit` headers of one limit. The parts that seldom change are kept as text.

    They are those of OpenAI: `x-ratelimit-limit-requests`, `-remaining-requests`,
    `-reset-requests`, and the same for tokens.
    """

    __slots__ = ("_amount", "_leased", "_left", "_reset", "_seconds", "_unit")

    def __init__(self, planned: PlannedLimit, unit: str) -> None:
        self._amount = planned.amount
        self._leased = planned.leased
        self._unit = unit
        self._left = f"x-ratelimit-limit-{unit}: {planned.amount}\r\nx-ratelimit-remaining-{unit}: "
        self._seconds = -1
        self._reset = ""

    def lines(self, now: float) -> str:
        """Returns the headers as lines."""
        leased, left = self._leased, self._amount
        if leased.is_known and now < leased.ends_at:
            left = max(0, min(left, leased.available + leased.current.free))
        rest = leased.ends_at - now
        seconds = 0
        if rest > 0.0:
            seconds = int(rest)
            if seconds < rest:
                seconds += 1
        if seconds != self._seconds:
            self._seconds = seconds
            self._reset = f"\r\nx-ratelimit-reset-{self._unit}: {duration(seconds)}\r\n"
        return self._left + str(left) + self._reset


class LimitPlan:
    """The limits that apply to requests with one key for one model.

    is_strict: each request reserves the most that it can use.
    counts_input, counts_output: one of them counts tokens of the prompt, or of the answer.
    request_headers, token_headers: of the limits that clients are shown; None without.
    answers: complete answers, of which the gate learns the length of some.
    expected_at, expected_class, expected_tokens: the last estimate of an answer's length, and when
        and for which class of prompts it was made.
    """

    __slots__ = (
        "_cached_price",
        "_counts_cost",
        "_input_price",
        "_model",
        "_output_price",
        "answers",
        "counts_input",
        "counts_output",
        "expected_at",
        "expected_class",
        "expected_tokens",
        "is_strict",
        "limits",
        "request_headers",
        "token_headers",
    )

    def __init__(self, limits: list[PlannedLimit], *, is_strict: bool) -> None:
        self.limits = limits
        self.is_strict = is_strict
        hard = [planned for planned in limits if not planned.limit.is_soft]
        self.counts_input = any(planned.unit in (INPUT_TOKENS, TOKENS, COST) for planned in limits)
        self.counts_output = any(planned.unit in (OUTPUT_TOKENS, TOKENS, COST) for planned in limits)
        self.request_headers = _headers(_shown(hard, (REQUESTS,)), "requests")
        tokens = _shown(hard, (TOKENS,)) or _shown(hard, (INPUT_TOKENS, OUTPUT_TOKENS))
        self.token_headers = _headers(tokens, "tokens")
        self.answers = 0
        self.expected_at = -math.inf
        self.expected_class = -1
        self.expected_tokens = 0
        self._counts_cost = any(planned.unit == COST for planned in limits)
        self._model: Model | None = None
        self._input_price = self._cached_price = self._output_price = 0

    def cost(self, model: Model, prompt: int, cached: int, output: int) -> int:
        """Returns the cost of a request in billionths of a US dollar; 0 if no limit counts it.

        cached: tokens of the prompt.
        """
        if not self._counts_cost:
            return 0
        if model is not self._model:
            price: TokenPrice | None = model.price
            self._model = model
            self._input_price = 0 if price is None else price.input
            self._cached_price = 0 if price is None else price.cached_input
            self._output_price = 0 if price is None else price.output
        cost = (prompt - cached) * self._input_price + cached * self._cached_price + output * self._output_price
        return _MAX_COST if cost > _MAX_COST else cost

    def headers(self, now: float) -> str:
        """Returns the `x-ratelimit` headers as lines; empty without a limit of requests or
        tokens.
        """
        return _header_lines(self.request_headers, self.token_headers, now)

    def refusal_headers(self, refused_by: PlannedLimit | None, now: float) -> str:
        """Returns the same for a refused request: with the limit that refused it."""
        requests, tokens = self.request_headers, self.token_headers
        if refused_by is not None and refused_by.limit.window is not None:
            if refused_by.unit == REQUESTS:
                requests = LimitHeaders(refused_by, "requests")
            elif refused_by.unit in (TOKENS, INPUT_TOKENS, OUTPUT_TOKENS):
                tokens = LimitHeaders(refused_by, "tokens")
        return _header_lines(requests, tokens, now)


def duration(seconds: int) -> str:
    """Returns seconds as `1h2m3s`."""
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s"


def _header_lines(requests: LimitHeaders | None, tokens: LimitHeaders | None, now: float) -> str:
    if requests is None:
        return "" if tokens is None else tokens.lines(now)
    return requests.lines(now) if tokens is None else requests.lines(now) + tokens.lines(now)


def _headers(planned: PlannedLimit | None, unit: str) -> LimitHeaders | None:
    return None if planned is None else LimitHeaders(planned, unit)


def _shown(limits: list[PlannedLimit], units: tuple[int, ...]) -> PlannedLimit | None:
    """Returns the limit with the shortest window, of those the smallest."""
    order = ("Minute", "Day", "Month")
    windowed = [planned for planned in limits if planned.unit in units and planned.limit.window is not None]
    return min(windowed, key=lambda one: (order.index(one.limit.window or "Month"), one.amount), default=None)
