"""Controller: the protocol of a preset, and the driver that scales each pool by itself.

The protocol is that of Fairlead's own core, so that benchmarks can exchange them. The decision of a
controller is a pure function: a state and a sample in, the next state and a plan out.
``PerPoolController`` keeps the states and calls it once a period.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from fairlead_autoscaler.core.types import ModelSpec, Observation, PoolPlan, ScalingPlan
from fairlead_sim.autoscalers.metrics import ArrivalRate, PoolSample, is_due, pool_samples

ControllerState = TypeVar("ControllerState")


class Controller(Protocol):
    """A scaling controller as benchmarks and simulators drive it."""

    def step(self, observation: Observation) -> ScalingPlan:
        """Returns the plan for an observation; called every ``model.interval_seconds``.

        A pool that is not in the plan stays as it is.
        """


class PerPoolController(Generic[ControllerState]):
    """A controller that scales each pool by itself, every ``period_seconds``.

    decide: maps a state and a sample to the next state and a plan; None for no change.
    """

    def __init__(
        self,
        model: ModelSpec,
        decide: Callable[[ControllerState, PoolSample], tuple[ControllerState, PoolPlan | None]],
        *,
        start: ControllerState,
        period_seconds: float,
    ) -> None:
        self._model = model
        self._decide = decide
        self._period_seconds = period_seconds
        self._states = {facts.name: start for facts in model.pools}
        self._arrivals = ArrivalRate()
        self._last: float | None = None

    def step(self, observation: Observation) -> ScalingPlan:
        self._arrivals = self._arrivals.plus(observation)
        if not is_due(self._last, observation.now, self._period_seconds):
            return ScalingPlan()
        self._last = observation.now
        plans = {}
        for name, look in pool_samples(self._model, observation, self._arrivals).items():
            self._states[name], plan = self._decide(self._states[name], look)
            if plan is not None:
                plans[name] = plan
        return ScalingPlan(plans)
