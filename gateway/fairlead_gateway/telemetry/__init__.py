"""What the gateway counts: cheap integer arrays on the request's way, rendered as Prometheus text elsewhere."""

from fairlead_gateway.telemetry.load import LoadView
from fairlead_gateway.telemetry.outcome import Attainment, RequestOutcome, assess_attainment
from fairlead_gateway.telemetry.recorder import OK, UNKNOWN, MetricsRecorder

__all__ = ["OK", "UNKNOWN", "Attainment", "LoadView", "MetricsRecorder", "RequestOutcome", "assess_attainment"]
