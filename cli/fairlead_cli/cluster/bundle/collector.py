"""What goes into a support bundle, read from the cluster and redacted on the way: nothing unredacted is kept longer than it takes."""

import asyncio
import base64
import binascii
import platform
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from fairlead import __version__
from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import GROUP
from fairlead.errors import FairleadError
from fairlead.fleet.labels import FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    EVENTS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    NETWORK_POLICIES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Manifest,
    Resource,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.access.permissions import COMPONENTS_WITH_PERMISSIONS
from fairlead_cli.cluster.bundle.archive import BundlePart
from fairlead_cli.cluster.bundle.redaction import Scrubber, redact_manifest
from fairlead_cli.cluster.components import COMPONENT_LABEL, GATEWAY, OWN_OBJECTS, secret_references
from fairlead_cli.cluster.facts import ClusterFacts, Listing
from fairlead_cli.cluster.facts_collector import list_objects
from fairlead_cli.cluster.missing_value import MissingValue, value_or_missing
from fairlead_cli.cluster.object_fields import label_of, namespace_name, restart_count, spec_of, status_of

MAX_LOG_BYTES: Final = 512 * 1024
MAX_LOG_LINES: Final = 2_000
_MAX_PODS: Final = 24
_MAX_OBJECTS: Final = 2_000
_MAX_NAMESPACES: Final = 64
_CHILDREN: Final = (
    *(
        DEPLOYMENTS,
        LEADER_WORKER_SETS,
        SERVICES,
        SERVICE_ACCOUNTS,
        DISRUPTION_BUDGETS,
        NETWORK_POLICIES,
        CONTROLLER_REVISIONS,
    ),
)
_OWN: Final = (DEPLOYMENTS, SERVICES, DISRUPTION_BUDGETS, NETWORK_POLICIES, PODS)


async def build_scrubber(api: KubeApi, facts: ClusterFacts) -> tuple[Scrubber, MissingValue | None]:
    """Knows what the control plane's own Secrets hold, so that it is found wherever it got to; else why it does not."""
    known: list[str] = []
    why: MissingValue | None = None
    deployments = () if isinstance(facts.deployments, MissingValue) else facts.deployments
    named = dict.fromkeys((one.namespace, one.name) for each in deployments for one in secret_references(each))
    for namespace, name in named:
        found = await value_or_missing(api.get(SECRETS, namespace, name))
        if isinstance(found, MissingValue):
            why = why or found
        else:
            known += secret_spellings((found.get("data") or {}).values())
    return Scrubber(known), why


def secret_spellings(encoded: Iterable[str]) -> Iterator[str]:
    """What a Secret's entries may look like elsewhere: as they are, in base64, and the password of a URL. Lines of files too."""
    for one in encoded:
        yield one
        try:
            text = base64.b64decode(one, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            continue
        yield text.strip()
        if "\n" in text.strip():
            yield from (word for line in text.splitlines() for word in line.split() if len(word) >= 24)
        try:
            password = urlsplit(text.strip()).password
        except ValueError:
            password = None
        if password:
            yield password


async def collect_parts(api: KubeApi, facts: ClusterFacts, scrub: Scrubber) -> list[BundlePart]:
    """Everything, the smallest and most telling first, so that a full bundle lacks what matters least."""
    fixed = [_json("versions.json", _versions(facts)), _json("crds.json", _definitions(facts), facts.definitions)]
    listed = await asyncio.gather(*(_listed(api, facts, *which) for which in _wanted()))
    objects = [_objects(path, found, scrub) for (path, _), found in zip(_named(), listed, strict=True)]
    events = await _events(api, facts, listed)
    pods = () if isinstance(facts.pods, MissingValue) else facts.pods[:_MAX_PODS]
    said = await asyncio.gather(*(_pod_pages(api, one, scrub) for one in pods))
    logs = await asyncio.gather(*(_logs(api, one, scrub) for one in pods))
    return [
        *fixed,
        *objects,
        _objects("objects/quotas.json", facts.quotas, scrub),
        _objects("objects/events.json", events, scrub),
        *(part for group in said for part in group),
        *(part for group in logs for part in group),
    ]


def _named() -> list[tuple[str, Resource]]:
    own = [(f"control-plane/{one.plural}.json", one) for one in _OWN]
    models = [
        ("models/modeldeployments.json", MODEL_DEPLOYMENTS),
        ("models/acceleratorclasses.json", ACCELERATOR_CLASSES),
    ]
    children = [(f"models/{one.plural}.json", one) for one in (*_CHILDREN, PODS)]
    return [*models, *own, *children]


async def _listed(api: KubeApi, facts: ClusterFacts, resource: Resource, labels: str | None) -> Listing:
    """In all namespaces; who may not look there gets what is in that of the installation."""
    found = await list_objects(api, resource, None, labels)
    if isinstance(found, MissingValue) and found.is_forbidden and resource.namespaced:
        return await list_objects(api, resource, facts.place, labels)
    return found


def _wanted() -> Iterator[tuple[Resource, str | None]]:
    """For each of those: the kind, and the labels."""
    for path, resource in _named():
        if resource in (MODEL_DEPLOYMENTS, ACCELERATOR_CLASSES):
            labels = None
        elif path.startswith("control-plane"):
            labels = OWN_OBJECTS
        else:
            labels = MODEL_LABEL if resource is PODS else f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
        yield resource, labels


def _versions(facts: ClusterFacts) -> dict[str, Any]:
    deployments = () if isinstance(facts.deployments, MissingValue) else facts.deployments
    return {
        "command_line": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "kubernetes": facts.version,
        "components": {
            f"{namespace_name(one)}/{name_of(one)}": label_of(one, "app.kubernetes.io/version") for one in deployments
        },
        "images": sorted(
            {
                str(container.get("image"))
                for one in deployments
                for container in (spec_of(one).get("template") or {}).get("spec", {}).get("containers") or []
            }
        ),
    }


def _definitions(facts: ClusterFacts) -> list[dict[str, Any]]:
    """Of our CRDs what tells them apart; whole they are a hundred times as long."""
    ours = {f"{kind.plural}.{GROUP}": crd_manifest(kind) for kind in served_kinds()}
    found = () if isinstance(facts.definitions, MissingValue) else facts.definitions
    return [
        {
            "name": name_of(one),
            "created": metadata_of(one).get("creationTimestamp"),
            "generation": metadata_of(one).get("generation"),
            "stored": status_of(one).get("storedVersions"),
            "same_as_ours": spec_of(one).get("versions") == spec_of(ours[name_of(one)]).get("versions"),
        }
        for one in found
        if name_of(one) in ours
    ]


async def _events(api: KubeApi, facts: ClusterFacts, listed: Iterable[Listing]) -> Listing:
    """About objects that are ours, in the namespaces that have any."""
    known = {
        uid_of(one): namespace_name(one) for found in listed if not isinstance(found, MissingValue) for one in found
    }
    found: list[Manifest] = []
    for namespace in sorted({facts.place, *filter(None, known.values())})[:_MAX_NAMESPACES]:
        events = await list_objects(api, EVENTS, namespace)
        if isinstance(events, MissingValue):
            return events
        found += [one for one in events if (one.get("regarding") or {}).get("uid") in known]
    return found


def _objects(path: str, found: Listing, scrub: Scrubber) -> BundlePart:
    if isinstance(found, MissingValue):
        return BundlePart(path, found)
    return _json(path, [redact_manifest(one, scrub) for one in found[:_MAX_OBJECTS]])


def _json(path: str, value: object, missing: object = None) -> BundlePart:
    if isinstance(missing, MissingValue):
        return BundlePart(path, missing)
    return BundlePart(path, msgspec.json.format(msgspec.json.encode(value)))


async def _pod_pages(api: KubeApi, pod: Manifest, scrub: Scrubber) -> list[BundlePart]:
    """What a gateway, an operator or an indexer says of itself."""
    component = label_of(pod, COMPONENT_LABEL)
    if component not in COMPONENTS_WITH_PERMISSIONS:
        return []
    where = ("manage", pod_http.GATEWAY_PORT) if component == GATEWAY else ("http", pod_http.HTTP_PORT)
    port = pod_http.pod_port(pod, *where)
    parts: list[BundlePart] = []
    for page in ("/readyz", "/metrics"):
        answer = await pod_http.get_page(api, pod, port, page)
        path = f"control-plane/{namespace_name(pod)}/{name_of(pod)}{page}.txt"
        if isinstance(answer, MissingValue):
            return [*parts, BundlePart(path, answer)]  # the next page would wait as long for the same
        parts.append(BundlePart(path, scrub.scrub_text(answer.body.decode("utf-8", "replace")).encode()))
    return parts


async def _logs(api: KubeApi, pod: Manifest, scrub: Scrubber) -> list[BundlePart]:
    """The end of each container's log, and of the one before it where it was restarted. Engines' logs are not asked for."""
    parts = []
    for container in spec_of(pod).get("containers") or []:
        for previous in (False, True) if restart_count(pod) else (False,):
            name = f"{container.get('name')}{'-before' if previous else ''}"
            path = f"control-plane/{namespace_name(pod)}/{name_of(pod)}/{name}.log"
            parts.append(
                BundlePart(path, await _log(api, pod, str(container.get("name")), previous, scrub), keep_end=True)
            )
    return parts


async def _log(api: KubeApi, pod: Manifest, container: str, previous: bool, scrub: Scrubber) -> bytes | MissingValue:
    query = {"container": container, "tailLines": str(MAX_LOG_LINES), "limitBytes": str(MAX_LOG_BYTES)}
    query |= {"previous": "true"} if previous else {}
    try:
        answer = await api.get_raw(
            PODS.path(namespace_name(pod), name_of(pod), "log"), MAX_LOG_BYTES, 20.0, query=query
        )
    except FairleadError as error:
        return MissingValue(error.message)
    text = answer.body.decode("utf-8", "replace")
    if answer.status == 204:
        return MissingValue("there is no log yet")
    if answer.status != 200:
        return MissingValue(_error_message(text, answer.status), is_forbidden=answer.status == 403)
    return scrub.scrub_log(text).encode()


def _error_message(text: str, status_code: int) -> str:
    try:
        found = msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        found = None
    return (
        str(found["message"])
        if isinstance(found, dict) and found.get("message")
        else f"the API server answers {status_code}"
    )
