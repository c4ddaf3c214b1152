"""Lint rules: notes on manifests that are valid but may not do what was meant."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.api.spec.autoscaling import ScalingMode
from fairlead.api.spec.pools import Pool, PoolRole
from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeploymentSpec, ModelTenant
from fairlead.engine_profile import EngineProfile
from fairlead.manifests.engine_arguments import lint_engine_arguments
from fairlead.manifests.known_flags import CHECKED_ENGINES
from fairlead.units import format_duration

NVIDIA_PREFIX: Final = "nvidia.com/"
"""The beginning of the resources whose devices the chart's images are built for."""


@dataclass(frozen=True, slots=True)
class LintNote:
    """A note of `fairlead lint`. `path` is the path of the field in the document."""

    path: tuple[str | int, ...]
    message: str
    fix: str


def lint_spec(
    spec: ModelDeploymentSpec,
    profile: Callable[[Pool], EngineProfile | None],
    classes: Mapping[str, AcceleratorClass],
) -> Iterator[LintNote]:
    """Yields notes on one spec. They are about:

    - arguments of engines that Fairlead sets itself, that break routing, or that are unknown;
    - images that are not built for the accelerator;
    - replica bounds that the autoscaler ignores, and pools that it does not scale;
    - an SLO that no number of instances can meet, or a missing SLO;
    - sleep and scale-to-zero settings that have no effect.

    profile: returns the engine profile of a pool.
    classes: AcceleratorClasses by name.
    """
    for note in lint_engine_arguments(spec):
        yield LintNote(("spec", *note.path), note.message, note.fix)
    yield from _lint_images(spec, classes)
    if spec.autoscaling.mode is not ScalingMode.AUTO:
        yield from _lint_disabled_mode(spec)
        return
    if spec.replicas is not None:
        yield LintNote(
            ("spec", "replicas"),
            f"it fixes the number at {spec.desired_instances(spec.pools[0])}, so `autoscaling.mode: Auto` changes nothing",
            "remove it, or write `mode: Advise` if only advice is wanted",
        )
        return
    for index, pool in enumerate(spec.pools):
        if not pool.is_scalable and not _has_schedule(spec, pool):
            why = "it has no maxReplicas" if pool.max_replicas is None else "its maxReplicas is its minReplicas"
            yield LintNote(
                ("spec", "pools", index, "maxReplicas"),
                f"{why}, so `autoscaling.mode: Auto` leaves this pool at {pool.min_replicas}",
                f"give it a maxReplicas above its minReplicas, for example `maxReplicas: {2 * pool.min_replicas + 2}`, "
                "or leave it if that is meant",
            )
    total_min = sum(pool.min_replicas for pool in spec.pools)
    if spec.autoscaling.max_replicas is not None and total_min > spec.autoscaling.max_replicas:
        yield LintNote(
            ("spec", "autoscaling", "maxReplicas"),
            f"the pools' minReplicas add up to {total_min}, and the autoscaler never goes below that",
            "raise it, or lower the pools' minReplicas",
        )
    yield from _lint_schedules(spec)
    yield from _lint_unused_tiers(spec)
    yield from _lint_slo(spec, profile)


def access_modes(objects: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Returns the access modes of the volume claims among objects, by namespace and name."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in objects:
        metadata, spec = one.get("metadata"), one.get("spec")
        if one.get("kind") != "PersistentVolumeClaim" or not isinstance(metadata, dict) or not isinstance(spec, dict):
            continue
        modes = spec.get("accessModes")
        if isinstance(modes, list):
            claims = found.setdefault(str(metadata.get("namespace") or "default"), {})
            claims[str(metadata.get("name"))] = list(map(str, modes))
    return found


def lint_claims(spec: ModelDeploymentSpec, claims: Mapping[str, Sequence[str]]) -> Iterator[LintNote]:
    """Yields a note on each claim that the pods of a model share, and that only one node may mount.

    claims: access modes of those in the model's namespace, by name.
    """
    pods = sum(max(pool.min_replicas, pool.max_replicas or 0) * pool.parallelism.nodes for pool in spec.pools)
    if pods < 2:
        return
    for path, claim in _claims_of(spec):
        modes = claims.get(claim)
        if modes is not None and all(mode.startswith("ReadWriteOnce") for mode in modes):
            yield LintNote(
                path,
                f"up to {pods} pods mount the claim {claim}, whose access mode {', '.join(modes)} is for one node",
                "give the claim ReadWriteMany or ReadOnlyMany, or take a source that each pod loads itself",
            )


def _claims_of(spec: ModelDeploymentSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields the path and the name of each claim that a model's pods mount."""
    if spec.model.uri.startswith("pvc:"):
        yield ("spec", "model", "uri"), spec.model.location.partition("/")[0]
    if spec.model.cache is not None and spec.model.cache.claim_name is not None:
        yield ("spec", "model", "cache", "claimName"), spec.model.cache.claim_name
    for index, name in enumerate(() if spec.adapters is None else spec.adapters.claim_names):
        yield ("spec", "adapters", "claimNames", index), name
    for index, pool in enumerate(spec.pools):
        volumes = None if pool.template is None else pool.template.spec.get("volumes")
        for position, volume in enumerate(volumes if isinstance(volumes, list) else ()):
            source = volume.get("persistentVolumeClaim") if isinstance(volume, dict) else None
            if isinstance(source, dict) and isinstance(source.get("claimName"), str):
                path = ("spec", "pools", index, "template", "spec", "volumes", position)
                yield path, source["claimName"]


def lint_tenant(tenant: ModelTenant) -> Iterator[LintNote]:
    """Yields notes on a tenant that nothing identifies, and on limits that apply to no request."""
    spec = tenant.spec
    if not spec.keys and not spec.subjects:
        yield LintNote(("spec",), "it has neither keys nor subjects, so no request is this tenant's", "add one of them")
    converted = tenant.to_tenant()
    for index, limit in enumerate(spec.limits):
        if limit.model is not None and not converted.may_use(limit.model):
            yield LintNote(
                ("spec", "limits", index, "model"),
                "the tenant may use no model of this name; only an adapter of one that it may use could have it",
                "add the model to `models`, or remove the limit",
            )
        if limit.key is not None and all(key.name != limit.key for key in spec.keys):
            yield LintNote(
                ("spec", "limits", index, "key"),
                "the tenant has no key of this name, so the limit changes nothing",
                "write the name of one of its keys, or remove the limit",
            )


def _lint_images(spec: ModelDeploymentSpec, classes: Mapping[str, AcceleratorClass]) -> Iterator[LintNote]:
    """Yields notes on pools that would run the chart's image on devices of other vendors."""
    if spec.engine.type not in CHECKED_ENGINES or spec.engine.image is not None:
        return
    for index, pool in enumerate(spec.pools):
        found = classes.get(pool.accelerator_class_name or "")
        resource = None if found is None else found.spec.resource
        containers = () if pool.template is None else pool.template.spec.get("containers") or ()
        has_image = any(
            isinstance(one, dict) and one.get("name") == "engine" and one.get("image") for one in containers
        )
        if found is None or has_image or (resource or "").startswith(NVIDIA_PREFIX):
            continue
        what = f"is for {resource}" if resource else "requests no device"
        yield LintNote(
            ("spec", "pools", index, "acceleratorClassName"),
            f"the chart's image of {spec.engine.type.value} is built for NVIDIA's GPUs, and {pool.accelerator_class_name} {what}",
            "write an image for it into `engine.image`, or leave it if your chart's `engines.images` is one",
        )


def _lint_disabled_mode(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    scaling = spec.autoscaling
    if spec.can_sleep:
        yield LintNote(
            ("spec", "autoscaling", "sleep"),
            "no instance is put to sleep while `autoscaling.mode` is not Auto; engines only start with sleep mode",
            "write `mode: Auto`, or leave it if that comes later",
        )
    elif scaling.mode is ScalingMode.DISABLED and "mode" not in scaling.model_fields_set and scaling.model_fields_set:
        yield LintNote(
            ("spec", "autoscaling"),
            "these settings have no effect: `mode` is Disabled if it is left out",
            "write `mode: Auto`, or `mode: Advise` if only advice is wanted",
        )
    elif scaling.mode is ScalingMode.DISABLED and "mode" not in scaling.model_fields_set and spec.replicas is None:
        yield from _lint_unused_bounds(spec)


def _lint_unused_bounds(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """Yields notes on pools with room to scale in a model without autoscaling."""
    for index, pool in enumerate(spec.pools):
        if pool.is_scalable:
            yield LintNote(
                ("spec", "pools", index, "maxReplicas"),
                f"the pool stays at {pool.min_replicas}: `autoscaling.mode` is Disabled if it is left out",
                "write `autoscaling: {mode: Auto}`, or `mode: Disabled` if something else scales it",
            )


def _lint_schedules(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """Yields notes on schedules that raise the `maxReplicas` of a pool without naming it."""
    for index, schedule in enumerate(spec.autoscaling.schedules):
        if schedule.min_replicas is None or schedule.max_replicas is not None:
            continue
        for pool in spec.pools:
            is_raised = pool.max_replicas is not None and schedule.min_replicas > pool.max_replicas
            if schedule.pool in (None, pool.name) and is_raised:
                yield LintNote(
                    ("spec", "autoscaling", "schedules", index, "minReplicas"),
                    f"the pool {pool.name} has a maxReplicas of {pool.max_replicas}, which this raises in these hours",
                    f"lower it, or write `maxReplicas: {schedule.min_replicas}` into the schedule if that is meant",
                )


def _lint_unused_tiers(spec: ModelDeploymentSpec) -> Iterator[LintNote]:
    """Yields notes on sleep and scale-to-zero settings without effect."""
    scaling = spec.autoscaling
    lowest = min(_min_instances(spec, pool) for pool in spec.pools)
    if "zero" in scaling.model_fields_set and lowest > 0:
        yield LintNote(
            ("spec", "autoscaling", "zero"),
            f"no pool may have fewer than {lowest}, so none goes to zero",
            "write `minReplicas: 0` in a pool, or remove it",
        )
    lowest_max = min(pool.max_replicas or pool.min_replicas for pool in spec.pools)
    if scaling.sleep is not None and scaling.sleep.min >= lowest_max:
        yield LintNote(
            ("spec", "autoscaling", "sleep", "min"),
            f"a pool has at most {lowest_max} instances, active ones included, so fewer sleep while one is active",
            "lower it, or raise the pools' maxReplicas",
        )


def _min_instances(spec: ModelDeploymentSpec, pool: Pool) -> int:
    """Returns the smallest of `minReplicas` and the bounds in the pool's schedules."""
    schedules = [schedule for schedule in spec.autoscaling.schedules if schedule.pool in (None, pool.name)]
    bounds = [
        bound for schedule in schedules for bound in (schedule.min_replicas, schedule.max_replicas) if bound is not None
    ]
    return min([pool.min_replicas, *bounds])


def _lint_slo(spec: ModelDeploymentSpec, profile: Callable[[Pool], EngineProfile | None]) -> Iterator[LintNote]:
    targets = spec.slo.to_targets()
    if targets.ttft_seconds is None and targets.itl_seconds is None:
        yield LintNote(
            ("spec", "autoscaling", "mode"),
            "there is no latency target, so pools are sized by what an engine's memory and batch hold, however slow that is",
            "add latency targets, for example `slo: {ttft: 2s, tpot: 100ms}`",
        )
    for pool in spec.pools:
        engine_profile = profile(pool)
        if engine_profile is None:
            continue
        step = engine_profile.step_time(computed=1, sequences=1, resident=0)
        limits = {
            "ttft": None if pool.role is PoolRole.DECODE else targets.ttft_seconds,
            "tpot": None if pool.role is PoolRole.PREFILL else targets.itl_seconds,
        }
        for name, limit in limits.items():
            if limit is not None and limit < step:
                yield LintNote(
                    ("spec", "slo", name),
                    f"a step of an engine on {pool.accelerator_class_name} takes {format_duration(step)} by its profile: "
                    "no number of instances meets this target",
                    "relax it, or take another accelerator",
                )


def _has_schedule(spec: ModelDeploymentSpec, pool: Pool) -> bool:
    """Returns True if a schedule applies to the pool."""
    return any(schedule.pool in (None, pool.name) for schedule in spec.autoscaling.schedules)
