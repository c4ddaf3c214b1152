"""Tests in forked processes: results, scopes, crashes and stops, on runs of pytest of their own."""

import re
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import os
from pathlib import Path
import pytest
from fairlead_testing.pytest_hooks import coroutine_tests, forked_processes

def pytest_addoption(parser):
    forked_processes.add_option(parser)

def pytest_configure(config):
    config.pluginmanager.register(coroutine_tests)
    config.pluginmanager.register(forked_processes.ForkedProcesses(lambda item: item.path.name))

@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    yield tmp_path_factory.mktemp("shared")
    with open("ended", "a") as ended:
        ended.write("x")

@pytest.fixture(autouse=True)
def _pid(request):
    with open("pids", "a") as pids:
        pids.write(f"{request.path.name} {os.getpid()}\\n")
"""
PASSING = "def test_one(shared): pass\ndef test_two(shared): pass\n"


def run(folder: Path, files: dict[str, str], *options: str) -> str:
    """Returns what pytest prints that runs these files in three processes."""
    for name, text in {"conftest.py": CONFTEST, "pytest.ini": "[pytest]\n", **files}.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "--processes", "3", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    return subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    ).stdout


def test_results_of_all_processes_are_one_report(tmp_path: Path) -> None:
    failing = "def test_red():\n    print('said before')\n    assert 1 == 2\ndef test_green(): pass\n"
    skipped = "import pytest, warnings\n@pytest.mark.skip(reason='not here')\ndef test_no(): pass\n"
    skipped += "def test_warns(): warnings.warn('take care')\n"

    printed = run(tmp_path, {"test_a.py": PASSING, "test_b.py": failing, "test_c.py": skipped}, "-ra")

    assert "1 failed, 4 passed, 1 skipped, 1 warning" in printed.splitlines()[-1]
    for text in ("assert 1 == 2", "said before", "not here", "UserWarning: take care"):
        assert text in printed


def test_tests_of_a_scope_share_a_process_and_its_fixtures_end(tmp_path: Path) -> None:
    run(tmp_path, {f"test_{number}.py": PASSING for number in range(5)})

    lines = (tmp_path / "pids").read_text().splitlines()
    assert len(lines) == 10
    assert len(set(lines)) == 5, "a file was divided among processes"
    processes = {line.split()[1] for line in lines}
    assert 2 <= len(processes) <= 3
    assert (tmp_path / "ended").read_text() == "x" * len(processes)


def test_a_crash_fails_the_test_that_ran_and_no_other(tmp_path: Path) -> None:
    crashing = "import os, signal\ndef test_one(): pass\ndef test_two(): os.kill(os.getpid(), signal.SIGKILL)\n"
    crashing += "def test_three(): pass\n"

    printed = run(tmp_path, {"test_a.py": crashing, "test_b.py": PASSING})

    assert "the process that ran this test was ended by signal SIGKILL" in printed
    assert re.search(r"FAILED test_a.py::test_two", printed)
    assert "1 failed, 4 passed" in printed.splitlines()[-1]


def test_processes_that_crash_again_and_again_end_the_run(tmp_path: Path) -> None:
    crashing = "import os, pytest\n@pytest.mark.parametrize('n', range(50))\ndef test_n(n): os._exit(3)\n"

    printed = run(tmp_path, {"test_a.py": crashing, "test_b.py": PASSING})

    assert "10 processes that ran tests crashed" in printed
    assert "10 failed" in printed.splitlines()[-1]


def test_the_first_failure_ends_the_run_if_asked(tmp_path: Path) -> None:
    waiting = "from pathlib import Path\nimport time\ndef test_1():\n    assert False\n"
    many = "".join(f"def test_{number}(): time.sleep(0.01)\n" for number in range(2_000))

    printed = run(tmp_path, {"test_a.py": waiting, "test_b.py": f"import time\n{many}"}, "-x")

    assert "stopping after 1 failures" in printed
    assert "1 failed" in printed.splitlines()[-1]
    assert len((tmp_path / "pids").read_text().splitlines()) < 2_000


def test_a_test_that_takes_too_long_fails_in_its_process_on_each_kind_of_loop(tmp_path: Path) -> None:
    slow = "import asyncio, threading\ndef test_slow(): threading.Event().wait()\n"
    slow += "async def test_slow_coroutine(): await asyncio.Event().wait()\n"

    printed = run(tmp_path, {"test_a.py": slow, "test_b.py": PASSING}, "--timeout", "1")

    assert "Timeout (>1.0s) from pytest-timeout" in printed
    assert "took longer than 1 s" in printed
    assert "2 failed, 2 passed" in printed.splitlines()[-1]


def test_a_process_that_reports_nothing_although_its_time_is_over_is_killed(tmp_path: Path) -> None:
    stuck = "import pytest, signal, threading\n"
    stuck += "def test_one(): signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
    stuck += "@pytest.mark.timeout(1)\ndef test_two(): threading.Event().wait()\ndef test_three(): pass\n"
    without_margin = CONFTEST.replace("path.name)", "path.name, margin_seconds=0.0)")

    printed = run(tmp_path, {"conftest.py": without_margin, "test_a.py": stuck, "test_b.py": PASSING})

    assert "the process that ran this test reported nothing for longer than the limit of 1 s" in printed
    assert re.search(r"FAILED test_a.py::test_two", printed)
    assert "1 failed, 4 passed" in printed.splitlines()[-1]
