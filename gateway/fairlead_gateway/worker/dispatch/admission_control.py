"""Room 3, admission: requests that wait in the gateway until an engine has room for them.

The rules are ``queueing``'s; here the present fleet, the clock and the tasks that wait meet them. A model has a door only where
there may be a reason to hold: its first-token objective grows with the prompt, callers are told apart by keys, its engines'
memory is stated in the fleet, or none of them is ready and one is starting, or will be: a model that may have no instance gets one
when a request waits for it, and ``waking`` is told so. Of all other models a request costs one look into a dictionary.

Who is held belongs to no engine yet, so an engine's loss costs it nothing. It leaves when its turn comes, its client goes, its
own deadline passes or the limits say so. A look at who may go follows whatever this process hears of engines, and every few
milliseconds while anybody is held, since what siblings and other gateways sent ends without a word.

Models whose prefill and decode are split are not held: their prompts wait for engines that only prefill.

Behind the door a request gets its engine, and may wait once more until that can begin (``berths``).
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final

from fairlead.fleet.model import Fleet, InstanceState, Model, Role
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.admission.policy import (
    POLL_SECONDS,
    AdmissionAction,
    AdmissionPolicy,
    AdmissionRequest,
    AdmissionVerdict,
    Admitted,
    EngineLoad,
)
from fairlead_gateway.admission.request_queue import QueuedRequest
from fairlead_gateway.errors import GatewayError, Overloaded, RequestShed
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.worker.dispatch.dispatch_queue import DispatchQueue
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.retry_after import retry_after_seconds

DEFAULT_TTFT_SECONDS: Final = 5.0


def _ignore(key: str) -> None:
    """Nobody hears that requests of a model wait."""


class AdmissionController:
    """``keyed``: callers are told apart, and share a model's engines fairly. ``waking`` hears, now and then, of each model whose
    requests wait for a first instance."""

    def __init__(
        self,
        *,
        routers: RouterRegistry,
        telemetry: MetricsRecorder,
        limits: Limits,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        has_api_keys: bool,
    ) -> None:
        self._routers = routers
        self._telemetry = telemetry
        self._limits = limits
        self._now = clock.now
        self._loop = loop
        self._has_api_keys = has_api_keys
        self.on_needs_instance = _ignore
        self._models: dict[str, ModelAdmission] = {}
        self._dispatch_queue = DispatchQueue(routers, clock.now, loop, telemetry.record_queue_exit)
        self.can_start = self._dispatch_queue.can_start

    def update_fleet(self, fleet: Fleet) -> None:
        """A snapshot has been taken over by the routes."""
        self._dispatch_queue.on_fleet_update()
        for key in self._models.keys() - fleet.models.keys():
            self._models.pop(key).close()
        for key, model in fleet.models.items():
            door = self._models.get(key)
            if door is None:
                if not self._needs_queue(key, model, fleet):
                    continue
                door = self._models[key] = ModelAdmission(
                    key,
                    self._routers,
                    self._telemetry,
                    self._limits,
                    self._now,
                    self._loop,
                    self._has_api_keys,
                    self._notify,
                )
            door.update_fleet(model, fleet)

    def _needs_queue(self, key: str, model: Model, fleet: Fleet) -> bool:
        instances = fleet.instances.get(key, ())
        if any(one.role is Role.PREFILL for one in instances):
            return False
        states = {one.state for one in instances}
        waking = model.wakes or (InstanceState.STARTING in states and InstanceState.READY not in states)
        grows = model.objectives.ttft_per_kilo_token_seconds > 0.0
        return waking or grows or self._has_api_keys or any(one.profile is not None for one in instances)

    def _notify(self, key: str) -> None:
        self.on_needs_instance(key)

    def admit_now(self, context: RequestContext) -> bool:
        """Whether the request may go at once."""
        door = self._models.get(context.request.model_key)
        return door is None or door.admit_now(context)

    async def wait_for_admission(self, context: RequestContext) -> None:
        """Until the request may go. Raises GatewayError when it may not."""
        door = self._models.get(context.request.model_key)
        if door is not None and (context.admission_request is not None or not door.admit_now(context)):
            await door.wait(context)

    async def wait_for_slot(self, context: RequestContext) -> bool:
        """Until the engine that was chosen can begin it. False: it is not ready any more, and another is to be chosen."""
        context.counted_at = ""
        return self.can_start(context) or await self._dispatch_queue.wait(context)

    def queued(self) -> dict[str, int]:
        """Requests that wait, by model; models of which nobody waits are left out."""
        berths = self._dispatch_queue.queued()
        doors = {key: len(door) for key, door in self._models.items() if len(door)}
        return {key: doors.get(key, 0) + berths.get(key, 0) for key in doors.keys() | berths.keys()}

    def doors(self) -> int:
        """Models whose requests may be held."""
        return len(self._models)

    def on_dispatch(self, context: RequestContext, now: float) -> None:
        """A request went to an engine."""
        door = self._models.get(context.request.model_key)
        if door is not None:
            door.on_dispatch(context, now)

    def on_first_token(self, context: RequestContext, now: float) -> None:
        """Its first token came."""
        self._dispatch_queue.schedule_dispatch(context.request.model_key)
        door = self._models.get(context.request.model_key)
        if door is not None:
            door.on_first_token(context, now)

    def on_finish(self, context: RequestContext, finished: bool, now: float) -> None:
        """It is over on its engine; ``finished``: its answer was complete."""
        self._dispatch_queue.schedule_dispatch(context.request.model_key)
        door = self._models.get(context.request.model_key)
        if door is not None:
            door.on_finish(context, finished, now)


class ModelAdmission:
    """Of one model."""

    def __init__(
        self,
        key: str,
        routers: RouterRegistry,
        telemetry: MetricsRecorder,
        limits: Limits,
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        has_api_keys: bool,
        notify: Callable[[str], None],
    ) -> None:
        self._key = key
        self._notify = notify
        self._notified_at = -math.inf
        self._ready_since = -math.inf
        self._routers = routers
        self._telemetry = telemetry
        self._limits = limits
        self._now = now
        self._loop = loop
        self._has_api_keys = has_api_keys
        self._policy = AdmissionPolicy(limits)
        self._model: Model | None = None
        self._kv_tokens: dict[str, float] = {}
        self._min_kv_tokens = 0.0
        self._is_plain = False
        self._has_ready = self._expects_instance = False
        self._queued: dict[str, tuple[RequestContext, asyncio.Future[Admitted]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._release_scheduled = False

    def __len__(self) -> int:
        return len(self._queued)

    def update_fleet(self, model: Model, fleet: Fleet) -> None:
        """The model and its instances as they are now."""
        instances = fleet.instances.get(self._key, ())
        ready = [one for one in instances if one.state is InstanceState.READY]
        self._model = model
        self._kv_tokens = {one.id: float(one.profile.kv_tokens) for one in ready if one.profile is not None}
        self._min_kv_tokens = min(self._kv_tokens.values(), default=float("inf"))
        self._is_plain = bool(ready) and not self._has_api_keys and model.objectives.ttft_per_kilo_token_seconds <= 0.0
        if ready and not self._has_ready:
            self._ready_since = self._now()
        self._has_ready = bool(ready)
        self._expects_instance = not ready and (
            model.wakes or any(one.state is InstanceState.STARTING for one in instances)
        )
        self._policy.kv_capacity.retain(frozenset(one.id for one in ready))
        self._release_ready()

    def admit_now(self, context: RequestContext) -> bool:
        """Whether it may go at once; what it asks is noted on the job."""
        gate, now = self._policy, self._now()
        if (
            self._is_plain
            and not self._queued
            and gate.kv_capacity.has_headroom(context.route_request, self._min_kv_tokens)
        ):
            return True
        if not self._expects_instance and not self._routers.ready_instances(self._key):
            return True  # routing says that there is none
        asked = context.admission_request = self._admission_request(context)
        verdict = gate.admit_now(asked, self._engine_loads(now), now)
        if verdict is None:
            return False
        context.full_instances = verdict.full_instances
        return True

    async def wait(self, context: RequestContext) -> None:
        """Its turn. Raises GatewayError when it is refused, at once or after a while."""
        asked, now = context.admission_request, self._now()
        assert asked is not None
        verdict = self._policy.enqueue(asked, self._engine_loads(now), now)
        if verdict.action is AdmissionAction.REFUSE:
            self._telemetry.record_queue_exit(self._key, verdict.rule)
            raise self._refusal_error(verdict)
        turn: asyncio.Future[Admitted] = self._loop.create_future()
        self._queued[context.id] = (context, turn)
        self._schedule_release()
        try:
            release = await turn
        finally:
            if self._queued.pop(context.id, None) is not None:
                self._policy.remove(context.id)
                self._telemetry.record_queue_exit(self._key, "left")
        context.full_instances, context.admitted = release.full_instances, release

    def on_dispatch(self, context: RequestContext, now: float) -> None:
        """A request went to an engine."""
        router = self._routers.router(self._key)
        tokens = context.route_request.prompt_tokens if router is None else router.prompt_tokens(context.route_request)
        self._policy.kv_capacity.on_dispatch(
            context.route_request, context.instance_id, tokens, context.http_request.caller, now
        )

    def on_first_token(self, context: RequestContext, now: float) -> None:
        """Its first token came."""
        self._policy.kv_capacity.on_first_token(context.route_request.id, now)
        if self._queued:
            self._schedule_release()

    def on_finish(self, context: RequestContext, finished: bool, now: float) -> None:
        """It is over on its engine."""
        output = context.output_tokens if finished else None
        self._policy.on_finish(
            context.route_request.id, context.http_request.caller, context.route_request.prompt_tokens, output, now
        )
        if self._queued:
            self._schedule_release()

    def close(self) -> None:
        """The model is gone."""
        for name in list(self._queued):
            self._refuse(name, self._routers.no_ready_instance(self._key, self._now()))

    # Looking ---------------------------------------------------------------------------------------------------------------

    def _admission_request(self, context: RequestContext) -> AdmissionRequest:
        route, model = context.route_request, self._model
        router = self._routers.router(self._key)
        assert router is not None
        assert model is not None
        prompt, standing = router.prompt_tokens(route), router.endpoint_loads()
        limit = model.objectives.ttft_limit_seconds(prompt)
        own = standing[0][0].profile.prefill_time(prompt, prompt - router.uncached_tokens(route)) if standing else 0.0
        caller = context.http_request.caller
        waiting = QueuedRequest(
            context.id,
            context.http_request.received_at,
            DEFAULT_TTFT_SECONDS if limit is None else limit,
            own,
            tenant=caller,
            body_bytes=len(context.request.body),
        )
        return AdmissionRequest(waiting, route, prompt, caller)

    def _engine_loads(self, now: float) -> list[EngineLoad]:
        router = self._routers.router(self._key)
        if router is None:
            return []
        return [
            self._policy.engine_load(
                place.id,
                seen.backlog_seconds,
                place.profile.prefill_time(place.profile.step_tokens),
                self._kv_tokens.get(place.id),
                max(0.0, seen.inflight_tokens - place.load.inflight_tokens),
                now,
            )
            for place, seen in router.endpoint_loads()
        ]

    def _schedule_release(self) -> None:
        """Once for all that happens in this turn of the loop, after those who were let go have been counted where they went."""
        if not self._release_scheduled:
            self._release_scheduled = True
            self._loop.call_soon(self._release_ready)

    def _release_ready(self) -> None:
        self._release_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._queued:
            return
        now = self._now()
        engines = self._engine_loads(now)
        if not engines:
            self._refuse_without_engines(now)
        for name, verdict in self._policy.take_expired(len(engines), now, self._ready_since) if engines else ():
            self._telemetry.record_queue_exit(self._key, verdict.rule)
            self._refuse(name, self._refusal_error(verdict))
        release = self._policy.release_next(engines, now)
        if release is not None:
            self._telemetry.record_queue_exit(self._key, release.rule)
            _, turn = self._queued.pop(release.id)
            if not turn.done():
                turn.set_result(release)
            self._schedule_release()
        elif self._queued:
            self._timer = self._loop.call_later(POLL_SECONDS, self._release_ready)

    def _refuse_without_engines(self, now: float) -> None:
        """No engine is ready: who has waited long enough for one, or for nothing, is told so."""
        limits, wakes = self._limits, self._model is not None and self._model.wakes
        most = (
            limits.queue_waking_seconds if wakes else limits.queue_starting_seconds if self._expects_instance else 0.0
        )
        if wakes and now - self._notified_at >= limits.wake_hint_seconds:
            self._notified_at = now
            self._notify(self._key)
        for name, (context, _) in list(self._queued.items()):
            if now - context.http_request.received_at >= most:
                self._telemetry.record_queue_exit(self._key, "none-ready")
                self._policy.remove(name)
                self._refuse(name, self._routers.no_ready_instance(self._key, now))

    def _refuse(self, name: str, error: GatewayError) -> None:
        held = self._queued.pop(name, None)
        if held is not None and not held[1].done():
            held[1].set_exception(error)

    def _refusal_error(self, verdict: AdmissionVerdict) -> GatewayError:
        seconds = retry_after_seconds(verdict.retry_after or 1.0, self._limits.max_retry_after_seconds)
        kind = RequestShed if verdict.is_shed else Overloaded
        return kind(verdict.reason, hint="try again later", headers=(("retry-after", str(seconds)),))
