"""Engines of a stack that sleep and wake, with real processes."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fairlead.errors import Unavailable
from fairlead.fleet.file import parse_fleet_file
from fairlead.fleet.model import Instance, InstanceState, Model
from fairlead.runtime.clock import SystemClock
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.managed_process import ProcessPhase
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.stack.engine_process import EnginePoolSpec, SleepState
from fairlead_cli.local.stack.supervisor import StackSpec, StackSupervisor
from fairlead_testing.processes import wait_until

KEY = "default/m"
POOL = (KEY, "main")
PROGRAM = """
import signal, sys
for port in sys.argv[1:]:
    print(f"ready http://127.0.0.1:{port}", flush=True)
signal.pause()
"""
READY, SLEEPING, DRAINING = InstanceState.READY, InstanceState.SLEEPING, InstanceState.DRAINING


class Bed:
    """Records sleep calls; ``open`` delays an answer, ``refuses`` has calls that fail."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.refuses: set[str] = set()

    async def sleep(self, url: str, level: int) -> None:
        await self._told("sleep", level)

    async def wake(self, url: str, level: int) -> None:
        await self._told("wake", level)

    async def _told(self, verb: str, level: int) -> None:
        self.said.append((verb, level))
        await self.open.wait()
        if verb in self.refuses:
            raise Unavailable(f"no {verb}")


class Routes:
    """A gateway that knows at once; ``busy``: it has requests everywhere."""

    def __init__(self) -> None:
        self.busy = False

    async def has_stopped_routing(self, instance_id: str) -> bool:
        return True

    async def in_flight_requests(self, instance_id: str) -> int:
        return int(self.busy)


class Stage:
    """A supervisor of engines that may sleep, of which so many run."""

    def __init__(self, directory: Path, count: int) -> None:
        self.file = directory / "fleet.yaml"
        self.bed, self.routes = Bed(), Routes()
        self.told: list[str] = []
        self.guard = Reaper(None)
        template = Instance("", "default", "m", "main", "", engine="sim")
        model = Model("default", "m")
        pool = EnginePoolSpec(model, "main", count, template, lambda ports, _: command(ports), "main", sleep_level=1)
        plan = StackSpec((pool,), command(()), "http://127.0.0.1:1", self.file)
        self.supervisor = StackSupervisor(
            plan,
            reaper=self.guard,
            clock=SystemClock(),
            routing=self.routes,
            on_event=self.told.append,
            sleep_calls=self.bed,
        )

    def states(self) -> list[InstanceState]:
        return [one.state for one in parse_fleet_file(self.file.read_text(), file=str(self.file)).instances[KEY]]

    async def becomes(self, *states: InstanceState) -> None:
        await self.until(lambda: self.states() == list(states))

    async def until(self, seen: Callable[[], bool]) -> None:
        await asyncio.to_thread(wait_until, seen, "the engines get there")

    async def scale(self, replicas: int, asleep: int = 0) -> None:
        await self.supervisor.scale(*POOL, replicas, (), asleep)


def command(ports: tuple[int, ...]) -> ProcessCommand:
    return ProcessCommand((sys.executable, "-I", "-S", "-c", PROGRAM, *map(str, ports)))


def on_stage(directory: Path, count: int, play: Callable[[Stage], Awaitable[None]]) -> Stage:
    async def run() -> Stage:
        stage = Stage(directory, count)
        try:
            stage.supervisor.start()
            await stage.becomes(*[READY] * count)
            await play(stage)
        finally:
            await stage.supervisor.stop(asyncio.Event())
            stage.guard.close()
        return stage

    return asyncio.run(run())


def test_sleeping_engines_wake_before_new_ones_start(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        pids = [unit.process.child.pid for unit in stage.supervisor.engines]  # type: ignore[union-attr]  # they run
        await stage.scale(1, asleep=2)
        await stage.becomes(READY, SLEEPING, SLEEPING)
        await stage.scale(3)
        await stage.becomes(READY, READY, READY)
        assert [unit.process.child.pid for unit in stage.supervisor.engines] == pids  # type: ignore[union-attr]
        assert [unit.wake_count for unit in stage.supervisor.engines] == [0, 1, 1]

    stage = on_stage(tmp_path, 3, play)
    assert stage.bed.said == [("sleep", 1), ("sleep", 1), ("wake", 1), ("wake", 1)]


def test_engine_with_requests_drains_before_sleep_and_can_be_recalled(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        stage.routes.busy = True
        await stage.scale(1, asleep=1)
        await stage.becomes(READY, DRAINING)
        await stage.scale(2)
        await stage.becomes(READY, READY)
        assert stage.bed.said == []

    on_stage(tmp_path, 2, play)


def test_waking_engine_gets_no_request_before_it_is_awake(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await stage.scale(0, asleep=1)
        await stage.becomes(SLEEPING)
        stage.bed.open.clear()
        await stage.scale(1)
        await stage.becomes(InstanceState.STARTING)
        stage.bed.open.set()
        await stage.becomes(READY)

    on_stage(tmp_path, 1, play)


def test_changed_sleep_count_ends_or_starts_sleeping_engines(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await stage.scale(1, asleep=1)
        await stage.becomes(READY, SLEEPING)
        await stage.scale(1, asleep=0)
        await stage.becomes(READY)
        await stage.scale(1, asleep=1)
        await stage.becomes(READY, SLEEPING)

    on_stage(tmp_path, 2, play)


def test_engine_that_dies_asleep_is_restarted_and_sleeps_again(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await stage.scale(0, asleep=1)
        await stage.becomes(SLEEPING)
        (unit,) = stage.supervisor.engines
        assert unit.process is not None
        assert unit.process.child is not None
        os.kill(unit.process.child.pid, signal.SIGKILL)
        await stage.until(lambda: unit.process is not None and unit.process.starts == 2)
        await stage.until(lambda: unit.sleep_state is SleepState.ASLEEP)
        assert stage.states() == [SLEEPING]

    stage = on_stage(tmp_path, 1, play)
    assert stage.bed.said == [("sleep", 1), ("sleep", 1)]


def test_engine_that_does_not_wake_is_restarted(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await stage.scale(0, asleep=1)
        await stage.becomes(SLEEPING)
        stage.bed.refuses.add("wake")
        await stage.scale(1)
        (unit,) = stage.supervisor.engines
        await stage.until(lambda: unit.process is not None and unit.process.starts == 2)
        await stage.becomes(READY)
        assert unit.process is not None
        assert unit.process.phase is ProcessPhase.READY

    stage = on_stage(tmp_path, 1, play)
    assert any("does not wake and is restarted: no wake" in line for line in stage.told)


def test_engines_that_reject_sleep_end_instead(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        stage.bed.refuses.add("sleep")
        await stage.scale(1, asleep=1)
        await stage.becomes(READY)
        assert stage.supervisor.desired_asleep[POOL] == 0
        await stage.scale(1, asleep=1)
        assert len(stage.supervisor.engines) == 1

    stage = on_stage(tmp_path, 2, play)
    assert stage.bed.said == [("sleep", 1)]
    assert any("does not sleep: no sleep" in line for line in stage.told)


@pytest.mark.parametrize("asleep", [0, 1])
def test_stack_stops_while_engines_sleep(tmp_path: Path, asleep: int) -> None:
    async def play(stage: Stage) -> None:
        await stage.scale(1, asleep=asleep)
        stage.bed.open.clear()
        await stage.scale(0, asleep=1)

    stage = on_stage(tmp_path, 2, play)
    assert all(unit.process is None or unit.process.phase is ProcessPhase.STOPPED for unit in stage.supervisor.engines)
