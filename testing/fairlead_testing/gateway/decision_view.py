"""Decisions as the management API shows them."""

import msgspec

from fairlead.management_api import DecisionOut
from fairlead_gateway.ipc.decision_json import logged_decision
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.decision_log import DecisionLog, DecisionRecord


def decision_out(logged: RequestOutcome) -> DecisionOut:
    return msgspec.json.decode(logged_decision(logged).json, type=DecisionOut)


def append_decision(log: DecisionLog, record: DecisionRecord) -> None:
    log.append(record, RequestOutcome(record.request_id, record.model_key, record.wall))
