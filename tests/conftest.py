"""Fixtures and settings of all tests.

Property tests draw the same examples every time in ``make test``, many new ones in
``make nightly``. The tests of a session share one real API server; each test that asks for a
Valkey gets its own. What this machine lacks is reported before the first test and after the last.
"""

import os
import shutil
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from fairlead.runtime.compiled_build import cache_folder
from fairlead_testing.collected_errors import label_transports
from fairlead_testing.forks import process
from fairlead_testing.http.certificates import first_public_certificate
from fairlead_testing.kube.api_server import NO_CLUSTER_PROGRAMS, ApiServer, api_server_for_test, binaries_folder
from fairlead_testing.kube.helm import chart_tools, helm_program
from fairlead_testing.pytest_hooks import coroutine_tests, forked_processes, nightly, scheduling
from fairlead_testing.pytest_hooks.processor_time import ProcessorTime

if TYPE_CHECKING:
    from fairlead_testing.redis.valkey import Valkey
    from fairlead_testing.redis.valkey_cluster import ValkeyGroup

_EXAMPLES = os.environ.get("FAIRLEAD_EXAMPLES")

settings.register_profile(
    "fairlead",
    deadline=None,  # a wall-clock threshold
    derandomize=_EXAMPLES is None,
    max_examples=int(_EXAMPLES or 25),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    database=None,
)
settings.load_profile("fairlead")
# It parses all sources for constants once: 16 s of each new checkout, were they kept in it.
set_hypothesis_home_dir(cache_folder(os.environ) / "hypothesis")
label_transports()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option for tests side by side."""
    forked_processes.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the tests of this run, divides them among processes, runs coroutine functions, and
    measures their processor time. The product's programs start as forks.
    """
    process.install()
    config.pluginmanager.register(coroutine_tests)
    config.pluginmanager.register(nightly)
    config.pluginmanager.register(scheduling)
    config.pluginmanager.register(forked_processes.ForkedProcesses(scheduling.scope_of))
    config.pluginmanager.register(ProcessorTime(has_budget=os.environ.get("FAIRLEAD_TEST_BUDGET") == "1"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests that Hypothesis draws, and those that run with others of the API server."""
    for item in items:
        if scheduling.scope_of(item) == scheduling.API_SERVER_SCOPE:
            item.add_marker(pytest.mark.api_server)
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.property)


def pytest_report_header() -> list[str]:
    """Returns what cannot run on this machine, for the first lines of the output."""
    return [f"cannot run here: {line}" for line in _cannot_run()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Gives all tests that miss the cluster's programs one place, so that the summary has one line
    for them.
    """
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and NO_CLUSTER_PROGRAMS in report.longrepr[2]:
        report.longrepr = ("tests", 0, report.longrepr[2])
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeats what could not run, after the results, with the number of tests of the cluster's
    programs.
    """
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())]
    count = sum(NO_CLUSTER_PROGRAMS in reason for reason in skipped)
    for line in _cannot_run():
        number = f"{count} " if NO_CLUSTER_PROGRAMS in line else ""
        terminalreporter.write_line(f"could not run here: {number}{line}", yellow=True)
    if not _cannot_run():
        terminalreporter.write_line("could not run here: nothing")


@cache
def _cannot_run() -> list[str]:
    """Returns the tests that are skipped or left out here, with reason and remedy."""
    needs = {
        f"tests ({NO_CLUSTER_PROGRAMS})": all((binaries_folder(), helm_program(), chart_tools())),
        "tests with certificates (no openssl command)": shutil.which("openssl") is not None,
        "tests of the status page's script (no node command)": shutil.which("node") is not None,
        "tests of the load generator (no C compiler)": shutil.which("cc") is not None,
    }
    return [tests for tests, there in needs.items() if not there]


@pytest.fixture(scope="session", autouse=True)
def _one_public_certificate(tmp_path_factory: pytest.TempPathFactory) -> None:
    """HTTP clients of tests, and of their processes, load one certificate instead of 140."""
    os.environ["SSL_CERT_FILE"] = str(first_public_certificate(tmp_path_factory.mktemp("tls") / "one.pem"))


@pytest.fixture
def new_interpreters() -> Iterator[None]:
    """Starts programs in new interpreters during a test, not as forks."""
    with process.new_interpreters():
        yield


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


@pytest.fixture
def pair(tmp_path: Path) -> Iterator["ValkeyGroup"]:
    """A master and its replica, watched by sentinels."""
    from fairlead_testing.redis.valkey_cluster import sentinel_pair

    with sentinel_pair(tmp_path) as group:
        yield group


@pytest.fixture
def ring(tmp_path: Path) -> Iterator["ValkeyGroup"]:
    """A cluster of three masters, each with a replica."""
    from fairlead_testing.redis.valkey_cluster import valkey_cluster

    with valkey_cluster(tmp_path) as group:
        yield group
