"""What ``status`` says of a model: a pure function of what is observed, with a reason for each condition.

kstatus-compatible: ``Ready`` always, ``Reconciling`` and ``Stalled`` only while they hold and never both. Times change only when a
condition's ``status`` does, so that the same state gives the same bytes and nothing is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.api import ConditionType, Reason
from fairlead.fleet.labels import MODEL_LABEL, POOL_LABEL
from fairlead.kube.resources import Manifest, key_of, name_of
from fairlead_operator.status.diagnosis import Failure

_MAX_MESSAGE_LENGTH = 2_000
_OPERATOR_CONDITIONS = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.NAME_TAKEN)
_REASONS_AFTER_START = (
    Reason.ALL_READY,
    Reason.SCALED_TO_ZERO,
    Reason.DEGRADED,
    Reason.NO_INSTANCE,
    Reason.NO_ENDPOINT,
)


@dataclass(frozen=True, slots=True)
class PoolState:
    """The instances of one pool. ``exist``: with those that are replaced. ``updated``: made of what runs now.

    ``adopted``: not run by Fairlead. ``asleep``: of those that are ready, the ones that get no request until they are woken.
    ``note``: how its instances are replaced, where that is not as usual; in words.
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
    """Everything that a status is made of. ``failure`` stalls. ``waiting``: what a pause holds back, ``undone``: why an earlier
    revision runs, ``kept``: what is wanted no more and serves on, ``awaited``: pods that a node is hoped for; in words, empty for
    nothing. ``paused``: nothing is replaced now.
    """

    pools: tuple[PoolState, ...]
    failure: Failure | None = None
    waiting: str = ""
    undone: str = ""
    retained: str = ""
    pending_capacity: str = ""
    name_taken_by: str | None = None
    deleting_pods: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class _ConditionValue:
    type: ConditionType
    holds: bool
    reason: Reason
    message: str


def model_status(model: Manifest, situation: StatusInputs, generation: int, now: str) -> dict[str, Any]:
    """Our part of ``status``, to be applied as a whole: about ``generation``, at ``now`` (as the API server writes times)."""
    before = model.get("status") or {}
    name, pools = name_of(model), situation.pools
    served = (find_condition(before, ConditionType.READY) or {}).get("reason") in _REASONS_AFTER_START
    movement = _reconciling_condition(situation, served)
    said = [
        _ready_condition(situation, served),
        movement,
        _stalled_condition(situation),
        _name_taken_condition(situation, name),
    ]
    selector = f"{MODEL_LABEL}={name}" + (f",{POOL_LABEL}={pools[0].name}" if len(pools) == 1 else "")
    return {
        "observedGeneration": generation,
        "clientName": key_of(model) if situation.name_taken_by else name,
        "ready": format_ready(pools),
        "replicas": sum(pool.existing for pool in pools),
        "selector": selector,
        "pools": [
            {"name": one.name, "role": one.role, "desired": one.desired, "ready": one.ready, "updated": one.updated}
            for one in pools
        ],
        "conditions": [_to_condition(one, before, generation, now) for one in said if one is not None],
    }


def has_changed(model: Manifest, status: Mapping[str, Any]) -> bool:
    """Would writing ``status`` change anything? The autoscaler's conditions are not looked at."""
    before = dict(model.get("status") or {})
    ours = [one for one in before.get("conditions") or [] if one.get("type") in _OPERATOR_CONDITIONS]
    return {**before, "conditions": _by_type(ours)} != {
        **before,
        **status,
        "conditions": _by_type(status["conditions"]),
    }


def find_condition(status: Mapping[str, Any], type: ConditionType) -> Mapping[str, Any] | None:
    """One condition of a status; None where it is not there."""
    return next((one for one in status.get("conditions") or [] if one.get("type") == type), None)


def format_ready(pools: Sequence[PoolState]) -> str:
    """``2/2``, or ``Prefill 1/1, Decode 2/3`` where there are several roles."""
    roles: dict[str, list[int]] = {}
    for pool in pools:
        have = roles.setdefault(pool.role, [0, 0])
        have[0] += pool.ready
        have[1] += pool.desired
    if len(roles) == 1:
        return next(f"{ready}/{desired}" for ready, desired in roles.values())
    return ", ".join(f"{role} {ready}/{desired}" for role, (ready, desired) in roles.items())


def _by_type(conditions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(conditions, key=lambda one: str(one.get("type")))


def _to_condition(said: _ConditionValue, before: Mapping[str, Any], generation: int, now: str) -> dict[str, Any]:
    status, old = "True" if said.holds else "False", find_condition(before, said.type)
    same = old is not None and old.get("status") == status and old.get("lastTransitionTime")
    return {
        "type": str(said.type),
        "status": status,
        "reason": str(said.reason),
        "message": said.message[:_MAX_MESSAGE_LENGTH],
        "lastTransitionTime": old["lastTransitionTime"] if old is not None and same else now,
        "observedGeneration": generation,
    }


def _ready_condition(situation: StatusInputs, served: bool) -> _ConditionValue:
    pools = situation.pools
    short = [pool for pool in pools if pool.ready < pool.desired or (pool.is_external and not pool.ready)]
    if not short and pools:
        if any(pool.desired for pool in pools):
            told = f"{_format_ready_count(pools)} ready{_asleep_suffix(pools)}"
            told = f"{told}; {situation.undone}" if situation.undone else told
            return _ConditionValue(ConditionType.READY, True, Reason.ALL_READY, told)
        return _ConditionValue(ConditionType.READY, True, Reason.SCALED_TO_ZERO, "no pool is asked for an instance")
    lacks = ", ".join(f"pool {pool.name} has {pool.ready} of {pool.desired} ready" for pool in short)
    lacks = lacks or "nothing could be made of the spec yet"
    if situation.failure is not None:
        return _ConditionValue(
            ConditionType.READY, False, situation.failure.reason, f"{lacks}: {situation.failure.message}"
        )
    roles = {pool.role for pool in pools if pool.desired}
    without = roles - {pool.role for pool in pools if pool.ready}
    if pools and not without and not any(pool.is_external for pool in short):
        return _ConditionValue(ConditionType.READY, False, Reason.DEGRADED, lacks)
    if any(pool.is_external for pool in short):
        names = ", ".join(pool.name for pool in short)
        return _ConditionValue(
            ConditionType.READY, False, Reason.NO_ENDPOINT, f"no ready pod has the labels of pool {names}"
        )
    return _ConditionValue(ConditionType.READY, False, Reason.NO_INSTANCE if served else Reason.STARTING, lacks)


def _reconciling_condition(situation: StatusInputs, served: bool) -> _ConditionValue | None:
    if situation.failure is not None:
        return None  # Stalled says why it goes no further
    found = _progress(situation, served)
    if found is None:
        return None
    reason, message = found
    return _ConditionValue(
        ConditionType.RECONCILING,
        True,
        reason,
        "; ".join(part for part in (message, situation.pending_capacity) if part),
    )


def _progress(situation: StatusInputs, served: bool) -> tuple[Reason, str] | None:
    pools = [pool for pool in situation.pools if not pool.is_external]
    if missing := [pool.name for pool in pools if not pool.exists_in_cluster]:
        return Reason.CREATING, f"pool {', '.join(missing)} is being made"
    if situation.waiting:
        return Reason.PAUSED, situation.waiting
    if old := [pool for pool in pools if not pool.is_settled or pool.updated < min(pool.existing, pool.desired)]:
        if not served:
            return Reason.CREATING, ", ".join(f"pool {pool.name}: {pool.ready} of {pool.desired} ready" for pool in old)
        parts = ", ".join(_describe_replacement(pool) for pool in old)
        parts = f"{parts}; {situation.retained}" if situation.retained else parts
        if situation.paused and any(pool.updated < pool.desired for pool in old):
            return Reason.PAUSED, f"the rollout is paused in the midst; {parts}"
        return Reason.ROLLING_OUT, parts
    if situation.retained:
        return Reason.ROLLING_OUT, situation.retained
    if moving := [pool for pool in pools if pool.existing != pool.desired]:
        parts = ", ".join(f"pool {pool.name}: {pool.existing} instances, {pool.desired} asked" for pool in moving)
        return Reason.SCALING if served else Reason.CREATING, parts
    if short := [pool for pool in pools if pool.ready < pool.desired]:
        parts = ", ".join(f"pool {pool.name}: {pool.ready} of {pool.desired} ready" for pool in short)
        return Reason.SCALING if served else Reason.CREATING, parts
    if situation.deleting_pods:
        return Reason.DRAINING, f"{situation.deleting_pods} pods finish their requests"
    return None


def _describe_replacement(pool: PoolState) -> str:
    told = f"pool {pool.name}: {pool.updated} of {pool.desired} replaced"
    return f"{told}, {pool.note}" if pool.note else told


def _stalled_condition(situation: StatusInputs) -> _ConditionValue | None:
    failed = situation.failure
    return (
        None
        if failed is None
        else _ConditionValue(ConditionType.STALLED, True, failed.reason, failed.message_with_advice)
    )


def _name_taken_condition(situation: StatusInputs, name: str) -> _ConditionValue | None:
    if situation.name_taken_by is None:
        return None
    message = f"clients that say {name} get {situation.name_taken_by}, which is older"
    return _ConditionValue(ConditionType.NAME_TAKEN, True, Reason.BARE_NAME_TAKEN, message)


def _asleep_suffix(pools: Sequence[PoolState]) -> str:
    count = sum(pool.asleep for pool in pools)
    return f", {count} of them asleep" if count else ""


def _format_ready_count(pools: Sequence[PoolState]) -> str:
    count = sum(pool.ready for pool in pools)
    return f"{count} instance{'' if count == 1 else 's'}"
