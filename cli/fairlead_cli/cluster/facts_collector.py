"""Gathers the facts for the checks: reads, and asks; nothing is written but a dry run."""

import asyncio
import base64
import binascii
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import GROUP
from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    CUSTOM_RESOURCE_DEFINITIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    LEADER_WORKER_SETS,
    LEASES,
    MODEL_DEPLOYMENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    PODS,
    QUOTAS,
    SECRETS,
    STORAGE_CLASSES,
    Manifest,
    Resource,
    is_deleting,
)
from fairlead.runtime.clock import Clock
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.access.access_reviews import Permission, review_account_access, review_own_access
from fairlead_cli.cluster.access.permissions import (
    COMPONENTS_WITH_PERMISSIONS,
    component_permissions,
    permissions_to_check,
    permissions_to_install,
)
from fairlead_cli.cluster.certificate import certificate_expiry
from fairlead_cli.cluster.components import (
    GATEWAY,
    INDEXER,
    OPERATOR,
    OWN_OBJECTS,
    secret_references,
    service_account,
    watched_namespaces,
    with_component,
)
from fairlead_cli.cluster.facts import ClusterFacts, Listing, SecretSummary
from fairlead_cli.cluster.missing_value import MissingValue, value_or_missing
from fairlead_cli.cluster.object_fields import arguments_of, namespace_name
from fairlead_cli.cluster.timestamps import parse_http_date
from fairlead_operator.kube.leader_election import LEASE_NAME

DEFAULT_NAMESPACE: Final = "fairlead"
_REFUSALS: Final = ("violates PodSecurity", "denied the request", "exceeded quota", "ValidatingAdmissionPolicy")
"""Words of admission: anything else that is said about the dry run is about us, not about the pod."""
_MAX_QUERIED_PODS: Final = 16
"""Pods of a component that are asked; an installation has two or three."""


async def collect_facts(
    api: KubeApi, version: str, clock: Clock, *, namespace: str | None, before_install: bool
) -> ClusterFacts:
    """Everything that is judged. ``place`` is the namespace of the installation; without it, it is found by the chart's labels."""
    deployments, pods = await asyncio.gather(
        list_own_objects(api, DEPLOYMENTS, namespace), list_own_objects(api, PODS, namespace)
    )
    there = namespace or _place(deployments)
    now, skew = await read_server_clock(api, clock)
    common = await _common(api, there)
    facts: dict[str, Any] = {
        "server": api.config.server,
        "found": api.config.source,
        "version": version,
        "now": now,
        "skew_seconds": skew,
        "place": there,
        "deployments": deployments,
        "pods": pods,
        **common,
    }
    wanted = [
        *permissions_to_check(there, before_install=before_install),
        *(permissions_to_install(there, common["place_exists"] is True) if before_install else []),
    ]
    said = await asyncio.gather(*(review_own_access(api, one) for one in wanted))
    facts["rights"] = dict(zip(wanted, said, strict=True))
    facts |= await (_before(api, there) if before_install else _after(api, deployments, pods, there))
    return ClusterFacts(**facts)


async def list_own_objects(api: KubeApi, resource: Resource, namespace: str | None) -> Listing:
    """Fairlead's objects of a kind: in one namespace, else in all, else where it is usually installed."""
    found = await list_objects(api, resource, namespace, OWN_OBJECTS)
    if namespace is None and isinstance(found, MissingValue) and found.is_forbidden:
        return await list_objects(api, resource, DEFAULT_NAMESPACE, OWN_OBJECTS)
    return found


async def list_objects(
    api: KubeApi,
    resource: Resource,
    namespace: str | None = None,
    labels: str | None = None,
    fields: str | None = None,
) -> Listing:
    """A list, or why there is none. A kind that the cluster does not know is an absent one."""
    found = await value_or_missing(api.list(resource, namespace, labels, fields=fields))
    return found if isinstance(found, MissingValue) else found.items


def _place(deployments: Listing) -> str:
    """The namespace of the first operator, else of anything that is ours."""
    if isinstance(deployments, MissingValue) or not deployments:
        return DEFAULT_NAMESPACE
    return namespace_name([*with_component(deployments, OPERATOR), *deployments][0])


async def read_server_clock(api: KubeApi, clock: Clock) -> tuple[float, float | None]:
    """The API server's time and how far ours is ahead; ours where it tells none. Its ``Date`` is cut to the second."""
    try:
        told = parse_http_date((await api.get_raw("/version", 4_096, 5.0)).date)
    except FairleadError:
        told = None
    here = clock.wall()
    if told is None:
        return here, None
    skew = here - told - 0.5
    return told + 0.5, 0.0 if math.fabs(skew) <= 1.0 else skew


async def _common(api: KubeApi, place: str) -> dict[str, Any]:
    definitions, quotas, classes, sets, exists, models = await asyncio.gather(
        _definitions(api),
        list_objects(api, QUOTAS),
        list_objects(api, ACCELERATOR_CLASSES),
        value_or_missing(api.has_resource(LEADER_WORKER_SETS)),
        _exists(api, place),
        list_objects(api, MODEL_DEPLOYMENTS),
    )
    if isinstance(models, MissingValue) and models.is_absent:
        models = ()  # without its CRD there is none
    return {
        "definitions": definitions,
        "quotas": quotas,
        "classes": classes,
        "leader_worker_sets": sets,
        "place_exists": exists,
        "models": models,
    }


async def _definitions(api: KubeApi) -> Listing:
    """The CRDs of our names, one by one: all of a cluster's together are tens of megabytes."""
    asked = await asyncio.gather(
        *(
            value_or_missing(api.get(CUSTOM_RESOURCE_DEFINITIONS, None, f"{kind.plural}.{GROUP}"))
            for kind in served_kinds()
        )
    )
    refused = next((one for one in asked if isinstance(one, MissingValue) and not one.is_absent), None)
    return refused or [one for one in asked if not isinstance(one, MissingValue)]


async def _exists(api: KubeApi, place: str) -> bool | MissingValue:
    found = await value_or_missing(api.get(NAMESPACES, None, place))
    if isinstance(found, MissingValue):
        return False if found.is_absent else found
    return True


# --- before an installation ---------------------------------------------------------------------------------------------


async def _before(api: KubeApi, place: str) -> dict[str, Any]:
    nodes, classes, trial = await asyncio.gather(
        list_objects(api, NODES), list_objects(api, STORAGE_CLASSES), value_or_missing(_dry_run(api, place))
    )
    return {"nodes": nodes, "storage_classes": classes, "trial": trial}


async def _dry_run(api: KubeApi, place: str) -> str:
    """How admission takes a pod like the chart's, as a dry run; empty when it does. Raises what is no answer to that."""
    try:
        await api.apply(dry_run_pod(place), "fairlead-check", dry_run=True)
    except NotFound:
        raise
    except FairleadError as error:
        said = error.message.partition(": ")[2] or error.message
        refused = any(
            word in said
            for word in ("violates PodSecurity", "denied the request", "exceeded quota", "ValidatingAdmission")
        )
        if not refused:
            raise
        return said
    return ""


def dry_run_pod(namespace: str) -> Manifest:
    """What every pod of the chart has, for any user id; a test holds it to the chart."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "fairlead-check", "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "check",
                    "image": "serving.fairlead.io/operator",
                    "securityContext": security,
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "128Mi"},
                        "limits": {"cpu": "1", "memory": "512Mi"},
                    },
                }
            ],
        },
    }


# --- after it -----------------------------------------------------------------------------------------------------------


async def _after(api: KubeApi, deployments: Listing, pods: Listing, place: str) -> dict[str, Any]:
    found = () if isinstance(deployments, MissingValue) else deployments
    places = list(dict.fromkeys(namespace_name(one) for one in found)) or [place]
    budgets, policies, leases, rights, secrets, told = await asyncio.gather(
        _inside(api, DISRUPTION_BUDGETS, places),
        _inside(api, NETWORK_POLICIES, places),
        _leases(api, places),
        _account_rights(api, found),
        _secrets(api, found),
        _told(api, () if isinstance(pods, MissingValue) else pods),
    )
    return {
        "budgets": budgets,
        "policies": policies,
        "leases": leases,
        "account_rights": rights,
        "secrets": secrets,
        "told": told,
    }


async def _inside(api: KubeApi, resource: Resource, places: Iterable[str]) -> Listing:
    """Ours of a kind in these namespaces."""
    found: list[Manifest] = []
    for place in places:
        listed = await list_objects(api, resource, place, OWN_OBJECTS)
        if isinstance(listed, MissingValue):
            return listed
        found += listed
    return found


async def _leases(api: KubeApi, places: Iterable[str]) -> dict[str, Manifest | MissingValue]:
    return {place: await value_or_missing(api.get(LEASES, place, LEASE_NAME)) for place in places}


async def _account_rights(
    api: KubeApi, deployments: Sequence[Manifest]
) -> dict[tuple[str, str], Mapping[Permission, bool | MissingValue]]:
    """Of each operator, and of gateways and indexers that follow the cluster. The first refusal to tell ends the asking."""
    found: dict[tuple[str, str], Mapping[Permission, bool | MissingValue]] = {}
    for component in COMPONENTS_WITH_PERMISSIONS:
        for one in with_component(deployments, component):
            if component != OPERATOR and not any(word.startswith("--kube") for word in arguments_of(one)):
                continue
            wanted = component_permissions(component, namespace_name(one), watched_namespaces(one))
            first = await review_account_access(api, namespace_name(one), service_account(one), wanted[0])
            if isinstance(first, MissingValue):
                found[component, namespace_name(one)] = {wanted[0]: first}
                continue
            rest = await asyncio.gather(
                *(review_account_access(api, namespace_name(one), service_account(one), right) for right in wanted[1:])
            )
            found[component, namespace_name(one)] = {wanted[0]: first, **dict(zip(wanted[1:], rest, strict=True))}
    return found


async def _secrets(
    api: KubeApi, deployments: Sequence[Manifest]
) -> dict[tuple[str, str], SecretSummary | MissingValue]:
    named = dict.fromkeys(
        (one.namespace, one.name) for deployment in deployments for one in secret_references(deployment)
    )
    return {(space, name): await value_or_missing(_entries(api, space, name)) for space, name in named}


async def _entries(api: KubeApi, namespace: str, name: str) -> SecretSummary:
    """The names of a Secret's entries; what they hold is forgotten at once, but for when a certificate ends."""
    data = (await api.get(SECRETS, namespace, name)).get("data") or {}
    ends = None
    if "tls.crt" in data:
        try:
            ends = certificate_expiry(base64.b64decode(data["tls.crt"], validate=True))
        except (binascii.Error, ValueError):
            ends = None
    return SecretSummary(frozenset(data), ends)


async def _told(api: KubeApi, pods: Sequence[Manifest]) -> dict[str, Sequence[pod_http.PodReport]]:
    """What our pods say, all asked at once."""
    asked = {GATEWAY: pod_http.query_gateway, OPERATOR: pod_http.query_component, INDEXER: pod_http.query_component}
    found = {
        name: [one for one in with_component(pods, name) if not is_deleting(one)][:_MAX_QUERIED_PODS] for name in asked
    }
    said = await asyncio.gather(*(ask(api, one) for name, ask in asked.items() for one in found[name]))
    rest = iter(said)
    return {name: [next(rest) for _ in found[name]] for name in asked}
