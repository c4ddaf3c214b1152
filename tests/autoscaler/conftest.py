"""A simulated world of the control loop: models, gateways, a recording target and a fixed core."""

import pytest

from fairlead_testing.autoscaler.control_loop import KEY, ControlLoopHarness, model_state


@pytest.fixture
def harness() -> ControlLoopHarness:
    return ControlLoopHarness(models={KEY: model_state()})
