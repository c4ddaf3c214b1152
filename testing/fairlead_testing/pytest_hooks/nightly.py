"""Sizes of simulations and searches: small in `make test`, full in `make nightly`.

`make nightly` sets `FAIRLEAD_NIGHTLY=1`. It runs the modules that import `shortened`, the tests
with the marker `nightly`, and the property tests. Without the variable, tests with the marker
`nightly` are left out.
"""

import os
from typing import Final, TypeVar

import pytest

NIGHTLY: Final = os.environ.get("FAIRLEAD_NIGHTLY") == "1"

T = TypeVar("T")


def shortened(full: T, short: T) -> T:
    return full if NIGHTLY else short


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests of modules that import `shortened`, and leaves out those of `make nightly`."""
    for item in items:
        if getattr(getattr(item, "module", None), "shortened", None) is shortened:
            item.add_marker(pytest.mark.shortened)
    if NIGHTLY:
        return
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
