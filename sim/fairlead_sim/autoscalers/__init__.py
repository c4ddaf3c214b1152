"""Presets: the autoscalers of Kubernetes and Knative, behind the same call as Fairlead's own core.

    build("hpa-concurrency", model, target=14.0).step(observation) -> ScalingPlan
    PRESETS[name].parameters    # the values to set, and the grid that a search covers

``hpa`` and ``kpa`` begin with the rule of a controller, its constants, its source and what was
changed. ``metrics`` derives their metrics from an observation, ``controller`` has what they share,
and ``registry`` lists them by name.

All decisions are pure functions of a state and an observation: no clock, no randomness.
Uses and failures of each: docs/concepts/autoscaling-presets.md.
"""

from fairlead_sim.autoscalers.controller import Controller
from fairlead_sim.autoscalers.metrics import Metric
from fairlead_sim.autoscalers.registry import PRESETS, Parameter, Preset, build

__all__ = ["PRESETS", "Controller", "Metric", "Parameter", "Preset", "build"]
