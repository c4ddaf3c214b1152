"""The adapter for TensorRT-LLM's `trtllm-serve`, which runs in pods. Local mode simulates it."""

from typing import Final

from fairlead.engines.adapter_protocol import PodEngineAdapter
from fairlead.engines.metric_names import MetricNames

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


class TensorrtLlm(PodEngineAdapter):
    """The adapter for TensorRT-LLM. Metrics need its setting `return_perf_metrics`."""

    kind = "trtllm"
    title = "TensorRT-LLM"
    names = TENSORRT_LLM_METRICS
    metrics_path = "/prometheus/metrics"
    has_ranks = False
