"""Every metric of the gateway in one table: name, labels, source and help.

`make generate` writes the tables of `docs/reference/metrics.md` from it.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from fairlead_gateway.errors import QuarantinedRequest
from fairlead_gateway.telemetry import adapter_series as metric_series
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry import metric_sources as of
from fairlead_gateway.telemetry.decision_log import COMPARED
from fairlead_gateway.telemetry.status_types import IndexState

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OTEL: Final = "OpenTelemetry's name"
_GATEWAY_API: Final = "Gateway API Inference's name"
_PICKER: Final = "The endpoint picker's name"
_OWN: Final = (
    of.counter("received_total", at.RECEIVED, "Requests that were received completely, for a known model."),
    of.counter("received_prompt_tokens_total", at.ARRIVED_TOKENS, "Their prompt tokens, as estimated at that time."),
    of.table(
        "requests_total{model,status}",
        lambda series: series.by_status,
        "Finished requests, by the status that the client received.",
    ),
    of.table(
        "rejected_total{model,status,kind}", lambda series: series.by_kind, "Requests that never reached an engine."
    ),
    of.table(
        "kept_back_total{model,action,name}",
        lambda series: series.kept_back,
        "Fields and headers of requests that engines did not get: refused-field, removed-field or dropped-header; "
        "other: names beyond the limit.",
    ),
    of.counter("errors_total", at.ERRORS, "Requests that failed by no fault of the client."),
    of.counter("aborts_total", at.ABORTS, "Requests whose client disconnected before the end."),
    of.counter(
        "abandoned_total",
        at.ABANDONED,
        "Requests whose client disconnected before the first token, queued ones included.",
    ),
    of.counter(
        "unfinished_total",
        at.UNFINISHED,
        "Answers that came before their work was done, and whose engine has not said how much it was.",
    ),
    of.table(
        "retries_total{model,reason}",
        lambda series: series.retries_by_reason,
        "Attempts given up before the first byte and repeated.",
    ),
    of.table(
        "continued_total{model,result}",
        lambda series: series.continued,
        "Streams that another instance continued: whole, or broken again.",
    ),
    of.table(
        "not_continued_total{model,reason}",
        lambda series: series.not_continued,
        "Streams that broke, and that no other instance continued.",
    ),
    of.model(
        "moved_total",
        lambda series: series.moved.get(at.MOVED, 0),
        "Streams that left a draining instance for another one.",
    ),
    of.summary(
        "moved_rest_seconds{model}",
        of.moved_rests,
        "The time for which these would have stayed, if forecast: sum and count.",
    ),
    of.table(
        "ejections_total{model,reason}",
        lambda series: series.ejections_by_reason,
        "Ejected instances, by the last failure before it.",
    ),
    of.table(
        "failed_total{model,error}",
        lambda series: series.failed,
        "Those of errors_total that reached an engine, by error.",
    ),
    of.model(
        "quarantine_refused_total",
        lambda series: of.count_rejections(series, QuarantinedRequest.code),
        "Requests refused because two instances crashed on them before.",
    ),
    of.table(
        "route_requests_total{model,status,route}",
        lambda series: series.by_route,
        "Finished requests that named a route, by the model that got them last; other: routes beyond the limit.",
    ),
    of.table(
        "fallbacks_total{model,reason,to}",
        lambda series: series.fallbacks,
        "Requests of a route that another model got, since this one has not answered, by the kind of its failure.",
    ),
    of.table(
        "shadow_copies_total{model,original,outcome}",
        lambda series: series.shadow_copies,
        "Requests for the model `original` that a route copies to this one: answered, failed, or why there is no answer.",
    ),
    of.metric(
        "shadow_compared_total{model,original}",
        lambda scrape: (row[:3] for row in of.shadow_sums(scrape, COMPARED)),
        "Copied requests whose two answers were compared, failed ones included.",
    ),
    of.metric(
        "shadow_errors_total{model,original,side}",
        of.shadow_errors,
        "Of these, the failed answers: to the copy, or original.",
    ),
    of.shadow(
        "shadow_ttft_seconds",
        "ttft",
        1e-6,
        "Sent to an engine until the first token, of the same streams on both sides: sum and count.",
    ),
    of.shadow(
        "shadow_tpot_seconds",
        "tpot",
        1e-6,
        "Mean time per output token after the first, of the same streams on both sides: sum and count.",
    ),
    of.shadow(
        "shadow_output_tokens",
        "output_tokens",
        1.0,
        "Generated tokens of an answer, of the same requests on both sides: sum and count.",
    ),
    of.table(
        "handoffs_total{model,outcome,reason}",
        lambda series: series.handoffs,
        "Requests of a model with prefill engines: done, bypassed (one engine did it all), or failed and went on as plain ones.",
    ),
    of.counter(
        "decode_prefills_total", at.LOCAL_PREFILLS, "Those of handoffs_total whose prompt no prefill engine computed."
    ),
    of.counter(
        "decode_prefill_tokens_total",
        at.LOCAL_PREFILL_TOKENS,
        "Their prompt tokens, as in received_prompt_tokens_total.",
    ),
    of.table(
        "held_total{model,rule}",
        lambda series: series.held,
        "Requests that were not admitted at once, by the rule that released or refused them; left: the client disconnected.",
    ),
    of.table(
        "prefill_legs_total{model,result}",
        lambda series: series.prefill_legs,
        "Attempts at prefill instances: ok, or the failure.",
    ),
    of.seconds(
        "prefill_seconds{model}",
        at.PREFILL,
        at.PREFILL_SUM,
        "Duration of an attempt at a prefill instance, until its response was complete.",
    ),
    of.seconds(
        "overhead_seconds{model}",
        at.OVERHEAD,
        at.OVERHEAD_SUM,
        "Request read to sent to its engine, without queues and the prefill leg; requests whose first engine took them.",
        of.OVERHEAD,
    ),
    of.table(
        "decisions_total{model,rule}",
        lambda series: series.by_rule,
        "Choices of an instance, by the rule that decided.",
    ),
    of.counter("home_decisions_total", at.ON_HOME, "Choices that fell on one of the prompt's two homes."),
    of.counter("prompt_tokens_total", at.PROMPT_TOKENS, "Prompt tokens, as engines reported them."),
    of.counter("computed_tokens_total", at.COMPUTED_TOKENS, "Prompt tokens that were not cached."),
    of.counter("output_tokens_total", at.OUTPUT_TOKENS, "Tokens generated, as engines reported them."),
    of.counter("cached_tokens_total", at.CACHED_TOKENS, "Prompt tokens that engines reported as cached."),
    of.counter(
        "cache_reported_prompt_tokens_total",
        at.CACHE_KNOWN_PROMPT_TOKENS,
        "Prompt tokens of requests whose cached tokens are known: what cached_tokens_total is a share of.",
    ),
    of.counter("predicted_cached_tokens_total", at.PREDICTED_TOKENS, "Cached tokens the router expected of those."),
    of.counter(
        "cache_prediction_error_tokens_total",
        at.PREDICTION_ERROR_TOKENS,
        "Sum of the distances between predicted and reported cached tokens.",
    ),
    of.objective(
        "within_objective_total",
        at.WITHIN_TTFT,
        at.WITHIN_ITL,
        at.WITHIN,
        "Requests that met a latency target: ttft, itl, or all that the model has.",
    ),
    of.objective(
        "judged_total",
        at.JUDGED_TTFT,
        at.JUDGED_ITL,
        at.JUDGED,
        "Requests that a latency target applied to, met or missed.",
    ),
    of.seconds("ttft_seconds{model}", at.TTFT, at.TTFT_SUM, "Request read to first token sent."),
    of.seconds("itl_seconds{model}", at.ITL, at.ITL_SUM, "Time between two pieces of a stream."),
    of.seconds("tpot_seconds{model}", at.TPOT, at.TPOT_SUM, "A request's mean time per output token after the first."),
    of.seconds("duration_seconds{model}", at.DURATION, at.DURATION_SUM, "Request read to last byte sent."),
    of.input_tokens("request_prompt_tokens{model}", "Prompt tokens of one request."),
    of.output_tokens("request_output_tokens{model}", "Generated tokens of one request."),
    of.metric(
        "request_shapes_total{model,prompt_tokens,output_tokens}",
        of.shapes,
        "Whole answers by shape: the middle of one of ten ranges of prompt tokens and of ten of generated ones.",
    ),
    of.metric(
        "held{model}",
        lambda scrape: ((key, scrape.queued.get(key, 0)) for key in scrape.fleet.models),
        "Requests queued in the gateway until an instance has room for them.",
    ),
    of.load("in_flight{model}", lambda load: load.inflight, "Requests sent to engines and not ended."),
    of.load("queue{model}", lambda load: load.waiting, "Of those in flight, the ones without a first token."),
    of.metric("instances{model,state}", of.states, "Instances in the fleet, by state."),
    of.adapter(
        "adapter_requests_total", metric_series.REQUESTS, "Requests for a LoRA adapter, when they look for an instance."
    ),
    of.summary(
        "adapter_load_seconds{model,adapter}",
        of.adapter_loads,
        "Loads of the adapter into engines, by this gateway: sum and count.",
    ),
    of.adapter(
        "adapter_load_failures_total", metric_series.LOAD_FAILURES, "Loads of the adapter that did not succeed."
    ),
    of.adapter(
        "adapter_evictions_total",
        metric_series.EVICTIONS,
        "Times that the adapter was unloaded to make room for another.",
    ),
    of.instance_load(
        "instance_in_flight",
        lambda load: load.inflight,
        "Requests sent to the instance and not ended. One with several answers counts as many.",
    ),
    of.instance_load("instance_waiting", lambda load: load.waiting, "Of those, the ones without a first token."),
    of.instance_load(
        "instance_backlog_seconds",
        lambda load: load.backlog_seconds,
        "Engine time of the work already sent to the instance.",
    ),
    of.instance_load(
        "instance_in_flight_tokens", lambda load: load.inflight_tokens, "Tokens that the requests in flight hold."
    ),
    of.metric(
        "instance_ejected_seconds{model,instance}",
        of.ejection_seconds,
        "Time since the instance was ejected, without any answer since then; absent for others.",
    ),
    of.instance("instance_requests_total", at.I_ROUTED, "Attempts sent to the instance."),
    of.instance("instance_finished_total", at.I_FINISHED, "Requests that ended on the instance."),
    of.instance("instance_errors_total", at.I_ERRORS, "Of those, the failed ones."),
    of.instance("instance_retried_total", at.I_RETRIED_AWAY, "Attempts that the instance failed and another repeated."),
    of.instance("instance_ejections_total", at.I_EJECTED, "Times that the instance was ejected."),
    of.instance(
        "instance_computed_tokens_total", at.I_COMPUTED_TOKENS, "Prompt tokens that the instance had to compute."
    ),
    of.instance("instance_output_tokens_total", at.I_OUTPUT_TOKENS, "Tokens that the instance generated."),
    of.instance_summary(
        "instance_ttft_seconds", at.I_FIRST, at.I_TTFT_SUM, "First tokens of the instance: sum and count."
    ),
    of.instance_summary(
        "instance_itl_seconds", at.I_GAPS, at.I_ITL_SUM, "Gaps between pieces of its streams: sum and count."
    ),
    of.instance_objective(
        "instance_within_objective_total",
        at.I_WITHIN_TTFT,
        at.I_WITHIN_ITL,
        "Of the instance: first tokens in time (ttft), ended streams whose mean time per token was met (itl).",
    ),
    of.instance_objective(
        "instance_judged_total",
        at.I_JUDGED_TTFT,
        at.I_JUDGED_ITL,
        "Of the instance: first tokens and ended streams that the latency target applied to.",
    ),
    of.engine("running", "Requests in the batch, as the engine says."),
    of.engine("waiting", "Requests in the engine's own queue."),
    of.engine("kv_usage", "Share of the KV blocks that running requests hold (0 to 1)."),
    of.engine("prompt_tokens_total", "Prompt tokens, as the engine counts them."),
    of.engine("generation_tokens_total", "Generated tokens, as the engine counts them."),
    of.engine("prefix_queries_total", "Tokens looked up in the engine's prefix cache."),
    of.engine("prefix_hits_total", "Of those, the tokens found."),
    of.engine("preemptions_total", "Requests that the engine put back for lack of KV blocks."),
    of.engine("sleeping", "1 while the engine sleeps."),
    of.metric(
        "engine_signals_age_seconds{model,instance,pool}",
        of.signals_age,
        "Age of the engine's signals; absent before the first.",
    ),
    of.gateway("fleet_version", lambda scrape: scrape.fleet.version, "Snapshots of the fleet seen so far."),
    of.process("fleet_age_seconds", "Time since the last message of the cluster; absent with a fleet file."),
    of.gateway(
        "membership_epoch",
        lambda scrape: scrape.fleet.membership_epoch,
        "Changes of the set of instances that homes are computed over.",
    ),
    of.metric("loop_lag_seconds{quantile}", of.loop_lag, "How late the event loop wakes, of the latest worker."),
    of.gateway("uptime_seconds", lambda scrape: scrape.uptime_seconds, "Time since the gateway's counters began."),
    of.process("keys", "API keys that the gateway accepts; absent without a keys file."),
    of.process("keys_file_broken", "1 while the keys file cannot be used; absent without one."),
    of.metric("keys_refused_total", of.keys_refused, "Requests whose API key was missing or unknown."),
    of.process("workers", "Worker processes that serve and answer."),
    of.process("worker_deaths_total", "Workers that exited unexpectedly; each was started again."),
    of.metric(
        "idempotency_requests_total{outcome}",
        of.keyed_requests,
        "Requests with an Idempotency-Key: run, joined to a running answer, or returned from a kept one.",
    ),
    of.metric(
        "idempotency_reruns_total{reason}",
        of.keyed_reruns,
        "Requests that ran again under a known key, by why their answer was not kept. worker-lost: the worker that owned "
        "it ended under a request of another one. gateway-lost: the gateway that owned the key does not answer, or was lost "
        "in the last ten minutes.",
    ),
    of.process("access_log_dropped_total", "Lines that the access log dropped; absent while it is off."),
    of.process("spans_exported_total", "Spans that the collector accepted; absent while tracing is off."),
    of.process("spans_dropped_total", "Spans that the collector did not accept, or not in time."),
    of.tenant(
        "tenant_requests_total",
        "Requests of a tenant for which an instance was chosen; absent without a ledger, and without a management token "
        "that may read all tenants. So are the other series of tenants.",
    ),
    of.tenant("tenant_input_tokens_total", "Prompt tokens of a tenant, cached ones included."),
    of.tenant("tenant_cached_tokens_total", "Prompt tokens of a tenant that engines had in their KV caches."),
    of.tenant("tenant_output_tokens_total", "Generated tokens of a tenant."),
    of.tenant("tenant_cost_usd_total", "What a tenant's tokens cost, by the prices of the models, in US dollars."),
    of.tenant("tenant_saved_usd_total", "What a tenant's cached tokens cost less than others, in US dollars."),
    of.tenant("tenant_engine_seconds_total", "Time of engines that a tenant used, by their profiles."),
    of.tenant(
        "budget_used_ratio", "Used share of the budget of a tenant, over all gateways; above 1 after an overrun."
    ),
    of.process("usage_records_written_total", "Lines that are safe in the usage ledger; absent without one."),
    of.process(
        "usage_records_lost_total", "Usage records that were lost: too many waited, or a worker could not report."
    ),
    of.process("usage_records_pending", "Lines that wait to be written to the usage ledger."),
    of.process("redis_connected", "1 while Redis answers; absent when none is configured."),
    of.process("redis_published_total", "Decisions published to Redis."),
    of.process("redis_dropped_total", "Decisions dropped because too many waited for Redis."),
    of.process("redis_refused_total", "Decisions that Redis refused."),
    of.metric(
        "index_instances{model,state}",
        of.index_states,
        "Instances by how completely their cache is known; absent for models whose instances do not report it.",
    ),
    of.index(
        "index_predicted_tokens_total",
        lambda status: status.predicted_tokens if status.answers else None,
        "Cached tokens that the index predicted, over the answers that reported their cached tokens; absent until one did.",
    ),
    of.index(
        "index_reported_tokens_total",
        lambda status: status.reported_tokens if status.answers else None,
        "Cached tokens that those answers reported.",
    ),
    of.index(
        "index_prediction_ratio", lambda status: status.ratio, "Predicted per reported cached token, since the start."
    ),
    of.index(
        "index_unreported_total", lambda status: status.unreported, "Answers that did not report their cached tokens."
    ),
    of.index(
        "index_late_total", lambda status: status.late, "Answers that missed what the engine had just lost; no drift."
    ),
    of.index(
        "index_quarantined",
        lambda status: status.state is IndexState.QUARANTINED,
        "1 while the index of the instance is not used.",
    ),
    of.index(
        "index_quarantines_total",
        lambda status: status.quarantines,
        "Times that predictions drifted from what was reported.",
    ),
    of.index(
        "index_blocks",
        lambda status: None if status.block_counts is None else status.block_counts.blocks,
        "Distinct blocks that the instance has cached, in any storage tier.",
    ),
    of.index(
        "index_unique_blocks",
        lambda status: None if status.block_counts is None else status.block_counts.unique,
        "Of these, how many no other instance has.",
    ),
    of.index(
        "index_unique_used_blocks",
        lambda status: None if status.block_counts is None else status.block_counts.unique_used,
        "Of those, how many were stored or used in the last minutes.",
    ),
    of.model_index(
        "index_links", lambda status: status.linked_blocks, "Blocks of prompt text whose place in the index is known."
    ),
    of.model_index(
        "index_links_lowered_total", lambda status: status.lowered_links, "Links that another prompt contradicted."
    ),
    of.model_index(
        "index_prompts_learned_total", lambda status: status.learned_prompts, "Prompts that were linked to the index."
    ),
    of.process("peers", "Other gateways seen through Redis; absent when none is configured."),
    of.process(
        "peer_age_seconds", "Time since the last message of the gateway that was silent longest; absent without."
    ),
    of.process("peer_in_flight", "Requests that other gateways have in flight, as last reported."),
    of.process("peer_sent_total", "Dispatched prompts that were published to other gateways."),
    of.process("peer_heard_total", "Dispatched prompts that other gateways published."),
    of.process("peer_limited_total", "Such prompts that were not applied: other gateways sent too many a second."),
    of.process("peer_dropped_total", "Dispatched prompts that were not published: Redis was away or refused."),
    of.process("peer_missed_total", "Batches of other gateways that were lost before they were read."),
    of.process("peer_poisoned_total", "Values in Redis that could not be read; they are passed over."),
)


def _alias(name: str, own: str, whose: str, more: str = "") -> of.Metric:
    same = next(metric for metric in _OWN if metric.name == own)
    return replace(of.metric(name, same.rows, f"{whose} of {own}{more}.", same.kind), lines=same.lines)


_STANDARD: Final = (
    _alias(
        "gen_ai_server_time_to_first_token_seconds{gen_ai_provider_name,gen_ai_request_model}", "ttft_seconds", _OTEL
    ),
    _alias(
        "gen_ai_server_time_per_output_token_seconds{gen_ai_provider_name,gen_ai_request_model}", "tpot_seconds", _OTEL
    ),
    _alias(
        "gen_ai_server_request_duration_seconds{gen_ai_provider_name,gen_ai_request_model}", "duration_seconds", _OTEL
    ),
    of.histogram(
        "gen_ai_client_token_usage{gen_ai_provider_name,gen_ai_request_model,gen_ai_token_type}",
        of.token_usage,
        "OpenTelemetry's name of request_prompt_tokens (input) and request_output_tokens (output).",
        of.TOKENS,
    ),
    of.model(
        "inference_objective_request_total{model_name,target_model_name}",
        lambda series: sum(series.by_status.values()),
        "Gateway API Inference's name: requests ended.",
    ),
    of.table(
        "inference_objective_request_error_total{model_name,target_model_name,error_code}",
        of.errors_by_status,
        "Gateway API Inference's name: requests answered 4xx or 5xx.",
    ),
    _alias(
        "inference_objective_request_duration_seconds{model_name,target_model_name}", "duration_seconds", _GATEWAY_API
    ),
    _alias("inference_objective_input_tokens{model_name,target_model_name}", "request_prompt_tokens", _GATEWAY_API),
    _alias("inference_objective_output_tokens{model_name,target_model_name}", "request_output_tokens", _GATEWAY_API),
    _alias("inference_objective_running_requests{model_name}", "in_flight", _GATEWAY_API),
    of.pool_mean(
        "inference_pool_average_kv_cache_utilization",
        lambda signals: signals.kv_usage,
        "Mean KV usage over the pool's instances that report it; absent when none does.",
    ),
    of.pool_mean(
        "inference_pool_average_queue_size",
        lambda signals: signals.waiting,
        "Mean of the engines' own queues over the pool's instances that report it; absent when none does.",
    ),
    of.metric(
        "inference_pool_per_pod_queue_size{name,namespace,model_server_pod}",
        of.pool_queues,
        "The queue of one engine, as it says.",
    ),
    of.metric("inference_pool_ready_pods{name,namespace}", of.pool_ready, "Ready instances of the pool."),
    of.model(
        "llm_d_epp_request_total{model_name,target_model_name}",
        lambda series: sum(series.by_status.values()),
        f"{_PICKER}: requests ended.",
    ),
    of.table(
        "llm_d_epp_request_error_total{model_name,target_model_name,error_code}",
        of.errors_by_status,
        f"{_PICKER}: requests answered 4xx or 5xx.",
    ),
    _alias("llm_d_epp_request_duration_seconds{model_name,target_model_name}", "duration_seconds", _PICKER),
    _alias(
        "llm_d_epp_request_ttft_seconds{model_name,target_model_name,streaming}",
        "ttft_seconds",
        _PICKER,
        ", which only streams have",
    ),
    _alias("llm_d_epp_request_streaming_tpot_seconds{model_name,target_model_name}", "tpot_seconds", _PICKER),
    _alias("llm_d_epp_request_streaming_itl_seconds{model_name,target_model_name}", "itl_seconds", _PICKER),
    _alias("llm_d_epp_request_input_tokens{model_name,target_model_name}", "request_prompt_tokens", _PICKER),
    _alias("llm_d_epp_request_output_tokens{model_name,target_model_name}", "request_output_tokens", _PICKER),
    _alias("llm_d_epp_request_running{model_name,target_model_name}", "in_flight", _PICKER),
    of.pool_mean(
        "llm_d_epp_average_kv_cache_utilization",
        lambda signals: signals.kv_usage,
        f"{_PICKER}: mean KV usage of the pool's instances.",
    ),
    of.pool_mean(
        "llm_d_epp_average_queue_size", lambda signals: signals.waiting, f"{_PICKER}: mean of the engines' own queues."
    ),
    of.pool_mean(
        "llm_d_epp_average_running_requests",
        lambda signals: signals.running,
        f"{_PICKER}: mean of the engines' own batches.",
    ),
    of.metric(
        "llm_d_epp_per_endpoint_queue_size{name,namespace,model_server_endpoint}",
        of.pool_queues,
        f"{_PICKER}: the queue of one engine.",
    ),
    of.metric("llm_d_epp_ready_endpoints{name,namespace}", of.pool_ready, f"{_PICKER}: ready instances of the pool."),
)
"""Metrics with the names of OpenTelemetry, of Gateway API Inference, and of the endpoint picker."""
METRICS: Final = (*[replace(metric, name=f"fairlead_gateway_{metric.name}") for metric in _OWN], *_STANDARD)
"""In the order of a scrape."""


def render_metrics(scrape: of.Scrape) -> Iterator[bytes]:
    """Yields the text of each metric."""
    escaped = of.EscapedLabels()
    for metric in METRICS:
        yield metric.render(scrape, escaped).encode()
