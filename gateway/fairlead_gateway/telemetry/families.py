"""Every metric of the gateway: name, kind, labels and help. `docs/reference/metrics.md` is tested
against it.
"""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric family of Prometheus."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    labels: tuple[str, ...]
    help: str

    @property
    def head(self) -> str:
        """The HELP and TYPE lines."""
        return f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n"


_MODEL: Final = ("model",)
_INSTANCE: Final = ("model", "instance")
_ENGINE: Final = ("model", "instance", "pool")
_ADAPTER: Final = ("model", "adapter")
_COMPARED: Final = ("model", "original", "side")
_GENAI: Final = ("gen_ai_provider_name", "gen_ai_request_model")
_OBJECTIVE: Final = ("model_name", "target_model_name")
_POOL: Final = ("name", "namespace")

_PREFIX: Final = "fairlead_gateway_"
_PICKER_PREFIX: Final = "llm_d_epp_"
_PICKER_NAME_OF: Final = "The endpoint picker's name"


def _counter(name: str, labels: tuple[str, ...], text: str) -> MetricFamily:
    return MetricFamily(_PREFIX + name, "counter", labels, text)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> MetricFamily:
    return MetricFamily(_PREFIX + name, "gauge", labels, text)


def _histogram(name: str, labels: tuple[str, ...], text: str) -> MetricFamily:
    return MetricFamily(_PREFIX + name, "histogram", labels, text)


def _summary(name: str, labels: tuple[str, ...], text: str) -> MetricFamily:
    return MetricFamily(_PREFIX + name, "summary", labels, text)


FAMILIES: Final = (
    _counter("received_total", _MODEL, "Requests that were received completely, for a known model."),
    _counter("received_prompt_tokens_total", _MODEL, "Their prompt tokens, as estimated at that time."),
    _counter("requests_total", ("model", "status"), "Finished requests, by the status that the client received."),
    _counter("rejected_total", ("model", "status", "kind"), "Requests that never reached an engine."),
    _counter(
        "kept_back_total",
        ("model", "action", "name"),
        "Fields and headers of requests that engines did not get: refused-field, removed-field or dropped-header; "
        "other: names beyond the limit.",
    ),
    _counter("errors_total", _MODEL, "Requests that failed by no fault of the client."),
    _counter("aborts_total", _MODEL, "Requests whose client disconnected before the end."),
    _counter(
        "abandoned_total", _MODEL, "Requests whose client disconnected before the first token, queued ones included."
    ),
    _counter("retries_total", ("model", "reason"), "Attempts given up before the first byte and repeated."),
    _counter(
        "continued_total", ("model", "result"), "Streams that another instance continued: whole, or broken again."
    ),
    _counter("ejections_total", ("model", "reason"), "Ejected instances, by the last failure before it."),
    _counter("failed_total", ("model", "error"), "Those of errors_total that reached an engine, by error."),
    _counter("quarantine_refused_total", _MODEL, "Requests refused because two instances crashed on them before."),
    _counter(
        "route_requests_total",
        ("model", "status", "route"),
        "Finished requests that named a route, by the model that got them last; other: routes beyond the limit.",
    ),
    _counter(
        "fallbacks_total",
        ("model", "reason", "to"),
        "Requests of a route that another model got, since this one has not answered, by the kind of its failure.",
    ),
    _counter(
        "shadow_copies_total",
        ("model", "original", "outcome"),
        "Requests for the model `original` that a route copies to this one: answered, failed, or why there is no answer.",
    ),
    _counter(
        "shadow_compared_total",
        ("model", "original"),
        "Copied requests whose two answers were compared, failed ones included.",
    ),
    _counter("shadow_errors_total", _COMPARED, "Of these, the failed answers: to the copy, or original."),
    _summary(
        "shadow_ttft_seconds",
        _COMPARED,
        "Sent to an engine until the first token, of the same streams on both sides: sum and count.",
    ),
    _summary(
        "shadow_tpot_seconds",
        _COMPARED,
        "Mean time per output token after the first, of the same streams on both sides: sum and count.",
    ),
    _summary(
        "shadow_output_tokens",
        _COMPARED,
        "Generated tokens of an answer, of the same requests on both sides: sum and count.",
    ),
    _counter(
        "handoffs_total",
        ("model", "outcome", "reason"),
        "Requests of a model with prefill engines: done, bypassed (one engine did it all), or failed and went on as plain ones.",
    ),
    _counter("decode_prefills_total", _MODEL, "Those of handoffs_total whose prompt no prefill engine computed."),
    _counter("decode_prefill_tokens_total", _MODEL, "Their prompt tokens, as in received_prompt_tokens_total."),
    _counter(
        "held_total",
        ("model", "rule"),
        "Requests that were not admitted at once, by the rule that released or refused them; left: the client disconnected.",
    ),
    _counter("prefill_legs_total", ("model", "result"), "Attempts at prefill instances: ok, or the failure."),
    _histogram(
        "prefill_seconds", _MODEL, "Duration of an attempt at a prefill instance, until its response was complete."
    ),
    _histogram(
        "overhead_seconds",
        _MODEL,
        "Request read to sent to its engine, without queues and the prefill leg; requests whose first engine took them.",
    ),
    _counter("decisions_total", ("model", "rule"), "Choices of an instance, by the rule that decided."),
    _counter("home_decisions_total", _MODEL, "Choices that fell on one of the prompt's two homes."),
    _counter("prompt_tokens_total", _MODEL, "Prompt tokens, as engines reported them."),
    _counter("computed_tokens_total", _MODEL, "Prompt tokens that were not cached."),
    _counter("output_tokens_total", _MODEL, "Tokens generated, as engines reported them."),
    _counter("cached_tokens_total", _MODEL, "Prompt tokens that engines reported as cached."),
    _counter(
        "cache_reported_prompt_tokens_total",
        _MODEL,
        "Prompt tokens of requests whose cached tokens are known: what cached_tokens_total is a share of.",
    ),
    _counter("predicted_cached_tokens_total", _MODEL, "Cached tokens the router expected of those."),
    _counter(
        "cache_prediction_error_tokens_total",
        _MODEL,
        "Sum of the distances between predicted and reported cached tokens.",
    ),
    _counter(
        "within_objective_total",
        ("model", "objective"),
        "Requests that met a latency target: ttft, itl, or all that the model has.",
    ),
    _counter("judged_total", ("model", "objective"), "Requests that a latency target applied to, met or missed."),
    _histogram("ttft_seconds", _MODEL, "Request read to first token sent."),
    _histogram("itl_seconds", _MODEL, "Time between two pieces of a stream."),
    _histogram("tpot_seconds", _MODEL, "A request's mean time per output token after the first."),
    _histogram("duration_seconds", _MODEL, "Request read to last byte sent."),
    _histogram("request_prompt_tokens", _MODEL, "Prompt tokens of one request."),
    _histogram("request_output_tokens", _MODEL, "Generated tokens of one request."),
    _counter(
        "request_shapes_total",
        ("model", "prompt_tokens", "output_tokens"),
        "Whole answers by shape: the middle of one of ten ranges of prompt tokens and of ten of generated ones.",
    ),
    _gauge("held", _MODEL, "Requests queued in the gateway until an instance has room for them."),
    _gauge("in_flight", _MODEL, "Requests sent to engines and not ended."),
    _gauge("queue", _MODEL, "Of those in flight, the ones without a first token."),
    _gauge("instances", ("model", "state"), "Instances in the fleet, by state."),
    _counter("adapter_requests_total", _ADAPTER, "Requests for a LoRA adapter, when they look for an instance."),
    _summary("adapter_load_seconds", _ADAPTER, "Loads of the adapter into engines, by this gateway: sum and count."),
    _counter("adapter_load_failures_total", _ADAPTER, "Loads of the adapter that did not succeed."),
    _counter("adapter_evictions_total", _ADAPTER, "Times that the adapter was unloaded to make room for another."),
    _gauge(
        "instance_in_flight",
        _INSTANCE,
        "Requests sent to the instance and not ended. One with several answers counts as many.",
    ),
    _gauge("instance_waiting", _INSTANCE, "Of those, the ones without a first token."),
    _gauge("instance_backlog_seconds", _INSTANCE, "Engine time of the work already sent to the instance."),
    _gauge("instance_in_flight_tokens", _INSTANCE, "Tokens that the requests in flight hold."),
    _gauge(
        "instance_ejected_seconds",
        _INSTANCE,
        "Time since the instance was ejected, without any answer since then; absent for others.",
    ),
    _counter("instance_requests_total", _INSTANCE, "Attempts sent to the instance."),
    _counter("instance_finished_total", _INSTANCE, "Requests that ended on the instance."),
    _counter("instance_errors_total", _INSTANCE, "Of those, the failed ones."),
    _counter("instance_retried_total", _INSTANCE, "Attempts that the instance failed and another repeated."),
    _counter("instance_ejections_total", _INSTANCE, "Times that the instance was ejected."),
    _counter("instance_computed_tokens_total", _INSTANCE, "Prompt tokens that the instance had to compute."),
    _counter("instance_output_tokens_total", _INSTANCE, "Tokens that the instance generated."),
    _summary("instance_ttft_seconds", _INSTANCE, "First tokens of the instance: sum and count."),
    _summary("instance_itl_seconds", _INSTANCE, "Gaps between pieces of its streams: sum and count."),
    _counter(
        "instance_within_objective_total",
        (*_INSTANCE, "objective"),
        "Of the instance: first tokens in time (ttft), ended streams whose mean time per token was met (itl).",
    ),
    _counter(
        "instance_judged_total",
        (*_INSTANCE, "objective"),
        "Of the instance: first tokens and ended streams that the latency target applied to.",
    ),
    _gauge("engine_running", _ENGINE, "Requests in the batch, as the engine says."),
    _gauge("engine_waiting", _ENGINE, "Requests in the engine's own queue."),
    _gauge("engine_kv_usage", _ENGINE, "Share of the KV blocks that running requests hold (0 to 1)."),
    _counter("engine_prompt_tokens_total", _ENGINE, "Prompt tokens, as the engine counts them."),
    _counter("engine_generation_tokens_total", _ENGINE, "Generated tokens, as the engine counts them."),
    _counter("engine_prefix_queries_total", _ENGINE, "Tokens looked up in the engine's prefix cache."),
    _counter("engine_prefix_hits_total", _ENGINE, "Of those, the tokens found."),
    _counter("engine_preemptions_total", _ENGINE, "Requests that the engine put back for lack of KV blocks."),
    _gauge("engine_sleeping", _ENGINE, "1 while the engine sleeps."),
    _gauge("engine_signals_age_seconds", _ENGINE, "Age of the engine's signals; absent before the first."),
    _gauge("fleet_version", (), "Snapshots of the fleet seen so far."),
    _gauge("fleet_age_seconds", (), "Time since the last message of the cluster; absent with a fleet file."),
    _gauge("membership_epoch", (), "Changes of the set of instances that homes are computed over."),
    _gauge("loop_lag_seconds", ("quantile",), "How late the event loop wakes, of the latest worker."),
    _gauge("uptime_seconds", (), "Time since the gateway's counters began."),
    _gauge("keys", (), "API keys that the gateway accepts; absent without a keys file."),
    _gauge("keys_file_broken", (), "1 while the keys file cannot be used; absent without one."),
    _counter("keys_refused_total", (), "Requests whose API key was missing or unknown."),
    _gauge("workers", (), "Worker processes that serve and answer."),
    _counter("worker_deaths_total", (), "Workers that exited unexpectedly; each was started again."),
    _counter("access_log_dropped_total", (), "Lines that the access log dropped; absent while it is off."),
    _counter("spans_exported_total", (), "Spans that the collector accepted; absent while tracing is off."),
    _counter("spans_dropped_total", (), "Spans that the collector did not accept, or not in time."),
    _counter(
        "tenant_requests_total",
        ("tenant",),
        "Requests of a tenant for which an instance was chosen; absent without a ledger, and without a management token "
        "that may read all tenants. So are the other series of tenants.",
    ),
    _counter("tenant_input_tokens_total", ("tenant",), "Prompt tokens of a tenant, cached ones included."),
    _counter(
        "tenant_cached_tokens_total", ("tenant",), "Prompt tokens of a tenant that engines had in their KV caches."
    ),
    _counter("tenant_output_tokens_total", ("tenant",), "Generated tokens of a tenant."),
    _counter(
        "tenant_cost_usd_total", ("tenant",), "What a tenant's tokens cost, by the prices of the models, in US dollars."
    ),
    _counter(
        "tenant_saved_usd_total", ("tenant",), "What a tenant's cached tokens cost less than others, in US dollars."
    ),
    _counter("tenant_engine_seconds_total", ("tenant",), "Time of engines that a tenant used, by their profiles."),
    _gauge(
        "budget_used_ratio",
        ("tenant",),
        "Used share of the budget of a tenant, over all gateways; above 1 after an overrun.",
    ),
    _counter("usage_records_written_total", (), "Lines that are safe in the usage ledger; absent without one."),
    _counter(
        "usage_records_lost_total", (), "Usage records that were lost: too many waited, or a worker could not report."
    ),
    _gauge("usage_records_pending", (), "Lines that wait to be written to the usage ledger."),
    _gauge("redis_connected", (), "1 while Redis answers; absent when none is configured."),
    _counter("redis_published_total", (), "Decisions published to Redis."),
    _counter("redis_dropped_total", (), "Decisions dropped because too many waited for Redis."),
    _counter("redis_refused_total", (), "Decisions that Redis refused."),
    _gauge(
        "index_instances",
        ("model", "state"),
        "Instances by how completely their cache is known; absent for models whose instances do not report it.",
    ),
    _counter(
        "index_predicted_tokens_total",
        _INSTANCE,
        "Cached tokens that the index predicted, over the answers that reported their cached tokens; absent until one did.",
    ),
    _counter("index_reported_tokens_total", _INSTANCE, "Cached tokens that those answers reported."),
    _gauge("index_prediction_ratio", _INSTANCE, "Predicted per reported cached token, since the start."),
    _counter("index_unreported_total", _INSTANCE, "Answers that did not report their cached tokens."),
    _counter("index_late_total", _INSTANCE, "Answers that missed what the engine had just lost; no drift."),
    _gauge("index_quarantined", _INSTANCE, "1 while the index of the instance is not used."),
    _counter("index_quarantines_total", _INSTANCE, "Times that predictions drifted from what was reported."),
    _gauge("index_blocks", _INSTANCE, "Distinct blocks that the instance has cached, in any storage tier."),
    _gauge("index_unique_blocks", _INSTANCE, "Of these, how many no other instance has."),
    _gauge("index_unique_used_blocks", _INSTANCE, "Of those, how many were in prompts of the last minutes."),
    _gauge(
        "index_scale_down_rank",
        _INSTANCE,
        "1: the cheapest instance of the model to lose; absent where that is unknown.",
    ),
    _gauge("index_links", _MODEL, "Blocks of prompt text whose place in the index is known."),
    _counter("index_links_lowered_total", _MODEL, "Links that another prompt contradicted."),
    _counter("index_prompts_learned_total", _MODEL, "Prompts that were linked to the index."),
    _gauge("peers", (), "Other gateways seen through Redis; absent when none is configured."),
    _gauge(
        "peer_age_seconds", (), "Time since the last message of the gateway that was silent longest; absent without."
    ),
    _gauge("peer_in_flight", (), "Requests that other gateways have in flight, as last reported."),
    _counter("peer_sent_total", (), "Dispatched prompts that were published to other gateways."),
    _counter("peer_heard_total", (), "Dispatched prompts that other gateways published."),
    _counter("peer_limited_total", (), "Such prompts that were not applied: other gateways sent too many a second."),
    _counter("peer_dropped_total", (), "Dispatched prompts that were not published: Redis was away or refused."),
    _counter("peer_missed_total", (), "Batches of other gateways that were lost before they were read."),
    _counter("peer_poisoned_total", (), "Values in Redis that could not be read; they are passed over."),
    _gauge("hot_tables_kept", (), "Models whose table of hot prefixes this gateway maintains for all."),
    _gauge("hot_table_stale_seconds", (), "Age of the oldest table that was not renewed; absent without."),
    MetricFamily(
        "gen_ai_server_time_to_first_token_seconds", "histogram", _GENAI, "OpenTelemetry's name of ttft_seconds."
    ),
    MetricFamily(
        "gen_ai_server_time_per_output_token_seconds", "histogram", _GENAI, "OpenTelemetry's name of tpot_seconds."
    ),
    MetricFamily(
        "gen_ai_server_request_duration_seconds", "histogram", _GENAI, "OpenTelemetry's name of duration_seconds."
    ),
    MetricFamily(
        "gen_ai_client_token_usage",
        "histogram",
        (*_GENAI, "gen_ai_token_type"),
        "OpenTelemetry's name of request_prompt_tokens (input) and request_output_tokens (output).",
    ),
    MetricFamily(
        "inference_objective_request_total", "counter", _OBJECTIVE, "Gateway API Inference's name: requests ended."
    ),
    MetricFamily(
        "inference_objective_request_error_total",
        "counter",
        (*_OBJECTIVE, "error_code"),
        "Gateway API Inference's name: requests answered 4xx or 5xx.",
    ),
    MetricFamily(
        "inference_objective_request_duration_seconds",
        "histogram",
        _OBJECTIVE,
        "Gateway API Inference's name of duration_seconds.",
    ),
    MetricFamily(
        "inference_objective_input_tokens",
        "histogram",
        _OBJECTIVE,
        "Gateway API Inference's name of request_prompt_tokens.",
    ),
    MetricFamily(
        "inference_objective_output_tokens",
        "histogram",
        _OBJECTIVE,
        "Gateway API Inference's name of request_output_tokens.",
    ),
    MetricFamily(
        "inference_objective_running_requests", "gauge", ("model_name",), "Gateway API Inference's name of in_flight."
    ),
    MetricFamily(
        "inference_pool_average_kv_cache_utilization",
        "gauge",
        _POOL,
        "Mean KV usage over the pool's instances that report it; absent when none does.",
    ),
    MetricFamily(
        "inference_pool_average_queue_size",
        "gauge",
        _POOL,
        "Mean of the engines' own queues over the pool's instances that report it; absent when none does.",
    ),
    MetricFamily(
        "inference_pool_per_pod_queue_size",
        "gauge",
        (*_POOL, "model_server_pod"),
        "The queue of one engine, as it says.",
    ),
    MetricFamily("inference_pool_ready_pods", "gauge", _POOL, "Ready instances of the pool."),
    MetricFamily(_PICKER_PREFIX + "request_total", "counter", _OBJECTIVE, f"{_PICKER_NAME_OF}: requests ended."),
    MetricFamily(
        _PICKER_PREFIX + "request_error_total",
        "counter",
        (*_OBJECTIVE, "error_code"),
        f"{_PICKER_NAME_OF}: requests answered 4xx or 5xx.",
    ),
    MetricFamily(
        _PICKER_PREFIX + "request_duration_seconds", "histogram", _OBJECTIVE, f"{_PICKER_NAME_OF} of duration_seconds."
    ),
    MetricFamily(
        _PICKER_PREFIX + "request_ttft_seconds",
        "histogram",
        (*_OBJECTIVE, "streaming"),
        f"{_PICKER_NAME_OF} of ttft_seconds, which only streams have.",
    ),
    MetricFamily(
        _PICKER_PREFIX + "request_streaming_tpot_seconds",
        "histogram",
        _OBJECTIVE,
        f"{_PICKER_NAME_OF} of tpot_seconds.",
    ),
    MetricFamily(
        _PICKER_PREFIX + "request_streaming_itl_seconds", "histogram", _OBJECTIVE, f"{_PICKER_NAME_OF} of itl_seconds."
    ),
    MetricFamily(
        _PICKER_PREFIX + "request_input_tokens", "histogram", _OBJECTIVE, f"{_PICKER_NAME_OF} of request_prompt_tokens."
    ),
    MetricFamily(
        _PICKER_PREFIX + "request_output_tokens",
        "histogram",
        _OBJECTIVE,
        f"{_PICKER_NAME_OF} of request_output_tokens.",
    ),
    MetricFamily(_PICKER_PREFIX + "request_running", "gauge", _OBJECTIVE, f"{_PICKER_NAME_OF} of in_flight."),
    MetricFamily(
        _PICKER_PREFIX + "average_kv_cache_utilization",
        "gauge",
        _POOL,
        f"{_PICKER_NAME_OF}: mean KV usage of the pool's instances.",
    ),
    MetricFamily(
        _PICKER_PREFIX + "average_queue_size", "gauge", _POOL, f"{_PICKER_NAME_OF}: mean of the engines' own queues."
    ),
    MetricFamily(
        _PICKER_PREFIX + "average_running_requests",
        "gauge",
        _POOL,
        f"{_PICKER_NAME_OF}: mean of the engines' own batches.",
    ),
    MetricFamily(
        _PICKER_PREFIX + "per_endpoint_queue_size",
        "gauge",
        (*_POOL, "model_server_endpoint"),
        f"{_PICKER_NAME_OF}: the queue of one engine.",
    ),
    MetricFamily(
        _PICKER_PREFIX + "ready_endpoints", "gauge", _POOL, f"{_PICKER_NAME_OF}: ready instances of the pool."
    ),
)
"""In the order of a scrape."""
