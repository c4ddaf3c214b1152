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

from fairlead.clock import Clock
from fairlead.fleet import Fleet, InstanceState, Model, Role
from fairlead.limits import Limits
from fairlead_gateway.berths import Berths
from fairlead_gateway.comeback import whole_seconds
from fairlead_gateway.errors import GatewayError, Overloaded, Shed
from fairlead_gateway.job import Job
from fairlead_gateway.queueing.gate import LOOK_SECONDS, Asked, Engine, Gate, Kind, Release, Verdict
from fairlead_gateway.queueing.order import Waiting
from fairlead_gateway.route import Routes
from fairlead_gateway.telemetry import Telemetry

OBJECTIVE_DEFAULT_SECONDS: Final = 5.0


def _nobody(key: str) -> None:
    """Nobody hears that requests of a model wait."""


class Holding:
    """``keyed``: callers are told apart, and share a model's engines fairly. ``waking`` hears, now and then, of each model whose
    requests wait for a first instance."""

    def __init__(
        self,
        *,
        routes: Routes,
        telemetry: Telemetry,
        limits: Limits,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        keyed: bool,
    ) -> None:
        self._routes = routes
        self._telemetry = telemetry
        self._limits = limits
        self._now = clock.now
        self._loop = loop
        self._keyed = keyed
        self.waking = _nobody
        self._doors: dict[str, Door] = {}
        self._berths = Berths(routes, clock.now, loop, telemetry.held)
        self.begins = self._berths.begins

    def apply(self, fleet: Fleet) -> None:
        """A snapshot has been taken over by the routes."""
        self._berths.apply()
        for key in self._doors.keys() - fleet.models.keys():
            self._doors.pop(key).close()
        for key, model in fleet.models.items():
            door = self._doors.get(key)
            if door is None:
                if not self._needs(key, model, fleet):
                    continue
                door = self._doors[key] = Door(
                    key,
                    self._routes,
                    self._telemetry,
                    self._limits,
                    self._now,
                    self._loop,
                    self._keyed,
                    self._told,
                )
            door.apply(model, fleet)

    def _needs(self, key: str, model: Model, fleet: Fleet) -> bool:
        instances = fleet.instances.get(key, ())
        if any(one.role is Role.PREFILL for one in instances):
            return False
        states = {one.state for one in instances}
        waking = model.wakes or (InstanceState.STARTING in states and InstanceState.READY not in states)
        grows = model.objectives.ttft_per_kilo_token_seconds > 0.0
        return waking or grows or self._keyed or any(one.profile is not None for one in instances)

    def _told(self, key: str) -> None:
        self.waking(key)

    def straight(self, job: Job) -> bool:
        """Whether the request may go at once."""
        door = self._doors.get(job.ask.key)
        return door is None or door.passes(job)

    async def turn(self, job: Job) -> None:
        """Until the request may go. Raises GatewayError when it may not."""
        door = self._doors.get(job.ask.key)
        if door is not None and (job.asked is not None or not door.passes(job)):
            await door.wait(job)

    async def berth(self, job: Job) -> bool:
        """Until the engine that was chosen can begin it. False: it is not ready any more, and another is to be chosen."""
        job.assigned = ""
        return self.begins(job) or await self._berths.wait(job)

    def held(self) -> dict[str, int]:
        """Requests that wait, by model; models of which nobody waits are left out."""
        berths = self._berths.held()
        doors = {key: len(door) for key, door in self._doors.items() if len(door)}
        return {key: doors.get(key, 0) + berths.get(key, 0) for key in doors.keys() | berths.keys()}

    def doors(self) -> int:
        """Models whose requests may be held."""
        return len(self._doors)

    def sent(self, job: Job, now: float) -> None:
        """A request went to an engine."""
        door = self._doors.get(job.ask.key)
        if door is not None:
            door.sent(job, now)

    def first_token(self, job: Job, now: float) -> None:
        """Its first token came."""
        self._berths.look_soon(job.ask.key)
        door = self._doors.get(job.ask.key)
        if door is not None:
            door.first_token(job, now)

    def ended(self, job: Job, finished: bool, now: float) -> None:
        """It is over on its engine; ``finished``: its answer was complete."""
        self._berths.look_soon(job.ask.key)
        door = self._doors.get(job.ask.key)
        if door is not None:
            door.ended(job, finished, now)


class Door:
    """Of one model."""

    def __init__(
        self,
        key: str,
        routes: Routes,
        telemetry: Telemetry,
        limits: Limits,
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        keyed: bool,
        waking: Callable[[str], None],
    ) -> None:
        self._key = key
        self._tell = waking
        self._told_at = -math.inf
        self._ready_since = -math.inf
        self._routes = routes
        self._telemetry = telemetry
        self._limits = limits
        self._now = now
        self._loop = loop
        self._keyed = keyed
        self._gate = Gate(limits)
        self._model: Model | None = None
        self._kv: dict[str, float] = {}
        self._least_kv = 0.0
        self._plain = False
        self._any_ready = self._waking = False
        self._held: dict[str, tuple[Job, asyncio.Future[Release]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False

    def __len__(self) -> int:
        return len(self._held)

    def apply(self, model: Model, fleet: Fleet) -> None:
        """The model and its instances as they are now."""
        instances = fleet.instances.get(self._key, ())
        ready = [one for one in instances if one.state is InstanceState.READY]
        self._model = model
        self._kv = {one.id: float(one.profile.kv_tokens) for one in ready if one.profile is not None}
        self._least_kv = min(self._kv.values(), default=float("inf"))
        self._plain = bool(ready) and not self._keyed and model.objectives.ttft_per_kilo_token_seconds <= 0.0
        if ready and not self._any_ready:
            self._ready_since = self._now()
        self._any_ready = bool(ready)
        self._waking = not ready and (model.wakes or any(one.state is InstanceState.STARTING for one in instances))
        self._gate.memory.keep(frozenset(one.id for one in ready))
        self._look()

    def passes(self, job: Job) -> bool:
        """Whether it may go at once; what it asks is noted on the job."""
        gate, now = self._gate, self._now()
        if self._plain and not self._held and gate.memory.roomy(job.route, self._least_kv):
            return True
        if not self._waking and not self._routes.ready_ids(self._key):
            return True  # routing says that there is none
        asked = job.asked = self._asked(job)
        verdict = gate.passes(asked, self._engines(now), now)
        if verdict is None:
            return False
        job.avoid = verdict.full
        return True

    async def wait(self, job: Job) -> None:
        """Its turn. Raises GatewayError when it is refused, at once or after a while."""
        asked, now = job.asked, self._now()
        assert asked is not None
        verdict = self._gate.joins(asked, self._engines(now), now)
        if verdict.kind is Kind.REFUSE:
            self._telemetry.held(self._key, verdict.rule)
            raise self._error(verdict)
        turn: asyncio.Future[Release] = self._loop.create_future()
        self._held[job.id] = (job, turn)
        self._look_soon()
        try:
            release = await turn
        finally:
            if self._held.pop(job.id, None) is not None:
                self._gate.left(job.id)
                self._telemetry.held(self._key, "left")
        job.avoid, job.release = release.full, release

    def sent(self, job: Job, now: float) -> None:
        """A request went to an engine."""
        router = self._routes.router(self._key)
        tokens = job.route.prompt_tokens if router is None else router.prompt_tokens(job.route)
        self._gate.memory.sent(job.route, job.instance_id, tokens, job.request.caller, now)

    def first_token(self, job: Job, now: float) -> None:
        """Its first token came."""
        self._gate.memory.first_token(job.route.id, now)
        if self._held:
            self._look_soon()

    def ended(self, job: Job, finished: bool, now: float) -> None:
        """It is over on its engine."""
        output = job.output_tokens if finished else None
        self._gate.finished(job.route.id, job.request.caller, job.route.prompt_tokens, output, now)
        if self._held:
            self._look_soon()

    def close(self) -> None:
        """The model is gone."""
        for name in list(self._held):
            self._refuse(name, self._routes.none_ready(self._key, self._now()))

    # Looking ---------------------------------------------------------------------------------------------------------------

    def _asked(self, job: Job) -> Asked:
        route, model = job.route, self._model
        router = self._routes.router(self._key)
        assert router is not None
        assert model is not None
        prompt, standing = router.prompt_tokens(route), router.standing()
        limit = model.objectives.ttft_limit(prompt)
        own = standing[0][0].profile.prefill(prompt, prompt - router.uncached(route)) if standing else 0.0
        caller = job.request.caller
        waiting = Waiting(
            job.id,
            job.request.received,
            OBJECTIVE_DEFAULT_SECONDS if limit is None else limit,
            own,
            tenant=caller,
            size=len(job.ask.body),
        )
        return Asked(waiting, route, prompt, caller)

    def _engines(self, now: float) -> list[Engine]:
        router = self._routes.router(self._key)
        if router is None:
            return []
        return [
            self._gate.engine(
                place.id,
                seen.backlog_seconds,
                place.profile.prefill(place.profile.step_tokens),
                self._kv.get(place.id),
                max(0.0, seen.inflight_tokens - place.tally.inflight_tokens),
                now,
            )
            for place, seen in router.standing()
        ]

    def _look_soon(self) -> None:
        """Once for all that happens in this turn of the loop, after those who were let go have been counted where they went."""
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._held:
            return
        now = self._now()
        engines = self._engines(now)
        if not engines:
            self._without(now)
        for name, verdict in self._gate.expired(len(engines), now, self._ready_since) if engines else ():
            self._telemetry.held(self._key, verdict.rule)
            self._refuse(name, self._error(verdict))
        release = self._gate.release(engines, now)
        if release is not None:
            self._telemetry.held(self._key, release.rule)
            _, turn = self._held.pop(release.id)
            if not turn.done():
                turn.set_result(release)
            self._look_soon()
        elif self._held:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _without(self, now: float) -> None:
        """No engine is ready: who has waited long enough for one, or for nothing, is told so."""
        limits, wakes = self._limits, self._model is not None and self._model.wakes
        most = limits.hold_waking_seconds if wakes else limits.hold_starting_seconds if self._waking else 0.0
        if wakes and now - self._told_at >= limits.wake_seconds:
            self._told_at = now
            self._tell(self._key)
        for name, (job, _) in list(self._held.items()):
            if now - job.request.received >= most:
                self._telemetry.held(self._key, "none-ready")
                self._gate.left(name)
                self._refuse(name, self._routes.none_ready(self._key, now))

    def _refuse(self, name: str, error: GatewayError) -> None:
        held = self._held.pop(name, None)
        if held is not None and not held[1].done():
            held[1].set_exception(error)

    def _error(self, verdict: Verdict) -> GatewayError:
        seconds = whole_seconds(verdict.retry_after or 1.0, self._limits.retry_after_most_seconds)
        kind = Shed if verdict.shed else Overloaded
        return kind(verdict.reason, hint="try again later", fields=(("retry-after", str(seconds)),))
