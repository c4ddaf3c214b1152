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

from fairlead_gateway.job import Job
from fairlead_gateway.queueing.backlog import Backlogs
from fairlead_gateway.queueing.gate import LOOK_SECONDS, ROOM_STEPS
from fairlead_gateway.route import Routes
from fairlead_gateway.routing import ModelRouter


class _Waits:
    """One that waits with ``seconds`` of prefill of its own: ``going`` says whether its engine is still there."""

    __slots__ = ("going", "seconds")

    def __init__(self, going: "asyncio.Future[bool]", seconds: float) -> None:
        self.going = going
        self.seconds = seconds


class Berths:
    """Of all models of one process. ``told`` hears of each that waited (its model, and in one word how that ended)."""

    def __init__(
        self,
        routes: Routes,
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        told: Callable[[str, str], None],
    ) -> None:
        self._told = told
        self._routes = routes
        self._now = now
        self._loop = loop
        self._backlogs = Backlogs()
        self._waiting: dict[str, dict[str, dict[str, _Waits]]] = {}  # by model, engine and request
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False

    def held(self) -> dict[str, int]:
        """Requests that wait, by model."""
        return {key: sum(map(len, engines.values())) for key, engines in self._waiting.items()}

    def begins(self, job: Job) -> bool:
        """Whether the engine that was chosen can begin the request, or its preset does not ask."""
        router = self._routes.router(job.ask.key)
        if router is None or not router.holds or job.handoff is not None:
            return True
        return self._free(router, job.ask.key, job.instance_id, self._now())

    async def wait(self, job: Job) -> bool:
        """Until its engine can begin. False: that is not ready any more, and another is to be chosen."""
        key, name, router = job.ask.key, job.instance_id, self._routes.router(job.ask.key)
        place = None if router is None else router.place(name)
        if router is None or place is None:
            return False
        before = place.tally.backlog_seconds
        router.dispatched(job.route, name, self._now())
        one = _Waits(self._loop.create_future(), place.tally.backlog_seconds - before)
        self._waiting.setdefault(key, {}).setdefault(name, {})[job.route.id] = one
        self._look_later()
        going = False
        try:
            going = await one.going
        finally:
            self._gone(key, name, job.route.id)
            if not going:
                router.abandoned(job.route.id, self._now())
            self._told(key, "berth" if going else "left")
        job.assigned = name if going else ""
        return going

    def look_soon(self, key: str) -> None:
        """Something of a model's began or ended: once for all that happens in this turn of the loop."""
        if key in self._waiting and not self._soon:
            self._soon = True
            self._loop.call_soon(self._look)

    def apply(self) -> None:
        """The routes have taken over another fleet."""
        for key, engines in self._waiting.items():
            ready = self._routes.ready_ids(key)
            for one in [one for name, ones in engines.items() if name not in ready for one in ones.values()]:
                if not one.going.done():
                    one.going.set_result(False)

    def _free(self, router: ModelRouter, key: str, name: str, now: float) -> bool:
        """Whether an engine can begin one more, and nobody of ours waits for it."""
        return not self._waiting.get(key, {}).get(name) and self._room(router, name, {}, now)

    def _room(self, router: ModelRouter, name: str, waiting: Mapping[str, _Waits], now: float) -> bool:
        place = router.place(name)
        if place is None or place.tally.waiting <= len(waiting):
            return True
        sent = place.tally.backlog_seconds - sum([one.seconds for one in waiting.values()])
        step = place.profile.prefill(place.profile.step_tokens)
        return self._backlogs.left(name, sent, now) < ROOM_STEPS * step

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Let go whoever can begin; one at a time, since who goes counts for the next."""
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._now()
        for key, engines in list(self._waiting.items()):
            router = self._routes.router(key)
            for name, ones in list(engines.items()):
                while ones and (router is None or self._room(router, name, ones, now)):
                    first = min(ones) if router is None else min(ones, key=router.order)
                    one = ones[first]
                    self._gone(key, name, first)
                    if not one.going.done():
                        one.going.set_result(True)
        if self._waiting:
            self._look_later()

    def _gone(self, key: str, name: str, request: str) -> None:
        engines = self._waiting.get(key, {})
        ones = engines.get(name, {})
        ones.pop(request, None)
        if not ones:
            engines.pop(name, None)
        if not engines:
            self._waiting.pop(key, None)
