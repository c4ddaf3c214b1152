"""The reservation of one request: its parts of the limits of its tenant."""

from fairlead.units import format_duration
from fairlead_gateway.quota.slices import LeasedLimit, Slice


class ReservedPart:
    """The part of one limit that a request has reserved."""

    __slots__ = ("leased", "slice", "taken", "unit")

    def __init__(self, leased: LeasedLimit, slice_: Slice, unit: int, taken: int) -> None:
        self.leased = leased
        self.slice = slice_
        self.unit = unit
        self.taken = taken


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


class Reservation:
    """The reservation of one request; settled once.

    waited_seconds, waited_for: how long the request waited for a slice, and of which limit.
    """

    __slots__ = ("estimate", "is_settled", "parts", "waited_for", "waited_seconds")

    def __init__(self, estimate: Amounts, parts: list[ReservedPart]) -> None:
        self.estimate = estimate
        self.parts = parts
        self.is_settled = False
        self.waited_seconds = 0.0
        self.waited_for = ""

    def describe_wait(self) -> str:
        """Returns how long the request waited for a slice, and of which limit."""
        return f"waited {format_duration(self.waited_seconds)} for a slice of the limit of {self.waited_for}"
