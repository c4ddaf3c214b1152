"""The supervisor over small programs of our own: who is in the fleet file when, who ends in which order."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead.fleet.file import parse_fleet_file
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model
from fairlead.runtime.clock import SystemClock
from fairlead_cli.addresses import find_free_ports
from fairlead_cli.errors import StartFailed
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.stack.engine_process import EnginePoolSpec
from fairlead_cli.local.stack.supervisor import StackSpec, StackSupervisor
from fairlead_testing.processes import is_alive, wait_until

PATIENCE = 120.0
KEY = "default/m"
# arguments: name, file to note one's end in, ports; answers every request with 200 and 2 bytes
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


class NoGateway:
    """Answers as a gateway would that knows everything at once and is idle; ``asked`` can hold it back."""

    def __init__(self) -> None:
        self.knows = asyncio.Event()
        self.idle = asyncio.Event()
        self.asked_in_flight = 0
        self.knows.set()
        self.idle.set()

    async def has_stopped_routing(self, instance_id: str) -> bool:
        return self.knows.is_set()

    async def in_flight_requests(self, instance_id: str) -> int:
        self.asked_in_flight += 1
        return 0 if self.idle.is_set() else 1


class Stage:
    """A supervisor with its surroundings in a temporary directory."""

    def __init__(self, directory: Path, **changes: object) -> None:
        self.directory = directory
        self.notes = directory / "ended"
        self.told: list[str] = []
        self.routes = NoGateway()
        self.guard = Reaper(None)
        ((port,),) = find_free_ports([1])
        model = Model("default", "m")
        template = Instance("", "default", "m", "main", "", engine="sim")
        pool = replace(EnginePoolSpec(model, "main", 2, template, self.engine, "main"), **changes)  # type: ignore[arg-type]  # a test's own keywords
        plan = StackSpec((pool,), self.server("gateway", (port,)), f"http://127.0.0.1:{port}", directory / "fleet.yaml")
        self.supervisor = StackSupervisor(
            plan,
            reaper=self.guard,
            clock=SystemClock(),
            routing=self.routes,
            on_event=self.told.append,
            drain_seconds=PATIENCE,
        )

    def server(self, name: str, ports: tuple[int, ...]) -> ProcessCommand:
        return ProcessCommand((sys.executable, "-I", "-S", "-c", SERVER, name, str(self.notes), *map(str, ports)))

    def engine(self, ports: tuple[int, ...], first: int) -> ProcessCommand:
        return self.server(f"engine-{first}", ports)

    def file(self) -> Fleet:
        path = self.directory / "fleet.yaml"
        return parse_fleet_file(path.read_text(), file=str(path))

    def states(self) -> dict[str, InstanceState]:
        return {one.id.split("/")[0]: one.state for one in self.file().instances[KEY]}

    async def until(self, condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(wait_until, condition, "the supervisor gets there")


def on_stage(directory: Path, play: Callable[[Stage], Awaitable[None]], **changes: object) -> Stage:
    async def run() -> Stage:
        stage = Stage(directory, **changes)
        try:
            await play(stage)
        finally:
            await stage.supervisor.stop(asyncio.Event())
            stage.guard.close()
        return stage

    return asyncio.run(run())


def kill(keeper: ManagedProcess | None) -> None:
    assert keeper is not None
    assert keeper.child is not None
    os.kill(keeper.child.pid, signal.SIGKILL)


async def up(stage: Stage) -> None:
    stage.supervisor.start()
    async with asyncio.timeout(PATIENCE):
        await stage.supervisor.wait_ready()


def test_fleet_file_shows_starting_then_ready_engines(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        stage.supervisor.start()
        await stage.until(lambda: InstanceState.STARTING in stage.states().values())
        async with asyncio.timeout(PATIENCE):
            await stage.supervisor.wait_ready()
        assert stage.states() == {"main-0": InstanceState.READY, "main-1": InstanceState.READY}

    on_stage(tmp_path, play)


def test_engine_is_ready_when_its_health_endpoint_answers(tmp_path: Path) -> None:
    on_stage(tmp_path, up, says_ready=False)


def test_restarted_engine_keeps_its_id(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await up(stage)
        before = stage.file().instances[KEY]
        kill(stage.supervisor.engines[0].process)
        await stage.until(lambda: list(stage.states()) == ["main-1"])
        await stage.until(lambda: list(stage.states().values()) == [InstanceState.READY] * 2)
        assert stage.file().instances[KEY] == before
        assert any(line.startswith("main-0 ended (SIGKILL); again in 250ms") for line in stage.told)

    on_stage(tmp_path, play)


def test_dead_gateway_is_restarted(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await up(stage)
        gateway = stage.supervisor.gateway
        assert gateway is not None
        kill(gateway)
        await stage.until(lambda: gateway.restarts == 1 and gateway.phase is ProcessPhase.READY)

    on_stage(tmp_path, play)


def test_engines_of_one_process_are_separate_instances(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await up(stage)
        assert [unit.name for unit in stage.supervisor.engines] == ["main-0..3", "main-4..5"]
        assert list(stage.states()) == [f"main-{n}" for n in range(6)]

    on_stage(tmp_path, play, replicas=6, engines_per_process=4)


def test_stack_fails_with_last_lines_when_engines_never_start(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        with pytest.raises(StartFailed, match=r"main-0 does not start: exit code 3(.|\n)*no such model file"):
            await up(stage)

    failing = ProcessCommand((sys.executable, "-I", "-S", "-c", FAILS))
    on_stage(tmp_path, play, command=lambda ports, first: failing)


def test_other_engines_serve_when_one_does_not_start(tmp_path: Path) -> None:
    failing = ProcessCommand((sys.executable, "-I", "-S", "-c", FAILS))

    async def play(stage: Stage) -> None:
        pool = stage.supervisor.spec.pools[0]
        mixed = replace(pool, command=lambda ports, first: stage.engine(ports, first) if first else failing)
        stage.supervisor.spec = replace(stage.supervisor.spec, pools=(mixed,))
        await up(stage)
        assert stage.states()["main-1"] is InstanceState.READY

    on_stage(tmp_path, play)


def test_gateway_stops_before_engines(tmp_path: Path) -> None:
    stage = on_stage(tmp_path, up)
    ended = stage.notes.read_text().split()
    assert ended[0] == "gateway"
    assert sorted(ended[1:]) == ["engine-0", "engine-1"]


def test_second_signal_stops_everything_at_once(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"

    async def play(stage: Stage) -> None:
        await up(stage)
        pids = [keeper.child.pid for keeper in stage.supervisor.processes() if keeper.child]
        hurry = asyncio.Event()
        stopping = asyncio.ensure_future(stage.supervisor.stop(hurry))
        hurry.set()
        await stopping
        assert not any(is_alive(pid) for pid in pids)

    on_stage(tmp_path, play, command=lambda ports, first: ProcessCommand((sys.executable, "-I", "-S", "-c", deaf)))


def test_scale_up_adds_engines_with_new_numbers(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await up(stage)
        await stage.supervisor.scale(KEY, "main", 4)
        await stage.until(lambda: list(stage.states().values()) == [InstanceState.READY] * 4)
        assert list(stage.states()) == ["main-0", "main-1", "main-2", "main-3"]

    on_stage(tmp_path, play)


def test_scale_down_waits_for_the_gateway_to_drain_the_engine(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await up(stage)
        stage.routes.knows.clear()
        stage.routes.idle.clear()
        leaving = stage.supervisor.engines[1].process
        assert leaving is not None
        shrinking = asyncio.ensure_future(stage.supervisor.scale(KEY, "main", 1))
        await stage.until(lambda: stage.states()["main-1"] is InstanceState.DRAINING)
        assert stage.routes.asked_in_flight == 0
        stage.routes.knows.set()
        await stage.until(lambda: stage.routes.asked_in_flight > 0)
        assert leaving.phase is ProcessPhase.READY
        stage.routes.idle.set()
        await shrinking
        assert list(stage.states()) == ["main-0"]
        assert leaving.phase is ProcessPhase.STOPPED

    on_stage(tmp_path, play)


def test_named_engine_leaves_first_and_keeps_its_number_until_gone(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await up(stage)
        stage.routes.idle.clear()
        shrinking = asyncio.ensure_future(stage.supervisor.scale(KEY, "main", 1, ("main-0", "main-1")))
        await stage.until(lambda: stage.states()["main-0"] is InstanceState.DRAINING)
        await stage.supervisor.scale(KEY, "main", 2)
        await stage.until(lambda: stage.states().get("main-2") is InstanceState.READY)
        assert stage.supervisor.desired_replicas == {(KEY, "main"): 2}
        stage.routes.idle.set()
        await shrinking
        assert list(stage.states()) == ["main-1", "main-2"]

    on_stage(tmp_path, play)


def test_pool_may_start_and_end_with_zero_engines(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await up(stage)
        assert stage.states() == {}
        await stage.supervisor.scale(KEY, "main", 1)
        await stage.until(lambda: stage.states() == {"main-0": InstanceState.READY})
        await stage.supervisor.scale(KEY, "main", 0)
        assert stage.states() == {}

    on_stage(tmp_path, play, replicas=0)


def test_scale_of_an_unknown_pool_is_refused(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        with pytest.raises(BadInput, match="no pool"):
            await stage.supervisor.scale(KEY, "other", 1)

    on_stage(tmp_path, play)


def test_adopted_engines_are_in_the_fleet_and_never_scaled(tmp_path: Path) -> None:
    template = Instance("", "default", "m", "main", "")
    adopted = (replace(template, id="10.0.0.5/80/0", url="http://10.0.0.5:80"),)

    async def play(stage: Stage) -> None:
        await up(stage)
        assert stage.states() == {"10.0.0.5": InstanceState.READY}
        with pytest.raises(BadInput, match="adopted engines are not scaled"):
            await stage.supervisor.scale(KEY, "main", 1)

    on_stage(tmp_path, play, replicas=0, adopted=adopted)


def test_dead_reaper_is_replaced(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await up(stage)
        pid = stage.guard.pid
        os.kill(pid, signal.SIGKILL)
        await stage.until(lambda: stage.guard.pid != pid)
        assert is_alive(stage.guard.pid)

    on_stage(tmp_path, play)
