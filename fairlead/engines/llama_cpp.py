"""The adapter for llama.cpp's `llama-server`, which runs in pods. Local mode simulates it."""

from dataclasses import replace
from typing import Final

from fairlead.engines.adapter_protocol import PodEngineAdapter
from fairlead.engines.metric_names import MetricNames
from fairlead.fleet.signals import EngineSignals

LLAMA_CPP_METRICS: Final = MetricNames(
    rank_label=b"rank",
    running=(b"llamacpp:requests_processing",),
    waiting=(b"llamacpp:requests_deferred",),
    kv_usage=(b"llamacpp:kv_cache_usage_ratio",),
    prompt_tokens=(b"llamacpp:prompt_tokens_total",),
    generation_tokens=(b"llamacpp:tokens_predicted_total",),
    prefix_queries=(),
    prefix_hits=(b"llamacpp:prompt_tokens_cached_total",),
    preemptions=(),
)
"""Releases since 2025 have no `kv_cache_usage_ratio`. `LlamaCpp` computes queries of the cache."""


class LlamaCpp(PodEngineAdapter):
    """The adapter for llama.cpp. Metrics need the flag `--metrics`."""

    kind = "llamacpp"
    title = "llama.cpp"
    names = LLAMA_CPP_METRICS
    has_ranks = False

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Returns the values of a metrics page.

        Why the sum: its counter of prompt tokens leaves out those from the cache. Other engines
        count them.
        """
        signals = super().parse_signals(metrics)
        processed, cached = signals.prompt_tokens_total, signals.prefix_hits_total
        if processed is None or cached is None:
            return signals
        return replace(signals, prompt_tokens_total=processed + cached, prefix_queries_total=processed + cached)
