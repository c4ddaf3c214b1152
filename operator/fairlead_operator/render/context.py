"""What render needs to know of the cluster and the installation, besides the model and the AcceleratorClasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairlead.api import EngineKind
from fairlead.kube.resources import Manifest, annotations_of, name_of
from fairlead_operator.render.revision import RenderPin, parse_pin


@dataclass(frozen=True, slots=True)
class InstallationDefaults:
    """What the chart's values decide about engines' pods, and an upgrade may change: kept per object until its spec changes."""

    images: Mapping[EngineKind, str]
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AllowedPeer:
    """Pods that may speak with engines, such as the gateways: those with ``labels`` in ``namespace``."""

    namespace: str
    labels: Mapping[str, str]

    def network_policy_peer(self) -> dict[str, Any]:
        """As in a NetworkPolicy."""
        return {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
            "podSelector": {"matchLabels": dict(self.labels)},
        }


@dataclass(frozen=True, slots=True)
class ExistingWorkload:
    """The Deployment or LeaderWorkerSet that runs a pool already.

    ``begun``: its controller has looked at it. A Deployment that is paused before that never makes its first pods.
    """

    name: str
    pin: RenderPin | None = None
    is_observed: bool = True


@dataclass(frozen=True, slots=True)
class RenderContext:
    """``children`` by pool; ``foreign_names`` are objects in the namespace that belong to another model or to nobody of ours.

    ``peers`` None: no NetworkPolicy is written, as in clusters whose policies are somebody else's. ``leader_worker_sets``: the
    cluster knows them. ``ipv6``: its pods have IPv6 addresses only, or first.
    """

    installation: InstallationDefaults
    workloads: Mapping[str, ExistingWorkload] = field(default_factory=dict)
    foreign_names: frozenset[str] = frozenset()
    peers: tuple[AllowedPeer, ...] | None = None
    leader_worker_sets: bool = False
    ipv6: bool = False


def existing_workload(workload: Manifest) -> ExistingWorkload:
    """What the observed Deployment or LeaderWorkerSet says of itself."""
    status = workload.get("status") or {}
    begun = bool(status.get("observedGeneration") or status.get("replicas"))
    return ExistingWorkload(name_of(workload), parse_pin(annotations_of(workload)), begun)


@dataclass(frozen=True, slots=True)
class ClusterCapabilities:
    """What does not change while a process of the operator lives.

    ``served``: (apiVersion, kind) of the optional kinds that the API server knows. ``ipv6``: pods have IPv6 addresses, only or first.
    """

    served_kinds: frozenset[tuple[str, str]] = frozenset()
    ipv6: bool = False
