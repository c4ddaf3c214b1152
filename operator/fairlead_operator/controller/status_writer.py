"""Writes the status of a model, computed from the observed state, if it changed.

It also records the Events of the change, and returns the seconds until the model's next pass.

Neither has children: gateways read them from the cluster themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.client_names import adapter_key
from fairlead.fleet.labels import SURGE_ANNOTATION
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.conditions import format_time
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import (
    PODS,
    Manifest,
    is_deleting,
    label_selector,
    name_of,
    uid_of,
)
from fairlead.runtime.clock import Clock
from fairlead_operator.canary.instances import is_canary_ready
from fairlead_operator.canary.progress import CanaryInputs, CanaryState, next_state, parse_state
from fairlead_operator.controller.apply_plan import ApplyPlan, ApplyStep
from fairlead_operator.controller.desired_state import ChosenSpec, DesiredState
from fairlead_operator.kube.object_cache import ModelSnapshot, ObjectCache
from fairlead_operator.kube.object_trimming import trim_model
from fairlead_operator.kube.writer import WriteCounts
from fairlead_operator.manager_interface import ManagerInterface
from fairlead_operator.object_metadata import (
    STATUS_FIELD_MANAGER,
    WORKLOAD_KINDS,
    ChildKey,
    annotation,
    controller_uid,
    generation_of,
    request_state,
)
from fairlead_operator.status import events, model_status, pool_status
from fairlead_operator.status.adapter_status import adapter_status
from fairlead_operator.status.applied_status import has_changed, status_manifest
from fairlead_operator.status.diagnosis import Failure, PendingCapacity, diagnose, pending_capacity
from fairlead_operator.status.pod_requirements import requirements_by_pool
from fairlead_operator.status.route_status import route_status

REQUEUE_EXTERNAL_SECONDS = 15.0
REQUEUE_WHEN_STALE_SECONDS = 5.0
REQUEUE_WHEN_BLOCKED_SECONDS = 2.0
REQUEUE_WHILE_LISTING_SECONDS = 1.0
LISTING_SHARE = 0.1
"""The share of time in which the operator lists pods of one namespace for its external pools.

Why: a namespace has any number of pools and pods. Lists of one must not occupy all workers.
"""
GROUP_ROLLOUT_POLL_SECONDS = 15.0
"""Poll interval of groups that are replaced: events of their pods may precede our own write."""
RETRY_REJECTED_WRITE_SECONDS = 30.0
"""No event reports that a quota was raised or a name became free."""


class NameStatusWriter:
    """The control loop of routes and adapters."""

    def __init__(self, api: KubeClient, cache: ObjectCache, clock: Clock, counts: WriteCounts) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._counts = counts

    async def reconcile(self, key: str) -> float | None:
        """Writes the status of a route or an adapter if it has changed. Raises KubeError.

        Returns 0 if it was changed meanwhile, else None. The event of that change is not new.

        key: of the claim of its names.
        """
        snapshot = self._cache.claimant_snapshot(key)
        if snapshot is None or is_deleting(snapshot.manifest):
            return None
        manifest, now = snapshot.manifest, format_time(self._clock.wall())
        describe = route_status if adapter_key(key) is None else adapter_status
        status = describe(manifest, snapshot.names, snapshot.models, generation_of(manifest), now)
        if not has_changed(manifest, status):
            return None
        try:
            updated = await self._api.apply_status(status_manifest(manifest, status), STATUS_FIELD_MANAGER)
        except NotFound:
            return None  # it was deleted meanwhile
        self._cache.record_write(updated)
        self._counts.statuses += 1
        return 0.0 if request_state(trim_model(updated)) != request_state(manifest) else None


@dataclass(frozen=True, slots=True)
class PassResult:
    """The writes of one pass, and the state that they are based on.

    failure: stalls the model.
    has_news: a response contained more than our own change.
    is_rejected: a write was rejected.
    """

    snapshot: ModelSnapshot
    desired: DesiredState = field(default_factory=DesiredState)
    plan: ApplyPlan = field(default_factory=ApplyPlan)
    failure: Failure | None = None
    applied: tuple[ApplyStep, ...] = ()
    pruned: tuple[Manifest, ...] = ()
    has_news: bool = False
    is_rejected: bool = False


class StatusWriter:
    """The writer of `status`, and of the events that follow from its changes.

    capacity_grace_seconds: how long a pod may wait for a node before its model is stalled.
    """

    def __init__(
        self,
        api: KubeClient,
        cache: ObjectCache,
        clock: Clock,
        host: ManagerInterface,
        counts: WriteCounts,
        capacity_grace_seconds: float,
    ) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._host = host
        self._counts = counts
        self._capacity_grace_seconds = capacity_grace_seconds
        self._lists_from: dict[str, float] = {}
        """When pods of a namespace may be listed again; infinite while they are listed."""

    async def write(self, key: str, chosen: ChosenSpec, written: PassResult) -> float | None:
        """Writes the status if it has changed, and returns the seconds until the next pass."""
        snapshot = self._cache.snapshot(key, written.snapshot.stale) or written.snapshot
        observed = written.snapshot.model  # the status is about this one, even if a newer one is known
        if uid_of(snapshot.model) != uid_of(observed):
            return 0.0
        if (seconds := self._seconds_until_list(chosen.model)) > 0.0:
            return seconds
        wall, has_news = self._clock.wall(), written.has_news
        children = _own_children(snapshot)
        workloads = [child for child in children.values() if child["kind"] in WORKLOAD_KINDS]
        requirements, grace = requirements_by_pool(workloads, _accelerators(chosen.model)), self._capacity_grace_seconds
        pending = pending_capacity(snapshot.pods, wall, grace, requirements)
        diagnosis = diagnose(snapshot.pods, workloads, wall=wall, grace_seconds=grace, requirements=requirements)
        pools = await self._pool_states(snapshot, children, chosen, written)
        inputs = _status_inputs(snapshot, chosen, written, pools, (written.failure or diagnosis, pending))
        inputs = replace(inputs, canary=self._canary_state(key, snapshot, chosen, wall))
        status = model_status.model_status(snapshot.model, inputs, generation_of(observed), format_time(wall))
        if model_status.has_changed(snapshot.model, status):
            try:
                updated = await self._api.apply_status(status_manifest(snapshot.model, status), STATUS_FIELD_MANAGER)
            except NotFound:
                return None  # it was deleted meanwhile
            if self._cache.record_write(updated):
                self._host.ignore_self_event(key)
            has_news |= request_state(trim_model(updated)) != request_state(observed)
            self._counts.statuses += 1
            for event in events.events_of_status(snapshot.model.get("status") or {}, status):
                self._host.record_event(snapshot.model, event)
            has_news |= _acts_on_canary(snapshot.model, inputs.canary)
        if has_news:
            return 0.0
        return _requeue_after(written, pending, has_external=any(pool.is_external for pool in inputs.pools))

    def _canary_state(self, key: str, snapshot: ModelSnapshot, chosen: ChosenSpec, wall: float) -> CanaryState | None:
        """Returns the next state of the model's canary; None without one so far."""
        choice, model = chosen.choice, chosen.model
        state = parse_state(snapshot.model.get("status") or {})
        if model is None:
            return state
        tried = choice.canary if choice.is_pending else None
        children = list(snapshot.children.values())
        inputs = CanaryInputs(
            canary=model.spec.rollout.canary,
            wanted=None if tried is None else (tried.number, tried.hash),
            running=choice.revision.hash,
            is_ready=tried is not None and is_canary_ready(children, tried.hash),
            is_paused=model.spec.rollout.paused,
            judgement=self._host.judgement(key, state),
            wall=wall,
        )
        return next_state(state, inputs)

    async def _pool_states(
        self, snapshot: ModelSnapshot, children: Mapping[ChildKey, Manifest], chosen: ChosenSpec, written: PassResult
    ) -> tuple[model_status.PoolState, ...]:
        model, desired = chosen.model, written.desired
        if model is None:
            return ()
        endpoints = await self._endpoint_counts(model) if model.spec.is_external else {}
        observed = pool_status.ObservedPools(children, snapshot.pods, endpoints)
        return pool_status.pool_states(
            model.spec, desired.children, chosen.choice.revision.hash, observed, desired.surge_messages
        )

    def _seconds_until_list(self, model: ModelDeployment | None) -> float:
        """Returns the seconds until the pods of an external model may be listed; 0 for others."""
        if model is None or not any(pool.selector for pool in model.spec.pools):
            return 0.0
        left = self._lists_from.get(model.metadata.namespace or "", 0.0) - self._clock.now()
        return REQUEUE_WHILE_LISTING_SECONDS if left == math.inf else min(left, REQUEUE_EXTERNAL_SECONDS)

    async def _endpoint_counts(self, model: ModelDeployment) -> Mapping[str, int]:
        """Returns the endpoints of each external pool: its addresses, or its ready pods."""
        namespace, began = model.metadata.namespace or "", self._clock.now()
        counts = {pool.name: len(pool.endpoints) for pool in model.spec.pools}
        selectors = {pool.name: pool.selector for pool in model.spec.pools if pool.selector is not None}
        if not selectors:
            return counts
        self._lists_from[namespace] = math.inf
        try:
            for name, selector in selectors.items():
                pods = await self._api.list(PODS, model.metadata.namespace, label_selector(selector.match_labels))
                counts[name] = pool_status.count_ready_pods(pods.items)
        finally:
            now = self._clock.now()
            self._lists_from[namespace] = now + (now - began) * (1.0 / LISTING_SHARE - 1.0)
        return counts


def _acts_on_canary(before: Manifest, state: CanaryState | None) -> bool:
    """Returns True if the next pass has to act on a new state of the canary."""
    previous = parse_state(before.get("status") or {})
    known = (None, 0) if previous is None else (previous.phase, previous.weight)
    return state is not None and (state.phase, state.weight) != known


def _own_children(snapshot: ModelSnapshot) -> dict[ChildKey, Manifest]:
    owners = ("", uid_of(snapshot.model))
    return {key: child for key, child in snapshot.children.items() if controller_uid(child) in owners}


def _accelerators(model: ModelDeployment | None) -> dict[str, str]:
    pools = model.spec.pools if model is not None else []
    return {pool.name: pool.accelerator_class_name for pool in pools if pool.accelerator_class_name}


def _status_inputs(
    snapshot: ModelSnapshot,
    chosen: ChosenSpec,
    written: PassResult,
    pools: tuple[model_status.PoolState, ...],
    trouble: tuple[Failure | None, PendingCapacity | None],
) -> model_status.StatusInputs:
    choice, model, (failure, pending) = chosen.choice, chosen.model, trouble
    retained = [
        f"{name_of(kept.manifest)}: {kept.reason}"
        for kept in written.plan.retained
        if kept.manifest["kind"] in WORKLOAD_KINDS and not snapshot.stale
    ]
    return model_status.StatusInputs(
        pools=pools,
        failure=failure,
        waiting=choice.reason if choice.held_by_pause else "",
        paused=model is not None and model.spec.rollout.paused,
        undone=choice.reason if choice.is_pending and not choice.held_by_pause else "",
        retained="; ".join(retained),
        pending_capacity=pending.message if pending is not None else "",
        refused_names=snapshot.refused_names,
        served_names=snapshot.served_names,
        deleting_pods=sum(is_deleting(pod) for pod in snapshot.pods),
    )


def _requeue_after(written: PassResult, pending: PendingCapacity | None, *, has_external: bool) -> float | None:
    """Returns the seconds until the next pass if no event comes; None to wait for an event."""
    if written.plan.retained and written.snapshot.stale:
        return REQUEUE_WHEN_STALE_SECONDS
    if any(kept.blocks_name for kept in written.plan.retained):
        return REQUEUE_WHEN_BLOCKED_SECONDS
    has_surge = any(annotation(child, SURGE_ANNOTATION) for child in written.desired.children)
    delays = [REQUEUE_EXTERNAL_SECONDS] if has_external else []
    delays += [GROUP_ROLLOUT_POLL_SECONDS] if has_surge else []
    delays += [RETRY_REJECTED_WRITE_SECONDS] if written.is_rejected else []
    delays += [pending.seconds] if pending is not None else []
    return min(delays, default=None)
