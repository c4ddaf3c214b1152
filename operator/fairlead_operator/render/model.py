"""A ModelDeployment → everything that it becomes in the cluster, and what keeps it from becoming more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead.api import AcceleratorClass, AcceleratorClassSpec, ModelDeployment, Pool, Reason
from fairlead.engines.pods import Member, Node, container_makers
from fairlead.errors import BadInput
from fairlead.kube.resource import Manifest
from fairlead_operator.render.accelerators import resolve
from fairlead_operator.render.budget import budget
from fairlead_operator.render.children import Plan
from fairlead_operator.render.deployment import deployment
from fairlead_operator.render.facts import Facts
from fairlead_operator.render.leaderworkerset import leader_worker_set
from fairlead_operator.render.names import LONGEST, LONGEST_GROUP, child_name
from fairlead_operator.render.networkpolicy import network_policy
from fairlead_operator.render.problems import Problem
from fairlead_operator.render.revision import CURRENT_VERSION, Pin, pool_revision
from fairlead_operator.render.service import service
from fairlead_operator.render.serviceaccount import service_account
from fairlead_operator.render.template import template, versions

MANIFEST_BYTES: Final = 1_000_000
"""An object that etcd takes has at most 1.5 MiB, and the API server adds to it who owns which field."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """``manifests`` in the order in which they are to be applied. A pool with a problem has none: what runs of it must stay."""

    manifests: tuple[Manifest, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def blocked_pools(self) -> frozenset[str]:
        """Pools whose children must be left as they are."""
        return frozenset(problem.pool for problem in self.problems if problem.pool is not None)


def render(model: ModelDeployment, accelerators: Mapping[str, AcceleratorClass], facts: Facts) -> Rendered:
    """What should run. ``accelerators`` are the cluster's own, by name. A model whose engines are external becomes nothing."""
    if model.spec.external:
        return Rendered(())
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    for pool in model.spec.pools:
        found = _pool(model, pool, accelerators, facts)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            manifests += found
    return Rendered(tuple(manifests), tuple(problems))


def _pool(
    model: ModelDeployment, pool: Pool, accelerators: Mapping[str, AcceleratorClass], facts: Facts
) -> list[Manifest] | Problem:
    accelerator = resolve(pool, model.spec.engine.kind, accelerators)
    if isinstance(accelerator, Problem):
        return accelerator
    spans = pool.parallelism.nodes > 1
    if spans and not facts.leader_worker_sets:
        field = f"spec.pools[{pool.name}].parallelism.nodes"
        message = "an instance over several nodes is run by a LeaderWorkerSet, which this cluster does not know"
        return Problem(Reason.LEADER_WORKER_SET_MISSING, field, message, "install LeaderWorkerSet", pool.name)
    plan = _plan(model, pool, accelerator, facts)
    if (model.spec.engine.image or plan.pin.image) is None:
        kind = model.spec.engine.kind.value
        message = f"the installation has no image for engines of kind {kind}"
        return Problem(Reason.INVALID_SPEC, "spec.engine.image", message, "give one", pool.name)
    try:
        manifests = _manifests(plan, accelerator)
    except BadInput as error:
        template_error = (error.field or "").startswith("template")
        reason = Reason.INVALID_TEMPLATE if template_error else Reason.INVALID_SPEC
        field = f"spec.pools[{pool.name}].{error.field}" if template_error else error.field or "spec"
        return Problem(reason, field, error.message, error.hint or "", pool.name)
    size = max(len(msgspec.json.encode(one)) for one in manifests)
    if size > MANIFEST_BYTES:
        message = f"an object of this pool would have {size:,} bytes, of which at most {MANIFEST_BYTES:,} can be stored"
        fix = "shorten engine.args, engine.env or template; put long texts into a ConfigMap"
        return Problem(Reason.TOO_LARGE, f"spec.pools[{pool.name}]", message, fix, pool.name)
    return manifests


def _plan(model: ModelDeployment, pool: Pool, accelerator: AcceleratorClassSpec, facts: Facts) -> Plan:
    child = facts.children.get(pool.name)
    revision = pool_revision(model, pool, accelerator)
    pin = child.pin if child is not None else None
    if pin is None or pin.revision != revision or pin.version not in versions():
        own = model.spec.engine.image is not None
        image = None if own else facts.installation.images.get(model.spec.engine.kind)
        pin = Pin(revision, CURRENT_VERSION, image, facts.installation.pull_secrets, facts.ipv6)
    longest = LONGEST_GROUP if pool.parallelism.nodes > 1 else LONGEST
    name = child.name if child is not None else None
    return Plan(
        model=model,
        pool=pool,
        name=name or child_name(model.metadata.name, pool.name, facts.foreign_names, longest=longest),
        pin=pin,
        held=model.spec.rollout.paused and child is not None and child.begun,
        facts=facts,
    )


def _manifests(plan: Plan, accelerator: AcceleratorClassSpec) -> list[Manifest]:
    profile = accelerator.profile.value(plan.pool.accelerator or "")
    host = "::" if plan.pin.ipv6 else "0.0.0.0"
    spans = plan.pool.parallelism.nodes > 1
    member = Member(plan.model, plan.pool, accelerator, profile, Node.LEADER if spans else Node.ALONE, host)
    first = template(member, plan.pin, plan.name)
    if spans:
        other = Member(plan.model, plan.pool, accelerator, profile, Node.WORKER, host)
        workload = leader_worker_set(plan, first, template(other, plan.pin, plan.name))
    else:
        workload = deployment(plan, first)
    found = [service_account(plan)]
    if plan.facts.peers is not None:
        made = container_makers()[plan.model.spec.engine.kind](member)
        found.append(network_policy(plan, made, plan.facts.peers))
    return [*found, service(plan), budget(plan), workload]
