"""The metric names of each kind of engine, and the function that reads them from a metrics page.

A new kind of engine has an adapter. If its metric names differ, it also has a `MetricNames` here.
"""

from dataclasses import dataclass
from typing import Final

from fairlead.engines.prometheus_scan import mean_samples, parse_samples, sum_samples
from fairlead.fleet.signals import EngineSignals


@dataclass(frozen=True, slots=True)
class MetricNames:
    """The metric names of one kind of engine.

    A field lists the names that releases have used. The first of them that the page has is read.

    rank_label: the label with the number of the data-parallel rank.
    kv_usage: a share (0..1).
    prefix_queries, prefix_hits: prompt tokens that were looked up in the cache, and found there.
    sleep_state: the metric of vLLM's sleep mode; None if the kind of engine has none.
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
"""SGLang has no metric of cache queries, so each prompt token counts as one.

Its hits are one series for each cache tier; `read_signals` adds them up.
"""


def read_signals(names: MetricNames, metrics: bytes, rank: int | None) -> EngineSignals:
    """Returns the values of a metrics page: sums over all series, and the mean for `kv_usage`.

    A value that the page lacks is None. A last line without a line break is not read.

    rank: the only data-parallel rank that is read; None for all.
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
    """Returns True if no rank is awake; None if the page does not say."""
    if name is None:
        return None
    awake = [value for labels, value in parse_samples(page, name, wanted) if b'sleep_state="awake"' in labels]
    return not any(awake) if awake else None
