"""The parts of observed objects that the operator keeps. Pure.

Why: decoded, an object takes up to 25 times its bytes, and a namespace has any number of objects.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from fairlead.api.spec.pools import MAX_TEMPLATE_DEPTH, MAX_TEMPLATE_VALUES, MAX_TEMPLATES_VALUES, is_oversized
from fairlead.fleet.labels import (
    ENDPOINT_LABEL,
    FIELD_MANAGER,
    INSTALLATION_LABEL,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    POD_REVISION_LABEL,
    POOL_LABEL,
    RELEASE_NAMES_ANNOTATION,
    RENDER_PIN_ANNOTATION,
    ROLE_LABEL,
    SURGE_ANNOTATION,
    used_pod_annotations,
)
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, last_author, replicas_managers
from fairlead.kube.resources import (
    CONTROLLER_REVISIONS,
    Manifest,
    annotations_of,
    labels_of,
    metadata_of,
    selected_fields,
)
from fairlead_operator.object_metadata import (
    APPLIED_ANNOTATION,
    GROUP_INDEX_LABEL,
    GROUP_SET_LABEL,
    MODEL_REVISION_ANNOTATION,
    UNDO_ANNOTATION,
)
from fairlead_operator.scale_placeholder import REPLICAS_FIELD_ANNOTATION, trim_replicas

MAX_CHILD_VALUES: Final = 4 * MAX_TEMPLATE_VALUES
"""Values of a child that is kept whole: a template of the largest size, and what the API server
adds."""
_MAX_CHILD_DEPTH: Final = 80
_OVERSIZED: Final = {"spec": {"oversized": [None] * MAX_TEMPLATE_VALUES}}
"""A template that is as invalid as one that is too large."""
_MODEL_ANNOTATIONS: Final = frozenset({RELEASE_NAMES_ANNOTATION, UNDO_ANNOTATION, CHANGED_BY_ANNOTATION})
_MAX_AUTHOR_CHARS: Final = 200
_LABELS: Final = frozenset(
    {
        MANAGED_BY_LABEL,
        MODEL_LABEL,
        POOL_LABEL,
        ROLE_LABEL,
        INSTALLATION_LABEL,
        ENDPOINT_LABEL,
        POD_REVISION_LABEL,
        GROUP_SET_LABEL,
        GROUP_INDEX_LABEL,
    }
)
_CHILD_ANNOTATIONS: Final = frozenset(
    {APPLIED_ANNOTATION, MODEL_REVISION_ANNOTATION, POD_REVISION_LABEL, SURGE_ANNOTATION, RENDER_PIN_ANNOTATION}
)
_METADATA_FIELDS: Final = (
    *("name", "namespace", "uid", "resourceVersion", "generation"),
    *("creationTimestamp", "deletionTimestamp"),
)
_MAX_OWNERS: Final = 16
_OVERSIZED_MARK: Final = "fairleadOversized"


class PackedJson:
    """A JSON value as bytes, which take a twenty-fifth of its memory."""

    __slots__ = ("_bytes",)

    def __init__(self, value: Any) -> None:
        self._bytes = msgspec.json.encode(value)

    def unpack(self) -> Any:
        return msgspec.json.decode(self._bytes)


def trim_model(model: Manifest) -> Manifest:
    """Returns a model with bounded templates, and without labels, `managedFields` and annotations
    that are not used. The annotation of its last author is by `managedFields`, and so are the
    owners of its `replicas`.

    Why: these have any size, and take many times their bytes when they are decoded.
    """
    metadata, annotations = metadata_of(model), annotations_of(model)
    kept = {name: value for name, value in metadata.items() if name not in ("labels", "managedFields", "annotations")}
    is_whole = bool(metadata.get("managedFields"))
    names = _MODEL_ANNOTATIONS if is_whole else _MODEL_ANNOTATIONS | {REPLICAS_FIELD_ANNOTATION}
    used = {name: annotations[name] for name in names & annotations.keys()}
    if is_whole:
        used[CHANGED_BY_ANNOTATION] = last_author(model)[:_MAX_AUTHOR_CHARS]
    if used:
        kept["annotations"] = used
    trimmed = bound_templates({**model, "metadata": kept})
    return trim_replicas(model, trimmed) if is_whole and "pools" in (model.get("spec") or {}) else trimmed


def bound_templates(model: Manifest) -> Manifest:
    """Returns a model in which an invalid template takes the place of each that is too large.

    Why: decoded, a template takes up to 25 times its bytes, and so do the revisions that hold it.
    """
    pools = (model.get("spec") or {}).get("pools") or []
    specs = [(pool.get("template") or {}).get("spec") for pool in pools]
    too_many = is_oversized(specs, MAX_TEMPLATES_VALUES, MAX_TEMPLATE_DEPTH + 1)
    if not too_many and not any(map(is_oversized, specs)):
        return model
    bounded = [
        {**pool, "template": _OVERSIZED} if spec and (too_many or is_oversized(spec)) else pool
        for pool, spec in zip(pools, specs, strict=True)
    ]
    return {**model, "spec": {**model["spec"], "pools": bounded}}


def trim_pod(pod: Manifest) -> Manifest:
    """Returns a pod without its spec, and metadata that are not used."""
    metadata = {
        **selected_fields(metadata_of(pod), _METADATA_FIELDS),
        "labels": selected_fields(labels_of(pod), _LABELS),
        "annotations": used_pod_annotations(annotations_of(pod)),
    }
    return {**{name: pod[name] for name in pod if name != "spec"}, "metadata": metadata}


def trim_child(child: Manifest) -> Manifest:
    """Returns a child of a model as it is kept. Of a trimmed one it changes nothing.

    The data of a ControllerRevision is packed. An object that is larger than any child that the
    operator makes loses all but its owner, its counts and its status.
    """
    if is_too_large(child):
        return child
    if child.get("kind") == CONTROLLER_REVISIONS.kind:
        child = {name: value for name, value in child.items() if name != "data"} | _packed_data(child)
    if is_oversized(child, MAX_CHILD_VALUES, _MAX_CHILD_DEPTH):
        return _outline(child)
    return drop_own_managed_fields(child)


def revision_data(revision: Manifest) -> Mapping[str, Any]:
    """Returns the data of a ControllerRevision; empty if it has none."""
    data = revision.get("data")
    data = data.unpack() if isinstance(data, PackedJson) else data
    return data if isinstance(data, dict) else {}


def is_too_large(child: Manifest) -> bool:
    """Returns True if a child was too large to be kept, so that its fields are unknown."""
    return _OVERSIZED_MARK in child


def _packed_data(revision: Manifest) -> Manifest:
    data = revision.get("data")
    return {} if data is None else {"data": data if isinstance(data, PackedJson) else PackedJson(data)}


def _outline(child: Manifest) -> Manifest:
    metadata = selected_fields(metadata_of(child), _METADATA_FIELDS)
    owners = metadata_of(child).get("ownerReferences") or []
    metadata["ownerReferences"] = [owner for owner in owners if owner.get("controller")][:_MAX_OWNERS]
    metadata["labels"] = selected_fields(labels_of(child), _LABELS)
    metadata["annotations"] = selected_fields(annotations_of(child), _CHILD_ANNOTATIONS)
    fields: Manifest = {"f:spec": {"f:replicas": {}}}
    metadata["managedFields"] = [{"manager": name, "fieldsV1": fields} for name in replicas_managers(child)]
    outline = {"apiVersion": child.get("apiVersion"), "kind": child.get("kind"), "metadata": metadata}
    replicas = (child.get("spec") or {}).get("replicas")
    status = child.get("status") or {}
    outline["status"] = {} if is_oversized(status) else status
    return {**outline, "spec": {} if replicas is None else {"replicas": replicas}, _OVERSIZED_MARK: True}


def drop_own_managed_fields(manifest: Manifest) -> Manifest:
    """Returns the manifest without `managedFields`, unless other writers set fields.

    The writers of the status do not count as others.

    Why: `managedFields` are about half of an object.
    """
    entries = metadata_of(manifest).get("managedFields") or []
    if not entries:
        return manifest
    metadata = dict(metadata_of(manifest))
    if all(entry.get("manager") == FIELD_MANAGER or entry.get("subresource") == "status" for entry in entries):
        del metadata["managedFields"]
    return {**manifest, "metadata": metadata}
