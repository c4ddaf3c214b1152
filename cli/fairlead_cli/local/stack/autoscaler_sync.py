"""Local mode's side of the autoscaler: what of the manifests it is told, what there is of it, and the numbers that it wants.

The two files of the run directory are ``fairlead_autoscaler.local.target``'s. What there is is written at every step of an engine; the
numbers wanted are looked for a few times a second and followed one after another, draining included.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.api import Autoscaling, ModelDeployment, Pool, ScalingMode
from fairlead.errors import FairleadError, Unavailable
from fairlead.fleet.model import Role, SloTargets
from fairlead.manifests.loader import Manifests
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.core import PoolSpec, ReplicaState, SleepTier, WakeTiming
from fairlead_autoscaler.enforcer import widest_pool_bounds
from fairlead_autoscaler.local.target import (
    DESIRED_FILE,
    STATE_FILE,
    DesiredPool,
    LocalEngine,
    LocalModel,
    LocalPool,
    LocalState,
    read_desired,
    write_file,
)
from fairlead_autoscaler.model_spec import replica_cost, replica_usd
from fairlead_autoscaler.tiers import sleep_tier
from fairlead_cli.local.processes.managed_process import ProcessPhase
from fairlead_cli.local.stack.engine_process import EnginePoolSpec, EngineProcess, SleepState
from fairlead_cli.local.stack.supervisor import StackSupervisor

POLL_SECONDS = 0.1
_REPLICA_STATES = {
    SleepState.AWAKE: ReplicaState.READY,
    SleepState.FALLING_ASLEEP: ReplicaState.FALLING_ASLEEP,
    SleepState.ASLEEP: ReplicaState.ASLEEP,
    SleepState.WAKING: ReplicaState.WAKING,
}


@dataclass(frozen=True, slots=True)
class ScaledModelSpec:
    """A model that the autoscaler is to size: what it may do and what is wanted of it, as the manifest says it. The autoscaler's time
    runs as fast as the engines' does."""

    key: str
    objectives: SloTargets
    policy: Mapping[str, Any]
    pools: tuple[PoolSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """The models that are scaled, and in words why others that ask for it are not."""

    models: tuple[ScaledModelSpec, ...] = ()
    notes: tuple[str, ...] = ()


def plan_scaling(manifests: Manifests, pools: Sequence[EnginePoolSpec]) -> ScalingPlan:
    """What the manifests want of the autoscaler, for the pools that local mode runs."""
    found, notes = [], []
    for deployment in manifests.models:
        spec, name = deployment.spec, deployment.metadata.name
        if spec.autoscaling.mode is ScalingMode.OFF:
            continue
        plans = {plan.name: plan for plan in pools if plan.model.key == deployment.key and not plan.adopted}
        if spec.replicas is not None:
            notes.append(f"{name}: not scaled, since spec.replicas sets the number")
        elif any(plan.engines_per_process > 1 for plan in plans.values()):
            notes.append(f"{name}: not scaled, since its engines share processes")
        elif plans:
            found.append(_scaled_model(manifests, deployment, plans))
    return ScalingPlan(tuple(found), tuple(notes))


def _scaled_model(
    manifests: Manifests, deployment: ModelDeployment, plans: Mapping[str, EnginePoolSpec]
) -> ScaledModelSpec:
    policy = deployment.spec.autoscaling.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    tier = sleep_tier(deployment.spec)
    facts = tuple(_pool_facts(manifests, pool, tier) for pool in deployment.spec.pools if pool.name in plans)
    return ScaledModelSpec(deployment.key, deployment.spec.objectives.to_targets(), policy, facts)


def _pool_facts(manifests: Manifests, pool: Pool, tier: SleepTier | None) -> PoolSpec:
    kind = manifests.accelerators.get(pool.accelerator or "")
    return PoolSpec(
        name=pool.name,
        role=Role(pool.role.value),
        cost_per_hour=replica_cost(None if kind is None else kind.spec, pool),
        minimum=pool.replicas.min,
        maximum=pool.replicas.min if pool.replicas.max is None else pool.replicas.max,
        profile=manifests.engine_profile(pool),
        usd_per_hour=replica_usd(None if kind is None else kind.spec, pool),
        tier=tier,
    )


def rejection_reason(model: ScaledModelSpec, facts: PoolSpec, wish: DesiredPool) -> str | None:
    """Why a wish is not followed, in words: the manifest allows no such number at any hour, so whoever wished it is not the
    autoscaler, or errs. None: it is."""
    bounds = widest_pool_bounds(facts, Autoscaling.model_validate(model.policy))
    most = 0 if facts.tier is None else min(facts.tier.most, bounds.maximum - wish.replicas)
    if bounds.minimum <= wish.replicas <= bounds.maximum and 0 <= wish.asleep <= most:
        return None
    allowed = f"{bounds.minimum} to {bounds.maximum} are allowed"
    wanted = f"{wish.replicas} are wanted of it"
    if wish.asleep:
        wanted, allowed = f"{wanted}, {wish.asleep} asleep", f"{allowed}, {max(0, most)} asleep"
    return f"{facts.name} of {model.key} stays as it is: {wanted}, and {allowed}"


def stack_state(models: Sequence[ScaledModelSpec], supervisor: StackSupervisor, now: float) -> LocalState:
    """What the autoscaler is told of the stack as it is ``now``."""
    return LocalState({one.key: _model(one, supervisor, now) for one in models})


def _model(one: ScaledModelSpec, supervisor: StackSupervisor, now: float) -> LocalModel:
    pools = tuple(
        LocalPool(
            facts,
            supervisor.desired_replicas.get((one.key, facts.name), 0),
            tuple(_engine(unit, now) for unit in supervisor.engines if unit.pool.key == (one.key, facts.name)),
            supervisor.desired_asleep.get((one.key, facts.name), 0),
        )
        for facts in one.pools
    )
    return LocalModel(one.objectives, one.policy, pools)


def _engine(unit: EngineProcess, now: float) -> LocalEngine:
    keeper = unit.process
    started = now if keeper is None or keeper.started_at is None else keeper.started_at
    ready = keeper.ready_at if keeper is not None and keeper.phase is ProcessPhase.READY else None
    state = ReplicaState.PENDING if ready is None else _REPLICA_STATES[unit.sleep_state]
    if unit.is_draining:
        state = ReplicaState.DRAINING
    level = unit.pool.sleep_level
    woken = None if level is None or not unit.wake_count else WakeTiming(level, unit.wake_count, unit.wake_seconds)
    return LocalEngine(unit.name, state, started, ready, tuple(unit.instance_ids()), woken)


class AutoscalerSync:
    """Tells of a stack, and follows what the autoscaler wants of it. ``told`` gets a line for people when that cannot be done."""

    def __init__(
        self,
        directory: Path,
        models: Sequence[ScaledModelSpec],
        supervisor: StackSupervisor,
        clock: Clock,
        on_event: Callable[[str], None],
    ) -> None:
        self._there = directory / STATE_FILE
        self._wishes = directory / DESIRED_FILE
        self._models = tuple(models)
        self._supervisor = supervisor
        self._clock = clock
        self._told = on_event
        self._last: LocalState | None = None
        self._seen: object = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Tell from now on, and follow."""
        self._supervisor.on_change = self.write_state
        self.write_state()
        self._watch = asyncio.get_running_loop().create_task(self._follow(), name="follow-wishes")

    async def stop(self) -> None:
        """Follow no more; drains under way are the supervisor's to end."""
        tasks = [*self._tasks, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def write_state(self) -> None:
        """Write what there is, where that has changed."""
        found = stack_state(self._models, self._supervisor, self._clock.now())
        if found != self._last:
            with contextlib.suppress(FileNotFoundError):  # the run directory is gone: we are being swept away
                write_file(self._there, found)
            self._last = found

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.apply_targets()

    def apply_targets(self) -> None:
        """Begin what is wanted and not yet so."""
        mark = _file_version(self._wishes)
        if mark is None or mark == self._seen:
            return
        try:
            wishes = read_desired(self._wishes).pools
        except Unavailable as error:
            self._told(f"what the autoscaler wants cannot be read: {error.message}")
            self._seen = mark
            return
        self._seen = mark
        for one in self._models:
            for facts in one.pools:
                wish = wishes.get(one.key, {}).get(facts.name)
                pool = one.key, facts.name
                now = self._supervisor.desired_replicas.get(pool), self._supervisor.desired_asleep.get(pool, 0)
                if wish is None or (wish.replicas, wish.asleep) == now:
                    continue
                if (why := rejection_reason(one, facts, wish)) is not None:
                    self._told(why)
                else:
                    task = asyncio.get_running_loop().create_task(self._scale(one.key, facts.name, wish))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _scale(self, key: str, pool: str, wish: DesiredPool) -> None:
        try:
            await self._supervisor.scale(key, pool, wish.replicas, wish.leaving, wish.asleep)
        except FairleadError as error:
            self._told(f"{pool} of {key} cannot be brought to {wish.replicas}: {error}")


def _file_version(path: Path) -> object:
    """What tells one version of a file from the next; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino
