"""The supervisor of a stack: Redis, indexer, autoscaler, gateway and engines as child processes,
and the fleet file.

Everything starts at once. The fleet file is rewritten at every change of an engine: Starting →
Ready → Draining, and absent while its process does not run. A process that ends is restarted with
growing delays; the loss of Redis costs hit rate only.

Scaling down loses no request that finishes within ``drain_seconds``. The supervisor writes Draining
and waits until the gateway knows it and has finished there. Then it sends SIGTERM, or puts the
engine to sleep.

To sleep: the fleet file says Draining, the gateway has stopped routing and has nothing in flight,
then the engine sleeps. To wake: the engine wakes and is healthy, then the fleet file says so. A
recall while an engine falls asleep takes effect at once. An engine that does not wake is killed and
restarted; a restarted engine is awake.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead import management_api as api
from fairlead.engines.sleep_mode import EngineSleepClient
from fairlead.errors import BadInput, FairleadError
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.routes.model import Route
from fairlead.runtime.clock import Clock
from fairlead.units import format_duration
from fairlead_cli.exit_codes import StartFailed
from fairlead_cli.local.processes.child_process import ChildProcess, ProcessCommand
from fairlead_cli.local.processes.embedded_redis import RedisServer
from fairlead_cli.local.processes.managed_process import (
    ManagedProcess,
    ProcessPhase,
    ProcessSpec,
    get_http_status,
    is_redis_up,
    wait_until,
)
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.stack.component_commands import GATEWAY_DRAIN_SECONDS
from fairlead_cli.local.stack.engine_process import EnginePoolSpec, EngineProcess, SleepState, create_processes
from fairlead_cli.management.client import ManagementClient

GATEWAY_STOP_SECONDS = GATEWAY_DRAIN_SECONDS + 3.0
"""Time for the gateway's drain, and for the errors that it sends at its end."""
ENGINE_STOP_SECONDS = 3.0
REDIS_STOP_SECONDS = 2.0
DRAIN_NOTICE_TIMEOUT_SECONDS = 10.0
MAX_FAILED_STARTS = 3
"""A process that ended so often without being ready will not come up."""


class SleepController:
    """The controller of the sleep states of all engines."""

    def __init__(self, calls: EngineSleepClient, clock: Clock, supervisor: "StackSupervisor") -> None:
        self._calls = calls
        self._clock = clock
        self._supervisor = supervisor
        self._tasks: dict[EngineProcess, asyncio.Task[None]] = {}

    def set_desired(self, engine: EngineProcess, *, asleep: bool) -> None:
        """Sets whether an engine should sleep; returns at once."""
        engine.should_sleep = asleep
        task = self._tasks.get(engine)
        if task is None or task.done():
            self._tasks[engine] = asyncio.get_running_loop().create_task(
                self._reach_desired_state(engine), name=f"sleep-{engine.name}"
            )

    def forget(self, engine: EngineProcess) -> None:
        """Resets an engine whose process ended or is to end: it does not sleep any more."""
        engine.sleep_state, engine.should_sleep = SleepState.AWAKE, False
        task = self._tasks.pop(engine, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def close(self) -> None:
        """Stops all tasks; engines stay as they are."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _reach_desired_state(self, engine: EngineProcess) -> None:
        """Puts an engine to sleep or wakes it, until its state is as desired or it is not ready to
        sleep.
        """
        while True:
            if (
                engine.should_sleep
                and engine.sleep_state is SleepState.AWAKE
                and engine.process is not None
                and engine.process.phase is ProcessPhase.READY
            ):
                await self._put_to_sleep(engine)
            elif not engine.should_sleep and engine.sleep_state is SleepState.ASLEEP:
                await self._wake(engine)
            else:
                return

    async def _put_to_sleep(self, engine: EngineProcess) -> None:
        self._set_state(engine, SleepState.FALLING_ASLEEP)
        await wait_until(lambda: self._is_idle_or_recalled(engine))
        if not engine.should_sleep:
            self._set_state(engine, SleepState.AWAKE)
            return
        level = engine.pool.sleep_level
        assert level is not None
        try:
            for url in engine.urls():
                await self._calls.sleep(url, level)
        except FairleadError as error:
            self._supervisor.on_event(f"{engine.name} does not sleep: {error}")
            engine.should_sleep = False
            self._supervisor.on_sleep_rejected(engine)
            return
        self._supervisor.on_event(f"{engine.name} sleeps")
        self._set_state(engine, SleepState.ASLEEP)

    async def _is_idle_or_recalled(self, engine: EngineProcess) -> bool:
        return not engine.should_sleep or await self._supervisor.is_idle(engine)

    async def _wake(self, engine: EngineProcess) -> None:
        started = self._clock.now()
        self._set_state(engine, SleepState.WAKING)
        level = engine.pool.sleep_level
        assert level is not None
        try:
            for url in engine.urls():
                await self._calls.wake(url, level)
        except FairleadError as error:
            self._supervisor.on_event(f"{engine.name} does not wake and is restarted: {error}")
            await self._supervisor.restart_engine(engine)
            return
        engine.wake_count += 1
        engine.wake_seconds = self._clock.now() - started
        self._supervisor.on_event(f"{engine.name} is awake")
        self._set_state(engine, SleepState.AWAKE)

    def _set_state(self, engine: EngineProcess, state: SleepState) -> None:
        engine.sleep_state = state
        self._supervisor.write_fleet()


class RoutingQueries:
    """Queries of the gateway's routing state, each with a connection of its own."""

    def __init__(self, manage_url: str, token: str | None) -> None:
        self._manage_url = manage_url
        self._token = token

    async def fleet(self) -> api.FleetOut:
        """Returns the gateway's fleet. Raises StackUnreachable when the gateway does not answer."""
        async with ManagementClient(self._manage_url, self._token) as management:
            return await management.fleet()

    async def has_stopped_routing(self, instance_id: str) -> bool:
        async with ManagementClient(self._manage_url, self._token) as management:
            return await management.has_stopped_routing(instance_id)

    async def in_flight_requests(self, instance_id: str) -> int:
        async with ManagementClient(self._manage_url, self._token) as management:
            return await management.in_flight_requests(instance_id)


@dataclass(frozen=True, slots=True)
class StackSpec:
    """All processes of a stack. The command of ``gateway`` includes the path of the fleet file.

    drain_seconds: how long an engine that leaves may finish its requests.
    """

    pools: tuple[EnginePoolSpec, ...]
    gateway: ProcessCommand
    manage_url: str
    fleet_file: Path
    redis: RedisServer | None = None
    indexer: ProcessCommand | None = None
    autoscaler: ProcessCommand | None = None
    logs: Path | None = None
    drain_seconds: float = 60.0
    routes: tuple[Route, ...] = ()

    @property
    def models(self) -> tuple[Model, ...]:
        return tuple({pool.model.key: pool.model for pool in self.pools}.values())


class StackSupervisor:
    """Supervisor of all processes.

    on_event: gets a line of text at every event.

    sleep_calls: None when no engine sleeps.

    on_change: called at every change of an engine.
    """

    def __init__(
        self,
        spec: StackSpec,
        *,
        reaper: Reaper,
        clock: Clock,
        routing: RoutingQueries,
        on_event: Callable[[str], None],
        sleep_calls: EngineSleepClient | None = None,
    ) -> None:
        self.spec = spec
        self.engines: list[EngineProcess] = []
        self.gateway: ManagedProcess | None = None
        self.redis: ManagedProcess | None = None
        self.indexer: ManagedProcess | None = None
        self.autoscaler: ManagedProcess | None = None
        self.desired_replicas = {pool.key: pool.replicas for pool in spec.pools}
        self.desired_asleep = {pool.key: 0 for pool in spec.pools}
        self.on_change: Callable[[], None] = _ignore_change
        self._reaper = reaper
        self._clock = clock
        self._routing = routing
        self.on_event = on_event
        self._process_changed = asyncio.Event()
        self._stopping = False
        self._last_fleet: Fleet | None = None
        self._reaper_watch: asyncio.Task[None] | None = None
        self._drains: set[asyncio.Task[None]] = set()
        self._pools_without_sleep: set[tuple[str, str]] = set()
        self._sleep_controller: SleepController | None = None
        if sleep_calls is not None:
            self._sleep_controller = SleepController(sleep_calls, clock, self)

    # --- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts all processes at once; returns before any is ready."""
        wanted = []
        for pool in self.spec.pools:
            first = 0
            for size in pool.process_sizes():
                wanted.append((pool, first, size))
                first += size
        self.engines = create_processes(wanted)
        self.write_fleet()
        for engine in self.engines:
            self._start_engine(engine)
        self.gateway = self._start_process("gateway", lambda: self.spec.gateway, self._wait_gateway_ready)
        if self.spec.redis is not None:
            server = self.spec.redis
            self.redis = self._start_process(
                "redis", lambda: _redis_command(server), lambda _: _wait_redis_ready(server)
            )
        if (indexer := self.spec.indexer) is not None:
            self.indexer = self._start_process("indexer", lambda: indexer, _wait_ready_line)
        if (autoscaler := self.spec.autoscaler) is not None:
            self.autoscaler = self._start_process("autoscaler", lambda: autoscaler, _wait_ready_line)
        self._reaper_watch = asyncio.get_running_loop().create_task(self._watch_reaper(), name="watch-reaper")

    async def wait_ready(self) -> None:
        """Waits until requests are served: the gateway answers, and every engine is up or has
        failed while another is up.

        Raises StartFailed when the gateway, or every engine of a model, keeps ending before it is
        ready.
        """
        while True:
            self._process_changed.clear()
            for processes in self._required_processes():
                if all(not process.was_ready and process.failures >= MAX_FAILED_STARTS for process in processes):
                    raise _start_failure(processes[0])
            if self._is_settled():
                return
            await self._process_changed.wait()

    def _required_processes(self) -> Iterable[list[ManagedProcess]]:
        """Yields groups of processes; at least one of each group must run."""
        if self.gateway is not None:
            yield [self.gateway]
        adopting = {pool.model.key for pool in self.spec.pools if pool.adopted}
        for model in self.spec.models:
            started = [
                engine.process for engine in self.engines if engine.pool.model.key == model.key and engine.process
            ]
            if started and model.key not in adopting:  # adopted engines serve the model without ours
                yield started

    def _is_settled(self) -> bool:
        engine_processes = [engine.process for engine in self.engines if engine.process]
        tried = all(process.was_ready or process.failures for process in engine_processes)
        served = all(
            any(process.phase is ProcessPhase.READY for process in group) for group in self._required_processes()
        )
        return tried and served

    def _start_engine(self, engine: EngineProcess) -> None:
        engine.process = self._start_process(
            engine.name, engine.command, lambda child: _wait_engine_ready(engine, child)
        )

    def _start_process(
        self, name: str, command: Callable[[], ProcessCommand], ready: Callable[[ChildProcess], Awaitable[None]]
    ) -> ManagedProcess:
        log = self.spec.logs / f"{name.replace('/', '.')}.log" if self.spec.logs else None
        spec = ProcessSpec(name, command, ready, log)
        process = ManagedProcess(spec, reaper=self._reaper, clock=self._clock, on_change=self._on_process_change)
        process.start()
        return process

    async def _wait_gateway_ready(self, child: ChildProcess) -> None:
        await wait_until(lambda: _is_answering(f"{self.spec.manage_url}/readyz"))

    # --- changes -----------------------------------------------------------------------------------------------------

    def _on_process_change(self, process: ManagedProcess) -> None:
        engine = next((engine for engine in self.engines if engine.process is process), None)
        if engine is not None and self._sleep_controller is not None:
            if process.phase is not ProcessPhase.READY:
                self._sleep_controller.forget(engine)
            elif not self._stopping and self.desired_asleep[engine.pool.key]:
                self._rescale(engine.pool, ())  # it may have been started to sleep
        self.write_fleet()
        if process.phase is ProcessPhase.WAITING and not self._stopping:
            when = format_duration(process.pause_seconds)
            self.on_event(f"{process.name} ended ({process.exit_reason}); again in {when}{_last_lines(process)}")
        elif process.phase is ProcessPhase.READY:
            self.on_event(
                f"{process.name} is ready" + (f" again (restart {process.restarts})" if process.restarts else "")
            )
        self._process_changed.set()

    def fleet(self) -> Fleet:
        """Returns the present fleet."""
        by_model: dict[str, list[Instance]] = {model.key: [] for model in self.spec.models}
        for pool in self.spec.pools:
            by_model[pool.model.key].extend(pool.adopted)
        for engine in self.engines:
            by_model[engine.pool.model.key].extend(engine.instances())
        return Fleet(
            models={model.key: model for model in self.spec.models},
            instances={
                key: tuple(sorted(instances, key=lambda instance: instance.id)) for key, instances in by_model.items()
            },
            routes={route.key: route for route in self.spec.routes},
        )

    def write_fleet(self) -> None:
        """Writes the fleet file, if the fleet has changed."""
        fleet = self.fleet()
        if fleet != self._last_fleet:
            with contextlib.suppress(FileNotFoundError):  # the reaper has removed the run directory
                write_fleet_file(self.spec.fleet_file, fleet)
            self._last_fleet = fleet
        self.on_change()

    async def _watch_reaper(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._reaper.replace_if_dead():
                self.on_event("the guard process ended; another one watches now")

    # --- scale and drain ---------------------------------------------------------------------------------------------

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Scales a pool to ``replicas`` serving and ``asleep`` sleeping engines; waits for the
        drains of those that leave.

        leaving: names of engines in the order of removal. Unnamed ones leave before them, the
        latest first.

        Raises BadInput for an unknown pool, adopted engines, and engines that share a process.
        """
        pool_spec = next((pool_spec for pool_spec in self.spec.pools if pool_spec.key == (key, pool)), None)
        if pool_spec is None:
            raise BadInput(f"{key} has no pool {pool!r}", field="pool")
        if pool_spec.adopted:
            raise BadInput("adopted engines are not scaled", field="replicas")
        if pool_spec.engines_per_process > 1:
            raise BadInput(
                "engines that share a process are not scaled",
                field="replicas",
                hint="start without --engines-per-process",
            )
        self.desired_replicas[key, pool] = max(replicas, 0)
        sleeps = (
            self._sleep_controller is not None
            and pool_spec.sleep_level is not None
            and pool_spec.key not in self._pools_without_sleep
        )
        self.desired_asleep[key, pool] = max(asleep, 0) if sleeps else 0
        drains = self._rescale(pool_spec, leaving)
        self.on_change()
        await asyncio.gather(*drains)

    def _rescale(self, pool_spec: EnginePoolSpec, leaving: Sequence[str]) -> set[asyncio.Task[None]]:
        """Starts what brings a pool to its desired numbers; returns the drains that this takes.

        Sleeping engines wake before new ones start, and engines that should not serve sleep before
        any ends.
        """
        replicas, asleep = self.desired_replicas[pool_spec.key], self.desired_asleep[pool_spec.key]
        rank = {name: number for number, name in enumerate(reversed(leaving))}
        engines = sorted(
            self._active_engines(*pool_spec.key),
            key=lambda engine: (engine.name not in rank, rank.get(engine.name, 0), engine.first),
        )
        serving = [engine for engine in engines if not engine.should_sleep]
        sleeping = sorted(
            (engine for engine in engines if engine.should_sleep),
            key=lambda engine: engine.sleep_state is not SleepState.FALLING_ASLEEP,
        )
        ready_count = sum(engine.is_up for engine in serving)
        for engine in sleeping[: max(0, replicas - ready_count)]:
            serving.append(self._set_sleep(engine, asleep=False))
        sleeping = [engine for engine in sleeping if engine.should_sleep]
        starting = [engine for engine in serving if not engine.is_up]
        surplus = list(reversed([engine for engine in serving if engine.is_up][replicas:]))
        for engine in [engine for engine in surplus if engine.sleep_state is SleepState.AWAKE][
            : max(0, asleep - len(sleeping))
        ]:
            surplus.remove(engine)
            sleeping.append(self._set_sleep(engine, asleep=True))
        # Engines that start may come up while there is room for them, awake or asleep.
        candidates = [*reversed(starting), *sleeping[asleep:], *surplus]
        leaving_engines = candidates[: max(0, len(engines) - replicas - asleep)]
        self._add_engines(pool_spec, replicas + asleep - len(engines) + len(leaving_engines))
        drains = {asyncio.get_running_loop().create_task(self.drain(engine)) for engine in leaving_engines}
        self._drains |= drains
        for task in drains:
            task.add_done_callback(self._drains.discard)
        return drains

    def _set_sleep(self, engine: EngineProcess, *, asleep: bool) -> EngineProcess:
        assert self._sleep_controller is not None
        self._sleep_controller.set_desired(engine, asleep=asleep)
        return engine

    def _add_engines(self, pool_spec: EnginePoolSpec, count: int) -> None:
        used_numbers = {engine.first for engine in self.engines if engine.pool.key == pool_spec.key}
        numbers = [n for n in range(max(0, count) + len(used_numbers)) if n not in used_numbers][: max(0, count)]
        for engine in create_processes([(pool_spec, number, 1) for number in numbers]):
            self.engines.append(engine)
            self._start_engine(engine)

    def on_sleep_rejected(self, engine: EngineProcess) -> None:
        """Stops using sleep for a pool whose engine rejected it; its engines end instead."""
        self._pools_without_sleep.add(engine.pool.key)
        self.desired_asleep[engine.pool.key] = 0
        engine.sleep_state = SleepState.AWAKE
        self._rescale(engine.pool, (engine.name,))
        self.write_fleet()

    async def restart_engine(self, engine: EngineProcess) -> None:
        if engine.process is not None and engine.process.child is not None:
            await engine.process.child.stop(ENGINE_STOP_SECONDS)

    async def is_idle(self, engine: EngineProcess) -> bool:
        ids = engine.instance_ids()
        return await self._has_gateway_stopped_routing(ids) and await self._has_gateway_finished(ids)

    def _active_engines(self, key: str, pool: str) -> list[EngineProcess]:
        return [engine for engine in self.engines if engine.pool.key == (key, pool) and not engine.is_draining]

    async def drain(self, engine: EngineProcess) -> None:
        """Takes an engine out of service, and ends it when its requests have finished or
        ``drain_seconds`` are over.
        """
        process = engine.process
        assert process is not None
        ids = [instance.id for instance in engine.instances()]
        engine.is_draining = True
        if self._sleep_controller is not None:
            self._sleep_controller.forget(engine)
        process.disable_restart()
        self.write_fleet()
        self.on_event(f"{engine.name} drains")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_NOTICE_TIMEOUT_SECONDS):
                await wait_until(lambda: self._has_gateway_stopped_routing(ids))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.spec.drain_seconds):
                await wait_until(lambda: self._has_gateway_finished(ids))
        await process.stop(ENGINE_STOP_SECONDS)
        self.engines.remove(engine)
        self.write_fleet()
        self.on_event(f"{engine.name} has left")

    async def _has_gateway_stopped_routing(self, ids: Sequence[str]) -> bool:
        if self.gateway is None or self.gateway.phase is not ProcessPhase.READY:
            return True  # no gateway routes; the next one reads the present file
        return all([await self._routing.has_stopped_routing(instance_id) for instance_id in ids])

    async def _has_gateway_finished(self, ids: Sequence[str]) -> bool:
        return not any([await self._routing.in_flight_requests(instance_id) for instance_id in ids])

    # --- stop --------------------------------------------------------------------------------------------------------

    async def stop(self, at_once: asyncio.Event) -> None:
        """Stops the gateway first (it finishes requests for a few seconds), then engines, indexer
        and autoscaler, then Redis.

        at_once: when this event is set, all processes are killed.
        """
        self._stopping = True
        if self._reaper_watch is not None:
            self._reaper_watch.cancel()
        if self._sleep_controller is not None:
            await self._sleep_controller.close()
        stopping = asyncio.ensure_future(self._stop_in_order())
        interrupted = asyncio.ensure_future(at_once.wait())
        first_of: set[asyncio.Future[object]] = {stopping, interrupted}  # type: ignore[arg-type]  # Future is invariant
        await asyncio.wait(first_of, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if not stopping.done():
            for process in self.processes():
                process.kill()
        await stopping

    async def _stop_in_order(self) -> None:
        engine_processes = [engine.process for engine in self.engines if engine.process]
        for process in (*engine_processes, self.redis, self.indexer, self.autoscaler):
            if process is not None:
                process.disable_restart()
        if self.gateway is not None:
            await self.gateway.stop(GATEWAY_STOP_SECONDS)
        last = [*engine_processes, *(process for process in (self.indexer, self.autoscaler) if process is not None)]
        await asyncio.gather(*(process.stop(ENGINE_STOP_SECONDS) for process in last))
        if self.redis is not None:
            await self.redis.stop(REDIS_STOP_SECONDS)

    def processes(self) -> list[ManagedProcess]:
        """Returns all managed processes: gateway, Redis, indexer, autoscaler, engines."""
        components = (self.gateway, self.redis, self.indexer, self.autoscaler)
        return [
            process for process in (*components, *(engine.process for engine in self.engines)) if process is not None
        ]


def _ignore_change() -> None:
    """Ignores a change of an engine; the default of ``on_change``."""


async def _is_answering(url: str) -> bool:
    return await get_http_status(url) is not None


async def _is_healthy(url: str) -> bool:
    return await get_http_status(f"{url}/health") == 200


async def _wait_engine_ready(engine: EngineProcess, child: ChildProcess) -> None:
    if engine.pool.says_ready:
        await child.wait_ready(len(engine.ports))
    else:
        await wait_until(lambda: _are_all_healthy(engine.urls()), 0.25)


async def _are_all_healthy(urls: Sequence[str]) -> bool:
    return all([await _is_healthy(url) for url in urls])


async def _wait_ready_line(child: ChildProcess) -> None:
    await child.wait_ready()


def _redis_command(server: RedisServer) -> ProcessCommand:
    """Returns the command of the Redis server, and removes the socket of a killed one.

    Why: clients would wait on the old socket.
    """
    if server.socket_path:
        Path(server.socket_path).unlink(missing_ok=True)
    return ProcessCommand(server.command)


async def _wait_redis_ready(server: RedisServer) -> None:
    await wait_until(lambda: is_redis_up(server.socket_path, server.port))


def _last_lines(process: ManagedProcess) -> str:
    lines = process.child.last_lines if process.child and not process.was_ready else ()
    return "".join(f"\n    {line}" for line in list(lines)[-3:])


def _start_failure(process: ManagedProcess) -> StartFailed:
    lines = list(process.child.last_lines)[-12:] if process.child else []
    output = "".join(f"\n    {line}" for line in lines) or " it said nothing"
    return StartFailed(f"{process.name} does not start: {process.exit_reason}; its last words:{output}")
