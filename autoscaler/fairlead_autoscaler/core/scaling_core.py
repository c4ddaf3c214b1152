"""The core as it is called every few seconds: ``decide`` around the state that it keeps between calls."""

from fairlead_autoscaler.core.decide import decide
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.state import CoreState
from fairlead_autoscaler.core.types import ModelSpec, Observation, ScalingPlan


class ScalingCore:
    """Decides for one model. ``state`` may be replaced from outside, by one that was recorded or another's; ``model`` and
    ``settings`` too, where they change while it runs."""

    def __init__(
        self,
        model: ModelSpec,
        settings: ScalingSettings | None = None,
        state: CoreState | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or ScalingSettings()
        self.state = state or CoreState()

    def step(self, observation: Observation) -> ScalingPlan:
        """The plan after one look."""
        self.state, plan = decide(self.state, observation, self.model, self.settings)
        return plan
