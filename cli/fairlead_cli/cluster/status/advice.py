"""One line of advice on a model: a pure function from its report to the next thing to do, the most
urgent first.

The rules follow the order of causes. A model that no operator has observed cannot be ready, and a
stall explains what is not ready. A ready instance may not be routed to, and only a routed instance
can be slow.
"""

import re
from collections.abc import Callable
from typing import Final

from fairlead.api.conditions import STALLED_IF_LASTS, ConditionType, Reason, reasons
from fairlead.kube.conditions import parse_time
from fairlead.kube.resources import is_deleting, metadata_of
from fairlead_cli.cluster.object_fields import Condition, format_age, shorten, spec_of, status_of
from fairlead_cli.cluster.status.model_report import InstanceReport, ModelReport
from fairlead_cli.formatting import Advice
from fairlead_operator.object_metadata import UNDO_ANNOTATION

CHANGE_GRACE_SECONDS: Final = 30.0
"""A younger change may still be in progress."""
SLOW_START_SECONDS: Final = 1_800.0
"""As long as the start-up probe of an engine allows."""
_FULL: Final = 0.95
_RESTARTS: Final = 3
_NOTE: Final = 160
_CAUSE: Final = 400
"""Length of a condition's message: what a pool asks for, and then the scheduler's reason."""


_Rule = Callable[[ModelReport, str], Advice | None]


def advise(report: ModelReport, program: str = "fairlead") -> Advice:
    """Returns the next thing to do; ``program`` is the name of this command in hints."""
    for rule in _RULES:
        advice = rule(report, program)
        if advice is not None:
            return advice
    return Advice(False, "nothing to do")


def _deleted(report: ModelReport, program: str) -> Advice | None:
    if not is_deleting(report.facts.model):
        return None
    return Advice(False, "it is being deleted; its pods finish their requests first, for at most rollout.drainTimeout")


def _unseen(report: ModelReport, program: str) -> Advice | None:
    model = report.facts.model
    observed, current = status_of(model).get("observedGeneration"), int(metadata_of(model).get("generation") or 0)
    if observed is not None and int(observed) >= current:
        return None
    times = [
        parse_time(entry.get("time"))
        for entry in metadata_of(model).get("managedFields") or []
        if "subresource" not in entry
    ]
    changed = max((entry for entry in times if entry is not None), default=report.since)
    if changed is not None and report.facts.now - changed < CHANGE_GRACE_SECONDS:
        return Advice(False, "wait: the operator has not seen the last change yet")
    subject = "this model" if observed is None else f"the last change (generation {current}, it is at {observed})"
    return Advice(True, f"no operator has seen {subject}: {program} check says why")


def _blocked(report: ModelReport, program: str) -> Advice | None:
    """Returns the advice on a pod whose node cannot start it, or that is refused.

    Why before a stall: no condition names this cause, and a start that took too long is its effect.
    """
    blocked = next((instance for instance in report.instances() if instance.remedy), None)
    if blocked is not None:
        return Advice(True, f"{blocked.name} cannot start: {blocked.remedy} ({shorten(blocked.why, _CAUSE)})")
    if report.rejection is None:
        return None
    return Advice(True, f"pods are refused: {report.rejection.remedy} ({shorten(report.rejection.message, _CAUSE)})")


def _stalled(report: ModelReport, program: str) -> Advice | None:
    stalled = _true(report.condition(ConditionType.STALLED))
    if stalled is None:
        return None
    return Advice(True, _by_reason(report, stalled))


def _not_ready(report: ModelReport, program: str) -> Advice | None:
    ready = report.condition(ConditionType.READY)
    if ready is None or ready.get("status") == "True":
        return None
    if ready.get("reason") != Reason.STARTING:
        return Advice(True, _by_reason(report, ready))
    waiting = next((instance for instance in report.instances() if instance.state == "Starting"), None)
    if waiting is not None and waiting.is_unscheduled:
        return _without_node(report, waiting)
    slow = [
        instance
        for instance in report.instances()
        if instance.since is not None and report.facts.now - instance.since > SLOW_START_SECONDS
    ]
    if slow:
        return Advice(True, f"{slow[0].name} has been starting for {_age(report, slow[0])}: {_logs(report, slow[0])}")
    if waiting is None:
        return Advice(False, "wait: its pods are being made")
    return Advice(
        False,
        f"wait: {waiting.name} has been starting for {_age(report, waiting)}; {_logs(report, waiting)} shows how far",
    )


def _without_node(report: ModelReport, instance: InstanceReport) -> Advice:
    """Returns the advice on a pod that has no node, and so no logs."""
    reason = instance.why.removeprefix("Unschedulable: ")
    moving = _true(report.condition(ConditionType.RECONCILING)) or {}
    grace = re.search(rf"{STALLED_IF_LASTS} (\w+)", str(moving.get("message", "")))
    deadline = f"; the model is Stalled after {grace[1]}" if grace else ""
    return Advice(False, f"wait: no node has room for {instance.name} yet ({shorten(reason, _CAUSE)}){deadline}")


def _zero(report: ModelReport, program: str) -> Advice | None:
    ready = report.condition(ConditionType.READY)
    if ready is None or ready.get("reason") != Reason.SCALED_TO_ZERO:
        return None
    if _true(report.condition(ConditionType.AUTOSCALING)) is not None:
        return Advice(False, "nothing runs, since there are no requests: the first request starts an engine")
    namespace, _, name = report.key.partition("/")
    return Advice(
        False,
        f"nothing runs, because 0 replicas are desired: kubectl scale mdep {name} -n {namespace} --replicas=1 changes that",
    )


def _unrouted(report: ModelReport, program: str) -> Advice | None:
    """Advises `check` when pods are ready and no gateway routes to them; else None."""
    ready = sum(instance.is_ready for instance in report.instances())
    if not ready or not report.gateways_reached or report.routed_instances is None or report.routed_instances > 0:
        return None
    return Advice(True, f"{ready} pods are ready and no gateway routes to them: {program} check says why")


def _name(report: ModelReport, program: str) -> Advice | None:
    if _true(report.condition(ConditionType.NAME_TAKEN)) is None:
        return None
    return Advice(False, f"let clients say {report.key}: a model of another namespace has the bare name")


def _moving(report: ModelReport, program: str) -> Advice | None:
    reconciling = _true(report.condition(ConditionType.RECONCILING))
    return None if reconciling is None else Advice(False, _by_reason(report, reconciling))


def _restarting(report: ModelReport, program: str) -> Advice | None:
    worst = max(report.instances(), key=lambda instance: instance.restarts, default=None)
    if worst is None or worst.restarts < _RESTARTS:
        return None
    return Advice(
        True, f"{worst.name} was restarted {worst.restarts} times: {_logs(report, worst)} --previous says why"
    )


def _full(report: ModelReport, program: str) -> Advice | None:
    """Advises more replicas when every instance with signals has waiting requests and a full KV
    cache.
    """
    signals = [
        rank_signals
        for instance in report.instances()
        for rank_signals in instance.signals
        if rank_signals.kv_usage is not None
    ]
    if not signals or any(
        (rank_signals.kv_usage or 0.0) < _FULL or not rank_signals.waiting for rank_signals in signals
    ):
        return None
    return Advice(True, "the KV caches of all engines are full and requests wait: raise replicas, or shorten contexts")


def _missed(report: ModelReport, program: str) -> Advice | None:
    objectives = report.condition(ConditionType.SLO_MET)
    if objectives is None or objectives.get("status") != "False":
        return None
    message = shorten(str(objectives.get("message", "")), _NOTE)
    scaled = _true(report.condition(ConditionType.AUTOSCALING))
    more = "raise minReplicas" if scaled is None else "raise maxReplicas"
    if scaled is not None and scaled.get("reason") == Reason.DECIDING:
        more = "wait for the instances that the autoscaler starts"
    return Advice(True, f"requests miss the SLO{f' ({message})' if message else ''}: {more}, or relax spec.slo")


def _unheard(report: ModelReport, program: str) -> Advice | None:
    """Returns why engine signals are missing; None if they are not. The last rule, for a model in
    order.
    """
    if not report.signals_problem:
        return None
    return Advice(False, f"nothing to do, but the engines' signals could not be read: {report.signals_problem}")


_RULES: Final[tuple[_Rule, ...]] = (
    _deleted,
    _unseen,
    _blocked,
    _stalled,
    _not_ready,
    _zero,
    _unrouted,
    _name,
    _moving,
    _restarting,
    _full,
    _missed,
    _unheard,
)


def _true(condition: Condition | None) -> Condition | None:
    return condition if condition is not None and condition.get("status") == "True" else None


def _by_reason(report: ModelReport, condition: Condition) -> str:
    """Returns the documented remedy of a reason, with the condition's message.

    The message of `Stalled` ends with the remedy, or with that of its cause; it is not repeated.
    """
    remedy = next((reason.advice for reason in reasons() if reason.reason == condition.get("reason")), "")
    remedy = remedy.replace("`", "")
    message = str(condition.get("message", "")).removesuffix(f". {remedy}")
    cause, _, own = message.rpartition(". ")
    if condition.get("type") == ConditionType.STALLED and own[:1].isupper() and own.endswith("."):
        message, remedy = cause, own
    first = remedy.partition(". ")[0].rstrip(".")
    message = shorten(message, _CAUSE)
    first = first[:1].lower() + first[1:]
    return f"{first} ({message})" if first and message else first or message


def _age(report: ModelReport, instance: InstanceReport) -> str:
    return format_age(instance.since, report.facts.now)


def _logs(report: ModelReport, instance: InstanceReport) -> str:
    return f"kubectl logs -n {report.key.partition('/')[0]} {instance.name}"


def revision_note(report: ModelReport) -> str:
    """Returns a note for the headline while an undo is in effect or the rollout is paused; else
    empty.
    """
    notes = metadata_of(report.facts.model).get("annotations") or {}
    paused = (spec_of(report.facts.model).get("rollout") or {}).get("paused")
    undone = notes.get(UNDO_ANNOTATION)
    return f"runs revision {undone}" if undone else "paused" if paused else ""
