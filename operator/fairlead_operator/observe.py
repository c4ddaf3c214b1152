"""What is known of the cluster: objects as the watches tell them, found by model; and one model's part of it, as a value.

What we wrote ourselves is put here at once, from the API server's answer, so that the next look sees it. News that is older than what
is known (a watch that runs behind our own writes) is not taken.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fairlead.cluster_labels import MANAGER
from fairlead.kube.changes import Change, ChangeKind
from fairlead.kube.resource import (
    ACCELERATOR_CLASSES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    INFERENCE_POOLS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    NETWORK_POLICIES,
    PODS,
    REVISIONS,
    SERVICE_ACCOUNTS,
    SERVICES,
    VOLUME_CLAIMS,
    Manifest,
    key_of,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead_operator.marks import parent_key
from fairlead_operator.plan import ChildKey, child_key

ALWAYS = (
    *(DEPLOYMENTS, SERVICES, SERVICE_ACCOUNTS, CONFIG_MAPS),
    *(VOLUME_CLAIMS, DISRUPTION_BUDGETS, NETWORK_POLICIES, REVISIONS),
)
"""The kinds of children that every cluster knows."""
OPTIONAL = (LEADER_WORKER_SETS, INFERENCE_POOLS)
"""Those that only some do; they are watched where they are served."""
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Observed:
    """One model and what belongs to it. ``name_taken_by`` is the older model that clients mean by the bare name, None if it is this.

    ``stale`` says in words why this may not be how things are; empty when it is fresh.
    """

    model: Manifest
    children: Mapping[ChildKey, Manifest]
    pods: tuple[Manifest, ...]
    accelerators: Mapping[str, Manifest]
    name_taken_by: str | None
    stale: str = ""


class Shelf:
    """Every object that concerns us. Objects are not to be changed by those who read them."""

    def __init__(self) -> None:
        self.models: dict[str, Manifest] = {}
        self._accelerators: dict[str, Manifest] = {}
        self._children: dict[str, dict[ChildKey, Manifest]] = {}
        self._pods: dict[str, dict[str, Manifest]] = {}
        self._named: dict[str, set[str]] = {}

    def take(self, change: Change) -> list[str]:
        """One change of any kind; the keys of the models that it concerns."""
        kind, gone = str(change.object.get("kind", "")), change.kind is ChangeKind.DELETED
        if kind == MODEL_DEPLOYMENTS.kind:
            return self._take_model(change.object, gone)
        if kind == ACCELERATOR_CLASSES.kind:
            _keep(self._accelerators, name_of(change.object), change.object, gone)
            return list(self.models)
        key = parent_key(change.object)
        if key is None:
            return []
        if kind == PODS.kind:
            _keep(self._pods.setdefault(key, {}), name_of(change.object), change.object, gone)
            _tidy(self._pods, key)
        else:
            _keep(self._children.setdefault(key, {}), child_key(change.object), compact(change.object), gone)
            _tidy(self._children, key)
        return [key]

    def put(self, manifest: Manifest) -> None:
        """What the API server answered to our own writing."""
        self.take(Change(ChangeKind.MODIFIED, manifest))

    def replace_models(self, listed: Iterable[Manifest]) -> list[str]:
        """All models, as they were listed: those that are gone go, and news is taken. The keys of what was not known."""
        found = {key_of(one): one for one in listed}
        news: list[str] = []
        for key in [key for key in self.models if key not in found]:
            news += self._take_model(self.models[key], True)
        for key, one in found.items():
            before = self.models.get(key)
            if before is None or _version(before) < _version(one) or uid_of(before) != uid_of(one):
                news += self._take_model(one, False)
        return news

    def look(self, key: str, stale: str = "") -> Observed | None:
        """The model ``key`` and what belongs to it; None when there is no such model."""
        model = self.models.get(key)
        if model is None:
            return None
        return Observed(
            model=model,
            children=dict(self._children.get(key, {})),
            pods=tuple(self._pods.get(key, {}).values()),
            accelerators=dict(self._accelerators),
            name_taken_by=self._taken_by(key),
            stale=stale,
        )

    def _take_model(self, model: Manifest, gone: bool) -> list[str]:
        key, name = key_of(model), name_of(model)
        same = self._named.setdefault(name, set())
        concerned = [key, *sorted(same - {key})] if (key in same) == gone else [key]
        _keep(self.models, key, model, gone)
        if key in self.models:
            same.add(key)
        else:
            same.discard(key)
        if not same:
            del self._named[name]
        return concerned

    def _taken_by(self, key: str) -> str | None:
        """The oldest model of the name has it; of equally old ones, the first by namespace."""
        same = self._named.get(name_of(self.models[key]), {key})
        if len(same) == 1:
            return None
        first = min(same, key=lambda one: (str(metadata_of(self.models[one]).get("creationTimestamp", "")), one))
        return None if first == key else first


def compact(manifest: Manifest) -> Manifest:
    """Without the part of ``managedFields`` that says nothing: where we alone wrote, all of it (half of an object)."""
    entries = [
        entry for entry in metadata_of(manifest).get("managedFields") or [] if entry.get("subresource") != "status"
    ]
    ours = [one.get("manager") == MANAGER and one.get("operation") == "Apply" for one in entries]
    metadata = {**metadata_of(manifest), "managedFields": [] if all(ours) else entries}
    if not metadata["managedFields"]:
        del metadata["managedFields"]
    return {**manifest, "metadata": metadata}


def _keep(shelf: dict[_Key, Manifest], key: _Key, item: Manifest, gone: bool) -> None:
    """Put it there or take it away, unless what is there is newer."""
    before = shelf.get(key)
    if before is not None and uid_of(before) == uid_of(item) and _version(before) > _version(item):
        return
    if before is not None and gone and uid_of(before) != uid_of(item):
        return  # the end of an earlier object of this name
    if gone:
        shelf.pop(key, None)
    else:
        shelf[key] = item


def _version(item: Manifest) -> int:
    """Resource versions of one object grow (guaranteed since 1.35, so before); 0 for what is no number."""
    text = str(metadata_of(item).get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def _tidy(shelves: dict[str, Any], key: str) -> None:
    if not shelves[key]:
        del shelves[key]
