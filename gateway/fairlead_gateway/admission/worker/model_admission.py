"""The admission queue of one model: its policy, the requests that wait, and when they are checked.

A request leaves the queue through a callback, so that a plain one waits without a task.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, Role
from fairlead_gateway.admission.admission_policy import (
    POLL_SECONDS,
    AdmissionAction,
    AdmissionPolicy,
    AdmissionRequest,
    AdmissionVerdict,
)
from fairlead_gateway.admission.fair_share import FairShare, decode_seconds
from fairlead_gateway.admission.kv_capacity import EngineLoad
from fairlead_gateway.admission.request_queue import RequestQueue
from fairlead_gateway.errors import GatewayError, Overloaded, RequestShed
from fairlead_gateway.http.timers import MAX_ENDS_PER_TURN
from fairlead_gateway.messages import WAKE_HINT_SECONDS
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.worker.retry import retry_after_seconds
from fairlead_gateway.router_registry import RouterRegistry
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry import MetricsRecorder

DEFAULT_TTFT_SECONDS: Final = 5.0
OnAdmission = Callable[[GatewayError | None], None]
"""Called once when a queued request is admitted, or with the error with which it is refused."""


class _WaitingRequest:
    """A queued request, and what is called when its wait ends."""

    __slots__ = ("context", "on_end", "queued_at")

    def __init__(self, context: RequestContext, on_end: OnAdmission, queued_at: float) -> None:
        self.context = context
        self.on_end = on_end
        self.queued_at = queued_at


class ModelAdmission:
    """The queue of one model, with its policy."""

    def __init__(
        self,
        key: str,
        runtime: WorkerRuntime,
        routers: RouterRegistry,
        telemetry: MetricsRecorder,
        has_api_keys: bool,
        on_needs_instance: Callable[[str], None],
    ) -> None:
        self._key = key
        self._on_needs_instance = on_needs_instance
        self._notified_at = -math.inf
        self._ready_since = -math.inf
        self._routers = routers.serving
        self._prefill_routers = routers.prefilling
        self._router: ModelRouter | None = None  # of the instances that answer
        self._is_disaggregated = False
        self._telemetry = telemetry
        self._limits = runtime.limits
        self._now = runtime.now
        self._loop = runtime.loop
        self._has_api_keys = has_api_keys
        self.fair_share = FairShare(reports=has_api_keys)
        self._queue = RequestQueue(self.fair_share)
        self.policy = AdmissionPolicy(runtime.limits, self._queue)
        self._model: Model | None = None
        self._kv_tokens: dict[str, float] = {}
        self._min_kv_tokens = 0.0
        self._is_plain = self._bounds_sequences = self._binds_memory_late = False
        self._has_ready = self._expects_instance = self._is_starting = False
        self._queued: dict[str, _WaitingRequest] = {}
        self._arrival: tuple[RequestContext, list[EngineLoad]] | None = None  # the request that `try_admit` saw last
        self._timer: asyncio.TimerHandle | None = None
        self._release_scheduled = False
        self._on_release = self._release_ready  # bound once, not for each check

    def __len__(self) -> int:
        return len(self._queued)

    def update_fleet(self, model: Model, fleet: Fleet) -> None:
        """Takes over the model's spec and instances, and checks the queue."""
        instances = fleet.instances.get(self._key, ())
        ready = [instance for instance in instances if instance.state is InstanceState.READY]
        self._model = model
        self._router = self._routers.router(self._key)
        self._is_disaggregated = is_disaggregated(instances)
        self.policy.separate_long = not self._is_disaggregated
        binds_late = self._router is not None and self._router.queues_assigned and not self._is_disaggregated
        self.policy.separate_tenants = not binds_late
        self._bounds_sequences = self._has_api_keys and not binds_late and not self._is_disaggregated
        self._binds_memory_late = self._has_api_keys and binds_late
        self._kv_tokens = {
            instance.id: float(instance.profile.kv_tokens)
            for instance in ready
            if instance.profile is not None and not self._is_disaggregated
        }
        self._min_kv_tokens = min(self._kv_tokens.values(), default=float("inf"))
        grows = model.objectives.ttft_per_kilo_token_seconds > 0.0 and not self._is_disaggregated
        self._is_plain = bool(ready) and not self._has_api_keys and not grows
        if ready and not self._has_ready:
            self._ready_since = self._now()
        self._has_ready = bool(ready)
        self._is_starting = any(instance.state is InstanceState.STARTING for instance in instances)
        self._expects_instance = not ready and (model.wakes or self._is_starting) and not self._is_disaggregated
        self.policy.kv_capacity.retain(frozenset(instance.id for instance in ready))
        if self._queued:
            self._schedule_release()

    def try_admit(self, context: RequestContext, now: float) -> bool:
        """Returns True if the request may be routed now, False if it must wait in the queue.

        Sets `context.admission_request` if the policy decides, and on True `full_instances`.
        """
        policy = self.policy
        has_headroom = (
            self._has_ready
            and not self._queued
            and not self._is_disaggregated
            and (self._binds_memory_late or policy.kv_capacity.has_headroom(context.route_request, self._min_kv_tokens))
        )
        if has_headroom and self._is_plain:
            return True  # no caller and no objective could change the verdict
        if not self._expects_instance and not self._routers.ready_instances(self._key):
            return True  # routing reports the missing instance
        if self._is_disaggregated and self._is_short(context):
            return True  # the instance that answers computes it: prefill instances are what fills up
        request = context.admission_request = self._admission_request(context)
        if has_headroom:
            if policy.admits_at_once(request, now) and not self._bounds_sequences:
                return True
            engines = self._engine_loads(now)
            verdict = policy.verdict_of_classified(request, engines, now)
        else:
            engines = self._engine_loads(now)
            verdict = policy.verdict_without_queue(request, engines, now)
        if verdict is None:
            self._arrival = (context, engines)
            return False
        context.full_instances = verdict.full_instances
        return True

    def enqueue(self, context: RequestContext, on_end: OnAdmission) -> None:
        """Queues a request that must wait. Raises GatewayError if it is refused now."""
        request, now = context.admission_request, self._now()
        assert request is not None
        self.expect_answer(context)
        arrival, self._arrival = self._arrival, None
        is_just_checked = arrival is not None and arrival[0] is context
        engines = arrival[1] if arrival is not None and is_just_checked else self._engine_loads(now)
        verdict = self.policy.enqueue(request, engines, now, explained=False)
        if verdict.action is AdmissionAction.REFUSE:
            self._telemetry.record_queue_exit(self._key, verdict.rule)
            raise self._refusal_error(verdict)
        if verdict.displaced:
            self._refuse_all(verdict.displaced)
        self._queued[context.id] = _WaitingRequest(context, on_end, now)
        if not engines or verdict.displaced or len(self._queued) > 1:
            self._schedule_release()
        else:  # `try_admit` found no room for it just now
            self._start_timer()

    def leave(self, context: RequestContext) -> None:
        """Removes a request that is not served any more. Does nothing if it is not queued."""
        waiting = self._queued.pop(context.id, None)
        if waiting is not None:
            context.result.queued_seconds += self._now() - waiting.queued_at
            self.policy.remove(context.id)
            self._telemetry.record_queue_exit(self._key, "left")

    async def wait(self, context: RequestContext) -> None:
        """Queues the request until it is admitted. Raises GatewayError if it is refused."""
        ended: asyncio.Future[bool] = self._loop.create_future()
        self.enqueue(context, partial(end_wait, ended, True))
        try:
            await ended
        finally:
            self.leave(context)

    def expect_answer(self, context: RequestContext) -> None:
        """States the engine time that the answer of a request is expected to take.

        Before prefill instances it is none, since these make no answers.
        """
        request, route_request = context.admission_request, context.route_request
        if request is None or self._is_disaggregated or context.admitted is not None:
            return
        tokens = self.policy.kv_capacity.expected_output(
            route_request, request.prompt_tokens, context.caller, self._now()
        )
        request.decode_seconds = self._decode_seconds(context, tokens)

    def on_dispatch(self, context: RequestContext, now: float, *, is_planned: bool = False, generated: int = 0) -> None:
        """Charges the caller, and adds the request to the planned KV of its chosen instance.

        is_planned: it is in the plan already, since it waited for the instance.
        generated: tokens of a stream that goes on there.
        """
        assert context.address is not None
        if not is_planned:
            self.plan_memory(context, context.address.id, now, generated)
        if context.admission_request is not None:
            if context.admission_request.decode_seconds <= 0.0:
                self.expect_answer(context)  # it did not wait
            self._queue.charge(context.admission_request)

    def can_start(self, context: RequestContext, local: EndpointLoad, now: float | None = None) -> bool:
        """Whether the sequences and the memory of an instance let a request start there.

        If other processes have requests there, callers with a small share may exceed both. True if
        callers are not distinguished: then admission has looked at the memory, and sequences have
        no bound.

        local: the load of this process there.
        now: if None, the clock is read where the answer depends on it.
        """
        router = self._router
        if router is None or not self._has_api_keys:
            return True
        bound = self._routers.sequence_bounds.get(local.instance)
        memory = self._kv_tokens.get(local.instance) if self._binds_memory_late else None
        if bound is None and memory is None:
            return True
        total = router.total_load(local)
        other_tokens = local.tokens_of_others(total)
        engine = EngineLoad(local.instance, 0.0, 0.0, memory, other_tokens)
        engine.limit_sequences(bound, total.sent)
        engine.withhold_memory(self._routers.memory_shares.get(local.instance, 1.0))
        # Other processes do not know who waits here: a caller must not starve for them.
        if engine.free_sequences <= 0.0:
            small_share = other_tokens > 0.0 and self.fair_share.has_small_share(context.caller)
            if not engine.has_free_sequence(small_share=small_share):
                return False
        if engine.kv_tokens is None or (
            other_tokens <= 0.0 and self.policy.kv_capacity.has_headroom(context.route_request, engine.kv_tokens)
        ):
            return True
        request = context.admission_request or self._admission_request(context)
        return not self.policy.lacks_memory(request, engine, self._now() if now is None else now)

    def plan_memory(self, context: RequestContext, instance: str, now: float, generated: int = 0) -> None:
        """Adds a request to the planned KV of an instance where it will start soon."""
        route_request, router = context.route_request, self._router
        tokens = route_request.prompt_tokens if router is None else router.prompt_tokens(route_request)
        self.policy.kv_capacity.on_dispatch(route_request, instance, tokens, context.caller, now, generated)

    def on_first_token(self, context: RequestContext, now: float) -> None:
        """Records that the KV of the request grows with its response from now on."""
        self.policy.kv_capacity.on_first_token(context.route_request.id, now)
        if self._queued:
            self._schedule_release()

    def on_finish(self, context: RequestContext, is_complete: bool, output_tokens: int | None, now: float) -> None:
        """Frees the planned KV of the attempt; the policy learns from its output tokens."""
        request, output = context.route_request, None
        if is_complete:
            output = context.result.output_tokens
            if request.sequences > 1:
                output, output_tokens = _of_each(output, request.sequences), _of_each(output_tokens, request.sequences)
            if output is not None and request.max_tokens:
                output = min(output, int(request.max_tokens))
        if context.admission_request is not None and not self._is_disaggregated:
            self._settle(context, is_complete, output, now)
        if is_complete and output_tokens != output:  # resumed: another engine made the beginning
            self.policy.kv_capacity.on_finish(request.id, now, output_tokens)
        self.policy.on_finish(request.id, context.caller, request.prompt_tokens, output, now)
        if self._queued:
            self._schedule_release()

    def _settle(self, context: RequestContext, is_complete: bool, output_tokens: int | None, now: float) -> None:
        """Charges the caller for the answer. One that was cut costs what was expected, or more.

        output_tokens: of each sequence; None if not known.
        """
        request, dispatched_at = context.admission_request, context.result.dispatched_at
        assert request is not None
        if not request.charged:
            return
        if is_complete and output_tokens is not None:
            # No answer takes longer than its request was in flight, whatever the engine reports.
            longest = math.inf if dispatched_at is None else max(request.decode_seconds, now - dispatched_at)
            self._queue.settle(request, min(longest, self._decode_seconds(context, output_tokens)))
        elif dispatched_at is not None:
            tokens = self.policy.kv_capacity.elapsed_output(context.route_request.id, dispatched_at, now)
            self._queue.settle(request, max(request.decode_seconds, self._decode_seconds(context, tokens)))

    def _decode_seconds(self, context: RequestContext, output_tokens: float) -> float:
        router, request = self._router, context.admission_request
        endpoints = [] if router is None else router.endpoints
        if not endpoints or request is None:
            return 0.0
        sequences = context.route_request.sequences
        return decode_seconds(endpoints[0].profile, request.prompt_tokens, output_tokens, sequences)

    def close(self) -> None:
        for request_id in list(self._queued):
            self._refuse(request_id, self._routers.no_ready_instance(self._key, self._now()))

    def _admission_request(self, context: RequestContext) -> AdmissionRequest:
        route_request = context.route_request
        router = self._load_router()
        assert router is not None
        prompt, endpoints = router.prompt_tokens(route_request), router.endpoints
        # Only callers are a reason to queue before prefill instances, so all have one objective.
        limit = DEFAULT_TTFT_SECONDS if self._is_disaggregated else router.ttft_objective(prompt)
        cached = prompt - router.uncached_tokens(route_request)
        prefill_seconds = endpoints[0].profile.prefill_time(prompt, cached) if endpoints else 0.0
        caller, policy, arrived_at = context.caller, context.policy, context.http_request.received_at
        request = AdmissionRequest(route_request, arrived_at, limit, prefill_seconds, prompt, caller)
        request.length_class, request.sheddable = caller, policy.is_sheddable
        request.body_bytes = len(context.request.body)
        request.tier, request.weight = policy.tier, policy.weight
        return request

    def _load_router(self) -> ModelRouter | None:
        """Returns the router of the instances that prefill: the others without a ready one."""
        if self._is_disaggregated and self._prefill_routers.ready_instances(self._key):
            return self._prefill_routers.router(self._key)
        return self._router

    def _is_short(self, context: RequestContext) -> bool:
        router = self._load_router()
        return router is not None and router.uncached_tokens(context.route_request) < self._limits.handoff_min_tokens

    def _engine_loads(self, now: float) -> list[EngineLoad]:
        router = self._load_router()
        if router is None:
            return []
        loads: list[EngineLoad] = []
        for endpoint in router.endpoints:
            local = endpoint.load
            load = router.total_load(local)
            other_tokens = local.tokens_of_others(load)
            memory = None if self._binds_memory_late else self._kv_tokens.get(endpoint.id)
            engine = self.policy.engine_load(
                endpoint.id, load.backlog_seconds, endpoint.full_step_seconds, memory, other_tokens, now
            )
            engine.withhold_memory(self._routers.memory_shares.get(endpoint.id, 1.0))
            bound = self._routers.sequence_bounds.get(endpoint.id) if self._bounds_sequences else None
            engine.limit_sequences(bound, load.sent)
            loads.append(engine)
        return loads

    def _schedule_release(self) -> None:
        """Schedules one check of the queue for all events of this iteration of the event loop.

        The check follows the dispatch of the requests that were admitted in this iteration.
        """
        if not self._release_scheduled:
            self._release_scheduled = True
            self._loop.call_soon(self._on_release)

    def _release_ready(self) -> None:
        self._release_scheduled = False
        if not self._queued:
            return
        now = self._now()
        engines = self._engine_loads(now)
        if not engines:
            self._refuse_without_engines(now)
        else:
            expired = self.policy.take_expired(len(engines), now, self._ready_since, MAX_ENDS_PER_TURN)
            if expired:
                self._refuse_all(expired)
                self._schedule_release()  # there may be more
        admitted = self.policy.release_next(engines, now)
        if admitted is None:
            self._start_timer()
            return
        self._telemetry.record_queue_exit(self._key, admitted.rule)
        waiting = self._queued[admitted.id]
        del self._queued[admitted.id]
        context = waiting.context
        context.result.queued_seconds += now - waiting.queued_at
        context.full_instances, context.admitted = admitted.full_instances, admitted
        waiting.on_end(None)  # the state is consistent: it may send, answer and enqueue
        if self._queued:
            self._schedule_release()

    def _start_timer(self) -> None:
        """Arms the timer of the next check, unless it is armed already or no request is queued.

        Why it is never cancelled: one that fires early costs less than a new one for each event.
        """
        if self._timer is None and self._queued:
            self._timer = self._loop.call_later(POLL_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        """Schedules a check.

        Why not at once: one that is scheduled already would follow before a task that was admitted
        has dispatched its request.
        """
        self._timer = None
        self._schedule_release()

    def _refuse_without_engines(self, now: float) -> None:
        """Refuses the requests that have waited too long for a first instance.

        If the model can wake, and a tenant that may wake it waits, first reports the need, at most
        once per `wake_hint_seconds`.
        """
        limits, wakes = self._limits, self._model is not None and self._model.wakes
        max_seconds = limits.queue_starting_seconds if self._is_starting and self._expects_instance else 0.0
        if wakes and any(waiting.context.policy.may_wake for waiting in self._queued.values()):
            max_seconds = limits.queue_waking_seconds
            if now - self._notified_at >= WAKE_HINT_SECONDS:
                self._notified_at = now
                self._on_needs_instance(self._key)
        before = now - max_seconds
        expired = [one.context.id for one in self._queued.values() if one.context.http_request.received_at <= before]
        for request_id in expired[:MAX_ENDS_PER_TURN]:
            self._telemetry.record_queue_exit(self._key, "none-ready")
            self.policy.remove(request_id)
            self._refuse(request_id, self._routers.no_ready_instance(self._key, now))
        if expired:
            self._schedule_release()  # there may be more

    def _refuse_all(self, refused: Sequence[tuple[str, AdmissionVerdict]]) -> None:
        """Ends the wait of requests that the policy refuses."""
        for request_id, verdict in refused:
            self._telemetry.record_queue_exit(self._key, verdict.rule)
            self._refuse(request_id, self._refusal_error(verdict))

    def _refuse(self, request_id: str, error: GatewayError) -> None:
        """Ends the wait of a request in the next iteration of the event loop: its answer may let
        the client's next request in.
        """
        waiting = self._queued.pop(request_id, None)
        if waiting is not None:
            waiting.context.result.queued_seconds += self._now() - waiting.queued_at
            self._loop.call_soon(waiting.on_end, error)

    def _refusal_error(self, verdict: AdmissionVerdict) -> GatewayError:
        seconds = retry_after_seconds(verdict.retry_after or 1.0)
        error_class = RequestShed if verdict.is_shed else Overloaded
        return error_class(verdict.reason, hint="try again later", retry_after=seconds)


def end_wait(ended: "asyncio.Future[bool]", result: bool, error: GatewayError | None) -> None:
    """Ends the wait of a task with a result or an error, unless it was cancelled."""
    if ended.done():
        return
    if error is None:
        ended.set_result(result)
    else:
        ended.set_exception(error)


def _of_each(output_tokens: int | None, sequences: int) -> int | None:
    return None if output_tokens is None else -(-output_tokens // sequences)


def is_disaggregated(instances: Sequence[Instance]) -> bool:
    return any(instance.role is Role.PREFILL for instance in instances)
