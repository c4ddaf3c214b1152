"""The metric names of each kind of engine, and the function that reads them from a metrics page.

A new kind of engine has an adapter. If its metric names differ, it also has a `MetricNames` here.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from fairlead.engines.prometheus_scan import Sample, SampleLookup, mean_samples, parse_samples, sum_samples
from fairlead.fleet.signals import EngineSignals

_MAX_LINES: Final = 256  # that begin with one name: a server may have ranks that Fairlead does not count
_MAX_LINES_OF_RANK: Final = 8


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
    if rank is not None:
        return read_rank_signals(names, metrics, (rank,))[rank]
    page = b"\n" + metrics
    return _read_signals(names, lambda name: parse_samples(page, name, _MAX_LINES))


def read_rank_signals(names: MetricNames, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
    """Returns the values of each of these data-parallel ranks.

    Why not one by one: a server may have a thousand ranks, and to search its page takes up to 0.2 s
    each time.
    """
    page, label = b"\n" + metrics, re.compile(rb'[{, ]%s="(\d{1,9})"' % names.rank_label)
    by_name: dict[bytes, dict[int, list[Sample]]] = {}

    def lookup(rank: int, name: bytes) -> list[Sample]:
        by_rank = by_name.get(name)
        if by_rank is None:
            samples = parse_samples(page, name, _MAX_LINES + _MAX_LINES_OF_RANK * len(ranks))
            by_rank = by_name[name] = _by_rank(samples, label)
        return by_rank.get(rank, [])

    return {rank: _read_signals(names, partial(lookup, rank)) for rank in ranks}


def _by_rank(samples: Iterable[Sample], label: re.Pattern[bytes]) -> dict[int, list[Sample]]:
    by_rank: dict[int, list[Sample]] = {}
    for sample in samples:
        if (found := label.search(sample[0])) is not None:
            by_rank.setdefault(int(found[1]), []).append(sample)
    return by_rank


def _read_signals(names: MetricNames, lookup: SampleLookup) -> EngineSignals:
    return EngineSignals(
        running=sum_samples(lookup, names.running),
        waiting=sum_samples(lookup, names.waiting),
        kv_usage=mean_samples(lookup, names.kv_usage),
        prompt_tokens_total=sum_samples(lookup, names.prompt_tokens),
        generation_tokens_total=sum_samples(lookup, names.generation_tokens),
        prefix_queries_total=sum_samples(lookup, names.prefix_queries),
        prefix_hits_total=sum_samples(lookup, names.prefix_hits),
        preemptions_total=sum_samples(lookup, names.preemptions),
        sleeping=_is_sleeping(lookup, names.sleep_state),
    )


def _is_sleeping(lookup: SampleLookup, name: bytes | None) -> bool | None:
    """Returns True if no rank is awake; None if the page does not say."""
    if name is None:
        return None
    awake = [value for labels, value in lookup(name) if b'sleep_state="awake"' in labels]
    return not any(awake) if awake else None
