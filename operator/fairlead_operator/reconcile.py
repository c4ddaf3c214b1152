"""One model, brought to what its spec says: observe → choose the revision → render → plan → apply and prune → summarize.

Level-triggered: nothing is remembered between two looks but what the cluster holds, so that a process killed after any write goes on
where it stopped. Names are the same each time, so nothing is made twice (see ``writing``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from fairlead.api import API_VERSION, AcceleratorClass, ModelDeployment, Reason
from fairlead.clock import Clock
from fairlead.cluster_labels import SURGE
from fairlead.errors import FairleadError
from fairlead.kube.errors import NotFound
from fairlead.kube.news import News
from fairlead.kube.resource import (
    MODEL_DEPLOYMENTS,
    PODS,
    Manifest,
    annotations_of,
    leaving,
    metadata_of,
    name_of,
    selector,
    uid_of,
)
from fairlead_operator import groups, happenings, pools, rollout, summarize
from fairlead_operator.failures import Failure, Waiting, awaited, failure
from fairlead_operator.marks import STATUS_MANAGER, annotation, generation_of, made_of, owner_uid
from fairlead_operator.observe import Observed, Shelf
from fairlead_operator.plan import WORKLOADS, Apply, ChildKey, Doubts, Plan, plan
from fairlead_operator.seam import Cluster, Render, World
from fairlead_operator.writing import Kube, Moved, Writer

ADOPTED_SECONDS = 15.0
STALE_SECONDS = 5.0
BLOCKED_SECONDS = 2.0
GROUPS_SECONDS = 15.0
"""Groups that are replaced are looked at this often, should news of their pods have come before that of our own write."""
REFUSED_SECONDS = 30.0
"""Until a write that was refused is tried again: nobody tells us of a quota that was raised, or a name that is free."""
_RENDERINGS = 4


@dataclass(slots=True)
class _Work:
    """One model while it is looked at."""

    seen: Observed
    choice: rollout.Choice
    parsed: ModelDeployment | None = None
    wanted: list[Manifest] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    failure: Failure | None = None
    taken: set[ChildKey] = field(default_factory=set)
    applied: list[Apply] = field(default_factory=list)
    pruned: list[Manifest] = field(default_factory=list)
    awaited: Waiting | None = None
    news: bool = False
    refused: bool = False


class Reconciler:
    """``reconcile`` brings one model forward; it is called for one key at a time, and for many keys at once.

    ``cluster`` says what is known of it as a whole, ``stale`` says why what is on the shelf may be old (empty: it is not),
    ``tell`` is told what happened to a model, ``capacity_grace_seconds`` is how long a pod may wait for a node before that stalls.
    ``echoed`` is told the key of a model that was added for what we wrote ourselves.
    """

    def __init__(
        self,
        api: Kube,
        shelf: Shelf,
        render: Render,
        clock: Clock,
        *,
        cluster: Callable[[], Cluster],
        stale: Callable[[], str],
        tell: Callable[[Manifest, News], None],
        capacity_grace_seconds: float = 0.0,
        echoed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._writer = Writer(api, shelf, echoed)
        self._echoed = echoed
        self.counts = self._writer.counts
        self._api = api
        self._shelf = shelf
        self._render = render
        self._clock = clock
        self._cluster = cluster
        self._stale = stale
        self._tell = tell
        self._capacity_grace_seconds = capacity_grace_seconds

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
            await self._brought_forward(key, work)
        except Moved:
            return 0.0
        again = await self._reported(key, work)
        for happening in happenings.of_writes(work.applied, work.pruned):
            self._tell(seen.model, happening)
        return again

    async def _brought_forward(self, key: str, work: _Work) -> None:
        for _ in range(_RENDERINGS):
            self._planned(key, work)
            if await self._carried_out(key, work):
                return
        if not work.taken:
            raise Moved
        names = ", ".join(f"{kind} {name}" for kind, name in sorted(work.taken))
        message = f"{names} exists and is not Fairlead's: remove it, or give the model another name"
        work.failure, work.plan, work.refused = Failure(Reason.INVALID_SPEC, message), Plan(), True

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

    def _planned(self, key: str, work: _Work) -> None:
        """Render and compare. Raises Moved when the model is another one meanwhile."""
        if work.parsed is None:
            return
        seen = self._shelf.look(key, work.seen.stale)
        if seen is None or uid_of(seen.model) != uid_of(work.seen.model):
            raise Moved
        work.seen = seen
        incomplete = self._rendered(work)
        doubts = Doubts(seen.stale, incomplete, paused=work.parsed.spec.rollout.paused)
        work.plan = plan(seen.model, work.wanted, seen.children, doubts, self._writer.unkept)

    def _rendered(self, work: _Work) -> bool:
        """Work out the children; True when not all of them could be."""
        assert work.parsed is not None
        choice = work.choice
        there = tuple(one for one in work.seen.children.values() if one["kind"] in WORKLOADS and not leaving(one))
        world = World(there, frozenset(name for _, name in work.taken), self._cluster())
        try:
            rendered = self._render(work.parsed, _classes(work.seen.accelerators), world)
        except FairleadError as error:
            work.failure, work.wanted = Failure(Reason.INVALID_SPEC, str(error)), []
            return True
        pace = work.parsed.spec.rollout
        paced, work.notes = groups.all_paced(rendered.manifests, work.seen.children, work.seen.pods, pace)
        children = [_marked(one, choice.revision.hash) for one in paced]
        kept = rollout.remembered(rollout.revisions(work.seen.children.values()), choice)
        records = [] if rendered.problems else [rollout.record(work.seen.model, one) for one in kept]
        work.wanted = [*records, *children]
        if rendered.problems:
            first = rendered.problems[0]
            work.failure = Failure(first.reason, "; ".join(one.text for one in rendered.problems[:3]))
        return bool(rendered.problems)

    async def _carried_out(self, key: str, work: _Work) -> bool:
        """Write what is planned; False when something unknown was in the way and it must be planned anew."""
        written = await self._writer.carry_out(key, work.seen, work.plan, prune=work.failure is None)
        work.applied += written.applied
        work.pruned += written.pruned
        work.taken |= written.taken
        work.news |= written.news
        if written.refused is not None:
            work.failure, work.refused = written.refused, True
            return True
        return not written.anew

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
                now = await self._api.apply_status({**body, "metadata": names}, STATUS_MANAGER)
            except NotFound:
                return None  # it was deleted meanwhile
            if self._shelf.put(now):
                self._echoed(key)
            work.news |= _asked(now) != _asked(work.seen.model)
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
            found = pools.states(spec, work.wanted, ours, work.choice.revision.hash, adopted, seen.pods, work.notes)
        workloads = [one for one in ours.values() if one["kind"] in WORKLOADS]
        wall, grace = self._clock.wall(), self._capacity_grace_seconds
        work.awaited = awaited(seen.pods, wall, grace)
        kept = [one for one in work.plan.kept if one.manifest["kind"] in WORKLOADS and not seen.stale]
        situation = summarize.Situation(
            pools=found,
            failure=work.failure or failure(seen.pods, workloads, wall=wall, grace_seconds=grace),
            waiting=work.choice.why if work.choice.held else "",
            paused=spec is not None and spec.rollout.paused,
            undone=work.choice.why if work.choice.waiting and not work.choice.held else "",
            kept="; ".join(f"{name_of(one.manifest)}: {one.why}" for one in kept),
            awaited=work.awaited.message if work.awaited is not None else "",
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


def _asked(model: Manifest) -> tuple[int, Mapping[str, str], bool]:
    """What people ask of a model, in short."""
    return generation_of(model), annotations_of(model), leaving(model)


def _again(work: _Work, adopting: bool) -> float | None:
    if work.news:
        return 0.0
    if work.plan.kept and work.seen.stale:
        return STALE_SECONDS
    if any(one.blocks for one in work.plan.kept):
        return BLOCKED_SECONDS
    later = [ADOPTED_SECONDS] if adopting else []
    later += [GROUPS_SECONDS] if any(annotation(one, SURGE) for one in work.wanted) else []
    later += [REFUSED_SECONDS] if work.refused else []
    later += [work.awaited.seconds] if work.awaited is not None else []
    return min(later, default=None)


def _time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
