"""Synchronises a stack with its autoscaler through two files of the run directory.

The state is written at every change of an engine. The targets are polled several times a second and
applied, draining included. ``fairlead_autoscaler.local`` defines both files.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from fairlead.api.spec.autoscaling import Autoscaling
from fairlead.errors import FairleadError, Unavailable
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.core import PoolSpec, ReplicaState, WakeTiming
from fairlead_autoscaler.enforcer import widest_pool_bounds
from fairlead_autoscaler.local.state_files import (
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
from fairlead_cli.local.processes.managed_process import ProcessPhase
from fairlead_cli.local.stack.engine_process import EngineProcess, SleepState
from fairlead_cli.local.stack.scaled_models import ScaledModelSpec
from fairlead_cli.local.stack.supervisor import StackSupervisor

POLL_SECONDS = 0.1
_REPLICA_STATES = {
    SleepState.AWAKE: ReplicaState.READY,
    SleepState.FALLING_ASLEEP: ReplicaState.FALLING_ASLEEP,
    SleepState.ASLEEP: ReplicaState.ASLEEP,
    SleepState.WAKING: ReplicaState.WAKING,
}


def rejection_reason(model: ScaledModelSpec, facts: PoolSpec, target: DesiredPool) -> str | None:
    """Returns why a target is not applied; None when it is.

    Why: the manifest allows no such number at any hour, so it is an error, or it does not come from
    the autoscaler.
    """
    bounds = widest_pool_bounds(facts, Autoscaling.model_validate(model.policy))
    maximum = 0 if facts.tier is None else min(facts.tier.most, bounds.maximum - target.replicas)
    if bounds.minimum <= target.replicas <= bounds.maximum and 0 <= target.asleep <= maximum:
        return None
    limits = f"{bounds.minimum} to {bounds.maximum} are allowed"
    request = f"{target.replicas} are wanted of it"
    if target.asleep:
        request, limits = f"{request}, {target.asleep} asleep", f"{limits}, {max(0, maximum)} asleep"
    return f"{facts.name} of {model.key} stays as it is: {request}, and {limits}"


def stack_state(models: Sequence[ScaledModelSpec], supervisor: StackSupervisor, now: float) -> LocalState:
    """Returns the state of the stack for the autoscaler."""
    return LocalState({model.key: _model(model, supervisor, now) for model in models})


def _model(model: ScaledModelSpec, supervisor: StackSupervisor, now: float) -> LocalModel:
    pools = tuple(
        LocalPool(
            facts,
            supervisor.desired_replicas.get((model.key, facts.name), 0),
            tuple(_engine(unit, now) for unit in supervisor.engines if unit.pool.key == (model.key, facts.name)),
            supervisor.desired_asleep.get((model.key, facts.name), 0),
        )
        for facts in model.pools
    )
    return LocalModel(model.objectives, model.policy, pools)


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
    """Writes the state of a stack and applies the autoscaler's targets. ``on_event`` gets a line
    when a target cannot be applied.
    """

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
        self._on_event = on_event
        self._last: LocalState | None = None
        self._seen: object = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts writing and applying."""
        self._supervisor.on_change = self.write_state
        self.write_state()
        self._watch = asyncio.get_running_loop().create_task(self._follow(), name="follow-wishes")

    async def stop(self) -> None:
        """Stops applying; the supervisor ends drains in progress."""
        tasks = [*self._tasks, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def write_state(self) -> None:
        """Writes the state when it has changed."""
        state = stack_state(self._models, self._supervisor, self._clock.now())
        if state != self._last:
            with contextlib.suppress(FileNotFoundError):  # the run directory is gone: we are being swept away
                write_file(self._there, state)
            self._last = state

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.apply_targets()

    def apply_targets(self) -> None:
        """Starts what the targets ask for and is not done."""
        version = _file_version(self._wishes)
        if version is None or version == self._seen:
            return
        try:
            targets = read_desired(self._wishes).pools
        except Unavailable as error:
            self._on_event(f"what the autoscaler wants cannot be read: {error.message}")
            self._seen = version
            return
        self._seen = version
        for model in self._models:
            for facts in model.pools:
                target = targets.get(model.key, {}).get(facts.name)
                pool = model.key, facts.name
                current = self._supervisor.desired_replicas.get(pool), self._supervisor.desired_asleep.get(pool, 0)
                if target is None or (target.replicas, target.asleep) == current:
                    continue
                if (reason := rejection_reason(model, facts, target)) is not None:
                    self._on_event(reason)
                else:
                    task = asyncio.get_running_loop().create_task(self._scale(model.key, facts.name, target))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _scale(self, key: str, pool: str, target: DesiredPool) -> None:
        try:
            await self._supervisor.scale(key, pool, target.replicas, target.leaving, target.asleep)
        except FairleadError as error:
            self._on_event(f"{pool} of {key} cannot be brought to {target.replicas}: {error}")


def _file_version(path: Path) -> object:
    """Returns what distinguishes two versions of a file; None without a file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
