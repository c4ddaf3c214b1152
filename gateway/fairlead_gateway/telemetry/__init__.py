"""What the gateway counts: cheap integer arrays on the request's way, rendered as Prometheus text elsewhere."""

from fairlead_gateway.telemetry.load import Load
from fairlead_gateway.telemetry.outcome import Attainment, Outcome, attainment
from fairlead_gateway.telemetry.telemetry import OK, UNKNOWN, Telemetry

__all__ = ["OK", "UNKNOWN", "Attainment", "Load", "Outcome", "Telemetry", "attainment"]
