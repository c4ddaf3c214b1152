"""A ModelDeployment → everything that it becomes in the cluster, and what keeps it from becoming more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead.api import AcceleratorClass, AcceleratorClassSpec, ModelDeployment, Pool, Reason
from fairlead.engines.containers import InstancePod, NodeRole, container_builders
from fairlead.errors import BadInput
from fairlead.kube.resources import Manifest
from fairlead_operator.render.accelerators import resolve_accelerator
from fairlead_operator.render.children.deployment import deployment
from fairlead_operator.render.children.leader_worker_set import leader_worker_set
from fairlead_operator.render.children.network_policy import network_policy
from fairlead_operator.render.children.pod_disruption_budget import pod_disruption_budget
from fairlead_operator.render.children.service import service
from fairlead_operator.render.children.service_account import service_account
from fairlead_operator.render.context import RenderContext
from fairlead_operator.render.errors import RenderProblem
from fairlead_operator.render.names import MAX_GROUP_NAME_LENGTH, MAX_NAME_LENGTH, child_name
from fairlead_operator.render.pool_context import PoolContext
from fairlead_operator.render.revision import CURRENT_VERSION, RenderPin, pool_revision
from fairlead_operator.render.template_versions import render_template, supported_versions

MAX_MANIFEST_BYTES: Final = 1_000_000
"""An object that etcd takes has at most 1.5 MiB, and the API server adds to it who owns which field."""


@dataclass(frozen=True, slots=True)
class RenderedModel:
    """``manifests`` in the order in which they are to be applied. A pool with a problem has none: what runs of it must stay."""

    manifests: tuple[Manifest, ...]
    problems: tuple[RenderProblem, ...] = ()

    @property
    def blocked_pools(self) -> frozenset[str]:
        """Pools whose children must be left as they are."""
        return frozenset(problem.pool for problem in self.problems if problem.pool is not None)


def render_model(
    model: ModelDeployment, accelerators: Mapping[str, AcceleratorClass], context: RenderContext
) -> RenderedModel:
    """What should run. ``accelerators`` are the cluster's own, by name. A model whose engines are external becomes nothing."""
    if model.spec.is_external:
        return RenderedModel(())
    manifests: list[Manifest] = []
    problems: list[RenderProblem] = []
    for pool in model.spec.pools:
        found = _render_pool(model, pool, accelerators, context)
        if isinstance(found, RenderProblem):
            problems.append(found)
        else:
            manifests += found
    return RenderedModel(tuple(manifests), tuple(problems))


def _render_pool(
    model: ModelDeployment, pool: Pool, accelerators: Mapping[str, AcceleratorClass], context: RenderContext
) -> list[Manifest] | RenderProblem:
    accelerator = resolve_accelerator(pool, model.spec.engine.kind, accelerators)
    if isinstance(accelerator, RenderProblem):
        return accelerator
    spans = pool.parallelism.nodes > 1
    if spans and not context.leader_worker_sets:
        field = f"spec.pools[{pool.name}].parallelism.nodes"
        message = "an instance over several nodes is run by a LeaderWorkerSet, which this cluster does not know"
        return RenderProblem(Reason.LEADER_WORKER_SET_MISSING, field, message, "install LeaderWorkerSet", pool.name)
    plan = _pool_context(model, pool, accelerator, context)
    if (model.spec.engine.image or plan.pin.image) is None:
        kind = model.spec.engine.kind.value
        message = f"the installation has no image for engines of kind {kind}"
        return RenderProblem(Reason.INVALID_SPEC, "spec.engine.image", message, "give one", pool.name)
    try:
        manifests = _pool_manifests(plan, accelerator)
    except BadInput as error:
        template_error = (error.field or "").startswith("template")
        reason = Reason.INVALID_TEMPLATE if template_error else Reason.INVALID_SPEC
        field = f"spec.pools[{pool.name}].{error.field}" if template_error else error.field or "spec"
        return RenderProblem(reason, field, error.message, error.hint or "", pool.name)
    size = max(len(msgspec.json.encode(one)) for one in manifests)
    if size > MAX_MANIFEST_BYTES:
        message = (
            f"an object of this pool would have {size:,} bytes, of which at most {MAX_MANIFEST_BYTES:,} can be stored"
        )
        fix = "shorten engine.args, engine.env or template; put long texts into a ConfigMap"
        return RenderProblem(Reason.TOO_LARGE, f"spec.pools[{pool.name}]", message, fix, pool.name)
    return manifests


def _pool_context(
    model: ModelDeployment, pool: Pool, accelerator: AcceleratorClassSpec, context: RenderContext
) -> PoolContext:
    child = context.workloads.get(pool.name)
    revision = pool_revision(model, pool, accelerator)
    pin = child.pin if child is not None else None
    if pin is None or pin.revision != revision or pin.version not in supported_versions():
        own = model.spec.engine.image is not None
        image = None if own else context.installation.images.get(model.spec.engine.kind)
        pin = RenderPin(revision, CURRENT_VERSION, image, context.installation.pull_secrets, context.ipv6)
    longest = MAX_GROUP_NAME_LENGTH if pool.parallelism.nodes > 1 else MAX_NAME_LENGTH
    name = child.name if child is not None else None
    return PoolContext(
        model=model,
        pool=pool,
        name=name or child_name(model.metadata.name, pool.name, context.foreign_names, max_length=longest),
        pin=pin,
        is_paused=model.spec.rollout.paused and child is not None and child.is_observed,
        context=context,
    )


def _pool_manifests(pool: PoolContext, accelerator: AcceleratorClassSpec) -> list[Manifest]:
    profile = accelerator.profile.to_engine_profile(pool.pool.accelerator or "")
    host = "::" if pool.pin.ipv6 else "0.0.0.0"
    spans = pool.pool.parallelism.nodes > 1
    member = InstancePod(
        pool.model, pool.pool, accelerator, profile, NodeRole.LEADER if spans else NodeRole.ALONE, host
    )
    first = render_template(member, pool.pin, pool.name)
    if spans:
        other = InstancePod(pool.model, pool.pool, accelerator, profile, NodeRole.WORKER, host)
        workload = leader_worker_set(pool, first, render_template(other, pool.pin, pool.name))
    else:
        workload = deployment(pool, first)
    found = [service_account(pool)]
    if pool.context.peers is not None:
        made = container_builders()[pool.model.spec.engine.kind](member)
        found.append(network_policy(pool, made, pool.context.peers))
    return [*found, service(pool), pod_disruption_budget(pool), workload]
