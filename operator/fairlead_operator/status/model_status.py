"""Computes `status` of a model from the observed state, with a reason for each condition. Pure.

The conditions follow kstatus: `Ready` is always present, `Reconciling` and `Stalled` only while
True and never both. A transition time changes only with the condition's `status`. The same state
therefore gives the same bytes, and nothing is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.status import ConditionStatus
from fairlead.fleet.client_names import RefusedName, describe_owner
from fairlead.fleet.labels import MODEL_LABEL, POOL_LABEL
from fairlead.kube.conditions import ConditionValue, conditions_for, find_condition
from fairlead.kube.resources import Manifest, key_of, name_of
from fairlead_operator.canary.progress import CanaryState
from fairlead_operator.status.diagnosis import Failure

_OPERATOR_CONDITIONS = (
    ConditionType.READY,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
    ConditionType.NAME_TAKEN,
    ConditionType.CANARY_HEALTHY,
)
_REASONS_AFTER_START = (
    Reason.ALL_READY,
    Reason.SCALED_TO_ZERO,
    Reason.DEGRADED,
    Reason.NO_INSTANCE,
    Reason.NO_ENDPOINT,
)


@dataclass(frozen=True, slots=True)
class PoolState:
    """The instances of one pool.

    existing: including instances that are being replaced.
    updated: instances of the current revision.
    is_settled: the counts are about the current template.
    exists_in_cluster: the pool has a workload.
    is_external: Fairlead does not run the engines.
    asleep: ready instances that get no request until they are woken.
    note: how instances are being replaced, if not as usual.
    """

    name: str
    role: str
    desired: int
    ready: int
    updated: int
    existing: int
    is_settled: bool = True
    exists_in_cluster: bool = True
    is_external: bool = False
    asleep: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class StatusInputs:
    """Everything that a status depends on. Texts are empty if they do not apply.

    failure: stalls the model.
    waiting: which revision a paused rollout keeps running.
    undone: why an earlier revision runs.
    retained: workloads that are no longer desired and still serve.
    pending_capacity: pods that wait for a node.
    served_names: further names that the model has.
    paused: nothing is replaced now.
    canary: the latest canary; None without one so far.
    """

    pools: tuple[PoolState, ...]
    failure: Failure | None = None
    waiting: str = ""
    undone: str = ""
    retained: str = ""
    pending_capacity: str = ""
    refused_names: tuple[RefusedName, ...] = ()
    served_names: tuple[str, ...] = ()
    deleting_pods: int = 0
    paused: bool = False
    canary: CanaryState | None = None


def model_status(model: Manifest, inputs: StatusInputs, generation: int, now: str) -> dict[str, Any]:
    """Returns the operator's part of `status`, to be applied as a whole.

    generation: the generation that the status is about.
    now: current time as the API server writes it.
    """
    previous = model.get("status") or {}
    name, pools = name_of(model), inputs.pools
    has_served = (find_condition(previous, ConditionType.READY) or {}).get("reason") in _REASONS_AFTER_START
    conditions = [
        _ready_condition(inputs, has_served),
        _reconciling_condition(inputs, has_served),
        _stalled_condition(inputs),
        name_taken_condition(inputs.refused_names, name),
        inputs.canary.condition() if inputs.canary is not None else None,
    ]
    selector = f"{MODEL_LABEL}={name}" + (f",{POOL_LABEL}={pools[0].name}" if len(pools) == 1 else "")
    return {
        "observedGeneration": generation,
        "clientName": key_of(model) if any(one.name == name for one in inputs.refused_names) else name,
        **({"servedNames": list(inputs.served_names)} if inputs.served_names or previous.get("servedNames") else {}),
        **({"canary": inputs.canary.to_status()} if inputs.canary is not None else {}),
        "ready": format_ready(pools),
        "replicas": sum(pool.existing for pool in pools),
        "selector": selector,
        "pools": [
            {
                "name": pool.name,
                "role": pool.role,
                "desired": pool.desired,
                "ready": pool.ready,
                "updated": pool.updated,
            }
            for pool in pools
        ],
        "conditions": conditions_for(filter(None, conditions), previous, generation, now),
    }


def has_changed(model: Manifest, status: Mapping[str, Any]) -> bool:
    """Returns True if writing `status` would change something. The autoscaler's conditions are
    ignored.
    """
    previous = dict(model.get("status") or {})
    own_conditions = [
        condition for condition in previous.get("conditions") or [] if condition.get("type") in _OPERATOR_CONDITIONS
    ]
    return {**previous, "conditions": _by_type(own_conditions)} != {
        **previous,
        **status,
        "conditions": _by_type(status["conditions"]),
    }


def format_ready(pools: Sequence[PoolState]) -> str:
    """Returns `2/2`, or `Prefill 1/1, Decode 2/3` for several roles."""
    roles: dict[str, list[int]] = {}
    for pool in pools:
        have = roles.setdefault(pool.role, [0, 0])
        have[0] += pool.ready
        have[1] += pool.desired
    if len(roles) == 1:
        return next(f"{ready}/{desired}" for ready, desired in roles.values())
    return ", ".join(f"{role} {ready}/{desired}" for role, (ready, desired) in roles.items())


def _by_type(conditions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(conditions, key=lambda condition: str(condition.get("type")))


def _ready_condition(inputs: StatusInputs, has_served: bool) -> ConditionValue:
    pools = inputs.pools
    # External pools have no desired number: one ready pod is enough.
    short = [pool for pool in pools if pool.ready < pool.desired or (pool.is_external and not pool.ready)]
    if not short and pools:
        if any(pool.desired for pool in pools):
            message = f"{_format_ready_count(pools)} ready{_asleep_suffix(pools)}"
            message = f"{message}; {inputs.undone}" if inputs.undone else message
            return _true(ConditionType.READY, Reason.ALL_READY, message)
        return _true(ConditionType.READY, Reason.SCALED_TO_ZERO, "no pool has a desired instance")
    shortfall = ", ".join(f"pool {pool.name} has {pool.ready} of {pool.desired} ready" for pool in short)
    shortfall = shortfall or "nothing could be made of the spec yet"
    if inputs.failure is not None:
        return _not_ready(inputs.failure.reason, f"{shortfall}: {inputs.failure.message}")
    roles = {pool.role for pool in pools if pool.desired}
    missing_roles = roles - {pool.role for pool in pools if pool.ready}
    # Requests are answered as long as each role has an instance.
    if pools and not missing_roles and not any(pool.is_external for pool in short):
        return _not_ready(Reason.DEGRADED, shortfall)
    if any(pool.is_external for pool in short):
        names = ", ".join(pool.name for pool in short)
        return _not_ready(Reason.NO_ENDPOINT, f"no ready pod has the labels of pool {names}")
    return _not_ready(Reason.NO_INSTANCE if has_served else Reason.STARTING, shortfall)


def _reconciling_condition(inputs: StatusInputs, has_served: bool) -> ConditionValue | None:
    if inputs.failure is not None:
        return None  # Stalled has the reason
    progress = _progress(inputs, has_served)
    if progress is None:
        return None
    reason, message = progress
    message = "; ".join(filter(None, (message, inputs.pending_capacity)))
    return _true(ConditionType.RECONCILING, reason, message)


def _progress(inputs: StatusInputs, has_served: bool) -> tuple[Reason, str] | None:
    # In the order of a change: create, hold back, replace, scale, drain.
    pools = [pool for pool in inputs.pools if not pool.is_external]
    if missing := [pool.name for pool in pools if not pool.exists_in_cluster]:
        return Reason.CREATING, f"pool {', '.join(missing)} is being made"
    if inputs.waiting:
        return Reason.PAUSED, inputs.waiting
    if inputs.canary is not None and inputs.canary.is_under_way:
        return Reason.ROLLING_OUT, inputs.canary.message
    if outdated := [pool for pool in pools if not pool.is_settled or pool.updated < min(pool.existing, pool.desired)]:
        if not has_served:
            return Reason.CREATING, ", ".join(
                f"pool {pool.name}: {pool.ready} of {pool.desired} ready" for pool in outdated
            )
        parts = ", ".join(_describe_replacement(pool) for pool in outdated)
        parts = f"{parts}; {inputs.retained}" if inputs.retained else parts
        if inputs.paused and any(pool.updated < pool.desired for pool in outdated):
            return Reason.PAUSED, f"the rollout is paused in the midst; {parts}"
        return Reason.ROLLING_OUT, parts
    if inputs.retained:
        return Reason.ROLLING_OUT, inputs.retained
    if moving := [pool for pool in pools if pool.existing != pool.desired]:
        parts = ", ".join(f"pool {pool.name}: {pool.existing} instances, {pool.desired} desired" for pool in moving)
        return Reason.SCALING if has_served else Reason.CREATING, parts
    if short := [pool for pool in pools if pool.ready < pool.desired]:
        parts = ", ".join(f"pool {pool.name}: {pool.ready} of {pool.desired} ready" for pool in short)
        return Reason.SCALING if has_served else Reason.CREATING, parts
    if inputs.deleting_pods:
        return Reason.DRAINING, f"{inputs.deleting_pods} pods finish their requests"
    return None


def _describe_replacement(pool: PoolState) -> str:
    message = f"pool {pool.name}: {pool.updated} of {pool.desired} replaced"
    return f"{message}, {pool.note}" if pool.note else message


def _stalled_condition(inputs: StatusInputs) -> ConditionValue | None:
    failure = inputs.failure
    return None if failure is None else _true(ConditionType.STALLED, failure.reason, failure.message_with_advice)


def name_taken_condition(refused: Sequence[RefusedName], name: str) -> ConditionValue | None:
    """Returns the condition NameTaken of a model or an adapter; None if it has all its names.

    name: its own.
    """
    if not refused:
        return None
    reason = Reason.BARE_NAME_TAKEN if any(one.name == name for one in refused) else Reason.SERVED_NAME_TAKEN
    return _true(ConditionType.NAME_TAKEN, reason, "; ".join(map(describe_refused, refused)))


def describe_refused(refused: RefusedName) -> str:
    """Returns why a model, a route or an adapter does not have a name."""
    if refused.owner is not None and refused.is_owner_gone:
        return f"{refused.name} belongs to {describe_owner(refused.owner)}, which is deleted and has not released its names"
    if refused.owner is not None:
        return f"clients that request {refused.name} get {describe_owner(refused.owner)}"
    namespace, slash, _ = refused.name.partition("/")
    if not slash:  # a model's own name: its status says that another model had it
        return f"{refused.name} belonged to a model that is deleted and has not released its names"
    return f"the served name {refused.name} is refused: the namespace {namespace} holds models"


def _true(type: ConditionType, reason: Reason, message: str) -> ConditionValue:
    return ConditionValue(type, ConditionStatus.TRUE, reason, message)


def _not_ready(reason: Reason, message: str) -> ConditionValue:
    return ConditionValue(ConditionType.READY, ConditionStatus.FALSE, reason, message)


def _asleep_suffix(pools: Sequence[PoolState]) -> str:
    count = sum(pool.asleep for pool in pools)
    return f", {count} of them asleep" if count else ""


def _format_ready_count(pools: Sequence[PoolState]) -> str:
    count = sum(pool.ready for pool in pools)
    return f"{count} instance{'' if count == 1 else 's'}"
