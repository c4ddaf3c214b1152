"""The observed objects of the cluster by model, and snapshots of one model.

The operator's own writes are stored at once, from the API server's response, so that the next pass
sees them. Events older than a stored object (a watch behind our own writes) are ignored.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fairlead.fleet.client_names import (
    MAX_NAMES_OF_DELETED_MODELS,
    MODEL_CLAIM,
    ClaimKind,
    GrantedNames,
    NameClaim,
    NameHistory,
    RefusedName,
    adapter_key,
    claim_key,
    granted_names,
    is_model_claim,
    name_owners,
    names_to_remember,
    object_key,
)
from fairlead.fleet.kubernetes.claimant_objects import manifest_claim
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    LEADER_WORKER_SETS,
    MODEL_ADAPTERS,
    MODEL_DEPLOYMENTS,
    MODEL_ROUTES,
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
from fairlead_operator.kube.object_trimming import trim_child, trim_model
from fairlead_operator.object_metadata import ChildKey, child_key, owner_model_key
from fairlead_operator.status.adapter_status import base_key
from fairlead_operator.status.route_status import allowed_namespaces, target_keys

_CLAIM_KINDS: Final[Mapping[str, ClaimKind]] = {MODEL_ROUTES.kind: "route", MODEL_ADAPTERS.kind: "adapter"}

STANDARD_CHILD_KINDS = (
    DEPLOYMENTS,
    SERVICES,
    SERVICE_ACCOUNTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    CONTROLLER_REVISIONS,
)
"""Kinds of children that every cluster has."""
OPTIONAL_CHILD_KINDS = (LEADER_WORKER_SETS,)
"""Kinds that only some clusters have. They are watched if they are served."""
_MAX_TOMBSTONES = 4_096
"""Deleted objects whose late events are recognized; a watch delivers these within seconds."""


@dataclass(frozen=True, slots=True)
class ObjectClaim:
    """The names that an object claims: as `grant_names` takes them, and as a set."""

    claim: NameClaim
    names: frozenset[str]


def claim_of(manifest: Manifest) -> ObjectClaim:
    claim = manifest_claim(_claim_kind(manifest), manifest)
    return ObjectClaim(claim, frozenset((claim.name, *claim.served_names)))


def _claim_kind(manifest: Manifest) -> ClaimKind:
    return _CLAIM_KINDS.get(str(manifest.get("kind")), MODEL_CLAIM)


NO_CLAIM: Final = ObjectClaim(NameClaim("", ""), frozenset())


def created_at(model: Manifest | None) -> str:
    """Returns `metadata.creationTimestamp`; empty if there is none."""
    return "" if model is None else str(metadata_of(model).get("creationTimestamp", ""))


_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """A model and its objects at one moment.

    refused_names: names that the model claims and does not get.
    served_names: names that it gets besides its own.
    stale: why the snapshot may be out of date; empty if it is fresh.
    """

    model: Manifest
    children: Mapping[ChildKey, Manifest]
    pods: tuple[Manifest, ...]
    accelerators: Mapping[str, Manifest]
    refused_names: tuple[RefusedName, ...]
    served_names: tuple[str, ...] = ()
    stale: str = ""


@dataclass(frozen=True, slots=True)
class ClaimantSnapshot:
    """A route or an adapter at one moment.

    models: all models, by key.
    """

    manifest: Manifest
    names: GrantedNames
    models: Mapping[str, Manifest]


class ObjectCache:
    """All observed objects. Readers must not modify them.

    client_names: owners of client names that an administrator assigned.
    on_affected: called with each other model, route and adapter that the answer to our own request
        affects. Its watch event is not new, and affects none.
    """

    def __init__(
        self, client_names: Mapping[str, str] | None = None, on_affected: Callable[[str], None] = lambda _: None
    ) -> None:
        self.models: dict[str, Manifest] = {}
        self.routes: dict[str, Manifest] = {}
        """By the key of the claim, which differs from that of a model."""
        self.adapters: dict[str, Manifest] = {}
        """By the key of the claim, too."""
        self._accelerators: dict[str, Manifest] = {}
        self._children: dict[str, dict[ChildKey, Manifest]] = {}
        self._pods: dict[str, dict[str, Manifest]] = {}
        self._keys_by_name: dict[str, set[str]] = {}
        self._namespaces: Counter[str] = Counter()
        self._assigned_names = client_names or {}
        self._on_affected = on_affected
        self._name_owners: dict[str, str] = {}
        self._settled_names: set[str] = set()
        """Names whose owner in `_name_owners` is decided by the present claims."""
        self._served_names: dict[str, set[str]] = {}
        """Claimed names with a slash, by the text before it: perhaps a namespace."""
        self._deleted_owners: dict[str, set[str]] = {}
        """Deleted models that have names, with these."""
        self._tombstones: OrderedDict[str, int] = OrderedDict()

    def apply(self, event: WatchEvent) -> list[str]:
        """Applies a watch event of any kind, and returns the keys of the models, routes and
        adapters for which it is new.

        The first key is that of the object itself, or of its model. The event of our own write is
        not new.
        """
        kind, deleted = str(event.object.get("kind", "")), event.type is WatchEventType.DELETED
        if kind in (MODEL_DEPLOYMENTS.kind, MODEL_ROUTES.kind, MODEL_ADAPTERS.kind):
            return self._update_claimant(event.object, deleted)
        if kind == ACCELERATOR_CLASSES.kind:
            is_new = self._update(self._accelerators, name_of(event.object), event.object, deleted)
            return list(self.models) if is_new else []
        key = owner_model_key(event.object)
        if key is None:
            return []
        if kind == PODS.kind:
            is_new = self._update(self._pods.setdefault(key, {}), name_of(event.object), event.object, deleted)
            _drop_empty(self._pods, key)
        else:
            is_new = self._update(
                self._children.setdefault(key, {}),
                child_key(event.object),
                trim_child(event.object),
                deleted,
            )
            _drop_empty(self._children, key)
        return [key] if is_new else []

    def record_write(self, manifest: Manifest) -> bool:
        """Stores the API server's response to our own write, which may hold more than this write.

        Returns True if a watch was faster, so that the write was already treated as a new event.
        """
        watch_was_faster = self.find_same_version(manifest) is not None
        self._apply_response(WatchEvent(WatchEventType.MODIFIED, manifest))
        return watch_was_faster

    def record_deletion(self, model: Manifest) -> None:
        self._apply_response(WatchEvent(WatchEventType.DELETED, model))

    def _apply_response(self, event: WatchEvent) -> None:
        """Applies what a response says, and reports the others that it affects."""
        affected = self.apply(event)
        for key in affected[1:]:  # the first one is its own
            self._on_affected(key)

    def find_same_version(self, manifest: Manifest) -> Manifest | None:
        """Returns the model or child that is stored in exactly the version of `manifest`.

        Only kind and metadata of `manifest` are used.
        """
        if manifest.get("kind") == MODEL_DEPLOYMENTS.kind:
            known = self.models.get(key_of(manifest))
        else:
            known = self._children.get(owner_model_key(manifest) or "", {}).get(child_key(manifest))
        if (
            known is None
            or uid_of(known) != uid_of(manifest)
            or resource_version_of(known) != resource_version_of(manifest)
        ):
            return None
        return known

    def replace_models(self, listed: Iterable[Manifest]) -> list[str]:
        """Replaces all models by a list, and returns the keys of the affected models.

        A model that is known in a newer version stays.
        """
        listed_models = {key_of(model): model for model in listed}
        changed: dict[str, None] = {}
        names: set[str] = set()
        for key in [key for key in self.models if key not in listed_models]:
            names |= self._store_claimant(self.models[key], True) or set()
            changed[key] = None
        for key, model in listed_models.items():
            known = self.models.get(key)
            if (
                known is None
                or resource_version_of(known) < resource_version_of(model)
                or uid_of(known) != uid_of(model)
            ):
                affected = self._store_claimant(model, False)
                if affected is not None:
                    names |= affected
                    changed[key] = None
        affected_keys = self._claimants(names) | self._routes_to(changed) | self._adapters_of(changed)
        return [*changed, *sorted(affected_keys - changed.keys())]

    def snapshot(self, key: str, stale: str = "") -> ModelSnapshot | None:
        """Returns the model `key` with its objects; None if it does not exist.

        The owners of its names are decided now, and remembered.
        """
        model = self.models.get(key)
        if model is None:
            return None
        granted = self._decide_names(key)
        return ModelSnapshot(
            model=model,
            children=dict(self._children.get(key, {})),
            pods=tuple(self._pods.get(key, {}).values()),
            accelerators=dict(self._accelerators),
            refused_names=granted.refused,
            served_names=granted.served_names,
            stale=stale,
        )

    def claimant_snapshot(self, key: str) -> ClaimantSnapshot | None:
        """Returns the route or the adapter with this key of its claim; None if it does not exist.

        The owners of its names are decided now, and remembered.
        """
        claimant = self._claimant(key)
        return None if claimant is None else ClaimantSnapshot(claimant, self._decide_names(key), dict(self.models))

    def _update(self, objects: dict[_Key, Manifest], key: _Key, item: Manifest, deleted: bool) -> bool:
        """Stores or removes an object unless a newer version is known. Returns True if something
        changed.
        """
        known, uid = objects.get(key), uid_of(item)
        same = known is not None and uid_of(known) == uid
        if deleted:  # even if a newer version is known: a new list reports the deletion without its version
            self._tombstones[uid] = resource_version_of(item)
            if len(self._tombstones) > _MAX_TOMBSTONES:
                self._tombstones.popitem(last=False)
            if same:
                del objects[key]
            return same
        if resource_version_of(item) <= self._tombstones.get(uid, -1):
            return (
                False  # limited in time: an object that lost our labels is deleted for the watch, and may get them back
            )
        if known is not None and same and resource_version_of(known) >= resource_version_of(item) > 0:
            return False
        objects[key] = item
        return True

    def _update_claimant(self, manifest: Manifest, deleted: bool) -> list[str]:
        """Stores or removes a model, a route or an adapter, and returns the affected keys.

        These are its own, those that claim a name that it adds or drops, routes to it, and its
        adapters.
        """
        key = claim_key(_claim_kind(manifest), key_of(manifest))
        before = self.models.get(key)
        names = self._store_claimant(manifest, deleted)
        if names is None:
            return []
        affected = self._claimants(names)
        after = self.models.get(key)
        if (before is None) != (after is None) or allowed_namespaces(before) != allowed_namespaces(after):
            affected |= self._routes_to([key])
        if before is None or after is None or before.get("spec") != after.get("spec"):
            affected |= self._adapters_of([key])
        return [key, *sorted(affected - {key})]

    def _routes_to(self, models: Iterable[str]) -> set[str]:
        wanted = set(models)
        return {key for key, route in self.routes.items() if not wanted.isdisjoint(target_keys(route))}

    def _adapters_of(self, models: Iterable[str]) -> set[str]:
        wanted = set(models)
        return {key for key, adapter in self.adapters.items() if base_key(adapter) in wanted}

    def _claimants(self, names: Iterable[str]) -> set[str]:
        return set().union(*(self._keys_by_name.get(name, ()) for name in names))

    def _store_claimant(self, manifest: Manifest, deleted: bool) -> set[str] | None:
        """Stores or removes a model or a route. Returns the names whose other claimants are
        affected; None if nothing changed.

        Why names: any number of models may claim one, and each of them may be stored in turn.
        """
        key = claim_key(_claim_kind(manifest), key_of(manifest))
        trimmed = trim_model(manifest)
        objects = self._objects_with(key)
        before = objects.get(key)
        claim_before = claim_of(before) if before is not None else NO_CLAIM
        if not self._update(objects, key, trimmed, deleted):
            return None
        after = objects.get(key)
        claim_after = claim_of(after) if after is not None else NO_CLAIM
        claimed, claims = claim_before.names, claim_after.names
        affected: set[str] = set()
        if claim_before != claim_after or created_at(before) != created_at(after):
            contested = {name for name in claimed | claims if self._is_contested(name, key, claim_before, claim_after)}
            self._settled_names -= contested
            is_released = after is not None and claim_after.claim.is_releasing != claim_before.claim.is_releasing
            affected |= contested & (claimed | claims if is_released else claimed ^ claims)
        for name in claimed - claims:
            if after is not None and self._name_owners.get(name) == key:
                del self._name_owners[name]  # a live model that drops a name releases it
            self._keys_by_name[name].discard(key)
            _drop_empty(self._keys_by_name, name)
            if name not in self._keys_by_name:
                self._settled_names.discard(name)
                self._index_served_name(name, is_claimed=False)
        for name in claims - claimed:
            self._keys_by_name.setdefault(name, set()).add(key)
            self._index_served_name(name, is_claimed=True)
        if after is None:
            owned = {name for name in claimed if self._name_owners.get(name) == key}
            if owned:
                self._deleted_owners[key] = owned  # its namespace counts until its names are forgotten
            elif before is not None:
                affected |= self._count_namespace(key, -1)
        elif before is None:
            if key in self._deleted_owners:
                affected |= self._release_names(key, claims)
            else:
                affected |= self._count_namespace(key, 1)
        return affected

    def _release_names(self, key: str, claims: frozenset[str]) -> set[str]:
        """Releases the names that a model had before its deletion and no longer claims, and returns
        them.
        """
        owned = self._deleted_owners.pop(key, set())
        names = {name for name in owned - claims if self._name_owners.get(name) == key}
        for name in names:
            del self._name_owners[name]
        self._settled_names -= names
        return names

    def _is_contested(self, name: str, key: str, before: "ObjectClaim", after: "ObjectClaim") -> bool:
        """Returns True if a change of one model's claims may give a name to another model.

        Why: any number of models may claim a name that another one has. They do not change its
        owner.
        """
        owner = self._name_owners.get(name)
        is_recorded = any(name in (one.claim.recorded or ()) for one in (before, after))
        if is_recorded or name not in self._settled_names or key in (owner, self._assigned_names.get(name)):
            return True
        if owner is None:
            return name.partition("/")[0] not in self._namespaces  # else no model gets it
        found = self._claimant(owner)
        return found is not None and claim_of(found).claim.is_releasing

    def _claimant(self, key: str) -> Manifest | None:
        return self._objects_with(key).get(key)

    def _objects_with(self, key: str) -> dict[str, Manifest]:
        """Returns the objects of the kind that has this key of a claim."""
        if is_model_claim(key):
            return self.models
        return self.routes if adapter_key(key) is None else self.adapters

    def _count_namespace(self, key: str, change: int) -> set[str]:
        """Adds `change` (1 or -1) to the number of models, routes and adapters in a namespace.

        If the first one came or the last one went, served names that begin with the namespace are
        now taken or free. Returns these names.

        key: of the claim of the object that came or went.
        """
        namespace = object_key(key).partition("/")[0]
        self._namespaces[namespace] += change
        number = self._namespaces[namespace]
        if number == 0:
            del self._namespaces[namespace]
        if number != max(change, 0):
            return set()
        names = set(self._served_names.get(namespace, ()))
        self._settled_names -= names
        return names

    def _index_served_name(self, name: str, *, is_claimed: bool) -> None:
        first, slash, _ = name.partition("/")
        if not slash:
            return
        if is_claimed:
            self._served_names.setdefault(first, set()).add(name)
        else:
            self._served_names[first].discard(name)
            _drop_empty(self._served_names, first)

    def _decide_names(self, key: str) -> GrantedNames:
        """Returns the names of this model or route, and remembers who owns the names that it
        claims.

        The namespace decides between models of the same age.
        """
        claimant = self._claimant(key)
        assert claimant is not None
        own = claim_of(claimant)
        if not own.names <= self._settled_names:
            self._settle_names(own.names - self._settled_names)
        owners = {name: self._name_owners[name] for name in own.names if name in self._name_owners}
        live = {owner for owner in owners.values() if any(owner in self._keys_by_name[name] for name in own.names)}
        return granted_names(own.claim, owners, live, self._namespaces)

    def _settle_names(self, names: frozenset[str]) -> None:
        """Decides and remembers who owns names, by the claims of all models and routes."""
        keys = set().union(*(self._keys_by_name[name] for name in names))
        claimants = {key: self._claimant(key) for key in keys}
        oldest_first = sorted(keys, key=lambda key: (created_at(claimants[key]), key))
        claims = [claim_of(found).claim for key in oldest_first if (found := claimants[key]) is not None]
        history = NameHistory(
            {name: self._assigned_names[name] for name in names if name in self._assigned_names},
            {name: self._name_owners[name] for name in names if name in self._name_owners},
        )
        owners = name_owners(claims, self._namespaces, history)
        self._settled_names |= names
        for name in names - owners.keys():
            self._name_owners.pop(name, None)
        self._remember_owners({name: owners[name] for name in names if name in owners})

    def _remember_owners(self, owners: Mapping[str, str]) -> None:
        """Remembers the owners of names, and forgets the oldest names of deleted models."""
        self._name_owners.update(owners)
        if len(self._name_owners) > len(self._keys_by_name) + MAX_NAMES_OF_DELETED_MODELS:
            live = self.models.keys() | self.routes.keys() | self.adapters.keys()
            self._name_owners = names_to_remember(self._name_owners, live)
            self._settled_names &= self._name_owners.keys()
            remembered = set(self._name_owners.values())
            for key in self._deleted_owners.keys() - remembered:
                del self._deleted_owners[key]
                self._count_namespace(key, -1)


def _drop_empty(objects: dict[str, Any], key: str) -> None:
    if not objects[key]:
        del objects[key]
