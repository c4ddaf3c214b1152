"""The number that the operator keeps in `spec.replicas` until another writer scales the model.

The API server answers a GET of `/scale` with an error 500 while `spec.replicas` is absent, and
autoscalers read before they write. So the field of a model that nothing scales holds the number of
instances that it has anyway, under a field manager of its own. The operator itself never reads it.

`metadata.managedFields` says whose the field is, not its presence:

- absent: the operator sets it;
- the operator's alone: it follows the number of instances, and goes with the reason for it;
- another writer's, too: the operator lets go, and the other's number stays;
- without an owner: it stays. The API server drops the owner of a 0 that `/scale` wrote.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final

from fairlead.fleet.labels import POOL_LABEL, SURGE_ANNOTATION
from fairlead.kube.field_managers import replicas_managers
from fairlead.kube.resources import Manifest, annotations_of, metadata_of
from fairlead_operator.object_metadata import WORKLOAD_KINDS, annotation, label

PLACEHOLDER_FIELD_MANAGER: Final = "fairlead-placeholder"
REPLICAS_FIELD_ANNOTATION: Final = "fairlead.io/replicas-field"
"""On a trimmed model, which has no `managedFields`: the field as JSON."""
_UNSCALED_ENGINES: Final = ("External", "OpenAI")


class PlaceholderWrite(Enum):
    """A write of the field."""

    NONE = "none"
    SET = "set"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class ReplicasField:
    """`spec.replicas` of a model: its value, and whether the operator and others own it."""

    value: int | None = None
    is_own: bool = False
    is_foreign: bool = False

    @property
    def is_placeholder(self) -> bool:
        """True if only the operator has written it."""
        return self.is_own and not self.is_foreign


def replicas_field(model: Manifest) -> ReplicasField:
    """Returns the field of a model with its `managedFields`."""
    managers = replicas_managers(model)
    others = [one for one in managers if one != PLACEHOLDER_FIELD_MANAGER]
    value = (model.get("spec") or {}).get("replicas")
    return ReplicasField(value, len(others) < len(managers), bool(others))


def kept_field(trimmed: Manifest) -> ReplicasField:
    kept = annotation(trimmed, REPLICAS_FIELD_ANNOTATION)
    return ReplicasField(**json.loads(kept)) if kept else ReplicasField((trimmed.get("spec") or {}).get("replicas"))


def trim_replicas(model: Manifest, trimmed: Manifest) -> Manifest:
    """Returns a trimmed model with the owners of the field, and without a placeholder."""
    field = replicas_field(model)
    if not (field.is_own or field.is_foreign):
        return trimmed
    notes = {**annotations_of(trimmed), REPLICAS_FIELD_ANNOTATION: json.dumps(asdict(field))}
    spec = {name: value for name, value in trimmed["spec"].items() if name != "replicas" or field.is_foreign}
    return {**trimmed, "metadata": {**metadata_of(trimmed), "annotations": notes}, "spec": spec}


def plan_placeholder(field: ReplicasField, wanted: int | None) -> PlaceholderWrite:
    """Returns the write after which the field is right.

    wanted: the number of instances; None for a model that has no placeholder.
    """
    if field.is_own and (field.is_foreign or wanted is None):
        return PlaceholderWrite.RELEASE
    may_set = field.is_placeholder or (field.value is None and not field.is_foreign)
    return PlaceholderWrite.SET if wanted is not None and may_set and field.value != wanted else PlaceholderWrite.NONE


def placeholder_number(spec: Mapping[str, Any], children: Iterable[Manifest]) -> int | None:
    """Returns the number of instances of a model that may have a placeholder; None for others.

    It has one pool, engines that Fairlead runs, and no autoscaling.
    """
    pools, engine, scaling = (spec.get(name) or {} for name in ("pools", "engine", "autoscaling"))
    if len(pools) != 1 or engine.get("type") in _UNSCALED_ENGINES or scaling.get("mode", "Disabled") != "Disabled":
        return None
    name = pools[0].get("name", "main")
    for child in children:
        if child["kind"] in WORKLOAD_KINDS and label(child, POOL_LABEL) == name:
            surge = int(annotation(child, SURGE_ANNOTATION) or 0)
            return max(0, int((child.get("spec") or {}).get("replicas", 1)) - surge)
    return int(pools[0].get("minReplicas", 1))


def placeholder_manifest(model: Manifest, replicas: int | None) -> Manifest:
    """Returns what is applied to this version of a model; None lets the field go."""
    known = metadata_of(model)
    metadata = {name: known[name] for name in ("name", "namespace", "uid", "resourceVersion") if name in known}
    head = {"apiVersion": model["apiVersion"], "kind": model["kind"], "metadata": metadata}
    return head if replicas is None else {**head, "spec": {"replicas": replicas}}
