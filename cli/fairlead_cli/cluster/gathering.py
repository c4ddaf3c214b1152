"""Gathers the facts for the checks: reads, and asks; nothing is written but a dry run."""

import asyncio
import base64
import binascii
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fairlead.api.kinds import kinds
from fairlead.api.v1alpha1 import GROUP
from fairlead.clock import Clock
from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound
from fairlead.kube.resource import (
    ACCELERATOR_CLASSES,
    DEFINITIONS,
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
    leaving,
)
from fairlead_cli.cluster import asking
from fairlead_cli.cluster.certificate import ends_at
from fairlead_cli.cluster.facts import GATEWAY, INDEXER, OPERATOR, OURS, Facts, SecretFacts, Some, of_component
from fairlead_cli.cluster.judging.workloads import account, wanted_secrets, watched
from fairlead_cli.cluster.missing import Missing, had
from fairlead_cli.cluster.reading import arguments, space
from fairlead_cli.cluster.reviews import Right, may_account, may_we
from fairlead_cli.cluster.rights import COMPONENTS, of_account, to_check, to_install
from fairlead_cli.cluster.times import http_date
from fairlead_operator.leading import LEASE

DEFAULT_PLACE: Final = "fairlead"
_REFUSALS: Final = ("violates PodSecurity", "denied the request", "exceeded quota", "ValidatingAdmissionPolicy")
"""Words of admission: anything else that is said about the dry run is about us, not about the pod."""
_ASKED_PODS: Final = 16
"""Pods of a component that are asked; an installation has two or three."""


async def gather(api: KubeApi, version: str, clock: Clock, *, place: str | None, before: bool) -> Facts:
    """Everything that is judged. ``place`` is the namespace of the installation; without it, it is found by the chart's labels."""
    deployments, pods = await asyncio.gather(ours(api, DEPLOYMENTS, place), ours(api, PODS, place))
    there = place or _place(deployments)
    now, skew = await server_clock(api, clock)
    common = await _common(api, there)
    facts: dict[str, Any] = {
        "server": api.access.server,
        "found": api.access.found,
        "version": version,
        "now": now,
        "skew_seconds": skew,
        "place": there,
        "deployments": deployments,
        "pods": pods,
        **common,
    }
    wanted = [*to_check(there, before=before), *(to_install(there, common["place_exists"] is True) if before else [])]
    said = await asyncio.gather(*(may_we(api, one) for one in wanted))
    facts["rights"] = dict(zip(wanted, said, strict=True))
    facts |= await (_before(api, there) if before else _after(api, deployments, pods, there))
    return Facts(**facts)


async def ours(api: KubeApi, resource: Resource, place: str | None) -> Some:
    """Fairlead's objects of a kind: in one namespace, else in all, else where it is usually installed."""
    found = await items(api, resource, place, OURS)
    if place is None and isinstance(found, Missing) and found.forbidden:
        return await items(api, resource, DEFAULT_PLACE, OURS)
    return found


async def items(
    api: KubeApi,
    resource: Resource,
    namespace: str | None = None,
    labels: str | None = None,
    fields: str | None = None,
) -> Some:
    """A list, or why there is none. A kind that the cluster does not know is an absent one."""
    found = await had(api.list(resource, namespace, labels, fields=fields))
    return found if isinstance(found, Missing) else found.items


def _place(deployments: Some) -> str:
    """The namespace of the first operator, else of anything that is ours."""
    if isinstance(deployments, Missing) or not deployments:
        return DEFAULT_PLACE
    return space([*of_component(deployments, OPERATOR), *deployments][0])


async def server_clock(api: KubeApi, clock: Clock) -> tuple[float, float | None]:
    """The API server's time and how far ours is ahead; ours where it tells none. Its ``Date`` is cut to the second."""
    try:
        told = http_date((await api.raw("/version", 4_096, 5.0)).date)
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
        items(api, QUOTAS),
        items(api, ACCELERATOR_CLASSES),
        had(api.serves(LEADER_WORKER_SETS)),
        _exists(api, place),
        items(api, MODEL_DEPLOYMENTS),
    )
    if isinstance(models, Missing) and models.absent:
        models = ()  # without its CRD there is none
    return {
        "definitions": definitions,
        "quotas": quotas,
        "classes": classes,
        "leader_worker_sets": sets,
        "place_exists": exists,
        "models": models,
    }


async def _definitions(api: KubeApi) -> Some:
    """The CRDs of our names, one by one: all of a cluster's together are tens of megabytes."""
    asked = await asyncio.gather(*(had(api.get(DEFINITIONS, None, f"{kind.plural}.{GROUP}")) for kind in kinds()))
    refused = next((one for one in asked if isinstance(one, Missing) and not one.absent), None)
    return refused or [one for one in asked if not isinstance(one, Missing)]


async def _exists(api: KubeApi, place: str) -> bool | Missing:
    found = await had(api.get(NAMESPACES, None, place))
    if isinstance(found, Missing):
        return False if found.absent else found
    return True


# --- before an installation ---------------------------------------------------------------------------------------------


async def _before(api: KubeApi, place: str) -> dict[str, Any]:
    nodes, classes, trial = await asyncio.gather(
        items(api, NODES), items(api, STORAGE_CLASSES), had(_tried(api, place))
    )
    return {"nodes": nodes, "storage_classes": classes, "trial": trial}


async def _tried(api: KubeApi, place: str) -> str:
    """How admission takes a pod like the chart's, as a dry run; empty when it does. Raises what is no answer to that."""
    try:
        await api.apply(trial_pod(place), "fairlead-check", dry_run=True)
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


def trial_pod(place: str) -> Manifest:
    """What every pod of the chart has, for any user id; a test holds it to the chart."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "fairlead-check", "namespace": place},
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


async def _after(api: KubeApi, deployments: Some, pods: Some, place: str) -> dict[str, Any]:
    found = () if isinstance(deployments, Missing) else deployments
    places = list(dict.fromkeys(space(one) for one in found)) or [place]
    budgets, policies, leases, rights, secrets, told = await asyncio.gather(
        _inside(api, DISRUPTION_BUDGETS, places),
        _inside(api, NETWORK_POLICIES, places),
        _leases(api, places),
        _account_rights(api, found),
        _secrets(api, found),
        _told(api, () if isinstance(pods, Missing) else pods),
    )
    return {
        "budgets": budgets,
        "policies": policies,
        "leases": leases,
        "account_rights": rights,
        "secrets": secrets,
        "told": told,
    }


async def _inside(api: KubeApi, resource: Resource, places: Iterable[str]) -> Some:
    """Ours of a kind in these namespaces."""
    found: list[Manifest] = []
    for place in places:
        listed = await items(api, resource, place, OURS)
        if isinstance(listed, Missing):
            return listed
        found += listed
    return found


async def _leases(api: KubeApi, places: Iterable[str]) -> dict[str, Manifest | Missing]:
    return {place: await had(api.get(LEASES, place, LEASE)) for place in places}


async def _account_rights(
    api: KubeApi, deployments: Sequence[Manifest]
) -> dict[tuple[str, str], Mapping[Right, bool | Missing]]:
    """Of each operator, and of gateways and indexers that follow the cluster. The first refusal to tell ends the asking."""
    found: dict[tuple[str, str], Mapping[Right, bool | Missing]] = {}
    for component in COMPONENTS:
        for one in of_component(deployments, component):
            if component != OPERATOR and not any(word.startswith("--kube") for word in arguments(one)):
                continue
            wanted = of_account(component, space(one), watched(one))
            first = await may_account(api, space(one), account(one), wanted[0])
            if isinstance(first, Missing):
                found[component, space(one)] = {wanted[0]: first}
                continue
            rest = await asyncio.gather(*(may_account(api, space(one), account(one), right) for right in wanted[1:]))
            found[component, space(one)] = {wanted[0]: first, **dict(zip(wanted[1:], rest, strict=True))}
    return found


async def _secrets(api: KubeApi, deployments: Sequence[Manifest]) -> dict[tuple[str, str], SecretFacts | Missing]:
    named = dict.fromkeys((one.namespace, one.name) for deployment in deployments for one in wanted_secrets(deployment))
    return {(space, name): await had(_entries(api, space, name)) for space, name in named}


async def _entries(api: KubeApi, namespace: str, name: str) -> SecretFacts:
    """The names of a Secret's entries; what they hold is forgotten at once, but for when a certificate ends."""
    data = (await api.get(SECRETS, namespace, name)).get("data") or {}
    ends = None
    if "tls.crt" in data:
        try:
            ends = ends_at(base64.b64decode(data["tls.crt"], validate=True))
        except (binascii.Error, ValueError):
            ends = None
    return SecretFacts(frozenset(data), ends)


async def _told(api: KubeApi, pods: Sequence[Manifest]) -> dict[str, Sequence[asking.Told]]:
    """What our pods say, all asked at once."""
    asked = {GATEWAY: asking.gateway, OPERATOR: asking.plain, INDEXER: asking.plain}
    found = {name: [one for one in of_component(pods, name) if not leaving(one)][:_ASKED_PODS] for name in asked}
    said = await asyncio.gather(*(ask(api, one) for name, ask in asked.items() for one in found[name]))
    rest = iter(said)
    return {name: [next(rest) for _ in found[name]] for name in asked}
