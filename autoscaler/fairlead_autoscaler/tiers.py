"""The tier of sleeping instances that a model's owner asks for, as the core knows it."""

from fairlead.api import ModelDeploymentSpec
from fairlead.units import parse_duration
from fairlead_autoscaler.core import SleepTier


def sleep_tier(spec: ModelDeploymentSpec) -> SleepTier | None:
    """Of each of its pools; None where none sleeps."""
    sleep = spec.autoscaling.sleep
    if sleep is None:
        return None
    return SleepTier(sleep.max, sleep.min, sleep.level, None if sleep.after is None else parse_duration(sleep.after))
