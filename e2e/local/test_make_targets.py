"""``make up`` and ``make demo``, as a new user runs them."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.extended


def test_make_up_serves_until_interrupted_and_leaves_no_process() -> None:
    process = subprocess.Popen(
        ["make", "up"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("ready"):
            break
    else:
        pytest.fail("make up ended without a ready line:\n" + "".join(lines))
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert sum(line.startswith("ready") for line in [*lines, *rest.splitlines()]) == 1
    _nothing_left(process.pid)


@pytest.mark.timeout(600)
def test_make_demo_replays_the_trace_and_reports() -> None:
    """With few requests: its figures are measured elsewhere."""
    done = subprocess.run(
        ["make", "demo", "DEMO=--limit 40 --speed 8"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (ROOT / "out" / "demo").is_dir()


def test_make_keeps_the_environment_that_it_is_called_from() -> None:
    stamp = ROOT / ".venv" / "fairlead-stamp"
    made = stamp.stat()
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"

    subprocess.run(["make", "env"], cwd=ROOT, env={**os.environ, "PATH": path}, check=True)

    assert (stamp.stat().st_ino, stamp.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


def _nothing_left(session: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        left = subprocess.run(
            ["ps", "-o", "pid=,args=", "-s", str(session)], capture_output=True, text=True
        ).stdout.strip()
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"make up left processes behind:\n{left}")
        time.sleep(0.2)
