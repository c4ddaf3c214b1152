"""What this gateway has sent where and not seen the end of: the load that routing works from.

Engines report their load late and slowest when it matters; the gateway knows at once what it dispatched. Work that
waits for its first token is counted in seconds of prefill, everything in flight in tokens. A request leaves when it
finishes, fails or its client goes, whatever happened in between, so the sums cannot drift.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import fsum  # the same sum in whatever order

from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.routing.shared import SharedRows


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """This gateway's own work on one instance: counts, seconds of prefill not yet answered, tokens held in flight."""

    inflight: int = 0
    waiting: int = 0
    backlog_seconds: float = 0.0
    inflight_tokens: float = 0.0


class Tally:
    """The running sums of one instance; read them, never change them."""

    __slots__ = ("backlog_seconds", "inflight", "inflight_tokens", "instance", "waiting")

    def __init__(
        self,
        instance: str,
        inflight: int = 0,
        waiting: int = 0,
        backlog_seconds: float = 0.0,
        inflight_tokens: float = 0.0,
    ) -> None:
        self.instance = instance
        self.inflight = inflight
        self.waiting = waiting
        self.backlog_seconds = backlog_seconds
        self.inflight_tokens = inflight_tokens

    def busier(self, other: "Tally") -> bool:
        """By backlog, then by tokens in flight, then by id."""
        if self.backlog_seconds != other.backlog_seconds:
            return self.backlog_seconds > other.backlog_seconds
        if self.inflight_tokens != other.inflight_tokens:
            return self.inflight_tokens > other.inflight_tokens
        return self.instance > other.instance


class Flight:
    """A request on its way: what it weighs, and whether it still waits for its first token. ``indexed`` and ``matched`` are
    the shares of its prompt that should be held there by the index (negative where it said nothing) and by all that is known."""

    __slots__ = ("indexed", "matched", "request", "seconds", "tally", "tokens", "waiting")

    def __init__(
        self,
        request: RouteRequest,
        tally: Tally,
        seconds: float,
        tokens: float,
        indexed: float = -1.0,
        matched: float = 0.0,
    ) -> None:
        self.request = request
        self.tally = tally
        self.seconds = seconds
        self.tokens = tokens
        self.indexed = indexed
        self.matched = matched
        self.waiting = True


class Ledger:
    """All requests in flight of one model, by request id. ``shared`` is where workers of one gateway show theirs to each other:
    what is asked for a decision then counts the siblings' too, and nothing is written or read there without it. ``load`` says
    what an instance's whole load is, given our own."""

    def __init__(self, shared: SharedRows | None = None, load: Callable[[Tally], Tally] | None = None) -> None:
        self._shared = shared
        self._load = load
        self._flights: dict[str, Flight] = {}
        self._sums: dict[str, Tally] = {}
        self._kept: Collection[str] = ()

    def keep(self, instances: Collection[str]) -> None:
        """The sums of these stay when nothing is in flight there; those of others go then."""
        self._kept = instances
        for item in [name for name, total in self._sums.items() if not total.inflight and name not in instances]:
            del self._sums[item]

    def tally(self, instance: str) -> Tally:
        """This gateway's own sums of an instance, kept up to date as long as the instance is kept."""
        total = self._sums.get(instance)
        if total is None:
            total = self._sums[instance] = Tally(instance)
        return total

    def dispatched(
        self,
        request: RouteRequest,
        instance: str,
        *,
        seconds: float,
        tokens: float,
        indexed: float = -1.0,
        matched: float = 0.0,
    ) -> None:
        """``seconds`` of prefill and ``tokens`` of KV now rest on ``instance``; a retry first ends the former
        dispatch."""
        name = request.id
        if name in self._flights:
            self.ended(name)
        total = self.tally(instance)
        self._flights[name] = Flight(request, total, seconds, tokens, indexed, matched)
        total.inflight += 1
        total.waiting += 1
        total.backlog_seconds += seconds
        total.inflight_tokens += tokens
        if self._shared is not None:
            self._show(total)

    def flight(self, request: str) -> Flight | None:
        """What is in flight under this id."""
        return self._flights.get(request)

    def flies(self, request: str) -> bool:
        """Whether the request has been dispatched and has not ended."""
        return request in self._flights

    def first_token(self, request: str) -> None:
        """The prefill is done; unknown ids are ignored (the client may have left)."""
        flight = self._flights.get(request)
        if flight is not None and flight.waiting:
            _answered(flight)
            if self._shared is not None:
                self._show(flight.tally)

    def ended(self, request: str) -> Flight | None:
        """The request is over; returns what it was, None when it is unknown."""
        flight = self._flights.get(request)
        if flight is None:
            return None
        del self._flights[request]
        total = flight.tally
        if flight.waiting:
            _answered(flight)
        total.inflight -= 1
        total.inflight_tokens = total.inflight_tokens - flight.tokens if total.inflight else 0.0
        if not total.inflight and total.instance not in self._kept:
            del self._sums[total.instance]
        if self._shared is not None:
            self._show(total)
        return flight

    def seen(self, own: Tally) -> Tally:
        """The live sums of one instance for a decision made at once: the siblings' too where there are any."""
        if self._shared is None:
            return own if self._load is None else self._load(own)
        return _together(own, self._shared.others(own.instance))

    def seen_all(self, own: list[Tally]) -> list[Tally]:
        """``seen`` of each."""
        return own if self._shared is None and self._load is None else [self.seen(item) for item in own]

    def busy(self) -> Sequence[str]:
        """The instances on which anything of ours is in flight."""
        return tuple([name for name, total in self._sums.items() if total.inflight])

    def show_again(self) -> None:
        """The slots of the shared rows have been given out anew."""
        for total in self._sums.values():
            if total.inflight:
                self._show(total)

    def _show(self, total: Tally) -> None:
        assert self._shared is not None
        backlog, tokens = max(0.0, total.backlog_seconds), max(0.0, total.inflight_tokens)
        self._shared.write(total.instance, total.inflight, total.waiting, backlog, tokens)

    def load(self, instance: str) -> InstanceLoad:
        """The present sums of one instance; zeros when nothing of ours is there."""
        total = self._sums.get(instance)
        if total is None:
            return InstanceLoad()
        return InstanceLoad(
            total.inflight, total.waiting, max(0.0, total.backlog_seconds), max(0.0, total.inflight_tokens)
        )


def least_busy(loads: list[Tally]) -> Tally:
    """The least busy of at least one."""
    least = loads[0]
    for load in loads:
        if least.busier(load):
            least = load
    return least


def backlog_of(loads: list[Tally]) -> float:
    """Seconds of prefill before all of them together, the same in whatever order they come."""
    one = other = 0.0
    for load in loads:
        seconds = load.backlog_seconds
        if seconds == 0.0:
            continue
        if one == 0.0:
            one = seconds
        elif other == 0.0:
            other = seconds
        else:
            return fsum([load.backlog_seconds for load in loads])
    return one + other  # of two the sum is as exact as fsum's, at a tenth of its cost


def _together(own: Tally, others: tuple[int, int, float, float] | None) -> Tally:
    if others is None:
        return own
    inflight, waiting, backlog, tokens = others
    return Tally(
        own.instance,
        own.inflight + inflight,
        own.waiting + waiting,
        own.backlog_seconds + backlog,
        own.inflight_tokens + tokens,
    )


def _answered(flight: Flight) -> None:
    """A prefill is done: its seconds are before nobody any more."""
    flight.waiting = False
    total = flight.tally
    total.waiting -= 1
    total.backlog_seconds = total.backlog_seconds - flight.seconds if total.waiting else 0.0
