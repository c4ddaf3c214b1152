"""One model, brought to what its spec says: observe → choose the revision → render → plan → apply and prune → summarize.

Level-triggered: nothing is remembered between two looks but what the cluster holds, so that a process killed after any write goes on
where it stopped. Names are the same each time and writing is server-side apply, so nothing is made twice. Before something is made or
deleted the API server itself is asked once whether the model is still what we think: a watch may be behind, and what is deleted on an
old read does not come back.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from pydantic import ValidationError

from fairlead.api import API_VERSION, AcceleratorClass, ModelDeployment, Reason
from fairlead.clock import Clock
from fairlead.cluster_labels import MANAGER
from fairlead.errors import FairleadError
from fairlead.kube.changes import Change, ChangeKind
from fairlead.kube.client import Listing
from fairlead.kube.errors import KubeError, NotFound
from fairlead.kube.resource import (
    MODEL_DEPLOYMENTS,
    PODS,
    Manifest,
    Resource,
    leaving,
    metadata_of,
    name_of,
    namespace_of,
    resource_of,
    selector,
    uid_of,
)
from fairlead_operator import happenings, pools, rollout, summarize
from fairlead_operator.failures import Failure, failure, of_write
from fairlead_operator.happenings import Happening
from fairlead_operator.marks import STATUS_MANAGER, generation_of, made_of, owner_uid, parent_key
from fairlead_operator.observe import Observed, Shelf
from fairlead_operator.plan import WORKLOADS, ChildKey, Doubts, Plan, child_key, plan
from fairlead_operator.seam import Render, World

ADOPTED_SECONDS = 15.0
STALE_SECONDS = 5.0
BLOCKED_SECONDS = 2.0
_RENDERINGS = 3


class Kube(Protocol):
    """As much of ``KubeApi`` as is needed here."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """One object. Raises NotFound."""
        ...

    async def list(self, resource: Resource, namespace: str | None = None, labels: str | None = None) -> Listing:
        """All objects with these labels."""
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
class _Work:
    """One model while it is looked at."""

    seen: Observed
    choice: rollout.Choice
    parsed: ModelDeployment | None = None
    wanted: list[Manifest] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)
    failure: Failure | None = None
    taken: set[ChildKey] = field(default_factory=set)


class _Moved(Exception):
    """The model is another one than was thought: look again."""


class Reconciler:
    """``reconcile`` brings one model forward; it is called for one key at a time, and for many keys at once.

    ``served`` names the optional kinds of the cluster, ``stale`` says why what is on the shelf may be old (empty: it is not),
    ``tell`` is told what happened to a model.
    """

    def __init__(
        self,
        api: Kube,
        shelf: Shelf,
        render: Render,
        clock: Clock,
        *,
        served: Callable[[], frozenset[tuple[str, str]]],
        stale: Callable[[], str],
        tell: Callable[[Manifest, Happening], None],
    ) -> None:
        self.counts = Counts()
        self._api = api
        self._shelf = shelf
        self._render = render
        self._clock = clock
        self._served = served
        self._stale = stale
        self._tell = tell

    async def reconcile(self, key: str) -> float | None:
        """Bring the model ``key`` as far as it goes now; the seconds after which to look again, None to wait for news.

        Raises KubeError when the API server is away or a write lost a race: try again.
        """
        self.counts.reconciles += 1
        seen = self._shelf.look(key, self._stale())
        if seen is None or leaving(seen.model):
            return None  # its children go with it: they are owned, and drain by themselves
        work = self._chosen(seen)
        try:
            await self._planned(key, work)
            await self._carried_out(work)
        except _Moved:
            return 0.0
        again = await self._reported(key, work)
        for happening in happenings.of_plan(work.plan) if work.failure is None else []:
            self._tell(seen.model, happening)
        return again

    def _chosen(self, seen: Observed) -> _Work:
        """Which spec is to run, and what it means."""
        children = seen.children.values()
        kept = rollout.revisions(children)
        choice = rollout.choose(seen.model, kept, rollout.running_hashes(children))
        work = _Work(seen, choice)
        if choice.problem:
            work.failure = Failure(Reason.INVALID_SPEC, choice.problem)
        try:
            work.parsed = parsed(seen.model, choice.spec)
        except ValidationError as error:
            work.failure = Failure(Reason.INVALID_SPEC, words(error))
        return work

    async def _planned(self, key: str, work: _Work) -> None:
        """Render and compare, until no name is somebody else's."""
        if work.parsed is None:
            return
        for _ in range(_RENDERINGS):
            seen = self._shelf.look(key, work.seen.stale)
            if seen is None or uid_of(seen.model) != uid_of(work.seen.model):
                raise _Moved
            work.seen = seen
            incomplete = self._rendered(work)
            doubts = Doubts(seen.stale, incomplete, paused=work.parsed.spec.rollout.paused)
            work.plan = plan(seen.model, work.wanted, seen.children, doubts)
            new = [step.manifest for step in work.plan.applies if step.live is None]
            if not new or not await self._occupied(key, work, new):
                return
        names = ", ".join(f"{kind} {name}" for kind, name in sorted(work.taken))
        message = f"{names} exists and is not Fairlead's: remove it, or give the model another name"
        work.failure, work.plan = Failure(Reason.INVALID_SPEC, message), Plan()

    def _rendered(self, work: _Work) -> bool:
        """Work out the children; True when not all of them could be."""
        assert work.parsed is not None
        choice = work.choice
        there = tuple(one for one in work.seen.children.values() if one["kind"] in WORKLOADS and not leaving(one))
        world = World(there, frozenset(name for _, name in work.taken), self._served())
        try:
            rendered = self._render(work.parsed, _classes(work.seen.accelerators), world)
        except FairleadError as error:
            work.failure, work.wanted = Failure(Reason.INVALID_SPEC, str(error)), []
            return True
        children = [_marked(one, choice.revision.hash) for one in rendered.manifests]
        kept = rollout.remembered(rollout.revisions(work.seen.children.values()), choice)
        records = [] if rendered.problems else [rollout.record(work.seen.model, one) for one in kept]
        work.wanted = [*records, *children]
        if rendered.problems:
            first = rendered.problems[0]
            work.failure = Failure(first.reason, "; ".join(one.text for one in rendered.problems[:3]))
        return bool(rendered.problems)

    async def _occupied(self, key: str, work: _Work, new: Sequence[Manifest]) -> bool:
        """Are there objects already where ``new`` ones are to be made? Ours go to the shelf, others' names are taken."""
        namespace = namespace_of(work.seen.model)
        found = await asyncio.gather(*(self._there(namespace, one) for one in new))
        for one in found:
            if one is None:
                continue
            if parent_key(one) == key and owner_uid(one) in ("", uid_of(work.seen.model)):
                self._shelf.put(one)
            elif parent_key(one) == key:
                raise _Blocked(f"{one['kind']} {name_of(one)} of an earlier model of this name is still there")
            else:
                work.taken.add(child_key(one))
        return any(one is not None for one in found)

    async def _there(self, namespace: str | None, manifest: Manifest) -> Manifest | None:
        try:
            return await self._api.get(resource_of(manifest), namespace, name_of(manifest))
        except NotFound:
            return None

    async def _carried_out(self, work: _Work) -> None:
        """Write what is planned. A child that the API server refuses is the failure to report; the rest waits for its mending."""
        if work.plan.prunes or any(step.live is None for step in work.plan.applies):
            await self._sure(work.seen.model)
        for step in work.plan.applies:
            try:
                self._shelf.put(await self._api.apply(step.manifest, MANAGER))
            except KubeError as error:
                refused = of_write(error, *child_key(step.manifest))
                if refused is None:
                    raise
                work.failure = refused
                return
            self.counts.applied += 1
        if work.failure is not None:
            return
        for child in work.plan.prunes:
            await self._api.delete(resource_of(child), namespace_of(child), name_of(child), uid_of(child))
            self.counts.pruned += 1

    async def _sure(self, model: Manifest) -> None:
        """Raise _Moved unless the API server has this model with this spec."""
        try:
            now = await self._api.get(MODEL_DEPLOYMENTS, namespace_of(model), name_of(model))
        except NotFound:
            self._shelf.take(Change(ChangeKind.DELETED, model))
            raise _Moved from None
        if uid_of(now) != uid_of(model) or generation_of(now) != generation_of(model) or leaving(now):
            self._shelf.put(now)
            raise _Moved

    async def _reported(self, key: str, work: _Work) -> float | None:
        """Write the status where it says something new; the seconds until the next look."""
        seen = self._shelf.look(key, work.seen.stale) or work.seen
        if uid_of(seen.model) != uid_of(work.seen.model):
            return 0.0
        before = seen.model.get("status") or {}
        situation, adopting = await self._situation(seen, work)
        # It is about the spec that was looked at, which may not be the newest any more.
        generation = generation_of(work.seen.model)
        status = summarize.summarize(seen.model, situation, generation, _time(self._clock.wall()))
        if summarize.differs(seen.model, status):
            body = {"apiVersion": API_VERSION, "kind": MODEL_DEPLOYMENTS.kind, "status": status}
            names = {name: metadata_of(seen.model)[name] for name in ("name", "namespace", "uid")}
            try:
                self._shelf.put(await self._api.apply_status({**body, "metadata": names}, STATUS_MANAGER))
            except NotFound:
                return None  # it was deleted meanwhile
            self.counts.statuses += 1
            for happening in happenings.of_status(before, status):
                self._tell(seen.model, happening)
        return _again(work, adopting)

    async def _situation(self, seen: Observed, work: _Work) -> tuple[summarize.Situation, bool]:
        """What the status is made of; True with it when somebody else's pods are counted, whose changes nobody tells us."""
        spec = work.parsed.spec if work.parsed is not None else None
        adopted = await self._adopted(work.parsed) if work.parsed is not None and work.parsed.spec.external else {}
        uids = ("", uid_of(seen.model))  # children of an earlier model of this name are none of its
        ours = {key: one for key, one in seen.children.items() if owner_uid(one) in uids}
        found: tuple[summarize.PoolState, ...] = ()
        if spec is not None:
            found = pools.states(spec, work.wanted, ours, work.choice.revision.hash, adopted, seen.pods)
        workloads = [one for one in ours.values() if one["kind"] in WORKLOADS]
        kept = [one for one in work.plan.kept if one.manifest["kind"] in WORKLOADS and not seen.stale]
        situation = summarize.Situation(
            pools=found,
            failure=work.failure or failure(seen.pods, workloads),
            waiting=work.choice.why if work.choice.held else "",
            paused=spec is not None and spec.rollout.paused,
            undone=work.choice.why if work.choice.waiting and not work.choice.held else "",
            kept="; ".join(f"{name_of(one.manifest)}: {one.why}" for one in kept),
            name_taken_by=seen.name_taken_by,
            leaving_pods=sum(leaving(pod) for pod in seen.pods),
        )
        return situation, any(pool.adopted for pool in found)

    async def _adopted(self, model: ModelDeployment) -> Mapping[str, int]:
        """The endpoints of each pool that Fairlead does not run: addresses as they are written, pods that are ready."""
        counts = {}
        for pool in model.spec.pools:
            counts[pool.name] = len(pool.endpoints)
            if pool.selector is not None:
                labels = selector(pool.selector.match_labels)
                listed = await self._api.list(PODS, model.metadata.namespace, labels)
                counts[pool.name] = pools.ready_pods(listed.items)
        return counts


class _Blocked(KubeError):
    """Raised when a child of an earlier model stands in the way; it goes by itself."""


def parsed(model: Manifest, spec: Mapping[str, Any]) -> ModelDeployment:
    """The model with the spec that shall run, typed. Raises ValidationError."""
    metadata = {name: metadata_of(model).get(name) for name in ("name", "namespace", "uid", "labels", "annotations")}
    known = {name: value for name, value in metadata.items() if value is not None}
    return ModelDeployment.model_validate(
        {"apiVersion": API_VERSION, "kind": MODEL_DEPLOYMENTS.kind, "metadata": known, "spec": spec}
    )


def words(error: ValidationError) -> str:
    """The first findings of a spec that this release cannot carry out."""
    found = error.errors(include_url=False, include_input=False)
    told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:3]]
    return "; ".join(told) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _classes(found: Mapping[str, Manifest]) -> dict[str, AcceleratorClass]:
    """The cluster's own classes. One that this release cannot read is as good as absent: whoever names it is told so."""
    classes = {}
    for name, one in found.items():
        body = {"apiVersion": API_VERSION, "kind": "AcceleratorClass", "metadata": {"name": name}}
        try:
            classes[name] = AcceleratorClass.model_validate({**body, "spec": one.get("spec") or {}})
        except ValidationError:
            continue
    return classes


def _marked(manifest: Manifest, revision: str) -> Manifest:
    return made_of(manifest, revision) if manifest["kind"] in WORKLOADS else manifest


def _again(work: _Work, adopting: bool) -> float | None:
    if work.plan.kept and work.seen.stale:
        return STALE_SECONDS
    if any("earlier model" in one.why for one in work.plan.kept):
        return BLOCKED_SECONDS
    return ADOPTED_SECONDS if adopting else None


def _time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
