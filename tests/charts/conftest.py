"""helm, which CI has from the cluster's build."""

from pathlib import Path

import pytest

from fairlead.testing.chart import NEEDED, helm


@pytest.fixture(scope="session")
def program() -> Path:
    """The path of helm."""
    found = helm()
    if found is None:
        pytest.skip(NEEDED)
    return found
