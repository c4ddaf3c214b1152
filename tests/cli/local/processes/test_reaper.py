"""Nothing of a stack survives its supervisor, whatever ended it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead_testing.processes import is_alive, wait_until

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
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")


class Started:
    """A supervisor process with children, and their pids."""

    def __init__(self, directory: Path, script: str, count: int = 2) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(directory), script, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.guard, *self.children = (int(word) for word in self.answer().split())

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def all_gone(self) -> bool:
        return not any(is_alive(pid) for pid in (self.guard, *self.children))


@pytest.mark.parametrize("script", [CHILD, pytest.param(UNTIED, marks=linux_only)], ids=["tied", "guard alone"])
def test_sigkill_of_supervisor_leaves_no_process_and_no_directory(tmp_path: Path, script: str) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    started = Started(directory, script)
    assert not started.all_gone()
    started.kill()
    wait_until(started.all_gone, "children and guard end")
    wait_until(lambda: not directory.exists(), "the run directory is removed")


@linux_only
def test_children_end_with_the_supervisor_without_a_reaper(tmp_path: Path) -> None:
    started = Started(tmp_path, CHILD)
    os.kill(started.guard, signal.SIGKILL)
    started.kill()
    wait_until(started.all_gone, "children end")


def test_replacement_reaper_knows_the_children(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    started = Started(directory, UNTIED if sys.platform == "linux" else CHILD)
    os.kill(started.guard, signal.SIGKILL)
    wait_until(lambda: not is_alive(started.guard), "the guard is dead")
    started.say("check")
    replaced, pid = started.answer().split()
    assert replaced == "True"
    assert int(pid) != started.guard
    started.guard = int(pid)
    started.kill()
    wait_until(started.all_gone, "children and the second guard end")
    wait_until(lambda: not directory.exists(), "the run directory is removed")


def test_reaper_ignores_terminal_signals(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    started = Started(directory, CHILD, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(started.guard, number)
    started.say("check")
    assert started.answer().split()[0] == "False"
    started.kill()
    wait_until(started.all_gone, "all end")


def test_closing_the_reaper_kills_children_and_removes_directory(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(Path(__file__).parent, directory)
    started = Started(directory, CHILD)
    started.say("close")
    assert started.process.wait(60) == 0
    assert not directory.exists()
    wait_until(started.all_gone, "children end")
    started.kill()
