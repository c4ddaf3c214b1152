"""What is known of the cluster: objects as the watches tell them, found by model; and one model's part of it, as a value.

What we wrote ourselves is put here at once, from the API server's answer, so that the next look sees it. News that is older than what
is known (a watch that runs behind our own writes) is not taken.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fairlead.fleet.labels import FIELD_MANAGER
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    NETWORK_POLICIES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Manifest,
    key_of,
    metadata_of,
    name_of,
    resource_version_of,
    uid_of,
)
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead_operator.object_metadata import ChildKey, child_key, owner_model_key

STANDARD_CHILD_KINDS = (
    DEPLOYMENTS,
    SERVICES,
    SERVICE_ACCOUNTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    CONTROLLER_REVISIONS,
)
"""The kinds of children that every cluster knows."""
OPTIONAL_CHILD_KINDS = (LEADER_WORKER_SETS,)
"""Those that only some do; they are watched where they are served."""
_MAX_TOMBSTONES = 4_096
"""Deleted objects whose late news is known as such; a watch brings it within seconds."""
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model and what belongs to it. ``name_taken_by`` is the older model that clients mean by the bare name, None if it is this.

    ``stale`` says in words why this may not be how things are; empty when it is fresh.
    """

    model: Manifest
    children: Mapping[ChildKey, Manifest]
    pods: tuple[Manifest, ...]
    accelerators: Mapping[str, Manifest]
    name_taken_by: str | None
    stale: str = ""


class ObjectCache:
    """Every object that concerns us. Objects are not to be changed by those who read them."""

    def __init__(self) -> None:
        self.models: dict[str, Manifest] = {}
        self._accelerators: dict[str, Manifest] = {}
        self._children: dict[str, dict[ChildKey, Manifest]] = {}
        self._pods: dict[str, dict[str, Manifest]] = {}
        self._keys_by_name: dict[str, set[str]] = {}
        self._tombstones: OrderedDict[str, int] = OrderedDict()

    def apply(self, change: WatchEvent) -> list[str]:
        """One change of any kind; the keys of the models for which it is news. The echo of our own writing is none."""
        kind, gone = str(change.object.get("kind", "")), change.type is WatchEventType.DELETED
        if kind == MODEL_DEPLOYMENTS.kind:
            return self._update_model(change.object, gone)
        if kind == ACCELERATOR_CLASSES.kind:
            news = self._update(self._accelerators, name_of(change.object), change.object, gone)
            return list(self.models) if news else []
        key = owner_model_key(change.object)
        if key is None:
            return []
        if kind == PODS.kind:
            news = self._update(self._pods.setdefault(key, {}), name_of(change.object), change.object, gone)
            _drop_empty(self._pods, key)
        else:
            news = self._update(
                self._children.setdefault(key, {}),
                child_key(change.object),
                drop_own_managed_fields(change.object),
                gone,
            )
            _drop_empty(self._children, key)
        return [key] if news else []

    def record_write(self, manifest: Manifest) -> bool:
        """What the API server answered to our own writing. True when a watch was faster, and it has been taken for news."""
        known = self.find_same_version(manifest) is not None
        self.apply(WatchEvent(WatchEventType.MODIFIED, manifest))
        return known

    def find_same_version(self, manifest: Manifest) -> Manifest | None:
        """The model or child that is known in the very version of ``manifest``, of which kind and metadata are looked at."""
        if manifest.get("kind") == MODEL_DEPLOYMENTS.kind:
            before = self.models.get(key_of(manifest))
        else:
            before = self._children.get(owner_model_key(manifest) or "", {}).get(child_key(manifest))
        if (
            before is None
            or uid_of(before) != uid_of(manifest)
            or resource_version_of(before) != resource_version_of(manifest)
        ):
            return None
        return before

    def replace_models(self, listed: Iterable[Manifest]) -> list[str]:
        """All models, as they were listed: those that are gone go, and news is taken. The keys of what was not known."""
        found = {key_of(one): one for one in listed}
        news: list[str] = []
        for key in [key for key in self.models if key not in found]:
            news += self._update_model(self.models[key], True)
        for key, one in found.items():
            before = self.models.get(key)
            if (
                before is None
                or resource_version_of(before) < resource_version_of(one)
                or uid_of(before) != uid_of(one)
            ):
                news += self._update_model(one, False)
        return news

    def snapshot(self, key: str, stale: str = "") -> ModelSnapshot | None:
        """The model ``key`` and what belongs to it; None when there is no such model."""
        model = self.models.get(key)
        if model is None:
            return None
        return ModelSnapshot(
            model=model,
            children=dict(self._children.get(key, {})),
            pods=tuple(self._pods.get(key, {}).values()),
            accelerators=dict(self._accelerators),
            name_taken_by=self._name_owner(key),
            stale=stale,
        )

    def _update(self, shelf: dict[_Key, Manifest], key: _Key, item: Manifest, gone: bool) -> bool:
        """Put it there or take it away, unless more is known of it already; whether anything is different now."""
        before, uid = shelf.get(key), uid_of(item)
        same = before is not None and uid_of(before) == uid
        if gone:  # also where more is known of it: who lists anew learns the end without its version
            self._tombstones[uid] = resource_version_of(item)
            if len(self._tombstones) > _MAX_TOMBSTONES:
                self._tombstones.popitem(last=False)
            if same:
                del shelf[key]
            return same
        if resource_version_of(item) <= self._tombstones.get(uid, -1):
            return False  # not for ever: what lost our labels ends for a watch, and may get them back
        if before is not None and same and resource_version_of(before) >= resource_version_of(item) > 0:
            return False
        shelf[key] = item
        return True

    def _update_model(self, model: Manifest, gone: bool) -> list[str]:
        key, name = key_of(model), name_of(model)
        same = self._keys_by_name.setdefault(name, set())
        concerned = [key, *sorted(same - {key})] if (key in same) == gone else [key]
        if not self._update(self.models, key, model, gone):
            concerned = []
        if key in self.models:
            same.add(key)
        else:
            same.discard(key)
        if not same:
            del self._keys_by_name[name]
        return concerned

    def _name_owner(self, key: str) -> str | None:
        """The oldest model of the name has it; of equally old ones, the first by namespace."""
        same = self._keys_by_name.get(name_of(self.models[key]), {key})
        if len(same) == 1:
            return None
        first = min(same, key=lambda one: (str(metadata_of(self.models[one]).get("creationTimestamp", "")), one))
        return None if first == key else first


def drop_own_managed_fields(manifest: Manifest) -> Manifest:
    """Without ``managedFields`` (half of an object) where nobody else wrote any."""
    entries = metadata_of(manifest).get("managedFields") or []
    if not entries:
        return manifest
    metadata = dict(metadata_of(manifest))
    if all(entry.get("manager") == FIELD_MANAGER or entry.get("subresource") == "status" for entry in entries):
        del metadata["managedFields"]
    return {**manifest, "metadata": metadata}


def _drop_empty(shelves: dict[str, Any], key: str) -> None:
    if not shelves[key]:
        del shelves[key]
