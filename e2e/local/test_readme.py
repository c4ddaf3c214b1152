"""Every command of the README, unchanged and in its order, against one running ``make up``."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOREGROUND = "make up"
SHORTENED = {"make demo": {"DEMO": "--limit 40 --speed 8"}}
"""The demo is measured elsewhere; here it only has to run as written, so it gets fewer requests
through its own variable."""


def commands() -> list[tuple[str, str]]:
    """(kind, text) of each shell command and each Python block, in order."""
    found: list[tuple[str, str]] = []
    for kind, body in BLOCK.findall((ROOT / "README.md").read_text()):
        if kind == "python":
            found.append((kind, body))
            continue
        joined = body.replace("\\\n", " ")
        found += [(kind, line[2:].strip()) for line in joined.splitlines() if line.startswith("$ ")]
    return found


@pytest.fixture(scope="module")
def stack() -> Iterator[None]:
    """``make up`` in the foreground of its own session until its ``ready`` line, then Ctrl-C."""
    process = subprocess.Popen(
        FOREGROUND.split(),
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
    yield
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert sum(line.startswith("ready") for line in [*lines, *rest.splitlines()]) == 1
    _nothing_left(process.pid)


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


def test_the_readme_has_the_commands_that_this_test_knows() -> None:
    texts = [text for kind, text in commands() if kind == "console"]
    assert texts[:2] == ["make up", "make demo"]
    assert any(text.startswith("curl") for text in texts)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "text"), commands(), ids=lambda value: value.split("\n")[0][:40])
def test_a_command_of_the_readme_works(stack: None, kind: str, text: str) -> None:
    if text == FOREGROUND:
        return  # it is what the fixture runs
    env = {**os.environ, **SHORTENED.get(text, {})}
    argv = [str(ROOT / ".venv/bin/python"), "-c", text] if kind == "python" else ["bash", "-ceu", text]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr
    if "stream" in text and text.startswith("curl"):
        assert done.stdout.rstrip().endswith("data: [DONE]")
