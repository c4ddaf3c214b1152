"""Prometheus text (version 0.0.4) from the integer lists: one piece per family, written with plain string joins.

A value that is not known has no line at all: missing is not zero. Histograms are kept finer than they are exported (see
``histogram``), which costs nothing because exported buckets are cumulative.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias

from fairlead.fleet import Fleet, Instance, InstanceState
from fairlead.lag import LoopLag
from fairlead.signals import EngineSignals
from fairlead_gateway.errors import NoKey, Quarantined
from fairlead_gateway.telemetry import series as at
from fairlead_gateway.telemetry.families import FAMILIES
from fairlead_gateway.telemetry.histogram import FINE_PER_DOUBLING, OVERHEAD_BOUNDS, SECONDS_BOUNDS, TOKEN_BOUNDS
from fairlead_gateway.telemetry.index import Followed, InstanceIndex, Looks, ModelLook
from fairlead_gateway.telemetry.load import Load, Shared
from fairlead_gateway.telemetry.series import ModelSeries
from fairlead_gateway.telemetry.text import escape, histogram_text

Parts: TypeAlias = Iterator[bytes]
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

    models: Mapping[str, ModelSeries]
    fleet: Fleet
    loads: Mapping[str, Load]
    lag: LoopLag | None
    shared: Shared | None
    now: float
    uptime_seconds: float
    own: Mapping[str, float]
    waiting: Mapping[str, int]
    index: Looks

    def instances(self) -> Iterator[tuple[str, Instance]]:
        for key, instances in self.fleet.instances.items():
            for instance in instances:
                yield key, instance


def parts(
    models: Mapping[str, ModelSeries],
    fleet: Fleet,
    loads: Mapping[str, Load],
    *,
    lag: LoopLag | None,
    shared: Shared | None,
    now: float,
    uptime_seconds: float,
    own: Mapping[str, float] = MappingProxyType({}),
    waiting: Mapping[str, int] = MappingProxyType({}),
    index: Looks = MappingProxyType({}),
) -> Parts:
    """One piece of text per family; a family without a value keeps its HELP and TYPE lines. ``own`` belongs to no model."""
    scrape = _Scrape(models, fleet, loads, lag, shared, now, uptime_seconds, own, waiting, index)
    for family in FAMILIES:
        lines = _RENDERERS[family.name](family.name, scrape)
        yield (family.head + "".join(lines)).encode()


_Renderer: TypeAlias = Callable[[str, _Scrape], Iterable[Line]]


def _counter(position: int) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            yield f'{name}{{model="{escape(key)}"}} {series.ints[position]}\n'

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
    return f'{{model="{escape(key)}",instance="{escape(instance_id)}"}}'


def _histogram(start: int, total: int, labels: str = _MODEL) -> _Renderer:
    """Seconds; ``total`` is the position of their sum."""
    return _drawn(start, at.SECONDS_BINS, _EXPORTED_SECONDS, lambda series: f"{series.sums[total]:.9g}", labels)


def _tokens(start: int, total: int, labels: str = _MODEL) -> _Renderer:
    """Tokens; their sum is one of the counters."""
    return _drawn(start, at.TOKEN_BINS, _EXPORTED_TOKENS, lambda series: str(series.ints[total]), labels)


def _overhead(start: int, total: int) -> _Renderer:
    return _drawn(start, at.OVERHEAD_BINS, _EXPORTED_OVERHEAD, lambda series: f"{series.sums[total]:.9g}", _MODEL)


def _drawn(
    start: int, bins: int, exported: Sequence[tuple[int, str]], total: Callable[[ModelSeries], str], labels: str
) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            escaped = escape(key)
            counts = series.ints[start : start + bins]
            yield histogram_text(name, labels.format(escaped, escaped), counts, exported, total(series))

    return lines


def _statuses(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        for status, value in sorted(series.by_status.items()):
            yield f'{name}{{model="{escape(key)}",status="{status or "other"}"}} {value}\n'


def _kinds(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        for (status, kind), value in sorted(series.by_kind.items()):
            yield f'{name}{{model="{escape(key)}",status="{status}",kind="{escape(kind)}"}} {value}\n'


def _shapes(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        for shape, value in sorted(series.by_shape.items()):
            prompt, output = at.SHAPES.middle(shape)
            labels = f'model="{escape(key)}",prompt_tokens="{prompt:.0f}",output_tokens="{output:.0f}"'
            yield f"{name}{{{labels}}} {value}\n"


def _pairs(first: str, second: str, table: Callable[[ModelSeries], Mapping[tuple[str, str], int]]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            for (one, other), value in sorted(table(series).items()):
                labels = f'model="{escape(key)}",{first}="{escape(one)}",{second}="{escape(other)}"'
                yield f"{name}{{{labels}}} {value}\n"

    return lines


def _of_kind(series: ModelSeries, code: str) -> int:
    return sum(value for (_, kind), value in series.by_kind.items() if kind == code)


def _keys_refused(name: str, scrape: _Scrape) -> Iterator[Line]:
    yield f"{name} {sum(_of_kind(series, NoKey.code) for series in scrape.models.values())}\n"


def _quarantined(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        yield f'{name}{{model="{escape(key)}"}} {_of_kind(series, Quarantined.code)}\n'


def _own(key: str) -> _Renderer:
    return lambda name, scrape: [f"{name} {scrape.own[key]}\n"] if key in scrape.own else []


def _by(label: str, table: Callable[[ModelSeries], Mapping[str, int]]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            for value, counted in sorted(table(series).items()):
                yield f'{name}{{model="{escape(key)}",{label}="{escape(value)}"}} {counted}\n'

    return lines


def _objective(ttft: int, itl: int, both: int) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, series in scrape.models.items():
            for objective, position in (("all", both), ("itl", itl), ("ttft", ttft)):
                yield f'{name}{{model="{escape(key)}",objective="{objective}"}} {series.ints[position]}\n'

    return lines


def _model_load(read: Callable[[Load], int], labels: str = _MODEL) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key in scrape.fleet.models:
            ids = (instance.id for instance in scrape.fleet.instances.get(key, ()))
            total = sum(read(scrape.loads[instance_id]) for instance_id in ids if instance_id in scrape.loads)
            yield f"{name}{{{labels.format(escape(key), escape(key))}}} {total}\n"

    return lines


def _waiting(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key in scrape.fleet.models:
        yield f'{name}{{model="{escape(key)}"}} {scrape.waiting.get(key, 0)}\n'


def _instance_objective(name: str, scrape: _Scrape, ttft: int, itl: int) -> Iterator[Line]:
    for key, series in scrape.models.items():
        for instance_id, instance in series.instances.items():
            labels = _instance_labels(key, instance_id)[:-1]
            for objective, position in (("itl", itl), ("ttft", ttft)):
                yield f'{name}{labels},objective="{objective}"}} {instance.ints[position]}\n'


def _instance_load(read: Callable[[Load], float]) -> _Renderer:
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
            yield f'{name}{{model="{escape(key)}",state="{state}"}} {count}\n'


def _signal(read: Callable[[EngineSignals], float | None]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, instance in scrape.instances():
            value = None if instance.signals is None else read(instance.signals)
            if value is not None:
                yield f"{name}{_engine_labels(key, instance)} {value:.15g}\n"

    return lines


def _age(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, instance in scrape.instances():
        if instance.received_at is not None:
            yield f"{name}{_engine_labels(key, instance)} {max(0.0, scrape.now - instance.received_at):.3f}\n"


def _engine_labels(key: str, instance: Instance) -> str:
    return f'{{model="{escape(key)}",instance="{escape(instance.id)}",pool="{escape(instance.pool)}"}}'


def _plain(read: Callable[[_Scrape], float]) -> _Renderer:
    return lambda name, scrape: [f"{name} {read(scrape):.15g}\n"]


def _shared(read: Callable[[Shared], float]) -> _Renderer:
    return lambda name, scrape: [] if scrape.shared is None else [f"{name} {read(scrape.shared):.15g}\n"]


def _index(read: Callable[[InstanceIndex], float | None]) -> _Renderer:
    def lines(name: str, scrape: _Scrape) -> Iterator[Line]:
        for key, look in scrape.index.items():
            for instance, one in look.instances.items():
                value = read(one)
                if value is not None:
                    yield f"{name}{_instance_labels(key, instance)} {value:.9g}\n"

    return lines


def _index_model(read: Callable[[ModelLook], int]) -> _Renderer:
    return lambda name, scrape: [
        f'{name}{{model="{escape(key)}"}} {read(look)}\n' for key, look in scrape.index.items()
    ]


def _index_state(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, look in scrape.index.items():
        for state in Followed:
            count = sum(one.state is state for one in look.instances.values())
            yield f'{name}{{model="{escape(key)}",state="{state}"}} {count}\n'


def _lag(name: str, scrape: _Scrape) -> Iterator[Line]:
    for share in (0.5, 0.99, 1.0):
        value = None if scrape.lag is None else scrape.lag.quantile(share)
        if value is not None:
            yield f'{name}{{quantile="{share:g}"}} {value:.6g}\n'


def _token_usage(name: str, scrape: _Scrape) -> Iterator[Line]:
    for kind, start, total in (("input", *_INPUT), ("output", *_OUTPUT)):
        yield from _tokens(start, total, f'{_GENAI},gen_ai_token_type="{kind}"')(name, scrape)


def _objective_requests(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        yield f"{name}{{{_OBJECTIVE.format(escape(key), escape(key))}}} {sum(series.by_status.values())}\n"


def _objective_errors(name: str, scrape: _Scrape) -> Iterator[Line]:
    for key, series in scrape.models.items():
        labels = _OBJECTIVE.format(escape(key), escape(key))
        for status, value in sorted(series.by_status.items()):
            if status >= 400:
                yield f'{name}{{{labels},error_code="{status}"}} {value}\n'


def _pools(scrape: _Scrape) -> dict[str, list[Instance]]:
    pools: dict[str, list[Instance]] = {}
    for _, instance in scrape.instances():
        labels = f'name="{escape(instance.model)}-{escape(instance.pool)}",namespace="{escape(instance.namespace)}"'
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
                    yield f'{name}{{{labels},{label}="{escape(instance.id)}"}} {instance.signals.waiting:.9g}\n'

    return lines


_GENAI: Final = 'gen_ai_provider_name="fairlead",gen_ai_request_model="{}"'
_OBJECTIVE: Final = 'model_name="{}",target_model_name="{}"'
_INPUT: Final = (at.INPUT_SIZE, at.PROMPT_TOKENS)
_OUTPUT: Final = (at.OUTPUT_SIZE, at.OUTPUT_TOKENS)
_P: Final = "fairlead_gateway_"
_E: Final = "llm_d_epp_"
_RENDERERS: Final[Mapping[str, _Renderer]] = {
    _P + "received_total": _counter(at.RECEIVED),
    _P + "received_prompt_tokens_total": _counter(at.ARRIVED_TOKENS),
    _P + "requests_total": _statuses,
    _P + "rejected_total": _kinds,
    _P + "errors_total": _counter(at.ERRORS),
    _P + "aborts_total": _counter(at.ABORTS),
    _P + "abandoned_total": _counter(at.ABANDONED),
    _P + "retries_total": _by("reason", lambda series: series.retries_by_reason),
    _P + "continued_total": _by("result", lambda series: series.continued),
    _P + "failed_total": _by("error", lambda series: series.failed),
    _P + "quarantine_refused_total": _quarantined,
    _P + "handoffs_total": _pairs("outcome", "reason", lambda series: series.handoffs),
    _P + "decode_prefills_total": _counter(at.KEPT_PROMPTS),
    _P + "decode_prefill_tokens_total": _counter(at.KEPT_TOKENS),
    _P + "held_total": _by("rule", lambda series: series.held),
    _P + "prefill_legs_total": _by("result", lambda series: series.prefill_legs),
    _P + "prefill_seconds": _histogram(at.PREFILL, at.PREFILL_SUM),
    _P + "overhead_seconds": _overhead(at.OVERHEAD, at.OVERHEAD_SUM),
    _P + "ejections_total": _by("reason", lambda series: series.ejections_by_reason),
    _P + "decisions_total": _by("rule", lambda series: series.by_rule),
    _P + "home_decisions_total": _counter(at.ON_HOME),
    _P + "prompt_tokens_total": _counter(at.PROMPT_TOKENS),
    _P + "computed_tokens_total": _counter(at.COMPUTED_TOKENS),
    _P + "output_tokens_total": _counter(at.OUTPUT_TOKENS),
    _P + "cached_tokens_total": _counter(at.CACHED_TOKENS),
    _P + "cache_reported_prompt_tokens_total": _counter(at.CACHE_KNOWN_PROMPT_TOKENS),
    _P + "predicted_cached_tokens_total": _counter(at.PREDICTED_TOKENS),
    _P + "cache_prediction_error_tokens_total": _counter(at.PREDICTION_ERROR_TOKENS),
    _P + "within_objective_total": _objective(at.WITHIN_TTFT, at.WITHIN_ITL, at.WITHIN),
    _P + "judged_total": _objective(at.JUDGED_TTFT, at.JUDGED_ITL, at.JUDGED),
    _P + "ttft_seconds": _histogram(at.TTFT, at.TTFT_SUM),
    _P + "itl_seconds": _histogram(at.ITL, at.ITL_SUM),
    _P + "tpot_seconds": _histogram(at.TPOT, at.TPOT_SUM),
    _P + "duration_seconds": _histogram(at.DURATION, at.DURATION_SUM),
    _P + "request_prompt_tokens": _tokens(*_INPUT),
    _P + "request_output_tokens": _tokens(*_OUTPUT),
    _P + "request_shapes_total": _shapes,
    _P + "held": _waiting,
    _P + "in_flight": _model_load(lambda load: load.inflight),
    _P + "queue": _model_load(lambda load: load.waiting),
    _P + "instances": _states,
    _P + "instance_in_flight": _instance_load(lambda load: load.inflight),
    _P + "instance_waiting": _instance_load(lambda load: load.waiting),
    _P + "instance_backlog_seconds": _instance_load(lambda load: load.backlog_seconds),
    _P + "instance_in_flight_tokens": _instance_load(lambda load: load.inflight_tokens),
    _P + "instance_requests_total": _instance_counter(at.I_ROUTED),
    _P + "instance_finished_total": _instance_counter(at.I_FINISHED),
    _P + "instance_errors_total": _instance_counter(at.I_ERRORS),
    _P + "instance_retried_total": _instance_counter(at.I_RETRIED_AWAY),
    _P + "instance_ejections_total": _instance_counter(at.I_EJECTED),
    _P + "instance_computed_tokens_total": _instance_counter(at.I_COMPUTED_TOKENS),
    _P + "instance_output_tokens_total": _instance_counter(at.I_OUTPUT_TOKENS),
    _P + "instance_ttft_seconds": _instance_summary(at.I_FIRST, at.I_TTFT_SUM),
    _P + "instance_itl_seconds": _instance_summary(at.I_GAPS, at.I_ITL_SUM),
    _P + "instance_within_objective_total": partial(_instance_objective, ttft=at.I_WITHIN_TTFT, itl=at.I_WITHIN_ITL),
    _P + "instance_judged_total": partial(_instance_objective, ttft=at.I_JUDGED_TTFT, itl=at.I_JUDGED_ITL),
    _P + "engine_running": _signal(lambda signals: signals.running),
    _P + "engine_waiting": _signal(lambda signals: signals.waiting),
    _P + "engine_kv_usage": _signal(lambda signals: signals.kv_usage),
    _P + "engine_prompt_tokens_total": _signal(lambda signals: signals.prompt_tokens_total),
    _P + "engine_generation_tokens_total": _signal(lambda signals: signals.generation_tokens_total),
    _P + "engine_prefix_queries_total": _signal(lambda signals: signals.prefix_queries_total),
    _P + "engine_prefix_hits_total": _signal(lambda signals: signals.prefix_hits_total),
    _P + "engine_preemptions_total": _signal(lambda signals: signals.preemptions_total),
    _P + "engine_sleeping": _signal(lambda signals: None if signals.sleeping is None else float(signals.sleeping)),
    _P + "engine_signals_age_seconds": _age,
    _P + "fleet_version": _plain(lambda scrape: scrape.fleet.version),
    _P + "fleet_age_seconds": _own("fleet_age_seconds"),
    _P + "membership_epoch": _plain(lambda scrape: scrape.fleet.membership_epoch),
    _P + "loop_lag_seconds": _lag,
    _P + "uptime_seconds": _plain(lambda scrape: scrape.uptime_seconds),
    _P + "keys_refused_total": _keys_refused,
    _P + "workers": _own("workers"),
    _P + "worker_deaths_total": _own("worker_deaths_total"),
    _P + "access_log_dropped_total": _own("access_log_dropped_total"),
    _P + "spans_exported_total": _own("spans_exported_total"),
    _P + "spans_dropped_total": _own("spans_dropped_total"),
    _P + "redis_connected": _shared(lambda shared: float(shared.connected)),
    _P + "redis_published_total": _shared(lambda shared: shared.published),
    _P + "redis_dropped_total": _shared(lambda shared: shared.dropped),
    _P + "redis_refused_total": _shared(lambda shared: shared.refused),
    _P + "index_instances": _index_state,
    _P + "index_predicted_tokens_total": _index(lambda one: one.predicted if one.answers else None),
    _P + "index_reported_tokens_total": _index(lambda one: one.reported if one.answers else None),
    _P + "index_prediction_ratio": _index(lambda one: one.ratio),
    _P + "index_unreported_total": _index(lambda one: one.silent),
    _P + "index_late_total": _index(lambda one: one.late),
    _P + "index_quarantined": _index(lambda one: one.state is Followed.QUARANTINED),
    _P + "index_quarantines_total": _index(lambda one: one.quarantines),
    _P + "index_blocks": _index(lambda one: None if one.held is None else one.held.blocks),
    _P + "index_unique_blocks": _index(lambda one: None if one.victim is None else one.victim.unique),
    _P + "index_unique_used_blocks": _index(lambda one: None if one.victim is None else one.victim.used),
    _P + "index_scale_down_rank": _index(lambda one: None if one.victim is None else one.victim.rank),
    _P + "index_links": _index_model(lambda look: look.links),
    _P + "index_links_lowered_total": _index_model(lambda look: look.lowered),
    _P + "index_prompts_learned_total": _index_model(lambda look: look.learned),
    _P + "peers": _own("peers"),
    _P + "peer_age_seconds": _own("peer_age_seconds"),
    _P + "peer_in_flight": _own("peer_in_flight"),
    _P + "peer_sent_total": _own("peer_sent_total"),
    _P + "peer_heard_total": _own("peer_heard_total"),
    _P + "peer_dropped_total": _own("peer_dropped_total"),
    _P + "peer_missed_total": _own("peer_missed_total"),
    _P + "peer_poisoned_total": _own("peer_poisoned_total"),
    _P + "hot_tables_kept": _own("hot_tables_kept"),
    _P + "hot_table_stale_seconds": _own("hot_table_stale_seconds"),
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
    _E + "request_total": _objective_requests,
    _E + "request_error_total": _objective_errors,
    _E + "request_duration_seconds": _histogram(at.DURATION, at.DURATION_SUM, _OBJECTIVE),
    _E + "request_ttft_seconds": _histogram(at.TTFT, at.TTFT_SUM, f'{_OBJECTIVE},streaming="true"'),
    _E + "request_streaming_tpot_seconds": _histogram(at.TPOT, at.TPOT_SUM, _OBJECTIVE),
    _E + "request_streaming_itl_seconds": _histogram(at.ITL, at.ITL_SUM, _OBJECTIVE),
    _E + "request_input_tokens": _tokens(*_INPUT, _OBJECTIVE),
    _E + "request_output_tokens": _tokens(*_OUTPUT, _OBJECTIVE),
    _E + "request_running": _model_load(lambda load: load.inflight, _OBJECTIVE),
    _E + "average_kv_cache_utilization": _pool_mean(lambda signals: signals.kv_usage),
    _E + "average_queue_size": _pool_mean(lambda signals: signals.waiting),
    _E + "average_running_requests": _pool_mean(lambda signals: signals.running),
    _E + "per_endpoint_queue_size": _pool_queues("model_server_endpoint"),
    _E + "ready_endpoints": _pool_ready,
}
