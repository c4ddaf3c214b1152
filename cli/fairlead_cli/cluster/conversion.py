"""``fairlead convert --cluster``: writes all objects of a cluster in the words of this release.

The API server drops fields that the schema does not have. While objects are converted, the CRDs
that are installed therefore take any spec. The CRDs of this release replace them afterwards.
"""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any, Final

import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Conflict, Invalid, KubeError, NotFound
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    CUSTOM_RESOURCE_DEFINITIONS,
    MODEL_DEPLOYMENTS,
    Manifest,
    Resource,
    key_of,
    metadata_of,
    name_of,
    resource_of,
)
from fairlead.manifests.convert import Conversion, convert_document
from fairlead_cli.cluster.access.connection import connect, resolve_access
from fairlead_cli.console import terminal_text
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, report_failure
from fairlead_cli.manifest_conversion import object_problems
from fairlead_cli.target import ClusterOptions

FIELD_MANAGER: Final = "fairlead-convert"
_KINDS: Final = (ACCELERATOR_CLASSES, MODEL_DEPLOYMENTS)
_SCHEMA_SECONDS: Final = 30.0
"""Time that an API server may take to use a changed CRD."""
_OPEN_SPEC: Final = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_LAST_APPLIED_ANNOTATION: Final = "kubectl.kubernetes.io/last-applied-configuration"
_HIDDEN_FIELDS: Final = (
    "the CRDs were replaced before the objects were converted, and the API server hides their earlier fields "
    "(stop the operator, apply the CRDs of the earlier release again, then convert)"
)
_LOST_FIELDS: Final = (
    "its fields were lost: the object was written while the CRDs of another release hid them "
    "(replace it by your backup, or delete it, then convert)"
)
_NEXT_STEP: Final = (
    "now replace the CRDs (kubectl apply --server-side --force-conflicts -f crds/), then upgrade the chart"
)
_NEXT_STEP_OF_DRY_RUN: Final = "nothing was written: repeat the command without --dry-run before you replace the CRDs"


def convert_cluster(options: ClusterOptions, *, dry_run: bool) -> int:
    """Converts all objects of a cluster. Returns the exit code."""
    try:
        return asyncio.run(_convert(options, dry_run))
    except ClusterUnreachable as error:
        return report_failure("convert", error, UNREACHABLE)


async def _convert(options: ClusterOptions, dry_run: bool) -> int:
    async with connect(resolve_access(options)) as (api, _):
        return await convert_objects(api, dry_run=dry_run)


async def convert_objects(api: KubeApi, *, dry_run: bool) -> int:
    """Prints all changed objects, and writes them unless `dry_run`. Returns the exit code.

    When an object cannot be converted, only the problems are printed, and nothing is written.
    """
    objects = [item for resource in _KINDS for item in await _list_objects(api, resource)]
    conversions = [(item, convert_document(item)) for item in objects]
    is_lost = any(map(_is_pruned, objects)) and await _knows_earlier_fields(api)
    missing_fields = _LOST_FIELDS if is_lost else _HIDDEN_FIELDS
    problems = [
        f"{item['kind']} {_place(item)}: {problem}"
        for item, conversion in conversions
        for problem in ([missing_fields] if _is_pruned(item) else object_problems(conversion.document))
    ]
    if problems:
        print(*map(terminal_text, problems), sep="\n", file=sys.stderr)
        return PROBLEM
    changed = [(item, conversion) for item, conversion in conversions if conversion.changes]
    if changed:
        print(yaml.safe_dump_all([_printed(one.document) for _, one in changed], sort_keys=False), end="")
    for item, conversion in changed:
        for change in conversion.changes:
            print(terminal_text(f"{item['kind']} {_place(item)}: {change.describe()}"), file=sys.stderr)
    if changed and not dry_run:
        await _write(api, changed)
    count = f"{len(changed)} of {len(objects)} objects"
    if not changed:
        print(f"nothing to convert: {len(objects)} objects, all in the words of this release", file=sys.stderr)
    elif dry_run:
        print(f"{count} would be converted; {_NEXT_STEP_OF_DRY_RUN}", file=sys.stderr)
    else:
        print(f"{count} converted; {_NEXT_STEP}", file=sys.stderr)
    return OK


async def _list_objects(api: KubeApi, resource: Resource) -> list[Manifest]:
    """Returns all objects of a kind. Items of a list have no kind."""
    try:
        listed = await api.list(resource)
    except NotFound:
        return []
    return [{**item, "apiVersion": resource.api_version, "kind": resource.kind} for item in listed.items]


def _place(item: Manifest) -> str:
    return key_of(item) if resource_of(item).namespaced else name_of(item)


def _is_pruned(item: Manifest) -> bool:
    """Returns True for a model without a source of weights."""
    model = (item.get("spec") or {}).get("model") or {}
    return resource_of(item) is MODEL_DEPLOYMENTS and "uri" not in model and "source" not in model


async def _knows_earlier_fields(api: KubeApi) -> bool:
    """Returns True if the installed CRD of models shows the fields of the earlier release."""
    try:
        definition = await api.get(CUSTOM_RESOURCE_DEFINITIONS, None, _definition_name(MODEL_DEPLOYMENTS))
    except NotFound:
        return False
    specs = [version["schema"]["openAPIV3Schema"]["properties"]["spec"] for version in definition["spec"]["versions"]]
    return any(spec == _OPEN_SPEC or "source" in spec["properties"]["model"]["properties"] for spec in specs)


def _printed(document: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "namespace", "labels", "annotations")
    metadata = {name: value for name, value in metadata_of(dict(document)).items() if name in names}
    if "annotations" in metadata:
        metadata["annotations"] = {
            name: value for name, value in metadata["annotations"].items() if name != _LAST_APPLIED_ANNOTATION
        }
    return {name: document[name] for name in ("apiVersion", "kind")} | {"metadata": metadata, "spec": document["spec"]}


async def _write(api: KubeApi, changed: list[tuple[Manifest, Conversion]]) -> None:
    for resource in _KINDS:
        await _open_schema(api, resource)
    for item, conversion in changed:
        await _write_object(api, item, conversion.document["spec"])


def _definition_name(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}"


async def _open_schema(api: KubeApi, resource: Resource) -> None:
    """Lets the installed CRD take any spec; does nothing without a CRD."""
    name = _definition_name(resource)
    try:
        definition = await api.get(CUSTOM_RESOURCE_DEFINITIONS, None, name)
    except NotFound:
        return
    versions = definition["spec"]["versions"]
    for version in versions:
        version["schema"]["openAPIV3Schema"]["properties"]["spec"] = _OPEN_SPEC
    patch = {
        "metadata": {"resourceVersion": metadata_of(definition)["resourceVersion"]},
        "spec": {"versions": versions},
    }
    await api.patch_merge(CUSTOM_RESOURCE_DEFINITIONS, None, name, patch, FIELD_MANAGER)


async def _write_object(api: KubeApi, item: Manifest, spec: Mapping[str, Any]) -> None:
    """Writes one spec. Retries for up to _SCHEMA_SECONDS while the API server uses the earlier
    schema, and when the object was written meanwhile.

    Raises KubeError.
    """
    manager, applies = _spec_manager(item)
    loop = asyncio.get_running_loop()
    end = loop.time() + _SCHEMA_SECONDS
    while True:
        try:
            if applies:
                item = await api.apply(_applied(item, spec), manager)
            if item["spec"] != spec:  # an apply drops nulls, and defaults of the earlier schema have no owner
                await api.replace({**item, "spec": dict(spec)}, FIELD_MANAGER if applies else manager)
            return
        except Conflict:
            if loop.time() > end:
                raise
            item, spec = await _read_again(api, item, spec)
            continue
        except KubeError as error:
            if not _is_schema_error(error) or loop.time() > end:
                raise
        await asyncio.sleep(0.5)


async def _read_again(api: KubeApi, item: Manifest, spec: Mapping[str, Any]) -> tuple[Manifest, Mapping[str, Any]]:
    """Returns the object as it is now, and the spec to write: another one if its spec was changed.

    Why: operator and autoscaler write statuses meanwhile.
    """
    namespace = metadata_of(item).get("namespace")
    found = await api.get(resource_of(item), namespace, name_of(item))
    if found["spec"] != item["spec"]:
        spec = convert_document(found).document["spec"]
    return found, spec


def _spec_manager(item: Manifest) -> tuple[str, bool]:
    """Returns the field manager that wrote the spec, and True if it used server-side apply.

    Why: a manager of our own would keep fields that their owner removes later.
    """
    entries = metadata_of(item).get("managedFields") or []
    owners = [entry for entry in entries if "f:spec" in (entry.get("fieldsV1") or {}) and not entry.get("subresource")]
    applied = [entry for entry in owners if entry.get("operation") == "Apply"]
    for entry in (*applied, *owners):
        if {"f:model", "f:profile"} & set(entry["fieldsV1"]["f:spec"]):
            return str(entry["manager"]), entry.get("operation") == "Apply"
    return FIELD_MANAGER, False


def _applied(item: Manifest, spec: Mapping[str, Any]) -> Manifest:
    names = ("name", "namespace", "resourceVersion")
    metadata = {name: value for name, value in metadata_of(item).items() if name in names}
    for name in ("labels", "annotations"):
        values = metadata_of(item).get(name) or {}
        if kept := {key: value for key, value in values.items() if key != _LAST_APPLIED_ANNOTATION}:
            metadata[name] = kept
    return {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata, "spec": dict(spec)}


def _is_schema_error(error: KubeError) -> bool:
    return isinstance(error, Invalid) or "unknown field" in error.message
