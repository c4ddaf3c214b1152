"""Tests run side by side, in lanes (``make e2e``): one after the other within a lane, each lane in
a process of its own.

In one process, all tests are one lane. They share one cluster, which the first that needs it
brings up and the session takes down.
"""

import uuid

import pytest

from e2e.cluster import levels
from e2e.cluster.run_record import RunRecord
from e2e.parallel_lanes import lane, lane_position
from fairlead_testing.pytest_hooks import forked_processes

SESSION = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    forked_processes.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION] = uuid.uuid4().hex
    config.pluginmanager.register(forked_processes.ForkedProcesses(lambda item: lane(item.get_closest_marker("lane"))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: lane_position(item.get_closest_marker("lane")))


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> str:
    """The name of this run of the tests."""
    return request.config.stash[SESSION]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The cluster goes with the session that brought it up, once all processes have ended."""
    run = levels.run_of_tests()
    if RunRecord(run).get("session") == session.config.stash[SESSION]:
        levels.down(run)
