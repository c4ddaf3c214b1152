"""What of a manifest is right and may not do what was meant: notes of ``fairlead lint``, never problems. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fairlead.api.autoscaling import ScalingMode
from fairlead.api.pools import Pool, PoolRole
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.profile import EngineProfile
from fairlead.units import duration


@dataclass(frozen=True, slots=True)
class Remark:
    """``path`` is where in the document it stands."""

    path: tuple[str | int, ...]
    message: str
    fix: str


def remarks(spec: ModelDeploymentSpec, profile: Callable[[Pool], EngineProfile | None]) -> Iterator[Remark]:
    """Numbers that are ignored while the autoscaler is to set them, or that it leaves; an objective that no number keeps; and a tier
    of sleeping instances that nobody uses.
    ``profile`` is what engines of a pool cost."""
    if spec.autoscaling.mode is not ScalingMode.AUTO:
        if spec.sleeps:
            yield Remark(
                ("spec", "autoscaling", "sleep"),
                "nobody puts an instance to sleep while `autoscaling.mode` is not Auto; engines are only made able to",
                "write `mode: Auto`, or leave it if that comes later",
            )
        return
    if spec.replicas is not None:
        yield Remark(
            ("spec", "replicas"),
            f"it sets the number, so `autoscaling.mode: Auto` changes nothing: {spec.instances(spec.pools[0])} it is",
            "remove it, or write `mode: Advise` if only advice is wanted",
        )
        return
    for index, pool in enumerate(spec.pools):
        if not pool.replicas.scaled and not _has_hours(spec, pool):
            why = "it has no max" if pool.replicas.max is None else "its max is its min"
            yield Remark(
                ("spec", "pools", index, "replicas"),
                f"{why}, so `autoscaling.mode: Auto` leaves this pool at {pool.replicas.min}",
                f"give it a max above its min, for example `replicas: {{min: {pool.replicas.min}, "
                f"max: {2 * pool.replicas.min + 2}}}`, or leave it if that is meant",
            )
    least = sum(pool.replicas.min for pool in spec.pools)
    if spec.autoscaling.max is not None and least > spec.autoscaling.max:
        yield Remark(
            ("spec", "autoscaling", "max"),
            f"the pools' min add up to {least}, and there are never fewer than these",
            "raise it, or lower the pools' min",
        )
    itl = spec.objectives.values().itl_seconds
    for pool in spec.pools:
        found = None if pool.role is PoolRole.PREFILL else profile(pool)
        if found is not None and itl is not None and itl < (step := found.step(computed=1, sequences=1, resident=0)):
            yield Remark(
                ("spec", "objectives", "itl"),
                f"a step of an engine on {pool.accelerator} takes {duration(step)} by its profile: no number of them keeps this",
                "relax it, or take another accelerator",
            )


def _has_hours(spec: ModelDeploymentSpec, pool: Pool) -> bool:
    """A schedule gives the pool other bounds at some hour."""
    return any(one.pool in (None, pool.name) for one in spec.autoscaling.schedules)
