"""Requests that a preset keeps before engines: in which order they go, and which had better wait elsewhere.

A request that has been assigned counts at its instance at once, so that the next choice sees it. Here is what that choice knew
(what of the prompt was cached there) until its first token comes. Who lets requests go to engines tells which are still held.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fairlead_gateway.routing.holdings import Holdings, Place
from fairlead_gateway.routing.ledger import Ledger
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN
from fairlead_gateway.routing.presets import dualmap
from fairlead_gateway.routing.presets.stay import Order, Stay
from fairlead_gateway.routing.request import RouteRequest


class _Assigned:
    """A request with how it waits, and what of it is cached where it is to go, in bytes."""

    __slots__ = ("held_bytes", "request", "stay")

    def __init__(self, request: RouteRequest, stay: Stay, held_bytes: int) -> None:
        self.request = request
        self.stay = stay
        self.held_bytes = held_bytes


class HeldRequests:
    """Of one model, by request id. ``order`` is the preset's; ``moving``: it moves them too."""

    def __init__(self, ledger: Ledger, holdings: Holdings, order: Callable[[Stay], Order], *, moving: bool) -> None:
        self._ledger = ledger
        self._holdings = holdings
        self._order = order
        self._moving = moving
        self._assigned: dict[str, _Assigned] = {}

    def put(self, request: RouteRequest, held_bytes: int, stay: Stay) -> None:
        """It was assigned, or anew: it arrived when it was assigned first."""
        before = self._assigned.get(request.id)
        if before is not None:
            stay = replace(stay, arrived=before.stay.arrived)
        self._assigned[request.id] = _Assigned(request, stay, held_bytes)

    def forget(self, request_id: str) -> None:
        """It waits no more."""
        self._assigned.pop(request_id, None)

    def order(self, request_id: str) -> Order:
        """Smallest first is who goes next; who is not known here goes last."""
        one = self._assigned.get(request_id)
        return (math.inf, math.inf, request_id) if one is None else self._order(one.stay)

    def take(self, request_id: str, place: Place | None) -> RouteRequest | None:
        """It leaves ``place``, where what only it would have brought is not held then. None when it is not known."""
        one = self._assigned.get(request_id)
        if one is None:
            return None
        if place is not None:
            self._holdings.unhold(place, one.request.chain, one.held_bytes)
        return one.request

    def moves(
        self,
        held: Mapping[str, Sequence[str]],
        places: Sequence[Place],
        homes: Callable[[RouteRequest], tuple[str, ...]],
        scale: float,
        *,
        objective_seconds: float,
        now: float,
    ) -> list[tuple[str, str]]:
        """Moves (request, instance). ``held`` are request ids by instance; ``scale`` corrects estimates of tokens."""
        if not self._moving:
            return []
        known = {place.id: place for place in places}
        waiting: dict[str, list[dualmap.Held]] = {}
        pending = {}
        for index, place in enumerate(places):
            behind = places[(index + 1) % len(places)]
            seconds = self._ledger.seen(place.tally).backlog_seconds
            here = self._kept(held.get(place.id, ()), place.id)
            for _, _, own in here:
                seconds -= own
            pending[place.id] = seconds = max(0.0, seconds)
            total = seconds + sum([own for _, _, own in here])
            mended = dualmap.mended(total, [one.stay.arrived for _, one, _ in here], objective_seconds, now)
            waiting[place.id] = ones = []
            for name, one, own in here:
                at, twin = {place.id: (one.stay.hit_tokens, own)}, None
                if mended:  # who stays where he is need not know how it would be elsewhere
                    twin = next((known[home] for home in homes(one.request) if home != place.id), None)
                    for other in (twin, behind):
                        if other is not None and other is not place:
                            at[other.id] = self._there(one.request, other, scale)
                ones.append(dualmap.Held(name, one.stay.arrived, None if twin is None else twin.id, at))
        self._holdings.forget_asked()
        return dualmap.rebalance(waiting, pending, objective_seconds=objective_seconds, now=now)

    def _kept(self, names: Sequence[str], instance: str) -> list[tuple[str, _Assigned, float]]:
        """Of these the ones that are known to be there, with their seconds."""
        found = []
        for name in names:
            one, flight = self._assigned.get(name), self._ledger.flight(name)
            if one is not None and flight is not None and flight.tally.instance == instance:
                found.append((name, one, flight.seconds))
        return found

    def _there(self, request: RouteRequest, place: Place, scale: float) -> tuple[float, float]:
        """Tokens of a request that are cached at an instance, and the seconds that the rest takes there."""
        prompt = request.prompt_tokens * scale
        hit = min(prompt, self._holdings.matched(request).size(place.bit) * (scale / BYTES_PER_TOKEN))
        return hit, place.profile.prefill(prompt, hit)
