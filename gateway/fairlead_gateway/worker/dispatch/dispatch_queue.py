"""Requests that have their engine and wait in the gateway until it can begin: late binding, for presets that ask for it.

An engine can begin when what this process sent there without a first token fills less than ``ROOM_STEPS`` of one of its steps: it is
given the next before it has finished, since an engine that waits for the network computes nothing. What nobody reports as begun
(plain answers) is taken to be worked off meanwhile (``queueing.backlog``). Only our own counts: if two processes counted what each
of them holds back, both would wait for the other.

While a request waits it counts where it is to go, so that the next choice sees it. It leaves in the preset's order; its engine's loss
sends it back to be chosen for anew.
"""

import asyncio
from collections.abc import Callable, Mapping

from fairlead_gateway.admission.backlog_decay import BacklogDecay
from fairlead_gateway.admission.policy import MAX_WAITING_STEP_SHARE, POLL_SECONDS
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.request_context import RequestContext


class _QueuedDispatch:
    """One that waits with ``seconds`` of prefill of its own: ``going`` says whether its engine is still there."""

    __slots__ = ("prefill_seconds", "started")

    def __init__(self, started: "asyncio.Future[bool]", prefill_seconds: float) -> None:
        self.started = started
        self.prefill_seconds = prefill_seconds


class DispatchQueue:
    """Of all models of one process. ``told`` hears of each that waited (its model, and in one word how that ended)."""

    def __init__(
        self,
        routers: RouterRegistry,
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        report: Callable[[str, str], None],
    ) -> None:
        self._report = report
        self._routers = routers
        self._now = now
        self._loop = loop
        self._backlogs = BacklogDecay()
        self._waiting: dict[str, dict[str, dict[str, _QueuedDispatch]]] = {}  # by model, engine and request
        self._timer: asyncio.TimerHandle | None = None
        self._dispatch_scheduled = False

    def queued(self) -> dict[str, int]:
        """Requests that wait, by model."""
        return {key: sum(map(len, engines.values())) for key, engines in self._waiting.items()}

    def can_start(self, context: RequestContext) -> bool:
        """Whether the engine that was chosen can begin the request, or its preset does not ask."""
        router = self._routers.router(context.request.model_key)
        if router is None or not router.queues_assigned or context.handoff is not None:
            return True
        return self._is_free(router, context.request.model_key, context.instance_id, self._now())

    async def wait(self, context: RequestContext) -> bool:
        """Until its engine can begin. False: that is not ready any more, and another is to be chosen."""
        key, name, router = (
            context.request.model_key,
            context.instance_id,
            self._routers.router(context.request.model_key),
        )
        place = None if router is None else router.endpoint(name)
        if router is None or place is None:
            return False
        before = place.load.backlog_seconds
        router.on_dispatch(context.route_request, name, self._now())
        one = _QueuedDispatch(self._loop.create_future(), place.load.backlog_seconds - before)
        self._waiting.setdefault(key, {}).setdefault(name, {})[context.route_request.id] = one
        self._start_timer()
        going = False
        try:
            going = await one.started
        finally:
            self._remove(key, name, context.route_request.id)
            if not going:
                router.on_abandoned(context.route_request.id, self._now())
            self._report(key, "berth" if going else "left")
        context.counted_at = name if going else ""
        return going

    def schedule_dispatch(self, key: str) -> None:
        """Something of a model's began or ended: once for all that happens in this turn of the loop."""
        if key in self._waiting and not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            self._loop.call_soon(self._dispatch_ready)

    def on_fleet_update(self) -> None:
        """The routes have taken over another fleet."""
        for key, engines in self._waiting.items():
            ready = self._routers.ready_instances(key)
            for one in [one for name, ones in engines.items() if name not in ready for one in ones.values()]:
                if not one.started.done():
                    one.started.set_result(False)

    def _is_free(self, router: ModelRouter, key: str, name: str, now: float) -> bool:
        """Whether an engine can begin one more, and nobody of ours waits for it."""
        return not self._waiting.get(key, {}).get(name) and self._has_room(router, name, {}, now)

    def _has_room(self, router: ModelRouter, name: str, waiting: Mapping[str, _QueuedDispatch], now: float) -> bool:
        place = router.endpoint(name)
        if place is None or place.load.waiting <= len(waiting):
            return True
        sent = place.load.backlog_seconds - sum([one.prefill_seconds for one in waiting.values()])
        step = place.profile.prefill_time(place.profile.step_tokens)
        return self._backlogs.remaining_seconds(name, sent, now) < MAX_WAITING_STEP_SHARE * step

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(POLL_SECONDS, self._dispatch_ready)

    def _dispatch_ready(self) -> None:
        """Let go whoever can begin; one at a time, since who goes counts for the next."""
        self._dispatch_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._now()
        for key, engines in list(self._waiting.items()):
            router = self._routers.router(key)
            for name, ones in list(engines.items()):
                while ones and (router is None or self._has_room(router, name, ones, now)):
                    first = min(ones) if router is None else min(ones, key=router.queue_key)
                    one = ones[first]
                    self._remove(key, name, first)
                    if not one.started.done():
                        one.started.set_result(True)
        if self._waiting:
            self._start_timer()

    def _remove(self, key: str, name: str, request: str) -> None:
        engines = self._waiting.get(key, {})
        ones = engines.get(name, {})
        ones.pop(request, None)
        if not ones:
            engines.pop(name, None)
        if not engines:
            self._waiting.pop(key, None)
