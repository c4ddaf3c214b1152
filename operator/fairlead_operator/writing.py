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

from fairlead.cluster_labels import MANAGER
from fairlead.kube.changes import Change, ChangeKind
from fairlead.kube.client import Listing
from fairlead.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from fairlead.kube.resource import (
    MODEL_DEPLOYMENTS,
    Manifest,
    Resource,
    leaving,
    metadata_of,
    name_of,
    namespace_of,
    resource_of,
    uid_of,
)
from fairlead_operator.failures import Failure, of_write
from fairlead_operator.marks import generation_of, owner_uid, parent_key
from fairlead_operator.observe import Observed, Shelf
from fairlead_operator.ownership import Path, lost
from fairlead_operator.plan import Apply, ChildKey, Plan, child_key

_UNKEPT_MOST = 4_096
"""Fields that the API server does not keep, remembered at most: some template's, in a cluster that has switched a feature off."""


class Kube(Protocol):
    """As much of ``KubeApi`` as is needed here."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """One object. Raises NotFound."""
        ...

    async def list(self, resource: Resource, namespace: str | None = None, labels: str | None = None) -> Listing:
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
class Counts:
    """What was done since the start, for metrics."""

    reconciles: int = 0
    failures: int = 0
    applied: int = 0
    pruned: int = 0
    statuses: int = 0


@dataclass(slots=True)
class Written:
    """What came of a plan. ``refused``: what the API server does not take; the rest waits for its mending.

    ``anew``: something was there that was not known, so plan again. ``taken``: names that are somebody else's. ``news``: an answer
    held more than our own change. The watch brings that too, but when it is known already: it must be looked at now.
    """

    applied: list[Apply] = field(default_factory=list)
    pruned: list[Manifest] = field(default_factory=list)
    refused: Failure | None = None
    anew: bool = False
    news: bool = False
    taken: set[ChildKey] = field(default_factory=set)


class Moved(Exception):
    """The model is another one than was thought: look again."""


class Blocked(KubeError):
    """Raised when a child of an earlier model stands in the way; it goes by itself."""


class Writer:
    """Carries plans out. ``unkept`` are fields, by uid, that the API server does not keep however often they are applied.

    ``echoed`` is told the key of a model when a watch has brought what we wrote before the API server's answer did.
    """

    def __init__(self, api: Kube, shelf: Shelf, echoed: Callable[[str], None]) -> None:
        self.counts = Counts()
        self.unkept: set[tuple[str, Path]] = set()
        self._api = api
        self._shelf = shelf
        self._echoed = echoed

    async def carry_out(self, key: str, seen: Observed, plan: Plan, *, prune: bool) -> Written:
        """Write what ``plan`` says of the model ``key``. Raises Moved, Blocked, and KubeError for what may pass."""
        found = Written()
        if (prune and plan.prunes) or any(step.live is None for step in plan.applies):
            await self._sure(seen.model)
        for step in plan.applies:
            try:
                await (self._create if step.live is None else self._apply)(key, seen, step, found)
            except KubeError as error:
                found.refused = of_write(error, *child_key(step.manifest))
                if found.refused is None:
                    raise
                return found
            if found.taken:
                return found
        if prune and not found.anew:
            for child in plan.prunes:
                await self._api.delete(resource_of(child), namespace_of(child), name_of(child), uid_of(child))
                self.counts.pruned += 1
                found.pruned.append(child)
        return found

    async def _create(self, key: str, seen: Observed, step: Apply, found: Written) -> None:
        """Make it. What is there already and ours is taken up, and compared the next time round."""
        try:
            made = await self._api.apply_new(step.manifest, MANAGER)
        except AlreadyExists:
            found.anew = True
            await self._met(key, seen, step, found)
            return
        self._done(key, step, made, found)

    async def _met(self, key: str, seen: Observed, step: Apply, found: Written) -> None:
        """Whose is what has the name?"""
        manifest = step.manifest
        try:
            there = await self._api.get(resource_of(manifest), namespace_of(manifest), name_of(manifest))
        except NotFound:
            return
        ours = owner_uid(there) == uid_of(seen.model)
        if parent_key(there) == key and (ours or not owner_uid(there)):
            self._shelf.put(there)
        elif ours:  # somebody took our labels off
            self._done(key, step, await self._api.apply(manifest, MANAGER), found)
        elif parent_key(there) == key:
            raise Blocked(f"{there['kind']} {name_of(there)} of an earlier model of this name is still there")
        else:
            found.taken.add(child_key(there))

    async def _apply(self, key: str, seen: Observed, step: Apply, found: Written) -> None:
        assert step.live is not None
        try:
            made = await self._api.apply(_as_known(step.manifest, step.live), MANAGER)
        except Conflict:
            found.anew = True
            await self._met(key, seen, step, found)
            return
        if step.restores:
            if len(self.unkept) > _UNKEPT_MOST:
                self.unkept.clear()
            self.unkept |= {(uid_of(made), path) for path in lost(made, step.manifest)}
        found.news |= made.get("status") != step.live.get("status")
        self._done(key, step, made, found)

    def _done(self, key: str, step: Apply, made: Manifest, found: Written) -> None:
        if self._shelf.put(made):
            self._echoed(key)
        self.counts.applied += 1
        found.applied.append(step)

    async def _sure(self, model: Manifest) -> None:
        """Raise Moved unless the API server has this model with this spec."""
        try:
            now = await self._api.get(MODEL_DEPLOYMENTS, namespace_of(model), name_of(model))
        except NotFound:
            self._shelf.take(Change(ChangeKind.DELETED, model))
            raise Moved from None
        if uid_of(now) != uid_of(model) or generation_of(now) != generation_of(model) or leaving(now):
            self._shelf.put(now)
            raise Moved


def _as_known(manifest: Manifest, live: Manifest) -> Manifest:
    """``manifest`` for ``live`` only where it says a number of instances: whoever wrote another one since decides on it from then on,
    and we write by force."""
    if "replicas" not in (manifest.get("spec") or {}):
        return manifest
    version = metadata_of(live).get("resourceVersion")
    return {**manifest, "metadata": {**metadata_of(manifest), "resourceVersion": version}}
