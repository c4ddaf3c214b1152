"""The writes of one look at a model, in the order of its plan: children created, applied, deleted.

What is not known to be there is applied as something *new*, so that the API server itself says when a name is taken: it costs one
request instead of two, and nobody else's object is ever touched.

Before something is made or deleted the API server is asked once whether the model is still what we think: a watch may be behind, and
what is deleted on an old read does not come back. A number of instances is written only to the object that was known: where somebody
scaled it a moment ago, it is looked at anew, and the number is theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.fleet.labels import FIELD_MANAGER
from fairlead.kube.client import ObjectList
from fairlead.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from fairlead.kube.resources import (
    MODEL_DEPLOYMENTS,
    Manifest,
    Resource,
    is_deleting,
    metadata_of,
    name_of,
    namespace_of,
    resource_of,
    uid_of,
)
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead_operator.controller.apply_plan import ApplyPlan, ApplyStep
from fairlead_operator.controller.field_ownership import FieldPath, missing_fields
from fairlead_operator.kube.object_cache import ModelSnapshot, ObjectCache
from fairlead_operator.object_metadata import ChildKey, child_key, controller_uid, generation_of, owner_model_key
from fairlead_operator.status.diagnosis import Failure, diagnose_write

_MAX_DROPPED_FIELDS = 4_096
"""Fields that the API server does not keep, remembered at most: some template's, in a cluster that has switched a feature off."""


class KubeClient(Protocol):
    """As much of ``KubeApi`` as is needed here."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """One object. Raises NotFound."""
        ...

    async def list(self, resource: Resource, namespace: str | None = None, labels: str | None = None) -> ObjectList:
        """All objects with these labels."""
        ...

    async def apply_new(self, manifest: Manifest, manager: str) -> Manifest:
        """Server-side apply of what is not there yet. Raises AlreadyExists."""
        ...

    async def apply(self, manifest: Manifest, manager: str) -> Manifest:
        """Server-side apply, by force."""
        ...

    async def apply_status(self, manifest: Manifest, manager: str) -> Manifest:
        """The same for its status."""
        ...

    async def delete(self, resource: Resource, namespace: str | None, name: str, uid: str | None = None) -> bool:
        """Begin the deletion of the object with this uid."""
        ...


@dataclass(slots=True)
class WriteCounts:
    """What was done since the start, for metrics."""

    reconciles: int = 0
    failures: int = 0
    applied: int = 0
    pruned: int = 0
    statuses: int = 0


@dataclass(slots=True)
class ApplyResult:
    """What came of a plan. ``refused``: what the API server does not take; the rest waits for its mending.

    ``anew``: something was there that was not known, so plan again. ``taken``: names that are somebody else's. ``news``: an answer
    held more than our own change. The watch brings that too, but when it is known already: it must be looked at now.
    """

    applied: list[ApplyStep] = field(default_factory=list)
    pruned: list[Manifest] = field(default_factory=list)
    rejection: Failure | None = None
    must_replan: bool = False
    has_news: bool = False
    foreign_names: set[ChildKey] = field(default_factory=set)


class ModelMoved(Exception):
    """The model is another one than was thought: look again."""


class NameBlocked(KubeError):
    """Raised when a child of an earlier model stands in the way; it goes by itself."""


class ObjectWriter:
    """Carries plans out. ``unkept`` are fields, by uid, that the API server does not keep however often they are applied.

    ``echoed`` is told the key of a model when a watch has brought what we wrote before the API server's answer did.
    """

    def __init__(self, api: KubeClient, cache: ObjectCache, on_self_write: Callable[[str], None]) -> None:
        self.counts = WriteCounts()
        self.dropped_fields: set[tuple[str, FieldPath]] = set()
        self._api = api
        self._cache = cache
        self._on_self_write = on_self_write

    async def execute(self, key: str, snapshot: ModelSnapshot, plan: ApplyPlan, *, prune: bool) -> ApplyResult:
        """Write what ``plan`` says of the model ``key``. Raises Moved, Blocked, and KubeError for what may pass."""
        found = ApplyResult()
        if (prune and plan.prunes) or any(step.live is None for step in plan.steps):
            await self._confirm_model(snapshot.model)
        for step in plan.steps:
            try:
                await (self._create if step.live is None else self._apply)(key, snapshot, step, found)
            except KubeError as error:
                found.rejection = diagnose_write(error, *child_key(step.manifest))
                if found.rejection is None:
                    raise
                return found
            if found.foreign_names:
                return found
        if prune and not found.must_replan:
            for child in plan.prunes:
                await self._api.delete(resource_of(child), namespace_of(child), name_of(child), uid_of(child))
                self.counts.pruned += 1
                found.pruned.append(child)
        return found

    async def _create(self, key: str, seen: ModelSnapshot, step: ApplyStep, found: ApplyResult) -> None:
        """Make it. What is there already and ours is taken up, and compared the next time round."""
        try:
            made = await self._api.apply_new(step.manifest, FIELD_MANAGER)
        except AlreadyExists:
            found.must_replan = True
            await self._resolve_existing(key, seen, step, found)
            return
        self._on_applied(key, step, made, found)

    async def _resolve_existing(self, key: str, seen: ModelSnapshot, step: ApplyStep, found: ApplyResult) -> None:
        """Whose is what has the name?"""
        manifest = step.manifest
        try:
            there = await self._api.get(resource_of(manifest), namespace_of(manifest), name_of(manifest))
        except NotFound:
            return
        ours = controller_uid(there) == uid_of(seen.model)
        if owner_model_key(there) == key and (ours or not controller_uid(there)):
            self._cache.record_write(there)
        elif ours:  # somebody took our labels off
            self._on_applied(key, step, await self._api.apply(manifest, FIELD_MANAGER), found)
        elif owner_model_key(there) == key:
            raise NameBlocked(f"{there['kind']} {name_of(there)} of an earlier model of this name is still there")
        else:
            found.foreign_names.add(child_key(there))

    async def _apply(self, key: str, seen: ModelSnapshot, step: ApplyStep, found: ApplyResult) -> None:
        assert step.live is not None
        try:
            made = await self._api.apply(_with_known_version(step.manifest, step.live), FIELD_MANAGER)
        except Conflict:
            found.must_replan = True
            await self._resolve_existing(key, seen, step, found)
            return
        if step.restores:
            if len(self.dropped_fields) > _MAX_DROPPED_FIELDS:
                self.dropped_fields.clear()
            self.dropped_fields |= {(uid_of(made), path) for path in missing_fields(made, step.manifest)}
        found.has_news |= made.get("status") != step.live.get("status")
        self._on_applied(key, step, made, found)

    def _on_applied(self, key: str, step: ApplyStep, made: Manifest, found: ApplyResult) -> None:
        if self._cache.record_write(made):
            self._on_self_write(key)
        self.counts.applied += 1
        found.applied.append(step)

    async def _confirm_model(self, model: Manifest) -> None:
        """Raise Moved unless the API server has this model with this spec."""
        try:
            now = await self._api.get(MODEL_DEPLOYMENTS, namespace_of(model), name_of(model))
        except NotFound:
            self._cache.apply(WatchEvent(WatchEventType.DELETED, model))
            raise ModelMoved from None
        if uid_of(now) != uid_of(model) or generation_of(now) != generation_of(model) or is_deleting(now):
            self._cache.record_write(now)
            raise ModelMoved


def _with_known_version(manifest: Manifest, live: Manifest) -> Manifest:
    """``manifest`` for ``live`` only where it says a number of instances: whoever wrote another one since decides on it from then on,
    and we write by force."""
    if "replicas" not in (manifest.get("spec") or {}):
        return manifest
    version = metadata_of(live).get("resourceVersion")
    return {**manifest, "metadata": {**metadata_of(manifest), "resourceVersion": version}}
