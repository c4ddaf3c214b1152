"""A managed process with real children, a fake clock and recorded pauses."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fairlead.errors import BadInput
from fairlead.runtime.clock import ManualClock
from fairlead_cli.local.processes.child_process import ChildProcess, ProcessCommand
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase, ProcessSpec
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_testing.processes import block_until, is_alive

PATIENCE = 120.0
SERVER = "import sys, time; print('ready http://x', flush=True); time.sleep(600)"


def python(script: str, **environment: str | None) -> ProcessCommand:
    return ProcessCommand((sys.executable, "-I", "-S", "-c", script), environment)


async def wait_ready_line(child: ChildProcess) -> None:
    await child.wait_ready()


class ProcessFixture:
    """A reaper, a clock, and the recorded states and pauses of a process."""

    def __init__(self) -> None:
        self.reaper = Reaper(None)
        self.clock = ManualClock()
        self.pauses: list[float] = []
        self.phases: list[ProcessPhase] = []
        self.change = asyncio.Event()

    def start(
        self,
        command: ProcessCommand | Callable[[], ProcessCommand],
        ready: Callable[[ChildProcess], Awaitable[None]] = wait_ready_line,
    ) -> ManagedProcess:
        async def pause(seconds: float) -> None:
            self.pauses.append(seconds)
            self.clock.advance(seconds)
            self.change.set()

        process = ManagedProcess(
            ProcessSpec("it", command if callable(command) else lambda: command, ready),
            reaper=self.reaper,
            clock=self.clock,
            on_change=self.on_change,
            sleep=pause,
        )
        process.start()
        return process

    def on_change(self, process: ManagedProcess) -> None:
        self.phases.append(process.phase)
        self.change.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.change.clear()
                await self.change.wait()


@asynccontextmanager
async def process_fixture() -> AsyncIterator[ProcessFixture]:
    fixture = ProcessFixture()
    try:
        yield fixture
    finally:
        fixture.reaper.close()


async def test_process_is_ready_after_its_ready_line() -> None:
    async with process_fixture() as fixture:
        process = fixture.start(python(SERVER))
        await fixture.until(lambda: process.phase is ProcessPhase.READY)
        await process.stop(PATIENCE)
        assert fixture.phases == [ProcessPhase.STARTING, ProcessPhase.READY, ProcessPhase.STOPPED]


async def test_killed_process_is_restarted_after_a_delay() -> None:
    async with process_fixture() as fixture:
        process = fixture.start(python(SERVER))
        await fixture.until(lambda: process.phase is ProcessPhase.READY)
        assert process.child is not None
        os.kill(process.child.pid, signal.SIGKILL)
        await fixture.until(lambda: process.restarts == 1 and process.phase is ProcessPhase.READY)
        assert fixture.phases == [
            ProcessPhase.STARTING,
            ProcessPhase.READY,
            ProcessPhase.WAITING,
            ProcessPhase.STARTING,
            ProcessPhase.READY,
        ]
        assert fixture.pauses == [0.25]
        assert process.exit_reason == "SIGKILL"
        await process.stop(PATIENCE)


async def test_failing_process_is_retried_with_growing_delays() -> None:
    async with process_fixture() as fixture:
        process = fixture.start(python("raise SystemExit(7)"))
        await fixture.until(lambda: process.starts == 5)
        assert fixture.pauses[:4] == [0.25, 0.5, 1.0, 2.0]
        assert process.exit_reason == "exit code 7"
        await process.stop(PATIENCE)
        assert not process.was_ready


async def test_long_ready_process_is_restarted_with_the_first_delay() -> None:
    async with process_fixture() as fixture:
        process = fixture.start(python(SERVER))
        for deaths, served_seconds in enumerate((1.0, 1.0, 3_600.0), start=1):
            await fixture.until(lambda: process.phase is ProcessPhase.READY)
            fixture.clock.advance(served_seconds)
            assert process.child is not None
            os.kill(process.child.pid, signal.SIGKILL)
            await fixture.until(
                lambda deaths=deaths: len(fixture.pauses) == deaths and process.phase is ProcessPhase.READY
            )
        assert fixture.pauses == [0.25, 0.5, 0.25]
        await process.stop(PATIENCE)


async def test_stopped_process_is_not_restarted() -> None:
    async with process_fixture() as fixture:
        process = fixture.start(python(SERVER))
        await fixture.until(lambda: process.phase is ProcessPhase.READY)
        await process.stop(PATIENCE)
        assert process.starts == 1
        assert process.phase is ProcessPhase.STOPPED
        assert fixture.pauses == []


async def test_process_that_ignores_sigterm_is_killed() -> None:
    async with process_fixture() as fixture:
        process = fixture.start(
            python(
                "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
            )
        )
        await fixture.until(lambda: process.phase is ProcessPhase.READY)
        assert process.child is not None
        assert await process.child.stop(0.05) == -signal.SIGKILL
        await process.stop(PATIENCE)


async def test_failing_command_builder_is_retried() -> None:
    async with process_fixture() as fixture:
        tries = 0

        def command() -> ProcessCommand:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise BadInput("no free port")
            return python(SERVER)

        process = fixture.start(command)
        await fixture.until(lambda: process.phase is ProcessPhase.READY)
        assert fixture.pauses == [0.25, 0.5]
        await process.stop(PATIENCE)


async def test_missing_program_is_named_in_the_last_lines() -> None:
    async with process_fixture() as fixture:
        child = await ChildProcess.start("it", ProcessCommand(("no-such-program-here",)), fixture.reaper)
        async with asyncio.timeout(PATIENCE):
            assert await child.exited == 127
        assert "no-such-program-here" in child.last_lines[-1]


async def test_child_environment_extends_ours() -> None:
    async with process_fixture() as fixture:
        script = "import os; print(os.environ.get('FAIRLEAD_TEST_A'), 'PATH' in os.environ)"
        child = await ChildProcess.start("it", python(script, FAIRLEAD_TEST_A="yes", PATH=None), fixture.reaper)
        async with asyncio.timeout(PATIENCE):
            await child.exited
        assert child.last_lines[-1] == "yes False"


async def test_descendants_end_with_the_child(tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    script = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(p.pid))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    async with process_fixture() as fixture:
        process = fixture.start(python(script))
        await fixture.until(lambda: process.phase is ProcessPhase.READY)
        grandchild = int(note.read_text())
        await process.stop(PATIENCE)
        await asyncio.to_thread(block_until, lambda: not is_alive(grandchild), "the grandchild ends")


async def test_child_output_goes_to_its_log(tmp_path: Path) -> None:
    async with process_fixture() as fixture:
        child = await ChildProcess.start(
            "it", python("print('one'); print('two', end='')"), fixture.reaper, tmp_path / "it.log"
        )
        async with asyncio.timeout(PATIENCE):
            await child.exited
        assert list(child.last_lines) == ["one", "two"]
    assert (tmp_path / "it.log").read_text().startswith("one\ntwo")
