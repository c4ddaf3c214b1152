"""Groups of Valkey servers for the tests of what gateways share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead_testing.redis.valkey_cluster import ValkeyGroup, sentinel_pair, valkey_cluster


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ValkeyGroup]:
    """A master and its replica, watched by sentinels."""
    with sentinel_pair(tmp_path) as group:
        yield group


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[ValkeyGroup]:
    """A cluster of three masters, each with a replica."""
    with valkey_cluster(tmp_path) as group:
        yield group
