"""The synchronisation of a stack with its autoscaler, through two files of the run directory.

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


def rejection_reason(model: ScaledModelSpec, pool: PoolSpec, target: DesiredPool) -> str | None:
    """Returns why a target is not applied: it is outside of the pool's widest bounds. None when it
    is within.

    Why: the manifest allows no such number at any hour. So the target is an error, or does not come
    from the autoscaler.
    """
    bounds = widest_pool_bounds(pool, Autoscaling.model_validate(model.policy))
    maximum = 0 if pool.tier is None else min(pool.tier.most, bounds.maximum - target.replicas)
    if bounds.minimum <= target.replicas <= bounds.maximum and 0 <= target.asleep <= maximum:
        return None
    limits = f"{bounds.minimum} to {bounds.maximum} are allowed"
    requested = f"{target.replicas} are wanted of it"
    if target.asleep:
        requested, limits = f"{requested}, {target.asleep} asleep", f"{limits}, {max(0, maximum)} asleep"
    return f"{pool.name} of {model.key} stays as it is: {requested}, and {limits}"


def stack_state(models: Sequence[ScaledModelSpec], supervisor: StackSupervisor, now: float) -> LocalState:
    """Returns the state of the stack for the autoscaler."""
    return LocalState({model.key: _local_model(model, supervisor, now) for model in models})


def _local_model(model: ScaledModelSpec, supervisor: StackSupervisor, now: float) -> LocalModel:
    pools = tuple(
        LocalPool(
            pool,
            supervisor.desired_replicas.get((model.key, pool.name), 0),
            tuple(
                _local_engine(engine, now) for engine in supervisor.engines if engine.pool.key == (model.key, pool.name)
            ),
            supervisor.desired_asleep.get((model.key, pool.name), 0),
        )
        for pool in model.pools
    )
    return LocalModel(model.objectives, model.policy, pools)


def _local_engine(engine: EngineProcess, now: float) -> LocalEngine:
    process = engine.process
    started = now if process is None or process.started_at is None else process.started_at
    ready = process.ready_at if process is not None and process.phase is ProcessPhase.READY else None
    state = ReplicaState.PENDING if ready is None else _REPLICA_STATES[engine.sleep_state]
    if engine.is_draining:
        state = ReplicaState.DRAINING
    level = engine.pool.sleep_level
    last_wake = (
        None if level is None or not engine.wake_count else WakeTiming(level, engine.wake_count, engine.wake_seconds)
    )
    return LocalEngine(engine.name, state, started, ready, tuple(engine.instance_ids()), last_wake)


class AutoscalerSync:
    """The link of a local stack to its autoscaler: the writer of the stack's state and the reader
    of targets.

    on_event: called with a line for people when targets cannot be read or applied.
    """

    def __init__(
        self,
        directory: Path,
        models: Sequence[ScaledModelSpec],
        supervisor: StackSupervisor,
        clock: Clock,
        on_event: Callable[[str], None],
    ) -> None:
        self._state_file = directory / STATE_FILE
        self._desired_file = directory / DESIRED_FILE
        self._models = tuple(models)
        self._supervisor = supervisor
        self._clock = clock
        self._on_event = on_event
        self._last_state: LocalState | None = None
        self._last_version: object = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._poll_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to write the state and to apply the targets."""
        self._supervisor.on_change = self.write_state
        self.write_state()
        self._poll_task = asyncio.get_running_loop().create_task(self._poll(), name="poll-desired")

    async def stop(self) -> None:
        """Stops applying targets; the supervisor ends drains in progress."""
        tasks = [*self._tasks, *([self._poll_task] if self._poll_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def write_state(self) -> None:
        """Writes the state when it has changed."""
        state = stack_state(self._models, self._supervisor, self._clock.now())
        if state != self._last_state:
            with contextlib.suppress(FileNotFoundError):  # the reaper has removed the run directory
                write_file(self._state_file, state)
            self._last_state = state

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.apply_targets()

    def apply_targets(self) -> None:
        """Reads the targets if their file has changed, and starts the scaling of every pool that
        differs from its target.

        A target that is not applied is reported to ``on_event``.
        """
        version = _file_version(self._desired_file)
        if version is None or version == self._last_version:
            return
        try:
            targets = read_desired(self._desired_file).pools
        except Unavailable as error:
            self._on_event(f"the autoscaler's targets cannot be read: {error.message}")
            self._last_version = version
            return
        self._last_version = version
        for model in self._models:
            for pool in model.pools:
                target = targets.get(model.key, {}).get(pool.name)
                key = model.key, pool.name
                current = self._supervisor.desired_replicas.get(key), self._supervisor.desired_asleep.get(key, 0)
                if target is None or (target.replicas, target.asleep) == current:
                    continue
                if (reason := rejection_reason(model, pool, target)) is not None:
                    self._on_event(reason)
                else:
                    task = asyncio.get_running_loop().create_task(self._scale(model.key, pool.name, target))
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
