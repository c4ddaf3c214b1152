"""Local mode's side of the autoscaler: what of the manifests it is told, what there is of it, and the numbers that it wants.

The two files of the run directory are ``fairlead_autoscaler.local.target``'s. What there is is written at every step
of an engine; the
numbers wanted are looked for a few times a second and followed one after another, draining included.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from fairlead.api import Autoscaling
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
