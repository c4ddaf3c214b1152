"""Containers that outlive their containerd are ended, and no others."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.cluster.nodes import node
from e2e.cluster.run_record import start_time

Shim = Callable[[Path], "tuple[subprocess.Popen[str], int]"]


@pytest.fixture
def shim() -> Iterator[Shim]:
    """Starts what looks like a shim of the containerd on a socket, with a container below it, whose
    id is given too. The container still carries the words of the shim that forked it."""
    started: list[tuple[subprocess.Popen[str], int]] = []

    def start(socket: Path) -> tuple[subprocess.Popen[str], int]:
        never = socket.with_suffix(".never")
        os.mkfifo(never)
        script = f"(read line <{never}) & echo $!; wait; read line <{never}"
        words = ["/usr/bin/containerd-shim-runc-v2", "-c", script, "shim", "-address", str(socket)]
        process = subprocess.Popen(words, executable="/bin/sh", stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        started.append((process, int(process.stdout.readline())))
        return started[-1]

    yield start
    for process, container in started:
        if process.poll() is None:
            os.kill(container, signal.SIGKILL)
            process.kill()
        process.communicate()


def test_only_the_shims_of_that_containerd_end_with_what_they_started(shim: Shim, tmp_path: Path) -> None:
    ours, container = shim(tmp_path / "ours.sock")
    others, kept = shim(tmp_path / "others.sock")
    moment = start_time(kept)
    assert node.end_shims(tmp_path / "ours.sock") == 1
    assert ours.wait() == -signal.SIGKILL
    assert start_time(container) is None
    assert others.poll() is None
    assert start_time(kept) == moment is not None
    assert node.end_shims(tmp_path / "ours.sock") == 0


def test_what_a_shim_started_is_found_however_deep() -> None:
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 5, 7: 0, 8: 7}
    assert node.descendants([2, 7], parents) == [3, 8, 4]
