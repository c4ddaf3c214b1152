"""One line of advice on a model: a pure function from what is known to what to do next, the most urgent first.

The order is that of causes: what nobody has seen cannot be ready; what stalls explains what is not ready; what is ready may still not
be routed to; and only what is routed to can be slow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fairlead.api import ConditionType, Reason
from fairlead.api.conditions import reasons
from fairlead.kube.resources import is_deleting, metadata_of
from fairlead_cli.cluster.object_fields import Condition, shorten, spec_of, status_of
from fairlead_cli.cluster.status.model_report import InstanceReport, ModelReport
from fairlead_cli.cluster.timestamps import format_age, parse_time
from fairlead_operator.object_metadata import UNDO_ANNOTATION

CHANGE_GRACE_SECONDS: Final = 30.0
"""A change that is younger may be on its way."""
SLOW_START_SECONDS: Final = 1_800.0
"""As long as the start-up probe of an engine gives it."""
_FULL: Final = 0.95
_RESTARTS: Final = 3
_NOTE: Final = 160


@dataclass(frozen=True, slots=True)
class ModelAdvice:
    """What to do next, and whether something is wrong."""

    is_problem: bool
    text: str


_Rule = Callable[[ModelReport, str], ModelAdvice | None]


def advise(report: ModelReport, program: str = "fairlead") -> ModelAdvice:
    """The one thing to do; ``program`` is how this command line is called."""
    for rule in _RULES:
        found = rule(report, program)
        if found is not None:
            return found
    return ModelAdvice(False, "nothing to do")


def _deleted(report: ModelReport, program: str) -> ModelAdvice | None:
    if not is_deleting(report.facts.model):
        return None
    return ModelAdvice(False, "it is being deleted; its pods finish their requests first, for at most rollout.drain")


def _unseen(report: ModelReport, program: str) -> ModelAdvice | None:
    model = report.facts.model
    seen, now = status_of(model).get("observedGeneration"), int(metadata_of(model).get("generation") or 0)
    if seen is not None and int(seen) >= now:
        return None
    written = [
        parse_time(one.get("time")) for one in metadata_of(model).get("managedFields") or [] if "subresource" not in one
    ]
    changed = max((one for one in written if one is not None), default=report.since)
    if changed is not None and report.facts.now - changed < CHANGE_GRACE_SECONDS:
        return ModelAdvice(False, "wait: the operator has not seen the last change yet")
    what = "this model" if seen is None else f"the last change (generation {now}, it is at {seen})"
    return ModelAdvice(True, f"no operator has seen {what}: {program} check says why")


def _stalled(report: ModelReport, program: str) -> ModelAdvice | None:
    found = _true(report.condition(ConditionType.STALLED))
    if found is None:
        return None
    return ModelAdvice(True, _by_reason(report, found))


def _not_ready(report: ModelReport, program: str) -> ModelAdvice | None:
    found = report.condition(ConditionType.READY)
    if found is None or found.get("status") == "True":
        return None
    if found.get("reason") != Reason.STARTING:
        return ModelAdvice(True, _by_reason(report, found))
    slow = [
        one for one in report.instances() if one.since is not None and report.facts.now - one.since > SLOW_START_SECONDS
    ]
    if slow:
        return ModelAdvice(
            True, f"{slow[0].name} has been starting for {_age(report, slow[0])}: {_logs(report, slow[0])}"
        )
    waiting = next((one for one in report.instances() if one.state == "Starting"), None)
    if waiting is None:
        return ModelAdvice(False, "wait: its pods are being made")
    return ModelAdvice(
        False,
        f"wait: {waiting.name} has been starting for {_age(report, waiting)}; {_logs(report, waiting)} shows how far",
    )


def _zero(report: ModelReport, program: str) -> ModelAdvice | None:
    found = report.condition(ConditionType.READY)
    if found is None or found.get("reason") != Reason.SCALED_TO_ZERO:
        return None
    if _true(report.condition(ConditionType.AUTOSCALING)) is not None:
        return ModelAdvice(False, "nothing runs, since nobody asks: the first request starts an engine")
    namespace, _, name = report.key.partition("/")
    return ModelAdvice(
        False, f"nothing runs, as it is asked: kubectl scale mdep {name} -n {namespace} --replicas=1 changes that"
    )


def _unrouted(report: ModelReport, program: str) -> ModelAdvice | None:
    """Ready pods that no gateway routes to."""
    ready = sum(one.is_ready for one in report.instances())
    if not ready or not report.gateways_reached or report.routed_instances is None or report.routed_instances > 0:
        return None
    return ModelAdvice(True, f"{ready} pods are ready and no gateway routes to them: {program} check says why")


def _name(report: ModelReport, program: str) -> ModelAdvice | None:
    if _true(report.condition(ConditionType.NAME_TAKEN)) is None:
        return None
    return ModelAdvice(False, f"let clients say {report.key}: an older model of another namespace has the bare name")


def _moving(report: ModelReport, program: str) -> ModelAdvice | None:
    found = _true(report.condition(ConditionType.RECONCILING))
    return None if found is None else ModelAdvice(False, _by_reason(report, found))


def _restarting(report: ModelReport, program: str) -> ModelAdvice | None:
    worst = max(report.instances(), key=lambda one: one.restarts, default=None)
    if worst is None or worst.restarts < _RESTARTS:
        return None
    return ModelAdvice(
        True, f"{worst.name} was restarted {worst.restarts} times: {_logs(report, worst)} --previous says why"
    )


def _full(report: ModelReport, program: str) -> ModelAdvice | None:
    """Every engine that told has requests waiting and no room for their KV."""
    told = [one for instance in report.instances() for one in instance.signals if one.kv_usage is not None]
    if not told or any((one.kv_usage or 0.0) < _FULL or not one.waiting for one in told):
        return None
    return ModelAdvice(
        True, "the KV caches of all engines are full and requests wait: raise replicas, or shorten contexts"
    )


def _missed(report: ModelReport, program: str) -> ModelAdvice | None:
    found = report.condition(ConditionType.OBJECTIVES_MET)
    if found is None or found.get("status") != "False":
        return None
    said = shorten(str(found.get("message", "")), _NOTE)
    scaled = _true(report.condition(ConditionType.AUTOSCALING))
    more = "raise replicas" if scaled is None else "raise replicas.max"
    if scaled is not None and scaled.get("reason") == Reason.DECIDING:
        more = "wait for the instances that the autoscaler starts"
    return ModelAdvice(
        True, f"requests miss the objectives{f' ({said})' if said else ''}: {more}, or relax spec.objectives"
    )


def _unheard(report: ModelReport, program: str) -> ModelAdvice | None:
    """Last, since the model itself is in order."""
    if not report.signals_problem:
        return None
    return ModelAdvice(
        False, f"nothing to do as far as can be seen; what engines say was not to be had: {report.signals_problem}"
    )


_RULES: Final[tuple[_Rule, ...]] = (
    *(_deleted, _unseen, _stalled, _not_ready, _zero, _unrouted, _name, _moving, _restarting, _full, _missed, _unheard),
)


def _true(found: Condition | None) -> Condition | None:
    return found if found is not None and found.get("status") == "True" else None


def _by_reason(report: ModelReport, found: Condition) -> str:
    """What the documentation says to do, and the case's own words where the conditions above do not stand on the same line."""
    do = next((one.advice for one in reasons() if one.reason == found.get("reason")), "")
    first = do.partition(". ")[0].rstrip(".").replace("`", "")
    said = shorten(str(found.get("message", "")), _NOTE)
    first = first[:1].lower() + first[1:]
    return f"{first} ({said})" if first and said else first or said


def _age(report: ModelReport, one: InstanceReport) -> str:
    return format_age(one.since, report.facts.now)


def _logs(report: ModelReport, one: InstanceReport) -> str:
    return f"kubectl logs -n {report.key.partition('/')[0]} {one.name}"


def revision_note(report: ModelReport) -> str:
    """Said beside the name while an earlier revision runs."""
    notes = metadata_of(report.facts.model).get("annotations") or {}
    paused = (spec_of(report.facts.model).get("rollout") or {}).get("paused")
    undone = notes.get(UNDO_ANNOTATION)
    return f"runs revision {undone}" if undone else "paused" if paused else ""
