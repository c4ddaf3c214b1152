"""The input of rendering besides the model: the cluster and the installation."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairlead.api.spec.engine import EngineType
from fairlead.fleet.labels import POOL_LABEL
from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest, annotations_of, name_of
from fairlead_operator.object_metadata import label
from fairlead_operator.render.revision import RenderPin, parse_pin


@dataclass(frozen=True, slots=True)
class AllowedPeer:
    """Pods that may connect to engines, such as gateways: those with `labels` in `namespace`."""

    namespace: str
    labels: Mapping[str, str]

    def network_policy_peer(self) -> dict[str, Any]:
        """Returns the entry of a NetworkPolicy."""
        return {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
            "podSelector": {"matchLabels": dict(self.labels)},
        }


@dataclass(frozen=True, slots=True)
class InstallationDefaults:
    """Chart values that affect engines. Pods keep images and pull secrets until their spec changes.

    peers: None writes no NetworkPolicy, for clusters with their own policies.
    endpoint_namespaces: namespaces whose models may name endpoints; None for all.
    id: the label value by which children of this installation are known; empty for none.
    downloader_image: of the containers that download adapters; None refuses models with them.
    """

    images: Mapping[EngineType, str]
    pull_secrets: tuple[str, ...] = ()
    peers: tuple[AllowedPeer, ...] | None = None
    endpoint_namespaces: Container[str] | None = None
    id: str = ""
    downloader_image: str | None = None

    def may_name_endpoints(self, namespace: str) -> bool:
        """Returns True if models of the namespace may name endpoints of external engines."""
        return self.endpoint_namespaces is None or namespace in self.endpoint_namespaces


@dataclass(frozen=True, slots=True)
class ClusterCapabilities:
    """Properties of the cluster that are constant for the life of a process.

    served_kinds: (apiVersion, kind) of the optional kinds that the API server serves.
    ipv6: pods have IPv6 addresses, only or first.
    assigns_users: it chooses the user of each pod, as OpenShift does, and refuses other users.
    """

    served_kinds: frozenset[tuple[str, str]] = frozenset()
    ipv6: bool = False
    assigns_users: bool = False


@dataclass(frozen=True, slots=True)
class ExistingWorkload:
    """The Deployment or LeaderWorkerSet that already runs a pool.

    is_observed: its controller has processed it. A Deployment that is paused before that never
        creates its first pods.
    """

    name: str
    pin: RenderPin | None = None
    is_observed: bool = True


@dataclass(frozen=True, slots=True)
class RenderContext:
    """The state of the cluster and the installation for one rendering.

    workloads: existing workloads, by pool.
    foreign_names: names in the namespace that other models or owners use.
    """

    installation: InstallationDefaults
    workloads: Mapping[str, ExistingWorkload] = field(default_factory=dict)
    foreign_names: frozenset[str] = frozenset()
    leader_worker_sets: bool = False
    ipv6: bool = False
    assigns_users: bool = False


def existing_workload(workload: Manifest) -> ExistingWorkload:
    """Returns the name, the pin and the progress of a Deployment or LeaderWorkerSet."""
    status = workload.get("status") or {}
    begun = bool(status.get("observedGeneration") or status.get("replicas"))
    return ExistingWorkload(name_of(workload), parse_pin(annotations_of(workload)), begun)


def render_context(
    installation: InstallationDefaults,
    workloads: Iterable[Manifest],
    foreign_names: frozenset[str],
    capabilities: ClusterCapabilities,
) -> RenderContext:
    """Returns the context of one rendering."""
    return RenderContext(
        installation=installation,
        workloads={label(workload, POOL_LABEL): existing_workload(workload) for workload in workloads},
        foreign_names=foreign_names,
        leader_worker_sets=(LEADER_WORKER_SETS.api_version, LEADER_WORKER_SETS.kind) in capabilities.served_kinds,
        ipv6=capabilities.ipv6,
        assigns_users=capabilities.assigns_users,
    )
