"""How property tests run: the same examples every time in ``make test``, many new ones in ``make nightly``.

And the real API server that the tests of a session share, and a real Valkey for each test that asks for one.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from fairlead.testing.kube import ApiServer, for_a_test

if TYPE_CHECKING:
    from fairlead.testing.valkey import Valkey

_EXAMPLES = os.environ.get("FAIRLEAD_EXAMPLES")

settings.register_profile(
    "fairlead",
    deadline=None,  # a wall-clock threshold
    derandomize=_EXAMPLES is None,
    max_examples=int(_EXAMPLES or 100),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    database=None,
)
settings.load_profile("fairlead")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything drawn by Hypothesis is marked ``property``, so that nightly can ask for just that."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.property)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """etcd and kube-apiserver for this session; tests keep to namespaces of their own."""
    with for_a_test(tmp_path_factory.mktemp("cluster") / "run") as server:
        yield server


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Valkey"]:
    """A Valkey of this test's own, on a unix socket."""
    from fairlead.testing.valkey import Valkey  # most tests need none

    server = Valkey(tmp_path_factory.mktemp("v"))
    server.start()
    yield server
    server.kill()
