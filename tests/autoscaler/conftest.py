"""A made-up world for the loop: models, a scaler that notes what it is asked for, gateways, a core that does as it is told."""

import pytest

from fairlead_testing.autoscaler.control_loop import KEY, ControlLoopHarness, model_state


@pytest.fixture
def made() -> ControlLoopHarness:
    return ControlLoopHarness(models={KEY: model_state()})
