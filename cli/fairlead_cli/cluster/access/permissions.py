"""Permissions that the checks review: those of the components, as in the chart, and those of the
user.

A test keeps the components' permissions equal to the chart's.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.kube import resources as kube
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import Resource
from fairlead_cli.cluster.components import AUTOSCALER, GATEWAY, INDEXER, OPERATOR
from fairlead_cli.cluster.object_fields import MissingValue, value_or_missing
from fairlead_operator.kube.leader_election import LEASE_NAME

_FIELD_MANAGER = "fairlead-cli"

AUTOSCALER_LEASE_NAME: Final = "fairlead-autoscaler"
"""As in the autoscaler; a test holds the two equal."""
_CLAIMANTS: Final = (kube.MODEL_ROUTES, kube.MODEL_ADAPTERS)
"""Kinds besides models that have names for clients."""
_MANAGED_RESOURCES: Final = (
    *(kube.DEPLOYMENTS, kube.CONTROLLER_REVISIONS, kube.LEADER_WORKER_SETS, kube.SERVICES),
    *(kube.SERVICE_ACCOUNTS, kube.DISRUPTION_BUDGETS, kube.NETWORK_POLICIES),
)
_WATCHED: Final = ("list", "watch")
_READ: Final = ("get", *_WATCHED)

_ADMISSION_GROUP: Final = "admissionregistration.k8s.io"
_ADMISSION_POLICIES: Final = ("validatingadmissionpolicies", "validatingadmissionpolicybindings")

COMPONENTS_WITH_PERMISSIONS: Final = (OPERATOR, GATEWAY, INDEXER, AUTOSCALER)
"""Components whose service accounts have permissions."""


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """A verb on a resource. ``namespace`` None: in all namespaces. ``name``: only the object of
    this name.
    """

    group: str
    resource: str
    verb: str
    namespace: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        resource = f"{resource}/{self.name}" if self.name else resource
        return f"{self.verb} {resource} {f'in {self.namespace}' if self.namespace else 'in the whole cluster'}"

    def _attributes(self) -> dict[str, Any]:
        resource, _, sub = self.resource.partition("/")
        attributes = {"group": self.group, "resource": resource, "subresource": sub, "verb": self.verb}
        attributes |= {"namespace": self.namespace or "", "name": self.name or ""}
        return {name: value for name, value in attributes.items() if value}


async def review_own_access(api: KubeApi, permission: Permission) -> bool | MissingValue:
    """Returns whether the user has the permission, or why the review failed.

    Every user may create this review.
    """
    return await value_or_missing(_create_review(api, kube.SELF_REVIEWS.kind, permission, {}))


async def review_account_access(
    api: KubeApi, namespace: str, account: str, permission: Permission
) -> bool | MissingValue:
    """Returns whether a service account has the permission, or why the review failed.

    The user needs the right to create SubjectAccessReviews.
    """
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    subject = {"user": f"system:serviceaccount:{namespace}:{account}", "groups": groups}
    return await value_or_missing(_create_review(api, kube.ACCESS_REVIEWS.kind, permission, subject))


async def _create_review(api: KubeApi, kind: str, right: Permission, subject: dict[str, Any]) -> bool:
    review = {
        "apiVersion": kube.SELF_REVIEWS.api_version,
        "kind": kind,
        "metadata": {},
        "spec": {"resourceAttributes": right._attributes(), **subject},
    }
    status = (await api.create(review, _FIELD_MANAGER)).get("status") or {}
    if status.get("evaluationError") and not status.get("allowed"):
        raise KubeError(str(status["evaluationError"]))
    return bool(status.get("allowed"))


def component_permissions(
    component: str,
    install_namespace: str,
    namespaces: Sequence[str],
    *,
    restarts_engines: bool = True,
    revocation_list: str | None = None,
) -> list[Permission]:
    """Returns the permissions that a component's service account needs.

    install_namespace: where the component runs.
    namespaces: of its models; empty means all.
    restarts_engines: the operator reads from gateways which engines hang.
    revocation_list: the ConfigMap with revoked keys that gateways watch; None: they watch none.
    """
    kinds = (kube.ACCELERATOR_CLASSES, kube.MODEL_TENANTS) if component == GATEWAY else (kube.ACCELERATOR_CLASSES,)
    permissions = [*_permissions(kinds, _WATCHED, None)]
    if revocation_list is not None:
        permissions += _permissions([kube.CONFIG_MAPS], _WATCHED, install_namespace, name=revocation_list)
    for namespace in namespaces or (None,):
        if component == OPERATOR:
            permissions += _operator_permissions(namespace)
        elif component == AUTOSCALER:
            permissions += _autoscaler_permissions(namespace)
        else:
            permissions += _fleet_permissions(namespace)
        if component == GATEWAY:
            permissions += _permissions(_CLAIMANTS, _WATCHED, namespace)
    if component == OPERATOR and restarts_engines:
        permissions += _restart_permissions(install_namespace, namespaces)
    if lease_name := {OPERATOR: LEASE_NAME, AUTOSCALER: AUTOSCALER_LEASE_NAME}.get(component):
        permissions += _permissions([kube.LEASES], ["create"], install_namespace)
        permissions += _permissions([kube.LEASES], ("get", "patch"), install_namespace, name=lease_name)
    return permissions


def _operator_permissions(namespace: str | None) -> Iterator[Permission]:
    yield from _permissions([kube.MODEL_DEPLOYMENTS], (*_READ, "patch"), namespace)
    yield from _permissions(_CLAIMANTS, _WATCHED, namespace)
    yield from _permissions((kube.MODEL_DEPLOYMENTS, *_CLAIMANTS), ["patch"], namespace, "/status")
    yield from _permissions([kube.MODEL_DEPLOYMENTS], ["update"], namespace, "/finalizers")
    yield from _permissions(_MANAGED_RESOURCES, (*_READ, "create", "patch", "delete"), namespace)
    yield from _permissions([kube.PODS], _WATCHED, namespace)
    yield from _permissions([kube.EVENTS], ("create", "patch"), namespace)


def _autoscaler_permissions(namespace: str | None) -> Iterator[Permission]:
    yield from _fleet_permissions(namespace)
    yield from _permissions([kube.MODEL_DEPLOYMENTS], ["patch"], namespace, "/status")
    yield from _permissions((kube.DEPLOYMENTS, kube.LEADER_WORKER_SETS), _READ, namespace)
    yield from _permissions([kube.DEPLOYMENTS], ["patch"], namespace, "/scale")
    yield from _permissions((kube.LEADER_WORKER_SETS, kube.PODS), ["patch"], namespace)
    yield from _permissions([kube.EVENTS], ("create", "patch"), namespace)


def _restart_permissions(install_namespace: str, namespaces: Sequence[str]) -> Iterator[Permission]:
    """Yields what marking and restarting engines needs, and reading the gateways' pods."""
    for namespace in namespaces or (None,):
        yield from _permissions([kube.PODS], ["delete"], namespace)
        yield from _permissions([kube.PODS], ["patch"], namespace, "/status")
    if namespaces:
        yield from _permissions([kube.PODS], ["list"], install_namespace)


def _fleet_permissions(namespace: str | None) -> Iterator[Permission]:
    return _permissions((kube.MODEL_DEPLOYMENTS, kube.PODS), _WATCHED, namespace)


def permissions_to_install(namespace: str, exists: bool) -> list[Permission]:
    """Returns the permissions that ``helm install`` into ``namespace`` needs."""
    cluster_wide = (kube.CUSTOM_RESOURCE_DEFINITIONS, kube.CLUSTER_ROLES, kube.CLUSTER_ROLE_BINDINGS)
    namespaced = (
        *(kube.CONFIG_MAPS, kube.DEPLOYMENTS, kube.SERVICES, kube.SECRETS, kube.SERVICE_ACCOUNTS),
        *(kube.DISRUPTION_BUDGETS, kube.NETWORK_POLICIES, kube.ROLES, kube.ROLE_BINDINGS),
    )
    return [
        *_permissions(cluster_wide if exists else (kube.NAMESPACES, *cluster_wide), ["create"], None),
        *(Permission(_ADMISSION_GROUP, plural, "create") for plural in _ADMISSION_POLICIES),
        *_permissions(namespaced, ["create"], namespace),
    ]


def permissions_to_check(namespace: str, *, before_install: bool) -> list[Permission]:
    """Returns the permissions that the checks themselves need."""
    permissions = [
        *_permissions([kube.CUSTOM_RESOURCE_DEFINITIONS], ["get"], None),
        *_permissions([kube.RESOURCE_QUOTAS], ["list"], None),
    ]
    if before_install:
        return [*permissions, *_permissions([kube.NODES], ["list"], None)]
    return [
        *permissions,
        *_permissions((kube.DEPLOYMENTS, kube.PODS, kube.MODEL_DEPLOYMENTS), ["list"], None),
        *_permissions((kube.DISRUPTION_BUDGETS, kube.NETWORK_POLICIES), ["list"], namespace),
        *_permissions([kube.SECRETS], ["get"], namespace),
        *_permissions([kube.LEASES], ["get"], namespace, name=LEASE_NAME),
        *_permissions([kube.PODS], ["get", "create"], namespace, "/portforward"),
        Permission("authorization.k8s.io", "subjectaccessreviews", "create"),
    ]


def _permissions(
    resources: Iterable[Resource], verbs: Sequence[str], namespace: str | None, sub: str = "", name: str | None = None
) -> Iterator[Permission]:
    """Yields each verb on each resource. ``sub``: a subresource, with its slash."""
    for resource in resources:
        for verb in verbs:
            where = namespace if resource.namespaced else None
            yield Permission(resource.group, resource.plural + sub, verb, where, name)
