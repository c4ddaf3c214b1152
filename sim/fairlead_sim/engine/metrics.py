"""The ``/metrics`` page of a simulated engine, with vLLM's names, labels, types and buckets.

Gauges and token counters are read from the core at each scrape. Only measurements of steps and
requests are counted as they happen. As in the real engine, a request whose client disconnects is
not counted as ended; only the running and waiting gauges show its end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_sim.engine import sequence
from fairlead_sim.engine.block_lifetimes import BlockLifetimes
from fairlead_sim.engine.http_metrics import HttpMetrics
from fairlead_sim.engine.metric_families import (
    BLOCK_METRIC_SPECS,
    CACHE_CONFIG_LABELS,
    SLEEP_STATES,
    MetricSpec,
    metric_specs,
)
from fairlead_sim.engine.prometheus_exposition import HistogramSeries, MetricFamily, MetricValue

_Stats = Callable[[], sequence.EngineStats]
_MAX_ABANDONED_REQUESTS = 4_096


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
        """Counts a delivered step; times are on the clock of the arrivals."""
        self.ranks[rank].observe_step(step, ended_at)

    def observe_finished(
        self, rank: int, ended: sequence.EngineSequence, reason: str, now: float, *, choices: int = 1
    ) -> None:
        """Counts a request that the caller ended, for example by a stop string."""
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
