"""How a controller is called: by ``step(observation) -> Plan``, as our own core is, so that benches
can exchange them.

A controller itself is a pure function from its state and a look to its next state and a plan.
``EachPool`` keeps the state of one that scales every pool by itself, and calls it at its own
period; those that look at all pools together keep theirs themselves.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from fairlead_autoscaler.core.types import ModelSpec, Observation, PoolPlan, ScalingPlan
from fairlead_autoscaler.presets.metrics import ArrivalRate, PoolSample, is_due, pool_samples

ControllerState = TypeVar("ControllerState")


class Controller(Protocol):
    """What benches and simulators drive."""

    def step(self, observation: Observation) -> ScalingPlan:
        """One look in, what to do out; called every ``model.interval_seconds``. A pool that is not
        in the plan stays.
        """
        ...


class PerPoolController(Generic[ControllerState]):
    """Every pool by itself: ``decide(state, look) -> (state, plan)``, ``plan`` None for no change,
    every ``period_seconds``.
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
        """See ``Scaler``."""
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
