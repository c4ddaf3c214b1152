"""Decisions as they go from a worker to the helper, there and back. Sentences and tables are written out here, on being asked."""

from dataclasses import fields
from typing import Any

from fairlead.decision import Decision, Input, Rejected
from fairlead_gateway.channel_messages import WireDecision, WireLeg, WireLogged, WireRecord, WireStory
from fairlead_gateway.decision_log import DecisionRecord, Logged
from fairlead_gateway.handoff_story import HandoffStory, PrefillLeg
from fairlead_gateway.telemetry import Outcome

_OUTCOME = tuple(item.name for item in fields(Outcome))


def wire_logged(logged: Logged) -> WireLogged:
    """A request's choices and its end."""
    ended = logged.outcome
    outcome = None if ended is None else {name: getattr(ended, name) for name in _OUTCOME}
    return WireLogged([wire_record(record) for record in logged.records], outcome)


def wire_record(record: DecisionRecord) -> WireRecord:
    """One choice."""
    return WireRecord(
        record.request_id,
        record.wall,
        record.model_key,
        _wire_decision(record.decision),
        record.attempt,
        record.prompt_tokens,
        record.caller,
        None if record.story is None else _wire_story(record.story),
    )


def logged_of(wire: WireLogged) -> Logged:
    """As the log keeps it."""
    outcome = None if wire.outcome is None else _outcome(wire.outcome)
    return Logged([record_of(record) for record in wire.records], outcome)


def record_of(wire: WireRecord) -> DecisionRecord:
    """As the log keeps it."""
    return DecisionRecord(
        wire.request_id,
        wire.wall,
        wire.model_key,
        _decision(wire.decision),
        wire.attempt,
        wire.prompt_tokens,
        wire.caller,
        None if wire.story is None else _story(wire.story),
    )


def _wire_decision(made: Decision) -> WireDecision:
    return WireDecision(
        made.chosen,
        made.rule,
        made.reason,
        [(item.id, item.why) for item in made.rejected],
        {name: (told.value, told.age_seconds) for name, told in made.inputs.items()},
        made.cost_seconds,
    )


def _decision(wire: WireDecision) -> Decision:
    return Decision(
        wire.chosen,
        wire.rule,
        wire.reason,
        tuple(Rejected(item, why) for item, why in wire.rejected),
        {name: Input(value, age) for name, (value, age) in wire.inputs.items()},
        wire.cost_seconds,
    )


def _wire_story(story: HandoffStory) -> WireStory:
    legs = [
        WireLeg(leg.instance_id, _wire_decision(leg.decision), leg.began, leg.seconds, leg.result) for leg in story.legs
    ]
    where = None if story.where is None else _wire_decision(story.where)
    return WireStory(story.outcome, story.reason, story.words, story.waited_seconds, legs, where)


def _story(wire: WireStory) -> HandoffStory:
    legs = [
        PrefillLeg(leg.instance_id, _decision(leg.decision), leg.began, leg.seconds, leg.result) for leg in wire.legs
    ]
    where = None if wire.where is None else _decision(wire.where)
    return HandoffStory(wire.outcome, wire.reason, wire.words, wire.waited_seconds, legs, where)


def _outcome(found: dict[str, Any]) -> Outcome:
    failures = tuple((where, why) for where, why in found["failures"])
    return Outcome(**{**found, "failures": failures})
