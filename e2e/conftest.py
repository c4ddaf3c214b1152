"""Tests run side by side, in lanes (``make e2e``): one after the other within a lane, each lane in a process of its own.

A lane is an ``xdist_group``; run without workers, all tests are one lane. They share one cluster, which the first that needs it
brings up and the session takes down.
"""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import levels, pins
from cluster.record import Record
from locks import MACHINE, held

SESSION = pytest.StashKey[str]()


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


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that are marked ``alone`` have the machine for themselves."""
    with held(MACHINE, alone=request.node.get_closest_marker("alone") is not None):
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The cluster goes with the session that brought it up, once all workers have ended."""
    if not hasattr(session.config, "workerinput"):
        run = pins.cache_folder() / "cluster"
        if Record(run).told("session") == session.config.stash[SESSION]:
            levels.down(run)
