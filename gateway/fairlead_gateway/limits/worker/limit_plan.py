"""Limits on the path of requests: slices, the limits of one key for one model, and reservations.

Why prepared: the modules of `Tenant`, `Model` and `TokenPrice` are not compiled. Each attribute
that is read there costs 140 instructions, and each call ten times that.

A request takes from the slice of the current window before it starts, and settles with that same
slice when it ends. What it used beyond is charged to the current window.
"""

import math
from typing import Final

from fairlead.fleet.model import MAX_REQUEST_COST, Model, TokenPrice
from fairlead.tenants.model import Limit, LimitUnit
from fairlead.units import format_duration
from fairlead_gateway.limits.exchange import CLOSED, EXHAUSTED, GRANTED, OPEN, UNAVAILABLE, report_step

DEMAND_SECONDS: Final = 1.0
"""A slice is wished for so many seconds of demand, as it was lately."""
IDLE_SECONDS: Final = 5.0
"""A slice that no request has used for so long is given back."""
REFUSED_SECONDS: Final = 0.1
"""A limit that is used up is not asked for again before."""
OPEN_SECONDS: Final = 1.0
"""Requests of a tenant that is admitted without Redis need no slice for so long."""
_DECAY_SECONDS: Final = 0.02
"""Demand decays in steps of at least so long. Why: an exponential costs as much as all the rest."""
MAX_COUNT: Final = 1 << 60
"""A counter of one holder grows no further, so that sums of them fit into messages."""
REQUESTS: Final = 0
INPUT_TOKENS: Final = 1
OUTPUT_TOKENS: Final = 2
TOKENS: Final = 3
COST: Final = 4
CONCURRENCY: Final = 5
BYTES_IN_FLIGHT: Final = 6
_MAX_COST: Final[int] = MAX_REQUEST_COST
UNITS: Final = tuple(LimitUnit)
"""A unit is its position here. Why: compiled code compares numbers faster than members."""


class Slice:
    """The counters of one holder for one limit in one window; see `exchange.Row`.

    valid_until: monotonic seconds until which requests may take from it.
    """

    __slots__ = ("busy", "granted", "returned", "spent", "start", "valid_until")

    def __init__(self, start: int) -> None:
        self.start = start
        self.granted = 0
        self.returned = 0
        self.spent = 0
        self.busy = 0
        self.valid_until = 0.0

    @property
    def free(self) -> int:
        return self.granted - self.returned - self.spent - self.busy


class LeasedLimit:
    """One limit of a tenant in one worker.

    limit: what the tenant's document says; `unit`, `amount` and `has_window` are copies of it.
    has_window: False for units that requests give back when they end.
    report_step: what may stay unreported until the next interval of reports.
    open_until: monotonic seconds until which requests need no slice.
    away_since: when the store was first missed, in monotonic seconds, while `status` says so.
    is_known: the store has said how much is left.
    available, used, ends_at: the limit over all gateways, as last known; the end of the window in
        monotonic seconds.
    unreported: what requests have used since the last report.
    """

    __slots__ = (
        "_changed",
        "_demand",
        "_demand_at",
        "amount",
        "available",
        "away_since",
        "closing",
        "current",
        "ends_at",
        "has_window",
        "is_contended",
        "is_known",
        "last_taken_at",
        "limit",
        "open_until",
        "report_step",
        "status",
        "status_at",
        "unit",
        "unreported",
        "used",
    )

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.unit: int = UNITS.index(limit.unit)
        self.amount: int = limit.amount
        self.report_step: int = report_step(limit.amount)
        self.has_window = limit.window is not None
        self.open_until = math.inf if limit.is_soft else 0.0
        self.current = Slice(0)
        self.closing: list[Slice] = []
        self.status = GRANTED
        self.status_at = 0.0
        self.away_since = 0.0
        self.is_known = False
        self.available = 0
        self.used = 0
        self.ends_at = 0.0
        self.is_contended = False
        self.last_taken_at = 0.0
        self.unreported = 0
        self._demand = 0.0
        self._demand_at = 0.0
        self._changed = False

    def replace(self, limit: Limit) -> None:
        """Takes over the terms of a limit with the same id; slices are kept."""
        if limit.is_soft != self.limit.is_soft:
            self.open_until = math.inf if limit.is_soft else 0.0
        self.limit = limit
        self.amount = limit.amount
        self.report_step = report_step(limit.amount)

    def has(self, amount: int, now: float) -> bool:
        """Returns whether a request that needs an amount can start now. 0 needs no slice."""
        slice_ = self.current
        return (
            now < self.open_until
            or (now < slice_.valid_until and slice_.granted - slice_.returned - slice_.spent - slice_.busy >= amount)
            or amount == 0
        )

    def is_used_up(self, amount: int, now: float) -> bool:
        """Returns whether the store has just said that less than an amount is left."""
        if self.status not in (EXHAUSTED, CLOSED) or now - self.status_at >= REFUSED_SECONDS or now >= self.ends_at > 0:
            return False
        return amount > max(0, self.available) + max(0, self.current.free)

    def take(self, amount: int, now: float) -> Slice:
        """Reserves an amount for a request, and returns the slice to settle with."""
        slice_ = self.current
        slice_.busy += amount
        self.last_taken_at = now
        if now - self._demand_at >= _DECAY_SECONDS:
            self._demand = self._recent_demand(now)
            self._demand_at = now
        self._demand = self._demand + amount  # not `+=`, which mypyc adds as objects
        self._changed = True
        return slice_

    def settle(self, slice_: Slice, taken: int, used: int) -> None:
        """Ends the reservation of a request. used: nothing for units that are given back."""
        slice_.busy -= taken
        self._changed = True
        if not self.has_window:
            return
        self.unreported = self.unreported + used
        if slice_ is self.current or used <= taken:
            slice_.spent += used
        else:  # the window of the request is over
            slice_.spent += taken
            self.current.spent += used - taken
        if self.current.spent > MAX_COUNT:
            self.current.spent = MAX_COUNT

    def least_and_wish(self, amount: int, now: float) -> tuple[int, int]:
        """Returns what to ask for, so that waiting requests of an amount in total can start."""
        free = self.current.free if now < self.current.valid_until else 0
        least = max(0, amount - free)
        return least, least + math.ceil(self._recent_demand(now))

    def is_low(self, now: float) -> bool:
        """Returns whether the store should be asked before requests must wait for it.

        To be called after `take`.
        """
        if now < self.open_until:
            return now >= self.ends_at
        slice_ = self.current
        left = slice_.granted - slice_.returned - slice_.spent - slice_.busy
        return 4 * left < self._demand and now - self.status_at >= REFUSED_SECONDS / 10

    def on_grant(self, start: int, granted: int, valid_until: float) -> None:
        """Applies a grant for the window that starts at `start`."""
        slice_ = self.current
        if slice_.start == 0:  # used before the store said which window it is
            slice_.start = start
        if start != slice_.start:
            if start < slice_.start:
                return
            if slice_.granted or slice_.spent or slice_.busy:
                self.closing.append(slice_)
            slice_ = self.current = Slice(start)
            self._changed = True
        slice_.granted = max(slice_.granted, granted)
        slice_.valid_until = max(slice_.valid_until, valid_until)

    def on_status(self, status: int, available: int, used: int, ends_at: float, now: float) -> None:
        """Records what the store said about the limit."""
        if status == UNAVAILABLE and (self.status != UNAVAILABLE or now - self.status_at >= IDLE_SECONDS):
            self.away_since = now
        self.status, self.status_at = status, now
        if status == OPEN:
            self.open_until = max(self.open_until, now + OPEN_SECONDS)
            return
        self.is_known = True
        self.available, self.used, self.ends_at = available, used, ends_at

    def give_back(self, now: float, *, waiting: int = 0, all_of_it: bool = False) -> None:
        """Gives back what will not be used: of ended windows, when idle, or when others wait."""
        for slice_ in self.closing:
            slice_.returned += max(0, slice_.free)
        slice_ = self.current
        spare = slice_.free - waiting
        if spare <= 0:
            return
        idle = now - self.last_taken_at
        if all_of_it or idle >= IDLE_SECONDS or (self.is_contended and idle >= DEMAND_SECONDS / 4):
            slice_.returned += spare
        elif self.is_contended:
            slice_.returned += max(0, spare - math.ceil(self._recent_demand(now) / 4))
        else:
            return
        self._changed = True

    def take_report(self, *, is_due: bool) -> list[Slice]:
        """Returns the slices to report; none if nothing has changed, unless a report is due."""
        if not self._changed and not (is_due and self.current.granted > self.current.returned):
            return []
        self._changed = False
        self.unreported = 0
        slices = [*self.closing, self.current]
        self.closing = [slice_ for slice_ in self.closing if slice_.busy > 0]
        return slices

    @property
    def has_grant(self) -> bool:
        """Whether a grant is out, a request is in flight, or a change was not reported."""
        slice_ = self.current
        is_out = slice_.busy > 0 or slice_.granted > slice_.returned + slice_.spent
        return self._changed or is_out or bool(self.closing)

    def restart(self) -> None:
        """Starts again under another holder's name; requests in flight end with the old slices."""
        self.current = Slice(0)
        self.closing = []
        self._changed = False

    def _recent_demand(self, now: float) -> float:
        elapsed = now - self._demand_at
        if elapsed >= 8.0 * DEMAND_SECONDS:
            return 0.0
        return self._demand * math.exp(-elapsed / DEMAND_SECONDS)


class LimitHeaders:
    """The `x-ratelimit` headers of one limit. The parts that seldom change are kept as text.

    They are those of OpenAI: `x-ratelimit-limit-requests`, `-remaining-requests`,
    `-reset-requests`, and the same for tokens.
    """

    __slots__ = ("_amount", "_leased", "_left", "_reset", "_seconds", "_unit")

    def __init__(self, leased: LeasedLimit, unit: str) -> None:
        self._amount = leased.amount
        self._leased = leased
        self._unit = unit
        self._left = f"x-ratelimit-limit-{unit}: {leased.amount}\r\nx-ratelimit-remaining-{unit}: "
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

    def __init__(self, limits: list[LeasedLimit], *, is_strict: bool) -> None:
        self.limits = limits
        self.is_strict = is_strict
        hard = [leased for leased in limits if not leased.limit.is_soft]
        self.counts_input = any(leased.unit in (INPUT_TOKENS, TOKENS, COST) for leased in limits)
        self.counts_output = any(leased.unit in (OUTPUT_TOKENS, TOKENS, COST) for leased in limits)
        self.request_headers = _headers(_shown(hard, (REQUESTS,)), "requests")
        tokens = _shown(hard, (TOKENS,)) or _shown(hard, (INPUT_TOKENS, OUTPUT_TOKENS))
        self.token_headers = _headers(tokens, "tokens")
        self.answers = 0
        self.expected_at = -math.inf
        self.expected_class = -1
        self.expected_tokens = 0
        self._counts_cost = any(leased.unit == COST for leased in limits)
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

    def refusal_headers(self, refused_by: LeasedLimit | None, now: float) -> str:
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


def _headers(leased: LeasedLimit | None, unit: str) -> LimitHeaders | None:
    return None if leased is None else LimitHeaders(leased, unit)


def _shown(limits: list[LeasedLimit], units: tuple[int, ...]) -> LeasedLimit | None:
    """Returns the limit with the shortest window, of those the smallest."""
    order = ("Minute", "Day", "Month")
    windowed = [leased for leased in limits if leased.unit in units and leased.limit.window is not None]
    return min(windowed, key=lambda one: (order.index(one.limit.window or "Month"), one.amount), default=None)


class Amounts:
    """The use of a request: as estimated, or as it was.

    cost: billionths of a US dollar.
    """

    __slots__ = ("body_bytes", "cost", "input_tokens", "output_tokens", "requests")

    def __init__(self, requests: int, input_tokens: int, output_tokens: int, cost: int, body_bytes: int) -> None:
        self.requests = requests
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.cost = cost
        self.body_bytes = body_bytes

    def of(self, unit: int) -> int:
        """Returns the use in one unit."""
        if unit == REQUESTS:
            return self.requests
        if unit == TOKENS:
            return self.input_tokens + self.output_tokens
        if unit == INPUT_TOKENS:
            return self.input_tokens
        if unit == OUTPUT_TOKENS:
            return self.output_tokens
        if unit == COST:
            return self.cost
        return 1 if unit == CONCURRENCY else self.body_bytes


class Reservation:
    """The reservation of one request; settled once.

    slices: those of the plan's limits, in order, from which it took `estimate`.
    waited_seconds, waited_for: how long the request waited for a slice, and of which limit.
    """

    __slots__ = ("estimate", "is_settled", "plan", "slices", "waited_for", "waited_seconds")

    def __init__(self, plan: LimitPlan, estimate: Amounts, slices: list[Slice]) -> None:
        self.plan = plan
        self.estimate = estimate
        self.slices = slices
        self.is_settled = False
        self.waited_seconds = 0.0
        self.waited_for = ""

    def settle(self, used: Amounts) -> bool:
        """Ends the reservation with what the request has used.

        Returns whether so much is not reported yet that it should be now.
        """
        self.is_settled = True
        estimate, slices = self.estimate, self.slices
        is_behind = False
        for index, leased in enumerate(self.plan.limits):
            leased.settle(slices[index], estimate.of(leased.unit), used.of(leased.unit))
            if leased.unreported >= leased.report_step:
                is_behind = True
        return is_behind

    def describe_wait(self) -> str:
        return f"waited {format_duration(self.waited_seconds)} for a slice of the limit of {self.waited_for}"


def missing_limit(plan: LimitPlan, amounts: Amounts, now: float) -> LeasedLimit | None:
    """Returns the first limit whose slice is too small for a request; None if all have room."""
    for leased in plan.limits:
        if not leased.has(amounts.of(leased.unit), now):
            return leased
    return None


def take(plan: LimitPlan, amounts: Amounts, now: float) -> Reservation:
    slices = [leased.take(amounts.of(leased.unit), now) for leased in plan.limits]
    return Reservation(plan, amounts, slices)
