"""What ``status`` says of a model: a pure function of what is observed, with a reason for each condition.

kstatus-compatible: ``Ready`` always, ``Reconciling`` and ``Stalled`` only while they hold and never both. Times change only when a
condition's ``status`` does, so that the same state gives the same bytes and nothing is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.api import ConditionType, Reason
from fairlead.cluster_labels import MODEL, POOL
from fairlead.kube.resource import Manifest, key_of, name_of
from fairlead_operator.failures import Failure

_MESSAGE_MOST = 2_000
_OURS = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.NAME_TAKEN)
_SERVED_BEFORE = (Reason.ALL_READY, Reason.SCALED_TO_ZERO, Reason.DEGRADED, Reason.NO_INSTANCE, Reason.NO_ENDPOINT)


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
    exist: int
    settled: bool = True
    made: bool = True
    adopted: bool = False
    asleep: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that a status is made of. ``failure`` stalls. ``waiting``: what a pause holds back, ``undone``: why an earlier
    revision runs, ``kept``: what is wanted no more and serves on, ``awaited``: pods that a node is hoped for; in words, empty for
    nothing. ``paused``: nothing is replaced now.
    """

    pools: tuple[PoolState, ...]
    failure: Failure | None = None
    waiting: str = ""
    undone: str = ""
    kept: str = ""
    awaited: str = ""
    name_taken_by: str | None = None
    leaving_pods: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class _Said:
    type: ConditionType
    holds: bool
    reason: Reason
    message: str


def summarize(model: Manifest, situation: Situation, generation: int, now: str) -> dict[str, Any]:
    """Our part of ``status``, to be applied as a whole: about ``generation``, at ``now`` (as the API server writes times)."""
    before = model.get("status") or {}
    name, pools = name_of(model), situation.pools
    served = (condition(before, ConditionType.READY) or {}).get("reason") in _SERVED_BEFORE
    movement = _reconciling(situation, served)
    said = [_ready(situation, served), movement, _stalled(situation), _name_taken(situation, name)]
    selector = f"{MODEL}={name}" + (f",{POOL}={pools[0].name}" if len(pools) == 1 else "")
    return {
        "observedGeneration": generation,
        "clientName": key_of(model) if situation.name_taken_by else name,
        "ready": ready_text(pools),
        "replicas": sum(pool.exist for pool in pools),
        "selector": selector,
        "pools": [
            {"name": one.name, "role": one.role, "desired": one.desired, "ready": one.ready, "updated": one.updated}
            for one in pools
        ],
        "conditions": [_condition(one, before, generation, now) for one in said if one is not None],
    }


def differs(model: Manifest, status: Mapping[str, Any]) -> bool:
    """Would writing ``status`` change anything? The autoscaler's conditions are not looked at."""
    before = dict(model.get("status") or {})
    ours = [one for one in before.get("conditions") or [] if one.get("type") in _OURS]
    return {**before, "conditions": _by_type(ours)} != {
        **before,
        **status,
        "conditions": _by_type(status["conditions"]),
    }


def condition(status: Mapping[str, Any], type: ConditionType) -> Mapping[str, Any] | None:
    """One condition of a status; None where it is not there."""
    return next((one for one in status.get("conditions") or [] if one.get("type") == type), None)


def ready_text(pools: Sequence[PoolState]) -> str:
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


def _condition(said: _Said, before: Mapping[str, Any], generation: int, now: str) -> dict[str, Any]:
    status, old = "True" if said.holds else "False", condition(before, said.type)
    same = old is not None and old.get("status") == status and old.get("lastTransitionTime")
    return {
        "type": str(said.type),
        "status": status,
        "reason": str(said.reason),
        "message": said.message[:_MESSAGE_MOST],
        "lastTransitionTime": old["lastTransitionTime"] if old is not None and same else now,
        "observedGeneration": generation,
    }


def _ready(situation: Situation, served: bool) -> _Said:
    pools = situation.pools
    short = [pool for pool in pools if pool.ready < pool.desired or (pool.adopted and not pool.ready)]
    if not short and pools:
        if any(pool.desired for pool in pools):
            told = f"{_instances(pools)} ready{_asleep(pools)}"
            told = f"{told}; {situation.undone}" if situation.undone else told
            return _Said(ConditionType.READY, True, Reason.ALL_READY, told)
        return _Said(ConditionType.READY, True, Reason.SCALED_TO_ZERO, "no pool is asked for an instance")
    lacks = ", ".join(f"pool {pool.name} has {pool.ready} of {pool.desired} ready" for pool in short)
    lacks = lacks or "nothing could be made of the spec yet"
    if situation.failure is not None:
        return _Said(ConditionType.READY, False, situation.failure.reason, f"{lacks}: {situation.failure.message}")
    roles = {pool.role for pool in pools if pool.desired}
    without = roles - {pool.role for pool in pools if pool.ready}
    if pools and not without and not any(pool.adopted for pool in short):
        return _Said(ConditionType.READY, False, Reason.DEGRADED, lacks)
    if any(pool.adopted for pool in short):
        names = ", ".join(pool.name for pool in short)
        return _Said(ConditionType.READY, False, Reason.NO_ENDPOINT, f"no ready pod has the labels of pool {names}")
    return _Said(ConditionType.READY, False, Reason.NO_INSTANCE if served else Reason.STARTING, lacks)


def _reconciling(situation: Situation, served: bool) -> _Said | None:
    if situation.failure is not None:
        return None  # Stalled says why it goes no further
    found = _movement(situation, served)
    if found is None:
        return None
    reason, message = found
    return _Said(
        ConditionType.RECONCILING, True, reason, "; ".join(part for part in (message, situation.awaited) if part)
    )


def _movement(situation: Situation, served: bool) -> tuple[Reason, str] | None:
    pools = [pool for pool in situation.pools if not pool.adopted]
    if missing := [pool.name for pool in pools if not pool.made]:
        return Reason.CREATING, f"pool {', '.join(missing)} is being made"
    if situation.waiting:
        return Reason.PAUSED, situation.waiting
    if old := [pool for pool in pools if not pool.settled or pool.updated < min(pool.exist, pool.desired)]:
        if not served:
            return Reason.CREATING, ", ".join(f"pool {pool.name}: {pool.ready} of {pool.desired} ready" for pool in old)
        parts = ", ".join(_replaced(pool) for pool in old)
        parts = f"{parts}; {situation.kept}" if situation.kept else parts
        if situation.paused and any(pool.updated < pool.desired for pool in old):
            return Reason.PAUSED, f"the rollout is paused in the midst; {parts}"
        return Reason.ROLLING_OUT, parts
    if situation.kept:
        return Reason.ROLLING_OUT, situation.kept
    if moving := [pool for pool in pools if pool.exist != pool.desired]:
        parts = ", ".join(f"pool {pool.name}: {pool.exist} instances, {pool.desired} asked" for pool in moving)
        return Reason.SCALING if served else Reason.CREATING, parts
    if short := [pool for pool in pools if pool.ready < pool.desired]:
        parts = ", ".join(f"pool {pool.name}: {pool.ready} of {pool.desired} ready" for pool in short)
        return Reason.SCALING if served else Reason.CREATING, parts
    if situation.leaving_pods:
        return Reason.DRAINING, f"{situation.leaving_pods} pods finish their requests"
    return None


def _replaced(pool: PoolState) -> str:
    told = f"pool {pool.name}: {pool.updated} of {pool.desired} replaced"
    return f"{told}, {pool.note}" if pool.note else told


def _stalled(situation: Situation) -> _Said | None:
    failed = situation.failure
    return None if failed is None else _Said(ConditionType.STALLED, True, failed.reason, failed.advised)


def _name_taken(situation: Situation, name: str) -> _Said | None:
    if situation.name_taken_by is None:
        return None
    message = f"clients that say {name} get {situation.name_taken_by}, which is older"
    return _Said(ConditionType.NAME_TAKEN, True, Reason.BARE_NAME_TAKEN, message)


def _asleep(pools: Sequence[PoolState]) -> str:
    count = sum(pool.asleep for pool in pools)
    return f", {count} of them asleep" if count else ""


def _instances(pools: Sequence[PoolState]) -> str:
    count = sum(pool.ready for pool in pools)
    return f"{count} instance{'' if count == 1 else 's'}"
