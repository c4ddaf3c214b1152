"""The supervisor of a stack: Redis, indexer, autoscaler, gateway and engines as child processes,
and the fleet file.

Everything starts at once. The fleet file is rewritten at every change of an engine: Starting →
Ready → Draining, and absent while it is dead. A process that ends is restarted with growing delays;
the loss of Redis costs hit rate only.

Scaling down loses no request. The supervisor writes Draining and waits until the gateway knows it
and has finished there. Then it sends SIGTERM, or puts the engine to sleep.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fairlead.errors import BadInput
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.runtime.clock import Clock
from fairlead.units import format_duration
from fairlead_cli.addresses import find_free_ports
from fairlead_cli.errors import StartFailed
from fairlead_cli.local.processes.child_process import ChildProcess, ProcessCommand
from fairlead_cli.local.processes.embedded_redis import RedisServer
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase
from fairlead_cli.local.processes.readiness_probe import get_http_status, is_redis_up, wait_until
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.stack.engine_process import EnginePoolSpec, EngineProcess, SleepState
from fairlead_cli.local.stack.sleep_controller import SleepCalls, SleepController

FINISH_TIMEOUT_SECONDS = 5.0
"""Time for requests in flight when the stack is stopped."""
ENGINE_STOP_SECONDS = 3.0
REDIS_STOP_SECONDS = 2.0
DRAIN_NOTICE_TIMEOUT_SECONDS = 10.0
MAX_FAILED_STARTS = 3
"""A process that ended so often without being ready will not come up."""


class GatewayRouting(Protocol):
    """The gateway's routing state, which draining waits for."""

    async def has_stopped_routing(self, instance_id: str) -> bool:
        """Whether the gateway routes no new request to this instance."""
        ...

    async def in_flight_requests(self, instance_id: str) -> int:
        """Returns the gateway's requests in flight on this instance."""
        ...


@dataclass(frozen=True, slots=True)
class StackSpec:
    """All processes of a stack. The command of ``gateway`` includes the path of the fleet file."""

    pools: tuple[EnginePoolSpec, ...]
    gateway: ProcessCommand
    manage_url: str
    fleet_file: Path
    redis: RedisServer | None = None
    indexer: ProcessCommand | None = None
    autoscaler: ProcessCommand | None = None
    logs: Path | None = None

    @property
    def models(self) -> tuple[Model, ...]:
        """The served models in the order of the manifests."""
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
        routing: GatewayRouting,
        on_event: Callable[[str], None],
        drain_seconds: float = 60.0,
        sleep_calls: SleepCalls | None = None,
    ) -> None:
        self.spec = spec
        self.engines: list[EngineProcess] = []
        self.gateway: ManagedProcess | None = None
        self.redis: ManagedProcess | None = None
        self.indexer: ManagedProcess | None = None
        self.autoscaler: ManagedProcess | None = None
        self.desired_replicas = {pool.key: pool.replicas for pool in spec.pools}
        self.desired_asleep = {pool.key: 0 for pool in spec.pools}
        self.on_change: Callable[[], None] = _nobody
        self._reaper = reaper
        self._clock = clock
        self._routing = routing
        self._on_event = on_event
        self._drain_seconds = drain_seconds
        self._news = asyncio.Event()
        self._stopping = False
        self._last_fleet: Fleet | None = None
        self._watch: asyncio.Task[None] | None = None
        self._drains: set[asyncio.Task[None]] = set()
        self._sleepless: set[tuple[str, str]] = set()
        self._beds: SleepController | None = None
        if sleep_calls is not None:
            self._beds = SleepController(
                sleep_calls,
                self._idle,
                clock,
                on_change=self._write_fleet,
                on_event=on_event,
                on_rejected=self._refused,
                kill=self._kill,
            )

    # --- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts all processes at once; returns before any is ready."""
        sizes = [size for pool in self.spec.pools for size in pool.process_sizes()]
        ports = iter(find_free_ports(sizes))
        for pool in self.spec.pools:
            first = 0
            for size in pool.process_sizes():
                self.engines.append(EngineProcess(pool, first, next(ports)))
                first += size
        self._write_fleet()
        for unit in self.engines:
            self._keep_engine(unit)
        self.gateway = self._keep("gateway", lambda: self.spec.gateway, self._gateway_ready)
        if self.spec.redis is not None:
            server = self.spec.redis
            self.redis = self._keep("redis", lambda: _fresh(server), lambda _: _redis_ready(server))
        if (indexer := self.spec.indexer) is not None:
            self.indexer = self._keep("indexer", lambda: indexer, _says_ready)
        if (autoscaler := self.spec.autoscaler) is not None:
            self.autoscaler = self._keep("autoscaler", lambda: autoscaler, _says_ready)
        self._watch = asyncio.get_running_loop().create_task(self._watch_guard(), name="watch-guard")

    async def wait_ready(self) -> None:
        """Waits until requests are served: the gateway answers, and every engine is up or has
        failed while another is up.

        Raises StartFailed when the gateway, or every engine of a model, keeps ending before it is
        ready.
        """
        while True:
            self._news.clear()
            for keepers in self._indispensable():
                if all(not keeper.was_ready and keeper.failures >= MAX_FAILED_STARTS for keeper in keepers):
                    raise _start_failed(keepers[0])
            if self._settled():
                return
            await self._news.wait()

    def _indispensable(self) -> Iterable[list[ManagedProcess]]:
        """Yields groups of processes; at least one of each group must run."""
        if self.gateway is not None:
            yield [self.gateway]
        adopting = {pool.model.key for pool in self.spec.pools if pool.adopted}
        for model in self.spec.models:
            own_processes = [unit.process for unit in self.engines if unit.pool.model.key == model.key and unit.process]
            if (
                own_processes and model.key not in adopting
            ):  # else it is served, whatever becomes of ours, or begins with none
                yield own_processes

    def _settled(self) -> bool:
        engines = [unit.process for unit in self.engines if unit.process]
        tried = all(keeper.was_ready or keeper.failures for keeper in engines)
        served = all(any(keeper.phase is ProcessPhase.READY for keeper in group) for group in self._indispensable())
        return tried and served

    def _keep_engine(self, unit: EngineProcess) -> None:
        unit.process = self._keep(unit.name, unit.command, lambda child: _engine_ready(unit, child))

    def _keep(
        self, name: str, command: Callable[[], ProcessCommand], ready: Callable[[ChildProcess], Awaitable[None]]
    ) -> ManagedProcess:
        log = self.spec.logs / f"{name.replace('/', '.')}.log" if self.spec.logs else None
        keeper = ManagedProcess(
            name, command, ready, reaper=self._reaper, clock=self._clock, on_change=self._changed, log=log
        )
        keeper.start()
        return keeper

    async def _gateway_ready(self, child: ChildProcess) -> None:
        await wait_until(lambda: _answers(f"{self.spec.manage_url}/readyz"))

    # --- changes -----------------------------------------------------------------------------------------------------

    def _changed(self, keeper: ManagedProcess) -> None:
        unit = next((engine for engine in self.engines if engine.process is keeper), None)
        if unit is not None and self._beds is not None:
            if keeper.phase is not ProcessPhase.READY:
                self._beds.forget(unit)
            elif not self._stopping and self.desired_asleep[unit.pool.key]:
                self._arrange(unit.pool, ())  # it may have been started to sleep
        self._write_fleet()
        if keeper.phase is ProcessPhase.WAITING and not self._stopping:
            when = format_duration(keeper.pause_seconds)
            self._on_event(f"{keeper.name} ended ({keeper.exit_reason}); again in {when}{_last_words(keeper)}")
        elif keeper.phase is ProcessPhase.READY:
            self._on_event(
                f"{keeper.name} is ready" + (f" again (restart {keeper.restarts})" if keeper.restarts else "")
            )
        self._news.set()

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
        )

    def _write_fleet(self) -> None:
        fleet = self.fleet()
        if fleet != self._last_fleet:
            with contextlib.suppress(FileNotFoundError):  # the run directory is gone: we are being swept away
                write_fleet_file(self.spec.fleet_file, fleet)
            self._last_fleet = fleet
        self.on_change()

    async def _watch_guard(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._reaper.replace_if_dead():
                self._on_event("the guard process ended; another one watches now")

    # --- scale and drain ---------------------------------------------------------------------------------------------

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Scales a pool to ``replicas`` serving and ``asleep`` sleeping engines; waits for the
        drains of those that leave.

        leaving: names of engines in the order of removal. Unnamed ones leave before them, the
        latest first.
        """
        plan = next((plan for plan in self.spec.pools if plan.key == (key, pool)), None)
        if plan is None:
            raise BadInput(f"no pool {pool!r} of {key}", field="pool")
        if plan.adopted:
            raise BadInput("adopted engines are not scaled", field="replicas")
        if plan.engines_per_process > 1:
            raise BadInput(
                "engines that share a process are not scaled", field="replicas", hint="start without grouping"
            )
        self.desired_replicas[key, pool] = max(replicas, 0)
        sleeps = self._beds is not None and plan.sleep_level is not None and plan.key not in self._sleepless
        self.desired_asleep[key, pool] = max(asleep, 0) if sleeps else 0
        drains = self._arrange(plan, leaving)
        self.on_change()
        await asyncio.gather(*drains)

    def _arrange(self, plan: EnginePoolSpec, leaving: Sequence[str]) -> set[asyncio.Task[None]]:
        """Starts what brings a pool to its desired numbers; returns the drains that this takes.

        Sleeping engines wake before new ones start, and engines that should not serve sleep before
        any ends.
        """
        replicas, asleep = self.desired_replicas[plan.key], self.desired_asleep[plan.key]
        rank = {name: number for number, name in enumerate(reversed(leaving))}
        units = sorted(
            self._units(*plan.key), key=lambda unit: (unit.name not in rank, rank.get(unit.name, 0), unit.first)
        )
        serving = [unit for unit in units if not unit.should_sleep]
        resting = sorted(
            (unit for unit in units if unit.should_sleep),
            key=lambda unit: unit.sleep_state is not SleepState.FALLING_ASLEEP,
        )
        up = sum(unit.is_up for unit in serving)
        for unit in resting[: max(0, replicas - up)]:
            serving.append(self._turned(unit, asleep=False))
        resting = [unit for unit in resting if unit.should_sleep]
        starting = [unit for unit in serving if not unit.is_up]
        spare = list(reversed([unit for unit in serving if unit.is_up][replicas:]))
        for unit in [one for one in spare if one.sleep_state is SleepState.AWAKE][: max(0, asleep - len(resting))]:
            spare.remove(unit)
            resting.append(self._turned(unit, asleep=True))
        # What still starts is let come up as far as there is room, awake or asleep.
        going = [*reversed(starting), *resting[asleep:], *spare]
        over = going[: max(0, len(units) - replicas - asleep)]
        self._start_more(plan, replicas + asleep - len(units) + len(over))
        drains = {asyncio.get_running_loop().create_task(self.drain(unit)) for unit in over}
        self._drains |= drains
        for task in drains:
            task.add_done_callback(self._drains.discard)
        return drains

    def _turned(self, unit: EngineProcess, *, asleep: bool) -> EngineProcess:
        assert self._beds is not None
        self._beds.set_desired(unit, asleep=asleep)
        return unit

    def _start_more(self, plan: EnginePoolSpec, count: int) -> None:
        taken = {unit.first for unit in self.engines if unit.pool.key == plan.key}
        fresh = [n for n in range(max(0, count) + len(taken)) if n not in taken][: max(0, count)]
        for number, ports in zip(fresh, find_free_ports([1] * len(fresh)), strict=True):
            unit = EngineProcess(plan, number, ports)
            self.engines.append(unit)
            self._keep_engine(unit)

    def _refused(self, unit: EngineProcess) -> None:
        """Stops using sleep for a pool whose engine rejected it; its engines end instead."""
        self._sleepless.add(unit.pool.key)
        self.desired_asleep[unit.pool.key] = 0
        unit.sleep_state = SleepState.AWAKE
        self._arrange(unit.pool, (unit.name,))
        self._write_fleet()

    async def _kill(self, unit: EngineProcess) -> None:
        """Ends the process of an engine; it is restarted."""
        if unit.process is not None and unit.process.child is not None:
            await unit.process.child.stop(ENGINE_STOP_SECONDS)

    async def _idle(self, unit: EngineProcess) -> bool:
        """Whether the gateway routes nothing to an engine and has nothing in flight there."""
        ids = unit.instance_ids()
        return await self._all_know(ids) and await self._all_idle(ids)

    def _units(self, key: str, pool: str) -> list[EngineProcess]:
        return [unit for unit in self.engines if unit.pool.key == (key, pool) and not unit.is_draining]

    async def drain(self, unit: EngineProcess) -> None:
        """Takes an engine out of service without losing a request, then ends it."""
        keeper = unit.process
        assert keeper is not None
        ids = [instance.id for instance in unit.instances()]
        unit.is_draining = True
        if self._beds is not None:
            self._beds.forget(unit)
        keeper.disable_restart()
        self._write_fleet()
        self._on_event(f"{unit.name} drains")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_NOTICE_TIMEOUT_SECONDS):
                await wait_until(lambda: self._all_know(ids))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                await wait_until(lambda: self._all_idle(ids))
        await keeper.stop(ENGINE_STOP_SECONDS)
        self.engines.remove(unit)
        self._write_fleet()
        self._on_event(f"{unit.name} has left")

    async def _all_know(self, ids: Sequence[str]) -> bool:
        if self.gateway is None or self.gateway.phase is not ProcessPhase.READY:
            return True  # no gateway routes; the next one reads the present file
        return all([await self._routing.has_stopped_routing(instance_id) for instance_id in ids])

    async def _all_idle(self, ids: Sequence[str]) -> bool:
        return not any([await self._routing.in_flight_requests(instance_id) for instance_id in ids])

    # --- stop --------------------------------------------------------------------------------------------------------

    async def stop(self, at_once: asyncio.Event) -> None:
        """Stops the gateway first (it finishes requests for a few seconds), then engines, then
        Redis.

        at_once: an event that ends the waiting.
        """
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        if self._beds is not None:
            await self._beds.close()
        stopping = asyncio.ensure_future(self._stop_in_order())
        interrupted = asyncio.ensure_future(at_once.wait())
        first_of: set[asyncio.Future[object]] = {stopping, interrupted}  # type: ignore[arg-type]  # Future is invariant
        await asyncio.wait(first_of, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if not stopping.done():
            for keeper in self.processes():
                keeper.kill()
        await stopping

    async def _stop_in_order(self) -> None:
        engines = [unit.process for unit in self.engines if unit.process]
        for helper in (*engines, self.redis, self.indexer, self.autoscaler):
            if helper is not None:
                helper.disable_restart()
        if self.gateway is not None:
            await self.gateway.stop(FINISH_TIMEOUT_SECONDS)
        last = [*engines, *(helper for helper in (self.indexer, self.autoscaler) if helper is not None)]
        await asyncio.gather(*(keeper.stop(ENGINE_STOP_SECONDS) for keeper in last))
        if self.redis is not None:
            await self.redis.stop(REDIS_STOP_SECONDS)

    def processes(self) -> list[ManagedProcess]:
        """Returns all managed processes: gateway, Redis, indexer, autoscaler, engines."""
        components = (self.gateway, self.redis, self.indexer, self.autoscaler)
        return [keeper for keeper in (*components, *(unit.process for unit in self.engines)) if keeper is not None]


def _nobody() -> None:
    """Does nothing."""


async def _answers(url: str) -> bool:
    return await get_http_status(url) is not None


async def _healthy(url: str) -> bool:
    return await get_http_status(f"{url}/health") == 200


async def _engine_ready(unit: EngineProcess, child: ChildProcess) -> None:
    if unit.pool.says_ready:
        await child.wait_ready(len(unit.ports))
    else:
        await wait_until(lambda: _all_healthy(unit.urls()), 0.25)


async def _all_healthy(urls: Sequence[str]) -> bool:
    return all([await _healthy(url) for url in urls])


async def _says_ready(child: ChildProcess) -> None:
    await child.wait_ready()


def _fresh(server: RedisServer) -> ProcessCommand:
    """Removes the socket of a killed server, so that nothing waits on it."""
    if server.socket_path:
        Path(server.socket_path).unlink(missing_ok=True)
    return ProcessCommand(server.command)


async def _redis_ready(server: RedisServer) -> None:
    await wait_until(lambda: is_redis_up(server.socket_path, server.port))


def _last_words(keeper: ManagedProcess) -> str:
    lines = keeper.child.last_lines if keeper.child and not keeper.was_ready else ()
    return "".join(f"\n    {line}" for line in list(lines)[-3:])


def _start_failed(keeper: ManagedProcess) -> StartFailed:
    lines = list(keeper.child.last_lines)[-12:] if keeper.child else []
    said = "".join(f"\n    {line}" for line in lines) or " it said nothing"
    return StartFailed(f"{keeper.name} does not start: {keeper.exit_reason}; its last words:{said}")
