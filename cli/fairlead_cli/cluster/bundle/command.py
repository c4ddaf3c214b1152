"""``fairlead support-bundle``: a redacted archive of an installation, for support."""

import asyncio
import base64
import binascii
import gzip
import io
import os
import platform
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
from cyclopts import Parameter

from fairlead import __version__
from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import GROUP
from fairlead.errors import BadInput, FairleadError
from fairlead.fleet.labels import FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL
from fairlead.kube import resources as kube
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import Manifest, Resource, metadata_of, name_of, uid_of
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli import formatting
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.access.connection import connect, resolve_access
from fairlead_cli.cluster.access.permissions import COMPONENTS_WITH_PERMISSIONS
from fairlead_cli.cluster.bundle.redaction import Scrubber, redact_manifest
from fairlead_cli.cluster.checks.check import CheckResult
from fairlead_cli.cluster.checks.command import render_lines, to_plain
from fairlead_cli.cluster.checks.runner import run_checks
from fairlead_cli.cluster.components import COMPONENT_LABEL, GATEWAY, OWN_OBJECTS, secret_references
from fairlead_cli.cluster.facts import ClusterFacts, Listing
from fairlead_cli.cluster.facts_collector import collect_facts, list_objects
from fairlead_cli.cluster.object_fields import (
    MissingValue,
    label_of,
    namespace_name,
    pod_spec_of,
    restart_count,
    spec_of,
    status_of,
    value_or_missing,
)
from fairlead_cli.console import terminal_text
from fairlead_cli.exit_codes import OK, UNREACHABLE, ClusterUnreachable, report_failure
from fairlead_cli.target import ClusterOptions, InstallationOptions

MANIFEST_NAME: Final = "manifest.json"

_SHOWN: Final = 5

_DEFAULTS = InstallationOptions()

MAX_LOG_BYTES: Final = 512 * 1024
MAX_LOG_LINES: Final = 2_000
_MAX_PODS: Final = 24
_MAX_OBJECTS: Final = 2_000
_MAX_NAMESPACES: Final = 64
_CHILDREN: Final = (
    *(kube.DEPLOYMENTS, kube.LEADER_WORKER_SETS, kube.SERVICES, kube.SERVICE_ACCOUNTS, kube.DISRUPTION_BUDGETS),
    *(kube.NETWORK_POLICIES, kube.CONTROLLER_REVISIONS),
)
_OWN: Final = (kube.DEPLOYMENTS, kube.SERVICES, kube.DISRUPTION_BUDGETS, kube.NETWORK_POLICIES, kube.PODS)


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """Size limits of a bundle before compression: of each part and of all parts together."""

    part_bytes: int = 2 * 1024 * 1024
    total_bytes: int = 48 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BundlePart:
    """One file, or why it is missing. ``keep_end``: cut the beginning of a long file (a log), not
    its end.
    """

    path: str
    content: bytes | MissingValue
    keep_end: bool = False


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """Files of the archive, and the manifest that lists them."""

    files: tuple[tuple[str, bytes], ...]
    manifest: dict[str, Any]


def pack(parts: Sequence[BundlePart], about: dict[str, Any], bounds: BundleLimits | None = None) -> PackedBundle:
    """Returns the files that fit, in order, and the manifest with the reason for each missing part.
    Files longer than ``part_bytes`` are cut.

    Pure. about: fields that the manifest begins with.
    """
    bounds = bounds or BundleLimits()
    files: list[tuple[str, bytes]] = []
    listed: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    remaining_bytes = bounds.total_bytes
    for part in parts:
        if isinstance(part.content, MissingValue):
            missing.append({"path": part.path, "why": part.content.reason})
            continue
        content = part.content
        if len(content) > bounds.part_bytes:
            content = content[-bounds.part_bytes :] if part.keep_end else content[: bounds.part_bytes]
        if len(content) > remaining_bytes:
            missing.append({"path": part.path, "why": f"the bundle is full ({bounds.total_bytes} bytes)"})
            continue
        remaining_bytes -= len(content)
        files.append((part.path, content))
        cut_bytes = len(part.content) - len(content)
        listed.append({"path": part.path, "bytes": len(content), **({"bytes_cut": cut_bytes} if cut_bytes else {})})
    manifest = {**about, "files": listed, "missing": missing}
    return PackedBundle(tuple(files), manifest)


def write_archive(packed: PackedBundle, target: Path, folder: str, now: float) -> int:
    """Writes the archive for its owner only and returns its size. It appears whole or not at all.
    Raises OSError.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    manifest = msgspec.json.format(msgspec.json.encode(packed.manifest))
    try:
        with (
            os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=int(now)) as packing,
            tarfile.open(fileobj=packing, mode="w") as tar,
        ):
            for path, content in ((MANIFEST_NAME, manifest), *packed.files):
                entry = tarfile.TarInfo(f"{folder}/{path}")
                entry.size, entry.mtime, entry.mode = len(content), int(now), 0o600
                tar.addfile(entry, io.BytesIO(content))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target.stat().st_size


def support_bundle(
    *,
    out: Annotated[
        Path | None, Parameter(help="The file, or a folder for it. Default: one named by the time, here.")
    ] = None,
    installation: Annotated[InstallationOptions, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Write a redacted archive of what Fairlead has in a cluster.

    It holds the result of `fairlead check`, versions, models and their objects, pods and events. It
    also holds the end of the control plane's logs, and the pages of gateways and operators. A
    manifest lists the content, and what is missing and why.

    It does not hold values of Secrets and environment variables, API keys, prompts, or logs of
    engines.

    Exits 0 when it was written, 2 on wrong usage, 3 when no API server can be reached.
    """
    clock = SystemClock()
    name = f"fairlead-support-{datetime.fromtimestamp(clock.wall(), UTC):%Y%m%dT%H%M%SZ}"
    path = out or Path(f"{name}.tar.gz")
    if path.is_dir():
        path = path / f"{name}.tar.gz"
    if path.exists():
        raise BadInput(f"{path} already exists", field="--out", hint="name another file, or remove it")
    try:
        packed = asyncio.run(_build(installation.cluster, clock))
    except ClusterUnreachable as error:
        return report_failure(error, UNREACHABLE)
    size = write_archive(packed, path, name, clock.wall())
    print(path)
    _print_summary(packed, size)
    return OK


async def _build(way: ClusterOptions, clock: Clock) -> PackedBundle:
    async with connect(resolve_access(way)) as (api, version):
        return await build_bundle(api, version, clock, way.install_namespace)


async def build_bundle(api: KubeApi, version: str, clock: Clock, namespace: str | None) -> PackedBundle:
    """Returns the content of the archive."""
    facts = await collect_facts(api, version, clock, namespace=namespace, before_install=False)
    scrub, secrets_problem = await build_scrubber(api, facts)
    results = run_checks(facts)
    about: dict[str, Any] = {
        "made_by": f"fairlead {__version__}",
        "at": f"{datetime.fromtimestamp(facts.now, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "cluster": scrub.scrub_text(facts.server),
        "redacted": "values of Secrets, environment variables, foreign labels and annotations, long arguments, and lines that may "
        "hold a prompt; engines' logs are not in here",
        "secrets_known": f"no: {secrets_problem.reason}; only what has the form of a secret was taken out of texts"
        if secrets_problem
        else "yes",
    }
    return pack([*_checks(results, scrub), *await collect_parts(api, facts, scrub)], about)


def _checks(results: tuple[CheckResult, ...], scrub: Scrubber) -> list[BundlePart]:
    text = io.StringIO()
    for line in render_lines(results):
        text.write(f"{line.plain}\n")
    plain = msgspec.json.format(msgspec.json.encode(scrub.scrub_value(to_plain(results, before_install=False))))
    return [BundlePart("check.txt", scrub.scrub_text(text.getvalue()).encode()), BundlePart("check.json", plain)]


def _print_summary(packed: PackedBundle, size: int) -> None:
    """Prints a summary to stderr, so that a script can read the path from stdout."""
    missing = packed.manifest["missing"]
    print(
        f"{formatting.pluralize(len(packed.files) + 1, 'file')}, {formatting.format_count(size)}B; look "
        f"through it before you send it",
        file=sys.stderr,
    )
    for entry in missing[:_SHOWN]:
        print(terminal_text(f"not in it: {entry['path']}: {entry['why']}"), file=sys.stderr)
    if len(missing) > _SHOWN:
        print(f"and {len(missing) - _SHOWN} more, which its manifest.json lists", file=sys.stderr)


async def build_scrubber(api: KubeApi, facts: ClusterFacts) -> tuple[Scrubber, MissingValue | None]:
    """Returns a scrubber of the values in the control plane's Secrets.

    The second part is None, or why a Secret could not be read.
    """
    secret_texts: list[str] = []
    problem: MissingValue | None = None
    deployments = () if isinstance(facts.deployments, MissingValue) else facts.deployments
    keys = dict.fromkeys(
        (reference.namespace, reference.name)
        for deployment in deployments
        for reference in secret_references(deployment)
    )
    for namespace, name in keys:
        secret = await value_or_missing(api.get(kube.SECRETS, namespace, name))
        if isinstance(secret, MissingValue):
            problem = problem or secret
        else:
            secret_texts += secret_spellings((secret.get("data") or {}).values())
    return Scrubber(secret_texts), problem


def secret_spellings(encoded: Iterable[str]) -> Iterator[str]:
    """Yields the forms in which a Secret's value may appear: plain, base64, long words of its
    lines, the password of a URL.
    """
    for value in encoded:
        yield value
        try:
            text = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            continue
        yield text.strip()
        if "\n" in text.strip():
            yield from (token for line in text.splitlines() for token in line.split() if len(token) >= 24)
        try:
            password = urlsplit(text.strip()).password
        except ValueError:
            password = None
        if password:
            yield password


async def collect_parts(api: KubeApi, facts: ClusterFacts, scrub: Scrubber) -> list[BundlePart]:
    """Returns all parts, the smallest and most informative first, so that a full bundle lacks the
    least.
    """
    fixed = [_json("versions.json", _versions(facts)), _json("crds.json", _definitions(facts), facts.crds)]
    wanted = list(_wanted())
    listed = await asyncio.gather(*(_listed(api, facts, resource, labels) for _, resource, labels in wanted))
    objects = [_objects(path, found, scrub) for (path, *_), found in zip(wanted, listed, strict=True)]
    events = await _events(api, facts, listed)
    pods = () if isinstance(facts.pods, MissingValue) else facts.pods[:_MAX_PODS]
    pages = await asyncio.gather(*(_pod_pages(api, pod, scrub) for pod in pods))
    logs = await asyncio.gather(*(_logs(api, pod, scrub) for pod in pods))
    return [
        *fixed,
        *objects,
        _objects("objects/quotas.json", facts.quotas, scrub),
        _objects("objects/events.json", events, scrub),
        *(part for group in pages for part in group),
        *(part for group in logs for part in group),
    ]


async def _listed(api: KubeApi, facts: ClusterFacts, resource: Resource, labels: str | None) -> Listing:
    """Returns the objects of all namespaces, or of the installation's when the user may list no
    others.
    """
    objects = await list_objects(api, resource, None, labels)
    if isinstance(objects, MissingValue) and objects.is_forbidden and resource.namespaced:
        return await list_objects(api, resource, facts.install_namespace, labels)
    return objects


def _wanted() -> Iterator[tuple[str, Resource, str | None]]:
    """Yields the path of each file, the kind of its objects, and their label selector (None for
    all).
    """
    yield "models/modeldeployments.json", kube.MODEL_DEPLOYMENTS, None
    yield "models/acceleratorclasses.json", kube.ACCELERATOR_CLASSES, None
    for resource in _OWN:
        yield f"control-plane/{resource.plural}.json", resource, OWN_OBJECTS
    for resource in (*_CHILDREN, kube.PODS):
        labels = MODEL_LABEL if resource is kube.PODS else f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
        yield f"models/{resource.plural}.json", resource, labels


def _versions(facts: ClusterFacts) -> dict[str, Any]:
    deployments = () if isinstance(facts.deployments, MissingValue) else facts.deployments
    return {
        "command_line": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "kubernetes": facts.version,
        "components": {
            f"{namespace_name(deployment)}/{name_of(deployment)}": label_of(deployment, "app.kubernetes.io/version")
            for deployment in deployments
        },
        "images": sorted(
            {
                str(container.get("image"))
                for deployment in deployments
                for container in pod_spec_of(deployment).get("containers") or []
            }
        ),
    }


def _definitions(facts: ClusterFacts) -> list[dict[str, Any]]:
    """Returns a summary of each Fairlead CRD; the whole CRDs are a hundred times as long."""
    ours = {f"{kind.plural}.{GROUP}": crd_manifest(kind) for kind in served_kinds()}
    crds = () if isinstance(facts.crds, MissingValue) else facts.crds
    return [
        {
            "name": name_of(crd),
            "created": metadata_of(crd).get("creationTimestamp"),
            "generation": metadata_of(crd).get("generation"),
            "stored": status_of(crd).get("storedVersions"),
            "same_as_ours": spec_of(crd).get("versions") == spec_of(ours[name_of(crd)]).get("versions"),
        }
        for crd in crds
        if name_of(crd) in ours
    ]


async def _events(api: KubeApi, facts: ClusterFacts, listed: Iterable[Listing]) -> Listing:
    """Returns the events about the listed objects, from the first ``_MAX_NAMESPACES`` of their
    namespaces.
    """
    known = {
        uid_of(object_): namespace_name(object_)
        for events_ in listed
        if not isinstance(events_, MissingValue)
        for object_ in events_
    }
    events_: list[Manifest] = []
    for namespace in sorted({facts.install_namespace, *filter(None, known.values())})[:_MAX_NAMESPACES]:
        events = await list_objects(api, kube.EVENTS, namespace)
        if isinstance(events, MissingValue):
            return events
        events_ += [object_ for object_ in events if (object_.get("regarding") or {}).get("uid") in known]
    return events_


def _objects(path: str, objects: Listing, scrub: Scrubber) -> BundlePart:
    if isinstance(objects, MissingValue):
        return BundlePart(path, objects)
    return _json(path, [redact_manifest(object_, scrub) for object_ in objects[:_MAX_OBJECTS]])


def _json(path: str, value: object, missing: object = None) -> BundlePart:
    if isinstance(missing, MissingValue):
        return BundlePart(path, missing)
    return BundlePart(path, msgspec.json.format(msgspec.json.encode(value)))


async def _pod_pages(api: KubeApi, pod: Manifest, scrub: Scrubber) -> list[BundlePart]:
    """Returns ``/readyz`` and ``/metrics`` of a component that has permissions; else nothing."""
    component = label_of(pod, COMPONENT_LABEL)
    if component not in COMPONENTS_WITH_PERMISSIONS:
        return []
    port_name = ("manage", pod_http.GATEWAY_PORT) if component == GATEWAY else ("http", pod_http.HTTP_PORT)
    port = pod_http.pod_port(pod, *port_name)
    parts: list[BundlePart] = []
    pages = ("/readyz", "/metrics")
    for page, answer in zip(pages, await pod_http.get_pages(api, pod, port, pages), strict=True):
        path = f"control-plane/{namespace_name(pod)}/{name_of(pod)}{page}.txt"
        if isinstance(answer, MissingValue):
            return [*parts, BundlePart(path, answer)]
        parts.append(BundlePart(path, scrub.scrub_text(answer.body.decode("utf-8", "replace")).encode()))
    return parts


async def _logs(api: KubeApi, pod: Manifest, scrub: Scrubber) -> list[BundlePart]:
    """Returns the end of each container's log of a control plane pod, and of the previous log after
    a restart.

    Logs of engines are never read.
    """
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
            kube.PODS.path(namespace_name(pod), name_of(pod), "log"), MAX_LOG_BYTES, 20.0, query=query
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
        error = msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        error = None
    return (
        str(error["message"])
        if isinstance(error, dict) and error.get("message")
        else f"the API server answers {status_code}"
    )
