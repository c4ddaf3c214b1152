"""Collects the facts for the checks from a cluster. It only reads; the one write is a dry run.

RFC 5280: Certificate → tbsCertificate → [0] version?, serialNumber, signature, issuer, validity →
notBefore, notAfter.

Why: five steps over lengths need no cryptography package, which would be the largest dependency of
the command line.
"""

import asyncio
import base64
import binascii
import math
import re
from collections.abc import Awaitable, Iterable, Sequence
from datetime import UTC, datetime
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
    RESOURCE_QUOTAS,
    SECRETS,
    STORAGE_CLASSES,
    Manifest,
    Resource,
    is_deleting,
)
from fairlead.runtime.clock import Clock
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.access.permissions import (
    COMPONENTS_WITH_PERMISSIONS,
    Permission,
    component_permissions,
    permissions_to_check,
    permissions_to_install,
    review_account_access,
    review_own_access,
)
from fairlead_cli.cluster.components import (
    AUTOSCALER,
    GATEWAY,
    INDEXER,
    OPERATOR,
    OWN_OBJECTS,
    restarts_engines,
    revocation_list,
    secret_references,
    service_account,
    watched_namespaces,
    with_component,
)
from fairlead_cli.cluster.facts import ClusterFacts, Listing, SecretSummary
from fairlead_cli.cluster.model_references import ModelReference, model_references
from fairlead_cli.cluster.object_fields import (
    MissingValue,
    arguments_of,
    namespace_name,
    parse_http_date,
    value_or_missing,
)
from fairlead_operator.kube.leader_election import LEASE_NAME

DEFAULT_NAMESPACE: Final = "fairlead"
_REFUSALS: Final = ("violates PodSecurity", "denied the request", "exceeded quota", "ValidatingAdmission")
"""Marks of a refusal by admission. Any other error is not about the pod."""
_MAX_REFERENCES: Final = 256
"""Secrets and claims of models that are looked up."""
_MAX_QUERIED_PODS: Final = 16
"""Pods of a component that are queried; an installation has two or three."""

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s+(.+?)-----END CERTIFICATE-----", re.DOTALL)


async def collect_facts(
    api: KubeApi, version: str, clock: Clock, *, namespace: str | None, before_install: bool
) -> ClusterFacts:
    """Returns all facts.

    namespace: of the installation; None to find it by the chart's labels.
    """
    deployments, pods = await asyncio.gather(
        list_own_objects(api, DEPLOYMENTS, namespace), list_own_objects(api, PODS, namespace)
    )
    there = namespace or _place(deployments)
    now, skew = await read_server_clock(api, clock)
    common = await _common(api, there)
    facts: dict[str, Any] = {
        "server": api.config.server,
        "access_source": api.config.source,
        "version": version,
        "now": now,
        "skew_seconds": skew,
        "install_namespace": there,
        "deployments": deployments,
        "pods": pods,
        **common,
    }
    wanted = [
        *permissions_to_check(there, before_install=before_install),
        *(permissions_to_install(there, common["namespace_exists"] is True) if before_install else []),
    ]
    said = await asyncio.gather(*(review_own_access(api, one) for one in wanted))
    facts["permissions"] = dict(zip(wanted, said, strict=True))
    facts |= await (_before(api, there) if before_install else _after(api, deployments, pods, there))
    facts["references"] = {} if before_install else await collect_references(api, common["models"])
    return ClusterFacts(**facts)


async def list_own_objects(api: KubeApi, resource: Resource, namespace: str | None) -> Listing:
    """Returns Fairlead's objects of a kind in a namespace.

    namespace: None for all namespaces, or for the default one when the user may not list all.
    """
    objects = await list_objects(api, resource, namespace, OWN_OBJECTS)
    if namespace is None and isinstance(objects, MissingValue) and objects.is_forbidden:
        return await list_objects(api, resource, DEFAULT_NAMESPACE, OWN_OBJECTS)
    return objects


async def list_objects(
    api: KubeApi,
    resource: Resource,
    namespace: str | None = None,
    labels: str | None = None,
    fields: str | None = None,
) -> Listing:
    """Returns the objects of a kind, or why they cannot be listed. An unknown kind counts as
    absent.

    labels, fields: Kubernetes selectors.
    """
    answer = await value_or_missing(api.list(resource, namespace, labels, fields=fields))
    return answer if isinstance(answer, MissingValue) else answer.items


def _place(deployments: Listing) -> str:
    """Returns the namespace of the first operator, else of any Deployment, else the default one."""
    if isinstance(deployments, MissingValue) or not deployments:
        return DEFAULT_NAMESPACE
    return namespace_name([*with_component(deployments, OPERATOR), *deployments][0])


async def read_server_clock(api: KubeApi, clock: Clock) -> tuple[float, float | None]:
    """Returns the API server's Unix time, and the seconds that this machine's clock is ahead of it.

    Without a ``Date`` from the server, they are the local time and None.

    Why: the ``Date`` is cut to the second. So half a second is added, and up to 1 s ahead or behind
    counts as 0.
    """
    try:
        server_time = parse_http_date((await api.get_raw("/version", 4_096, 5.0)).date)
    except FairleadError:
        server_time = None
    local_time = clock.wall()
    if server_time is None:
        return local_time, None
    skew = local_time - server_time - 0.5
    return server_time + 0.5, 0.0 if math.fabs(skew) <= 1.0 else skew


async def _common(api: KubeApi, place: str) -> dict[str, Any]:
    facts = await _gather(
        crds=_definitions(api),
        quotas=list_objects(api, RESOURCE_QUOTAS),
        accelerator_classes=list_objects(api, ACCELERATOR_CLASSES),
        leader_worker_sets=value_or_missing(api.has_resource(LEADER_WORKER_SETS)),
        namespace_exists=_exists(api, place),
        models=list_objects(api, MODEL_DEPLOYMENTS),
    )
    if isinstance(facts["models"], MissingValue) and facts["models"].is_absent:
        facts["models"] = ()  # without its CRD there is none
    return facts


async def _gather(**facts: Awaitable[Any]) -> dict[str, Any]:
    return dict(zip(facts, await asyncio.gather(*facts.values()), strict=True))


async def _definitions(api: KubeApi) -> Listing:
    """Returns our CRDs, read one by one: all CRDs of a cluster together are tens of megabytes."""
    names = [f"{kind.plural}.{GROUP}" for kind in served_kinds()]
    answers = await asyncio.gather(*(value_or_missing(api.get(CUSTOM_RESOURCE_DEFINITIONS, None, n)) for n in names))
    refused = next((answer for answer in answers if isinstance(answer, MissingValue) and not answer.is_absent), None)
    return refused or [answer for answer in answers if not isinstance(answer, MissingValue)]


async def _exists(api: KubeApi, place: str) -> bool | MissingValue:
    answer = await value_or_missing(api.get(NAMESPACES, None, place))
    if isinstance(answer, MissingValue):
        return False if answer.is_absent else answer
    return True


# --- before an installation ---------------------------------------------------------------------------------------------


async def _before(api: KubeApi, place: str) -> dict[str, Any]:
    return await _gather(
        nodes=list_objects(api, NODES),
        storage_classes=list_objects(api, STORAGE_CLASSES),
        dry_run_refusal=value_or_missing(_dry_run(api, place)),
    )


async def _dry_run(api: KubeApi, place: str) -> str:
    """Sends a pod like the chart's as a dry run. Returns admission's refusal; empty if it is
    accepted.

    Raises FairleadError for any other error.
    """
    try:
        await api.apply(dry_run_pod(place), "fairlead-check", dry_run=True)
    except NotFound:
        raise
    except FairleadError as error:
        message = error.message.partition(": ")[2] or error.message
        if not any(marker in message for marker in _REFUSALS):
            raise
        return message
    return ""


def dry_run_pod(namespace: str) -> Manifest:
    """Returns a pod with the security context of the chart's pods; a test compares the two."""
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
    return await _gather(
        disruption_budgets=_inside(api, DISRUPTION_BUDGETS, places),
        network_policies=_inside(api, NETWORK_POLICIES, places),
        leases=_leases(api, places),
        account_permissions=_account_rights(api, found),
        secrets=_secrets(api, found),
        pod_reports=_pod_reports(api, () if isinstance(pods, MissingValue) else pods),
    )


async def _inside(api: KubeApi, resource: Resource, places: Iterable[str]) -> Listing:
    """Returns our objects of a kind in these namespaces, or why one of the namespaces cannot be
    listed.
    """
    objects: list[Manifest] = []
    for place in places:
        listed = await list_objects(api, resource, place, OWN_OBJECTS)
        if isinstance(listed, MissingValue):
            return listed
        objects += listed
    return objects


async def _leases(api: KubeApi, places: Iterable[str]) -> dict[str, Manifest | MissingValue]:
    return {place: await value_or_missing(api.get(LEASES, place, LEASE_NAME)) for place in places}


async def _account_rights(
    api: KubeApi, deployments: Sequence[Manifest]
) -> dict[tuple[str, str], dict[Permission, bool | MissingValue]]:
    """Returns the reviewed permissions of service accounts, by component and namespace.

    Only operators, and other components that follow the cluster, need permissions. If the
    first review of an account fails, its other permissions are not reviewed.
    """
    permissions: dict[tuple[str, str], dict[Permission, bool | MissingValue]] = {}
    for component in COMPONENTS_WITH_PERMISSIONS:
        for deployment in with_component(deployments, component):
            if component != OPERATOR and not any(
                argument.startswith("--kube") for argument in arguments_of(deployment)
            ):
                continue
            needed = component_permissions(
                component,
                namespace_name(deployment),
                watched_namespaces(deployment),
                restarts_engines=restarts_engines(deployment),
                revocation_list=revocation_list(deployment),
            )
            space, account = namespace_name(deployment), service_account(deployment)
            reviews = permissions[component, space] = {
                needed[0]: await review_account_access(api, space, account, needed[0])
            }
            if not isinstance(reviews[needed[0]], MissingValue):
                rest = await asyncio.gather(*(review_account_access(api, space, account, one) for one in needed[1:]))
                reviews |= zip(needed[1:], rest, strict=True)
    return permissions


async def _secrets(
    api: KubeApi, deployments: Sequence[Manifest]
) -> dict[tuple[str, str], SecretSummary | MissingValue]:
    keys = dict.fromkeys(
        (reference.namespace, reference.name)
        for deployment in deployments
        for reference in secret_references(deployment)
    )
    return {(space, name): await value_or_missing(_entries(api, space, name)) for space, name in keys}


async def _entries(api: KubeApi, namespace: str, name: str) -> SecretSummary:
    """Returns the names of a Secret's entries and the expiry of its certificate, but no values."""
    data = (await api.get(SECRETS, namespace, name)).get("data") or {}
    expires = None
    if "tls.crt" in data:
        try:
            expires = certificate_expiry(base64.b64decode(data["tls.crt"], validate=True))
        except (binascii.Error, ValueError):
            expires = None
    return SecretSummary(frozenset(data), expires)


async def collect_references(api: KubeApi, models: Listing) -> dict[ModelReference, bool | MissingValue]:
    """Returns whether the Secrets and claims that models name exist; of _MAX_REFERENCES objects at
    most.
    """
    wanted = [
        reference
        for model in (() if isinstance(models, MissingValue) else models)
        if not is_deleting(model)
        for reference in model_references(model)
    ]
    objects = list(dict.fromkeys((one.resource, one.namespace, one.name) for one in wanted))[:_MAX_REFERENCES]
    answers = await asyncio.gather(*(value_or_missing(api.get(*one)) for one in objects))
    known = dict(zip(objects, answers, strict=True))
    return {
        one: _has_entry(known[one.resource, one.namespace, one.name], one.entry)
        for one in wanted
        if (one.resource, one.namespace, one.name) in known
    }


def _has_entry(answer: Manifest | MissingValue, entry: str) -> bool | MissingValue:
    if isinstance(answer, MissingValue):
        return False if answer.is_absent else answer
    return not entry or entry in (answer.get("data") or {})


async def _pod_reports(api: KubeApi, pods: Sequence[Manifest]) -> dict[str, Sequence[pod_http.PodReport]]:
    """Queries up to _MAX_QUERIED_PODS pods of each component concurrently; returns their answers by
    component.
    """
    queries = {
        GATEWAY: pod_http.query_gateway,
        OPERATOR: pod_http.query_component,
        INDEXER: pod_http.query_component,
        AUTOSCALER: pod_http.query_component,
    }
    pods_by_component = {
        name: [pod for pod in with_component(pods, name) if not is_deleting(pod)][:_MAX_QUERIED_PODS]
        for name in queries
    }
    reports = await asyncio.gather(
        *(query(api, pod) for name, query in queries.items() for pod in pods_by_component[name])
    )
    remaining = iter(reports)
    return {name: [next(remaining) for _ in pods_by_component[name]] for name in queries}


_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED = 0x30, 0xA0, 0x17, 0x18


def certificate_expiry(pem: bytes) -> float | None:
    """Returns ``notAfter`` of the first certificate of a PEM file as Unix time; None when none is
    readable.
    """
    match = _PEM.search(pem)
    if match is None:
        return None
    try:
        der = base64.b64decode(b"".join(match[1].split()), validate=True)
        tag, whole, _ = _element(der)
        inner, body, _ = _element(whole)
        if (tag, inner) != (_SEQUENCE, _SEQUENCE):
            return None
        tag_, _, remaining = _element(body)
        if tag_ == _VERSION:
            _, _, remaining = _element(remaining)
        for _ in range(2):  # signature, issuer
            _, _, remaining = _element(remaining)
        _, validity, _ = _element(remaining)
        _, _, not_after = _element(validity)
        tag_, text, _ = _element(not_after)
        return _time(tag_, text.decode("ascii"))
    except (ValueError, IndexError, binascii.Error):
        return None


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Returns tag, content and remaining bytes. Raises ValueError when the DER is cut off."""
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[2 : 2 + size], "big"), 2 + size
    if start + length > len(der):
        raise ValueError("the DER is cut off")
    return tag, der[start : start + length], der[start + length :]


def _time(kind: int, text: str) -> float | None:
    """Returns a time of DER tag ``kind`` as Unix time; None for an unknown tag. Raises ValueError
    for an invalid time.

    A UTCTime has a two-digit year: 50 to 99 are 1950 to 1999.
    """
    if kind == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif kind != _GENERALIZED:
        return None
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
