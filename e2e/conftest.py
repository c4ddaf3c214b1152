"""Tests run side by side, in lanes (``make e2e``): one after the other within a lane, each lane in a process of its own.

Run without workers, all tests are one lane. They share one cluster, which the first that needs it brings up and the session takes
down.
"""

import sys
import uuid
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).parent))

from cluster import levels, pins
from cluster.record import Record
from lanes import lane, place

SESSION = pytest.StashKey[str]()


class Lanes(LoadScopeScheduling):
    """A lane is done by one worker, in its order."""

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of the table, whoever runs them."""
    items.sort(key=lambda item: place(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Instead of what ``--dist`` names."""
    return Lanes(config, log)


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
        run = pins.cache_folder() / "cluster"
        if Record(run).told("session") == session.config.stash[SESSION]:
            levels.down(run)
