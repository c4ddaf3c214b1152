"""Tests run side by side, in lanes (``make e2e``): one after the other within a lane, each lane in
a process of its own.

Run without workers, all tests are one lane. They share one cluster, which the first that needs it
brings up and the session takes down.
"""

import uuid

import pytest
from _pytest.nodeid import NodeId

from e2e.cluster import levels
from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.run_record import RunRecord
from e2e.parallel_lanes import lane, lane_position

SESSION = pytest.StashKey[str]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders tests by lane and position, and makes each lane a group of ``--dist loadgroup``.

    Why not the marker ``xdist_group``: xdist 3.8 writes the group to ``_nodeid``, which pytest 9.2
    does not read. It would divide a lane among all workers.
    """
    items.sort(key=lambda item: lane_position(item.get_closest_marker("lane")))
    if hasattr(config, "workerinput"):
        for item in items:
            item._id = NodeId.parse(f"{item.nodeid}@{lane(item.get_closest_marker('lane'))}")


def pytest_configure(config: pytest.Config) -> None:
    """Names the session, the same in all of its processes."""
    worker = getattr(config, "workerinput", None)
    if worker is None:
        config.option.testrunuid = config.option.testrunuid or uuid.uuid4().hex
    config.stash[SESSION] = worker["testrunuid"] if worker else config.option.testrunuid


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> str:
    """The name of this run of the tests."""
    return request.config.stash[SESSION]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The cluster goes with the session that brought it up, once all workers have ended."""
    if not hasattr(session.config, "workerinput"):
        run = pinned_versions.cache_folder() / "cluster"
        if RunRecord(run).get("session") == session.config.stash[SESSION]:
            levels.down(run)
