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
from fairlead.errors import FairleadError
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.units import parse_duration
from fairlead_autoscaler import enforcer
from fairlead_autoscaler.collector.observation import GatewaySnapshot, build_observation
from fairlead_autoscaler.core import (
    CoreState,
    MixRequest,
    MixResult,
    ModelSpec,
    Observation,
    ScalingPlan,
    ScalingSettings,
)
from fairlead_autoscaler.enforcer import EnforcedPlan, PolicyState
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.scale_down_order import removal_order
from fairlead_autoscaler.target import ModelState, ReplicaScaler, ScaleTarget

STATE_EVERY = 60
"""Of so many looks one carries what the core remembered before it, so that a replay can begin there."""
_MINUTE = 60.0
_log = logging.getLogger("fairlead.autoscaler")


class ModelCore(Protocol):
    """The pure core of one model, with what it has learned (``scaling.Core``). ``model`` and ``settings`` may be replaced."""

    model: ModelSpec
    settings: ScalingSettings
    state: CoreState

    def step(self, observation: Observation) -> ScalingPlan:
        """What to do now."""
        ...


class GatewayReader(Protocol):
    """What reads all gateways (``reading.Gateways``)."""

    async def scrape(self, models: "frozenset[str]") -> GatewaySnapshot:
        """Everybody's part since the last look."""
        ...


class MixSolver(Protocol):
    """Where cores' questions are solved (``mix.Desk``); nothing here waits."""

    def submit(self, model: str, asks: Mapping[str, MixRequest]) -> None:
        """Have these solved, by role."""
        ...

    def take_results(self, model: str) -> Mapping[str, MixResult]:
        """The answers, by role, that came since this was asked last."""
        ...

    def retain(self, models: Collection[str]) -> None:
        """Forget what others asked."""
        ...


@dataclass(slots=True)
class _ModelRun:
    """What is kept of a model from tick to tick."""

    core: ModelCore
    ticks: int = 0
    policy_state: PolicyState = field(default_factory=PolicyState)
    last_record: TickRecord | None = None
    failure: str | None = None


@dataclass(slots=True)
class LoopCounters:
    """Since the start. Writes are by (model, pool, ``up``, ``down`` or ``asleep``), decisions by (model, pool, rule)."""

    ticks: int = 0
    skipped: int = 0
    wakes: int = 0
    tick_seconds: float = 0.0
    writes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    decisions: Counter[tuple[str, str, str]] = field(default_factory=Counter)


class ControlLoop:
    """``sizer`` makes the core of a model, to begin with ``settings``. ``keep`` is told every look. ``leads``: this process is the
    one that writes; one that does not decides all the same, so that it is warm when it takes over. ``frozen``: nothing is written at
    all. ``desk`` has cores' questions solved; without one they stay unanswered. ``clock`` runs ``speed`` times as fast as the
    machine's."""

    def __init__(
        self,
        target: ScaleTarget,
        scaler: ReplicaScaler,
        gateways: GatewayReader,
        make_core: Callable[[ModelSpec, ScalingSettings], ModelCore],
        *,
        clock: Clock,
        limits: Limits,
        on_record: Callable[[TickRecord], None],
        settings: ScalingSettings | None = None,
        frozen: bool = False,
        leads: Callable[[], bool] = lambda: True,
        mix_solver: MixSolver | None = None,
        speed: float = 1.0,
    ) -> None:
        self._target = target
        self._scaler = scaler
        self._gateway_reader = gateways
        self._make_core = make_core
        self._clock = clock
        self._limits = limits
        self._on_record = on_record
        self._settings = settings or ScalingSettings()
        self._frozen = frozen
        self._is_leader = leads
        self._mix_solver = mix_solver
        self._speed = speed
        self._runs: dict[str, _ModelRun] = {}
        self._hints: dict[str, float] = {}
        self._early_ticks: list[float] = []
        self._tick_now = asyncio.Event()
        self.counters = LoopCounters()
        self.decided_at: float | None = None
        self.unavailable_reason: str | None = "nothing has been looked at yet"
        self.gateways = GatewaySnapshot()
        self.problems: dict[tuple[str, str], str] = {}

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            began = self._clock.now()
            await self.tick()
            self.counters.tick_seconds = self._clock.now() - began
            await self._pause(began + self._limits.autoscaler_tick_seconds)

    async def _pause(self, until: float) -> None:
        """Until the next tick is due, or somebody waits for it; two are never closer than the limit says."""
        await asyncio.sleep(self._limits.autoscaler_min_tick_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock.now()) / self._speed):
                await self._tick_now.wait()

    def wake(self, model: str) -> bool:
        """A gateway holds a request of a model for which there is no replica. False: no such model is scaled."""
        if model not in self._runs:
            return False
        now = self._clock.now()
        self.counters.wakes += 1
        self._hints[model] = now
        self._early_ticks = [at for at in self._early_ticks if now - at < _MINUTE]
        if not self._tick_now.is_set() and len(self._early_ticks) < self._limits.autoscaler_hinted_ticks_per_minute:
            self._early_ticks.append(now)
            self._tick_now.set()
        return True

    def last_records(self) -> Mapping[str, TickRecord]:
        """The last look at each model."""
        return {key: known.last_record for key, known in self._runs.items() if known.last_record is not None}

    @property
    def is_frozen(self) -> bool:
        """Nothing is written."""
        return self._frozen

    @property
    def is_leader(self) -> bool:
        """This process writes."""
        return self._is_leader()

    def notes(self) -> list[str]:
        """What is wrong now, in words."""
        found = [] if self.unavailable_reason is None else [self.unavailable_reason]
        found += self.gateways.notes
        found += [f"{key}: {known.failure}" for key, known in self._runs.items() if known.failure is not None]
        found += [f"{key}/{pool}: {why}" for (key, pool), why in sorted(self.problems.items())]
        return found

    # A tick --------------------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Look, decide, act, once."""
        self._tick_now.clear()
        try:
            async with asyncio.timeout(self._limits.autoscaler_cluster_seconds):
                found = await self._target.observe()
        except (FairleadError, TimeoutError) as error:
            self.counters.skipped += 1
            self.unavailable_reason = f"what there is to scale cannot be told: {error or 'no answer in time'}"
            return
        states = {key: state for key, state in found.items() if state.policy.mode is not ScalingMode.OFF}
        self.gateways = await self._gateway_reader.scrape(frozenset(states))
        now = self._clock.now()
        self.unavailable_reason = None
        for gone in self._runs.keys() - states.keys():
            del self._runs[gone]
        if self._mix_solver is not None:
            self._mix_solver.retain(self._runs.keys())
        self._hints = {key: at for key, at in self._hints.items() if now - at < enforcer.WAKE_SECONDS}
        rulings = {key: self._decide(key, state, now) for key, state in states.items()}
        self.counters.ticks += 1
        self.decided_at = now
        if self._is_leader():
            await asyncio.gather(*(self._act(key, states[key], ones) for key, ones in rulings.items()))

    def _decide(self, key: str, state: ModelState, now: float) -> dict[str, EnforcedPlan]:
        known, wall = self._model_run(key, state), self._clock.wall()
        seen = build_observation(state, self.gateways, now, self._limits.autoscaler_signals_seconds, wall)
        if self._mix_solver is not None:
            seen = replace(seen, mixes=self._mix_solver.take_results(key))
        before = known.core.state if known.ticks % STATE_EVERY == 0 else None
        known.ticks += 1
        plan = self._plan(key, known, seen)
        if self._mix_solver is not None:
            self._mix_solver.submit(key, plan.asks)
        told = seen.gateway
        arrivals, held = (None, None) if told is None else (told.arrivals, told.held)
        known.policy_state = enforcer.update_policy_state(
            known.policy_state, state, now, has_requests=enforcer.has_requests(seen.pools, arrivals, held)
        )
        woken = key in self._hints
        rulings = enforcer.enforce(known.policy_state, state, plan, now, wall, is_woken=woken, is_frozen=self._frozen)
        if not self._is_leader():
            other = "another replica of the autoscaler leads"
            rulings = {pool: replace(one, unwritten=one.unwritten or other) for pool, one in rulings.items()}
        mode, model = state.policy.mode.value, known.core.model
        known.last_record = TickRecord(
            wall, model, seen, plan, rulings, mode, self.gateways.notes, known.core.settings.flat(), before
        )
        self.counters.decisions.update((key, pool, one.rule) for pool, one in rulings.items())
        self._on_record(known.last_record)
        return rulings

    def _plan(self, key: str, known: _ModelRun, seen: Observation) -> ScalingPlan:
        try:
            plan = known.core.step(seen)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other models go on, and this one stays as it is
            _log.error("the core of %s failed; it begins anew", key, exc_info=error)
            known.failure = f"its core failed ({type(error).__name__}); everything stays"
            known.core = self._make_core(known.core.model, known.core.settings)
            return ScalingPlan()
        known.failure = None
        return plan

    def _model_run(self, key: str, state: ModelState) -> _ModelRun:
        """What is known of a model, as it is wanted now."""
        facts, settings = (
            enforcer.with_widest_bounds(state.model, state.policy),
            settings_for(self._settings, state.policy),
        )
        known = self._runs.get(key)
        if known is None:
            known = self._runs[key] = _ModelRun(self._make_core(facts, settings))
        elif (known.core.model, known.core.settings) != (facts, settings):
            known.core.model, known.core.settings = facts, settings
        return known

    async def _act(self, key: str, state: ModelState, rulings: Mapping[str, EnforcedPlan]) -> None:
        # Those that shrink first: of pools that share a number of engines there are never more than that.
        for pool, ruling in sorted(rulings.items(), key=lambda one: one[1].is_growing):
            if not ruling.needs_write:
                self.problems.pop((key, pool), None)
                continue
            down = ruling.replicas < ruling.desired
            rests = ruling.asleep != ruling.asleep_desired
            order = removal_order(key, state.pools[pool].replicas, self.gateways) if down or rests else ()
            try:
                async with asyncio.timeout(self._limits.autoscaler_cluster_seconds):
                    await self._scaler.scale(key, pool, ruling.replicas, order, ruling.asleep)
            except (FairleadError, TimeoutError) as error:
                self.counters.refused[key, pool] += 1
                self.problems[key, pool] = f"{ruling.replicas} could not be written: {error or 'no answer in time'}"
                _log.warning("%s/%s: %s", key, pool, self.problems[key, pool])
                continue
            self.problems.pop((key, pool), None)
            if ruling.replicas != ruling.desired:
                self.counters.writes[key, pool, "down" if down else "up"] += 1
            if rests:
                self.counters.writes[key, pool, "asleep"] += 1
            change = f"{ruling.desired} -> {ruling.replicas}"
            if rests:
                change += f", asleep {ruling.asleep_desired} -> {ruling.asleep}"
            _log.info("%s/%s: %s (%s: %s)", key, pool, change, ruling.rule, ruling.reason)


def settings_for(settings: ScalingSettings, policy: Autoscaling) -> ScalingSettings:
    """The settings of a model whose owner has said something about them."""
    if policy.down_window is None:
        return settings
    window = parse_duration(policy.down_window)
    return settings.with_values({"window_seconds": window, "window_least_seconds": window})
