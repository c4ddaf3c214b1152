"""Fixtures and settings of all tests.

Property tests draw the same examples every time in ``make test``, many new ones in
``make nightly``. The tests of a session share one real API server; each test that asks for a
Valkey gets its own. What this machine lacks is reported before the first test and after the last.
"""

import os
import shutil
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from fairlead_testing.collected_errors import label_transports
from fairlead_testing.kube import api_server as kube
from fairlead_testing.kube import helm
from fairlead_testing.kube.api_server import ApiServer, api_server_for_test

if TYPE_CHECKING:
    from fairlead_testing.redis.valkey import Valkey

_EXAMPLES = os.environ.get("FAIRLEAD_EXAMPLES")

settings.register_profile(
    "fairlead",
    deadline=None,  # a wall-clock threshold
    derandomize=_EXAMPLES is None,
    max_examples=int(_EXAMPLES or 50),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    database=None,
)
settings.load_profile("fairlead")
label_transports()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests that Hypothesis draws."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.property)


def pytest_report_header() -> list[str]:
    """Returns what cannot run on this machine, for the first lines of the output."""
    return [f"cannot run here: {line}" for line in _cannot_run()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeats what could not run, after the results."""
    for line in _cannot_run():
        terminalreporter.write_line(f"could not run here: {line}", yellow=True)
    if not _cannot_run():
        terminalreporter.write_line("could not run here: nothing")


@cache
def _cannot_run() -> list[str]:
    """Returns the tests that are skipped or left out here, with reason and remedy."""
    needs = {
        f"tests on a real API server ({kube.MISSING_API_SERVER_MESSAGE})": kube.binaries_folder() is not None,
        f"tests of the chart ({helm.MISSING_HELM_MESSAGE})": helm.helm_program() is not None,
        f"tests of alert rules and schemas ({helm.MISSING_TOOLS_MESSAGE})": helm.chart_tools() is not None,
        "tests with certificates (no openssl command)": shutil.which("openssl") is not None,
        "tests of the status page's script (no node command)": shutil.which("node") is not None,
        "tests of the load generator (no C compiler)": shutil.which("cc") is not None,
    }
    return [tests for tests, there in needs.items() if not there]


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """etcd and kube-apiserver for this session; tests keep to namespaces of their own."""
    with api_server_for_test(tmp_path_factory.mktemp("cluster") / "run") as server:
        yield server


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Valkey"]:
    """A Valkey of this test's own, on a unix socket."""
    from fairlead_testing.redis.valkey import Valkey  # most tests need none

    server = Valkey(tmp_path_factory.mktemp("v"))
    server.start()
    yield server
    server.kill()
