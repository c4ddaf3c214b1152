"""The metrics of vLLM 0.32 that the simulated engine exposes, in the order of its page.

All carry the labels ``engine`` (the data-parallel rank) and ``model_name``, except where
``per_rank`` is False.
"""

from dataclasses import dataclass
from types import MappingProxyType

_STEP_TOKEN_BUCKETS = (1.0, *(2.0**power for power in range(3, 15)))
_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_BLOCK_BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0, 1200.0, 1800.0),
)

SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
CACHE_TIERS = ("device", "host", "p2p", "disk", "external_unspecified")
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")
REJECTION_REASONS = ("max_num_queued_reqs", "max_num_queued_tokens")
HIGH_RESOLUTION_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5),
    *(5.0, 7.5, 10.0, 30.0, 60.0),
)
LOW_RESOLUTION_BUCKETS = (0.1, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """The specification of one metric.

    - label, values: the metric's own label and its values.
    - buckets: the bounds of a histogram.
    """

    name: str
    kind: str
    help_text: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    per_rank: bool = True


def _counter(name: str, help_text: str, label: str = "", values: tuple[str, ...] = ()) -> MetricSpec:
    return MetricSpec(name, "counter", help_text, label, values)


def _gauge(name: str, help_text: str, label: str = "", values: tuple[str, ...] = ()) -> MetricSpec:
    return MetricSpec(name, "gauge", help_text, label, values)


def _histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> MetricSpec:
    return MetricSpec(name, "histogram", help_text, buckets=buckets)


_COUNTERS_AND_GAUGES = (
    _counter("vllm:estimated_flops_per_gpu_total", "Floating-point operations; not simulated, always 0."),
    _counter("vllm:estimated_read_bytes_per_gpu_total", "Bytes read from memory; not simulated, always 0."),
    _counter("vllm:estimated_write_bytes_per_gpu_total", "Bytes written to memory; not simulated, always 0."),
    _gauge("vllm:num_requests_running", "Requests in the current batch."),
    _gauge("vllm:num_requests_waiting", "Requests in the queue."),
    _gauge("vllm:num_requests_waiting_by_reason", "The queue by reason.", "reason", ("capacity", "deferred")),
    _gauge("vllm:engine_sleep_state", "1 for the state the engine is in.", "sleep_state", SLEEP_STATES),
    _gauge("vllm:kv_cache_usage_perc", "Share of KV blocks that running requests hold, 0 to 1."),
    _counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
    _counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
    _counter("vllm:external_prefix_cache_queries_total", "Prompt tokens looked up through a KV connector."),
    _counter("vllm:external_prefix_cache_hits_total", "Prompt tokens found through a KV connector."),
    _counter("vllm:mm_cache_queries_total", "Items looked up in the multi-modal cache."),
    _counter("vllm:mm_cache_hits_total", "Items found in the multi-modal cache."),
    _counter("vllm:num_preemptions_total", "Running requests put back to the queue."),
    _counter("vllm:prompt_tokens_total", "Prompt tokens of prompts that are complete."),
    _counter("vllm:prompt_tokens_by_source_total", "Prompt tokens by origin.", "source", PROMPT_SOURCES),
    _counter("vllm:prompt_tokens_cached_total", "Prompt tokens that were cached."),
    _counter("vllm:prompt_tokens_cached_by_source_total", "Cached tokens by tier.", "source", CACHE_TIERS),
    _counter("vllm:generation_tokens_total", "Tokens generated."),
    _counter("vllm:request_success_total", "Requests that ended.", "finished_reason", FINISHED_REASONS),
    MetricSpec(
        "vllm:admission_rejections_total",
        "counter",
        "Requests refused because the queue was full.",
        "reason",
        REJECTION_REASONS,
        per_rank=False,
    ),
)


def token_buckets(max_model_len: int) -> tuple[float, ...]:
    """Returns 1, 2, 5, 10, 20, 50 … up to the longest sequence of the engine."""
    steps = (digit * 10.0**power for power in range(12) for digit in (1, 2, 5))
    return tuple(step for step in steps if step <= max_model_len)


def metric_specs(max_model_len: int) -> tuple[MetricSpec, ...]:
    """Returns all metrics except BLOCK_METRIC_SPECS."""
    tokens = token_buckets(max_model_len)
    return (*_COUNTERS_AND_GAUGES, *_histograms(tokens))


def _histograms(tokens: tuple[float, ...]) -> tuple[MetricSpec, ...]:
    return (
        _histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", tokens),
        _histogram("vllm:request_generation_tokens", "Tokens generated for a request.", tokens),
        _histogram("vllm:iteration_tokens_total", "Tokens of an engine step.", _STEP_TOKEN_BUCKETS),
        _histogram("vllm:request_max_num_generation_tokens", "The longest output of a request.", tokens),
        _histogram("vllm:request_params_n", "What requests gave as n.", (1.0, 2.0, 5.0, 10.0, 20.0)),
        _histogram("vllm:request_params_max_tokens", "What requests gave as max_tokens.", tokens),
        _histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", _TTFT_BUCKETS),
        _histogram("vllm:inter_token_latency_seconds", "From one token to the next.", _ITL_BUCKETS),
        _histogram("vllm:request_time_per_output_token_seconds", "Mean gap of a request's tokens.", _ITL_BUCKETS),
        _histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", _REQUEST_BUCKETS),
        _histogram("vllm:request_queue_time_seconds", "From arrival to admission.", _REQUEST_BUCKETS),
        _histogram("vllm:request_inference_time_seconds", "From admission to the last token.", _REQUEST_BUCKETS),
        _histogram("vllm:request_prefill_time_seconds", "From admission to the first token.", _REQUEST_BUCKETS),
        _histogram("vllm:request_decode_time_seconds", "From the first token to the last.", _REQUEST_BUCKETS),
        _histogram(
            "vllm:request_num_preemptions", "How often a request was put back.", (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
        ),
        _histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens computed, without cached ones.", tokens),
    )


BLOCK_METRIC_SPECS = (
    _histogram("vllm:kv_block_lifetime_seconds", "From a block's store to its eviction.", _BLOCK_BUCKETS),
    _histogram("vllm:kv_block_idle_before_evict_seconds", "From a block's last use to its eviction.", _BLOCK_BUCKETS),
    _histogram("vllm:kv_block_reuse_gap_seconds", "From one use of a block to the next.", _BLOCK_BUCKETS),
)
"""The metrics that need ``--kv-cache-metrics`` in vLLM."""

CACHE_CONFIG_LABELS = MappingProxyType(
    dict.fromkeys(
        (
            *("cache_hit_alignment_tokens", "hash_block_size", "kv_cache_layout", "kv_cache_memory_bytes"),
            *("kv_offloading_size", "mamba_block_size", "mamba_page_size_padded", "num_cpu_blocks"),
            *("num_gpu_blocks_override", "prefix_match_unit", "skip_page_size_padded", "sliding_window"),
        ),
        "None",
    )
    | {
        "_block_size_resolved": "True",
        "block_size": "16",
        "cache_dtype": "auto",
        "effective_attention_block_size": "16",
        "enable_mamba_shared_prefix_checkpoint": "False",
        "enable_prefix_caching": "True",
        "gpu_memory_utilization": "0.92",
        "is_attention_free": "False",
        "kv_cache_dtype_skip_layers": "[]",
        "kv_cache_max_concurrency": "1.0",
        "kv_cache_size_tokens": "0",
        "kv_offloading_backend": "native",
        "kv_sharing_fast_prefill": "False",
        "mamba_cache_dtype": "auto",
        "mamba_cache_mode": "none",
        "mamba_ssm_cache_dtype": "float32",
        "num_gpu_blocks": "0",
        "prefix_cache_retention_interval": "0",
        "prefix_caching_hash_algo": "sha256",
        "replayssm_buffer_len": "16",
        "swa_bounded_replay": "True",
        "use_kda_recoverssm": "False",
        "use_replayssm": "False",
        "user_specified_block_size": "True",
    }
)
"""Default labels of ``vllm:cache_config_info``."""
