"""What this gateway has sent where and not seen the end of: the load that routing works from.

Engines report their load late and slowest when it matters; the gateway knows at once what it dispatched. Work that
waits for its first token is counted in seconds of prefill, everything in flight in tokens. A request leaves when it
finishes, fails or its client goes, whatever happened in between, so the sums cannot drift.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum  # the same sum in whatever order

from fairlead_gateway.routing.shared import SharedRows


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """This gateway's own work on one instance: counts, seconds of prefill not yet answered, tokens held in flight."""

    inflight: int = 0
    waiting: int = 0
    backlog_seconds: float = 0.0
    inflight_tokens: float = 0.0


@dataclass(slots=True)
class _Flight:
    instance: str
    seconds: float
    tokens: float
    waiting: bool = True


@dataclass(slots=True)
class Tally:
    """The running sums of one instance; read them, never change them."""

    inflight: int = 0
    waiting: int = 0
    backlog_seconds: float = 0.0
    inflight_tokens: float = 0.0


class Ledger:
    """All requests in flight of one model, by request id. ``shared`` is where workers of one gateway show theirs to each
    other: what is asked for a decision then counts the siblings' too, and nothing is written or read there without it."""

    def __init__(self, shared: SharedRows | None = None) -> None:
        self._shared = shared
        self._flights: dict[str, _Flight] = {}
        self._sums: dict[str, Tally] = {}
        self._nothing = Tally()

    def dispatched(self, request: str, instance: str, *, seconds: float, tokens: float) -> None:
        """``seconds`` of prefill and ``tokens`` of KV now rest on ``instance``; a retry first ends the former
        dispatch."""
        if request in self._flights:
            self.ended(request)
        self._flights[request] = _Flight(instance, seconds, tokens)
        total = self._sums.get(instance)
        if total is None:
            total = self._sums[instance] = Tally()
        total.inflight += 1
        total.waiting += 1
        total.backlog_seconds += seconds
        total.inflight_tokens += tokens
        if self._shared is not None:
            self._show(instance, total)

    def first_token(self, request: str) -> None:
        """The prefill is done; unknown ids are ignored (the client may have left)."""
        flight = self._flights.get(request)
        if flight is not None and flight.waiting:
            total = self._sums[flight.instance]
            _answered(flight, total)
            if self._shared is not None:
                self._show(flight.instance, total)

    def ended(self, request: str) -> str | None:
        """The request is over; returns the instance that it was on."""
        flight = self._flights.pop(request, None)
        if flight is None:
            return None
        total = self._sums[flight.instance]
        if flight.waiting:
            _answered(flight, total)
        total.inflight -= 1
        total.inflight_tokens = total.inflight_tokens - flight.tokens if total.inflight else 0.0
        if not total.inflight:
            del self._sums[flight.instance]
        if self._shared is not None:
            self._show(flight.instance, total)
        return flight.instance

    def peek(self, instance: str) -> Tally:
        """The live sums of one instance, without the cost of a copy: for a decision made at once."""
        own = self._sums.get(instance, self._nothing)
        return own if self._shared is None else _together(own, self._shared.others(instance))

    def least_busy(self, ids: Sequence[str], drawn: Sequence[str]) -> tuple[str, float]:
        """The least busy of ``drawn`` (by backlog, then tokens in flight, then id), and the backlog of all ``ids`` together."""
        if self._shared is not None:
            return self._least_busy_of_all(ids, drawn)
        sums, nothing = self._sums, self._nothing
        least, least_load = "", nothing
        for item in drawn:
            load = sums.get(item, nothing)
            if not least or (load.backlog_seconds, load.inflight_tokens, item) < (
                least_load.backlog_seconds,
                least_load.inflight_tokens,
                least,
            ):
                least, least_load = item, load
        busy = sums.keys() & ids if len(sums) < len(ids) else ids
        return least, fsum([sums[item].backlog_seconds for item in busy if item in sums])

    def _least_busy_of_all(self, ids: Sequence[str], drawn: Sequence[str]) -> tuple[str, float]:
        """The same with what the siblings have sent."""
        loads = {item: self.peek(item) for item in ids}
        least = min(drawn, key=lambda item: (loads[item].backlog_seconds, loads[item].inflight_tokens, item))
        return least, fsum([load.backlog_seconds for load in loads.values()])

    def busy(self) -> Sequence[str]:
        """The instances on which anything of ours is in flight."""
        return tuple(self._sums)

    def show_again(self) -> None:
        """The slots of the shared rows have been given out anew."""
        for instance, total in self._sums.items():
            self._show(instance, total)

    def _show(self, instance: str, total: Tally) -> None:
        assert self._shared is not None
        backlog, tokens = max(0.0, total.backlog_seconds), max(0.0, total.inflight_tokens)
        self._shared.write(instance, total.inflight, total.waiting, backlog, tokens)

    def load(self, instance: str) -> InstanceLoad:
        """The present sums of one instance; zeros when nothing of ours is there."""
        total = self._sums.get(instance)
        if total is None:
            return InstanceLoad()
        return InstanceLoad(
            total.inflight, total.waiting, max(0.0, total.backlog_seconds), max(0.0, total.inflight_tokens)
        )


def _together(own: Tally, others: tuple[int, int, float, float] | None) -> Tally:
    if others is None:
        return own
    inflight, waiting, backlog, tokens = others
    return Tally(
        own.inflight + inflight,
        own.waiting + waiting,
        own.backlog_seconds + backlog,
        own.inflight_tokens + tokens,
    )


def _answered(flight: _Flight, total: Tally) -> None:
    """A prefill is done: its seconds are before nobody any more."""
    flight.waiting = False
    total.waiting -= 1
    total.backlog_seconds = total.backlog_seconds - flight.seconds if total.waiting else 0.0
