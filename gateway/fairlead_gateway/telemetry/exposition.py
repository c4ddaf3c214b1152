"""Prometheus text (version 0.0.4) from the integer lists: one piece per family, written with plain string joins.

A value that is not known has no line at all: missing is not zero. Histograms are kept finer than they are exported (see
``histogram``), which costs nothing because exported buckets are cumulative.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias

from fairlead.fleet.model import Fleet, Instance, InstanceState
from fairlead.fleet.signals import EngineSignals
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.errors import InvalidApiKey, QuarantinedRequest
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry.counters import ModelCounters
from fairlead_gateway.telemetry.families import FAMILIES
from fairlead_gateway.telemetry.histogram import FINE_PER_DOUBLING, OVERHEAD_BOUNDS, SECONDS_BOUNDS, TOKEN_BOUNDS
from fairlead_gateway.telemetry.prometheus_text import escape_label, format_histogram
from fairlead_gateway.telemetry.status_types import (
    IndexState,
    IndexStatus,
    InstanceIndexStatus,
    LoadView,
    ModelIndexStatus,
    PublishStats,
)

TextChunks: TypeAlias = Iterator[bytes]
Line: TypeAlias = str

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MODEL: Final = 'model="{}"'
_EXPORTED_SECONDS: Final = tuple(
    (index, f"{SECONDS_BOUNDS[index]:.6g}") for index in range(0, len(SECONDS_BOUNDS), FINE_PER_DOUBLING)
)
_EXPORTED_TOKENS: Final = tuple((index, f"{bound:.0f}") for index, bound in enumerate(TOKEN_BOUNDS))
_EXPORTED_OVERHEAD: Final = tuple((index, f"{bound:.6g}") for index, bound in enumerate(OVERHEAD_BOUNDS))


@dataclass(frozen=True, slots=True)
class _Scrape:
    """What all families are rendered from."""

    models: Mapping[str, ModelCounters]
    fleet: Fleet
    loads: Mapping[str, LoadView]
    lag: LoopLag | None
    publish_stats: PublishStats | None
    now: float
    uptime_seconds: float
    process_values: Mapping[str, float]
    queued: Mapping[str, int]
    index_status: IndexStatus

    def instances(self) -> Iterator[tuple[str, Instance]]:
        for key, instances in self.fleet.instances.items():
            for instance in instances:
                yield key, instance


def render_families(
    models: Mapping[str, ModelCounters],
    fleet: Fleet,
    loads: Mapping[str, LoadView],
    *,
    lag: LoopLag | None,
    publish_stats: PublishStats | None,
    now: float,
    uptime_seconds: float,
    process_values: Mapping[str, float] = MappingProxyType({}),
    queued: Mapping[str, int] = MappingProxyType({}),
    index_status: IndexStatus = MappingProxyType({}),
) -> TextChunks:
    """One piece of text per family; a family without a value keeps its HELP and TYPE lines. ``own`` belongs to no model."""
    scrape = _Scrape(
        models, fleet, loads, lag, publish_stats, now, uptime_seconds, process_values, queued, index_status
    )
    for family in FAMILIES:
        lines = _RENDERERS[family.name](family.name, scrape)
        yield (family.head + "".join(lines)).encode()


_Renderer: TypeAlias = Callable[[str, _Scrape], Iterable[Line]]


def _counter(position: int) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            yield f'{name}{{model="{escape_label(key)}"}} {series.ints[position]}\n'

    return lines


def _instance_counter(position: int) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            for instance_id, instance in series.instances.items():
                yield f"{name}{_instance_labels(key, instance_id)} {instance.ints[position]}\n"

    return lines


def _instance_summary(count: int, total: int) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            for instance_id, instance in series.instances.items():
                labels = _instance_labels(key, instance_id)
                yield f"{name}_sum{labels} {instance.sums[total]:.9g}\n{name}_count{labels} {instance.ints[count]}\n"

    return lines


def _instance_labels(key: str, instance_id: str) -> str:
    return f'{{model="{escape_label(key)}",instance="{escape_label(instance_id)}"}}'


def _histogram(start: int, total: int, labels: str = _MODEL) -> _Renderer:
    """Seconds; ``total`` is the position of their sum."""
    return _histogram_of(start, at.SECONDS_BINS, _EXPORTED_SECONDS, lambda series: f"{series.sums[total]:.9g}", labels)


def _tokens(start: int, total: int, labels: str = _MODEL) -> _Renderer:
    """Tokens; their sum is one of the counters."""
    return _histogram_of(start, at.TOKEN_BINS, _EXPORTED_TOKENS, lambda series: str(series.ints[total]), labels)


def _overhead(start: int, total: int) -> _Renderer:
    return _histogram_of(
        start, at.OVERHEAD_BINS, _EXPORTED_OVERHEAD, lambda series: f"{series.sums[total]:.9g}", _MODEL
    )


def _histogram_of(
    start: int, bins: int, exported: Sequence[tuple[int, str]], total: Callable[[ModelCounters], str], labels: str
) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            escaped = escape_label(key)
            counts = series.ints[start : start + bins]
            yield format_histogram(name, labels.format(escaped, escaped), counts, exported, total(series))

    return lines


def _statuses(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        for status, value in sorted(series.by_status.items()):
            yield f'{name}{{model="{escape_label(key)}",status="{status or "other"}"}} {value}\n'


def _rejections(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        for (status, kind), value in sorted(series.by_kind.items()):
            yield f'{name}{{model="{escape_label(key)}",status="{status}",kind="{escape_label(kind)}"}} {value}\n'


def _shapes(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        for shape, value in sorted(series.by_shape.items()):
            prompt, output = at.REQUEST_SHAPES.bucket_center(shape)
            labels = f'model="{escape_label(key)}",prompt_tokens="{prompt:.0f}",output_tokens="{output:.0f}"'
            yield f"{name}{{{labels}}} {value}\n"


def _by_labels(first: str, second: str, table: Callable[[ModelCounters], Mapping[tuple[str, str], int]]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            for (one, other), value in sorted(table(series).items()):
                labels = f'model="{escape_label(key)}",{first}="{escape_label(one)}",{second}="{escape_label(other)}"'
                yield f"{name}{{{labels}}} {value}\n"

    return lines


def _count_rejections(series: ModelCounters, code: str) -> int:
    return sum(value for (_, kind), value in series.by_kind.items() if kind == code)


def _keys_refused(name: str, scrape: _Scrape) -> Iterator[Line]:
    yield f"{name} {sum(_count_rejections(series, InvalidApiKey.code) for series in scrape.models.values())}\n"


def _quarantined(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        yield f'{name}{{model="{escape_label(key)}"}} {_count_rejections(series, QuarantinedRequest.code)}\n'


def _process_value(key: str) -> _Renderer:
    return lambda name, scrape: [f"{name} {scrape.process_values[key]}\n"] if key in scrape.process_values else []


def _by_label(label: str, table: Callable[[ModelCounters], Mapping[str, int]]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            for value, counted in sorted(table(series).items()):
                yield f'{name}{{model="{escape_label(key)}",{label}="{escape_label(value)}"}} {counted}\n'

    return lines


def _objective(ttft: int, itl: int, both: int) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            for objective, position in (("all", both), ("itl", itl), ("ttft", ttft)):
                yield f'{name}{{model="{escape_label(key)}",objective="{objective}"}} {series.ints[position]}\n'

    return lines


def _model_load(read: Callable[[LoadView], int], labels: str = _MODEL) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key in scrape.fleet.models:
            ids = (instance.id for instance in scrape.fleet.instances.get(key, ()))
            total = sum(read(scrape.loads[instance_id]) for instance_id in ids if instance_id in scrape.loads)
            yield f"{name}{{{labels.format(escape_label(key), escape_label(key))}}} {total}\n"

    return lines


def _queued(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key in scrape.fleet.models:
        yield f'{name}{{model="{escape_label(key)}"}} {scrape.queued.get(key, 0)}\n'


def _instance_objective(name: str, scrape: _Scrape, ttft: int, itl: int) -> Iterator[Line]:
    for key, series in scrape.models.items():
        for instance_id, instance in series.instances.items():
            labels = _instance_labels(key, instance_id)[:-1]
            for objective, position in (("itl", itl), ("ttft", ttft)):
                yield f'{name}{labels},objective="{objective}"}} {instance.ints[position]}\n'


def _instance_load(read: Callable[[LoadView], float]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, instance in scrape.instances():
            load = scrape.loads.get(instance.id)
            if load is not None:
                yield f"{name}{_instance_labels(key, instance.id)} {read(load):.9g}\n"

    return lines


def _states(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key in scrape.fleet.models:
        instances = scrape.fleet.instances.get(key, ())
        for state in InstanceState:
            count = sum(instance.state is state for instance in instances)
            yield f'{name}{{model="{escape_label(key)}",state="{state}"}} {count}\n'


def _signal(read: Callable[[EngineSignals], float | None]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, instance in scrape.instances():
            value = None if instance.signals is None else read(instance.signals)
            if value is not None:
                yield f"{name}{_engine_labels(key, instance)} {value:.15g}\n"

    return lines


def _signals_age(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, instance in scrape.instances():
        if instance.received_at is not None:
            yield f"{name}{_engine_labels(key, instance)} {max(0.0, scrape.now - instance.received_at):.3f}\n"


def _engine_labels(key: str, instance: Instance) -> str:
    return (
        f'{{model="{escape_label(key)}",instance="{escape_label(instance.id)}",pool="{escape_label(instance.pool)}"}}'
    )


def _gauge(read: Callable[[_Scrape], float]) -> _Renderer:
    return lambda name, scrape: [f"{name} {read(scrape):.15g}\n"]


def _publish_stat(read: Callable[[PublishStats], float]) -> _Renderer:
    return lambda name, scrape: [] if scrape.publish_stats is None else [f"{name} {read(scrape.publish_stats):.15g}\n"]


def _index_value(read: Callable[[InstanceIndexStatus], float | None]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, look in scrape.index_status.items():
            for instance, one in look.instances.items():
                value = read(one)
                if value is not None:
                    yield f"{name}{_instance_labels(key, instance)} {value:.9g}\n"

    return lines


def _index_model_value(read: Callable[[ModelIndexStatus], int]) -> _Renderer:
    return lambda name, scrape: [
        f'{name}{{model="{escape_label(key)}"}} {read(look)}\n' for key, look in scrape.index_status.items()
    ]


def _index_state(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, look in scrape.index_status.items():
        for state in IndexState:
            count = sum(one.state is state for one in look.instances.values())
            yield f'{name}{{model="{escape_label(key)}",state="{state}"}} {count}\n'


def _loop_lag(name: str, scrape: _Scrape) -> Iterator[Line]:
    for share in (0.5, 0.99, 1.0):
        value = None if scrape.lag is None else scrape.lag.quantile(share)
        if value is not None:
            yield f'{name}{{quantile="{share:g}"}} {value:.6g}\n'


def _token_usage(name: str, scrape: _Scrape) -> Iterator[Line]:
    for kind, start, total in (("input", *_INPUT), ("output", *_OUTPUT)):
        yield from _tokens(start, total, f'{_GENAI},gen_ai_token_type="{kind}"')(name, scrape)


def _objective_requests(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        yield f"{name}{{{_OBJECTIVE.format(escape_label(key), escape_label(key))}}} {sum(series.by_status.values())}\n"


def _objective_errors(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        labels = _OBJECTIVE.format(escape_label(key), escape_label(key))
        for status, value in sorted(series.by_status.items()):
            if status >= 400:
                yield f'{name}{{{labels},error_code="{status}"}} {value}\n'


def _pools(scrape: _Scrape) -> dict[str, list[Instance]]:
    pools: dict[str, list[Instance]] = {}
    for _, instance in scrape.instances():
        labels = f'name="{escape_label(instance.model)}-{escape_label(instance.pool)}",namespace="{escape_label(instance.namespace)}"'
        pools.setdefault(labels, []).append(instance)
    return pools


def _pool_mean(read: Callable[[EngineSignals], float | None]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for labels, instances in _pools(scrape).items():
            told = [read(instance.signals) for instance in instances if instance.signals is not None]
            values = [value for value in told if value is not None]
            if values:
                yield f"{name}{{{labels}}} {sum(values) / len(values):.9g}\n"

    return lines


def _pool_ready(name: str, scrape: _Scrape) -> Iterator[Line]:
    for labels, instances in _pools(scrape).items():
        yield f"{name}{{{labels}}} {sum(instance.state is InstanceState.READY for instance in instances)}\n"


def _pool_queues(label: str) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for labels, instances in _pools(scrape).items():
            for instance in instances:
                if instance.signals is not None and instance.signals.waiting is not None:
                    yield f'{name}{{{labels},{label}="{escape_label(instance.id)}"}} {instance.signals.waiting:.9g}\n'

    return lines


_GENAI: Final = 'gen_ai_provider_name="fairlead",gen_ai_request_model="{}"'
_OBJECTIVE: Final = 'model_name="{}",target_model_name="{}"'
_INPUT: Final = (at.INPUT_SIZE, at.PROMPT_TOKENS)
_OUTPUT: Final = (at.OUTPUT_SIZE, at.OUTPUT_TOKENS)
_PREFIX: Final = "fairlead_gateway_"
_PICKER_PREFIX: Final = "llm_d_epp_"
_RENDERERS: Final[Mapping[str, _Renderer]] = {
    _PREFIX + "received_total": _counter(at.RECEIVED),
    _PREFIX + "received_prompt_tokens_total": _counter(at.ARRIVED_TOKENS),
    _PREFIX + "requests_total": _statuses,
    _PREFIX + "rejected_total": _rejections,
    _PREFIX + "errors_total": _counter(at.ERRORS),
    _PREFIX + "aborts_total": _counter(at.ABORTS),
    _PREFIX + "abandoned_total": _counter(at.ABANDONED),
    _PREFIX + "retries_total": _by_label("reason", lambda series: series.retries_by_reason),
    _PREFIX + "continued_total": _by_label("result", lambda series: series.continued),
    _PREFIX + "failed_total": _by_label("error", lambda series: series.failed),
    _PREFIX + "quarantine_refused_total": _quarantined,
    _PREFIX + "handoffs_total": _by_labels("outcome", "reason", lambda series: series.handoffs),
    _PREFIX + "decode_prefills_total": _counter(at.LOCAL_PREFILLS),
    _PREFIX + "decode_prefill_tokens_total": _counter(at.LOCAL_PREFILL_TOKENS),
    _PREFIX + "held_total": _by_label("rule", lambda series: series.held),
    _PREFIX + "prefill_legs_total": _by_label("result", lambda series: series.prefill_legs),
    _PREFIX + "prefill_seconds": _histogram(at.PREFILL, at.PREFILL_SUM),
    _PREFIX + "overhead_seconds": _overhead(at.OVERHEAD, at.OVERHEAD_SUM),
    _PREFIX + "ejections_total": _by_label("reason", lambda series: series.ejections_by_reason),
    _PREFIX + "decisions_total": _by_label("rule", lambda series: series.by_rule),
    _PREFIX + "home_decisions_total": _counter(at.ON_HOME),
    _PREFIX + "prompt_tokens_total": _counter(at.PROMPT_TOKENS),
    _PREFIX + "computed_tokens_total": _counter(at.COMPUTED_TOKENS),
    _PREFIX + "output_tokens_total": _counter(at.OUTPUT_TOKENS),
    _PREFIX + "cached_tokens_total": _counter(at.CACHED_TOKENS),
    _PREFIX + "cache_reported_prompt_tokens_total": _counter(at.CACHE_KNOWN_PROMPT_TOKENS),
    _PREFIX + "predicted_cached_tokens_total": _counter(at.PREDICTED_TOKENS),
    _PREFIX + "cache_prediction_error_tokens_total": _counter(at.PREDICTION_ERROR_TOKENS),
    _PREFIX + "within_objective_total": _objective(at.WITHIN_TTFT, at.WITHIN_ITL, at.WITHIN),
    _PREFIX + "judged_total": _objective(at.JUDGED_TTFT, at.JUDGED_ITL, at.JUDGED),
    _PREFIX + "ttft_seconds": _histogram(at.TTFT, at.TTFT_SUM),
    _PREFIX + "itl_seconds": _histogram(at.ITL, at.ITL_SUM),
    _PREFIX + "tpot_seconds": _histogram(at.TPOT, at.TPOT_SUM),
    _PREFIX + "duration_seconds": _histogram(at.DURATION, at.DURATION_SUM),
    _PREFIX + "request_prompt_tokens": _tokens(*_INPUT),
    _PREFIX + "request_output_tokens": _tokens(*_OUTPUT),
    _PREFIX + "request_shapes_total": _shapes,
    _PREFIX + "held": _queued,
    _PREFIX + "in_flight": _model_load(lambda load: load.inflight),
    _PREFIX + "queue": _model_load(lambda load: load.waiting),
    _PREFIX + "instances": _states,
    _PREFIX + "instance_in_flight": _instance_load(lambda load: load.inflight),
    _PREFIX + "instance_waiting": _instance_load(lambda load: load.waiting),
    _PREFIX + "instance_backlog_seconds": _instance_load(lambda load: load.backlog_seconds),
    _PREFIX + "instance_in_flight_tokens": _instance_load(lambda load: load.inflight_tokens),
    _PREFIX + "instance_requests_total": _instance_counter(at.I_ROUTED),
    _PREFIX + "instance_finished_total": _instance_counter(at.I_FINISHED),
    _PREFIX + "instance_errors_total": _instance_counter(at.I_ERRORS),
    _PREFIX + "instance_retried_total": _instance_counter(at.I_RETRIED_AWAY),
    _PREFIX + "instance_ejections_total": _instance_counter(at.I_EJECTED),
    _PREFIX + "instance_computed_tokens_total": _instance_counter(at.I_COMPUTED_TOKENS),
    _PREFIX + "instance_output_tokens_total": _instance_counter(at.I_OUTPUT_TOKENS),
    _PREFIX + "instance_ttft_seconds": _instance_summary(at.I_FIRST, at.I_TTFT_SUM),
    _PREFIX + "instance_itl_seconds": _instance_summary(at.I_GAPS, at.I_ITL_SUM),
    _PREFIX + "instance_within_objective_total": partial(
        _instance_objective, ttft=at.I_WITHIN_TTFT, itl=at.I_WITHIN_ITL
    ),
    _PREFIX + "instance_judged_total": partial(_instance_objective, ttft=at.I_JUDGED_TTFT, itl=at.I_JUDGED_ITL),
    _PREFIX + "engine_running": _signal(lambda signals: signals.running),
    _PREFIX + "engine_waiting": _signal(lambda signals: signals.waiting),
    _PREFIX + "engine_kv_usage": _signal(lambda signals: signals.kv_usage),
    _PREFIX + "engine_prompt_tokens_total": _signal(lambda signals: signals.prompt_tokens_total),
    _PREFIX + "engine_generation_tokens_total": _signal(lambda signals: signals.generation_tokens_total),
    _PREFIX + "engine_prefix_queries_total": _signal(lambda signals: signals.prefix_queries_total),
    _PREFIX + "engine_prefix_hits_total": _signal(lambda signals: signals.prefix_hits_total),
    _PREFIX + "engine_preemptions_total": _signal(lambda signals: signals.preemptions_total),
    _PREFIX + "engine_sleeping": _signal(lambda signals: None if signals.sleeping is None else float(signals.sleeping)),
    _PREFIX + "engine_signals_age_seconds": _signals_age,
    _PREFIX + "fleet_version": _gauge(lambda scrape: scrape.fleet.version),
    _PREFIX + "fleet_age_seconds": _process_value("fleet_age_seconds"),
    _PREFIX + "membership_epoch": _gauge(lambda scrape: scrape.fleet.membership_epoch),
    _PREFIX + "loop_lag_seconds": _loop_lag,
    _PREFIX + "uptime_seconds": _gauge(lambda scrape: scrape.uptime_seconds),
    _PREFIX + "keys_refused_total": _keys_refused,
    _PREFIX + "workers": _process_value("workers"),
    _PREFIX + "worker_deaths_total": _process_value("worker_deaths_total"),
    _PREFIX + "access_log_dropped_total": _process_value("access_log_dropped_total"),
    _PREFIX + "spans_exported_total": _process_value("spans_exported_total"),
    _PREFIX + "spans_dropped_total": _process_value("spans_dropped_total"),
    _PREFIX + "redis_connected": _publish_stat(lambda shared: float(shared.connected)),
    _PREFIX + "redis_published_total": _publish_stat(lambda shared: shared.published),
    _PREFIX + "redis_dropped_total": _publish_stat(lambda shared: shared.dropped),
    _PREFIX + "redis_refused_total": _publish_stat(lambda shared: shared.refused),
    _PREFIX + "index_instances": _index_state,
    _PREFIX + "index_predicted_tokens_total": _index_value(lambda one: one.predicted_tokens if one.answers else None),
    _PREFIX + "index_reported_tokens_total": _index_value(lambda one: one.reported_tokens if one.answers else None),
    _PREFIX + "index_prediction_ratio": _index_value(lambda one: one.ratio),
    _PREFIX + "index_unreported_total": _index_value(lambda one: one.unreported),
    _PREFIX + "index_late_total": _index_value(lambda one: one.late),
    _PREFIX + "index_quarantined": _index_value(lambda one: one.state is IndexState.QUARANTINED),
    _PREFIX + "index_quarantines_total": _index_value(lambda one: one.quarantines),
    _PREFIX + "index_blocks": _index_value(lambda one: None if one.block_counts is None else one.block_counts.blocks),
    _PREFIX + "index_unique_blocks": _index_value(
        lambda one: None if one.removal_rank is None else one.removal_rank.unique
    ),
    _PREFIX + "index_unique_used_blocks": _index_value(
        lambda one: None if one.removal_rank is None else one.removal_rank.used
    ),
    _PREFIX + "index_scale_down_rank": _index_value(
        lambda one: None if one.removal_rank is None else one.removal_rank.rank
    ),
    _PREFIX + "index_links": _index_model_value(lambda look: look.linked_blocks),
    _PREFIX + "index_links_lowered_total": _index_model_value(lambda look: look.lowered_links),
    _PREFIX + "index_prompts_learned_total": _index_model_value(lambda look: look.learned_prompts),
    _PREFIX + "peers": _process_value("peers"),
    _PREFIX + "peer_age_seconds": _process_value("peer_age_seconds"),
    _PREFIX + "peer_in_flight": _process_value("peer_in_flight"),
    _PREFIX + "peer_sent_total": _process_value("peer_sent_total"),
    _PREFIX + "peer_heard_total": _process_value("peer_heard_total"),
    _PREFIX + "peer_dropped_total": _process_value("peer_dropped_total"),
    _PREFIX + "peer_missed_total": _process_value("peer_missed_total"),
    _PREFIX + "peer_poisoned_total": _process_value("peer_poisoned_total"),
    _PREFIX + "hot_tables_kept": _process_value("hot_tables_kept"),
    _PREFIX + "hot_table_stale_seconds": _process_value("hot_table_stale_seconds"),
    "gen_ai_server_time_to_first_token_seconds": _histogram(at.TTFT, at.TTFT_SUM, _GENAI),
    "gen_ai_server_time_per_output_token_seconds": _histogram(at.TPOT, at.TPOT_SUM, _GENAI),
    "gen_ai_server_request_duration_seconds": _histogram(at.DURATION, at.DURATION_SUM, _GENAI),
    "gen_ai_client_token_usage": _token_usage,
    "inference_objective_request_total": _objective_requests,
    "inference_objective_request_error_total": _objective_errors,
    "inference_objective_request_duration_seconds": _histogram(at.DURATION, at.DURATION_SUM, _OBJECTIVE),
    "inference_objective_input_tokens": _tokens(*_INPUT, _OBJECTIVE),
    "inference_objective_output_tokens": _tokens(*_OUTPUT, _OBJECTIVE),
    "inference_objective_running_requests": _model_load(lambda load: load.inflight, 'model_name="{}"'),
    "inference_pool_average_kv_cache_utilization": _pool_mean(lambda signals: signals.kv_usage),
    "inference_pool_average_queue_size": _pool_mean(lambda signals: signals.waiting),
    "inference_pool_per_pod_queue_size": _pool_queues("model_server_pod"),
    "inference_pool_ready_pods": _pool_ready,
    _PICKER_PREFIX + "request_total": _objective_requests,
    _PICKER_PREFIX + "request_error_total": _objective_errors,
    _PICKER_PREFIX + "request_duration_seconds": _histogram(at.DURATION, at.DURATION_SUM, _OBJECTIVE),
    _PICKER_PREFIX + "request_ttft_seconds": _histogram(at.TTFT, at.TTFT_SUM, f'{_OBJECTIVE},streaming="true"'),
    _PICKER_PREFIX + "request_streaming_tpot_seconds": _histogram(at.TPOT, at.TPOT_SUM, _OBJECTIVE),
    _PICKER_PREFIX + "request_streaming_itl_seconds": _histogram(at.ITL, at.ITL_SUM, _OBJECTIVE),
    _PICKER_PREFIX + "request_input_tokens": _tokens(*_INPUT, _OBJECTIVE),
    _PICKER_PREFIX + "request_output_tokens": _tokens(*_OUTPUT, _OBJECTIVE),
    _PICKER_PREFIX + "request_running": _model_load(lambda load: load.inflight, _OBJECTIVE),
    _PICKER_PREFIX + "average_kv_cache_utilization": _pool_mean(lambda signals: signals.kv_usage),
    _PICKER_PREFIX + "average_queue_size": _pool_mean(lambda signals: signals.waiting),
    _PICKER_PREFIX + "average_running_requests": _pool_mean(lambda signals: signals.running),
    _PICKER_PREFIX + "per_endpoint_queue_size": _pool_queues("model_server_endpoint"),
    _PICKER_PREFIX + "ready_endpoints": _pool_ready,
}
