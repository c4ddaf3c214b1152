"""The core as it is called every few seconds: ``decide`` around the state that it keeps between calls."""

from fairlead_autoscaler.scaling.decide import decide
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.state import State
from fairlead_autoscaler.scaling.values import Observation, Plan, ScaledModel


class Core:
    """Decides for one model. ``state`` may be replaced from outside, by one that was recorded or another's; ``model`` and
    ``settings`` too, where they change while it runs."""

    def __init__(
        self,
        model: ScaledModel,
        settings: ScalingSettings | None = None,
        state: State | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or ScalingSettings()
        self.state = state or State()

    def step(self, observation: Observation) -> Plan:
        """The plan after one look."""
        self.state, plan = decide(self.state, observation, self.model, self.settings)
        return plan
