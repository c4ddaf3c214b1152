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
from fairlead.errors import FairleadError
from fairlead.fleet.labels import SURGE_ANNOTATION
from fairlead.kube.errors import NotFound
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import (
    MODEL_DEPLOYMENTS,
    PODS,
    Manifest,
    annotations_of,
    is_deleting,
    label_selector,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead.runtime.clock import Clock
from fairlead_operator.controller import group_rollout, revisions
from fairlead_operator.controller.apply_plan import ApplyPlan, ApplyStep, PruneGuard, make_plan
from fairlead_operator.kube.object_cache import ModelSnapshot, ObjectCache
from fairlead_operator.kube.writer import KubeClient, ModelMoved, ObjectWriter
from fairlead_operator.object_metadata import (
    STATUS_FIELD_MANAGER,
    WORKLOAD_KINDS,
    ChildKey,
    annotation,
    controller_uid,
    generation_of,
    with_revision,
)
from fairlead_operator.render.context import ClusterCapabilities
from fairlead_operator.seam import Render, World
from fairlead_operator.status import events, model_status, pool_status
from fairlead_operator.status.diagnosis import Failure, PendingCapacity, diagnose, pending_capacity

REQUEUE_EXTERNAL_SECONDS = 15.0
REQUEUE_WHEN_STALE_SECONDS = 5.0
REQUEUE_WHEN_BLOCKED_SECONDS = 2.0
GROUP_ROLLOUT_POLL_SECONDS = 15.0
"""Groups that are replaced are looked at this often, should news of their pods have come before that of our own write."""
RETRY_REJECTED_WRITE_SECONDS = 30.0
"""Until a write that was refused is tried again: nobody tells us of a quota that was raised, or a name that is free."""
_MAX_REPLANS = 4


@dataclass(slots=True)
class _Work:
    """One model while it is looked at."""

    seen: ModelSnapshot
    choice: revisions.RevisionChoice
    parsed: ModelDeployment | None = None
    wanted: list[Manifest] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    plan: ApplyPlan = field(default_factory=ApplyPlan)
    failure: Failure | None = None
    taken: set[ChildKey] = field(default_factory=set)
    applied: list[ApplyStep] = field(default_factory=list)
    pruned: list[Manifest] = field(default_factory=list)
    awaited: PendingCapacity | None = None
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
        api: KubeClient,
        cache: ObjectCache,
        render: Render,
        clock: Clock,
        *,
        cluster: Callable[[], ClusterCapabilities],
        staleness: Callable[[], str],
        record_event: Callable[[Manifest, EventDraft], None],
        capacity_grace_seconds: float = 0.0,
        on_self_write: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._writer = ObjectWriter(api, cache, on_self_write)
        self._on_self_write = on_self_write
        self.counts = self._writer.counts
        self._api = api
        self._cache = cache
        self._render = render
        self._clock = clock
        self._cluster = cluster
        self._staleness = staleness
        self._record_event = record_event
        self._capacity_grace_seconds = capacity_grace_seconds

    async def reconcile(self, key: str) -> float | None:
        """Bring the model ``key`` as far as it goes now; the seconds after which to look again, None to wait for news.

        Raises KubeError when the API server is away or a write lost a race: try again.
        """
        self.counts.reconciles += 1
        seen = self._cache.snapshot(key, self._staleness())
        if seen is None or is_deleting(seen.model):
            return None  # its children go with it: they are owned, and drain by themselves
        work = self._chosen(seen)
        try:
            await self._brought_forward(key, work)
        except ModelMoved:
            return 0.0
        again = await self._reported(key, work)
        for happening in events.events_of_writes(work.applied, work.pruned):
            self._record_event(seen.model, happening)
        return again

    async def _brought_forward(self, key: str, work: _Work) -> None:
        for _ in range(_MAX_REPLANS):
            self._planned(key, work)
            if await self._carried_out(key, work):
                return
        if not work.taken:
            raise ModelMoved
        names = ", ".join(f"{kind} {name}" for kind, name in sorted(work.taken))
        message = f"{names} exists and is not Fairlead's: remove it, or give the model another name"
        work.failure, work.plan, work.refused = Failure(Reason.INVALID_SPEC, message), ApplyPlan(), True

    def _chosen(self, seen: ModelSnapshot) -> _Work:
        """Which spec is to run, and what it means."""
        children = seen.children.values()
        kept = revisions.stored_revisions(children)
        choice = revisions.choose_revision(seen.model, kept, revisions.running_hashes(children))
        work = _Work(seen, choice)
        if choice.problem:
            work.failure = Failure(Reason.INVALID_SPEC, choice.problem)
        try:
            work.parsed = parse_model(seen.model, choice.spec)
        except ValidationError as error:
            work.failure = Failure(Reason.INVALID_SPEC, describe_error(error))
        return work

    def _planned(self, key: str, work: _Work) -> None:
        """Render and compare. Raises Moved when the model is another one meanwhile."""
        if work.parsed is None:
            return
        seen = self._cache.snapshot(key, work.seen.stale)
        if seen is None or uid_of(seen.model) != uid_of(work.seen.model):
            raise ModelMoved
        work.seen = seen
        incomplete = self._rendered(work)
        doubts = PruneGuard(seen.stale, incomplete, paused=work.parsed.spec.rollout.paused)
        work.plan = make_plan(seen.model, work.wanted, seen.children, doubts, self._writer.dropped_fields)

    def _rendered(self, work: _Work) -> bool:
        """Work out the children; True when not all of them could be."""
        assert work.parsed is not None
        choice = work.choice
        there = tuple(
            one for one in work.seen.children.values() if one["kind"] in WORKLOAD_KINDS and not is_deleting(one)
        )
        world = World(there, frozenset(name for _, name in work.taken), self._cluster())
        try:
            rendered = self._render(work.parsed, _accelerator_classes(work.seen.accelerators), world)
        except FairleadError as error:
            work.failure, work.wanted = Failure(Reason.INVALID_SPEC, str(error)), []
            return True
        pace = work.parsed.spec.rollout
        paced, work.notes = group_rollout.apply_surge(rendered.manifests, work.seen.children, work.seen.pods, pace)
        children = [_mark_workload(one, choice.revision.hash) for one in paced]
        kept = revisions.revisions_to_keep(revisions.stored_revisions(work.seen.children.values()), choice)
        records = [] if rendered.problems else [revisions.controller_revision(work.seen.model, one) for one in kept]
        work.wanted = [*records, *children]
        if rendered.problems:
            first = rendered.problems[0]
            work.failure = Failure(first.reason, "; ".join(one.message_with_fix for one in rendered.problems[:3]))
        return bool(rendered.problems)

    async def _carried_out(self, key: str, work: _Work) -> bool:
        """Write what is planned; False when something unknown was in the way and it must be planned anew."""
        written = await self._writer.execute(key, work.seen, work.plan, prune=work.failure is None)
        work.applied += written.applied
        work.pruned += written.pruned
        work.taken |= written.foreign_names
        work.news |= written.has_news
        if written.rejection is not None:
            work.failure, work.refused = written.rejection, True
            return True
        return not written.must_replan

    async def _reported(self, key: str, work: _Work) -> float | None:
        """Write the status where it says something new; the seconds until the next look."""
        seen = self._cache.snapshot(key, work.seen.stale) or work.seen
        if uid_of(seen.model) != uid_of(work.seen.model):
            return 0.0
        before = seen.model.get("status") or {}
        situation, adopting = await self._situation(seen, work)
        # It is about the spec that was looked at, which may not be the newest any more.
        generation = generation_of(work.seen.model)
        status = model_status.model_status(seen.model, situation, generation, _format_time(self._clock.wall()))
        if model_status.has_changed(seen.model, status):
            body = {"apiVersion": API_VERSION, "kind": MODEL_DEPLOYMENTS.kind, "status": status}
            names = {name: metadata_of(seen.model)[name] for name in ("name", "namespace", "uid")}
            try:
                now = await self._api.apply_status({**body, "metadata": names}, STATUS_FIELD_MANAGER)
            except NotFound:
                return None  # it was deleted meanwhile
            if self._cache.record_write(now):
                self._on_self_write(key)
            work.news |= _request_state(now) != _request_state(work.seen.model)
            self.counts.statuses += 1
            for happening in events.events_of_status(before, status):
                self._record_event(seen.model, happening)
        return _requeue_after(work, adopting)

    async def _situation(self, seen: ModelSnapshot, work: _Work) -> tuple[model_status.StatusInputs, bool]:
        """What the status is made of; True with it when somebody else's pods are counted, whose changes nobody tells us."""
        spec = work.parsed.spec if work.parsed is not None else None
        adopted = await self._adopted(work.parsed) if work.parsed is not None and work.parsed.spec.is_external else {}
        uids = ("", uid_of(seen.model))  # children of an earlier model of this name are none of its
        ours = {key: one for key, one in seen.children.items() if controller_uid(one) in uids}
        found: tuple[model_status.PoolState, ...] = ()
        if spec is not None:
            found = pool_status.pool_states(
                spec, work.wanted, ours, work.choice.revision.hash, adopted, seen.pods, work.notes
            )
        workloads = [one for one in ours.values() if one["kind"] in WORKLOAD_KINDS]
        wall, grace = self._clock.wall(), self._capacity_grace_seconds
        work.awaited = pending_capacity(seen.pods, wall, grace)
        kept = [one for one in work.plan.retained if one.manifest["kind"] in WORKLOAD_KINDS and not seen.stale]
        situation = model_status.StatusInputs(
            pools=found,
            failure=work.failure or diagnose(seen.pods, workloads, wall=wall, grace_seconds=grace),
            waiting=work.choice.reason if work.choice.held_by_pause else "",
            paused=spec is not None and spec.rollout.paused,
            undone=work.choice.reason if work.choice.is_pending and not work.choice.held_by_pause else "",
            retained="; ".join(f"{name_of(one.manifest)}: {one.reason}" for one in kept),
            pending_capacity=work.awaited.message if work.awaited is not None else "",
            name_taken_by=seen.name_taken_by,
            deleting_pods=sum(is_deleting(pod) for pod in seen.pods),
        )
        return situation, any(pool.is_external for pool in found)

    async def _adopted(self, model: ModelDeployment) -> Mapping[str, int]:
        """The endpoints of each pool that Fairlead does not run: addresses as they are written, pods that are ready."""
        counts = {}
        for pool in model.spec.pools:
            counts[pool.name] = len(pool.endpoints)
            if pool.selector is not None:
                labels = label_selector(pool.selector.match_labels)
                listed = await self._api.list(PODS, model.metadata.namespace, labels)
                counts[pool.name] = pool_status.count_ready_pods(listed.items)
        return counts


def parse_model(model: Manifest, spec: Mapping[str, Any]) -> ModelDeployment:
    """The model with the spec that shall run, typed. Raises ValidationError."""
    metadata = {name: metadata_of(model).get(name) for name in ("name", "namespace", "uid", "labels", "annotations")}
    known = {name: value for name, value in metadata.items() if value is not None}
    return ModelDeployment.model_validate(
        {"apiVersion": API_VERSION, "kind": MODEL_DEPLOYMENTS.kind, "metadata": known, "spec": spec}
    )


def describe_error(error: ValidationError) -> str:
    """The first findings of a spec that this release cannot carry out."""
    found = error.errors(include_url=False, include_input=False)
    told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:3]]
    return "; ".join(told) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _accelerator_classes(found: Mapping[str, Manifest]) -> dict[str, AcceleratorClass]:
    """The cluster's own classes. One that this release cannot read is as good as absent: whoever names it is told so."""
    classes = {}
    for name, one in found.items():
        body = {"apiVersion": API_VERSION, "kind": "AcceleratorClass", "metadata": {"name": name}}
        try:
            classes[name] = AcceleratorClass.model_validate({**body, "spec": one.get("spec") or {}})
        except ValidationError:
            continue
    return classes


def _mark_workload(manifest: Manifest, revision: str) -> Manifest:
    return with_revision(manifest, revision) if manifest["kind"] in WORKLOAD_KINDS else manifest


def _request_state(model: Manifest) -> tuple[int, Mapping[str, str], bool]:
    """What people ask of a model, in short."""
    return generation_of(model), annotations_of(model), is_deleting(model)


def _requeue_after(work: _Work, adopting: bool) -> float | None:
    if work.news:
        return 0.0
    if work.plan.retained and work.seen.stale:
        return REQUEUE_WHEN_STALE_SECONDS
    if any(one.blocks_name for one in work.plan.retained):
        return REQUEUE_WHEN_BLOCKED_SECONDS
    later = [REQUEUE_EXTERNAL_SECONDS] if adopting else []
    later += [GROUP_ROLLOUT_POLL_SECONDS] if any(annotation(one, SURGE_ANNOTATION) for one in work.wanted) else []
    later += [RETRY_REJECTED_WRITE_SECONDS] if work.refused else []
    later += [work.awaited.seconds] if work.awaited is not None else []
    return min(later, default=None)


def _format_time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
