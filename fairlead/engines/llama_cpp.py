"""The adapter for llama.cpp's `llama-server`, which runs in pods. Local mode simulates it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from fairlead.engines.adapter_protocol import LocalEngineCommand, LocalEngineReplica
from fairlead.engines.metric_names import MetricNames, read_signals
from fairlead.errors import BadInput
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


class LlamaCpp:
    """The adapter for llama.cpp. Metrics need the flag `--metrics`."""

    kind = "llamacpp"
    health_path = "/health"
    metrics_path = "/metrics"

    def local_launch_command(self, replica: LocalEngineReplica, ports: Sequence[int]) -> LocalEngineCommand:
        """Raises BadInput: local mode starts only vLLM and simulated engines."""
        raise BadInput(
            "local mode cannot start a real llama.cpp", field="spec.engine.type", hint="let the engine be simulated"
        )

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Returns the values of a metrics page, which has no ranks.

        Why the sum: its counter of prompt tokens leaves out those from the cache. Other engines
        count them.
        """
        signals = read_signals(LLAMA_CPP_METRICS, metrics, None)
        processed, cached = signals.prompt_tokens_total, signals.prefix_hits_total
        if processed is None or cached is None:
            return signals
        return replace(signals, prompt_tokens_total=processed + cached, prefix_queries_total=processed + cached)

    def parse_rank_signals(self, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
        """Returns the values of the page for each rank. A `llama-server` has one."""
        signals = self.parse_signals(metrics)
        return dict.fromkeys(ranks, signals)
