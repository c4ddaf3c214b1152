"""Admission control: admits a request now, queues it in the gateway, or refuses it.

The policy is pure and lives in `admission`. This module gives it the current fleet and the time,
and owns the tasks of queued requests. A model gets a queue only if queueing can help, that is if

- its TTFT target grows with the prompt length,
- clients are distinguished by API key,
- the fleet states the KV capacity of its instances, or
- no instance is ready, but one is starting or can be started.

For every other model, admission is one dictionary lookup.

Requests for models with prefill instances are queued for one reason only: several callers share the
prefill instances, and all of these are busy. Prompts that are too short for a remote prefill are
not queued. Without a second caller, prompts wait at the prefill instances.

A queued request has no instance, so losing an instance does not affect it. It leaves the queue when
it is admitted, its client disconnects, its deadline passes, or a limit refuses it. The queue is
checked on every engine event of this process, and every `POLL_SECONDS` while it is not empty. The
poll is for work of other workers and gateways, which ends without an event here.

An admitted request gets an instance. It may wait once more until the instance can start it
(`late_binding_queue`).
"""

from collections.abc import Callable, Mapping

from fairlead.fleet.model import Fleet, InstanceState, Model
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.worker.dispatch.late_binding_queue import LateBindingQueue, OnRoom
from fairlead_gateway.worker.dispatch.model_admission import ModelAdmission, OnAdmission, is_disaggregated
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.runtime import WorkerRuntime


class AdmissionController:
    """Admission control and dispatch queue of all models of one worker.

    has_api_keys: clients are distinguished, and share the instances of a model fairly.
    on_needs_instance: called repeatedly with each model whose requests wait for its first instance.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        *,
        routers: RouterRegistry,
        telemetry: MetricsRecorder,
        has_api_keys: bool,
        on_needs_instance: Callable[[str], None],
    ) -> None:
        self._runtime = runtime
        self._routers = routers
        self._telemetry = telemetry
        self._has_api_keys = has_api_keys
        self._on_needs_instance = on_needs_instance
        self._models: dict[str, ModelAdmission] = {}
        self._late_binding_queue = LateBindingQueue(runtime, routers.serving, telemetry.record_queue_exit, self._models)

    def update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet; called after the routers have replaced theirs."""
        self._late_binding_queue.on_fleet_update()
        for key in self._models.keys() - fleet.models.keys():
            self._models.pop(key).close()
        for key, model in fleet.models.items():
            admission = self._models.get(key)
            if admission is None:
                if not self._needs_queue(key, model, fleet):
                    continue
                admission = self._models[key] = ModelAdmission(
                    key,
                    self._runtime,
                    self._routers,
                    self._telemetry,
                    self._has_api_keys,
                    self._on_needs_instance,
                )
            admission.update_fleet(model, fleet)

    def _needs_queue(self, key: str, model: Model, fleet: Fleet) -> bool:
        instances = fleet.instances.get(key, ())
        if is_disaggregated(instances):
            return self._has_api_keys
        states = {instance.state for instance in instances}
        expects_instance = model.wakes or (InstanceState.STARTING in states and InstanceState.READY not in states)
        grows = model.objectives.ttft_per_kilo_token_seconds > 0.0
        has_profiles = any(instance.profile is not None for instance in instances)
        return expects_instance or grows or self._has_api_keys or has_profiles

    def can_start(self, context: RequestContext) -> bool:
        """Whether the request need not wait for its chosen instance, as `LateBindingQueue` says."""
        return self._late_binding_queue.can_start(context)

    def try_admit(self, context: RequestContext, now: float) -> bool:
        """Returns True if the request may be routed now, False if it must wait in the queue.

        It takes no place: `on_dispatch` counts the request. To be called once per request, since
        the policy learns from it; after False, call `enqueue`.
        """
        admission = self._models.get(context.request.model_key)
        return admission is None or admission.try_admit(context, now)

    def enqueue(self, context: RequestContext, on_end: OnAdmission) -> None:
        """Queues a request for which `try_admit` returned False.

        `on_end` is called once, not before this returns, and never after `leave`.
        Raises GatewayError if the request is refused now.
        """
        self._models[context.request.model_key].enqueue(context, on_end)

    def enqueue_for_room(self, context: RequestContext, on_end: OnRoom) -> bool:
        """Queues a request for its chosen instance, for which `can_start` returned False.

        Returns and raises what `LateBindingQueue.enqueue` does, and treats `on_end` alike.
        """
        context.admission.counted_at = ""
        admission = self._models.get(context.request.model_key)
        if admission is not None:
            admission.expect_answer(context)
        return self._late_binding_queue.enqueue(context, on_end)

    def deferred_seconds(self, context: RequestContext) -> Mapping[str, float]:
        """Returns the prefill that waits behind this request if it is placed now, by instance."""
        return self._late_binding_queue.deferred_seconds(context)

    def leave(self, context: RequestContext) -> None:
        """Removes a request from the queues: its client has gone, or its time is over."""
        admission = self._models.get(context.request.model_key)
        if admission is not None:
            admission.leave(context)
        self._late_binding_queue.leave(context)

    async def ensure_admitted(self, context: RequestContext) -> None:
        """Admits the request now, or waits until its queue admits it.

        Raises GatewayError if the request is refused.
        """
        admission = self._models.get(context.request.model_key)
        if admission is not None and not admission.try_admit(context, self._runtime.now()):
            await admission.wait(context)

    async def wait_for_instance_room(self, context: RequestContext) -> bool:
        """Waits until the chosen instance can start the request; False if it stops being ready.

        Returns True at once without late binding. The wait ends with the request's timeout, or when
        the client disconnects, and if callers are distinguished, after `queue_seconds`.
        """
        context.admission.counted_at = ""
        if self.can_start(context):
            return True
        admission = self._models.get(context.request.model_key)
        if admission is not None:
            admission.expect_answer(context)
        return await self._late_binding_queue.wait(context)

    def queued(self) -> dict[str, int]:
        """Returns the number of waiting requests by model, without the models that have none."""
        assigned = self._late_binding_queue.queued()
        queued = {key: len(admission) for key, admission in self._models.items() if len(admission)}
        return {key: queued.get(key, 0) + assigned.get(key, 0) for key in queued.keys() | assigned.keys()}

    def has_queue(self, key: str) -> bool:
        """Whether requests for a model wait in this worker."""
        admission = self._models.get(key)
        return (admission is not None and len(admission) > 0) or self._late_binding_queue.queued().get(key, 0) > 0

    def take_service(self) -> dict[str, dict[str, float]]:
        """Returns what was served since the last call, in engine seconds divided by weight, by
        model and caller.
        """
        taken: dict[str, dict[str, float]] = {}
        for key, admission in self._models.items():
            service = admission.fair_share.take_unreported()
            if service:
                taken[key] = service
        return taken

    def add_peer_service(self, service: Mapping[str, Mapping[str, float]]) -> None:
        """Counts what sibling workers and other gateways served."""
        for key, served in service.items():
            admission = self._models.get(key)
            if admission is not None:
                admission.fair_share.add_reported(served)

    def on_dispatch(self, context: RequestContext, now: float, *, is_planned: bool) -> None:
        """Records that the request was dispatched to its chosen instance.

        is_planned: its memory there was planned when its wait ended.
        """
        admission = self._models.get(context.request.model_key)
        if admission is not None:
            admission.on_dispatch(context, now, is_planned=is_planned)

    def on_first_token(self, context: RequestContext, now: float) -> None:
        """Records that the prefill of the request is over."""
        self._late_binding_queue.schedule_dispatch(context.request.model_key)
        admission = self._models.get(context.request.model_key)
        if admission is not None:
            admission.on_first_token(context, now)

    def on_finish(self, context: RequestContext, is_complete: bool, output_tokens: int | None, now: float) -> None:
        """Records the end of an attempt.

        output_tokens: generated by the engine of this attempt; None if not known.
        """
        self._late_binding_queue.schedule_dispatch(context.request.model_key)
        admission = self._models.get(context.request.model_key)
        if admission is not None:
            admission.on_finish(context, is_complete, output_tokens, now)
