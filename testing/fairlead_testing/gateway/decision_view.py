"""Decisions as the management API shows them."""

from fairlead_gateway.ipc.decision_json import logged_decision
from fairlead_gateway.supervisor.management.schemas import DecisionOut
from fairlead_gateway.telemetry.decision_log import LoggedRequest


def decision_out(logged: LoggedRequest) -> DecisionOut:
    """Returns the choices and the outcome of one request, as `/api/decisions` shows them."""
    return DecisionOut.model_validate_json(logged_decision(logged).json)
