"""Everything that checks are judged by, as values. What could not be had is a ``Missing`` in its place, never something empty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead import __version__
from fairlead.kube.resource import Manifest
from fairlead_cli.cluster.asking import Told
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.reading import label, space
from fairlead_cli.cluster.reviews import Right

NAME: Final = "app.kubernetes.io/name"
COMPONENT: Final = "app.kubernetes.io/component"
RELEASE: Final = "app.kubernetes.io/instance"
VERSION: Final = "app.kubernetes.io/version"
OURS: Final = f"{NAME}=fairlead"
OPERATOR, GATEWAY, INDEXER, REDIS = "operator", "gateway", "indexer", "redis"

Some = Sequence[Manifest] | Missing


@dataclass(frozen=True, slots=True)
class SecretFacts:
    """Of a Secret only the names of its entries; and when its certificate (``tls.crt``) ends, as Unix time."""

    entries: frozenset[str]
    ends: float | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a Deployment takes from one Secret: the entries, and whether its pods start without."""

    namespace: str
    name: str
    entries: frozenset[str]
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A cluster at one moment. ``now`` is the API server's clock, ``skew_seconds`` how far ours is ahead of it.

    ``rights`` are ours, ``account_rights`` those of a component's service account by (component, namespace). ``told``: what pods
    said, by component. ``place``: the namespace of the installation, and whether it is there. ``trial``: how the API server took a
    pod like ours as a dry run; empty when it did.
    """

    server: str = ""
    found: str = ""
    version: str = ""
    now: float = 0.0
    skew_seconds: float | None = None
    place: str = "fairlead"
    place_exists: bool | Missing = True
    rights: Mapping[Right, bool | Missing] = field(default_factory=dict)
    trial: str | Missing | None = None
    quotas: Some = ()
    nodes: Some = ()
    classes: Some = ()
    storage_classes: Some = ()
    leader_worker_sets: bool | Missing = True
    definitions: Some = ()
    deployments: Some = ()
    pods: Some = ()
    leases: Mapping[str, Manifest | Missing] = field(default_factory=dict)
    account_rights: Mapping[tuple[str, str], Mapping[Right, bool | Missing]] = field(default_factory=dict)
    secrets: Mapping[tuple[str, str], SecretFacts | Missing] = field(default_factory=dict)
    told: Mapping[str, Sequence[Told]] = field(default_factory=dict)
    models: Some = ()
    budgets: Some = ()
    policies: Some = ()
    our_version: str = __version__

    def component(self, name: str) -> Some:
        """The Deployments of a component."""
        return self.deployments if isinstance(self.deployments, Missing) else of_component(self.deployments, name)

    def pods_of(self, deployment: Manifest) -> Some:
        """The pods of a component that belong to the installation of this Deployment."""
        if isinstance(self.pods, Missing):
            return self.pods
        return [
            one
            for one in of_component(self.pods, label(deployment, COMPONENT))
            if space(one) == space(deployment) and label(one, RELEASE) == label(deployment, RELEASE)
        ]


def of_component(objects: Sequence[Manifest], name: str) -> list[Manifest]:
    """Those that carry the component's label."""
    return [one for one in objects if label(one, COMPONENT) == name]
