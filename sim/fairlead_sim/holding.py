"""Requests that one gateway keeps before engines, for presets that bind late: assigned at once, sent when the engine can begin.

An engine is given the next request, the first in the preset's order, when nothing that this gateway sent there waits for its first
token any more, or less of it than a live gateway leaves (``berths``). While any are kept, the preset is asked now and then
whether some had better wait elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from fairlead.profile import EngineProfile
from fairlead_gateway.queueing.gate import ROOM_STEPS
from fairlead_gateway.routing import RouteRequest
from fairlead_sim.course import HELD
from fairlead_sim.engine import Sequence as EngineSequence

EVERY_SECONDS: Final = 0.25
"""How often a preset is asked about moves."""


class LateBinding(Protocol):
    """What a router of such a preset offers (``ModelRouter``)."""

    def order(self, request_id: str) -> tuple[float, float, str]:
        """Of requests held for one instance the smallest goes first."""
        ...

    def rebalance(self, held: Mapping[str, Sequence[str]], now: float) -> list[tuple[str, str]]:
        """Moves (request, instance); they count there from now on."""
        ...


class Holding:
    """``send`` lets a request go (request, instance, time); ``later`` calls back at a time. An engine that has less than
    ``room_seconds`` of prefill before it can begin one more. Without ``moving`` the preset is not asked about moves."""

    def __init__(
        self,
        router: LateBinding,
        send: Callable[[str, str, float], None],
        later: Callable[[float, Callable[[float], None]], None],
        *,
        room_seconds: float = 0.0,
        moving: bool = True,
    ) -> None:
        self._room_seconds = room_seconds
        self._moving = moving
        self._router = router
        self._send = send
        self._later = later
        self._held: dict[str, dict[str, float]] = {}  # seconds of their own, by instance
        self._sent: dict[str, dict[str, float]] = {}  # the same of those without a first token
        self._where: dict[str, str] = {}  # of both
        self._asking = False

    def assigned(self, request_id: str, instance: str, now: float, own_seconds: float = 0.0) -> bool:
        """Whether the request, with so many seconds of prefill, is to be sent at once; else it is kept."""
        self._where[request_id] = instance
        if self._room(instance) and not self._held.get(instance):
            self._sent.setdefault(instance, {})[request_id] = own_seconds
            return True
        self._held.setdefault(instance, {})[request_id] = own_seconds
        if self._moving and not self._asking:
            self._asking = True
            self._later(now + EVERY_SECONDS, self._rebalance)
        return False

    def begun(self, request_id: str, now: float) -> None:
        """Its first token came, or it is not there any more: the next may go."""
        instance = self._where.pop(request_id, None)
        if instance is None:
            return
        self._held.get(instance, {}).pop(request_id, None)
        self._sent.get(instance, {}).pop(request_id, None)
        self._release(instance, now)

    def left(self, live: Sequence[str]) -> list[str]:
        """Forget instances that are not among these; the requests that were kept for them."""
        gone = [name for name in self._held if name not in live]
        kept = [request for name in gone for request in self._held.pop(name)]
        for request in kept:
            del self._where[request]
        return kept

    def kept(self) -> list[str]:
        """All that is kept, in no order."""
        return [request for held in self._held.values() for request in held]

    def _release(self, instance: str, now: float) -> None:
        held = self._held.get(instance)
        while held and self._room(instance):
            first = min(held, key=self._router.order)
            self._sent.setdefault(instance, {})[first] = held.pop(first)
            self._send(first, instance, now)

    def _room(self, instance: str) -> bool:
        sent = self._sent.get(instance)
        return not sent or sum(sent.values()) < self._room_seconds

    def _rebalance(self, now: float) -> None:
        held = {name: tuple(ones) for name, ones in self._held.items() if ones}
        self._asking = bool(held)
        if not held:
            return
        for request_id, to in self._router.rebalance(held, now):
            own = self._held[self._where[request_id]].pop(request_id)
            self._held.setdefault(to, {})[request_id] = own
            self._where[request_id] = to
        for instance in list(self._held):
            self._release(instance, now)
        self._later(now + EVERY_SECONDS, self._rebalance)


class Sending:
    """A router and what it keeps before engines: how one gateway sends. ``at_once``: it keeps nothing, whatever the preset wants.
    ``moving`` as ``Holding`` has it; live gateways move nothing."""

    def __init__(
        self,
        router: Any,
        profile: EngineProfile,
        send: Callable[[str, str, float], None],
        later: Callable[[float, Callable[[float], None]], None],
        *,
        at_once: bool = False,
        moving: bool = True,
    ) -> None:
        self._router = router
        self._holding: Holding | None = None
        if not at_once and getattr(router, "holds", False):
            room = ROOM_STEPS * profile.prefill(profile.step_tokens)
            self._holding = Holding(router, send, later, room_seconds=room, moving=moving)

    def dispatched(self, asked: RouteRequest, chosen: str, now: float) -> str:
        """It counts at the engine ``chosen`` from now on, which is given back where it is to be sent there at once; else ``HELD``."""
        if self._holding is None:
            self._router.dispatched(asked, chosen, now)
            return chosen
        place = self._router.place(chosen)
        before = 0.0 if place is None else place.tally.backlog_seconds
        self._router.dispatched(asked, chosen, now)
        own = 0.0 if place is None else place.tally.backlog_seconds - before
        return chosen if self._holding.assigned(asked.id, chosen, now, own) else HELD

    def first_token(self, request: str, now: float) -> None:
        """Its prefill is before nobody any more."""
        self._router.first_token(request, now)
        if self._holding is not None:
            self._holding.begun(request, now)

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """With what an engine reports."""
        self._router.finished(
            sequence.id,
            now,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens,
            output_tokens=sequence.generated,
        )

    def over(self, request: str, now: float) -> None:
        """It is not there any more, without an answer: its load is gone at once."""
        self._router.abandoned(request, now)
        if self._holding is not None:
            self._holding.begun(request, now)

    def left(self, reached: Sequence[str], now: float) -> list[str]:
        """What was kept for engines that are not among these counts nowhere from now on, and is to be chosen for anew."""
        kept = [] if self._holding is None else self._holding.left(reached)
        for request in kept:
            self._router.abandoned(request, now)
        return kept
