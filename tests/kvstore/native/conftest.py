"""The modules in Cython of the index, compiled."""

from types import ModuleType

import pytest

from fairlead_kvstore import native
from fairlead_testing.native_modules import build_native_modules


@pytest.fixture(scope="session")
def native_modules() -> dict[str, ModuleType]:
    """The compiled modules by name, whether or not the data plane runs compiled."""
    return build_native_modules(native)
