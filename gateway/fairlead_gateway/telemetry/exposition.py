"""The Prometheus text (version 0.0.4) of all metrics, one chunk per family.

Histograms are kept finer than they are exported, which costs nothing since exported buckets are
cumulative.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final, TypeAlias

from fairlead_gateway.adapters import metric_series
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry import renderers as render
from fairlead_gateway.telemetry.families import FAMILIES
from fairlead_gateway.telemetry.renderers import Renderer, Scrape
from fairlead_gateway.telemetry.status_types import (
    IndexState,
)

TextChunks: TypeAlias = Iterator[bytes]
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX: Final = "fairlead_gateway_"
_PICKER_PREFIX: Final = "llm_d_epp_"
_RENDERERS: Final[Mapping[str, Renderer]] = {
    _PREFIX + "received_total": render.counter(at.RECEIVED),
    _PREFIX + "received_prompt_tokens_total": render.counter(at.ARRIVED_TOKENS),
    _PREFIX + "requests_total": render.statuses,
    _PREFIX + "rejected_total": render.rejections,
    _PREFIX + "kept_back_total": render.by_labels("action", "name", lambda series: series.kept_back),
    _PREFIX + "errors_total": render.counter(at.ERRORS),
    _PREFIX + "aborts_total": render.counter(at.ABORTS),
    _PREFIX + "abandoned_total": render.counter(at.ABANDONED),
    _PREFIX + "retries_total": render.by_label("reason", lambda series: series.retries_by_reason),
    _PREFIX + "continued_total": render.by_label("result", lambda series: series.continued),
    _PREFIX + "failed_total": render.by_label("error", lambda series: series.failed),
    _PREFIX + "quarantine_refused_total": render.quarantined,
    _PREFIX + "route_requests_total": render.by_labels("status", "route", lambda series: series.by_route),
    _PREFIX + "fallbacks_total": render.by_labels("reason", "to", lambda series: series.fallbacks),
    _PREFIX + "shadow_copies_total": render.by_labels("original", "outcome", lambda series: series.shadow_copies),
    _PREFIX + "shadow_compared_total": render.shadow_compared,
    _PREFIX + "shadow_errors_total": render.shadow_errors,
    _PREFIX + "shadow_ttft_seconds": render.shadow_summary("ttft", 1e-6),
    _PREFIX + "shadow_tpot_seconds": render.shadow_summary("tpot", 1e-6),
    _PREFIX + "shadow_output_tokens": render.shadow_summary("output_tokens", 1.0),
    _PREFIX + "handoffs_total": render.by_labels("outcome", "reason", lambda series: series.handoffs),
    _PREFIX + "decode_prefills_total": render.counter(at.LOCAL_PREFILLS),
    _PREFIX + "decode_prefill_tokens_total": render.counter(at.LOCAL_PREFILL_TOKENS),
    _PREFIX + "held_total": render.by_label("rule", lambda series: series.held),
    _PREFIX + "prefill_legs_total": render.by_label("result", lambda series: series.prefill_legs),
    _PREFIX + "prefill_seconds": render.histogram(at.PREFILL, at.PREFILL_SUM),
    _PREFIX + "overhead_seconds": render.overhead(at.OVERHEAD, at.OVERHEAD_SUM),
    _PREFIX + "ejections_total": render.by_label("reason", lambda series: series.ejections_by_reason),
    _PREFIX + "decisions_total": render.by_label("rule", lambda series: series.by_rule),
    _PREFIX + "home_decisions_total": render.counter(at.ON_HOME),
    _PREFIX + "prompt_tokens_total": render.counter(at.PROMPT_TOKENS),
    _PREFIX + "computed_tokens_total": render.counter(at.COMPUTED_TOKENS),
    _PREFIX + "output_tokens_total": render.counter(at.OUTPUT_TOKENS),
    _PREFIX + "cached_tokens_total": render.counter(at.CACHED_TOKENS),
    _PREFIX + "cache_reported_prompt_tokens_total": render.counter(at.CACHE_KNOWN_PROMPT_TOKENS),
    _PREFIX + "predicted_cached_tokens_total": render.counter(at.PREDICTED_TOKENS),
    _PREFIX + "cache_prediction_error_tokens_total": render.counter(at.PREDICTION_ERROR_TOKENS),
    _PREFIX + "within_objective_total": render.objective(at.WITHIN_TTFT, at.WITHIN_ITL, at.WITHIN),
    _PREFIX + "judged_total": render.objective(at.JUDGED_TTFT, at.JUDGED_ITL, at.JUDGED),
    _PREFIX + "ttft_seconds": render.histogram(at.TTFT, at.TTFT_SUM),
    _PREFIX + "itl_seconds": render.histogram(at.ITL, at.ITL_SUM),
    _PREFIX + "tpot_seconds": render.histogram(at.TPOT, at.TPOT_SUM),
    _PREFIX + "duration_seconds": render.histogram(at.DURATION, at.DURATION_SUM),
    _PREFIX + "request_prompt_tokens": render.tokens(*render.INPUT_POSITIONS),
    _PREFIX + "request_output_tokens": render.tokens(*render.OUTPUT_POSITIONS),
    _PREFIX + "request_shapes_total": render.shapes,
    _PREFIX + "held": render.queued,
    _PREFIX + "in_flight": render.model_load(lambda load: load.inflight),
    _PREFIX + "queue": render.model_load(lambda load: load.waiting),
    _PREFIX + "instances": render.states,
    _PREFIX + "adapter_requests_total": render.adapter_counter(metric_series.REQUESTS),
    _PREFIX + "adapter_load_seconds": render.adapter_loads,
    _PREFIX + "adapter_load_failures_total": render.adapter_counter(metric_series.LOAD_FAILURES),
    _PREFIX + "adapter_evictions_total": render.adapter_counter(metric_series.EVICTIONS),
    _PREFIX + "instance_in_flight": render.instance_load(lambda load: load.inflight),
    _PREFIX + "instance_waiting": render.instance_load(lambda load: load.waiting),
    _PREFIX + "instance_backlog_seconds": render.instance_load(lambda load: load.backlog_seconds),
    _PREFIX + "instance_in_flight_tokens": render.instance_load(lambda load: load.inflight_tokens),
    _PREFIX + "instance_ejected_seconds": render.ejection_seconds,
    _PREFIX + "instance_requests_total": render.instance_counter(at.I_ROUTED),
    _PREFIX + "instance_finished_total": render.instance_counter(at.I_FINISHED),
    _PREFIX + "instance_errors_total": render.instance_counter(at.I_ERRORS),
    _PREFIX + "instance_retried_total": render.instance_counter(at.I_RETRIED_AWAY),
    _PREFIX + "instance_ejections_total": render.instance_counter(at.I_EJECTED),
    _PREFIX + "instance_computed_tokens_total": render.instance_counter(at.I_COMPUTED_TOKENS),
    _PREFIX + "instance_output_tokens_total": render.instance_counter(at.I_OUTPUT_TOKENS),
    _PREFIX + "instance_ttft_seconds": render.instance_summary(at.I_FIRST, at.I_TTFT_SUM),
    _PREFIX + "instance_itl_seconds": render.instance_summary(at.I_GAPS, at.I_ITL_SUM),
    _PREFIX + "instance_within_objective_total": partial(
        render.instance_objective, ttft=at.I_WITHIN_TTFT, itl=at.I_WITHIN_ITL
    ),
    _PREFIX + "instance_judged_total": partial(render.instance_objective, ttft=at.I_JUDGED_TTFT, itl=at.I_JUDGED_ITL),
    _PREFIX + "engine_running": render.signal(lambda signals: signals.running),
    _PREFIX + "engine_waiting": render.signal(lambda signals: signals.waiting),
    _PREFIX + "engine_kv_usage": render.signal(lambda signals: signals.kv_usage),
    _PREFIX + "engine_prompt_tokens_total": render.signal(lambda signals: signals.prompt_tokens_total),
    _PREFIX + "engine_generation_tokens_total": render.signal(lambda signals: signals.generation_tokens_total),
    _PREFIX + "engine_prefix_queries_total": render.signal(lambda signals: signals.prefix_queries_total),
    _PREFIX + "engine_prefix_hits_total": render.signal(lambda signals: signals.prefix_hits_total),
    _PREFIX + "engine_preemptions_total": render.signal(lambda signals: signals.preemptions_total),
    _PREFIX + "engine_sleeping": render.signal(
        lambda signals: None if signals.sleeping is None else float(signals.sleeping)
    ),
    _PREFIX + "engine_signals_age_seconds": render.signals_age,
    _PREFIX + "fleet_version": render.gauge(lambda scrape: scrape.fleet.version),
    _PREFIX + "fleet_age_seconds": render.process_value("fleet_age_seconds"),
    _PREFIX + "membership_epoch": render.gauge(lambda scrape: scrape.fleet.membership_epoch),
    _PREFIX + "loop_lag_seconds": render.loop_lag,
    _PREFIX + "uptime_seconds": render.gauge(lambda scrape: scrape.uptime_seconds),
    _PREFIX + "keys": render.process_value("keys"),
    _PREFIX + "keys_file_broken": render.process_value("keys_file_broken"),
    _PREFIX + "keys_refused_total": render.keys_refused,
    _PREFIX + "workers": render.process_value("workers"),
    _PREFIX + "worker_deaths_total": render.process_value("worker_deaths_total"),
    _PREFIX + "access_log_dropped_total": render.process_value("access_log_dropped_total"),
    _PREFIX + "spans_exported_total": render.process_value("spans_exported_total"),
    _PREFIX + "spans_dropped_total": render.process_value("spans_dropped_total"),
    _PREFIX + "tenant_requests_total": render.tenant_value("tenant_requests_total"),
    _PREFIX + "tenant_input_tokens_total": render.tenant_value("tenant_input_tokens_total"),
    _PREFIX + "tenant_cached_tokens_total": render.tenant_value("tenant_cached_tokens_total"),
    _PREFIX + "tenant_output_tokens_total": render.tenant_value("tenant_output_tokens_total"),
    _PREFIX + "tenant_cost_usd_total": render.tenant_value("tenant_cost_usd_total"),
    _PREFIX + "tenant_saved_usd_total": render.tenant_value("tenant_saved_usd_total"),
    _PREFIX + "tenant_engine_seconds_total": render.tenant_value("tenant_engine_seconds_total"),
    _PREFIX + "budget_used_ratio": render.tenant_value("budget_used_ratio"),
    _PREFIX + "usage_records_written_total": render.process_value("usage_records_written_total"),
    _PREFIX + "usage_records_lost_total": render.process_value("usage_records_lost_total"),
    _PREFIX + "usage_records_pending": render.process_value("usage_records_pending"),
    _PREFIX + "redis_connected": render.publish_stat(lambda shared: float(shared.connected)),
    _PREFIX + "redis_published_total": render.publish_stat(lambda shared: shared.published),
    _PREFIX + "redis_dropped_total": render.publish_stat(lambda shared: shared.dropped),
    _PREFIX + "redis_refused_total": render.publish_stat(lambda shared: shared.refused),
    _PREFIX + "index_instances": render.index_state,
    _PREFIX + "index_predicted_tokens_total": render.index_value(
        lambda one: one.predicted_tokens if one.answers else None
    ),
    _PREFIX + "index_reported_tokens_total": render.index_value(
        lambda one: one.reported_tokens if one.answers else None
    ),
    _PREFIX + "index_prediction_ratio": render.index_value(lambda one: one.ratio),
    _PREFIX + "index_unreported_total": render.index_value(lambda one: one.unreported),
    _PREFIX + "index_late_total": render.index_value(lambda one: one.late),
    _PREFIX + "index_quarantined": render.index_value(lambda one: one.state is IndexState.QUARANTINED),
    _PREFIX + "index_quarantines_total": render.index_value(lambda one: one.quarantines),
    _PREFIX + "index_blocks": render.index_value(
        lambda one: None if one.block_counts is None else one.block_counts.blocks
    ),
    _PREFIX + "index_unique_blocks": render.index_value(
        lambda one: None if one.removal_rank is None else one.removal_rank.unique
    ),
    _PREFIX + "index_unique_used_blocks": render.index_value(
        lambda one: None if one.removal_rank is None else one.removal_rank.used
    ),
    _PREFIX + "index_scale_down_rank": render.index_value(
        lambda one: None if one.removal_rank is None else one.removal_rank.rank
    ),
    _PREFIX + "index_links": render.index_model_value(lambda look: look.linked_blocks),
    _PREFIX + "index_links_lowered_total": render.index_model_value(lambda look: look.lowered_links),
    _PREFIX + "index_prompts_learned_total": render.index_model_value(lambda look: look.learned_prompts),
    _PREFIX + "peers": render.process_value("peers"),
    _PREFIX + "peer_age_seconds": render.process_value("peer_age_seconds"),
    _PREFIX + "peer_in_flight": render.process_value("peer_in_flight"),
    _PREFIX + "peer_sent_total": render.process_value("peer_sent_total"),
    _PREFIX + "peer_heard_total": render.process_value("peer_heard_total"),
    _PREFIX + "peer_limited_total": render.process_value("peer_limited_total"),
    _PREFIX + "peer_dropped_total": render.process_value("peer_dropped_total"),
    _PREFIX + "peer_missed_total": render.process_value("peer_missed_total"),
    _PREFIX + "peer_poisoned_total": render.process_value("peer_poisoned_total"),
    _PREFIX + "hot_tables_kept": render.process_value("hot_tables_kept"),
    _PREFIX + "hot_table_stale_seconds": render.process_value("hot_table_stale_seconds"),
    "gen_ai_server_time_to_first_token_seconds": render.histogram(at.TTFT, at.TTFT_SUM, render.GENAI_LABELS),
    "gen_ai_server_time_per_output_token_seconds": render.histogram(at.TPOT, at.TPOT_SUM, render.GENAI_LABELS),
    "gen_ai_server_request_duration_seconds": render.histogram(at.DURATION, at.DURATION_SUM, render.GENAI_LABELS),
    "gen_ai_client_token_usage": render.token_usage,
    "inference_objective_request_total": render.objective_requests,
    "inference_objective_request_error_total": render.objective_errors,
    "inference_objective_request_duration_seconds": render.histogram(
        at.DURATION, at.DURATION_SUM, render.OBJECTIVE_LABELS
    ),
    "inference_objective_input_tokens": render.tokens(*render.INPUT_POSITIONS, render.OBJECTIVE_LABELS),
    "inference_objective_output_tokens": render.tokens(*render.OUTPUT_POSITIONS, render.OBJECTIVE_LABELS),
    "inference_objective_running_requests": render.model_load(lambda load: load.inflight, 'model_name="{}"'),
    "inference_pool_average_kv_cache_utilization": render.pool_mean(lambda signals: signals.kv_usage),
    "inference_pool_average_queue_size": render.pool_mean(lambda signals: signals.waiting),
    "inference_pool_per_pod_queue_size": render.pool_queues("model_server_pod"),
    "inference_pool_ready_pods": render.pool_ready,
    _PICKER_PREFIX + "request_total": render.objective_requests,
    _PICKER_PREFIX + "request_error_total": render.objective_errors,
    _PICKER_PREFIX + "request_duration_seconds": render.histogram(
        at.DURATION, at.DURATION_SUM, render.OBJECTIVE_LABELS
    ),
    _PICKER_PREFIX + "request_ttft_seconds": render.histogram(
        at.TTFT, at.TTFT_SUM, f'{render.OBJECTIVE_LABELS},streaming="true"'
    ),
    _PICKER_PREFIX + "request_streaming_tpot_seconds": render.histogram(at.TPOT, at.TPOT_SUM, render.OBJECTIVE_LABELS),
    _PICKER_PREFIX + "request_streaming_itl_seconds": render.histogram(at.ITL, at.ITL_SUM, render.OBJECTIVE_LABELS),
    _PICKER_PREFIX + "request_input_tokens": render.tokens(*render.INPUT_POSITIONS, render.OBJECTIVE_LABELS),
    _PICKER_PREFIX + "request_output_tokens": render.tokens(*render.OUTPUT_POSITIONS, render.OBJECTIVE_LABELS),
    _PICKER_PREFIX + "request_running": render.model_load(lambda load: load.inflight, render.OBJECTIVE_LABELS),
    _PICKER_PREFIX + "average_kv_cache_utilization": render.pool_mean(lambda signals: signals.kv_usage),
    _PICKER_PREFIX + "average_queue_size": render.pool_mean(lambda signals: signals.waiting),
    _PICKER_PREFIX + "average_running_requests": render.pool_mean(lambda signals: signals.running),
    _PICKER_PREFIX + "per_endpoint_queue_size": render.pool_queues("model_server_endpoint"),
    _PICKER_PREFIX + "ready_endpoints": render.pool_ready,
}


def render_families(scrape: Scrape) -> TextChunks:
    """Yields the text of each family. A family without a value has only its HELP and TYPE lines."""
    for family in FAMILIES:
        lines = _RENDERERS[family.name](family.name, scrape)
        yield (family.head + "".join(lines)).encode()
