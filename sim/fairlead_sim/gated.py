"""A front whose requests pass the gateway's gate: held, ordered and let go as a gateway does, in simulated time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fairlead.fleet import Model
from fairlead.profile import EngineProfile
from fairlead_gateway.queueing.gate import LOOK_SECONDS, Asked, Engine, Gate, Kind
from fairlead_gateway.queueing.order import Waiting
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_sim.course import HELD
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.fleet import OneRouter
from fairlead_sim.traces import TraceRequest

_USUAL_OBJECTIVE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What a tenant's requests may expect."""

    tier: int = 0
    weight: float = 1.0
    sheddable: bool = False


_USUAL: Final = Standing()


class Gated(OneRouter):
    """``objective`` of a request in seconds (None: the model's), ``tenants`` by name, ``most_tokens`` what clients allow an answer
    (None: just what it has). ``held`` counts those that did not go at once."""

    def __init__(
        self,
        router: ModelRouter,
        chain: Callable[[TraceRequest], PrefixChain],
        model: Model,
        profile: EngineProfile,
        gate: Gate,
        *,
        objective: Callable[[TraceRequest], float] | None = None,
        tenants: Mapping[str, Standing] | None = None,
        most_tokens: int | None = None,
    ) -> None:
        super().__init__(router, chain, {}, model, profile, at_once=True)
        self._gate = gate
        self._objective = objective
        self._tenants = tenants or {}
        self._most_tokens = most_tokens
        self._flying: dict[str, Asked] = {}
        self._looking = self._ticking = False
        self.held = 0

    def arrive(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """At once, later, or not at all."""
        asked = self._asked(request)
        verdict = self._gate.arrived(asked, self._engines(now), now)
        if verdict.kind is Kind.PASS:
            return self._decide(asked, verdict.full, now)
        if verdict.kind is Kind.REFUSE:
            return None, verdict.rule
        self.held += 1
        self._flying[request.id] = asked
        self._look(now)
        return HELD, ""

    def first_token(self, request: str, now: float) -> None:
        """Its engine may have room now."""
        super().first_token(request, now)
        self._gate.memory.first_token(request, now)
        self._look(now)

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """Its memory is free."""
        super().finished(sequence, now)
        asked = self._flying.pop(sequence.id)
        self._gate.finished(sequence.id, asked.kind, sequence.prompt_tokens, sequence.generated, now)
        self._look(now)

    def lost(self, request: str, now: float) -> None:
        """What is held stays held; what was sent is not there any more."""
        super().lost(request, now)
        self._gate.left(request)
        self._gate.memory.ended(request)
        self._flying.pop(request, None)
        self._look(now)

    def _asked(self, request: TraceRequest) -> Asked:
        most = request.output_tokens if self._most_tokens is None else self._most_tokens
        asked = RouteRequest(request.id, self._chain(request), request.prompt_tokens, most, request.session)
        prompt, new = self._router.prompt_tokens(asked), self._router.uncached(asked)
        limit = self._model.objectives.ttft_limit(prompt) if self._objective is None else self._objective(request)
        standing = self._tenants.get(request.tenant or "", _USUAL)
        waiting = Waiting(
            request.id,
            request.arrival,
            _USUAL_OBJECTIVE_SECONDS if limit is None else limit,
            self._profile.prefill(prompt, prompt - new),
            standing.tier,
            request.tenant if self._tenants else None,
            standing.weight,
        )
        return Asked(waiting, asked, prompt, sheddable=standing.sheddable)

    def _engines(self, now: float) -> list[Engine]:
        step = self._profile.prefill(self._profile.step_tokens)
        return [
            self._gate.engine(place.id, tally.backlog_seconds, step, place.kv_tokens, 0.0, now)
            for place, tally in self._router.standing()
        ]

    def _decide(self, asked: Asked, full: frozenset[str], now: float) -> tuple[str | None, str]:
        request = asked.request
        decision = self._router.decide(request, now, excluded=full)
        if decision.chosen is None:
            return None, decision.reason
        self.on_home += bool(decision.home)
        self._router.dispatched(request, decision.chosen, now)
        self._gate.memory.sent(request, decision.chosen, asked.prompt_tokens, asked.kind, now)
        self._flying[request.id] = asked
        return decision.chosen, ""

    def _look(self, now: float) -> None:
        """Once for all that happens at this moment."""
        if len(self._gate) and not self._looking and self._course is not None:
            self._looking = True
            self._course.later(now, self._release)

    def _tick(self, now: float) -> None:
        self._ticking = False
        self._look(now)

    def _release(self, now: float) -> None:
        self._looking = False
        course = self._course
        if course is None:
            return
        for name, verdict in self._gate.expired(len(self._router.standing()), now):
            del self._flying[name]
            course.refuse(name, verdict.rule, now)
        while (going := self._gate.release(self._engines(now), now)) is not None:
            chosen, _ = self._decide(self._flying[going.id], going.full, now)
            if chosen is not None:
                course.send(going.id, chosen, now)
        if len(self._gate) and not self._ticking:
            self._ticking = True
            course.later(now + LOOK_SECONDS, self._tick)
