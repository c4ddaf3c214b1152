"""The names of the metrics that each type of engine exports, and the signals that are read by them.

A new type of engine is a row here, and an adapter that uses it.
"""

from dataclasses import dataclass
from typing import Final

from fairlead.engines.prometheus_scan import mean_samples, parse_samples, sum_samples
from fairlead.fleet.signals import EngineSignals


@dataclass(frozen=True, slots=True)
class MetricNames:
    """The metric names of one type of engine. Of several names, the first on the page is read.

    rank_label: the label with the number of the data-parallel rank.
    sleep_state: the metric of vLLM's sleep mode; None if the engine does not report it.
    """

    rank_label: bytes
    running: tuple[bytes, ...]
    waiting: tuple[bytes, ...]
    kv_usage: tuple[bytes, ...]
    prompt_tokens: tuple[bytes, ...]
    generation_tokens: tuple[bytes, ...]
    prefix_queries: tuple[bytes, ...]
    prefix_hits: tuple[bytes, ...]
    preemptions: tuple[bytes, ...]
    sleep_state: bytes | None = None


VLLM_METRICS: Final = MetricNames(
    rank_label=b"engine",
    running=(b"vllm:num_requests_running",),
    waiting=(b"vllm:num_requests_waiting",),
    kv_usage=(b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
    prompt_tokens=(b"vllm:prompt_tokens_total",),
    generation_tokens=(b"vllm:generation_tokens_total",),
    prefix_queries=(b"vllm:prefix_cache_queries_total", b"vllm:gpu_prefix_cache_queries_total"),
    prefix_hits=(b"vllm:prefix_cache_hits_total", b"vllm:gpu_prefix_cache_hits_total"),
    preemptions=(b"vllm:num_preemptions_total",),
    sleep_state=b"vllm:engine_sleep_state",
)

SGLANG_METRICS: Final = MetricNames(
    rank_label=b"dp_rank",
    running=(b"sglang:num_running_reqs",),
    waiting=(b"sglang:num_queue_reqs",),
    kv_usage=(b"sglang:token_usage",),
    prompt_tokens=(b"sglang:prompt_tokens_total",),
    generation_tokens=(b"sglang:generation_tokens_total",),
    prefix_queries=(b"sglang:prompt_tokens_total",),
    prefix_hits=(b"sglang:cached_tokens_total",),
    preemptions=(b"sglang:num_retracted_requests_total",),
)
"""SGLang counts every prompt token as a cache query, and hits by tier."""


def read_signals(names: MetricNames, metrics: bytes, rank: int | None) -> EngineSignals:
    """Returns the values of a metrics page: sums over ranks, and the mean for `kv_usage`.

    rank: read only this data-parallel rank.
    """
    page, wanted = b"\n" + metrics, None if rank is None else b'%s="%d"' % (names.rank_label, rank)
    return EngineSignals(
        running=sum_samples(page, names.running, wanted),
        waiting=sum_samples(page, names.waiting, wanted),
        kv_usage=mean_samples(page, names.kv_usage, wanted),
        prompt_tokens_total=sum_samples(page, names.prompt_tokens, wanted),
        generation_tokens_total=sum_samples(page, names.generation_tokens, wanted),
        prefix_queries_total=sum_samples(page, names.prefix_queries, wanted),
        prefix_hits_total=sum_samples(page, names.prefix_hits, wanted),
        preemptions_total=sum_samples(page, names.preemptions, wanted),
        sleeping=_is_sleeping(page, names.sleep_state, wanted),
    )


def _is_sleeping(page: bytes, name: bytes | None, wanted: bytes | None) -> bool | None:
    """Returns True if no rank is awake; None if the engine's release does not report it."""
    if name is None:
        return None
    awake = [value for labels, value in parse_samples(page, name, wanted) if b'sleep_state="awake"' in labels]
    return not any(awake) if awake else None
