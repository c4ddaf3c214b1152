"""Every metric of the gateway by name: kind, labels, and what it says. docs/reference/metrics.md is checked against it."""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric family as Prometheus knows it."""

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
_GENAI: Final = ("gen_ai_provider_name", "gen_ai_request_model")
_OBJECTIVE: Final = ("model_name", "target_model_name")
_POOL: Final = ("name", "namespace")

_PREFIX: Final = "fairlead_gateway_"
_PICKER_PREFIX: Final = "llm_d_epp_"
_PICKER_NAME_OF: Final = "The endpoint picker's name"

FAMILIES: Final = (
    MetricFamily(_PREFIX + "received_total", "counter", _MODEL, "Requests read whole for a model that exists."),
    MetricFamily(
        _PREFIX + "received_prompt_tokens_total",
        "counter",
        _MODEL,
        "Their prompt tokens, as estimated when they were read.",
    ),
    MetricFamily(
        _PREFIX + "requests_total", "counter", ("model", "status"), "Requests ended, by the status told to the client."
    ),
    MetricFamily(
        _PREFIX + "rejected_total", "counter", ("model", "status", "kind"), "Requests that never reached an engine."
    ),
    MetricFamily(_PREFIX + "errors_total", "counter", _MODEL, "Requests that failed by no fault of the client."),
    MetricFamily(_PREFIX + "aborts_total", "counter", _MODEL, "Requests whose client left before the end."),
    MetricFamily(
        _PREFIX + "abandoned_total",
        "counter",
        _MODEL,
        "Requests whose client left before the first token, those held for an engine included.",
    ),
    MetricFamily(
        _PREFIX + "retries_total",
        "counter",
        ("model", "reason"),
        "Attempts given up before the first byte and repeated.",
    ),
    MetricFamily(
        _PREFIX + "continued_total",
        "counter",
        ("model", "result"),
        "Streams whose rest another engine was asked for: whole, or broken again.",
    ),
    MetricFamily(
        _PREFIX + "ejections_total",
        "counter",
        ("model", "reason"),
        "Instances made to sit out, by the last of the faults that led to it.",
    ),
    MetricFamily(
        _PREFIX + "failed_total",
        "counter",
        ("model", "error"),
        "Those of errors_total that reached an engine, by error.",
    ),
    MetricFamily(
        _PREFIX + "quarantine_refused_total",
        "counter",
        _MODEL,
        "Requests refused because two engines broke off on them before.",
    ),
    MetricFamily(
        _PREFIX + "handoffs_total",
        "counter",
        ("model", "outcome", "reason"),
        "Requests of a model with prefill engines: done, bypassed (one engine did it all), or failed and went on as plain ones.",
    ),
    MetricFamily(
        _PREFIX + "decode_prefills_total",
        "counter",
        _MODEL,
        "Those of handoffs_total whose prompt no prefill engine computed.",
    ),
    MetricFamily(
        _PREFIX + "decode_prefill_tokens_total",
        "counter",
        _MODEL,
        "Their prompt tokens, as in received_prompt_tokens_total.",
    ),
    MetricFamily(
        _PREFIX + "held_total",
        "counter",
        ("model", "rule"),
        "Requests that did not go at once, by how that ended: the rule that let them go, left, or why they were refused.",
    ),
    MetricFamily(
        _PREFIX + "prefill_legs_total", "counter", ("model", "result"), "Prefill engines asked: ok, or what went wrong."
    ),
    MetricFamily(_PREFIX + "prefill_seconds", "histogram", _MODEL, "A prefill engine's answer, from asked to whole."),
    MetricFamily(
        _PREFIX + "overhead_seconds",
        "histogram",
        _MODEL,
        "Request read to sent to its engine, the prefill leg not counted; requests whose first engine took them.",
    ),
    MetricFamily(
        _PREFIX + "decisions_total", "counter", ("model", "rule"), "Choices of an instance, by the rule that decided."
    ),
    MetricFamily(
        _PREFIX + "home_decisions_total", "counter", _MODEL, "Choices that fell on one of the prompt's two homes."
    ),
    MetricFamily(_PREFIX + "prompt_tokens_total", "counter", _MODEL, "Prompt tokens, as engines reported them."),
    MetricFamily(_PREFIX + "computed_tokens_total", "counter", _MODEL, "Prompt tokens that no cache held."),
    MetricFamily(_PREFIX + "output_tokens_total", "counter", _MODEL, "Tokens generated, as engines reported them."),
    MetricFamily(_PREFIX + "cached_tokens_total", "counter", _MODEL, "Prompt tokens that engines reported as cached."),
    MetricFamily(
        _PREFIX + "cache_reported_prompt_tokens_total",
        "counter",
        _MODEL,
        "Prompt tokens of requests whose cached tokens are known: what cached_tokens_total is a share of.",
    ),
    MetricFamily(
        _PREFIX + "predicted_cached_tokens_total", "counter", _MODEL, "Cached tokens the router expected of those."
    ),
    MetricFamily(
        _PREFIX + "cache_prediction_error_tokens_total",
        "counter",
        _MODEL,
        "Sum of the distances between predicted and reported cached tokens.",
    ),
    MetricFamily(
        _PREFIX + "within_objective_total",
        "counter",
        ("model", "objective"),
        "Requests that met an objective: ttft, itl, or all that the model has.",
    ),
    MetricFamily(
        _PREFIX + "judged_total",
        "counter",
        ("model", "objective"),
        "Requests that an objective applied to, met or missed.",
    ),
    MetricFamily(_PREFIX + "ttft_seconds", "histogram", _MODEL, "Request read to first token sent."),
    MetricFamily(_PREFIX + "itl_seconds", "histogram", _MODEL, "Time between two pieces of a stream."),
    MetricFamily(
        _PREFIX + "tpot_seconds", "histogram", _MODEL, "A request's mean time per output token after the first."
    ),
    MetricFamily(_PREFIX + "duration_seconds", "histogram", _MODEL, "Request read to last byte sent."),
    MetricFamily(_PREFIX + "request_prompt_tokens", "histogram", _MODEL, "Prompt tokens of one request."),
    MetricFamily(_PREFIX + "request_output_tokens", "histogram", _MODEL, "Generated tokens of one request."),
    MetricFamily(
        _PREFIX + "request_shapes_total",
        "counter",
        ("model", "prompt_tokens", "output_tokens"),
        "Whole answers by shape: the middle of one of ten ranges of prompt tokens and of ten of generated ones.",
    ),
    MetricFamily(
        _PREFIX + "held", "gauge", _MODEL, "Requests that wait in the gateway until an engine has room for them."
    ),
    MetricFamily(_PREFIX + "in_flight", "gauge", _MODEL, "Requests sent to engines and not ended."),
    MetricFamily(_PREFIX + "queue", "gauge", _MODEL, "Of those in flight, the ones without a first token."),
    MetricFamily(_PREFIX + "instances", "gauge", ("model", "state"), "Instances in the fleet, by state."),
    MetricFamily(_PREFIX + "instance_in_flight", "gauge", _INSTANCE, "Requests sent to the instance and not ended."),
    MetricFamily(_PREFIX + "instance_waiting", "gauge", _INSTANCE, "Of those, the ones without a first token."),
    MetricFamily(
        _PREFIX + "instance_backlog_seconds",
        "gauge",
        _INSTANCE,
        "Engine time of the work already sent to the instance.",
    ),
    MetricFamily(_PREFIX + "instance_in_flight_tokens", "gauge", _INSTANCE, "Tokens that the requests in flight hold."),
    MetricFamily(_PREFIX + "instance_requests_total", "counter", _INSTANCE, "Attempts sent to the instance."),
    MetricFamily(_PREFIX + "instance_finished_total", "counter", _INSTANCE, "Requests that ended on the instance."),
    MetricFamily(_PREFIX + "instance_errors_total", "counter", _INSTANCE, "Of those, the failed ones."),
    MetricFamily(
        _PREFIX + "instance_retried_total",
        "counter",
        _INSTANCE,
        "Attempts that the instance failed and another repeated.",
    ),
    MetricFamily(
        _PREFIX + "instance_ejections_total", "counter", _INSTANCE, "Times that the instance was made to sit out."
    ),
    MetricFamily(
        _PREFIX + "instance_computed_tokens_total",
        "counter",
        _INSTANCE,
        "Prompt tokens that the instance had to compute.",
    ),
    MetricFamily(_PREFIX + "instance_output_tokens_total", "counter", _INSTANCE, "Tokens that the instance generated."),
    MetricFamily(
        _PREFIX + "instance_ttft_seconds", "summary", _INSTANCE, "First tokens of the instance: sum and count."
    ),
    MetricFamily(
        _PREFIX + "instance_itl_seconds", "summary", _INSTANCE, "Gaps between pieces of its streams: sum and count."
    ),
    MetricFamily(
        _PREFIX + "instance_within_objective_total",
        "counter",
        (*_INSTANCE, "objective"),
        "Of the instance: first tokens in time (ttft), ended streams whose mean time per token was met (itl).",
    ),
    MetricFamily(
        _PREFIX + "instance_judged_total",
        "counter",
        (*_INSTANCE, "objective"),
        "Of the instance: first tokens and ended streams that the objective applied to.",
    ),
    MetricFamily(_PREFIX + "engine_running", "gauge", _ENGINE, "Requests in the batch, as the engine says."),
    MetricFamily(_PREFIX + "engine_waiting", "gauge", _ENGINE, "Requests in the engine's own queue."),
    MetricFamily(
        _PREFIX + "engine_kv_usage", "gauge", _ENGINE, "Share of the KV blocks that running requests hold (0 to 1)."
    ),
    MetricFamily(
        _PREFIX + "engine_prompt_tokens_total", "counter", _ENGINE, "Prompt tokens, as the engine counts them."
    ),
    MetricFamily(
        _PREFIX + "engine_generation_tokens_total", "counter", _ENGINE, "Generated tokens, as the engine counts them."
    ),
    MetricFamily(
        _PREFIX + "engine_prefix_queries_total", "counter", _ENGINE, "Tokens looked up in the engine's prefix cache."
    ),
    MetricFamily(_PREFIX + "engine_prefix_hits_total", "counter", _ENGINE, "Of those, the tokens found."),
    MetricFamily(
        _PREFIX + "engine_preemptions_total",
        "counter",
        _ENGINE,
        "Requests that the engine put back for lack of KV blocks.",
    ),
    MetricFamily(_PREFIX + "engine_sleeping", "gauge", _ENGINE, "1 while the engine sleeps."),
    MetricFamily(
        _PREFIX + "engine_signals_age_seconds", "gauge", _ENGINE, "Age of the engine's signals; absent until it spoke."
    ),
    MetricFamily(_PREFIX + "fleet_version", "gauge", (), "Snapshots of the fleet seen so far."),
    MetricFamily(
        _PREFIX + "fleet_age_seconds",
        "gauge",
        (),
        "Time since the cluster last said how things are; absent where a file says it.",
    ),
    MetricFamily(
        _PREFIX + "membership_epoch", "gauge", (), "Changes of the set of instances that homes are computed over."
    ),
    MetricFamily(
        _PREFIX + "loop_lag_seconds", "gauge", ("quantile",), "How late the event loop wakes, of the latest worker."
    ),
    MetricFamily(_PREFIX + "uptime_seconds", "gauge", (), "Time since the gateway's counters began."),
    MetricFamily(_PREFIX + "keys_refused_total", "counter", (), "Requests whose API key was missing or unknown."),
    MetricFamily(_PREFIX + "workers", "gauge", (), "Worker processes that serve and answer."),
    MetricFamily(_PREFIX + "worker_deaths_total", "counter", (), "Workers that ended unasked; each was started again."),
    MetricFamily(
        _PREFIX + "access_log_dropped_total",
        "counter",
        (),
        "Lines that the access log could not take in time; absent while it is off.",
    ),
    MetricFamily(
        _PREFIX + "spans_exported_total", "counter", (), "Spans that the collector took; absent while tracing is off."
    ),
    MetricFamily(_PREFIX + "spans_dropped_total", "counter", (), "Spans that it did not take, or not in time."),
    MetricFamily(_PREFIX + "redis_connected", "gauge", (), "1 while Redis answers; absent when none is configured."),
    MetricFamily(_PREFIX + "redis_published_total", "counter", (), "Decisions told to other gateways."),
    MetricFamily(
        _PREFIX + "redis_dropped_total", "counter", (), "Decisions dropped because too many waited for Redis."
    ),
    MetricFamily(_PREFIX + "redis_refused_total", "counter", (), "Decisions that Redis would not take."),
    MetricFamily(
        _PREFIX + "index_instances",
        "gauge",
        ("model", "state"),
        "Instances by how far it is known what they hold; absent for models none of whose instances tells it.",
    ),
    MetricFamily(
        _PREFIX + "index_predicted_tokens_total",
        "counter",
        _INSTANCE,
        "Cached tokens that the index credited; answers that reported theirs, absent until one did.",
    ),
    MetricFamily(
        _PREFIX + "index_reported_tokens_total", "counter", _INSTANCE, "Cached tokens that those answers reported."
    ),
    MetricFamily(
        _PREFIX + "index_prediction_ratio", "gauge", _INSTANCE, "The first of these to the second, since the start."
    ),
    MetricFamily(
        _PREFIX + "index_unreported_total", "counter", _INSTANCE, "Answers that did not report their cached tokens."
    ),
    MetricFamily(
        _PREFIX + "index_late_total",
        "counter",
        _INSTANCE,
        "Answers that missed what the engine had just lost; no drift.",
    ),
    MetricFamily(
        _PREFIX + "index_quarantined", "gauge", _INSTANCE, "1 while what the index tells of the instance is not used."
    ),
    MetricFamily(
        _PREFIX + "index_quarantines_total",
        "counter",
        _INSTANCE,
        "Times that predictions drifted from what was reported.",
    ),
    MetricFamily(
        _PREFIX + "index_blocks", "gauge", _INSTANCE, "Different blocks that the instance holds, in whatever memory."
    ),
    MetricFamily(_PREFIX + "index_unique_blocks", "gauge", _INSTANCE, "Of these, how many no other instance holds."),
    MetricFamily(
        _PREFIX + "index_unique_used_blocks",
        "gauge",
        _INSTANCE,
        "Of those, how many were in prompts of the last minutes.",
    ),
    MetricFamily(
        _PREFIX + "index_scale_down_rank",
        "gauge",
        _INSTANCE,
        "1: the cheapest instance of the model to lose; absent where that cannot be told.",
    ),
    MetricFamily(_PREFIX + "index_links", "gauge", _MODEL, "Blocks of prompt text whose place in the index is known."),
    MetricFamily(_PREFIX + "index_links_lowered_total", "counter", _MODEL, "Links that another prompt contradicted."),
    MetricFamily(_PREFIX + "index_prompts_learned_total", "counter", _MODEL, "Prompts that were linked to the index."),
    MetricFamily(
        _PREFIX + "peers", "gauge", (), "Other gateways that are heard through Redis; absent when none is configured."
    ),
    MetricFamily(
        _PREFIX + "peer_age_seconds",
        "gauge",
        (),
        "Since the last word of the one that is silent longest; absent without.",
    ),
    MetricFamily(
        _PREFIX + "peer_in_flight", "gauge", (), "Requests that other gateways have in flight, as they last told."
    ),
    MetricFamily(
        _PREFIX + "peer_sent_total", "counter", (), "Prompts of which other gateways were told where they were sent."
    ),
    MetricFamily(
        _PREFIX + "peer_heard_total", "counter", (), "Prompts of which other gateways told where they were sent."
    ),
    MetricFamily(
        _PREFIX + "peer_dropped_total",
        "counter",
        (),
        "Prompts that others were not told of: Redis was away or refused.",
    ),
    MetricFamily(
        _PREFIX + "peer_missed_total", "counter", (), "Batches of other gateways that were lost before they were read."
    ),
    MetricFamily(
        _PREFIX + "peer_poisoned_total", "counter", (), "Values in Redis that could not be read; they are passed over."
    ),
    MetricFamily(
        _PREFIX + "hot_tables_kept", "gauge", (), "Models whose table of hot prefixes this gateway keeps for all."
    ),
    MetricFamily(
        _PREFIX + "hot_table_stale_seconds",
        "gauge",
        (),
        "Age of the oldest table that nobody could renew; absent without.",
    ),
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
        "Mean KV usage over the pool's instances that told it; absent when none did.",
    ),
    MetricFamily(
        "inference_pool_average_queue_size",
        "gauge",
        _POOL,
        "Mean of the engines' own queues over the pool's instances that told it; absent when none did.",
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
"""In the order in which a scrape shows them."""
