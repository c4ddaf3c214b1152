"""The supervisor with small test programs: contents of the fleet file, and order of the stop."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from fairlead import management_api as api
from fairlead.errors import BadInput, Unavailable
from fairlead.fleet.file import parse_fleet_file
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model
from fairlead.runtime.clock import ManualClock, SystemClock
from fairlead_cli.exit_codes import StartFailed
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.stack.engine_process import EnginePoolSpec, SleepState
from fairlead_cli.local.stack.stack_run import HungEngineWatch
from fairlead_cli.local.stack.supervisor import RoutingQueries, StackSpec, StackSupervisor
from fairlead_testing.processes import block_until, is_alive, unused_port

PATIENCE = 120.0
KEY = "default/m"
READY, SLEEPING, DRAINING = InstanceState.READY, InstanceState.SLEEPING, InstanceState.DRAINING
# arguments: name, file to note its end in, ports; answers every request with 200 and 2 bytes
SERVER = """
import signal, socket, sys, threading
name, notes, *ports = sys.argv[1:]
def end(*_):
    open(notes, "a").write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
def serve(listener):
    while True:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
        connection.close()
for port in ports:
    listener = socket.create_server(("127.0.0.1", int(port)))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    print(f"ready http://127.0.0.1:{port}", flush=True)
signal.pause()
"""
FAILS = "print('no such model file'); raise SystemExit(3)"


class FakeRouting:
    """An idle gateway that notices every change at once; its events delay both."""

    def __init__(self) -> None:
        self.has_noticed = asyncio.Event()
        self.idle = asyncio.Event()
        self.in_flight_queries = 0
        self.has_noticed.set()
        self.idle.set()

    async def has_stopped_routing(self, instance_id: str) -> bool:
        return self.has_noticed.is_set()

    async def in_flight_requests(self, instance_id: str) -> int:
        self.in_flight_queries += 1
        return 0 if self.idle.is_set() else 1


class FakeSleepCalls:
    """Records sleep calls; ``reply_event`` delays an answer, ``failing`` has calls that fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.reply_event = asyncio.Event()
        self.reply_event.set()
        self.failing: set[str] = set()

    async def sleep(self, url: str, level: int) -> None:
        await self._reply("sleep", level)

    async def wake(self, url: str, level: int) -> None:
        await self._reply("wake", level)

    async def _reply(self, call: str, level: int) -> None:
        self.calls.append((call, level))
        await self.reply_event.wait()
        if call in self.failing:
            raise Unavailable(f"no {call}")


class StackFixture:
    """A supervisor with a reaper, a fake gateway and a temporary directory.

    sleep_level: of engines that may sleep.
    """

    def __init__(self, directory: Path, sleep_level: int | None = None, **changes: object) -> None:
        self.directory = directory
        self.notes = directory / "ended"
        self.events: list[str] = []
        self.routing, self.sleep_calls = FakeRouting(), FakeSleepCalls()
        self.reaper = Reaper(None)
        port = unused_port()
        model = Model("default", "m")
        template = Instance("", "default", "m", "main", "", engine="sim")
        pool = replace(
            EnginePoolSpec(model, "main", 2, template, self.engine, "main", sleep_level=sleep_level), **changes
        )  # type: ignore[arg-type]  # a test's own keywords
        spec = StackSpec(
            (pool,),
            self.server("gateway", (port,)),
            f"http://127.0.0.1:{port}",
            directory / "fleet.yaml",
            drain_seconds=PATIENCE,
        )
        self.supervisor = StackSupervisor(
            spec,
            reaper=self.reaper,
            clock=SystemClock(),
            routing=self.routing,
            on_event=self.events.append,
            sleep_calls=None if sleep_level is None else self.sleep_calls,
        )

    def server(self, name: str, ports: tuple[int, ...]) -> ProcessCommand:
        return ProcessCommand((sys.executable, "-I", "-S", "-c", SERVER, name, str(self.notes), *map(str, ports)))

    def engine(self, ports: tuple[int, ...], first: int) -> ProcessCommand:
        return self.server(f"engine-{first}", ports)

    def file(self) -> Fleet:
        path = self.directory / "fleet.yaml"
        return parse_fleet_file(path.read_text(), file=str(path))

    def states(self) -> dict[str, InstanceState]:
        return {instance.id.split("/")[0]: instance.state for instance in self.file().instances[KEY]}

    async def until(self, condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(block_until, condition, "the supervisor gets there")

    async def wait_states(self, *states: InstanceState) -> None:
        await self.until(lambda: list(self.states().values()) == list(states))

    async def scale(self, replicas: int, asleep: int = 0) -> None:
        await self.supervisor.scale(KEY, "main", replicas, (), asleep)


@asynccontextmanager
async def stack(directory: Path, sleep_level: int | None = None, **changes: object) -> AsyncIterator[StackFixture]:
    fixture = StackFixture(directory, sleep_level, **changes)
    try:
        yield fixture
    finally:
        await fixture.supervisor.stop(asyncio.Event())
        fixture.reaper.close()


@asynccontextmanager
async def sleeping_stack(directory: Path, count: int) -> AsyncIterator[StackFixture]:
    """A stack of engines that may sleep, all of them ready."""
    async with stack(directory, 1, replicas=count) as fixture:
        fixture.supervisor.start()
        await fixture.wait_states(*[READY] * count)
        yield fixture


def kill(process: ManagedProcess | None) -> None:
    assert process is not None
    assert process.child is not None
    os.kill(process.child.pid, signal.SIGKILL)


async def start(fixture: StackFixture) -> None:
    fixture.supervisor.start()
    async with asyncio.timeout(PATIENCE):
        await fixture.supervisor.wait_ready()


async def test_fleet_file_shows_starting_then_ready_engines(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        fixture.supervisor.start()
        await fixture.until(lambda: InstanceState.STARTING in fixture.states().values())
        async with asyncio.timeout(PATIENCE):
            await fixture.supervisor.wait_ready()
        assert fixture.states() == {"main-0": InstanceState.READY, "main-1": InstanceState.READY}


async def test_engine_is_ready_when_its_health_endpoint_answers(tmp_path: Path) -> None:
    async with stack(tmp_path, says_ready=False) as fixture:
        await start(fixture)


async def test_restarted_engine_keeps_its_id(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        await start(fixture)
        before = fixture.file().instances[KEY]
        kill(fixture.supervisor.engines[0].process)
        await fixture.until(lambda: list(fixture.states()) == ["main-1"])
        await fixture.until(lambda: list(fixture.states().values()) == [InstanceState.READY] * 2)
        assert fixture.file().instances[KEY] == before
        assert any(line.startswith("main-0 ended (SIGKILL); again in 250ms") for line in fixture.events)


async def test_hung_engine_is_restarted_once_and_the_others_run_on(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        await start(fixture)
        supervisor = fixture.supervisor
        hung, other = (engine.process for engine in supervisor.engines)
        assert hung is not None
        assert hung.child is not None
        assert other is not None
        os.kill(hung.child.pid, signal.SIGSTOP)  # /health of a hung core would still say 200
        report = EjectionReport(75.0, "3 timeouts", failed_probes=2, workers=1)

        class ReportingGateway(FakeRouting):
            async def fleet(self) -> api.FleetOut:
                instances = [api.InstanceOut(supervisor.engines[0].instance_ids()[0], ejection=report)]
                return api.FleetOut(1, models=[api.ModelOut(KEY, "default", "m", instances=instances)])

        routing, clock = cast(RoutingQueries, ReportingGateway()), ManualClock(SystemClock.now() + 1_000.0)
        await HungEngineWatch(supervisor, routing, clock).poll()
        await fixture.until(lambda: hung.phase is ProcessPhase.READY and hung.restarts == 1)
        assert other.restarts == 0
        assert sum("main-0 hangs and is restarted: 2 probes failed" in line for line in fixture.events) == 1


async def test_dead_gateway_is_restarted(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        await start(fixture)
        gateway = fixture.supervisor.gateway
        assert gateway is not None
        kill(gateway)
        await fixture.until(lambda: gateway.restarts == 1 and gateway.phase is ProcessPhase.READY)


async def test_engines_of_one_process_are_separate_instances(tmp_path: Path) -> None:
    async with stack(tmp_path, replicas=6, engines_per_process=4) as fixture:
        await start(fixture)
        assert [engine.name for engine in fixture.supervisor.engines] == ["main-0..3", "main-4..5"]
        assert list(fixture.states()) == [f"main-{n}" for n in range(6)]


async def test_stack_fails_with_last_lines_when_engines_never_start(tmp_path: Path) -> None:
    failing = ProcessCommand((sys.executable, "-I", "-S", "-c", FAILS))
    async with stack(tmp_path, command=lambda ports, first: failing) as fixture:
        with pytest.raises(StartFailed, match=r"main-0 does not start: exit code 3(.|\n)*no such model file"):
            await start(fixture)


async def test_other_engines_serve_when_one_does_not_start(tmp_path: Path) -> None:
    failing = ProcessCommand((sys.executable, "-I", "-S", "-c", FAILS))
    async with stack(tmp_path) as fixture:
        pool = fixture.supervisor.spec.pools[0]
        mixed = replace(pool, command=lambda ports, first: fixture.engine(ports, first) if first else failing)
        fixture.supervisor.spec = replace(fixture.supervisor.spec, pools=(mixed,))
        await start(fixture)
        assert fixture.states()["main-1"] is InstanceState.READY


async def test_gateway_stops_before_engines(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        await start(fixture)
    ended = fixture.notes.read_text().split()
    assert ended[0] == "gateway"
    assert sorted(ended[1:]) == ["engine-0", "engine-1"]


async def test_second_signal_stops_everything_at_once(tmp_path: Path) -> None:
    ignores_sigterm = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    )
    program = ProcessCommand((sys.executable, "-I", "-S", "-c", ignores_sigterm))
    async with stack(tmp_path, command=lambda ports, first: program) as fixture:
        await start(fixture)
        pids = [process.child.pid for process in fixture.supervisor.processes() if process.child]
        at_once = asyncio.Event()
        stopping = asyncio.ensure_future(fixture.supervisor.stop(at_once))
        at_once.set()
        await stopping
        assert not any(is_alive(pid) for pid in pids)


async def test_scale_up_adds_engines_with_new_numbers(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        await start(fixture)
        await fixture.supervisor.scale(KEY, "main", 4)
        await fixture.until(lambda: list(fixture.states().values()) == [InstanceState.READY] * 4)
        assert list(fixture.states()) == ["main-0", "main-1", "main-2", "main-3"]


async def test_scale_down_waits_for_the_gateway_to_drain_the_engine(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        await start(fixture)
        fixture.routing.has_noticed.clear()
        fixture.routing.idle.clear()
        leaving = fixture.supervisor.engines[1].process
        assert leaving is not None
        shrinking = asyncio.ensure_future(fixture.supervisor.scale(KEY, "main", 1))
        await fixture.until(lambda: fixture.states()["main-1"] is InstanceState.DRAINING)
        assert fixture.routing.in_flight_queries == 0
        fixture.routing.has_noticed.set()
        await fixture.until(lambda: fixture.routing.in_flight_queries > 0)
        assert leaving.phase is ProcessPhase.READY
        fixture.routing.idle.set()
        await shrinking
        assert list(fixture.states()) == ["main-0"]
        assert leaving.phase is ProcessPhase.STOPPED


async def test_named_engine_leaves_first_and_keeps_its_number_until_gone(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        await start(fixture)
        fixture.routing.idle.clear()
        shrinking = asyncio.ensure_future(fixture.supervisor.scale(KEY, "main", 1, ("main-0", "main-1")))
        await fixture.until(lambda: fixture.states()["main-0"] is InstanceState.DRAINING)
        await fixture.supervisor.scale(KEY, "main", 2)
        await fixture.until(lambda: fixture.states().get("main-2") is InstanceState.READY)
        assert fixture.supervisor.desired_replicas == {(KEY, "main"): 2}
        fixture.routing.idle.set()
        await shrinking
        assert list(fixture.states()) == ["main-1", "main-2"]


async def test_pool_may_start_and_end_with_zero_engines(tmp_path: Path) -> None:
    async with stack(tmp_path, replicas=0) as fixture:
        await start(fixture)
        assert fixture.states() == {}
        await fixture.supervisor.scale(KEY, "main", 1)
        await fixture.until(lambda: fixture.states() == {"main-0": InstanceState.READY})
        await fixture.supervisor.scale(KEY, "main", 0)
        assert fixture.states() == {}


async def test_scale_of_an_unknown_pool_is_refused(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        with pytest.raises(BadInput, match="no pool"):
            await fixture.supervisor.scale(KEY, "other", 1)


async def test_adopted_engines_are_in_the_fleet_and_never_scaled(tmp_path: Path) -> None:
    template = Instance("", "default", "m", "main", "")
    adopted = (replace(template, id="10.0.0.5/80/0", url="http://10.0.0.5:80"),)
    async with stack(tmp_path, replicas=0, adopted=adopted) as fixture:
        await start(fixture)
        assert fixture.states() == {"10.0.0.5": InstanceState.READY}
        with pytest.raises(BadInput, match="adopted engines are not scaled"):
            await fixture.supervisor.scale(KEY, "main", 1)


async def test_dead_reaper_is_replaced(tmp_path: Path) -> None:
    async with stack(tmp_path) as fixture:
        await start(fixture)
        pid = fixture.reaper.pid
        os.kill(pid, signal.SIGKILL)
        await fixture.until(lambda: fixture.reaper.pid != pid)
        assert is_alive(fixture.reaper.pid)


# --- sleep --------------------------------------------------------------------------------------------------------------


async def test_sleeping_engines_wake_before_new_ones_start(tmp_path: Path) -> None:
    async with sleeping_stack(tmp_path, 3) as fixture:
        pids = [engine.process.child.pid for engine in fixture.supervisor.engines]  # type: ignore[union-attr]  # they run
        await fixture.scale(1, asleep=2)
        await fixture.wait_states(READY, SLEEPING, SLEEPING)
        await fixture.scale(3)
        await fixture.wait_states(READY, READY, READY)
        assert [engine.process.child.pid for engine in fixture.supervisor.engines] == pids  # type: ignore[union-attr]
        assert [engine.wake_count for engine in fixture.supervisor.engines] == [0, 1, 1]
    assert fixture.sleep_calls.calls == [("sleep", 1), ("sleep", 1), ("wake", 1), ("wake", 1)]


async def test_engine_with_requests_drains_before_sleep_and_can_be_recalled(tmp_path: Path) -> None:
    async with sleeping_stack(tmp_path, 2) as fixture:
        fixture.routing.idle.clear()
        await fixture.scale(1, asleep=1)
        await fixture.wait_states(READY, DRAINING)
        await fixture.scale(2)
        await fixture.wait_states(READY, READY)
        assert fixture.sleep_calls.calls == []


async def test_waking_engine_gets_no_request_before_it_is_awake(tmp_path: Path) -> None:
    async with sleeping_stack(tmp_path, 1) as fixture:
        await fixture.scale(0, asleep=1)
        await fixture.wait_states(SLEEPING)
        fixture.sleep_calls.reply_event.clear()
        await fixture.scale(1)
        await fixture.wait_states(InstanceState.STARTING)
        fixture.sleep_calls.reply_event.set()
        await fixture.wait_states(READY)


async def test_changed_sleep_count_ends_or_starts_sleeping_engines(tmp_path: Path) -> None:
    async with sleeping_stack(tmp_path, 2) as fixture:
        await fixture.scale(1, asleep=1)
        await fixture.wait_states(READY, SLEEPING)
        await fixture.scale(1, asleep=0)
        await fixture.wait_states(READY)
        await fixture.scale(1, asleep=1)
        await fixture.wait_states(READY, SLEEPING)


async def test_engine_that_dies_asleep_is_restarted_and_sleeps_again(tmp_path: Path) -> None:
    async with sleeping_stack(tmp_path, 1) as fixture:
        await fixture.scale(0, asleep=1)
        await fixture.wait_states(SLEEPING)
        (engine,) = fixture.supervisor.engines
        assert engine.process is not None
        assert engine.process.child is not None
        os.kill(engine.process.child.pid, signal.SIGKILL)
        await fixture.until(lambda: engine.process is not None and engine.process.starts == 2)
        await fixture.until(lambda: engine.sleep_state is SleepState.ASLEEP)
        assert list(fixture.states().values()) == [SLEEPING]
    assert fixture.sleep_calls.calls == [("sleep", 1), ("sleep", 1)]


async def test_engine_that_does_not_wake_is_restarted(tmp_path: Path) -> None:
    async with sleeping_stack(tmp_path, 1) as fixture:
        await fixture.scale(0, asleep=1)
        await fixture.wait_states(SLEEPING)
        fixture.sleep_calls.failing.add("wake")
        await fixture.scale(1)
        (engine,) = fixture.supervisor.engines
        await fixture.until(lambda: engine.process is not None and engine.process.starts == 2)
        await fixture.wait_states(READY)
        assert engine.process is not None
        assert engine.process.phase is ProcessPhase.READY
    assert any("does not wake and is restarted: no wake" in line for line in fixture.events)


async def test_engines_that_reject_sleep_end_instead(tmp_path: Path) -> None:
    async with sleeping_stack(tmp_path, 2) as fixture:
        fixture.sleep_calls.failing.add("sleep")
        await fixture.scale(1, asleep=1)
        await fixture.wait_states(READY)
        assert fixture.supervisor.desired_asleep[KEY, "main"] == 0
        await fixture.scale(1, asleep=1)
        assert len(fixture.supervisor.engines) == 1
    assert fixture.sleep_calls.calls == [("sleep", 1)]
    assert any("does not sleep: no sleep" in line for line in fixture.events)


@pytest.mark.parametrize("asleep", [0, 1])
async def test_stack_stops_while_engines_sleep(tmp_path: Path, asleep: int) -> None:
    async with sleeping_stack(tmp_path, 2) as fixture:
        await fixture.scale(1, asleep=asleep)
        fixture.sleep_calls.reply_event.clear()
        await fixture.scale(0, asleep=1)
    assert all(
        engine.process is None or engine.process.phase is ProcessPhase.STOPPED for engine in fixture.supervisor.engines
    )
