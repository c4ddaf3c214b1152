"""A simulated gateway with admission: requests are queued, ordered and released as in
production.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Model
from fairlead_gateway.admission.admission_policy import (
    POLL_SECONDS,
    AdmissionAction,
    AdmissionPolicy,
    AdmissionRequest,
)
from fairlead_gateway.admission.kv_capacity import EngineLoad
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.simulation import QUEUED
from fairlead_sim.gateways.single_gateway import SingleGateway
from fairlead_sim.workload.traces import TraceRequest

_DEFAULT_TTFT_SLO_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class TenantClass:
    """The admission class of a tenant."""

    tier: int = 0
    weight: float = 1.0
    sheddable: bool = False


_DEFAULT_CLASS: Final = TenantClass()


@dataclass(frozen=True, slots=True)
class RequestClasses:
    """The properties by which admission distinguishes requests.

    - objective: returns the TTFT target of a request in seconds; None: the model's.
    - tenants: admission classes by tenant.
    - max_tokens: output bound that clients set; None: the output that the request has.
    """

    objective: Callable[[TraceRequest], float] | None = None
    tenants: Mapping[str, TenantClass] = field(default_factory=dict)
    max_tokens: int | None = None


_ALIKE: Final = RequestClasses()


class AdmissionControlledGateway(SingleGateway):
    """A single gateway whose requests pass the gateway's admission.

    - queued: number of requests so far that did not start at once.
    """

    def __init__(
        self,
        router: ModelRouter,
        chain: Callable[[TraceRequest], PrefixChain],
        model: Model,
        profile: EngineProfile,
        gate: AdmissionPolicy,
        classes: RequestClasses = _ALIKE,
    ) -> None:
        super().__init__(router, chain, {}, model, profile, never_queues=True)
        self._gate = gate
        self._objective = classes.objective
        self._tenants = classes.tenants
        self._max_tokens = classes.max_tokens
        self._open_requests: dict[str, AdmissionRequest] = {}
        self._release_scheduled = self._tick_scheduled = False
        self.queued = 0

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Sends, queues or refuses the request."""
        gate_request = self._gate_request(request)
        verdict = self._gate.admit(gate_request, self._engines(now), now)
        if verdict.action is AdmissionAction.ADMIT:
            return self._decide(gate_request, verdict.full_instances, now)
        if verdict.action is AdmissionAction.REFUSE:
            return None, verdict.rule
        for name, refused in verdict.displaced:
            del self._open_requests[name]
            if self._simulation is not None:
                self._simulation.refuse(name, refused.rule, now)
        self.queued += 1
        self._open_requests[request.id] = gate_request
        self._schedule_release(now)
        return QUEUED, ""

    def on_first_token(self, request: str, now: float) -> None:
        super().on_first_token(request, now)
        self._gate.kv_capacity.on_first_token(request, now)
        self._schedule_release(now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        super().on_finished(sequence, now)
        gate_request = self._open_requests.pop(sequence.id)
        self._gate.on_finish(sequence.id, gate_request.length_class, sequence.prompt_tokens, sequence.generated, now)
        self._schedule_release(now)

    def on_lost(self, request: str, now: float) -> None:
        """Drops the request from the load and from the queue."""
        super().on_lost(request, now)
        self._gate.remove(request)
        self._gate.kv_capacity.on_finish(request)
        self._open_requests.pop(request, None)
        self._schedule_release(now)

    def _gate_request(self, request: TraceRequest) -> AdmissionRequest:
        max_tokens = request.output_tokens if self._max_tokens is None else self._max_tokens
        route_request = RouteRequest(
            request.id, self._chain(request), request.prompt_tokens, max_tokens, request.session
        )
        prompt, new = self._router.prompt_tokens(route_request), self._router.uncached_tokens(route_request)
        limit = (
            self._model.objectives.ttft_limit_seconds(prompt) if self._objective is None else self._objective(request)
        )
        tenant_class = self._tenants.get(request.tenant or "", _DEFAULT_CLASS)
        gate_request = AdmissionRequest(
            route_request,
            request.arrival,
            _DEFAULT_TTFT_SLO_SECONDS if limit is None else limit,
            self._profile.prefill_time(prompt, prompt - new),
            prompt,
            request.tenant if self._tenants else None,
        )
        gate_request.tier, gate_request.weight = tenant_class.tier, tenant_class.weight
        gate_request.sheddable = tenant_class.sheddable
        return gate_request

    def _engines(self, now: float) -> list[EngineLoad]:
        step = self._profile.prefill_time(self._profile.step_tokens)
        return [
            self._gate.engine_load(endpoint.id, tally.backlog_seconds, step, endpoint.kv_tokens, 0.0, now)
            for endpoint, tally in self._router.endpoint_loads()
        ]

    def _decide(self, gate_request: AdmissionRequest, full: frozenset[str], now: float) -> tuple[str | None, str]:
        request = gate_request.request
        decision = self._router.choose_instance(request, now, excluded=full)
        if decision.chosen is None:
            return None, decision.reason
        self.routed_to_home += bool(decision.home)
        self._router.on_dispatch(request, decision.chosen, now)
        self._gate.kv_capacity.on_dispatch(
            request, decision.chosen, gate_request.prompt_tokens, gate_request.length_class, now
        )
        self._open_requests[request.id] = gate_request
        return decision.chosen, ""

    def _schedule_release(self, now: float) -> None:
        """Schedules one release for all events of this moment."""
        if len(self._gate) and not self._release_scheduled and self._simulation is not None:
            self._release_scheduled = True
            self._simulation.schedule(now, self._release)

    def _tick(self, now: float) -> None:
        self._tick_scheduled = False
        self._schedule_release(now)

    def _release(self, now: float) -> None:
        self._release_scheduled = False
        simulation = self._simulation
        if simulation is None:
            return
        for name, verdict in self._gate.take_expired(len(self._router.endpoint_loads()), now):
            del self._open_requests[name]
            simulation.refuse(name, verdict.rule, now)
        while (released := self._gate.release_next(self._engines(now), now)) is not None:
            chosen, _ = self._decide(self._open_requests[released.id], released.full_instances, now)
            if chosen is not None:
                simulation.send_queued_request(released.id, chosen, now)
        if len(self._gate) and not self._tick_scheduled:
            self._tick_scheduled = True
            simulation.schedule(now + POLL_SECONDS, self._tick)
