"""What Fairlead writes on the objects it makes, so that it finds them again: labels, annotations, hashes.

Selectors are labels, never names: an object is a model's child when it carries the model's label **and** is owned by its uid.
"""

import hashlib
from typing import Any

import msgspec

from fairlead.api import API_VERSION
from fairlead.fleet.labels import FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL
from fairlead.kube.resources import (
    MODEL_DEPLOYMENTS,
    Manifest,
    annotations_of,
    labels_of,
    metadata_of,
    name_of,
    namespace_of,
    uid_of,
)

STATUS_FIELD_MANAGER = "fairlead-operator"
"""The field manager of our part of ``status``, of which the autoscaler writes another; that of children is ``MANAGER``."""
APPLIED_ANNOTATION = "fairlead.io/applied"
"""Annotation of a child: the hash of the manifest that it was applied from."""
MODEL_REVISION_ANNOTATION = "fairlead.io/model-revision"
"""Annotation of workloads and ControllerRevisions: the hash of the model's spec that they were made of."""
UNDO_ANNOTATION = "fairlead.io/run-revision"
"""Annotation of a model, for people: run this earlier revision instead of ``spec``."""
CHILDREN_SELECTOR = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
"""The label selector of everything that we make."""


def json_digest(value: Any) -> str:
    """16 hex digits that are the same for equal JSON."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def annotation(manifest: Manifest, name: str) -> str:
    """An annotation; empty where there is none."""
    return str(annotations_of(manifest).get(name, ""))


def label(manifest: Manifest, name: str) -> str:
    """A label; empty where there is none."""
    return str(labels_of(manifest).get(name, ""))


def generation_of(manifest: Manifest) -> int:
    """``metadata.generation``: how often the spec was changed; 0 where nobody counts."""
    return int(metadata_of(manifest).get("generation") or 0)


def controller_uid(manifest: Manifest) -> str:
    """The uid of the object that controls this one; empty where none does."""
    for owner in metadata_of(manifest).get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner.get("uid", ""))
    return ""


def owner_model_key(child: Manifest) -> str | None:
    """``namespace/name`` of the model that a child belongs to, by its label; None for what is not ours."""
    model, namespace = label(child, MODEL_LABEL), namespace_of(child)
    if not model or namespace is None or label(child, MANAGED_BY_LABEL) != FIELD_MANAGER:
        return None
    return f"{namespace}/{model}"


def owner_reference(name: str, uid: str) -> Manifest:
    """The entry of ``ownerReferences`` that makes an object a child of the model ``name``."""
    return {
        "apiVersion": API_VERSION,
        "kind": MODEL_DEPLOYMENTS.kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def with_ownership(manifest: Manifest, model: Manifest) -> Manifest:
    """The manifest of a child, complete: our labels, its owner, and last the hash of all this."""
    metadata = dict(metadata_of(manifest))
    metadata["namespace"] = namespace_of(model)
    metadata["labels"] = {MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: name_of(model), **labels_of(manifest)}
    metadata["ownerReferences"] = [owner_reference(name_of(model), uid_of(model))]
    whole = {**manifest, "metadata": metadata}
    notes = {**annotations_of(manifest), APPLIED_ANNOTATION: json_digest(whole)}
    return {**whole, "metadata": {**metadata, "annotations": notes}}


def with_revision(manifest: Manifest, revision: str) -> Manifest:
    """The manifest with the hash of the spec that it is made of."""
    notes = {**annotations_of(manifest), MODEL_REVISION_ANNOTATION: revision}
    return {**manifest, "metadata": {**metadata_of(manifest), "annotations": notes}}


ChildKey = tuple[str, str]
"""(kind, name); a model's children share its namespace."""


WORKLOAD_KINDS = ("Deployment", "LeaderWorkerSet")


def child_key(manifest: Manifest) -> ChildKey:
    """What names a child within its model."""
    return str(manifest.get("kind", "")), name_of(manifest)
