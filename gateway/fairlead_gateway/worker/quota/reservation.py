"""The reservation of one request: its parts of the limits of its tenant."""

from fairlead.units import format_duration
from fairlead_gateway.quota.slices import Slice
from fairlead_gateway.worker.quota.limit_plan import (
    CONCURRENCY,
    COST,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    REQUESTS,
    TOKENS,
    LimitPlan,
    PlannedLimit,
)


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
        for index, planned in enumerate(self.plan.limits):
            leased = planned.leased
            leased.settle(slices[index], estimate.of(planned.unit), used.of(planned.unit))
            if leased.unreported >= planned.report_step:
                is_behind = True
        return is_behind

    def describe_wait(self) -> str:
        """Returns how long the request waited for a slice, and of which limit."""
        return f"waited {format_duration(self.waited_seconds)} for a slice of the limit of {self.waited_for}"


def missing_limit(plan: LimitPlan, amounts: Amounts, now: float) -> PlannedLimit | None:
    """Returns the first limit whose slice is too small for a request; None if all have room."""
    for planned in plan.limits:
        if not planned.leased.has(amounts.of(planned.unit), now):
            return planned
    return None


def take(plan: LimitPlan, amounts: Amounts, now: float) -> Reservation:
    """Reserves what a request needs of each limit; all of them have room."""
    slices = [planned.leased.take(amounts.of(planned.unit), now) for planned in plan.limits]
    return Reservation(plan, amounts, slices)
