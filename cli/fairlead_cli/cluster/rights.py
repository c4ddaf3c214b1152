"""Which rights the checks ask about: our components' (those of the chart, which a test holds equal), and ours."""

from collections.abc import Iterator, Sequence
from typing import Final

from fairlead.kube.resource import (
    ACCELERATOR_CLASSES,
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    DEFINITIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    EVENTS,
    LEADER_WORKER_SETS,
    LEASES,
    MODEL_DEPLOYMENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    PODS,
    QUOTAS,
    REVISIONS,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)
from fairlead_cli.cluster.facts import GATEWAY, INDEXER, OPERATOR
from fairlead_cli.cluster.reviews import Right
from fairlead_operator.leading import LEASE

_MADE: Final = (
    *(DEPLOYMENTS, REVISIONS, LEADER_WORKER_SETS, SERVICES, SERVICE_ACCOUNTS, DISRUPTION_BUDGETS, NETWORK_POLICIES),
)


def of_account(component: str, place: str, namespaces: Sequence[str]) -> list[Right]:
    """What a component's service account must be allowed: installed in ``place``, for models of ``namespaces`` (none: all)."""
    found = [_right(ACCELERATOR_CLASSES, verb, None) for verb in ("list", "watch")]
    for namespace in namespaces or (None,):
        found += _operator(namespace) if component == OPERATOR else _fleet(namespace)
    if component == OPERATOR:
        found.append(_right(LEASES, "create", place))
        found += [Right(LEASES.group, LEASES.plural, verb, place, LEASE) for verb in ("get", "patch")]
    return found


def _operator(namespace: str | None) -> Iterator[Right]:
    for verb in ("get", "list", "watch"):
        yield _right(MODEL_DEPLOYMENTS, verb, namespace)
    yield _right(MODEL_DEPLOYMENTS, "patch", namespace, "/status")
    yield _right(MODEL_DEPLOYMENTS, "update", namespace, "/finalizers")
    for resource in _MADE:
        for verb in ("get", "list", "watch", "create", "patch", "delete"):
            yield _right(resource, verb, namespace)
    for verb in ("list", "watch"):
        yield _right(PODS, verb, namespace)
    for verb in ("create", "patch"):
        yield _right(EVENTS, verb, namespace)


def _fleet(namespace: str | None) -> Iterator[Right]:
    for resource in (MODEL_DEPLOYMENTS, PODS):
        for verb in ("list", "watch"):
            yield _right(resource, verb, namespace)


def to_install(place: str, exists: bool) -> list[Right]:
    """What whoever runs ``helm install`` into ``place`` must be allowed."""
    found = [] if exists else [_right(NAMESPACES, "create", None)]
    found += [_right(one, "create", None) for one in (DEFINITIONS, CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS)]
    inside = (
        DEPLOYMENTS,
        SERVICES,
        SECRETS,
        SERVICE_ACCOUNTS,
        DISRUPTION_BUDGETS,
        NETWORK_POLICIES,
        ROLES,
        ROLE_BINDINGS,
    )
    return found + [_right(one, "create", place) for one in inside]


def to_check(place: str, *, before: bool) -> list[Right]:
    """What the checks themselves read."""
    found = [_right(DEFINITIONS, "get", None), _right(QUOTAS, "list", None)]
    if before:
        return [*found, _right(NODES, "list", None)]
    found += [_right(one, "list", None) for one in (DEPLOYMENTS, PODS, MODEL_DEPLOYMENTS)]
    found += [_right(one, "list", place) for one in (DISRUPTION_BUDGETS, NETWORK_POLICIES)]
    found += [_right(SECRETS, "get", place), Right(LEASES.group, LEASES.plural, "get", place, LEASE)]
    return [
        *found,
        _right(PODS, "get", place, "/proxy"),
        Right("authorization.k8s.io", "subjectaccessreviews", "create"),
    ]


COMPONENTS: Final = (OPERATOR, GATEWAY, INDEXER)
"""Those that have rights at all."""


def _right(resource: Resource, verb: str, namespace: str | None, sub: str = "") -> Right:
    return Right(resource.group, resource.plural + sub, verb, namespace if resource.namespaced else None)
