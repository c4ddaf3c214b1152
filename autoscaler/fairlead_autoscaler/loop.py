"""The loop: every few seconds look at all models, decide, act, and keep what was seen and why.

A tick reads the world first and then the gateways, shows each model's core what there is, lays the owner's wishes over the plan and
writes what differs. What a core asks of a solver is solved beside the ticks (``mix.Desk``), and the next tick after that shows it the
answer. Where the world cannot be told nothing is decided. A core that fails costs its own model that tick: everything of it stays,
and it begins anew. A hint that a request is held makes the next tick come at once, unless hints did so too often in the last minute:
every tick asks all gateways and keeps a look at every model, so a flood of hints would push out what was kept before.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from fairlead.api import Autoscaling, ScalingMode
from fairlead.clock import Clock
from fairlead.errors import FairleadError
from fairlead.fleet import Scaler
from fairlead.limits import Limits
from fairlead.units import seconds
from fairlead_autoscaler import governor
from fairlead_autoscaler.governor import Ruling, Watch
from fairlead_autoscaler.recording import Look
from fairlead_autoscaler.scaling import MixAsked, MixTold, Observation, Plan, ScaledModel, ScalingSettings, State
from fairlead_autoscaler.seen import Readings, observation
from fairlead_autoscaler.victims import leaving
from fairlead_autoscaler.world import ModelState, World

STATE_EVERY = 60
"""Of so many looks one carries what the core remembered before it, so that a replay can begin there."""
_MINUTE = 60.0
_log = logging.getLogger("fairlead.autoscaler")


class Sizer(Protocol):
    """The pure core of one model, with what it has learned (``scaling.Core``). ``model`` and ``settings`` may be replaced."""

    model: ScaledModel
    settings: ScalingSettings
    state: State

    def step(self, seen: Observation) -> Plan:
        """What to do now."""
        ...


class Reader(Protocol):
    """What reads all gateways (``reading.Gateways``)."""

    async def read(self, models: "frozenset[str]") -> Readings:
        """Everybody's part since the last look."""
        ...


class Solving(Protocol):
    """Where cores' questions are solved (``mix.Desk``); nothing here waits."""

    def ask(self, model: str, asks: Mapping[str, MixAsked]) -> None:
        """Have these solved, by role."""
        ...

    def told(self, model: str) -> Mapping[str, MixTold]:
        """The answers, by role, that came since this was asked last."""
        ...

    def keep(self, models: Collection[str]) -> None:
        """Forget what others asked."""
        ...


@dataclass(slots=True)
class _Known:
    """What is kept of a model from tick to tick."""

    sizer: Sizer
    ticks: int = 0
    watch: Watch = field(default_factory=Watch)
    look: Look | None = None
    failed: str | None = None


@dataclass(slots=True)
class Counts:
    """Since the start. Writes are by (model, pool, ``up``, ``down`` or ``asleep``), decisions by (model, pool, rule)."""

    ticks: int = 0
    skipped: int = 0
    wakes: int = 0
    tick_seconds: float = 0.0
    writes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    decisions: Counter[tuple[str, str, str]] = field(default_factory=Counter)


class Loop:
    """``sizer`` makes the core of a model, to begin with ``settings``. ``keep`` is told every look. ``leads``: this process is the
    one that writes; one that does not decides all the same, so that it is warm when it takes over. ``frozen``: nothing is written at
    all. ``desk`` has cores' questions solved; without one they stay unanswered. ``clock`` runs ``speed`` times as fast as the
    machine's."""

    def __init__(
        self,
        world: World,
        scaler: Scaler,
        gateways: Reader,
        sizer: Callable[[ScaledModel, ScalingSettings], Sizer],
        *,
        clock: Clock,
        limits: Limits,
        keep: Callable[[Look], None],
        settings: ScalingSettings | None = None,
        frozen: bool = False,
        leads: Callable[[], bool] = lambda: True,
        desk: Solving | None = None,
        speed: float = 1.0,
    ) -> None:
        self._world = world
        self._scaler = scaler
        self._gateways = gateways
        self._sizer = sizer
        self._clock = clock
        self._limits = limits
        self._keep = keep
        self._settings = settings or ScalingSettings()
        self._frozen = frozen
        self._leads = leads
        self._desk = desk
        self._speed = speed
        self._known: dict[str, _Known] = {}
        self._hints: dict[str, float] = {}
        self._hastened: list[float] = []
        self._soon = asyncio.Event()
        self.counts = Counts()
        self.decided_at: float | None = None
        self.away: str | None = "nothing has been looked at yet"
        self.readings = Readings()
        self.problems: dict[tuple[str, str], str] = {}

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            began = self._clock.now()
            await self.tick()
            self.counts.tick_seconds = self._clock.now() - began
            await self._pause(began + self._limits.autoscaler_tick_seconds)

    async def _pause(self, until: float) -> None:
        """Until the next tick is due, or somebody waits for it; two are never closer than the limit says."""
        await asyncio.sleep(self._limits.autoscaler_wake_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock.now()) / self._speed):
                await self._soon.wait()

    def wake(self, model: str) -> bool:
        """A gateway holds a request of a model for which there is no replica. False: no such model is scaled."""
        if model not in self._known:
            return False
        now = self._clock.now()
        self.counts.wakes += 1
        self._hints[model] = now
        self._hastened = [at for at in self._hastened if now - at < _MINUTE]
        if not self._soon.is_set() and len(self._hastened) < self._limits.autoscaler_hastened:
            self._hastened.append(now)
            self._soon.set()
        return True

    def looks(self) -> Mapping[str, Look]:
        """The last look at each model."""
        return {key: known.look for key, known in self._known.items() if known.look is not None}

    @property
    def frozen(self) -> bool:
        """Nothing is written."""
        return self._frozen

    @property
    def leads(self) -> bool:
        """This process writes."""
        return self._leads()

    def notes(self) -> list[str]:
        """What is wrong now, in words."""
        found = [] if self.away is None else [self.away]
        found += self.readings.notes
        found += [f"{key}: {known.failed}" for key, known in self._known.items() if known.failed is not None]
        found += [f"{key}/{pool}: {why}" for (key, pool), why in sorted(self.problems.items())]
        return found

    # A tick --------------------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Look, decide, act, once."""
        self._soon.clear()
        try:
            async with asyncio.timeout(self._limits.autoscaler_world_seconds):
                found = await self._world.look()
        except (FairleadError, TimeoutError) as error:
            self.counts.skipped += 1
            self.away = f"what there is to scale cannot be told: {error or 'no answer in time'}"
            return
        states = {key: state for key, state in found.items() if state.policy.mode is not ScalingMode.OFF}
        self.readings = await self._gateways.read(frozenset(states))
        now = self._clock.now()
        self.away = None
        for gone in self._known.keys() - states.keys():
            del self._known[gone]
        if self._desk is not None:
            self._desk.keep(self._known.keys())
        self._hints = {key: at for key, at in self._hints.items() if now - at < governor.WAKE_SECONDS}
        rulings = {key: self._decided(key, state, now) for key, state in states.items()}
        self.counts.ticks += 1
        self.decided_at = now
        if self._leads():
            await asyncio.gather(*(self._act(key, states[key], ones) for key, ones in rulings.items()))

    def _decided(self, key: str, state: ModelState, now: float) -> dict[str, Ruling]:
        known, wall = self._of(key, state), self._clock.wall()
        seen = observation(state, self.readings, now, self._limits.autoscaler_signals_seconds, wall)
        if self._desk is not None:
            seen = replace(seen, mixes=self._desk.told(key))
        before = known.sizer.state if known.ticks % STATE_EVERY == 0 else None
        known.ticks += 1
        plan = self._planned(key, known, seen)
        if self._desk is not None:
            self._desk.ask(key, plan.asks)
        told = seen.gateway
        arrivals, held = (None, None) if told is None else (told.arrivals, told.held)
        known.watch = governor.watched(known.watch, state, now, asked=governor.asked(seen.pools, arrivals, held))
        woken = key in self._hints
        rulings = governor.governed(known.watch, state, plan, now, wall, woken=woken, frozen=self._frozen)
        if not self._leads():
            other = "another replica of the autoscaler leads"
            rulings = {pool: replace(one, unwritten=one.unwritten or other) for pool, one in rulings.items()}
        mode, model = state.policy.mode.value, known.sizer.model
        known.look = Look(wall, model, seen, plan, rulings, mode, self.readings.notes, known.sizer.settings, before)
        self.counts.decisions.update((key, pool, one.rule) for pool, one in rulings.items())
        self._keep(known.look)
        return rulings

    def _planned(self, key: str, known: _Known, seen: Observation) -> Plan:
        try:
            plan = known.sizer.step(seen)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other models go on, and this one stays as it is
            _log.error("the core of %s failed; it begins anew", key, exc_info=error)
            known.failed = f"its core failed ({type(error).__name__}); everything stays"
            known.sizer = self._sizer(known.sizer.model, known.sizer.settings)
            return Plan()
        known.failed = None
        return plan

    def _of(self, key: str, state: ModelState) -> _Known:
        """What is known of a model, as it is wanted now."""
        facts, settings = governor.widest(state.model, state.policy), wanted_settings(self._settings, state.policy)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known(self._sizer(facts, settings))
        elif (known.sizer.model, known.sizer.settings) != (facts, settings):
            known.sizer.model, known.sizer.settings = facts, settings
        return known

    async def _act(self, key: str, state: ModelState, rulings: Mapping[str, Ruling]) -> None:
        # Those that shrink first: of pools that share a number of engines there are never more than that.
        for pool, ruling in sorted(rulings.items(), key=lambda one: one[1].grows):
            if not ruling.writes:
                self.problems.pop((key, pool), None)
                continue
            down = ruling.replicas < ruling.desired
            rests = ruling.asleep != ruling.asleep_desired
            order = leaving(key, state.pools[pool].replicas, self.readings) if down or rests else ()
            try:
                async with asyncio.timeout(self._limits.autoscaler_world_seconds):
                    await self._scaler.scale(key, pool, ruling.replicas, order, ruling.asleep)
            except (FairleadError, TimeoutError) as error:
                self.counts.refused[key, pool] += 1
                self.problems[key, pool] = f"{ruling.replicas} could not be written: {error or 'no answer in time'}"
                _log.warning("%s/%s: %s", key, pool, self.problems[key, pool])
                continue
            self.problems.pop((key, pool), None)
            if ruling.replicas != ruling.desired:
                self.counts.writes[key, pool, "down" if down else "up"] += 1
            if rests:
                self.counts.writes[key, pool, "asleep"] += 1
            change = f"{ruling.desired} -> {ruling.replicas}"
            if rests:
                change += f", asleep {ruling.asleep_desired} -> {ruling.asleep}"
            _log.info("%s/%s: %s (%s: %s)", key, pool, change, ruling.rule, ruling.reason)


def wanted_settings(settings: ScalingSettings, policy: Autoscaling) -> ScalingSettings:
    """The settings of a model whose owner has said something about them."""
    if policy.down_window is None:
        return settings
    window = seconds(policy.down_window)
    return replace(settings, window_seconds=window, window_least_seconds=window)
