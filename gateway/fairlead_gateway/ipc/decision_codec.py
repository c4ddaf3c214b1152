"""The codec of decisions between worker and supervisor.

A decision builds its texts and tables when they are read first. Encoding reads them.
"""

from dataclasses import fields
from typing import Any

from fairlead.decision import Decision, DecisionInput, DecisionText, RejectedCandidate
from fairlead.routes.resolution import FallbackStep, RouteDecision
from fairlead_gateway.ipc.messages import (
    EncodedDecision,
    EncodedDecisionRecord,
    EncodedHandoff,
    EncodedLoggedRequest,
    EncodedPrefillAttempt,
    EncodedRoute,
)
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.decision_log import DecisionRecord, LoggedRequest
from fairlead_gateway.telemetry.handoff_record import HandoffRecord, PrefillAttempt

_OUTCOME_FIELDS = tuple(item.name for item in fields(RequestOutcome))


def encode_logged_request(logged: LoggedRequest) -> EncodedLoggedRequest:
    """Encodes a request's decisions and outcome."""
    result = logged.outcome
    outcome = None if result is None else {name: getattr(result, name) for name in _OUTCOME_FIELDS}
    return EncodedLoggedRequest([encode_record(record) for record in logged.records], outcome)


def encode_record(record: DecisionRecord) -> EncodedDecisionRecord:
    return EncodedDecisionRecord(
        record.request_id,
        record.wall,
        record.model_key,
        _encode_decision(record.decision),
        record.attempt,
        record.prompt_tokens,
        record.caller,
        None if record.handoff is None else _encode_handoff(record.handoff),
        None if record.route is None else _encode_route(record.route),
        list(record.kept_back),
    )


def decode_logged_request(encoded: EncodedLoggedRequest) -> LoggedRequest:
    """Decodes what `encode_logged_request` returned."""
    outcome = None if encoded.outcome is None else _decode_outcome(encoded.outcome)
    return LoggedRequest([decode_record(record) for record in encoded.records], outcome)


def decode_record(encoded: EncodedDecisionRecord) -> DecisionRecord:
    record = DecisionRecord(
        encoded.request_id,
        encoded.wall,
        encoded.model_key,
        _decode_decision(encoded.decision),
        encoded.attempt,
        encoded.prompt_tokens,
        encoded.caller,
        None if encoded.handoff is None else _decode_handoff(encoded.handoff),
    )
    record.route = None if encoded.route is None else _decode_route(encoded.route)
    record.kept_back = tuple(encoded.kept_back)
    return record


def _encode_route(route: RouteDecision) -> EncodedRoute:
    weights = route.weight, route.total_weight
    steps = [(step.failed, step.kind, step.model, step.reason) for step in route.steps]
    where = route.name, route.route, route.target, route.basis, route.override
    changes, withheld = list(route.changes), list(route.withheld)
    return EncodedRoute(*where, weights, changes, steps, withheld, route.shadow, route.context_tokens)


def _decode_route(encoded: EncodedRoute) -> RouteDecision:
    # Compiled, the constructor refuses a list, which is what a tuple becomes on its way.
    weight, total = encoded.weights
    weights = (weight, total)
    route = RouteDecision(encoded.name, encoded.route, encoded.target, encoded.basis, encoded.override, weights)
    route.changes = tuple(encoded.changes)
    route.steps = tuple(FallbackStep(failed, kind, model, why) for failed, kind, model, why in encoded.steps)
    route.withheld = tuple(encoded.withheld)
    route.shadow, route.context_tokens = encoded.shadow, encoded.context_tokens
    return route


def _encode_decision(decision: Decision) -> EncodedDecision:
    return EncodedDecision(
        decision.chosen,
        decision.rule,
        decision.reason,
        [(item.id, item.why) for item in decision.rejected],
        {name: (told.value, told.age_seconds) for name, told in decision.inputs.items()},
        decision.cost_seconds,
    )


def _decode_decision(encoded: EncodedDecision) -> Decision:
    text = DecisionText(
        encoded.reason,
        tuple(RejectedCandidate(item, why) for item, why in encoded.rejected),
        {name: DecisionInput(value, age) for name, (value, age) in encoded.inputs.items()},
    )
    return Decision(encoded.chosen, encoded.rule, text, encoded.cost_seconds)


def _encode_handoff(handoff: HandoffRecord) -> EncodedHandoff:
    attempts = [
        EncodedPrefillAttempt(leg.instance_id, _encode_decision(leg.decision), leg.started_at, leg.seconds, leg.result)
        for leg in handoff.attempts
    ]
    placement = None if handoff.placement is None else _encode_decision(handoff.placement)
    return EncodedHandoff(handoff.outcome, handoff.reason, handoff.message, handoff.waited_seconds, attempts, placement)


def _decode_handoff(encoded: EncodedHandoff) -> HandoffRecord:
    attempts = [
        PrefillAttempt(leg.instance_id, _decode_decision(leg.decision), leg.started_at, leg.seconds, leg.result)
        for leg in encoded.attempts
    ]
    placement = None if encoded.placement is None else _decode_decision(encoded.placement)
    return HandoffRecord(encoded.outcome, encoded.reason, encoded.message, encoded.waited_seconds, attempts, placement)


def _decode_outcome(values: dict[str, Any]) -> RequestOutcome:
    # Compiled, the attribute refuses a list, which is what a tuple becomes on its way.
    values["failures"] = tuple((instance, cause) for instance, cause in values["failures"])
    outcome = RequestOutcome(*[values[name] for name in _OUTCOME_FIELDS[:7]])
    for name in _OUTCOME_FIELDS[7:]:
        setattr(outcome, name, values[name])
    return outcome
