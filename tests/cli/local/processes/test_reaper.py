"""No process of a stack outlives its supervisor."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import pytest

from fairlead_testing.processes import block_until, is_alive

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from fairlead_cli.local.processes.child_process import ChildProcess, ProcessCommand
from fairlead_cli.local.processes.reaper import Reaper

async def main(directory, script, count):
    reaper = Reaper(Path(directory))
    command = ProcessCommand((sys.executable, "-S", "-c", script))
    children = [await ChildProcess.start(f"c{n}", command, reaper) for n in range(count)]
    for child in children:
        await child.wait_ready()
    print(reaper.pid, *(child.pid for child in children), flush=True)
    for line in sys.stdin:
        if line.strip() == "check":
            print(reaper.replace_if_dead(), reaper.pid, flush=True)
        else:
            break
    if line.strip() == "close":
        reaper.close()
        return
    await asyncio.sleep(600)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""
CHILD = "import time; print('ready', flush=True); time.sleep(600)"
UNTIED = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); print('ready', flush=True); time.sleep(600)"
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")


class SupervisorProcess:
    """A supervisor process with children, and their pids. It and the reaper end with the block."""

    def __init__(self, directory: Path, script: str, count: int = 2) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(directory), script, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.reaper, *self.children = (int(word) for word in self.read_line().split())
        except ValueError:
            self.kill()
            raise

    def __enter__(self) -> "SupervisorProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def send(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def has_ended(self) -> bool:
        return not any(is_alive(pid) for pid in (self.reaper, *self.children))


def ignores(pid: int, *signals: signal.Signals) -> bool:
    """Returns True if the process ignores these signals, and where there is no /proc."""
    status = Path(f"/proc/{pid}/status")
    if not Path("/proc/self").exists():
        return True
    (mask,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigIgn:"))
    return all(int(mask, 16) >> (number - 1) & 1 for number in signals)


@pytest.mark.parametrize("script", [CHILD, pytest.param(UNTIED, marks=linux_only)], ids=["tied", "reaper alone"])
def test_sigkill_of_supervisor_leaves_no_process_and_no_directory(tmp_path: Path, script: str) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with SupervisorProcess(directory, script) as supervisor:
        assert not supervisor.has_ended()
        supervisor.kill()
        block_until(supervisor.has_ended, "children and reaper end")
        block_until(lambda: not directory.exists(), "the run directory is removed")


@linux_only
def test_children_end_with_the_supervisor_without_a_reaper(tmp_path: Path) -> None:
    with SupervisorProcess(tmp_path, CHILD) as supervisor:
        os.kill(supervisor.reaper, signal.SIGKILL)
        supervisor.kill()
        block_until(supervisor.has_ended, "children end")


def test_replacement_reaper_knows_the_children(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with SupervisorProcess(directory, UNTIED if sys.platform == "linux" else CHILD) as supervisor:
        os.kill(supervisor.reaper, signal.SIGKILL)
        block_until(lambda: not is_alive(supervisor.reaper), "the reaper is dead")
        supervisor.send("check")
        replaced, pid = supervisor.read_line().split()
        assert replaced == "True"
        assert int(pid) != supervisor.reaper
        supervisor.reaper = int(pid)
        supervisor.kill()
        block_until(supervisor.has_ended, "children and the second reaper end")
        block_until(lambda: not directory.exists(), "the run directory is removed")


def test_reaper_ignores_terminal_signals(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with SupervisorProcess(directory, CHILD, 1) as supervisor:
        block_until(lambda: ignores(supervisor.reaper, *TERMINAL_SIGNALS), "the reaper has started")
        for number in TERMINAL_SIGNALS:
            os.kill(supervisor.reaper, number)
        supervisor.send("check")
        assert supervisor.read_line().split()[0] == "False"
        supervisor.kill()
        block_until(supervisor.has_ended, "all end")


def test_closing_the_reaper_kills_children_and_removes_directory(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(Path(__file__).parent, directory)
    with SupervisorProcess(directory, CHILD) as supervisor:
        supervisor.send("close")
        assert supervisor.process.wait(60) == 0
        assert not directory.exists()
        block_until(supervisor.has_ended, "children end")
        supervisor.kill()
