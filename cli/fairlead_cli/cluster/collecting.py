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
from fairlead.api.crd import definition
from fairlead.api.kinds import kinds
from fairlead.api.v1alpha1 import GROUP
from fairlead.cluster_labels import MANAGED_BY, MANAGER, MODEL
from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.resource import (
    ACCELERATOR_CLASSES,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    EVENTS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    NETWORK_POLICIES,
    PODS,
    REVISIONS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Manifest,
    Resource,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead_cli.cluster import asking
from fairlead_cli.cluster.archive import Part
from fairlead_cli.cluster.facts import COMPONENT, GATEWAY, OURS, Facts, Some
from fairlead_cli.cluster.gathering import items
from fairlead_cli.cluster.judging.workloads import wanted_secrets
from fairlead_cli.cluster.missing import Missing, had
from fairlead_cli.cluster.reading import label, restarts, space, spec, status
from fairlead_cli.cluster.redact import Scrubber, manifest
from fairlead_cli.cluster.rights import COMPONENTS

LOG_BYTES: Final = 512 * 1024
LOG_LINES: Final = 2_000
_PODS: Final = 24
_OBJECTS: Final = 2_000
_NAMESPACES: Final = 64
_CHILDREN: Final = (
    *(DEPLOYMENTS, LEADER_WORKER_SETS, SERVICES, SERVICE_ACCOUNTS, DISRUPTION_BUDGETS, NETWORK_POLICIES, REVISIONS),
)
_OWN: Final = (DEPLOYMENTS, SERVICES, DISRUPTION_BUDGETS, NETWORK_POLICIES, PODS)


async def scrubber(api: KubeApi, facts: Facts) -> tuple[Scrubber, Missing | None]:
    """Knows what the control plane's own Secrets hold, so that it is found wherever it got to; else why it does not."""
    known: list[str] = []
    why: Missing | None = None
    deployments = () if isinstance(facts.deployments, Missing) else facts.deployments
    named = dict.fromkeys((one.namespace, one.name) for each in deployments for one in wanted_secrets(each))
    for namespace, name in named:
        found = await had(api.get(SECRETS, namespace, name))
        if isinstance(found, Missing):
            why = why or found
        else:
            known += values((found.get("data") or {}).values())
    return Scrubber(known), why


def values(encoded: Iterable[str]) -> Iterator[str]:
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


async def collect(api: KubeApi, facts: Facts, scrub: Scrubber) -> list[Part]:
    """Everything, the smallest and most telling first, so that a full bundle lacks what matters least."""
    fixed = [_json("versions.json", _versions(facts)), _json("crds.json", _definitions(facts), facts.definitions)]
    listed = await asyncio.gather(*(_listed(api, facts, *which) for which in _wanted()))
    objects = [_objects(path, found, scrub) for (path, _), found in zip(_named(), listed, strict=True)]
    events = await _events(api, facts, listed)
    pods = () if isinstance(facts.pods, Missing) else facts.pods[:_PODS]
    said = await asyncio.gather(*(_said(api, one, scrub) for one in pods))
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


async def _listed(api: KubeApi, facts: Facts, resource: Resource, labels: str | None) -> Some:
    """In all namespaces; who may not look there gets what is in that of the installation."""
    found = await items(api, resource, None, labels)
    if isinstance(found, Missing) and found.forbidden and resource.namespaced:
        return await items(api, resource, facts.place, labels)
    return found


def _wanted() -> Iterator[tuple[Resource, str | None]]:
    """For each of those: the kind, and the labels."""
    for path, resource in _named():
        if resource in (MODEL_DEPLOYMENTS, ACCELERATOR_CLASSES):
            labels = None
        elif path.startswith("control-plane"):
            labels = OURS
        else:
            labels = MODEL if resource is PODS else f"{MANAGED_BY}={MANAGER}"
        yield resource, labels


def _versions(facts: Facts) -> dict[str, Any]:
    deployments = () if isinstance(facts.deployments, Missing) else facts.deployments
    return {
        "command_line": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "kubernetes": facts.version,
        "components": {f"{space(one)}/{name_of(one)}": label(one, "app.kubernetes.io/version") for one in deployments},
        "images": sorted(
            {
                str(container.get("image"))
                for one in deployments
                for container in (spec(one).get("template") or {}).get("spec", {}).get("containers") or []
            }
        ),
    }


def _definitions(facts: Facts) -> list[dict[str, Any]]:
    """Of our CRDs what tells them apart; whole they are a hundred times as long."""
    ours = {f"{kind.plural}.{GROUP}": definition(kind) for kind in kinds()}
    found = () if isinstance(facts.definitions, Missing) else facts.definitions
    return [
        {
            "name": name_of(one),
            "created": metadata_of(one).get("creationTimestamp"),
            "generation": metadata_of(one).get("generation"),
            "stored": status(one).get("storedVersions"),
            "same_as_ours": spec(one).get("versions") == spec(ours[name_of(one)]).get("versions"),
        }
        for one in found
        if name_of(one) in ours
    ]


async def _events(api: KubeApi, facts: Facts, listed: Iterable[Some]) -> Some:
    """About objects that are ours, in the namespaces that have any."""
    known = {uid_of(one): space(one) for found in listed if not isinstance(found, Missing) for one in found}
    found: list[Manifest] = []
    for namespace in sorted({facts.place, *filter(None, known.values())})[:_NAMESPACES]:
        events = await items(api, EVENTS, namespace)
        if isinstance(events, Missing):
            return events
        found += [one for one in events if (one.get("regarding") or {}).get("uid") in known]
    return found


def _objects(path: str, found: Some, scrub: Scrubber) -> Part:
    if isinstance(found, Missing):
        return Part(path, found)
    return _json(path, [manifest(one, scrub) for one in found[:_OBJECTS]])


def _json(path: str, value: object, missing: object = None) -> Part:
    if isinstance(missing, Missing):
        return Part(path, missing)
    return Part(path, msgspec.json.format(msgspec.json.encode(value)))


async def _said(api: KubeApi, pod: Manifest, scrub: Scrubber) -> list[Part]:
    """What a gateway, an operator or an indexer says of itself."""
    component = label(pod, COMPONENT)
    if component not in COMPONENTS:
        return []
    where = ("manage", asking.GATEWAY_PORT) if component == GATEWAY else ("http", asking.PLAIN_PORT)
    port = asking.pod_port(pod, *where)
    parts: list[Part] = []
    for page in ("/readyz", "/metrics"):
        answer = await asking.page(api, pod, port, page)
        path = f"control-plane/{space(pod)}/{name_of(pod)}{page}.txt"
        if isinstance(answer, Missing):
            return [*parts, Part(path, answer)]  # the next page would wait as long for the same
        parts.append(Part(path, scrub.text(answer.body.decode("utf-8", "replace")).encode()))
    return parts


async def _logs(api: KubeApi, pod: Manifest, scrub: Scrubber) -> list[Part]:
    """The end of each container's log, and of the one before it where it was restarted. Engines' logs are not asked for."""
    parts = []
    for container in spec(pod).get("containers") or []:
        for previous in (False, True) if restarts(pod) else (False,):
            name = f"{container.get('name')}{'-before' if previous else ''}"
            path = f"control-plane/{space(pod)}/{name_of(pod)}/{name}.log"
            parts.append(Part(path, await _log(api, pod, str(container.get("name")), previous, scrub), end=True))
    return parts


async def _log(api: KubeApi, pod: Manifest, container: str, previous: bool, scrub: Scrubber) -> bytes | Missing:
    query = {"container": container, "tailLines": str(LOG_LINES), "limitBytes": str(LOG_BYTES)}
    query |= {"previous": "true"} if previous else {}
    try:
        answer = await api.raw(PODS.path(space(pod), name_of(pod), "log"), LOG_BYTES, 20.0, query=query)
    except FairleadError as error:
        return Missing(error.message)
    text = answer.body.decode("utf-8", "replace")
    if answer.status == 204:
        return Missing("there is no log yet")
    if answer.status != 200:
        return Missing(_refusal(text, answer.status), forbidden=answer.status == 403)
    return scrub.log(text).encode()


def _refusal(text: str, status_code: int) -> str:
    try:
        found = msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        found = None
    return (
        str(found["message"])
        if isinstance(found, dict) and found.get("message")
        else f"the API server answers {status_code}"
    )
