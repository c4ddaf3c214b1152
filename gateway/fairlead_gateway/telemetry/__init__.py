"""Counters and logs of the gateway: values that workers and supervisor read.

In reading order: `recorder` (called by the request path), `counters` (arrays and histograms),
`snapshot` (counters to send and add up). Then `decision_log` (with outcomes), `handoff_record`,
`status_types`, `metrics` (the table of all metrics) and `metric_sources`; `adapter_series`: the
adapters with metrics of their own. `worker`: access log and traces.
"""

from fairlead_gateway.telemetry.decision_log import Attainment, RequestOutcome, assess_attainment
from fairlead_gateway.telemetry.recorder import OK, UNKNOWN, MetricsRecorder
from fairlead_gateway.telemetry.status_types import LoadView

__all__ = ["OK", "UNKNOWN", "Attainment", "LoadView", "MetricsRecorder", "RequestOutcome", "assess_attainment"]
