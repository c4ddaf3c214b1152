"""What the gateway counts: cheap integer arrays on the request's way, rendered as Prometheus text elsewhere."""

from fairlead_gateway.telemetry.outcome import Attainment, RequestOutcome, assess_attainment
from fairlead_gateway.telemetry.recorder import OK, UNKNOWN, MetricsRecorder
from fairlead_gateway.telemetry.status_types import LoadView

__all__ = ["OK", "UNKNOWN", "Attainment", "LoadView", "MetricsRecorder", "RequestOutcome", "assess_attainment"]
