"""Everything that checks are judged by, as values. What could not be had is a ``Missing`` in its place, never something empty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead import __version__
from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.access.access_reviews import Permission
from fairlead_cli.cluster.components import COMPONENT_LABEL, RELEASE_LABEL, with_component
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import label_of, namespace_name
from fairlead_cli.cluster.pod_http import PodReport

Listing = Sequence[Manifest] | MissingValue


@dataclass(frozen=True, slots=True)
class SecretSummary:
    """Of a Secret only the names of its entries; and when its certificate (``tls.crt``) ends, as Unix time."""

    entries: frozenset[str]
    certificate_expires: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
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
    place_exists: bool | MissingValue = True
    rights: Mapping[Permission, bool | MissingValue] = field(default_factory=dict)
    trial: str | MissingValue | None = None
    quotas: Listing = ()
    nodes: Listing = ()
    classes: Listing = ()
    storage_classes: Listing = ()
    leader_worker_sets: bool | MissingValue = True
    definitions: Listing = ()
    deployments: Listing = ()
    pods: Listing = ()
    leases: Mapping[str, Manifest | MissingValue] = field(default_factory=dict)
    account_rights: Mapping[tuple[str, str], Mapping[Permission, bool | MissingValue]] = field(default_factory=dict)
    secrets: Mapping[tuple[str, str], SecretSummary | MissingValue] = field(default_factory=dict)
    told: Mapping[str, Sequence[PodReport]] = field(default_factory=dict)
    models: Listing = ()
    budgets: Listing = ()
    policies: Listing = ()
    our_version: str = __version__

    def component_deployments(self, name: str) -> Listing:
        """The Deployments of a component."""
        return (
            self.deployments if isinstance(self.deployments, MissingValue) else with_component(self.deployments, name)
        )

    def pods_of(self, deployment: Manifest) -> Listing:
        """The pods of a component that belong to the installation of this Deployment."""
        if isinstance(self.pods, MissingValue):
            return self.pods
        return [
            one
            for one in with_component(self.pods, label_of(deployment, COMPONENT_LABEL))
            if namespace_name(one) == namespace_name(deployment)
            and label_of(one, RELEASE_LABEL) == label_of(deployment, RELEASE_LABEL)
        ]
