"""The execution of a plan: the writes of one pass over a model, in order: create, apply, delete.

A child that is not known to exist is applied as *new*. The API server then rejects it if the name
is taken. This costs one request instead of two, and never changes a foreign object.

Before a child is created or deleted, the model is read once from the API server. A watch may be
late, and a deletion cannot be undone. Replica counts are written only to the known version of an
object. If another writer scaled it meanwhile, it is planned again and keeps that number.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from fairlead.fleet.labels import FIELD_MANAGER, INSTALLATION_LABEL
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from fairlead.kube.resources import (
    MODEL_DEPLOYMENTS,
    Manifest,
    is_deleting,
    metadata_of,
    name_of,
    namespace_of,
    resource_of,
    uid_of,
)
from fairlead_operator.controller.apply_plan import ApplyPlan, ApplyStep, is_count_only
from fairlead_operator.controller.field_ownership import FieldPath, missing_fields
from fairlead_operator.kube.object_cache import ModelSnapshot, ObjectCache
from fairlead_operator.object_metadata import ChildKey, child_key, controller_uid, generation_of, label, owner_model_key
from fairlead_operator.status.diagnosis import Failure, diagnose_write

_MAX_DROPPED_FIELDS = 4_096
"""Maximum number of remembered fields that the API server does not keep (features that are off)."""


@dataclass(slots=True)
class WriteCounts:
    """Counters since the start, for metrics."""

    reconciles: int = 0
    failures: int = 0
    applied: int = 0
    pruned: int = 0
    statuses: int = 0


@dataclass(slots=True)
class ApplyResult:
    """The result of executing a plan.

    rejection: a write that the API server rejects; the remaining writes wait for its fix.
    must_replan: an unknown object was found.
    must_stop: another installation has made a child; no further one is written before a new plan.
    foreign_names: names of objects that belong to other models or owners.
    has_news: a response contained more than our own change. Its watch event will not count as new,
        so the model must be reconciled at once.
    """

    applied: list[ApplyStep] = field(default_factory=list)
    pruned: list[Manifest] = field(default_factory=list)
    rejection: Failure | None = None
    must_replan: bool = False
    must_stop: bool = False
    has_news: bool = False
    foreign_names: set[ChildKey] = field(default_factory=set)


class ModelMoved(Exception):
    """Raised if the model differs from the observed one: reconcile again."""


class NameBlocked(KubeError):
    """Raised if a child of a deleted model still has the name; the API server will delete it."""


class ObjectWriter:
    """The executor of plans: creates, applies and deletes the children of models.

    dropped_fields: fields, by uid, that the API server does not keep.
    ignore_self_event: called with a model's key if a watch delivered our write before the response.
    """

    def __init__(self, api: KubeClient, cache: ObjectCache, ignore_self_event: Callable[[str], None]) -> None:
        self.counts = WriteCounts()
        self.dropped_fields: set[tuple[str, FieldPath]] = set()
        self._api = api
        self._cache = cache
        self._ignore_self_event = ignore_self_event

    async def execute(self, key: str, snapshot: ModelSnapshot, plan: ApplyPlan, *, prune: bool) -> ApplyResult:
        """Executes `plan` for the model `key`. Raises ModelMoved, NameBlocked, and temporary
        KubeErrors.
        """
        result = ApplyResult()
        if (prune and plan.prunes) or any(step.live is None for step in plan.steps):
            await self._confirm_model(snapshot.model)
        for step in plan.steps:
            try:
                await (self._create if step.live is None else self._apply)(key, snapshot, step, result)
            except KubeError as error:
                result.rejection = diagnose_write(error, *child_key(step.manifest))
                if result.rejection is None:
                    raise
                return result
            if result.foreign_names or result.must_stop:
                return result
        if prune and not result.must_replan:
            await self._prune(plan, result)
        return result

    async def _prune(self, plan: ApplyPlan, result: ApplyResult) -> None:
        """Deletes the children of a plan until the API server rejects a deletion."""
        for child in plan.prunes:
            kind, name = child_key(child)
            try:
                await self._api.delete(resource_of(child), namespace_of(child), name, uid_of(child))
            except KubeError as error:
                result.rejection = diagnose_write(error, kind, f"{name} cannot be deleted")
                if result.rejection is None:
                    raise
                return
            self.counts.pruned += 1
            result.pruned.append(child)

    async def _create(self, key: str, snapshot: ModelSnapshot, step: ApplyStep, result: ApplyResult) -> None:
        """Creates a child. An existing child of ours is stored, and compared in the next plan."""
        try:
            created = await self._api.apply_new(step.manifest, FIELD_MANAGER)
        except AlreadyExists:
            result.must_replan = True
            await self._resolve_existing(key, snapshot, step, result)
            return
        self._on_applied(key, step, created, result)

    async def _resolve_existing(self, key: str, snapshot: ModelSnapshot, step: ApplyStep, result: ApplyResult) -> None:
        """Called when the name of a new object is taken.

        Takes over an object of this model, and notes a foreign one. `must_stop` is set if another
        installation has labelled it. Raises NameBlocked for an object of an earlier model.
        """
        manifest = step.manifest
        try:
            existing = await self._api.get(resource_of(manifest), namespace_of(manifest), name_of(manifest))
        except NotFound:
            return
        is_ours = controller_uid(existing) == uid_of(snapshot.model)
        if owner_model_key(existing) == key and (is_ours or not controller_uid(existing)):
            self._cache.record_write(existing)
            result.must_stop |= label(existing, INSTALLATION_LABEL) not in ("", label(manifest, INSTALLATION_LABEL))
        elif is_ours and not is_count_only(manifest):  # our labels were removed
            self._on_applied(key, step, await self._api.apply(manifest, FIELD_MANAGER), result)
        elif owner_model_key(existing) == key:
            raise NameBlocked(f"{existing['kind']} {name_of(existing)} of an earlier model of this name is still there")
        else:
            result.foreign_names.add(child_key(existing))

    async def _apply(self, key: str, snapshot: ModelSnapshot, step: ApplyStep, result: ApplyResult) -> None:
        assert step.live is not None
        manifest = _with_known_version(step.manifest, step.live)
        try:
            if is_count_only(manifest):  # an apply would remove the other fields
                kind, space, name = resource_of(manifest), namespace_of(manifest), name_of(manifest)
                applied = await self._api.patch_merge(kind, space, name, manifest, FIELD_MANAGER)
            else:
                applied = await self._api.apply(manifest, FIELD_MANAGER)
        except Conflict:
            result.must_replan = True
            await self._resolve_existing(key, snapshot, step, result)
            return
        if step.restores:
            if len(self.dropped_fields) > _MAX_DROPPED_FIELDS:
                self.dropped_fields.clear()
            self.dropped_fields |= {(uid_of(applied), path) for path in missing_fields(applied, step.manifest)}
        result.has_news |= applied.get("status") != step.live.get("status")
        self._on_applied(key, step, applied, result)

    def _on_applied(self, key: str, step: ApplyStep, applied: Manifest, result: ApplyResult) -> None:
        if self._cache.record_write(applied):
            self._ignore_self_event(key)
        self.counts.applied += 1
        result.applied.append(step)

    async def _confirm_model(self, model: Manifest) -> None:
        """Raises ModelMoved unless the API server has this model with this spec."""
        try:
            current = await self._api.get(MODEL_DEPLOYMENTS, namespace_of(model), name_of(model))
        except NotFound:
            self._cache.record_deletion(model)
            raise ModelMoved from None
        if uid_of(current) != uid_of(model) or generation_of(current) != generation_of(model) or is_deleting(current):
            self._cache.record_write(current)
            raise ModelMoved


def _with_known_version(manifest: Manifest, live: Manifest) -> Manifest:
    """Returns `manifest` with the version of `live` if it sets replicas.

    Why: our writes are forced, and a newer replica count of another writer must survive.
    """
    if "replicas" not in (manifest.get("spec") or {}):
        return manifest
    version = metadata_of(live).get("resourceVersion")
    return {**manifest, "metadata": {**metadata_of(manifest), "resourceVersion": version}}
