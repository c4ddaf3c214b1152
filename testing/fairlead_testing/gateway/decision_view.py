"""Decisions as the management API shows them."""

import msgspec

from fairlead.management_api import DecisionOut
from fairlead_gateway.ipc.decision_json import logged_decision
from fairlead_gateway.telemetry.decision_log import LoggedRequest


def decision_out(logged: LoggedRequest) -> DecisionOut:
    """Returns the choices and the outcome of one request, as `/api/decisions` shows them."""
    return msgspec.json.decode(logged_decision(logged).json, type=DecisionOut)
