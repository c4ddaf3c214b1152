"""Engine restarter: marks the pods whose engine hangs, and deletes them after a grace.

It runs in the leader only. A round reads all gateways, plans each model and writes. Nothing is
written while the observed state may be out of date.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from fairlead.errors import FairleadError
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.conditions import format_time
from fairlead.kube.errors import Conflict, KubeError, NotFound
from fairlead.kube.events.event import EventDraft, EventType
from fairlead.kube.resources import PODS, Manifest, is_deleting, metadata_of, name_of, namespace_of, uid_of
from fairlead.runtime.clock import Pacing
from fairlead_operator.hung_engines.gateway_reports import GatewayReader
from fairlead_operator.hung_engines.restart_plan import (
    HungEnginePlan,
    PodMark,
    RestartRules,
    is_group_leader,
    plan_restarts,
    pod_verdicts,
    serving_condition,
)
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_operator.manager_interface import ManagerInterface
from fairlead_operator.object_metadata import STATUS_FIELD_MANAGER, WORKLOAD_KINDS

HUNG_POLL_SECONDS: Final = 15.0
"""Limit: interval at which the operator reads what gateways report of engines."""
HUNG_PODS_PER_RESTART: Final = 10
"""Limit: one of so many pods of a pool is restarted at a time, at least one: gateways may be wrong
about many.
"""
HUNG_STOP_SECONDS: Final = 30
"""Limit: from the deletion of a pod that hangs to SIGKILL; there is nothing to drain, and it has
devices.
"""

_LOG = logging.getLogger("fairlead.operator")
_MARKS_OF_NAMESPACE = 64
"""Marks that are written for one namespace in a round; the others follow in the next one.

Why: a namespace has any number of pods, and models of others wait meanwhile.
"""


@dataclass(slots=True)
class RestartCounts:
    """Numbers for metrics: of the last round, and pods deleted since the start."""

    gateways: int = 0
    gateways_missing: int = 0
    hung_pods: int = 0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class RestartOptions:
    """The options of a restarter.

    grace_seconds: how long gateways get no answer before an engine counts as hung.
    restart_seconds: how long its pod is marked before it is deleted; None: it is only marked.
    """

    grace_seconds: float
    restart_seconds: float | None
    poll_seconds: float = HUNG_POLL_SECONDS


class EngineRestarter:
    """The restarter of engines that hang."""

    def __init__(
        self,
        api: KubeClient,
        cache: ObjectCache,
        gateways: GatewayReader,
        host: ManagerInterface,
        pacing: Pacing,
        options: RestartOptions,
    ) -> None:
        self.counts = RestartCounts()
        self._api = api
        self._cache = cache
        self._gateways = gateways
        self._host = host
        self._pacing = pacing
        self._grace_seconds = options.grace_seconds
        self._poll_seconds = options.poll_seconds
        self._rules = RestartRules(options.restart_seconds, HUNG_PODS_PER_RESTART)
        self._deleted: set[str] = set()
        self._missing: dict[str, str] = {}

    async def run(self) -> None:
        """Runs a round at each interval until it is cancelled."""
        while True:
            await self._pacing.pause(self._poll_seconds * (0.9 + 0.2 * self._pacing.chance()))
            try:
                await self.run_once()
            except FairleadError as error:
                _LOG.warning("hung engines: %s", error)

    async def run_once(self) -> None:
        """Reads all gateways, and marks and deletes pods.

        Raises KubeError if gateways cannot be listed, or the first failure of a write. A write that
        fails for one model does not hold up the others.
        """
        reports = await self._gateways.read()
        self._log_missing({report.name: report.error for report in reports if report.error})
        self.counts.gateways, self.counts.gateways_missing = len(reports), len(self._missing)
        verdicts = pod_verdicts(reports, self._grace_seconds)
        hung = 0
        present: set[str] = set()
        marked: Counter[str] = Counter()
        failure: KubeError | None = None
        for key in list(self._cache.models):
            snapshot = self._cache.snapshot(key)
            if snapshot is None or is_deleting(snapshot.model):
                continue
            present.update(map(uid_of, snapshot.pods))
            pods = [pod for pod in snapshot.pods if uid_of(pod) not in self._deleted]
            gone = [pod for pod in snapshot.pods if uid_of(pod) in self._deleted]
            children = snapshot.children.values()
            workloads = [child for child in children if child["kind"] in WORKLOAD_KINDS and not is_deleting(child)]
            plan = plan_restarts(pods, verdicts, self._pacing.clock.wall(), self._rules, workloads)
            hung += len(plan.hung)
            namespace = key.partition("/")[0]
            plan = replace(plan, marks=plan.marks[: _MARKS_OF_NAMESPACE - marked[namespace]])
            marked[namespace] += len(plan.marks)
            try:
                await self._execute(snapshot.model, plan, gone)
            except KubeError as error:
                failure = failure or error
            await asyncio.sleep(0)
        self._deleted &= present
        self.counts.hung_pods = hung
        if failure is not None:
            raise failure

    async def _execute(self, model: Manifest, plan: HungEnginePlan, gone: Collection[Manifest]) -> None:
        """Writes the marks of a plan, then deletes its pods.

        gone: pods that this process has deleted, and that the watch still reports.
        """
        if self._host.stale_cache_reason():
            return
        for mark in plan.marks:
            if self._host.is_leading:
                await self._mark(model, mark)
        for name, reason in plan.waiting.items():
            _LOG.debug("the engine of pod %s hangs: %s", name, reason)
        if gone:
            return
        for pod in plan.restarts:
            if self._host.is_leading:
                await self._delete(model, pod)

    async def _mark(self, model: Manifest, mark: PodMark) -> None:
        pod = mark.pod
        names = {name: metadata_of(pod)[name] for name in ("name", "namespace", "uid")}
        condition = serving_condition(mark, format_time(self._pacing.clock.wall()))
        body = {"apiVersion": "v1", "kind": PODS.kind, "metadata": names, "status": {"conditions": [condition]}}
        try:
            await self._api.apply_status(body, STATUS_FIELD_MANAGER)
        except (NotFound, Conflict):
            return  # the pod is gone, or another one has its name
        type = EventType.NORMAL if mark.is_serving else EventType.WARNING
        note = f"Pod {name_of(pod)}: {mark.message}"
        self._host.record_event(model, EventDraft(type, str(mark.reason), "Mark", note))

    async def _delete(self, model: Manifest, pod: Manifest) -> None:
        """Deletes a pod, or the leader of a group.

        Why in the foreground: a new leader of the same name must not find workers of the old one.
        """
        uid, propagation = uid_of(pod), "Foreground" if is_group_leader(pod) else "Background"
        is_deleted = await self._api.delete(
            PODS, namespace_of(pod), name_of(pod), uid, propagation, grace_seconds=HUNG_STOP_SECONDS
        )
        self._deleted.add(uid)
        if is_deleted:
            self.counts.restarts += 1
            note = f"Deleted pod {name_of(pod)}, whose engine answers no request; its workload replaces it"
            self._host.record_event(model, EventDraft(EventType.WARNING, "EngineRestarted", "Delete", note))

    def _log_missing(self, missing: dict[str, str]) -> None:
        """Logs a gateway that does not answer, once per error."""
        for name, error in missing.items():
            if self._missing.get(name) != error:
                _LOG.warning("gateway %s is missing from the verdict on hung engines: %s", name, error)
        self._missing = missing
