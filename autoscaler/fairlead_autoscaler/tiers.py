"""The tier of sleeping instances that a model's owner asks for, as the core knows it."""

from fairlead.api import ModelDeploymentSpec
from fairlead.units import seconds
from fairlead_autoscaler.scaling import Tier


def tier_of(spec: ModelDeploymentSpec) -> Tier | None:
    """Of each of its pools; None where none sleeps."""
    sleep = spec.autoscaling.sleep
    if sleep is None:
        return None
    return Tier(sleep.max, sleep.min, sleep.level, None if sleep.after is None else seconds(sleep.after))
