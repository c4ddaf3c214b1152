"""Resolves AcceleratorClasses, and renders their resources and node placement."""

from collections.abc import Mapping
from typing import Any

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.conditions import Reason
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.pools import Pool
from fairlead.api.spec.profile import Profile
from fairlead.api.v1alpha1 import AcceleratorClass
from fairlead.engine_profile import builtin_profiles
from fairlead.engines.containers import InstancePod
from fairlead.names import closest_matches
from fairlead_operator.render.errors import RenderProblem


def resolve_accelerator(
    pool: Pool, kind: EngineType, classes: Mapping[str, AcceleratorClass]
) -> AcceleratorClassSpec | RenderProblem:
    """Returns the accelerator class that a pool names: the cluster's, else the built-in one.

    A simulated engine may also name a built-in profile.
    """
    name = pool.accelerator_class_name
    assert name is not None  # enforced by the API for all but external engines, which are not rendered
    known = {**builtin_accelerators(), **classes}
    if name in known:
        return known[name].spec
    if kind is EngineType.SIM and name in builtin_profiles():
        return AcceleratorClassSpec(profile=Profile(preset=name))
    matches = closest_matches(name, known)
    fix = f"did you mean {' or '.join(matches)}?" if matches else "apply an AcceleratorClass of that name"
    field = f"spec.pools[{pool.name}].acceleratorClassName"
    message = f"there is no AcceleratorClass {name!r} in the cluster, and none is built in"
    return RenderProblem(Reason.UNKNOWN_ACCELERATOR, field, message, fix, pool.name)


def device_requests(pod: InstancePod) -> dict[str, str]:
    """Returns the extended resources of one pod: accelerators, and the fast network for KV or
    layers.
    """
    requests: dict[str, str] = {}
    accelerator = pod.accelerator
    if accelerator.resource is not None:
        requests[accelerator.resource] = str(accelerator.devices(pod.pool.parallelism))
    if accelerator.rdma_resource is not None and (pod.transfers_kv or pod.is_multi_node):
        requests[accelerator.rdma_resource] = "1"
    return requests


def placement(accelerator: AcceleratorClassSpec) -> dict[str, Any]:
    """Returns the part of a pod spec that selects nodes."""
    fields: dict[str, Any] = {}
    if accelerator.node_selector:
        fields["nodeSelector"] = dict(accelerator.node_selector)
    if accelerator.tolerations:
        fields["tolerations"] = [
            toleration.model_dump(mode="json", by_alias=True, exclude_none=True)
            for toleration in accelerator.tolerations
        ]
    return fields
