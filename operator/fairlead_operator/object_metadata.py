"""Labels, annotations and owner references of the objects that the operator creates.

Objects are found by labels, never by names. An object is a child of a model if it has the model's
label **and** is owned by the model's uid.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from fairlead.api.v1alpha1 import API_VERSION
from fairlead.fleet.labels import (
    CANARY_POOL_SUFFIX,
    FIELD_MANAGER,
    INSTALLATION_LABEL,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    POOL_LABEL,
)
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION
from fairlead.kube.resources import (
    MODEL_DEPLOYMENTS,
    Manifest,
    annotations_of,
    is_deleting,
    labels_of,
    metadata_of,
    name_of,
    namespace_of,
    uid_of,
)

STATUS_FIELD_MANAGER = "fairlead-operator"
"""The field manager of our part of `status`; the autoscaler writes another part. Children have
`FIELD_MANAGER`.
"""
APPLIED_ANNOTATION = "fairlead.io/applied"
"""On children: hash of the manifest that was applied."""
MODEL_REVISION_ANNOTATION = "fairlead.io/model-revision"
"""On workloads and ControllerRevisions: hash of the model's spec that they were made from."""
UNDO_ANNOTATION = "fairlead.io/run-revision"
"""On a model, set by people: run this earlier revision instead of `spec`."""
GROUP_SET_LABEL = "leaderworkerset.sigs.k8s.io/name"
"""On a pod of a group: the name of its LeaderWorkerSet."""
GROUP_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/group-index"
CHILDREN_SELECTOR = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
"""The label selector of all children."""

ChildKey = tuple[str, str]
"""(kind, name). A model's children are in its namespace."""

WORKLOAD_KINDS = ("Deployment", "LeaderWorkerSet")


def json_digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def annotation(manifest: Manifest, name: str) -> str:
    """Returns an annotation; empty if there is none."""
    return str(annotations_of(manifest).get(name) or "")


def label(manifest: Manifest, name: str) -> str:
    """Returns a label; empty if there is none."""
    return str(labels_of(manifest).get(name, ""))


def generation_of(manifest: Manifest) -> int:
    return int(metadata_of(manifest).get("generation") or 0)


def request_state(manifest: Manifest) -> tuple[int, Mapping[str, str], bool]:
    """Returns the generation and the annotations of a trimmed model, route or adapter, and whether
    it is being deleted.

    The author of the last change is left out: it may be this operator.
    """
    kept = {name: value for name, value in annotations_of(manifest).items() if name != CHANGED_BY_ANNOTATION}
    return generation_of(manifest), kept, is_deleting(manifest)


def controller_uid(manifest: Manifest) -> str:
    """Returns the uid of the controlling owner; empty if there is none."""
    for owner in metadata_of(manifest).get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner.get("uid", ""))
    return ""


def owner_model_key(child: Manifest) -> str | None:
    """Returns `namespace/name` of the model of a child, by its label; None for other objects."""
    model, namespace = label(child, MODEL_LABEL), namespace_of(child)
    if not model or namespace is None or label(child, MANAGED_BY_LABEL) != FIELD_MANAGER:
        return None
    return f"{namespace}/{model}"


def owner_reference(name: str, uid: str) -> Manifest:
    """Returns the owner reference that makes an object a child of the model `name`."""
    return {
        "apiVersion": API_VERSION,
        "kind": MODEL_DEPLOYMENTS.kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def with_ownership(manifest: Manifest, model: Manifest, installation: str = "") -> Manifest:
    """Returns the complete manifest of a child: with labels, owner and the hash of the result.

    installation: the id of ours; empty for none.
    """
    metadata = dict(metadata_of(manifest))
    metadata["namespace"] = namespace_of(model)
    metadata["labels"] = {MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: name_of(model), **labels_of(manifest)}
    if installation:
        metadata["labels"][INSTALLATION_LABEL] = installation
    metadata["ownerReferences"] = [owner_reference(name_of(model), uid_of(model))]
    whole = {**manifest, "metadata": metadata}
    notes = {**annotations_of(manifest), APPLIED_ANNOTATION: json_digest(whole)}
    return {**whole, "metadata": {**metadata, "annotations": notes}}


def with_revision(manifest: Manifest, revision: str) -> Manifest:
    notes = {**annotations_of(manifest), MODEL_REVISION_ANNOTATION: revision}
    return {**manifest, "metadata": {**metadata_of(manifest), "annotations": notes}}


def is_of_canary(manifest: Manifest) -> bool:
    return label(manifest, POOL_LABEL).endswith(CANARY_POOL_SUFFIX)


def child_key(manifest: Manifest) -> ChildKey:
    return str(manifest.get("kind", "")), name_of(manifest)
