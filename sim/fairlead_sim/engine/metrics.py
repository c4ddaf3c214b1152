"""The ``/metrics`` page of a simulated engine, with vLLM's names, labels, types and buckets.

Gauges and token counters are read from the core at each scrape. Only measurements of steps and
requests are counted as they happen. As in the real engine, a request whose client disconnects is
not counted as ended; only the running and waiting gauges show its end.

HTTP metrics of an engine in the names of vLLM's instrumentation: counts, sizes and durations.

Lifetime, idle time and reuse gap of KV blocks, measured from the steps of a core.

A block counts as used when it is stored and when an admitted prompt finds it.

Why: it costs a dictionary entry per resident block, so it is measured only on request.

The metrics of vLLM 0.32 that the simulated engine exposes, in the order of its page.

All carry the labels ``engine`` (the data-parallel rank) and ``model_name``, except where
``per_rank`` is False.

Prometheus metrics as plain numbers with cached text around them.

Why: only the numbers of a page change. Observing costs an index and an addition, rendering a join.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_sim.engine import sequence
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared
from fairlead_sim.engine.sequence import EngineStep

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

Labels = Mapping[str, str]

_UNCOUNTED = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
_NO_ROUTE = "none"

_Stats = Callable[[], sequence.EngineStats]
_MAX_ABANDONED_REQUESTS = 4_096


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
    steps = (digit * 10.0**power for power in range(12) for digit in (1, 2, 5))
    return tuple(step for step in steps if step <= max_model_len)


def metric_specs(max_model_len: int) -> tuple[MetricSpec, ...]:
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


def series_name(name: str, labels: Labels) -> str:
    """Returns ``name{a="1",b="2"}`` with sorted labels, as the Prometheus client writes it."""
    if not labels:
        return name
    pairs = ",".join(f'{label}="{_escaped(labels[label])}"' for label in sorted(labels))
    return f"{name}{{{pairs}}}"


class MetricValue:
    """One series of a counter or a gauge; set ``value`` or add to it."""

    __slots__ = ("_prefix", "labels", "value")

    def __init__(self, name: str, labels: Labels, value: float = 0.0) -> None:
        self.labels = labels
        self.value = value
        self._prefix = series_name(name, labels) + " "

    def lines(self) -> Iterable[str]:
        return (self._prefix + format_number(self.value),)


class HistogramSeries:
    """One series of a histogram; ``bounds`` has no infinity."""

    __slots__ = ("_bounds", "_counts", "_prefixes", "_total", "labels")

    def __init__(self, name: str, labels: Labels, bounds: Sequence[float]) -> None:
        self.labels = labels
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        les = [*(format_number(bound) for bound in bounds), "+Inf"]
        self._prefixes = [series_name(f"{name}_bucket", {**labels, "le": le}) + " " for le in les]
        self._prefixes += [series_name(f"{name}_count", labels) + " ", series_name(f"{name}_sum", labels) + " "]

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def lines(self) -> Iterable[str]:
        """Returns the lines of the cumulative buckets, the count and the sum."""
        lines, below = [], 0
        for before, count in zip(self._prefixes, self._counts, strict=False):
            below += count
            lines.append(f"{before}{below}.0")
        lines.append(f"{self._prefixes[-2]}{below}.0")
        lines.append(self._prefixes[-1] + format_number(self._total))
        return lines


class SummarySeries:
    """One series of a summary without quantiles."""

    __slots__ = ("_count", "_prefixes", "_total", "labels")

    def __init__(self, name: str, labels: Labels) -> None:
        self.labels = labels
        self._count = 0
        self._total = 0.0
        self._prefixes = (series_name(f"{name}_count", labels) + " ", series_name(f"{name}_sum", labels) + " ")

    def observe(self, value: float) -> None:
        self._count += 1
        self._total += value

    def lines(self) -> Iterable[str]:
        return (f"{self._prefixes[0]}{self._count}.0", self._prefixes[1] + format_number(self._total))


class MetricFamily:
    """All series of one metric.

    created: Unix time shown by ``_created`` gauges; None: there are none.
    """

    def __init__(self, name: str, kind: str, help_text: str, *, created: float | None = None) -> None:
        self.name = name
        self._header = f"# HELP {name} {help_text}\n# TYPE {name} {kind}"
        self._members: list[MetricValue | HistogramSeries | SummarySeries] = []
        self._created = created
        base = name.removesuffix("_total") if kind == "counter" else name
        self._created_name = f"{base}_created"
        self._created_lines = [f"# HELP {self._created_name} {help_text}\n# TYPE {self._created_name} gauge"]

    def value(self, labels: Labels, value: float = 0.0) -> MetricValue:
        """Adds and returns a series of a counter or a gauge."""
        member = MetricValue(self.name, labels, value)
        self._add(member)
        return member

    def histogram(self, labels: Labels, bounds: Sequence[float]) -> HistogramSeries:
        """Adds and returns a series of a histogram."""
        member = HistogramSeries(self.name, labels, bounds)
        self._add(member)
        return member

    def summary(self, labels: Labels) -> SummarySeries:
        """Adds and returns a series of a summary."""
        member = SummarySeries(self.name, labels)
        self._add(member)
        return member

    def lines(self) -> Iterable[str]:
        """Returns the lines of the family on the page."""
        lines = [self._header]
        for member in self._members:
            lines.extend(member.lines())
        if self._created is not None and self._members:
            lines.extend(self._created_lines)
        return lines

    def _add(self, member: MetricValue | HistogramSeries | SummarySeries) -> None:
        self._members.append(member)
        if self._created is not None:
            self._created_lines.append(
                f"{series_name(self._created_name, member.labels)} {format_number(self._created)}"
            )


def format_number(value: float) -> str:
    return "0.0" if value == 0 else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class HttpMetrics:
    """The HTTP metrics of one engine.

    created: Unix time of the start.
    """

    def __init__(self, created: float) -> None:
        self._requests = MetricFamily(
            "http_requests_total", "counter", "Requests by route, method and class.", created=created
        )
        self._received = MetricFamily("http_request_size_bytes", "summary", "Request bodies by route.", created=created)
        self._sent = MetricFamily("http_response_size_bytes", "summary", "Response bodies by route.", created=created)
        self._durations_family = MetricFamily(
            "http_request_duration_highr_seconds", "histogram", "Time to answer.", created=created
        )
        self._by_route = MetricFamily(
            "http_request_duration_seconds", "histogram", "Time to answer, by route.", created=created
        )
        self._all_durations = self._durations_family.histogram({}, HIGH_RESOLUTION_BUCKETS)
        self._request_counts: dict[tuple[str, str, str], MetricValue] = {}
        self._sizes: dict[str, tuple[SummarySeries, SummarySeries]] = {}
        self._durations: dict[tuple[str, str], HistogramSeries] = {}

    def observe_response(
        self, route: str | None, method: str, status: int, seconds: float, *, received_bytes: int, sent_bytes: int
    ) -> None:
        """Counts one answered request.

        route: the pattern of the path; None if no route matched. Some routes are never counted.
        """
        if route in _UNCOUNTED:
            return
        handler = route or _NO_ROUTE
        name = (handler, method, f"{status // 100}xx")
        counted = self._request_counts.get(name)
        if counted is None:
            counted = self._requests.value({"handler": handler, "method": method, "status": name[2]})
            self._request_counts[name] = counted
        counted.value += 1
        sizes = self._sizes.get(handler)
        if sizes is None:
            labels = {"handler": handler}
            sizes = self._sizes[handler] = (self._received.summary(labels), self._sent.summary(labels))
        sizes[0].observe(received_bytes)
        sizes[1].observe(sent_bytes)
        duration = self._durations.get((handler, method))
        if duration is None:
            duration = self._by_route.histogram({"handler": handler, "method": method}, LOW_RESOLUTION_BUCKETS)
            self._durations[(handler, method)] = duration
        duration.observe(seconds)
        self._all_durations.observe(seconds)

    def lines(self) -> Iterable[str]:
        for family in (self._requests, self._received, self._sent, self._durations_family, self._by_route):
            yield from family.lines()


class BlockLifetimes:
    """The observer that feeds the three ``kv_block_*`` histograms of one rank."""

    def __init__(self, rank: int, members: Mapping[str, Mapping[str, Any]], block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._lifetime: HistogramSeries = members["vllm:kv_block_lifetime_seconds"][str(rank)]
        self._idle: HistogramSeries = members["vllm:kv_block_idle_before_evict_seconds"][str(rank)]
        self._reuse: HistogramSeries = members["vllm:kv_block_reuse_gap_seconds"][str(rank)]
        self._stored_at: dict[int, float] = {}
        self._used_at: dict[int, float] = {}

    def observe_step(self, step: EngineStep, ended_at: float) -> None:
        """Counts the events and the first tokens of one step."""
        for event in step.events:
            match event:
                case BlocksStored(keys):
                    for key in keys:
                        self._stored_at.setdefault(key, ended_at)
                        self._used_at[key] = ended_at
                case BlockEvicted(key) if key in self._stored_at:
                    self._lifetime.observe(ended_at - self._stored_at.pop(key))
                    self._idle.observe(ended_at - self._used_at.pop(key))
                case CacheCleared():
                    self._stored_at.clear()
                    self._used_at.clear()
        for first in step.first_tokens:
            for key in first.keys[: first.cached_tokens // self._block_tokens]:
                if key in self._used_at:
                    self._reuse.observe(ended_at - self._used_at[key])
                    self._used_at[key] = ended_at


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The constants on an engine's metrics page.

    - cache_config: further labels of ``vllm:cache_config_info``.
    - block_tokens: block size of the block metrics of vLLM's ``--kv-cache-metrics``; None: no
      block metrics.
    """

    model_name: str
    max_model_len: int
    cache_config: Mapping[str, object]
    max_adapters: int | None = None
    block_tokens: int | None = None


class EngineMetrics:
    """The metrics of one engine.

    - stats: reads the statistics of each data-parallel rank.
    - lag: measures how late the event loop wakes. Keep its window short (a thousand wakes): every
      scrape sorts it.
    """

    def __init__(
        self, facts: EngineFacts, stats: Sequence[_Stats], *, clock: Clock, lag: LoopLag | None = None
    ) -> None:
        block_tokens = facts.block_tokens
        self._clock = clock
        self._created = clock.wall()
        self._lag = lag
        self._model = facts.model_name
        self._families: list[MetricFamily] = []
        members = self._build(metric_specs(facts.max_model_len), len(stats))
        blocks = self._build(BLOCK_METRIC_SPECS, len(stats)) if block_tokens is not None else {}
        self._adapters = _AdapterInfo(facts.max_adapters, clock)
        self._families.append(self._adapters.family)
        self._families.append(_cache_config_info(facts.cache_config, len(stats)))
        self.ranks = tuple(
            RankMetrics(
                rank,
                read,
                members,
                BlockLifetimes(rank, blocks, block_tokens) if block_tokens is not None else None,
                self._adapters,
            )
            for rank, read in enumerate(stats)
        )
        self._rejections = members["vllm:admission_rejections_total"]
        self.http = HttpMetrics(self._created)
        self._lag_family = MetricFamily("fairlead_sim_loop_lag_seconds", "gauge", "How late the event loop wakes.")
        self._lag_values = [(share, self._lag_family.value({"quantile": str(share)})) for share in (0.5, 0.99, 1.0)]
        self._process = CollectorRegistry()
        for collector in (GCCollector, PlatformCollector, ProcessCollector):
            collector(registry=self._process)

    def observe_step(self, rank: int, step: sequence.EngineStep, began_at: float, ended_at: float) -> None:
        self.ranks[rank].observe_step(step, ended_at)

    def observe_finished(
        self, rank: int, ended: sequence.EngineSequence, reason: str, now: float, *, choices: int = 1
    ) -> None:
        self.ranks[rank].observe_finished(ended, reason, now, choices=choices)

    def count_rejection(self, reason: str) -> None:
        """Counts a rejected request.

        reason: ``max_num_queued_reqs`` or ``max_num_queued_tokens``.
        """
        self._rejections[reason].value += 1

    def set_sleep_level(self, level: int | None) -> None:
        """Records that the engine sleeps at ``level``, or is awake (None)."""
        for rank in self.ranks:
            rank.set_sleep_level(level)

    def render(self) -> bytes:
        """Returns the page in Prometheus' text format."""
        for rank in self.ranks:
            rank.refresh()
        lines: list[str] = []
        for family in self._families:
            lines.extend(family.lines())
        lines.extend(self.http.lines())
        if self._lag is not None and self._lag.quantile(0.5) is not None:
            for share, value in self._lag_values:
                value.value = self._lag.quantile(share) or 0.0
            lines.extend(self._lag_family.lines())
        return generate_latest(self._process) + "\n".join(lines).encode() + b"\n"

    def _build(self, described: Sequence[MetricSpec], ranks: int) -> dict[str, dict[str, Any]]:
        """Creates families; returns their series by metric name and then by ``rank`` and label
        value.
        """
        members: dict[str, dict[str, Any]] = {}
        for item in described:
            created = None if item.kind == "gauge" else self._created
            family = MetricFamily(item.name, item.kind, item.help_text, created=created)
            self._families.append(family)
            members[item.name] = _members(family, item, self._model, ranks)
        return members


def _members(family: MetricFamily, item: MetricSpec, model: str, ranks: int) -> dict[str, Any]:
    series: dict[str, Any] = {}
    for rank in range(ranks) if item.per_rank else [None]:
        labels = {"model_name": model} | ({"engine": str(rank)} if rank is not None else {})
        if item.buckets:
            series[str(rank)] = family.histogram(labels, item.buckets)
        elif not item.label:
            series[str(rank)] = family.value(labels)
        for value in item.values:
            key = value if rank is None else f"{rank}/{value}"
            series[key] = family.value(labels | {item.label: value})
    return series


class RankMetrics:
    """The series of one data-parallel rank."""

    def __init__(
        self,
        rank: int,
        stats: _Stats,
        members: Mapping[str, Mapping[str, Any]],
        blocks: BlockLifetimes | None,
        adapters: "_AdapterInfo",
    ) -> None:
        self._rank = str(rank)
        self._stats = stats
        self._series_by_name = members
        self._blocks = blocks
        self._adapters = adapters
        self._last: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._step_tokens = self._histogram("iteration_tokens_total")
        self._first_token = self._histogram("time_to_first_token_seconds")
        self._gap = self._histogram("inter_token_latency_seconds")
        self.set_sleep_level(None)

    def observe_step(self, step: sequence.EngineStep, ended_at: float) -> None:
        """Counts one step that ended at ``ended_at``."""
        last, first = self._last, self._first
        for item in step.first_tokens:
            self._first_token.observe(ended_at - item.arrival)
            last[item.id] = first[item.id] = ended_at
        for item in step.tokens:
            before = last.get(item.id)
            if before is not None and before != ended_at:
                self._gap.observe(ended_at - before)
                last[item.id] = ended_at
        self._step_tokens.observe(step.prefilled + len(step.tokens))
        self._adapters.observe_running(step.tokens)
        if self._blocks is not None:
            self._blocks.observe_step(step, ended_at)
        for item, reason in step.finished:
            self.observe_finished(item, reason, ended_at)
        if len(last) > len(step.tokens) + _MAX_ABANDONED_REQUESTS:  # clients that left are not reported
            alive = {item.id for item in step.tokens}
            self._last = {name: at for name, at in last.items() if name in alive}
            self._first = {name: at for name, at in first.items() if name in alive}

    def observe_finished(self, item: sequence.EngineSequence, reason: str, now: float, *, choices: int = 1) -> None:
        """Counts one request that ended at ``now``."""
        self._last.pop(item.id, None)
        first = self._first.pop(item.id, now)
        admitted = item.arrival if item.admitted_at is None else item.admitted_at
        self._value("request_success_total", reason).value += 1
        self._histogram("request_prompt_tokens").observe(item.prompt_tokens)
        self._histogram("request_generation_tokens").observe(item.generated)
        self._histogram("request_max_num_generation_tokens").observe(item.generated)
        self._histogram("request_params_n").observe(choices)
        self._histogram("request_params_max_tokens").observe(item.max_tokens)
        self._histogram("request_num_preemptions").observe(item.preemptions)
        self._histogram("request_prefill_kv_computed_tokens").observe(item.prompt_tokens - item.cached_tokens)
        self._histogram("e2e_request_latency_seconds").observe(now - item.arrival)
        self._histogram("request_queue_time_seconds").observe(admitted - item.arrival)
        self._histogram("request_inference_time_seconds").observe(now - admitted)
        self._histogram("request_prefill_time_seconds").observe(first - admitted)
        self._histogram("request_decode_time_seconds").observe(now - first)
        if item.generated > 1:
            self._histogram("request_time_per_output_token_seconds").observe((now - first) / (item.generated - 1))

    def set_sleep_level(self, level: int | None) -> None:
        """Records the sleep level. As in the real engine, level 0 sets none of the states."""
        state = {None: SLEEP_STATES[0], 1: SLEEP_STATES[1], 2: SLEEP_STATES[2]}.get(level)
        for name in SLEEP_STATES:
            self._value("engine_sleep_state", name).value = float(name == state)

    def refresh(self) -> None:
        """Reads gauges and token counters from the core."""
        stats = self._stats()
        for name, label, value in (
            ("num_requests_running", None, stats.running),
            ("num_requests_waiting", None, stats.waiting),
            ("num_requests_waiting_by_reason", "capacity", stats.waiting),
            ("kv_cache_usage_perc", None, stats.kv_usage),
            ("prefix_cache_queries_total", None, stats.prefix_queries_total),
            ("prefix_cache_hits_total", None, stats.prefix_hits_total),
            ("num_preemptions_total", None, stats.preemptions_total),
            ("prompt_tokens_total", None, stats.prompt_tokens_total),
            ("prompt_tokens_by_source_total", "local_compute", stats.computed_prompt_tokens_total),
            ("prompt_tokens_by_source_total", "local_cache_hit", stats.cached_prompt_tokens_total),
            ("prompt_tokens_by_source_total", "external_kv_transfer", stats.pulled_prompt_tokens_total),
            ("prompt_tokens_cached_total", None, stats.cached_prompt_tokens_total),
            ("prompt_tokens_cached_by_source_total", "device", stats.prefix_hits_total),
            ("generation_tokens_total", None, stats.generation_tokens_total),
        ):
            self._value(name, label).value = value

    def _value(self, name: str, label: str | None) -> MetricValue:
        key = self._rank if label is None else f"{self._rank}/{label}"
        member: MetricValue = self._series_by_name[f"vllm:{name}"][key]
        return member

    def _histogram(self, name: str) -> HistogramSeries:
        member: HistogramSeries = self._series_by_name[f"vllm:{name}"][self._rank]
        return member


class _AdapterInfo:
    """``vllm:lora_requests_info``: a series per set of running adapters.

    The value is the Unix time of the set's last step.
    """

    def __init__(self, limit: int | None, clock: Clock) -> None:
        self.family = MetricFamily("vllm:lora_requests_info", "gauge", "When these adapters last ran together.")
        self._limit = limit
        self._clock = clock
        self._series: dict[str, MetricValue] = {}

    def observe_running(self, running: Sequence[sequence.EngineSequence]) -> None:
        """Records the adapters of the sequences in one step."""
        if self._limit is None:
            return
        names = ",".join(sorted({item.adapter for item in running if item.adapter is not None}))
        value = self._series.get(names)
        if value is None:
            labels = {"max_lora": str(self._limit), "running_lora_adapters": names, "waiting_lora_adapters": ""}
            value = self._series[names] = self.family.value(labels)
        value.value = self._clock.wall()


def _cache_config_info(overrides: Mapping[str, object], ranks: int) -> MetricFamily:
    """Returns ``vllm:cache_config_info``, a constant 1 with the configuration as labels."""
    labels = {**CACHE_CONFIG_LABELS, **{name: str(value) for name, value in overrides.items()}}
    family = MetricFamily("vllm:cache_config_info", "gauge", "The cache's configuration.")
    for rank in range(ranks):
        family.value({**labels, "engine": str(rank)}, 1.0)
    return family
