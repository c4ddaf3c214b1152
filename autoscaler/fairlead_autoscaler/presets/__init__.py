"""The controllers that others run, behind the same call as our core, so that a bench can set them
side by side.

    build("hpa-concurrency", model, target=14.0).step(observation) -> Plan
    PRESETS[name].knobs                                            what may be turned, and over which grid a search goes

Each controller has its file, which opens with its rule, its constants, its source and what was
changed: hpa.py (and hpa_behavior.py), kpa.py (and kpa_window.py), keda.py, apa.py, wva.py,
dynamo.py (and dynamo_forecast.py). They decide from observations alone: a state in, a state and a
plan out, no clock, no randomness. docs/guides/autoscaling-presets.md says what each is good for and
where it fails.
"""

from fairlead_autoscaler.presets.controller import Controller
from fairlead_autoscaler.presets.metrics import Metric
from fairlead_autoscaler.presets.registry import PRESETS, Parameter, Preset, build

__all__ = ["PRESETS", "Controller", "Metric", "Parameter", "Preset", "build"]
