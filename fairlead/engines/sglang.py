"""The adapter for SGLang, which runs in pods (`fairlead/engines/containers`)."""

from fairlead.engines.adapter_protocol import PodEngineAdapter
from fairlead.engines.metric_names import SGLANG_METRICS


class Sglang(PodEngineAdapter):
    """The adapter for SGLang. Metrics need the flag `--enable-metrics`."""

    kind = title = "sglang"
    names = SGLANG_METRICS
