"""What this gateway has sent where and not seen the end of: the load that routing works from.

Engines report their load late and slowest when it matters; the gateway knows at once what it dispatched. Work that
waits for its first token is counted in seconds of prefill, everything in flight in tokens. A request leaves when it
finishes, fails or its client goes, whatever happened in between, so the sums cannot drift.
"""

from dataclasses import dataclass


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
    """All requests in flight of one model, by request id."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}
        self._sums: dict[str, Tally] = {}
        self._nothing = Tally()

    def dispatched(self, request: str, instance: str, *, seconds: float, tokens: float) -> None:
        """``seconds`` of prefill and ``tokens`` of KV now rest on ``instance``; a retry first ends the former
        dispatch."""
        self.ended(request)
        self._flights[request] = _Flight(instance, seconds, tokens)
        total = self._sums.setdefault(instance, Tally())
        total.inflight += 1
        total.waiting += 1
        total.backlog_seconds += seconds
        total.inflight_tokens += tokens

    def first_token(self, request: str) -> None:
        """The prefill is done; unknown ids are ignored (the client may have left)."""
        flight = self._flights.get(request)
        if flight is not None and flight.waiting:
            flight.waiting = False
            total = self._sums[flight.instance]
            total.waiting -= 1
            total.backlog_seconds = total.backlog_seconds - flight.seconds if total.waiting else 0.0

    def ended(self, request: str) -> str | None:
        """The request is over; returns the instance that it was on."""
        self.first_token(request)
        flight = self._flights.pop(request, None)
        if flight is None:
            return None
        total = self._sums[flight.instance]
        total.inflight -= 1
        total.inflight_tokens = total.inflight_tokens - flight.tokens if total.inflight else 0.0
        if not total.inflight:
            del self._sums[flight.instance]
        return flight.instance

    def peek(self, instance: str) -> Tally:
        """The live sums of one instance, without the cost of a copy: for a decision made at once."""
        return self._sums.get(instance, self._nothing)

    def load(self, instance: str) -> InstanceLoad:
        """The present sums of one instance; zeros when nothing of ours is there."""
        total = self._sums.get(instance)
        if total is None:
            return InstanceLoad()
        return InstanceLoad(
            total.inflight, total.waiting, max(0.0, total.backlog_seconds), max(0.0, total.inflight_tokens)
        )
