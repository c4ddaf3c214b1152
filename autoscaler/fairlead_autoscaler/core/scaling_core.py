"""Scaling core of one model: calls `decide` at each tick and keeps the state between ticks."""

from fairlead_autoscaler.core.decide import decide
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.state import CoreState
from fairlead_autoscaler.core.types import ModelSpec, Observation, ScalingPlan


class ScalingCore:
    """The scaling core of one model. Its state, model and settings may be replaced between two
    ticks.
    """

    def __init__(
        self, model: ModelSpec, settings: ScalingSettings | None = None, state: CoreState | None = None
    ) -> None:
        self.model = model
        self.settings = settings or ScalingSettings()
        self.state = state or CoreState()

    def step(self, observation: Observation) -> ScalingPlan:
        """Returns the plan of one tick."""
        self.state, plan = decide(self.state, observation, self.model, self.settings)
        return plan
