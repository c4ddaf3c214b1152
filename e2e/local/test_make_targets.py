"""``make demo`` and ``make env``, as a new user runs them."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.extended


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
