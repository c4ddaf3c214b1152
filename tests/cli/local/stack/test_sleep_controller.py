"""Engines of a stack that sleep and wake, with real processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from fairlead_testing.processes import block_until

KEY = "default/m"
POOL = (KEY, "main")
PROGRAM = """
import signal, sys
for port in sys.argv[1:]:
    print(f"ready http://127.0.0.1:{port}", flush=True)
signal.pause()
"""
READY, SLEEPING, DRAINING = InstanceState.READY, InstanceState.SLEEPING, InstanceState.DRAINING


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


class FakeRouting:
    """A gateway that notices every change at once. ``busy``: it has requests on every engine."""

    def __init__(self) -> None:
        self.busy = False

    async def has_stopped_routing(self, instance_id: str) -> bool:
        return True

    async def in_flight_requests(self, instance_id: str) -> int:
        return int(self.busy)


class StackFixture:
    """A supervisor with ``count`` engines that may sleep."""

    def __init__(self, directory: Path, count: int) -> None:
        self.file = directory / "fleet.yaml"
        self.sleep_calls, self.routing = FakeSleepCalls(), FakeRouting()
        self.events: list[str] = []
        self.reaper = Reaper(None)
        template = Instance("", "default", "m", "main", "", engine="sim")
        model = Model("default", "m")
        pool = EnginePoolSpec(model, "main", count, template, lambda ports, _: command(ports), "main", sleep_level=1)
        spec = StackSpec((pool,), command(()), "http://127.0.0.1:1", self.file)
        self.supervisor = StackSupervisor(
            spec,
            reaper=self.reaper,
            clock=SystemClock(),
            routing=self.routing,
            on_event=self.events.append,
            sleep_calls=self.sleep_calls,
        )

    def states(self) -> list[InstanceState]:
        return [
            instance.state for instance in parse_fleet_file(self.file.read_text(), file=str(self.file)).instances[KEY]
        ]

    async def wait_states(self, *states: InstanceState) -> None:
        await self.until(lambda: self.states() == list(states))

    async def until(self, condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(block_until, condition, "the engines get there")

    async def scale(self, replicas: int, asleep: int = 0) -> None:
        await self.supervisor.scale(*POOL, replicas, (), asleep)


def command(ports: tuple[int, ...]) -> ProcessCommand:
    return ProcessCommand((sys.executable, "-I", "-S", "-c", PROGRAM, *map(str, ports)))


@asynccontextmanager
async def stack(directory: Path, count: int) -> AsyncIterator[StackFixture]:
    fixture = StackFixture(directory, count)
    try:
        fixture.supervisor.start()
        await fixture.wait_states(*[READY] * count)
        yield fixture
    finally:
        await fixture.supervisor.stop(asyncio.Event())
        fixture.reaper.close()


async def test_sleeping_engines_wake_before_new_ones_start(tmp_path: Path) -> None:
    async with stack(tmp_path, 3) as fixture:
        pids = [engine.process.child.pid for engine in fixture.supervisor.engines]  # type: ignore[union-attr]  # they run
        await fixture.scale(1, asleep=2)
        await fixture.wait_states(READY, SLEEPING, SLEEPING)
        await fixture.scale(3)
        await fixture.wait_states(READY, READY, READY)
        assert [engine.process.child.pid for engine in fixture.supervisor.engines] == pids  # type: ignore[union-attr]
        assert [engine.wake_count for engine in fixture.supervisor.engines] == [0, 1, 1]
    assert fixture.sleep_calls.calls == [("sleep", 1), ("sleep", 1), ("wake", 1), ("wake", 1)]


async def test_engine_with_requests_drains_before_sleep_and_can_be_recalled(tmp_path: Path) -> None:
    async with stack(tmp_path, 2) as fixture:
        fixture.routing.busy = True
        await fixture.scale(1, asleep=1)
        await fixture.wait_states(READY, DRAINING)
        await fixture.scale(2)
        await fixture.wait_states(READY, READY)
        assert fixture.sleep_calls.calls == []


async def test_waking_engine_gets_no_request_before_it_is_awake(tmp_path: Path) -> None:
    async with stack(tmp_path, 1) as fixture:
        await fixture.scale(0, asleep=1)
        await fixture.wait_states(SLEEPING)
        fixture.sleep_calls.reply_event.clear()
        await fixture.scale(1)
        await fixture.wait_states(InstanceState.STARTING)
        fixture.sleep_calls.reply_event.set()
        await fixture.wait_states(READY)


async def test_changed_sleep_count_ends_or_starts_sleeping_engines(tmp_path: Path) -> None:
    async with stack(tmp_path, 2) as fixture:
        await fixture.scale(1, asleep=1)
        await fixture.wait_states(READY, SLEEPING)
        await fixture.scale(1, asleep=0)
        await fixture.wait_states(READY)
        await fixture.scale(1, asleep=1)
        await fixture.wait_states(READY, SLEEPING)


async def test_engine_that_dies_asleep_is_restarted_and_sleeps_again(tmp_path: Path) -> None:
    async with stack(tmp_path, 1) as fixture:
        await fixture.scale(0, asleep=1)
        await fixture.wait_states(SLEEPING)
        (engine,) = fixture.supervisor.engines
        assert engine.process is not None
        assert engine.process.child is not None
        os.kill(engine.process.child.pid, signal.SIGKILL)
        await fixture.until(lambda: engine.process is not None and engine.process.starts == 2)
        await fixture.until(lambda: engine.sleep_state is SleepState.ASLEEP)
        assert fixture.states() == [SLEEPING]
    assert fixture.sleep_calls.calls == [("sleep", 1), ("sleep", 1)]


async def test_engine_that_does_not_wake_is_restarted(tmp_path: Path) -> None:
    async with stack(tmp_path, 1) as fixture:
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
    async with stack(tmp_path, 2) as fixture:
        fixture.sleep_calls.failing.add("sleep")
        await fixture.scale(1, asleep=1)
        await fixture.wait_states(READY)
        assert fixture.supervisor.desired_asleep[POOL] == 0
        await fixture.scale(1, asleep=1)
        assert len(fixture.supervisor.engines) == 1
    assert fixture.sleep_calls.calls == [("sleep", 1)]
    assert any("does not sleep: no sleep" in line for line in fixture.events)


@pytest.mark.parametrize("asleep", [0, 1])
async def test_stack_stops_while_engines_sleep(tmp_path: Path, asleep: int) -> None:
    async with stack(tmp_path, 2) as fixture:
        await fixture.scale(1, asleep=asleep)
        fixture.sleep_calls.reply_event.clear()
        await fixture.scale(0, asleep=1)
    assert all(
        engine.process is None or engine.process.phase is ProcessPhase.STOPPED for engine in fixture.supervisor.engines
    )
