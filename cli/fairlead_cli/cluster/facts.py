"""The facts about a cluster that checks judge, as values. A value that could not be read is a
MissingValue, never empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead import __version__
from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.access.permissions import Permission
from fairlead_cli.cluster.components import COMPONENT_LABEL, RELEASE_LABEL, with_component
from fairlead_cli.cluster.model_references import ModelReference
from fairlead_cli.cluster.object_fields import MissingValue, label_of, namespace_name
from fairlead_cli.cluster.pod_http import PodReport

Listing = Sequence[Manifest] | MissingValue


@dataclass(frozen=True, slots=True)
class SecretSummary:
    """Names of a Secret's entries, and the expiry of its certificate (``tls.crt``) as Unix time;
    None without a readable one.
    """

    entries: frozenset[str]
    certificate_expires: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """A cluster at one moment.

    now: Unix time of the API server; ``skew_seconds``: how far this machine's clock is ahead of it.

    permissions: those of the user; ``account_permissions``: those of service accounts, by
    (component, namespace).

    pod_reports: answers of the components' pods, by component.

    references: whether what the models name exists.

    dry_run_refusal: the API server's refusal of a pod like ours. Empty when it accepted the dry
    run, None when there was none.
    """

    server: str = ""
    access_source: str = ""
    version: str = ""
    now: float = 0.0
    skew_seconds: float | None = None
    install_namespace: str = "fairlead"
    namespace_exists: bool | MissingValue = True
    permissions: Mapping[Permission, bool | MissingValue] = field(default_factory=dict)
    dry_run_refusal: str | MissingValue | None = None
    quotas: Listing = ()
    nodes: Listing = ()
    accelerator_classes: Listing = ()
    storage_classes: Listing = ()
    leader_worker_sets: bool | MissingValue = True
    crds: Listing = ()
    deployments: Listing = ()
    pods: Listing = ()
    leases: Mapping[str, Manifest | MissingValue] = field(default_factory=dict)
    account_permissions: Mapping[tuple[str, str], Mapping[Permission, bool | MissingValue]] = field(
        default_factory=dict
    )
    secrets: Mapping[tuple[str, str], SecretSummary | MissingValue] = field(default_factory=dict)
    pod_reports: Mapping[str, Sequence[PodReport]] = field(default_factory=dict)
    models: Listing = ()
    references: Mapping[ModelReference, bool | MissingValue] = field(default_factory=dict)
    disruption_budgets: Listing = ()
    network_policies: Listing = ()
    our_version: str = __version__

    def component_deployments(self, name: str) -> Listing:
        """Returns the Deployments of a component."""
        return (
            self.deployments if isinstance(self.deployments, MissingValue) else with_component(self.deployments, name)
        )

    def pods_of(self, deployment: Manifest) -> Listing:
        """Returns the pods of a Deployment: those of its component and release in its namespace."""
        if isinstance(self.pods, MissingValue):
            return self.pods
        return [
            pod
            for pod in with_component(self.pods, label_of(deployment, COMPONENT_LABEL))
            if namespace_name(pod) == namespace_name(deployment)
            and label_of(pod, RELEASE_LABEL) == label_of(deployment, RELEASE_LABEL)
        ]
