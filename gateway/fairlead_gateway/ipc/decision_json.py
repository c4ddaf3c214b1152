"""Decisions as workers encode them: JSON for the management API, and entries of the Redis stream.

A decision builds its texts and tables when they are read first. Encoding reads them, once.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from fairlead.decision import Decision, DecisionInput
from fairlead_gateway.messages import LoggedDecision
from fairlead_gateway.routes.target_choice import RouteDecision
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.decision_log import CONTINUATION_RULE, DecisionRecord
from fairlead_gateway.telemetry.handoff_record import HandoffRecord
from fairlead_kvstore.redis.codec import encode

MAX_REJECTED: Final = 16
_Json = dict[str, Any]

_OUTCOME_FIELDS: Final = (
    *("status", "error", "attempts", "duration_seconds", "ttft_seconds", "itl_mean_seconds", "prompt_tokens"),
    *("cached_tokens", "predicted_cached_tokens", "output_tokens", "within_objective", "overhead_seconds"),
    *("queued_seconds", "break_seconds", "recomputed_tokens", "not_continued"),
)


class PublishedDecision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the decision stream. ``inputs`` maps a name to (value, age in seconds)."""

    gateway: str
    request: str
    wall: float
    model: str
    chosen: str | None = None
    rule: str = ""
    reason: str = ""
    attempt: int = 1
    prompt_tokens: float = 0.0
    cost_seconds: float | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    inputs: dict[str, tuple[float | None, float | None]] = {}


def stream_entry(record: DecisionRecord, gateway_id: str) -> bytes:
    """Returns a decision as an entry of the Redis stream.

    It names at most `MAX_REJECTED` of the rejected instances, with their inputs.
    """
    decision = record.decision
    rejected = tuple((instance.id, instance.why) for instance in decision.rejected[:MAX_REJECTED])
    inputs: Iterable[tuple[str, DecisionInput]] = decision.inputs.items()
    if len(decision.rejected) > MAX_REJECTED:
        shown = {decision.chosen, *(instance for instance, _ in rejected)}
        omitted = {instance.id for instance in decision.rejected} - shown
        inputs = [(name, value) for name, value in inputs if name.rpartition("/")[0] not in omitted]
    return encode(
        PublishedDecision(
            gateway=gateway_id,
            request=record.request_id,
            wall=record.wall,
            model=record.model_key,
            chosen=decision.chosen,
            rule=decision.rule,
            reason=decision.reason,
            attempt=record.attempt,
            prompt_tokens=record.prompt_tokens,
            cost_seconds=decision.cost_seconds,
            rejected=rejected,
            inputs={name: (value.value, value.age_seconds) for name, value in islice(inputs, 8 * (MAX_REJECTED + 2))},
        )
    )


def logged_decision(logged: RequestOutcome) -> LoggedDecision:
    """Returns the choices and the outcome of one request as `DecisionOut` of the management API."""
    first, latest = logged.records[0], logged.latest
    shown = {
        "request_id": first.request_id,
        "model": latest.model_key,
        "wall": first.wall,
        "prompt_tokens": first.prompt_tokens,
        "caller": first.caller,
        "route": None if latest.route is None else _route(latest.route),
        "kept_back": first.kept_back,
        "handoff": None if first.handoff is None else _handoff(first.handoff),
        "choices": [
            {"attempt": record.attempt, "wall": record.wall, **_choice(record.decision)} for record in logged.records
        ],
        "outcome": _outcome(logged) if logged.has_ended else None,
    }
    route = None if latest.route is None else latest.route.route
    return LoggedDecision(
        first.request_id,
        first.wall,
        latest.wall,
        first.caller,
        latest.decision.chosen,
        route,
        msgspec.json.encode(shown),
        logged.waited_seconds,
    )


def _choice(decision: Decision) -> _Json:
    """Returns a choice with its candidates, the chosen one first."""
    ids = [] if decision.chosen is None else [decision.chosen]
    ids += [item.id for item in decision.rejected if item.id != decision.chosen]
    of_candidate, of_all = _split_inputs(decision, ids)
    why = {item.id: item.why for item in decision.rejected}
    if decision.chosen is not None:
        why[decision.chosen] = decision.reason
    candidates = [
        {"id": item, "chosen": item == decision.chosen, "why": why[item], "inputs": of_candidate[item]} for item in ids
    ]
    return {
        "instance": decision.chosen,
        "rule": decision.rule,
        "reason": decision.reason,
        "cost_seconds": decision.cost_seconds,
        "candidates": candidates,
        "inputs": of_all,
    }


def _split_inputs(decision: Decision, ids: Sequence[str]) -> tuple[dict[str, _Json], _Json]:
    """Returns the inputs of each candidate and the general ones.

    A key `"<id>/<name>"` belongs to the candidate `<id>`; ids contain slashes themselves.
    """
    of_candidate: dict[str, _Json] = {item: {} for item in ids}
    of_all: _Json = {}
    for key, value in decision.inputs.items():
        number = {"value": value.value, "age_seconds": value.age_seconds}
        owner, _, name = key.rpartition("/")
        if owner in of_candidate:
            of_candidate[owner][name] = number
        else:
            of_all[key] = number
    return of_candidate, of_all


def _route(route: RouteDecision) -> _Json:
    fallbacks = [
        {"failed": step.failed, "kind": step.kind, "model": step.model, "reason": step.reason} for step in route.steps
    ]
    shown = {"name": route.name, "route": route.route, "reason": route.describe()}
    return {**shown, "fallbacks": fallbacks, "withheld": route.withheld}


def _handoff(handoff: HandoffRecord) -> _Json:
    where = None if handoff.placement is None else _choice(handoff.placement)
    if where is not None:
        del where["cost_seconds"]
    return {
        "outcome": handoff.outcome,
        "reason": handoff.reason,
        "words": handoff.message,
        "where": where,
        "waited_seconds": handoff.waited_seconds,
        "legs": [
            {**_choice(leg.decision), "instance": leg.instance_id, "seconds": leg.seconds, "result": leg.result}
            for leg in handoff.attempts
        ],
    }


def _outcome(outcome: RequestOutcome) -> _Json:
    return {
        **{name: getattr(outcome, name) for name in _OUTCOME_FIELDS},
        "client_gone": outcome.client_disconnected,
        "failures": [{"instance": instance, "why": why} for instance, why in outcome.failures],
        "continued": any(record.decision.rule == CONTINUATION_RULE for record in outcome.records),
    }
