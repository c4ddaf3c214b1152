"""The kinds of objects that Fairlead uses, their API paths, and accessors for object metadata."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from fairlead.errors import BadInput

Manifest = dict[str, Any]
"""An object as plain JSON."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object. `group` is empty for the core API."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Returns the API path of an object, or of a collection if `name` is None.

        namespace: None for all namespaces of a collection, and for cluster-scoped kinds.
        Raises BadInput for names that cannot be part of a path, and for a missing or superfluous
        namespace.
        """
        if namespace is not None and not self.namespaced:
            raise BadInput(f"a {self.kind} has no namespace", field="metadata.namespace")
        if name is not None and namespace is None and self.namespaced:
            raise BadInput(f"the {self.kind} {name!r} needs a namespace", field="metadata.namespace")
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None:
            parts += ["namespaces", _path_segment(namespace)]
        parts.append(self.plural)
        if name is not None:
            parts.append(_path_segment(name))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


@dataclass(frozen=True, slots=True)
class ObjectSelection:
    """The objects of one kind to watch.

    namespace: None selects all namespaces.
    labels, fields: selectors.
    """

    resource: Resource
    namespace: str | None = None
    labels: str | None = None
    fields: str | None = None


def _path_segment(name: str) -> str:
    """Returns a name escaped for a path. Raises BadInput for a name that changes the path."""
    if name in ("", ".", "..") or "/" in name or "%" in name:
        raise BadInput(f"{name!r} cannot name an object", field="metadata.name")
    return quote(name, safe="")


NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
RESOURCE_QUOTAS = Resource("", "v1", "resourcequotas", "ResourceQuota")
VOLUME_CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
CONTROLLER_REVISIONS = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS = Resource(
    "rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False
)
SELF_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)
CUSTOM_RESOURCE_DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
SECURITY_CONTEXT_CONSTRAINTS = Resource(
    "security.openshift.io", "v1", "securitycontextconstraints", "SecurityContextConstraints", namespaced=False
)
LEADER_WORKER_SETS = Resource("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet")
MODEL_DEPLOYMENTS = Resource("serving.fairlead.io", "v1alpha1", "modeldeployments", "ModelDeployment")
ACCELERATOR_CLASSES = Resource(
    "serving.fairlead.io", "v1alpha1", "acceleratorclasses", "AcceleratorClass", namespaced=False
)
MODEL_ROUTES = Resource("serving.fairlead.io", "v1alpha1", "modelroutes", "ModelRoute")
MODEL_ADAPTERS = Resource("serving.fairlead.io", "v1alpha1", "modeladapters", "ModelAdapter")
MODEL_TENANTS = Resource("serving.fairlead.io", "v1alpha1", "modeltenants", "ModelTenant", namespaced=False)

RESOURCES_BY_KIND: Mapping[tuple[str, str], Resource] = {
    (one.api_version, one.kind): one for one in list(globals().values()) if isinstance(one, Resource)
}
"""Every resource above, by `apiVersion` and `kind`."""


def resource_of(manifest: Manifest) -> Resource:
    """Returns the resource of a manifest. Raises BadInput for an unknown kind."""
    pair = str(manifest.get("apiVersion", "")), str(manifest.get("kind", ""))
    resource = RESOURCES_BY_KIND.get(pair)
    if resource is None:
        raise BadInput(f"Fairlead does not know objects of kind {pair[0]} {pair[1]}", field="kind")
    return resource


def selected_fields(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def name_of(manifest: Manifest) -> str:
    """Returns `metadata.name`. Raises BadInput if there is none."""
    name = metadata_of(manifest).get("name")
    if not isinstance(name, str) or not name:
        raise BadInput(f"a {manifest.get('kind', 'manifest')} has no name", field="metadata.name")
    return name


def namespace_of(manifest: Manifest) -> str | None:
    """Returns `metadata.namespace`; None for cluster-scoped objects."""
    return metadata_of(manifest).get("namespace") or None


def key_of(manifest: Manifest) -> str:
    """Returns `namespace/name`, or `name` for cluster-scoped objects. Raises BadInput without a
    name.
    """
    namespace = namespace_of(manifest)
    return f"{namespace}/{name_of(manifest)}" if namespace else name_of(manifest)


def uid_of(manifest: Manifest) -> str:
    """Returns `metadata.uid`; empty for an object that the API server has not stored yet."""
    return str(metadata_of(manifest).get("uid", ""))


def resource_version_of(manifest: Manifest) -> int:
    text = str(metadata_of(manifest).get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def metadata_of(manifest: Manifest) -> Manifest:
    """Returns `metadata`; empty if there is none."""
    return manifest.get("metadata") or {}


def labels_of(manifest: Manifest) -> Mapping[str, str]:
    """Returns `metadata.labels`; empty if there are none."""
    return metadata_of(manifest).get("labels") or {}


def annotations_of(manifest: Manifest) -> Mapping[str, str]:
    """Returns `metadata.annotations`; empty if there are none."""
    return metadata_of(manifest).get("annotations") or {}


def is_deleting(manifest: Manifest) -> bool:
    """Returns True if the deletion of the object has started."""
    return bool(metadata_of(manifest).get("deletionTimestamp"))


def is_ready(pod: Manifest) -> bool:
    """Returns True if the pod's condition `Ready` is True, also during its deletion."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions)


def has_started(pod: Manifest) -> bool:
    """Returns True if the pod is ready, or was since its containers started."""
    containers = (pod.get("status") or {}).get("containerStatuses") or []
    return is_ready(pod) or (bool(containers) and all(container.get("started") for container in containers))


def label_selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def format_micro_time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
