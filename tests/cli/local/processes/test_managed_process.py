"""One process, kept running: real children, a fake clock and recorded pauses."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from fairlead.errors import BadInput
from fairlead.runtime.clock import ManualClock
from fairlead_cli.local.processes.child_process import ChildProcess, ProcessCommand
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_testing.processes import is_alive, wait_until

PATIENCE = 120.0
SERVES = "import sys, time; print('ready http://x', flush=True); time.sleep(600)"


def python(script: str, **environment: str | None) -> ProcessCommand:
    return ProcessCommand((sys.executable, "-I", "-S", "-c", script), environment)


async def said_ready(child: ChildProcess) -> None:
    await child.wait_ready()


class Stage:
    """A guard, a clock, and what a keeper did on them."""

    def __init__(self) -> None:
        self.guard = Reaper(None)
        self.clock = ManualClock()
        self.pauses: list[float] = []
        self.phases: list[ProcessPhase] = []
        self.news = asyncio.Event()

    def keep(
        self,
        command: ProcessCommand | Callable[[], ProcessCommand],
        ready: Callable[[ChildProcess], Awaitable[None]] = said_ready,
    ) -> ManagedProcess:
        async def pause(seconds: float) -> None:
            self.pauses.append(seconds)
            self.clock.advance(seconds)
            self.news.set()

        keeper = ManagedProcess(
            "it",
            command if callable(command) else lambda: command,
            ready,
            reaper=self.guard,
            clock=self.clock,
            on_change=self.changed,
            sleep=pause,
        )
        keeper.start()
        return keeper

    def changed(self, keeper: ManagedProcess) -> None:
        self.phases.append(keeper.phase)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.news.clear()
                await self.news.wait()


def on_stage(play: Callable[[Stage], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Stage()
        try:
            await play(stage)
        finally:
            stage.guard.close()

    asyncio.run(run())


def test_process_is_ready_after_its_ready_line() -> None:
    async def play(stage: Stage) -> None:
        keeper = stage.keep(python(SERVES))
        await stage.until(lambda: keeper.phase is ProcessPhase.READY)
        await keeper.stop(PATIENCE)
        assert stage.phases == [ProcessPhase.STARTING, ProcessPhase.READY, ProcessPhase.STOPPED]

    on_stage(play)


def test_killed_process_is_restarted_after_a_delay() -> None:
    async def play(stage: Stage) -> None:
        keeper = stage.keep(python(SERVES))
        await stage.until(lambda: keeper.phase is ProcessPhase.READY)
        assert keeper.child is not None
        os.kill(keeper.child.pid, signal.SIGKILL)
        await stage.until(lambda: keeper.restarts == 1 and keeper.phase is ProcessPhase.READY)
        assert stage.phases == [
            ProcessPhase.STARTING,
            ProcessPhase.READY,
            ProcessPhase.WAITING,
            ProcessPhase.STARTING,
            ProcessPhase.READY,
        ]
        assert stage.pauses == [0.25]
        assert keeper.exit_reason == "SIGKILL"
        await keeper.stop(PATIENCE)

    on_stage(play)


def test_failing_process_is_retried_with_growing_delays() -> None:
    async def play(stage: Stage) -> None:
        keeper = stage.keep(python("raise SystemExit(7)"))
        await stage.until(lambda: keeper.starts == 5)
        assert stage.pauses[:4] == [0.25, 0.5, 1.0, 2.0]
        assert keeper.exit_reason == "exit code 7"
        await keeper.stop(PATIENCE)
        assert not keeper.was_ready

    on_stage(play)


def test_long_ready_process_is_restarted_with_the_first_delay() -> None:
    async def play(stage: Stage) -> None:
        keeper = stage.keep(python(SERVES))
        for deaths, served_seconds in enumerate((1.0, 1.0, 3_600.0), start=1):
            await stage.until(lambda: keeper.phase is ProcessPhase.READY)
            stage.clock.advance(served_seconds)
            assert keeper.child is not None
            os.kill(keeper.child.pid, signal.SIGKILL)
            await stage.until(lambda deaths=deaths: len(stage.pauses) == deaths and keeper.phase is ProcessPhase.READY)
        assert stage.pauses == [0.25, 0.5, 0.25]
        await keeper.stop(PATIENCE)

    on_stage(play)


def test_stopped_process_is_not_restarted() -> None:
    async def play(stage: Stage) -> None:
        keeper = stage.keep(python(SERVES))
        await stage.until(lambda: keeper.phase is ProcessPhase.READY)
        await keeper.stop(PATIENCE)
        assert keeper.starts == 1
        assert keeper.phase is ProcessPhase.STOPPED
        assert stage.pauses == []

    on_stage(play)


def test_process_that_ignores_sigterm_is_killed() -> None:
    async def play(stage: Stage) -> None:
        keeper = stage.keep(
            python(
                "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
            )
        )
        await stage.until(lambda: keeper.phase is ProcessPhase.READY)
        assert keeper.child is not None
        assert await keeper.child.stop(0.05) == -signal.SIGKILL
        await keeper.stop(PATIENCE)

    on_stage(play)


def test_failing_command_builder_is_retried() -> None:
    async def play(stage: Stage) -> None:
        tries = 0

        def command() -> ProcessCommand:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise BadInput("no free port")
            return python(SERVES)

        keeper = stage.keep(command)
        await stage.until(lambda: keeper.phase is ProcessPhase.READY)
        assert stage.pauses == [0.25, 0.5]
        await keeper.stop(PATIENCE)

    on_stage(play)


def test_missing_program_is_named_in_the_last_lines() -> None:
    async def play(stage: Stage) -> None:
        child = await ChildProcess.start("it", ProcessCommand(("no-such-program-here",)), stage.guard)
        async with asyncio.timeout(PATIENCE):
            assert await child.exited == 127
        assert "no-such-program-here" in child.last_lines[-1]

    on_stage(play)


def test_child_environment_extends_ours() -> None:
    async def play(stage: Stage) -> None:
        script = "import os; print(os.environ.get('FAIRLEAD_TEST_A'), 'PATH' in os.environ)"
        child = await ChildProcess.start("it", python(script, FAIRLEAD_TEST_A="yes", PATH=None), stage.guard)
        async with asyncio.timeout(PATIENCE):
            await child.exited
        assert child.last_lines[-1] == "yes False"

    on_stage(play)


def test_descendants_end_with_the_child(tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    script = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(p.pid))\n"
        "print('ready', flush=True); time.sleep(600)"
    )

    async def play(stage: Stage) -> None:
        keeper = stage.keep(python(script))
        await stage.until(lambda: keeper.phase is ProcessPhase.READY)
        grandchild = int(note.read_text())
        await keeper.stop(PATIENCE)
        await asyncio.to_thread(wait_until, lambda: not is_alive(grandchild), "the grandchild ends")

    on_stage(play)


def test_child_output_goes_to_its_log(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        child = await ChildProcess.start(
            "it", python("print('one'); print('two', end='')"), stage.guard, tmp_path / "it.log"
        )
        async with asyncio.timeout(PATIENCE):
            await child.exited
        assert list(child.last_lines) == ["one", "two"]

    on_stage(play)
    assert (tmp_path / "it.log").read_text().startswith("one\ntwo")
