"""Control loop: every few seconds it observes all models, decides, writes and records.

A tick reads the scale target first, then the gateways. Each model's core gets its observation, the
model's policy applies to the plan, and what differs is written. A tick waits for its writes for a
second. Slower ones go on, and their models get no other write meanwhile. Queries of a core to a
solver are solved between ticks, and the next tick brings the reply. While the scale target is
unavailable nothing is decided.

If a core fails, its model keeps its replicas for that tick, and a new core begins. A hint that a
request is queued makes the next tick come early, `AUTOSCALER_HINTED_TICKS_PER_MINUTE` times
a minute at most.

Why the limit: every tick requests all gateways and records every model, so too many ticks would
push out older records.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

from fairlead.api.spec.autoscaling import Autoscaling, ScalingMode
from fairlead.audit import Action, AuditEvent
from fairlead.errors import FairleadError
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead.units import parse_duration
from fairlead_autoscaler import scaling_policy
from fairlead_autoscaler.collector.observation import GatewaySnapshot, SignalAges, build_observation, moved_streams
from fairlead_autoscaler.core import (
    CoreState,
    MixRequest,
    MixResult,
    ModelSpec,
    Observation,
    ReplicaState,
    ScalingPlan,
    ScalingSettings,
)
from fairlead_autoscaler.drain_savings import DrainSavings
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.scale_down_order import removal_order
from fairlead_autoscaler.scaling_policy import EnforcedPlan, PolicyState
from fairlead_autoscaler.target import ModelState, ReplicaScaler, ScaleTarget

AUTOSCALER_HINTED_TICKS_PER_MINUTE: Final = 12
"""Limit: additional ticks per minute because of hints, as many as without: a flood keeps half of
the history.
"""
AUTOSCALER_MIN_TICK_SECONDS: Final = 0.2
"""Limit: minimum interval, whatever the number of hints."""
AUTOSCALER_EJECTED_SECONDS: Final = 60.0
"""Limit: an instance that every gateway has ejected for longer is no capacity, and is replaced."""
AUTOSCALER_SIGNALS_SECONDS: Final = 10.0
"""Limit: older signals of an engine count as missing."""
AUTOSCALER_CLUSTER_SECONDS: Final = 10.0
"""Limit: until the scale targets are read, or a replica count is written; then the tick goes on
without.
"""

STATE_EVERY = 60
"""Every 60th record carries the core's state before it, so that a replay can begin there."""
_MINUTE = 60.0
_WRITE_WAIT_SECONDS = 1.0
_WRITES_OF_NAMESPACE = 16
"""Models of one namespace whose numbers are written at the same time.

Why: each write is a connection to the API server, and a namespace has any number of models.
"""
_STARTING = (ReplicaState.PENDING, ReplicaState.WAKING)
"""States of replicas that are removed first, and have no streams."""
_OTHER_LEADS = "another replica of the autoscaler leads"
_log = logging.getLogger("fairlead.autoscaler")
_Entry = TypeVar("_Entry", bound=tuple[str, ...])
"""The key of a count, which begins with the key of a model."""


class ModelCore(Protocol):
    """The scaling core of one model, with its state (`core.ScalingCore`). Model and settings may be
    replaced between two steps.
    """

    model: ModelSpec
    settings: ScalingSettings
    state: CoreState

    def step(self, observation: Observation) -> ScalingPlan:
        """Returns the plan of one tick."""


class GatewayReader(Protocol):
    """A reader of all gateways (`collector.gateway_scraper`)."""

    async def scrape(self, models: "frozenset[str]") -> GatewaySnapshot:
        """Returns the metrics of all gateways since the last call, for these models."""


class MixSolver(Protocol):
    """A solver of the cores' queries (`mix.solver_queue`). No call waits."""

    def submit(self, model: str, requests: Mapping[str, MixRequest]) -> None:
        """Queues queries, by role."""

    def take_results(self, model: str) -> Mapping[str, MixResult]:
        """Returns the replies, by role, that came since the last call."""

    def retain(self, models: Collection[str]) -> None:
        """Drops the queries of all other models."""


@dataclass(frozen=True, slots=True)
class LoopParts:
    """The parts that a control loop connects.

    make_core: returns the core of a new model.
    on_record: called with the record of every tick.
    mix_solver: None: queries of cores get no reply.
    audit: called with every change of replicas that was written.
    """

    target: ScaleTarget
    scaler: ReplicaScaler
    gateways: GatewayReader
    make_core: Callable[[ModelSpec, ScalingSettings], ModelCore]
    on_record: Callable[[TickRecord], None]
    mix_solver: MixSolver | None = None
    audit: Callable[[AuditEvent], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """The options of a control loop.

    settings: of every core, unless a model's policy changes them.
    is_frozen: nothing is written.
    is_leader: whether this process writes. Without leadership it decides all the same, so that its
        cores have learned when it takes over.
    speed: how many times as fast as the machine's clock the loop's clock runs.
    """

    settings: ScalingSettings = field(default_factory=ScalingSettings)
    is_frozen: bool = False
    is_leader: Callable[[], bool] = lambda: True
    speed: float = 1.0
    min_tick_seconds: float = AUTOSCALER_MIN_TICK_SECONDS
    cluster_seconds: float = AUTOSCALER_CLUSTER_SECONDS


@dataclass(slots=True)
class LoopCounters:
    """Counts since the start.

    writes: by model, pool and `up`, `down` or `asleep`.
    decisions: by model, pool and rule.
    """

    ticks: int = 0
    skipped: int = 0
    wakes: int = 0
    tick_seconds: float = 0.0
    writes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    decisions: Counter[tuple[str, str, str]] = field(default_factory=Counter)


@dataclass(slots=True)
class _ModelRun:
    """The state of one model between ticks."""

    core: ModelCore
    ticks: int = 0
    policy_state: PolicyState = field(default_factory=PolicyState)
    last_record: TickRecord | None = None
    failure: str | None = None
    savings: DrainSavings = field(default_factory=DrainSavings)


class ControlLoop:
    """The control loop of all models.

    unavailable_reason: why the last tick decided nothing; None: it decided.
    problems: writes that failed, by model and pool.
    """

    def __init__(self, parts: LoopParts, options: LoopOptions, clock: Clock, limits: Limits) -> None:
        self._parts = parts
        self._options = options
        self._clock = clock
        self._limits = limits
        self._runs: dict[str, _ModelRun] = {}
        self._hints: dict[str, float] = {}
        self._early_ticks: list[float] = []
        self._tick_now = asyncio.Event()
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._newest: Mapping[str, tuple[ModelState, Mapping[str, EnforcedPlan]]] = {}
        self._write_slots: dict[str, asyncio.Semaphore] = {}
        self.counters = LoopCounters()
        self.decided_at: float | None = None
        self.unavailable_reason: str | None = "no tick is complete yet"
        self.gateways = GatewaySnapshot()
        self.problems: dict[tuple[str, str], str] = {}

    async def run(self) -> None:
        """Ticks until it is cancelled."""
        try:
            while True:
                began = self._clock.now()
                await self.tick()
                self.counters.tick_seconds = self._clock.now() - began
                await self._pause(began + self._limits.autoscaler_tick_seconds)
        finally:
            for writing in list(self._writing.values()):
                await cancel_and_wait(writing)

    async def _pause(self, until: float) -> None:
        """Waits until the next tick is due or a hint came, but at least the minimum time between
        ticks.
        """
        await asyncio.sleep(self._options.min_tick_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock.now()) / self._options.speed):
                await self._tick_now.wait()

    def wake(self, model: str) -> bool:
        """Records that a gateway queues a request of a model, and makes the next tick come early.

        Returns False for an unknown model. The number of early ticks per minute is limited.
        """
        if model not in self._runs:
            return False
        now = self._clock.now()
        self.counters.wakes += 1
        self._hints[model] = now
        self._early_ticks = [at for at in self._early_ticks if now - at < _MINUTE]
        if not self._tick_now.is_set() and len(self._early_ticks) < AUTOSCALER_HINTED_TICKS_PER_MINUTE:
            self._early_ticks.append(now)
            self._tick_now.set()
        return True

    def last_records(self) -> Mapping[str, TickRecord]:
        return {key: run.last_record for key, run in self._runs.items() if run.last_record is not None}

    @property
    def is_frozen(self) -> bool:
        return self._options.is_frozen

    @property
    def is_leader(self) -> bool:
        return self._options.is_leader()

    def notes(self) -> list[str]:
        """Returns all current problems, in words."""
        notes = [] if self.unavailable_reason is None else [self.unavailable_reason]
        notes += self.gateways.notes
        notes += [f"{key}: {run.failure}" for key, run in self._runs.items() if run.failure is not None]
        notes += [f"{key}/{pool}: {problem}" for (key, pool), problem in sorted(self.problems.items())]
        return notes

    async def tick(self) -> None:
        """Observes and decides once; the leader also writes.

        Nothing is decided while the scale target is unavailable.
        """
        self._tick_now.clear()
        try:
            async with asyncio.timeout(self._options.cluster_seconds):
                observed = await self._parts.target.observe()
        except (FairleadError, TimeoutError) as error:
            self.counters.skipped += 1
            self.unavailable_reason = f"the models are unavailable: {error or 'no reply in time'}"
            return
        states = {key: state for key, state in observed.items() if state.policy.mode is not ScalingMode.DISABLED}
        self.gateways = await self._parts.gateways.scrape(frozenset(states))
        now = self._clock.now()
        self.unavailable_reason = None
        self._forget_models(self._runs.keys() - states.keys())
        if self._parts.mix_solver is not None:
            self._parts.mix_solver.retain(self._runs.keys())
        self._hints = {key: at for key, at in self._hints.items() if now - at < scaling_policy.WAKE_SECONDS}
        rulings = {key: self._try_decide(key, state, now) for key, state in states.items()}
        self.counters.ticks += 1
        self.decided_at = now
        if self.is_leader:
            await self._write_all(states, rulings)

    def _try_decide(self, key: str, state: ModelState, now: float) -> dict[str, EnforcedPlan]:
        """Returns the enforced plan of each pool of a model; none if it cannot be decided."""
        try:
            return self._decide(key, state, now)
        except Exception as error:  # noqa: BLE001 - values of one model must not stop the others
            _log.error("%s is not scaled: it cannot be decided", key, exc_info=error)
            if key in self._runs:
                self._runs[key].failure = f"it cannot be decided ({type(error).__name__}); no pool changes"
            return {}

    async def _write_all(
        self, states: Mapping[str, ModelState], rulings: Mapping[str, Mapping[str, EnforcedPlan]]
    ) -> None:
        """Starts the writes of all models but those that still write, and waits a moment for them.

        A write that waits for its turn takes the newest plan then.

        Why: one namespace may have thousands of pods whose marks take minutes to write.
        """
        self._newest = {key: (states[key], pools) for key, pools in rulings.items()}
        self._writing = {key: task for key, task in self._writing.items() if not task.done()}
        for key in rulings:
            if key not in self._writing:
                self._writing[key] = asyncio.ensure_future(self._write_in_turn(key))
        if self._writing:
            await asyncio.wait(self._writing.values(), timeout=_WRITE_WAIT_SECONDS)

    async def _write_in_turn(self, key: str) -> None:
        namespace = key.partition("/")[0]
        async with self._write_slots.setdefault(namespace, asyncio.Semaphore(_WRITES_OF_NAMESPACE)):
            try:
                await self._write(key)
            except Exception as error:  # noqa: BLE001 - values of one model must not stop the others
                _log.error("%s could not be written", key, exc_info=error)

    def _forget_models(self, gone: Collection[str]) -> None:
        """Drops the state, problems and counts of models.

        Why: models come and go with new names, and each pool of each has its counts.
        """
        for key in gone:
            del self._runs[key]
        if gone:
            namespaces = {key.partition("/")[0] for key in (*self._runs, *self._writing)}
            self._write_slots = {name: slots for name, slots in self._write_slots.items() if name in namespaces}
            _drop_entries(self.problems, gone)
            _drop_entries(self.counters.writes, gone)
            _drop_entries(self.counters.refused, gone)
            _drop_entries(self.counters.decisions, gone)

    def _decide(self, key: str, state: ModelState, now: float) -> dict[str, EnforcedPlan]:
        """Returns the enforced plan of each pool of a model, and records the decision."""
        run, wall, solver = self._model_run(key, state), self._clock.wall(), self._parts.mix_solver
        for pool, seconds in run.savings.on_moved(*moved_streams(key, self.gateways), now).items():
            _log.info("%s/%s: removed replicas ended %.0f s earlier, since their streams moved", key, pool, seconds)
        ages = SignalAges(AUTOSCALER_SIGNALS_SECONDS, AUTOSCALER_EJECTED_SECONDS)
        observation = build_observation(state, self.gateways, now, ages, wall)
        if solver is not None:
            observation = replace(observation, mixes=solver.take_results(key))
        before = run.core.state if run.ticks % STATE_EVERY == 0 else None
        run.ticks += 1
        plan = self._plan(key, run, observation)
        if solver is not None:
            solver.submit(key, plan.asks)
        traffic = observation.gateway
        arrivals, held = (None, None) if traffic is None else (traffic.arrivals, traffic.held)
        run.policy_state = scaling_policy.update_policy_state(
            run.policy_state, state, now, has_requests=scaling_policy.has_requests(observation.pools, arrivals, held)
        )
        moment = scaling_policy.Moment(now, wall, is_woken=key in self._hints, is_frozen=self.is_frozen)
        rulings = scaling_policy.enforce(run.policy_state, state, plan, moment)
        if not self.is_leader:
            rulings = {
                pool: replace(ruling, unwritten=ruling.unwritten or _OTHER_LEADS) for pool, ruling in rulings.items()
            }
        run.last_record = TickRecord(
            wall=wall,
            model=run.core.model,
            observation=observation,
            plan=plan,
            rulings=rulings,
            mode=state.policy.mode.value,
            notes=self.gateways.notes,
            settings=run.core.settings.flat(),
            before=before,
            drain_saved_seconds=dict(run.savings.seconds),
        )
        self.counters.decisions.update((key, pool, ruling.rule) for pool, ruling in rulings.items())
        self._parts.on_record(run.last_record)
        return rulings

    def _plan(self, key: str, run: _ModelRun, observation: Observation) -> ScalingPlan:
        """Returns the core's plan. A core that fails is replaced, and its plan is empty."""
        try:
            plan = run.core.step(observation)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other models go on, and this one stays as it is
            _log.error("the core of %s failed; a new one begins", key, exc_info=error)
            run.failure = f"its core failed ({type(error).__name__}); no pool changes"
            run.core = self._parts.make_core(run.core.model, run.core.settings)
            return ScalingPlan()
        run.failure = None
        return plan

    def _model_run(self, key: str, state: ModelState) -> _ModelRun:
        """Returns the run of a model, with its current model and settings; a new run for a new
        model.
        """
        model = scaling_policy.with_widest_bounds(state.model, state.policy)
        settings = settings_for(self._options.settings, state.policy)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _ModelRun(self._parts.make_core(model, settings))
        elif (run.core.model, run.core.settings) != (model, settings):
            run.core.model, run.core.settings = model, settings
        return run

    async def _write(self, key: str) -> None:
        """Writes the enforced plans that differ from the current numbers; failures are recorded."""
        _, planned = self._newest.get(key, (None, {}))
        # Pools that shrink come first, so that pools which share a limit never exceed it.
        for pool in sorted(planned, key=lambda name: planned[name].is_growing):
            state, rulings = self._newest.get(key, (None, {}))
            if state is None or (ruling := rulings.get(pool)) is None:
                continue  # the model or its pool is gone, or the last tick could not decide it
            if not ruling.needs_write:
                self.problems.pop((key, pool), None)
                continue
            if not self.is_leader:
                return
            is_down = ruling.replicas < ruling.desired
            changes_asleep = ruling.asleep != ruling.asleep_desired
            order: tuple[str, ...] = ()
            if is_down or changes_asleep:
                order = removal_order(key, state.pools[pool].replicas, self.gateways)
            try:
                async with asyncio.timeout(self._options.cluster_seconds):
                    await self._parts.scaler.scale(key, pool, ruling.replicas, order, ruling.asleep)
            except (FairleadError, TimeoutError) as error:
                self.counters.refused[key, pool] += 1
                self.problems[key, pool] = f"{ruling.replicas} could not be written: {error or 'no reply in time'}"
                _log.warning("%s/%s: %s", key, pool, self.problems[key, pool])
                continue
            self.problems.pop((key, pool), None)
            change = f"{ruling.desired} -> {ruling.replicas}"
            if ruling.replicas != ruling.desired:
                self.counters.writes[key, pool, "down" if is_down else "up"] += 1
                starting = sum(replica.state in _STARTING for replica in state.pools[pool].replicas)
                removed = ruling.desired - ruling.replicas - starting
                if (run := self._runs.get(key)) is not None:
                    run.savings.on_removed(pool, removed, self._clock.now())
            if changes_asleep:
                self.counters.writes[key, pool, "asleep"] += 1
                change += f", asleep {ruling.asleep_desired} -> {ruling.asleep}"
            _log.info("%s/%s: %s (%s: %s)", key, pool, change, ruling.rule, ruling.reason)
            self._parts.audit(_scaling_event(key, pool, ruling))


def _scaling_event(key: str, pool: str, ruling: EnforcedPlan) -> AuditEvent:
    """Returns the audit event of a change of replicas that was written."""
    return AuditEvent(
        Action.SCALED,
        f"ModelDeployment/{key}",
        "fairlead-autoscaler",
        before={"pool": pool, "replicas": ruling.desired, "asleep": ruling.asleep_desired},
        after={"pool": pool, "replicas": ruling.replicas, "asleep": ruling.asleep},
        reason=f"{ruling.rule}: {ruling.reason}",
    )


def _drop_entries(counted: dict[_Entry, Any], models: Collection[str]) -> None:
    for entry in [entry for entry in counted if entry[0] in models]:
        del counted[entry]


def settings_for(settings: ScalingSettings, policy: Autoscaling) -> ScalingSettings:
    """Returns the settings with the stabilization window of a model's policy, if it has one."""
    if policy.stabilization_window is None:
        return settings
    window = parse_duration(policy.stabilization_window)
    return settings.with_values({"window_seconds": window, "min_window_seconds": window})
