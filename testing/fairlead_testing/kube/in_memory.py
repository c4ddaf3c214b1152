"""The API server's objects in memory, for tests of control loops: a small server-side apply.

There is no HTTP, schema or default. Fields have owners like on a real server: a field that a
manager omits at the next apply is removed, unless another manager owns it. Lists are single fields,
except for `status.conditions`. Listeners get changes in order.
"""

import builtins
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from fairlead.kube.errors import AlreadyExists, Conflict, Invalid, KubeError, NotFound
from fairlead.kube.json_decoding import ObjectList
from fairlead.kube.resources import Manifest, Resource, metadata_of, name_of, namespace_of, resource_of
from fairlead.kube.watch_events import WatchEvent, WatchEventType

_Path = tuple[str, ...]
_Key = tuple[str, str | None, str]
_SERVER = ("resourceVersion", "uid", "generation", "creationTimestamp", "managedFields", "deletionTimestamp")


class InMemoryKube:
    """The part of an API server that a reconciler uses.

    before_write: called with each write; may raise instead of it.
    rejections: errors for objects that are rejected.
    dropped_fields: fields that are accepted and dropped, like those of disabled features.
    """

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.reads = 0
        self.before_write: Callable[[str], None] = lambda _: None
        self.after_write: Callable[[str], None] = lambda _: None
        self.listeners: list[Callable[[WatchEvent], None]] = []
        self.rejections: dict[_Key, KubeError] = {}
        self.dropped_fields: set[_Path] = set()
        self._objects: dict[_Key, Manifest] = {}
        self._owners: dict[_Key, dict[str, set[_Path]]] = {}
        self._version = 1_000

    # --- as the API server ----------------------------------------------------------------------

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """Returns one object. Raises NotFound."""
        self.reads += 1
        found = self._objects.get((resource.kind, namespace, name))
        if found is None:
            raise NotFound(f"no {resource.kind} {name}", status=404)
        return _copy(found)

    async def list(self, resource: Resource, namespace: str | None = None, labels: str | None = None) -> ObjectList:
        """Returns all objects of a kind with these labels."""
        self.reads += 1
        wanted = dict(pair.split("=", 1) for pair in labels.split(",")) if labels else {}
        items = [
            one
            for one in self.objects_of(resource.kind)
            if wanted.items() <= (metadata_of(one).get("labels") or {}).items()
        ]
        return ObjectList([one for one in items if namespace in (None, namespace_of(one))], str(self._version))

    async def apply(self, manifest: Manifest, manager: str) -> Manifest:
        """Applies an object with force."""
        return self._write(
            manifest, manager, "apply", {name: value for name, value in manifest.items() if name != "status"}
        )

    async def apply_new(self, manifest: Manifest, manager: str) -> Manifest:
        """Creates an object with server-side apply. Raises AlreadyExists."""
        if _key(manifest) in self._objects:
            raise AlreadyExists(f"{manifest['kind']} {name_of(manifest)} is there", status=409)
        fields = {name: value for name, value in manifest.items() if name != "status"}
        return self._write(manifest, manager, "create", fields)

    async def apply_status(self, manifest: Manifest, manager: str) -> Manifest:
        """Applies the status. Raises NotFound without the object."""
        if _key(manifest) not in self._objects:
            raise NotFound(f"no {manifest['kind']} {name_of(manifest)}", status=404)
        return self._write(manifest, f"{manager}/status", "status", {"status": manifest.get("status") or {}})

    async def apply_scale(self, live: Manifest, replicas: int, manager: str) -> Manifest:
        """Sets the replicas of an unchanged object. Raises Conflict if it has changed."""
        what = f"scale {live['kind']} {name_of(live)} to {replicas}"
        self.before_write(what)
        there = self._objects.get(_key(live))
        if there is None:
            raise NotFound(f"no {live['kind']} {name_of(live)}", status=404)
        if there["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]:
            raise Conflict(f"{what}: it is another now", status=409)
        self.writes.append(what)
        self._set(live, f"{manager}/scale", {"spec": {"replicas": replicas}}, kept=False)
        self.after_write(what)
        return {"spec": {"replicas": replicas}}

    async def patch_merge(
        self, resource: Resource, namespace: str | None, name: str, patch: Manifest, manager: str
    ) -> Manifest:
        """Changes the annotations and the spec in `patch`; null removes an annotation.

        Raises NotFound, and Conflict for another version.
        """
        key = resource.kind, namespace, name
        if key not in self._objects:
            raise NotFound(f"no {resource.kind} {name}", status=404)
        what = f"patch {resource.kind} {name}"
        self.before_write(what)
        found = _copy(self._objects[key])
        version = found["metadata"]["resourceVersion"]
        if patch["metadata"].get("resourceVersion", version) != version:
            raise Conflict(f"{what}: it is another now", status=409)
        self.writes.append(what)
        notes = {**(found["metadata"].get("annotations") or {}), **patch["metadata"]["annotations"]}
        found["metadata"]["annotations"] = {name: value for name, value in notes.items() if value is not None}
        self._store(key, found)
        if "spec" in patch:
            return self._set(found, manager, {"spec": patch["spec"]}, kept=True)
        return _copy(found)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        uid: str | None = None,
        propagation: str = "Background",
        *,
        grace_seconds: int | None = None,
    ) -> bool:
        """Deletes the object with this uid, at once."""
        key = resource.kind, namespace, name
        found = self._objects.get(key)
        if found is None or uid not in (None, found["metadata"]["uid"]):
            return False
        what = f"delete {resource.kind} {name}" + (" in the foreground" if propagation == "Foreground" else "")
        self.before_write(what)
        self.writes.append(what)
        self.remove(*key)
        self.after_write(what)
        return True

    # --- as another writer ----------------------------------------------------------------------

    def objects_of(self, kind: str) -> "builtins.list[Manifest]":
        keys = sorted((key for key in self._objects if key[0] == kind), key=str)
        return [_copy(self._objects[key]) for key in keys]

    def put(self, manifest: Manifest, manager: str = "somebody") -> Manifest:
        whole = {name: value for name, value in manifest.items() if name not in ("apiVersion", "kind")}
        return self._set(manifest, manager, whole, kept=True)

    def remove(self, kind: str, namespace: str | None, name: str) -> None:
        """Removes an object."""
        self._version += 1
        found = self._objects.pop((kind, namespace, name))
        self._owners.pop((kind, namespace, name), None)
        found["metadata"]["resourceVersion"] = str(self._version)
        self._notify(WatchEvent(WatchEventType.DELETED, found))

    def mark_deleting(self, kind: str, namespace: str | None, name: str) -> None:
        """Sets the deletion timestamp."""
        found = _copy(self._objects[kind, namespace, name])
        found["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
        self._store((kind, namespace, name), found)

    def remove_field(self, kind: str, namespace: str | None, name: str, path: _Path) -> None:
        """Removes a field with everything below, like another writer; it has no owner then."""
        key = kind, namespace, name
        found = _copy(self._objects[key])
        _remove(found, path)
        owners = self._owners[key]
        for paths in owners.values():
            paths -= {one for one in paths if one[: len(path)] == path}
        found["metadata"]["managedFields"] = _entries(owners)
        self._store(key, found)

    def collect_garbage(self) -> None:
        """Removes every object whose owner is gone."""
        there = {manifest["metadata"]["uid"] for manifest in self._objects.values()}
        for key, one in list(self._objects.items()):
            owners = one["metadata"].get("ownerReferences") or []
            if owners and not any(owner["uid"] in there for owner in owners):
                self.remove(*key)

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _write(self, manifest: Manifest, manager: str, verb: str, fields: Manifest) -> Manifest:
        key = _key(manifest)
        what = f"{verb} {key[0]} {key[2]}"
        self.before_write(what)
        self.writes.append(what)
        if key in self.rejections:
            raise self.rejections[key]
        controllers = [
            reference for reference in metadata_of(manifest).get("ownerReferences") or [] if reference.get("controller")
        ]
        there = metadata_of(self._objects.get(key) or {})
        asked = metadata_of(manifest).get("uid")
        if asked and asked != there.get("uid"):
            raise Conflict(f"{what}: the uid is another", status=409)
        version = metadata_of(manifest).get("resourceVersion")
        if verb == "apply" and version and there and version != there["resourceVersion"]:
            raise Conflict(f"{what}: it is another now", status=409)
        old = [
            reference
            for reference in there.get("ownerReferences") or []
            if reference["uid"] not in [own["uid"] for own in controllers]
        ]
        if controllers and any(one.get("controller") for one in old):
            raise Invalid(f"{what}: only one owner may be the controller", status=422)
        found = self._set(manifest, manager, fields, kept=False)
        self.after_write(what)
        return found

    def _set(self, manifest: Manifest, manager: str, fields: Manifest, *, kept: bool) -> Manifest:
        key = _key(manifest)
        before = self._objects.get(key)
        found = _copy(before) if before is not None else _new(manifest, self._version + 1)
        owners = self._owners.setdefault(key, {})
        values = dict(_leaves({name: value for name, value in fields.items() if name not in ("apiVersion", "kind")}))
        for path in () if kept else owners.get(manager, set()) - values.keys():
            if not any(path in paths for other, paths in owners.items() if other != manager):
                _remove(found, path)
        for path, value in values.items():
            if _value(found, path) != value:
                for paths in owners.values():
                    paths.discard(path)
            _put(found, path, _copy_value(value))
        owners[manager] = values.keys() | (owners.get(manager, set()) if kept else set())
        found["metadata"]["managedFields"] = _entries(owners)
        for path in self.dropped_fields:
            _remove(found, path)
        if before is not None and found == before:
            return _copy(found)
        if before is not None and found.get("spec") != before.get("spec"):
            found["metadata"]["generation"] += 1
        self._store(key, found)
        return _copy(found)

    def _store(self, key: _Key, found: Manifest) -> None:
        """Stores an object and notifies the listeners."""
        kind = WatchEventType.MODIFIED if key in self._objects else WatchEventType.ADDED
        self._version += 1
        found["metadata"]["resourceVersion"] = str(self._version)
        self._objects[key] = found
        self._notify(WatchEvent(kind, _copy(found)))

    def _notify(self, change: WatchEvent) -> None:
        for listener in self.listeners:
            listener(change)


def _copy(manifest: Manifest) -> Manifest:
    """Returns a copy of an object.

    Why: copy.deepcopy remembers every part, and took half the time of the operator's tests.
    """
    return {name: _copy_value(child) for name, child in manifest.items()}


def _copy_value(value: Any) -> Any:
    if type(value) is dict:
        return _copy(value)
    if type(value) is list:
        return [_copy_value(child) for child in value]
    return value if value is None or isinstance(value, str | int | float) else copy.deepcopy(value)


def _key(manifest: Manifest) -> _Key:
    return resource_of(manifest).kind, namespace_of(manifest), name_of(manifest)


def _new(manifest: Manifest, version: int) -> Manifest:
    metadata = {
        "name": name_of(manifest),
        "uid": f"uid-{version}",
        "generation": 1,
        "creationTimestamp": f"2026-01-01T00:{version // 60 % 60:02d}:{version % 60:02d}Z",
    }
    if namespace_of(manifest) is not None:
        metadata["namespace"] = namespace_of(manifest)
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": metadata}


def _leaves(value: Any, above: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Yields every separately owned field."""
    if above == ("status", "conditions"):
        for one in value:
            yield (*above, f"k:{json.dumps({'type': one['type']})}"), one
    elif isinstance(value, dict) and (value or not above):
        for name, below in value.items():
            if above == ("metadata",) and (name in _SERVER or name in ("name", "namespace")):
                continue
            yield from _leaves(below, (*above, name))
    else:
        yield above, value


def _value(item: Any, path: _Path) -> Any:
    for step in path:
        if step.startswith("k:"):
            kind = json.loads(step[2:])["type"]
            item = next((one for one in item or [] if one["type"] == kind), None)
        else:
            item = item.get(step) if isinstance(item, dict) else None
        if item is None:
            return None
    return item


def _put(item: Any, path: _Path, value: Any) -> None:
    *above, last = path
    for index, step in enumerate(above):
        item = item.setdefault(step, [] if (path[index + 1]).startswith("k:") else {})
    if last.startswith("k:"):
        kind = json.loads(last[2:])["type"]
        item[:] = sorted([one for one in item if one["type"] != kind] + [value], key=lambda one: str(one["type"]))
    else:
        item[last] = value


def _remove(item: Any, path: _Path) -> None:
    *above, last = path
    for step in above:
        item = item.get(step) if isinstance(item, dict) else None
        if item is None:
            return
    if last.startswith("k:"):
        kind = json.loads(last[2:])["type"]
        item[:] = [one for one in item if one["type"] != kind]
    else:
        item.pop(last, None)


def _entries(owners: dict[str, set[_Path]]) -> list[Manifest]:
    return [_entry(name, paths) for name, paths in sorted(owners.items()) if paths]


def _entry(manager: str, paths: set[_Path]) -> Manifest:
    """Returns an entry of `managedFields`. Our managers apply; others update."""
    name, _, subresource = manager.partition("/")
    fields: Manifest = {}
    for path in sorted(paths):
        level = fields
        for step in path:
            level = level.setdefault(step if step.startswith("k:") else f"f:{step}", {})
    operation = "Apply" if name.startswith("fairlead") else "Update"
    entry: Manifest = {"manager": name, "operation": operation, "fieldsV1": fields}
    return {**entry, "subresource": subresource} if subresource else entry
