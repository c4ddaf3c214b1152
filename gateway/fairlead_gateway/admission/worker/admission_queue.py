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

An admitted request gets an instance. With a preset that binds late, it may wait once more until the
instance can start it (`LateBindingQueue`). A waiting request counts at its instance, so that later
choices see it. It leaves in the preset's order; if its instance is lost, another one is chosen. If
several callers wait for an instance, the order holds among the requests of those with credit. These
are the callers served least for their weight, within `QUANTUM_SECONDS` of engine time. Expected
answers count. A dispatch looks at the first request of each caller, however many wait.

A request that is placed while others wait does not count those of callers that were served more: it
goes before them (`waits_behind`). Otherwise the queue of a flood, which is equally long everywhere,
would hide how many requests wait before this one.

An instance can start a request while the unanswered prefill that this process sent there is short:
less than `MAX_WAITING_STEP_SHARE` of one of its steps, or than `MIN_BACKLOG_SECONDS`. The instance
gets the next request before it has finished one, since an engine that waits for the network
computes nothing. No event shows when the prefill of a plain response ends; it is estimated
(`BacklogDecay`).

If callers are distinguished, a request that has waited for `queue_seconds` is refused.

Why only this process's prefill counts: two processes that count what each of them queues would wait
for each other. If callers are distinguished, a sequence and the request's memory must be free, too.
"""

import asyncio
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count, islice, takewhile
from types import MappingProxyType
from typing import Final

from fairlead.fleet.model import Fleet, InstanceState, Model
from fairlead_gateway.admission.admission_policy import MAX_PASSED_OVER, MIN_BACKLOG_SECONDS, POLL_SECONDS, BacklogDecay
from fairlead_gateway.admission.fair_share import MAX_COMPARED, FairShare
from fairlead_gateway.admission.kv_capacity import MAX_WAITING_STEP_SHARE
from fairlead_gateway.admission.request_queue import CallerBounds, CallerClass, has_credit, waits_behind
from fairlead_gateway.admission.worker.model_admission import ModelAdmission, OnAdmission, end_wait, is_disaggregated
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import GatewayError, Overloaded, RequestShed
from fairlead_gateway.http.timers import MAX_ENDS_PER_TURN
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.router_registry import RoleRouters, RouterRegistry
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.routing.load.inflight import NOTHING_DEFERRED, Endpoint
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry import MetricsRecorder

_MIN_REMOVED: Final = 32
_NOBODY: Final[frozenset[Hashable]] = frozenset()
_SortKey = tuple[float, float, str]
OnRoom = Callable[[bool, GatewayError | None], None]
"""Called once when a wait ends: whether the instance can start the request, and the error of a
request that is refused. False without an error: the instance is no longer ready.
"""

_HeapEntry = tuple[_SortKey, int, str]
"""Place, number and id of a request. No two have the same number."""


class QueuedDispatch:
    """A waiting request.

    router: counts it as load of its instance.
    on_end: called when its wait ends.
    prefill_seconds: the request's own share of the instance's backlog.
    decode_seconds: expected engine time of its answer.
    sort_key: its place in the preset's order; the smallest goes first.
    number: among all that waited for its instance.
    """

    __slots__ = (
        "caller",
        "context",
        "decode_seconds",
        "number",
        "on_end",
        "prefill_seconds",
        "queued_at",
        "router",
        "sort_key",
    )

    def __init__(
        self,
        context: RequestContext,
        router: ModelRouter,
        on_end: OnRoom,
        queued_at: float,
        prefill_seconds: float,
        sort_key: _SortKey,
    ) -> None:
        self.context = context
        self.router = router
        self.on_end = on_end
        self.queued_at = queued_at
        self.prefill_seconds = prefill_seconds
        self.caller: CallerKey = context.caller
        self.sort_key = sort_key
        self.decode_seconds = 0.0
        self.number = 0


class InstanceQueue:
    """The requests that wait for one instance, by id, and by caller in the preset's order.

    prefill_seconds: of all of them.

    The heaps skip removed requests when they reach them. A heap of which more than half may be
    removed ones is compacted. They hold no request: each is freed at its own end, not thousands at
    a compaction.
    """

    __slots__ = ("_heaps", "_numbers", "prefill_seconds", "requests")

    def __init__(self) -> None:
        self._numbers = count()
        self.requests: dict[str, QueuedDispatch] = {}
        self.prefill_seconds = 0.0
        self._heaps: dict[CallerKey, CallerHeap] = {}

    def add(self, request_id: str, queued: QueuedDispatch) -> None:
        self.requests[request_id] = queued
        self.prefill_seconds += queued.prefill_seconds
        heap = self._heaps.get(queued.caller)
        if heap is None:
            heap = self._heaps[queued.caller] = CallerHeap(queued.context.policy.weight)
        heap.live_count += 1
        heap.prefill_seconds += queued.prefill_seconds
        queued.number = next(self._numbers)
        heappush(heap.entries, (queued.sort_key, queued.number, request_id))

    def pop(self, request_id: str) -> QueuedDispatch | None:
        """Removes and returns a request; None if it does not wait here."""
        queued = self.requests.pop(request_id, None)
        if queued is None:
            return None
        self.prefill_seconds = self.prefill_seconds - queued.prefill_seconds if self.requests else 0.0
        heap = self._heaps[queued.caller]
        heap.live_count -= 1
        heap.prefill_seconds -= queued.prefill_seconds
        if not heap.live_count:
            del self._heaps[queued.caller]
        elif len(heap.entries) > 2 * heap.live_count + _MIN_REMOVED:
            heap.entries = [entry for entry in heap.entries if self._request_of(entry) is not None]
            heapify(heap.entries)
        return queued

    def first(self, fair_share: FairShare, passed_over: Collection[CallerKey] = ()) -> QueuedDispatch | None:
        """Returns the next request of the callers that were served least; None if none waits.

        passed_over: callers that do not count.
        """
        callers = list(self._heaps)
        if passed_over:
            callers = [caller for caller in callers if caller not in passed_over]
        if len(callers) > 1:
            served = fair_share.served_seconds
            least = min(map(served, callers))
            callers = [caller for caller in callers if has_credit(served(caller), least, self._heaps[caller].weight)]
        if not callers:
            return None
        if len(callers) == 1:
            return self._request_of(self._first_of(self._heaps[callers[0]]))
        return self._request_of(min([self._first_of(self._heaps[caller]) for caller in callers]))

    def seconds_of(self, callers: Collection[Hashable]) -> float:
        return sum([heap.prefill_seconds for caller, heap in self._heaps.items() if caller in callers])

    def _first_of(self, heap: "CallerHeap") -> _HeapEntry:
        entries = heap.entries
        while True:
            entry = entries[0]
            if self._request_of(entry) is not None:
                return entry
            heappop(entries)

    def _request_of(self, entry: _HeapEntry) -> QueuedDispatch | None:
        queued = self.requests.get(entry[2])
        return queued if queued is not None and queued.number == entry[1] else None


class CallerHeap:
    """The requests of one caller that wait for one instance: how many do, and their prefill."""

    __slots__ = ("entries", "live_count", "prefill_seconds", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.entries: list[_HeapEntry] = []
        self.live_count = 0
        self.prefill_seconds = 0.0


class WaitingCallers:
    """The callers that wait for instances of one model: their credit, and how many requests each
    has waiting.
    """

    __slots__ = ("bounds", "fair_share")

    def __init__(self, max_requests: int, fair_share: FairShare) -> None:
        self.bounds = CallerBounds(max_requests, 0)
        self.fair_share = fair_share

    def add(self, request_id: str, caller: CallerKey, caller_class: CallerClass) -> None:
        if not self.bounds.requests_of(caller):
            self.fair_share.on_join(caller, caller_class.weight)
        self.bounds.add(request_id, caller, 0, caller_class)

    def remove(self, request_id: str, caller: CallerKey) -> None:
        self.bounds.remove(request_id, caller)
        if not self.bounds.requests_of(caller):
            self.fair_share.on_leave(caller)

    def is_alone(self, caller: CallerKey) -> bool:
        return not self.bounds.has_several_callers and self.bounds.requests_of(caller) > 0

    def behind(self, caller: CallerKey, weight: float) -> frozenset[Hashable]:
        """Returns the callers whose requests surely wait behind one of this caller's.

        Empty with more than `MAX_COMPARED` callers: then a decision would take too long.
        """
        if len(self.bounds.callers()) > MAX_COMPARED:
            return _NOBODY
        share = self.fair_share
        least = share.seconds_at_join(caller, weight)
        found: list[Hashable] = []
        for other, its in self.bounds.classes():
            if other != caller and waits_behind(share.served_seconds(other), least, its.weight):
                found.append(other)
        return frozenset(found) if found else _NOBODY

    def charge(self, queued: "QueuedDispatch") -> None:
        """Charges the caller for prompt and expected answer, unless admission has charged it."""
        request = queued.context.admission_request
        if request is None:
            self.fair_share.charge(
                queued.caller, queued.prefill_seconds + queued.decode_seconds, queued.context.policy.weight
            )
        elif not request.charged:
            request.charged = True
            self.fair_share.charge(queued.caller, queued.prefill_seconds + request.decode_seconds, request.weight)


_NO_QUEUES: Final[Mapping[str, InstanceQueue]] = MappingProxyType({})


class LateBindingQueue:
    """The waiting requests of all models, by model, instance and request id.

    on_exit: called with the model and the cause when a request leaves the queue.
    admissions: by model; each has the service of its callers, and the plan of the engines' memory.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        routers: RoleRouters,
        on_exit: Callable[[str, str], None],
        admissions: Mapping[str, ModelAdmission],
    ) -> None:
        self._admissions = admissions
        self._on_exit = on_exit
        self._routers = routers
        self._now = runtime.now
        self._loop = runtime.loop
        self._backlogs = BacklogDecay()
        self._max_requests = runtime.limits.queued_requests
        self._queue_seconds: float = runtime.limits.queue_seconds
        self._waiting: dict[str, dict[str, InstanceQueue]] = {}
        self._callers: dict[str, WaitingCallers] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._dispatch_scheduled = False
        self._on_dispatch = self._dispatch_ready  # bound once, not for each check

    def queued(self) -> dict[str, int]:
        """Returns the number of waiting requests by model."""
        return {
            key: sum([len(queue.requests) for queue in instances.values()]) for key, instances in self._waiting.items()
        }

    def deferred_seconds(self, context: RequestContext) -> Mapping[str, float]:
        """Returns the prefill that waits behind this request if it is placed now, by instance."""
        key = context.request.model_key
        if key not in self._waiting or (callers := self._callers[key]).is_alone(context.caller):
            return NOTHING_DEFERRED
        behind = callers.behind(context.caller, context.policy.weight)
        if not behind:
            return NOTHING_DEFERRED
        return {name: queue.seconds_of(behind) for name, queue in self._waiting[key].items()}

    def can_start(self, context: RequestContext) -> bool:
        """Whether the request need not wait for its chosen instance.

        Always true with a preset without late binding, and for a request with a KV transfer.
        """
        key = context.request.model_key
        router = self._routers.router(key)
        if router is None or not router.queues_assigned or context.address is None or context.transfer is not None:
            return True
        name, admission = context.address.id, self._admissions.get(key)
        queue, endpoint = self._waiting.get(key, _NO_QUEUES).get(name), router.endpoint(name)
        if queue is not None and (admission is None or not admission.fair_share.has_small_share(context.caller)):
            return False
        if endpoint is None:
            return True
        if admission is not None and not admission.can_start(context, endpoint.load):
            return False
        # Most have room, whatever the time is.
        return endpoint.load.waiting <= 0 or self._has_room(endpoint, queue, self._now())

    def enqueue(self, context: RequestContext, on_end: OnRoom) -> bool:
        """Queues the request for its chosen instance; False if that is not ready any more.

        Until its wait ends, the request counts as load of the instance. `on_end` is called once,
        not before this returns, and never after `leave`.
        Raises Overloaded if the queue is full, and the caller has most in it. Raises RequestShed
        for a sheddable request that would wait too long.
        """
        admission = self._admissions.get(context.request.model_key)
        if admission is not None:
            admission.expect_answer(context)
        address, key, request_id = context.address, context.request.model_key, context.route_request.id
        assert address is not None
        name, router = address.id, self._routers.router(key)
        endpoint = None if router is None else router.endpoint(name)
        if router is None or endpoint is None:
            return False
        if context.policy.is_sheddable and endpoint.load.backlog_seconds > self._queue_seconds:
            raise self._shed_error(key, endpoint.load.backlog_seconds)
        self._make_room(key, context.caller, context.policy.caller_class)
        backlog_before, queued_at = endpoint.load.backlog_seconds, self._now()
        router.on_dispatch(context.route_request, name, queued_at)
        prefill_seconds = endpoint.load.backlog_seconds - backlog_before
        queued = QueuedDispatch(context, router, on_end, queued_at, prefill_seconds, router.queue_sort_key(request_id))
        if context.admission_request is not None:
            queued.decode_seconds = context.admission_request.decode_seconds
        instances = self._waiting.get(key)
        if instances is None:
            instances = self._waiting[key] = {}
        queue = instances.get(name)
        if queue is None:
            queue = instances[name] = InstanceQueue()
        queue.add(request_id, queued)
        router.on_queued(name, context.route_request.sequences)
        self._callers_of(key).add(request_id, context.caller, context.policy.caller_class)
        self._start_timer()
        return True

    def leave(self, context: RequestContext) -> None:
        """Removes a request that is not served any more. Does nothing if it does not wait.

        If its instance had room just now, and it was not sent yet, it is no load any more.
        """
        if self._end_wait(context, "left") is None and context.counted_at:
            context.counted_at = ""
            router = self._routers.router(context.request.model_key)
            if router is not None:
                router.on_abandoned(context.route_request.id, self._now(), is_computed=False)
            if context.request.model_key in self._admissions:
                self._admissions[context.request.model_key].policy.kv_capacity.on_finish(context.route_request.id)

    async def wait(self, context: RequestContext) -> bool:
        """Waits until the chosen instance can start the request; False if it stops being ready.

        The wait ends with the request's timeout, or when the client disconnects, and if callers are
        distinguished, after `queue_seconds`. A cancelled wait leaves the queue. Raises what
        `enqueue` does, also later.
        """
        ended: asyncio.Future[bool] = self._loop.create_future()
        if not self.enqueue(context, partial(end_wait, ended)):
            return False
        try:
            return await ended
        except asyncio.CancelledError:
            self.leave(context)
            raise

    def schedule_dispatch(self, key: str) -> None:
        """Schedules one check of the queue for all events of this iteration of the event loop."""
        if key in self._waiting and not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            self._loop.call_soon(self._on_dispatch)

    def on_fleet_update(self) -> None:
        """Ends the wait of the requests whose instances are no longer ready."""
        for key in [key for key in self._callers if key not in self._waiting]:
            del self._callers[key]
        for key, instances in list(self._waiting.items()):
            ready = self._routers.ready_instances(key)
            lost = [queue for name, queue in instances.items() if name not in ready]
            for context in [queued.context for queue in lost for queued in queue.requests.values()]:
                queued = self._end_wait(context, "left")
                if queued is not None:
                    self._loop.call_soon(queued.on_end, False, None)

    def _has_room(self, endpoint: Endpoint, queue: InstanceQueue | None, now: float) -> bool:
        waiting, seconds = (0, 0.0) if queue is None else (len(queue.requests), queue.prefill_seconds)
        if endpoint.load.waiting <= waiting:
            return True
        sent_seconds = endpoint.load.backlog_seconds - seconds
        limit = max(MAX_WAITING_STEP_SHARE * endpoint.full_step_seconds, MIN_BACKLOG_SECONDS)
        return self._backlogs.remaining_seconds(endpoint.id, sent_seconds, now) < limit

    def _start_timer(self, seconds: float = POLL_SECONDS) -> None:
        """Arms the timer of the next check, unless it is armed already.

        Why it is never cancelled: one that fires early costs less than a new one for each event.
        """
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._refuse_expired(self._now())
        self._dispatch_ready()

    def _dispatch_ready(self) -> None:
        """Starts the requests that can start, one at a time, since each counts for the next."""
        self._dispatch_scheduled = False
        if not self._waiting:
            return
        now = self._now()
        started: list[QueuedDispatch] = []
        for key, instances in list(self._waiting.items()):
            router, callers, admission = self._routers.router(key), self._callers[key], self._admissions.get(key)
            for name, queue in list(instances.items()):
                endpoint = None if router is None else router.endpoint(name)
                while queue.requests and (endpoint is None or self._has_room(endpoint, queue, now)):
                    queued = _next(queue, callers.fair_share, admission, endpoint, now)
                    if queued is None:
                        break
                    callers.charge(queued)
                    context = queued.context
                    self._remove(key, name, context.route_request.id)
                    context.result.queued_seconds += now - queued.queued_at
                    context.counted_at = name
                    if admission is not None:
                        admission.plan_memory(context, name, now)
                    self._on_exit(key, "dispatch-queue")
                    started.append(queued)
        if self._waiting:
            self._start_timer()
        for queued in started:  # last: each may send, answer and enqueue
            queued.on_end(True, None)

    def _refuse_expired(self, now: float) -> None:
        """Refuses the requests that have waited for `queue_seconds`, if callers are distinguished.

        Why: without API keys, requests wait for prefill alone, in the preset's order, and an engine
        would let them wait as long.
        """
        before, has_more = now - self._queue_seconds, False
        for key, instances in list(self._waiting.items()):
            admission = self._admissions.get(key)
            if admission is None or not admission.fair_share.distinguishes_callers:
                continue
            for queue in list(instances.values()):
                oldest = islice(queue.requests.values(), MAX_ENDS_PER_TURN)
                expired = [*takewhile(lambda queued: queued.queued_at <= before, oldest)]
                has_more = has_more or len(expired) == MAX_ENDS_PER_TURN
                for queued in expired:
                    is_shed = queued.context.policy.is_sheddable
                    self._end_wait(queued.context, "shed-late" if is_shed else "held-too-long")
                    error = self._expired_error(key, now - queued.queued_at, is_shed=is_shed)
                    self._loop.call_soon(queued.on_end, False, error)
        if has_more:
            self._start_timer(0.0)

    def _end_wait(self, context: RequestContext, cause: str) -> QueuedDispatch | None:
        """Removes a request that will not start at its instance, and returns it; None if it does
        not wait.
        """
        key, request_id = context.request.model_key, context.route_request.id
        name = "" if context.address is None else context.address.id
        queue = self._waiting.get(key, _NO_QUEUES).get(name)
        queued = None if queue is None else queue.requests.get(request_id)
        if queued is None:
            return None
        now = self._now()
        self._remove(key, name, request_id)
        context.result.queued_seconds += now - queued.queued_at
        queued.router.on_abandoned(request_id, now, is_computed=False)
        self._on_exit(key, cause)
        return queued

    def _remove(self, key: str, name: str, request_id: str) -> None:
        instances = self._waiting.get(key, {})
        queue = instances.get(name)
        if queue is None:
            return
        queued = queue.pop(request_id)
        if queued is not None:
            queued.router.on_queued(name, -queued.context.route_request.sequences)
            self._callers[key].remove(request_id, queued.caller)
        if not queue.requests:
            del instances[name]
        if not instances:
            del self._waiting[key]

    def _callers_of(self, key: str) -> WaitingCallers:
        """Returns the waiting callers of a model, which are made once."""
        callers, admission = self._callers.get(key), self._admissions.get(key)
        share = None if admission is None else admission.fair_share
        if callers is None or (callers.fair_share is not share and key not in self._waiting):
            callers = self._callers[key] = WaitingCallers(self._max_requests, share or FairShare())
        return callers

    def _make_room(self, key: str, caller: CallerKey, caller_class: CallerClass) -> None:
        """Refuses the newest request of the lowest tier's caller with most, if the queue is full.

        Raises Overloaded if that is the new one. A single caller is not bounded here: its requests
        take no place from others.
        """
        bounds = self._callers_of(key).bounds
        has_others = bounds.has_several_callers or not bounds.requests_of(caller)
        if bounds.requests < self._max_requests or not has_others:
            return
        if bounds.has_most(caller, caller_class):
            raise self._full_error(key, caller)
        request_id = bounds.newest_of_largest()
        queue = next(queue for queue in self._waiting[key].values() if request_id in queue.requests)
        queued = queue.requests[request_id]
        error = self._full_error(key, queued.caller)
        self._end_wait(queued.context, "line-full")
        self._loop.call_soon(queued.on_end, False, error)

    def _shed_error(self, key: str, seconds: float) -> RequestShed:
        self._on_exit(key, "shed")
        return RequestShed(
            f"{seconds:.0f} s of work wait at the instance, more than requests of this tier wait for",
            hint="try again later",
            retry_after=self._routers.drain_seconds(key),
        )

    def _expired_error(self, key: str, seconds: float, *, is_shed: bool) -> GatewayError:
        kind = RequestShed if is_shed else Overloaded
        return kind(
            f"the request waited for {seconds:.1f} s, and its instance had no room for it",
            hint="try again later",
            retry_after=self._routers.drain_seconds(key),
        )

    def _full_error(self, key: str, caller: CallerKey) -> Overloaded:
        bounds = self._callers_of(key).bounds
        return Overloaded(
            f"{bounds.requests} requests wait for an instance already, {bounds.requests_of(caller)} of them of this "
            "caller, which has most",
            hint="try again later",
            retry_after=self._routers.drain_seconds(key),
        )


def _next(
    queue: InstanceQueue, share: FairShare, admission: ModelAdmission | None, endpoint: Endpoint | None, now: float
) -> QueuedDispatch | None:
    """Returns the next request that an instance can start; None if it can start none.

    The first one that does not fit holds back those of other callers for a while.
    """
    passed_over: list[CallerKey] = []
    while len(passed_over) <= MAX_PASSED_OVER:
        queued = queue.first(share, passed_over)
        if queued is None:
            return None
        if admission is None or endpoint is None or admission.can_start(queued.context, endpoint.load, now):
            return queued
        if admission.policy.memory_hold.hold_if_allowed(queued.caller, now):
            return None
        passed_over.append(queued.caller)
    return None


class AdmissionController:
    """Admission control and dispatch queue of all models of one worker.

    has_api_keys: clients are distinguished, and share the instances of a model fairly.
    models: the queues before an instance is chosen, of the models that have one.
    late_binding_queue: the queue after it.
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
        self.models: dict[str, ModelAdmission] = {}
        self.late_binding_queue = LateBindingQueue(runtime, routers.serving, telemetry.record_queue_exit, self.models)

    def update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet; called after the routers have replaced theirs."""
        self.late_binding_queue.on_fleet_update()
        for key in self.models.keys() - fleet.models.keys():
            self.models.pop(key).close()
        for key, model in fleet.models.items():
            admission = self.models.get(key)
            if admission is None:
                if not self._needs_queue(key, model, fleet):
                    continue
                admission = self.models[key] = ModelAdmission(
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

    def try_admit(self, context: RequestContext, now: float) -> bool:
        """Returns True if the request may be routed now, False if it must wait in the queue.

        It takes no place: `on_dispatch` counts the request. To be called once per request, since
        the policy learns from it; after False, call `enqueue`.
        """
        admission = self.models.get(context.request.model_key)
        return admission is None or admission.try_admit(context, now)

    def enqueue(self, context: RequestContext, on_end: OnAdmission) -> None:
        """Queues a request for which `try_admit` returned False.

        `on_end` is called once, not before this returns, and never after `leave`.
        Raises GatewayError if the request is refused now.
        """
        self.models[context.request.model_key].enqueue(context, on_end)

    def leave(self, context: RequestContext) -> None:
        """Removes a request from the queues: its client has gone, or its time is over."""
        admission = self.models.get(context.request.model_key)
        if admission is not None:
            admission.leave(context)
        self.late_binding_queue.leave(context)

    async def ensure_admitted(self, context: RequestContext) -> None:
        """Admits the request now, or waits until its queue admits it.

        Raises GatewayError if the request is refused.
        """
        admission = self.models.get(context.request.model_key)
        if admission is not None and not admission.try_admit(context, self._runtime.now()):
            await admission.wait(context)

    def queued(self) -> dict[str, int]:
        """Returns the number of waiting requests by model, without the models that have none."""
        assigned = self.late_binding_queue.queued()
        queued = {key: len(admission) for key, admission in self.models.items() if len(admission)}
        return {key: queued.get(key, 0) + assigned.get(key, 0) for key in queued.keys() | assigned.keys()}

    def has_queue(self, key: str) -> bool:
        admission = self.models.get(key)
        return (admission is not None and len(admission) > 0) or self.late_binding_queue.queued().get(key, 0) > 0

    def take_service(self) -> dict[str, dict[str, float]]:
        """Returns what was served since the last call, in engine seconds divided by weight, by
        model and caller.
        """
        taken: dict[str, dict[str, float]] = {}
        for key, admission in self.models.items():
            service = admission.fair_share.take_unreported()
            if service:
                taken[key] = service
        return taken

    def add_peer_service(self, service: Mapping[str, Mapping[str, float]]) -> None:
        """Counts what sibling workers and other gateways served."""
        for key, served in service.items():
            admission = self.models.get(key)
            if admission is not None:
                admission.fair_share.add_reported(served)
