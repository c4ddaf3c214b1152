"""What of a manifest is right and may not do what was meant: notes of ``fairlead lint``, never problems. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fairlead.api.spec.autoscaling import ScalingMode
from fairlead.api.spec.pools import Pool, PoolRole
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.engine_profile import EngineProfile
from fairlead.units import format_duration


@dataclass(frozen=True, slots=True)
class LintNote:
    """``path`` is where in the document it stands."""

    path: tuple[str | int, ...]
    message: str
    fix: str


def lint_spec(spec: ModelDeploymentSpec, profile: Callable[[Pool], EngineProfile | None]) -> Iterator[LintNote]:
    """Numbers that are ignored while the autoscaler is to set them, or that it leaves; an objective that no number keeps, or none at
    all; and a tier of sleeping instances that nobody uses, or that has no room beside those that serve.
    ``profile`` is what engines of a pool cost."""
    if spec.autoscaling.mode is not ScalingMode.AUTO:
        yield from _lint_disabled_mode(spec)
        return
    if spec.replicas is not None:
        yield LintNote(
            ("spec", "replicas"),
            f"it sets the number, so `autoscaling.mode: Auto` changes nothing: {spec.desired_instances(spec.pools[0])} it is",
            "remove it, or write `mode: Advise` if only advice is wanted",
        )
        return
    for index, pool in enumerate(spec.pools):
        if not pool.replicas.is_scalable and not _has_schedule(spec, pool):
            why = "it has no max" if pool.replicas.max is None else "its max is its min"
            yield LintNote(
                ("spec", "pools", index, "replicas"),
                f"{why}, so `autoscaling.mode: Auto` leaves this pool at {pool.replicas.min}",
                f"give it a max above its min, for example `replicas: {{min: {pool.replicas.min}, "
                f"max: {2 * pool.replicas.min + 2}}}`, or leave it if that is meant",
            )
    least = sum(pool.replicas.min for pool in spec.pools)
    if spec.autoscaling.max is not None and least > spec.autoscaling.max:
        yield LintNote(
            ("spec", "autoscaling", "max"),
            f"the pools' min add up to {least}, and there are never fewer than these",
            "raise it, or lower the pools' min",
        )
    yield from _lint_unused_tiers(spec)
    yield from _lint_slo(spec, profile)


def _lint_disabled_mode(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    scaling = spec.autoscaling
    if spec.can_sleep:
        yield LintNote(
            ("spec", "autoscaling", "sleep"),
            "nobody puts an instance to sleep while `autoscaling.mode` is not Auto; engines are only made able to",
            "write `mode: Auto`, or leave it if that comes later",
        )
    elif scaling.mode is ScalingMode.OFF and "mode" not in scaling.model_fields_set and scaling.model_fields_set:
        yield LintNote(
            ("spec", "autoscaling"),
            "nothing of it is followed, since `mode` is Off where it is left out",
            "write `mode: Auto`, or `mode: Advise` if only advice is wanted",
        )


def _lint_unused_tiers(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """What is said of sleep and zero, and never comes to pass."""
    scaling = spec.autoscaling
    lowest = min(_min_instances(spec, pool) for pool in spec.pools)
    if "zero" in scaling.model_fields_set and lowest > 0:
        yield LintNote(
            ("spec", "autoscaling", "zero"),
            f"no pool may have fewer than {lowest}, so none goes to zero",
            "write `replicas: {min: 0, ...}` in a pool, or remove it",
        )
    most = min(pool.replicas.max or pool.replicas.min for pool in spec.pools)
    if scaling.sleep is not None and scaling.sleep.min >= most:
        yield LintNote(
            ("spec", "autoscaling", "sleep", "min"),
            f"a pool has at most {most}, those that serve included, so fewer sleep as soon as one serves",
            "lower it, or raise the pools' max",
        )


def _min_instances(spec: ModelDeploymentSpec, pool: Pool) -> int:
    """The fewest that a pool may have at any hour."""
    hours = [one for one in spec.autoscaling.schedules if one.pool in (None, pool.name)]
    own = [least for one in hours for least in (one.min, one.max) if least is not None]
    return min([pool.replicas.min, *own])


def _lint_slo(spec: ModelDeploymentSpec, profile: Callable[[Pool], EngineProfile | None]) -> Iterator[LintNote]:
    goals = spec.objectives.to_targets()
    if goals.ttft_seconds is None and goals.itl_seconds is None:
        yield LintNote(
            ("spec", "autoscaling", "mode"),
            "there is no objective to keep, so pools are sized by what an engine's memory and batch hold, however slow that is",
            "say what requests should see, for example `objectives: {ttft: 2s, itl: 100ms}`",
        )
    for pool in spec.pools:
        found = profile(pool)
        if found is None:
            continue
        step = found.step_time(computed=1, sequences=1, resident=0)
        given = {
            "ttft": None if pool.role is PoolRole.DECODE else goals.ttft_seconds,
            "itl": None if pool.role is PoolRole.PREFILL else goals.itl_seconds,
        }
        for name, limit in given.items():
            if limit is not None and limit < step:
                yield LintNote(
                    ("spec", "objectives", name),
                    f"a step of an engine on {pool.accelerator} takes {format_duration(step)} by its profile: "
                    "no number of them keeps this",
                    "relax it, or take another accelerator",
                )


def _has_schedule(spec: ModelDeploymentSpec, pool: Pool) -> bool:
    """A schedule gives the pool other bounds at some hour."""
    return any(one.pool in (None, pool.name) for one in spec.autoscaling.schedules)
