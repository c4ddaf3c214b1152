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

SESSION = pytest.StashKey[str]()
STORY = "what installs and removes Fairlead"
LANES = {
    "kube/test_story.py::test_a_model_is_served": STORY,
    "kube/test_story.py::test_nothing_is_lost": STORY,
    "kube/test_beside.py::test_who_sets": STORY,
    "kube/test_story.py": STORY,
    "kube/test_engines.py::test_a_pool": "models",
    "kube/test_examples.py": "models",
    "kube/test_trouble.py": "models",
    "kube/test_node.py": "engines",
    "kube/test_images.py": "engines",
    "kube/test_engines.py::test_a_group": "engines",
    "kube/test_autoscaling.py": "engines",
    "kube/test_rollouts.py": "engines",
    "kube/test_beside.py": "engines",
}
"""By file, or by the beginning of a test's name, in this order; all else is local. The story has Fairlead for itself first, while the
others do what needs no Fairlead, and again at its end, when they are done with what they need it for."""


class Lanes(LoadScopeScheduling):
    """A lane is done by one worker, in its order."""

    def _split_scope(self, nodeid: str) -> str:
        found = _place(nodeid)
        return "local" if found is None else list(LANES.values())[found]


def _place(nodeid: str) -> int | None:
    """Which row of the table a test belongs to."""
    name = nodeid.removeprefix("e2e/")
    return next((place for place, prefix in enumerate(LANES) if name.startswith(prefix)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of the table, whoever runs them."""
    items.sort(key=lambda item: _place(item.nodeid) or 0)


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
