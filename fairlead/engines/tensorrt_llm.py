"""The adapter for TensorRT-LLM's `trtllm-serve`, which runs in pods. Local mode simulates it."""

from collections.abc import Collection, Sequence
from typing import Final

from fairlead.engines.adapter_protocol import LocalEngineCommand, LocalEngineReplica
from fairlead.engines.metric_names import MetricNames, read_signals
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals

TENSORRT_LLM_METRICS: Final = MetricNames(
    rank_label=b"rank",
    running=(),
    waiting=(),
    kv_usage=(),
    prompt_tokens=(b"trtllm_prompt_tokens_total",),
    generation_tokens=(b"trtllm_generation_tokens_total",),
    prefix_queries=(b"trtllm_prompt_tokens_total",),
    prefix_hits=(b"trtllm_prompt_cached_tokens_total",),
    preemptions=(),
)
"""The counters of completed requests. Each prompt token counts as a query of the cache.

Why not its gauges of load: the server sets them when a request completes, to the counts at the
start of an iteration. An idle engine then shows a request for as long as it is idle.

Source: `tensorrt_llm/metrics/collector.py` and `serve/openai_server.py` at commit 050f80def8df.
"""


class TensorrtLlm:
    """The adapter for TensorRT-LLM. Metrics need its setting `return_perf_metrics`."""

    kind = "trtllm"
    health_path = "/health"
    metrics_path = "/prometheus/metrics"

    def local_launch_command(self, replica: LocalEngineReplica, ports: Sequence[int]) -> LocalEngineCommand:
        """Raises BadInput: local mode starts only vLLM and simulated engines."""
        raise BadInput(
            "local mode cannot start a real TensorRT-LLM", field="spec.engine.type", hint="let the engine be simulated"
        )

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Returns the values of a metrics page, which has no ranks."""
        return read_signals(TENSORRT_LLM_METRICS, metrics, None)

    def parse_rank_signals(self, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
        """Returns the values of the page for each rank. A `trtllm-serve` has one."""
        return dict.fromkeys(ranks, self.parse_signals(metrics))
