"""Requirements of a pool's pods before they get a node: devices, node labels and claims. Pure.

The operator keeps no specs of pods, so it reads the templates of their workloads.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fairlead.fleet.labels import POOL_LABEL
from fairlead.kube.resources import Manifest, labels_of

_COUNT: Final = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class PodRequirements:
    """The requirements of one pod. Empty if they are unknown.

    resources: resource and amount: devices if there are any, else processors and memory.
    node_labels: labels that a node must have, as `name=value`.
    accelerator: name of the pool's AcceleratorClass.
    claims: names of the PersistentVolumeClaims that the pod mounts.
    ephemeral_volumes: volumes whose claims are made for the pod and are named after both.
    """

    resources: tuple[tuple[str, str], ...] = ()
    node_labels: tuple[str, ...] = ()
    accelerator: str = ""
    claims: tuple[str, ...] = ()
    ephemeral_volumes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Returns `1 nvidia.com/gpu with gpu=L40S (class l40s)`; empty if nothing is known."""
        parts = [", ".join(f"{amount} {name}" for name, amount in self.resources)]
        parts += [f"with {', '.join(self.node_labels)}" if self.node_labels else ""]
        parts += [f"(class {self.accelerator})" if self.accelerator else ""]
        return " ".join(filter(None, parts))

    def claims_of(self, pod: str) -> tuple[str, ...]:
        return (*self.claims, *(f"{pod}-{volume}" for volume in self.ephemeral_volumes))


def requirements_of(pod_spec: Mapping[str, Any], accelerator: str = "") -> PodRequirements:
    """Returns the requirements in a pod's spec.

    accelerator: name of the AcceleratorClass of the pod's pool.
    """
    volumes = pod_spec.get("volumes") or []
    claims = [(volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes]
    return PodRequirements(
        resources=tuple(_resources(pod_spec)),
        node_labels=tuple(f"{name}={value}" for name, value in sorted((pod_spec.get("nodeSelector") or {}).items())),
        accelerator=accelerator,
        claims=tuple(str(claim) for claim in dict.fromkeys(claims) if claim),
        ephemeral_volumes=tuple(str(volume.get("name")) for volume in volumes if volume.get("ephemeral")),
    )


def requirements_by_pool(workloads: Iterable[Manifest], accelerators: Mapping[str, str]) -> dict[str, PodRequirements]:
    """Returns the requirements of each pool's pods, from Deployments and LeaderWorkerSets.

    accelerators: pool → name of its AcceleratorClass.
    """
    found = {}
    for workload in workloads:
        pool, spec = labels_of(workload).get(POOL_LABEL, ""), workload.get("spec") or {}
        template = spec.get("template") or (spec.get("leaderWorkerTemplate") or {}).get("workerTemplate") or {}
        found[pool] = requirements_of(template.get("spec") or {}, accelerators.get(pool, ""))
    return found


def _resources(pod_spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    containers = pod_spec.get("containers") or []
    totals: dict[str, int] = {}
    plain: dict[str, str] = {}
    for container in containers:
        resources = container.get("resources") or {}
        for name, amount in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            if "/" in name and _COUNT.fullmatch(str(amount)):
                totals[name] = totals.get(name, 0) + int(amount)
            elif name in ("cpu", "memory") and len(containers) == 1:
                plain[name] = str(amount)
    return [(name, str(amount)) for name, amount in sorted(totals.items())] or sorted(plain.items())
