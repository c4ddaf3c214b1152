"""Renders a ModelDeployment into all of its objects, or into problems."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead.api.conditions import Reason
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
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
"""etcd accepts at most 1.5 MiB, and the API server adds the field owners."""


@dataclass(frozen=True, slots=True)
class RenderedModel:
    """The manifests in the order of application.

    A pool with a problem has no manifests; its existing objects must stay.
    """

    manifests: tuple[Manifest, ...]
    problems: tuple[RenderProblem, ...] = ()


def render_model(
    model: ModelDeployment, accelerators: Mapping[str, AcceleratorClass], context: RenderContext
) -> RenderedModel:
    """Returns the desired objects. A model with external engines has none.

    accelerators: the cluster's own classes, by name.
    """
    if model.spec.is_external:
        return RenderedModel(())
    manifests: list[Manifest] = []
    problems: list[RenderProblem] = []
    for pool in model.spec.pools:
        rendered = _render_pool(model, pool, accelerators, context)
        if isinstance(rendered, RenderProblem):
            problems.append(rendered)
        else:
            manifests += rendered
    return RenderedModel(tuple(manifests), tuple(problems))


def _render_pool(
    model: ModelDeployment, pool: Pool, accelerators: Mapping[str, AcceleratorClass], context: RenderContext
) -> list[Manifest] | RenderProblem:
    accelerator = resolve_accelerator(pool, model.spec.engine.type, accelerators)
    if isinstance(accelerator, RenderProblem):
        return accelerator
    is_multi_node = pool.parallelism.nodes > 1
    if is_multi_node and not context.leader_worker_sets:
        field = f"spec.pools[{pool.name}].parallelism.nodes"
        message = "instances on several nodes need LeaderWorkerSets, which this cluster does not have"
        return RenderProblem(Reason.LEADER_WORKER_SET_MISSING, field, message, "install LeaderWorkerSet", pool.name)
    plan = _pool_context(model, pool, accelerator, context)
    if (model.spec.engine.image or plan.pin.image) is None:
        kind = model.spec.engine.type
        message = f"the installation has no image for engines of type {kind}"
        return RenderProblem(Reason.INVALID_SPEC, "spec.engine.image", message, "give one", pool.name)
    try:
        manifests = _pool_manifests(plan, accelerator)
    except BadInput as error:
        template_error = (error.field or "").startswith("template")
        reason = Reason.INVALID_TEMPLATE if template_error else Reason.INVALID_SPEC
        field = f"spec.pools[{pool.name}].{error.field}" if template_error else error.field or "spec"
        return RenderProblem(reason, field, error.message, error.hint or "", pool.name)
    size = max(len(msgspec.json.encode(manifest)) for manifest in manifests)
    if size > MAX_MANIFEST_BYTES:
        message = (
            f"an object of this pool would have {size:,} bytes, of which at most {MAX_MANIFEST_BYTES:,} can be stored"
        )
        fix = "shorten engine.args, engine.env, template or the pool's args; put long texts into a ConfigMap"
        return RenderProblem(Reason.TOO_LARGE, f"spec.pools[{pool.name}]", message, fix, pool.name)
    return manifests


def _pool_context(
    model: ModelDeployment, pool: Pool, accelerator: AcceleratorClassSpec, context: RenderContext
) -> PoolContext:
    existing = context.workloads.get(pool.name)
    revision = pool_revision(model, pool, accelerator)
    pin = existing.pin if existing is not None else None
    if pin is None or pin.revision != revision or pin.version not in supported_versions():
        has_own_image = model.spec.engine.image is not None
        image = None if has_own_image else context.installation.images.get(model.spec.engine.type)
        installation, adapters = context.installation, model.spec.adapters
        has_downloader = adapters is not None and adapters.download is not None
        downloader = installation.downloader_image if has_downloader else None
        pin = RenderPin(
            revision,
            CURRENT_VERSION,
            image,
            installation.pull_secrets,
            context.ipv6,
            downloader,
            context.assigns_users,
        )
    longest = MAX_GROUP_NAME_LENGTH if pool.parallelism.nodes > 1 else MAX_NAME_LENGTH
    name = existing.name if existing is not None else None
    return PoolContext(
        model=model,
        pool=pool,
        name=name or child_name(model.metadata.name, pool.name, context.foreign_names, max_length=longest),
        pin=pin,
        is_paused=model.spec.rollout.paused and existing is not None and existing.is_observed,
        context=context,
    )


def _with_pool_arguments(model: ModelDeployment, pool: Pool) -> ModelDeployment:
    """Returns the model with the arguments that the engines of one pool get."""
    if not pool.args:
        return model
    engine = model.spec.engine.model_copy(update={"args": [*model.spec.engine.args, *pool.args]})
    return model.model_copy(update={"spec": model.spec.model_copy(update={"engine": engine})})


def _pool_manifests(pool: PoolContext, accelerator: AcceleratorClassSpec) -> list[Manifest]:
    profile = accelerator.profile.to_engine_profile(pool.pool.accelerator_class_name or "")
    host = "::" if pool.pin.ipv6 else "0.0.0.0"
    is_multi_node, model = pool.pool.parallelism.nodes > 1, _with_pool_arguments(pool.model, pool.pool)
    leader = InstancePod(
        model, pool.pool, accelerator, profile, NodeRole.LEADER if is_multi_node else NodeRole.ALONE, host
    )
    leader_template = render_template(leader, pool.pin, pool.name)
    if is_multi_node:
        worker = InstancePod(model, pool.pool, accelerator, profile, NodeRole.WORKER, host)
        workload = leader_worker_set(pool, leader_template, render_template(worker, pool.pin, pool.name))
    else:
        workload = deployment(pool, leader_template)
    manifests, peers = [service_account(pool)], pool.context.installation.peers
    if peers is not None:
        container = container_builders()[pool.model.spec.engine.type](leader)
        manifests.append(network_policy(pool, container, peers))
    return [*manifests, service(pool), pod_disruption_budget(pool), workload]
