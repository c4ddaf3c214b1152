"""Fixtures for tests of the operator's control loop."""

import pytest

from fairlead_testing.kube.operator_harness import OperatorHarness


@pytest.fixture
def harness() -> OperatorHarness:
    return OperatorHarness()
