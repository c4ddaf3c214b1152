"""AcceleratorClasses: which one a pool means, and what its pods ask of a node because of it."""

from collections.abc import Mapping
from typing import Any

from fairlead.api import AcceleratorClass, AcceleratorClassSpec, EngineKind, Pool, Profile, Reason, builtin_accelerators
from fairlead.engine_profile import builtin_profiles
from fairlead.engines.containers import InstancePod
from fairlead.names import closest_matches
from fairlead_operator.render.errors import RenderProblem


def resolve_accelerator(
    pool: Pool, kind: EngineKind, classes: Mapping[str, AcceleratorClass]
) -> AcceleratorClassSpec | RenderProblem:
    """The cluster's class of that name, else the built-in one. A simulated engine may also name a profile alone."""
    name = pool.accelerator
    assert name is not None  # a rule of the API for all engines but external ones, which are not rendered
    known = {**builtin_accelerators(), **classes}
    if name in known:
        return known[name].spec
    if kind is EngineKind.SIM and name in builtin_profiles():
        return AcceleratorClassSpec(profile=Profile(preset=name))
    near = closest_matches(name, known)
    fix = f"did you mean {' or '.join(near)}?" if near else "apply an AcceleratorClass of that name"
    field = f"spec.pools[{pool.name}].accelerator"
    message = f"there is no AcceleratorClass {name!r} in the cluster, and none is built in"
    return RenderProblem(Reason.UNKNOWN_ACCELERATOR, field, message, fix, pool.name)


def device_requests(pod: InstancePod) -> dict[str, str]:
    """Extended resources of one pod, with their numbers: its accelerators, and the fast network where KV or layers cross it."""
    found: dict[str, str] = {}
    accelerator = pod.accelerator
    if accelerator.resource is not None:
        found[accelerator.resource] = str(accelerator.devices(pod.pool.parallelism))
    if accelerator.rdma_resource is not None and (pod.transfers_kv or pod.is_multi_node):
        found[accelerator.rdma_resource] = "1"
    return found


def placement(accelerator: AcceleratorClassSpec) -> dict[str, Any]:
    """The part of a pod spec that says on which nodes it may run."""
    found: dict[str, Any] = {}
    if accelerator.node_selector:
        found["nodeSelector"] = dict(accelerator.node_selector)
    if accelerator.tolerations:
        found["tolerations"] = [
            one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in accelerator.tolerations
        ]
    return found
