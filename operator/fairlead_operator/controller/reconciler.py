"""Brings one model towards its spec: observe, choose the revision, render, plan, write, report.

Nothing is remembered between two passes but the cluster's state. A process that is killed after any
write therefore continues where it stopped. Names are deterministic, so nothing is created twice.
"""

from fairlead.api.conditions import Reason
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.labels import installation_of
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.errors import Conflict, Forbidden, Invalid
from fairlead.kube.resources import Manifest, is_deleting, labels_of, uid_of
from fairlead.runtime.clock import Clock
from fairlead_operator.controller.apply_plan import ApplyPlan, ApplyStep, PruneGuard, make_plan
from fairlead_operator.controller.desired_state import ChosenSpec, DesiredState, Render, choose_spec, desired_state
from fairlead_operator.controller.status_writer import PassResult, StatusWriter
from fairlead_operator.kube.object_cache import ModelSnapshot, ObjectCache
from fairlead_operator.kube.writer import ModelMoved, ObjectWriter
from fairlead_operator.manager_interface import ManagerInterface
from fairlead_operator.object_metadata import WORKLOAD_KINDS, ChildKey, controller_uid
from fairlead_operator.render.context import InstallationDefaults, render_context
from fairlead_operator.render.model import render_model
from fairlead_operator.scale_placeholder import (
    PLACEHOLDER_FIELD_MANAGER,
    PlaceholderWrite,
    kept_field,
    placeholder_manifest,
    placeholder_number,
    plan_placeholder,
)
from fairlead_operator.status import events
from fairlead_operator.status.diagnosis import Failure

_MAX_REPLANS = 4
_MOVED_SECONDS = 1.0
"""The pause before the next pass if a write showed that the model differs from the cache, and the
cache does not take the other one: it is older than what was seen before.
"""


class _OtherInstallation(Exception):
    """Raised if the children of a model are managed by another installation."""

    def __init__(self, installation: str) -> None:
        super().__init__(installation)
        self.installation = installation


class Reconciler:
    """The control loop of models. Passes over one model never overlap; passes over several do.

    capacity_grace_seconds: how long a pod may wait for a node before its model is stalled.
    """

    def __init__(
        self,
        api: KubeClient,
        cache: ObjectCache,
        clock: Clock,
        host: ManagerInterface,
        installation: InstallationDefaults,
        *,
        capacity_grace_seconds: float = 0.0,
        render: Render = render_model,
    ) -> None:
        self._writer = ObjectWriter(api, cache, host.ignore_self_event)
        self.counts = self._writer.counts
        self.other_installations: dict[str, str] = {}
        """Models whose children another installation manages, by key, with its id."""
        self._api = api
        self._cache = cache
        self._host = host
        self._installation = installation
        self._status_writer = StatusWriter(api, cache, clock, host, self.counts, capacity_grace_seconds)
        self._render = render

    async def reconcile(self, key: str) -> float | None:
        """Reconciles the model `key` once, and returns the seconds until the next pass.

        None: the next pass waits for an event, or the model is gone. Raises KubeError if the API
        server is unavailable or a write conflicts with another.
        """
        self.counts.reconciles += 1
        snapshot = self._cache.snapshot(key, self._host.stale_cache_reason())
        if snapshot is None or is_deleting(snapshot.model):
            self.other_installations.pop(key, None)
            return None  # its children are owned: they are deleted with it, and drain
        chosen = choose_spec(snapshot)
        try:
            written = await self._write_children(key, snapshot, chosen)
        except ModelMoved:
            current = self._cache.models.get(key)
            return _MOVED_SECONDS if current is snapshot.model else 0.0
        except _OtherInstallation as error:
            self._on_other_installation(key, snapshot.model, error.installation)
            return None  # a change of its children is an event
        self.other_installations.pop(key, None)
        seconds = await self._status_writer.write(key, chosen, written)
        for event in events.events_of_writes(written.applied, written.pruned):
            self._host.record_event(snapshot.model, event)
        is_settled = written.failure is None and not written.plan.retained and not written.snapshot.stale
        return 0.0 if is_settled and await self._write_placeholder(key) else seconds

    async def _write_placeholder(self, key: str) -> bool:
        """Lets autoscalers read the scale of the model. Returns True if this changed its spec.

        A model that was changed meanwhile has another event.
        """
        snapshot = self._cache.snapshot(key, "")
        if snapshot is None or is_deleting(snapshot.model):
            return False
        owners = ("", uid_of(snapshot.model))
        children = (child for child in snapshot.children.values() if controller_uid(child) in owners)
        wanted = placeholder_number(snapshot.model.get("spec") or {}, children)
        write = plan_placeholder(kept_field(snapshot.model), wanted)
        if write is PlaceholderWrite.NONE:
            return False
        manifest = placeholder_manifest(snapshot.model, wanted if write is PlaceholderWrite.SET else None)
        try:
            updated = await self._api.apply(manifest, PLACEHOLDER_FIELD_MANAGER)
        except (Conflict, Forbidden, Invalid):
            return False
        self._cache.record_write(updated)
        return True

    async def _write_children(self, key: str, snapshot: ModelSnapshot, chosen: ChosenSpec) -> PassResult:
        """Plans and writes the children, and repeats both if a write found an unknown object.

        Raises ModelMoved if the model changed meanwhile, or if too many plans were needed, and
        _OtherInstallation if another installation manages the children.
        """
        self._check_installation(snapshot)
        if chosen.model is None:
            return PassResult(snapshot, failure=chosen.failure)
        applied: list[ApplyStep] = []
        pruned: list[Manifest] = []
        foreign_names: set[ChildKey] = set()
        has_news = False
        for _ in range(_MAX_REPLANS):
            snapshot = self._refresh(key, snapshot)
            self._check_installation(snapshot)
            desired = self._desired_state(snapshot, chosen, foreign_names)
            guard = PruneGuard(snapshot.stale, not desired.is_complete, paused=chosen.model.spec.rollout.paused)
            plan = make_plan(
                snapshot.model,
                desired.children,
                snapshot.children,
                guard,
                self._writer.dropped_fields,
                self._installation.id,
            )
            failure = desired.failure or chosen.failure or self._endpoint_failure(chosen.model)
            result = await self._writer.execute(key, snapshot, plan, prune=failure is None)
            applied += result.applied
            pruned += result.pruned
            foreign_names |= result.foreign_names
            has_news |= result.has_news
            rejection = result.rejection
            if rejection is not None or not result.must_replan:
                break
        else:
            if not foreign_names:
                raise ModelMoved
            plan, rejection = ApplyPlan(), _foreign_names_failure(foreign_names)
        return PassResult(
            snapshot,
            desired,
            plan,
            rejection or failure,
            tuple(applied),
            tuple(pruned),
            has_news,
            is_rejected=rejection is not None,
        )

    def _check_installation(self, snapshot: ModelSnapshot) -> None:
        """Raises _OtherInstallation if another installation manages the model's children."""
        owners = ("", uid_of(snapshot.model))  # not the children of an earlier model of this name
        found = installation_of(
            labels_of(child) for child in snapshot.children.values() if controller_uid(child) in owners
        )
        if found not in ("", self._installation.id):
            raise _OtherInstallation(found)

    def _on_other_installation(self, key: str, model: Manifest, installation: str) -> None:
        """Reports once that a model is left alone. The status belongs to the other operator."""
        if self.other_installations.get(key) == installation:
            return
        self.other_installations[key] = installation
        self._host.record_event(model, events.other_installation(installation, self._installation.id))

    def _endpoint_failure(self, model: ModelDeployment) -> Failure | None:
        """Returns the failure of a model that names endpoints where it may not."""
        namespace = model.metadata.namespace or "default"
        if self._installation.may_name_endpoints(namespace) or not any(pool.endpoints for pool in model.spec.pools):
            return None
        message = (
            f"endpoints are not allowed in the namespace {namespace}: use a selector of pods, or ask an administrator"
        )
        return Failure(
            Reason.INVALID_SPEC, f"{message} to add the namespace to the chart value externalEngines.namespaces"
        )

    def _refresh(self, key: str, snapshot: ModelSnapshot) -> ModelSnapshot:
        """Returns the current snapshot. Raises ModelMoved if the model has been deleted."""
        current = self._cache.snapshot(key, snapshot.stale)
        if current is None or uid_of(current.model) != uid_of(snapshot.model):
            raise ModelMoved
        return current

    def _desired_state(self, snapshot: ModelSnapshot, chosen: ChosenSpec, foreign_names: set[ChildKey]) -> DesiredState:
        workloads = [
            child for child in snapshot.children.values() if child["kind"] in WORKLOAD_KINDS and not is_deleting(child)
        ]
        names = frozenset(name for _, name in foreign_names)
        context = render_context(self._installation, workloads, names, self._host.capabilities)
        return desired_state(snapshot, chosen, context, self._render)


def _foreign_names_failure(foreign_names: set[ChildKey]) -> Failure:
    names = ", ".join(f"{kind} {name}" for kind, name in sorted(foreign_names))
    message = f"{names} exists and is not Fairlead's: remove it, or give the model another name"
    return Failure(Reason.INVALID_SPEC, message)
