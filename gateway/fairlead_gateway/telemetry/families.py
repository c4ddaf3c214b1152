"""Every metric of the gateway by name: kind, labels, and what it says. docs/reference/metrics.md is checked against it."""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Family:
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

_P: Final = "fairlead_gateway_"
_E: Final = "llm_d_epp_"
_IS: Final = "The endpoint picker's name"

FAMILIES: Final = (
    Family(_P + "received_total", "counter", _MODEL, "Requests read whole for a model that exists."),
    Family(
        _P + "received_prompt_tokens_total", "counter", _MODEL, "Their prompt tokens, as estimated when they were read."
    ),
    Family(_P + "requests_total", "counter", ("model", "status"), "Requests ended, by the status told to the client."),
    Family(_P + "rejected_total", "counter", ("model", "status", "kind"), "Requests that never reached an engine."),
    Family(_P + "errors_total", "counter", _MODEL, "Requests that failed by no fault of the client."),
    Family(_P + "aborts_total", "counter", _MODEL, "Requests whose client left before the end."),
    Family(
        _P + "abandoned_total",
        "counter",
        _MODEL,
        "Requests whose client left before the first token, those held for an engine included.",
    ),
    Family(
        _P + "retries_total", "counter", ("model", "reason"), "Attempts given up before the first byte and repeated."
    ),
    Family(
        _P + "continued_total",
        "counter",
        ("model", "result"),
        "Streams whose rest another engine was asked for: whole, or broken again.",
    ),
    Family(
        _P + "ejections_total",
        "counter",
        ("model", "reason"),
        "Instances made to sit out, by the last of the faults that led to it.",
    ),
    Family(
        _P + "failed_total", "counter", ("model", "error"), "Those of errors_total that reached an engine, by error."
    ),
    Family(
        _P + "quarantine_refused_total",
        "counter",
        _MODEL,
        "Requests refused because two engines broke off on them before.",
    ),
    Family(
        _P + "handoffs_total",
        "counter",
        ("model", "outcome", "reason"),
        "Requests of a model with prefill engines: done, bypassed (one engine did it all), or failed and went on as plain ones.",
    ),
    Family(
        _P + "decode_prefills_total",
        "counter",
        _MODEL,
        "Those of handoffs_total whose prompt no prefill engine computed.",
    ),
    Family(
        _P + "decode_prefill_tokens_total",
        "counter",
        _MODEL,
        "Their prompt tokens, as in received_prompt_tokens_total.",
    ),
    Family(
        _P + "held_total",
        "counter",
        ("model", "rule"),
        "Requests that did not go at once, by how that ended: the rule that let them go, left, or why they were refused.",
    ),
    Family(_P + "prefill_legs_total", "counter", ("model", "result"), "Prefill engines asked: ok, or what went wrong."),
    Family(_P + "prefill_seconds", "histogram", _MODEL, "A prefill engine's answer, from asked to whole."),
    Family(
        _P + "overhead_seconds",
        "histogram",
        _MODEL,
        "Request read to sent to its engine, the prefill leg not counted; requests whose first engine took them.",
    ),
    Family(_P + "decisions_total", "counter", ("model", "rule"), "Choices of an instance, by the rule that decided."),
    Family(_P + "home_decisions_total", "counter", _MODEL, "Choices that fell on one of the prompt's two homes."),
    Family(_P + "prompt_tokens_total", "counter", _MODEL, "Prompt tokens, as engines reported them."),
    Family(_P + "computed_tokens_total", "counter", _MODEL, "Prompt tokens that no cache held."),
    Family(_P + "output_tokens_total", "counter", _MODEL, "Tokens generated, as engines reported them."),
    Family(_P + "cached_tokens_total", "counter", _MODEL, "Prompt tokens that engines reported as cached."),
    Family(
        _P + "cache_reported_prompt_tokens_total",
        "counter",
        _MODEL,
        "Prompt tokens of requests whose cached tokens are known: what cached_tokens_total is a share of.",
    ),
    Family(_P + "predicted_cached_tokens_total", "counter", _MODEL, "Cached tokens the router expected of those."),
    Family(
        _P + "cache_prediction_error_tokens_total",
        "counter",
        _MODEL,
        "Sum of the distances between predicted and reported cached tokens.",
    ),
    Family(
        _P + "within_objective_total",
        "counter",
        ("model", "objective"),
        "Requests that met an objective: ttft, itl, or all that the model has.",
    ),
    Family(
        _P + "judged_total", "counter", ("model", "objective"), "Requests that an objective applied to, met or missed."
    ),
    Family(_P + "ttft_seconds", "histogram", _MODEL, "Request read to first token sent."),
    Family(_P + "itl_seconds", "histogram", _MODEL, "Time between two pieces of a stream."),
    Family(_P + "tpot_seconds", "histogram", _MODEL, "A request's mean time per output token after the first."),
    Family(_P + "duration_seconds", "histogram", _MODEL, "Request read to last byte sent."),
    Family(_P + "request_prompt_tokens", "histogram", _MODEL, "Prompt tokens of one request."),
    Family(_P + "request_output_tokens", "histogram", _MODEL, "Generated tokens of one request."),
    Family(
        _P + "request_shapes_total",
        "counter",
        ("model", "prompt_tokens", "output_tokens"),
        "Whole answers by shape: the middle of one of ten ranges of prompt tokens and of ten of generated ones.",
    ),
    Family(_P + "held", "gauge", _MODEL, "Requests that wait in the gateway until an engine has room for them."),
    Family(_P + "in_flight", "gauge", _MODEL, "Requests sent to engines and not ended."),
    Family(_P + "queue", "gauge", _MODEL, "Of those in flight, the ones without a first token."),
    Family(_P + "instances", "gauge", ("model", "state"), "Instances in the fleet, by state."),
    Family(_P + "instance_in_flight", "gauge", _INSTANCE, "Requests sent to the instance and not ended."),
    Family(_P + "instance_waiting", "gauge", _INSTANCE, "Of those, the ones without a first token."),
    Family(
        _P + "instance_backlog_seconds", "gauge", _INSTANCE, "Engine time of the work already sent to the instance."
    ),
    Family(_P + "instance_in_flight_tokens", "gauge", _INSTANCE, "Tokens that the requests in flight hold."),
    Family(_P + "instance_requests_total", "counter", _INSTANCE, "Attempts sent to the instance."),
    Family(_P + "instance_finished_total", "counter", _INSTANCE, "Requests that ended on the instance."),
    Family(_P + "instance_errors_total", "counter", _INSTANCE, "Of those, the failed ones."),
    Family(
        _P + "instance_retried_total", "counter", _INSTANCE, "Attempts that the instance failed and another repeated."
    ),
    Family(_P + "instance_ejections_total", "counter", _INSTANCE, "Times that the instance was made to sit out."),
    Family(
        _P + "instance_computed_tokens_total", "counter", _INSTANCE, "Prompt tokens that the instance had to compute."
    ),
    Family(_P + "instance_output_tokens_total", "counter", _INSTANCE, "Tokens that the instance generated."),
    Family(_P + "instance_ttft_seconds", "summary", _INSTANCE, "First tokens of the instance: sum and count."),
    Family(_P + "instance_itl_seconds", "summary", _INSTANCE, "Gaps between pieces of its streams: sum and count."),
    Family(
        _P + "instance_within_objective_total",
        "counter",
        (*_INSTANCE, "objective"),
        "Of the instance: first tokens in time (ttft), ended streams whose mean time per token was met (itl).",
    ),
    Family(
        _P + "instance_judged_total",
        "counter",
        (*_INSTANCE, "objective"),
        "Of the instance: first tokens and ended streams that the objective applied to.",
    ),
    Family(_P + "engine_running", "gauge", _ENGINE, "Requests in the batch, as the engine says."),
    Family(_P + "engine_waiting", "gauge", _ENGINE, "Requests in the engine's own queue."),
    Family(_P + "engine_kv_usage", "gauge", _ENGINE, "Share of the KV blocks that running requests hold (0 to 1)."),
    Family(_P + "engine_prompt_tokens_total", "counter", _ENGINE, "Prompt tokens, as the engine counts them."),
    Family(_P + "engine_generation_tokens_total", "counter", _ENGINE, "Generated tokens, as the engine counts them."),
    Family(_P + "engine_prefix_queries_total", "counter", _ENGINE, "Tokens looked up in the engine's prefix cache."),
    Family(_P + "engine_prefix_hits_total", "counter", _ENGINE, "Of those, the tokens found."),
    Family(
        _P + "engine_preemptions_total", "counter", _ENGINE, "Requests that the engine put back for lack of KV blocks."
    ),
    Family(_P + "engine_sleeping", "gauge", _ENGINE, "1 while the engine sleeps."),
    Family(_P + "engine_signals_age_seconds", "gauge", _ENGINE, "Age of the engine's signals; absent until it spoke."),
    Family(_P + "fleet_version", "gauge", (), "Snapshots of the fleet seen so far."),
    Family(
        _P + "fleet_age_seconds",
        "gauge",
        (),
        "Time since the cluster last said how things are; absent where a file says it.",
    ),
    Family(_P + "membership_epoch", "gauge", (), "Changes of the set of instances that homes are computed over."),
    Family(_P + "loop_lag_seconds", "gauge", ("quantile",), "How late the event loop wakes, of the latest worker."),
    Family(_P + "uptime_seconds", "gauge", (), "Time since the gateway's counters began."),
    Family(_P + "keys_refused_total", "counter", (), "Requests whose API key was missing or unknown."),
    Family(_P + "workers", "gauge", (), "Worker processes that serve and answer."),
    Family(_P + "worker_deaths_total", "counter", (), "Workers that ended unasked; each was started again."),
    Family(
        _P + "access_log_dropped_total",
        "counter",
        (),
        "Lines that the access log could not take in time; absent while it is off.",
    ),
    Family(_P + "spans_exported_total", "counter", (), "Spans that the collector took; absent while tracing is off."),
    Family(_P + "spans_dropped_total", "counter", (), "Spans that it did not take, or not in time."),
    Family(_P + "redis_connected", "gauge", (), "1 while Redis answers; absent when none is configured."),
    Family(_P + "redis_published_total", "counter", (), "Decisions told to other gateways."),
    Family(_P + "redis_dropped_total", "counter", (), "Decisions dropped because too many waited for Redis."),
    Family(_P + "redis_refused_total", "counter", (), "Decisions that Redis would not take."),
    Family(
        _P + "index_instances",
        "gauge",
        ("model", "state"),
        "Instances by how far it is known what they hold; absent for models none of whose instances tells it.",
    ),
    Family(
        _P + "index_predicted_tokens_total",
        "counter",
        _INSTANCE,
        "Cached tokens that the index credited; answers that reported theirs, absent until one did.",
    ),
    Family(_P + "index_reported_tokens_total", "counter", _INSTANCE, "Cached tokens that those answers reported."),
    Family(_P + "index_prediction_ratio", "gauge", _INSTANCE, "The first of these to the second, since the start."),
    Family(_P + "index_unreported_total", "counter", _INSTANCE, "Answers that did not report their cached tokens."),
    Family(
        _P + "index_late_total", "counter", _INSTANCE, "Answers that missed what the engine had just lost; no drift."
    ),
    Family(_P + "index_quarantined", "gauge", _INSTANCE, "1 while what the index tells of the instance is not used."),
    Family(
        _P + "index_quarantines_total", "counter", _INSTANCE, "Times that predictions drifted from what was reported."
    ),
    Family(_P + "index_blocks", "gauge", _INSTANCE, "Different blocks that the instance holds, in whatever memory."),
    Family(_P + "index_unique_blocks", "gauge", _INSTANCE, "Of these, how many no other instance holds."),
    Family(
        _P + "index_unique_used_blocks", "gauge", _INSTANCE, "Of those, how many were in prompts of the last minutes."
    ),
    Family(
        _P + "index_scale_down_rank",
        "gauge",
        _INSTANCE,
        "1: the cheapest instance of the model to lose; absent where that cannot be told.",
    ),
    Family(_P + "index_links", "gauge", _MODEL, "Blocks of prompt text whose place in the index is known."),
    Family(_P + "index_links_lowered_total", "counter", _MODEL, "Links that another prompt contradicted."),
    Family(_P + "index_prompts_learned_total", "counter", _MODEL, "Prompts that were linked to the index."),
    Family(_P + "peers", "gauge", (), "Other gateways that are heard through Redis; absent when none is configured."),
    Family(
        _P + "peer_age_seconds", "gauge", (), "Since the last word of the one that is silent longest; absent without."
    ),
    Family(_P + "peer_in_flight", "gauge", (), "Requests that other gateways have in flight, as they last told."),
    Family(_P + "peer_sent_total", "counter", (), "Prompts of which other gateways were told where they were sent."),
    Family(_P + "peer_heard_total", "counter", (), "Prompts of which other gateways told where they were sent."),
    Family(
        _P + "peer_dropped_total", "counter", (), "Prompts that others were not told of: Redis was away or refused."
    ),
    Family(_P + "peer_missed_total", "counter", (), "Batches of other gateways that were lost before they were read."),
    Family(_P + "peer_poisoned_total", "counter", (), "Values in Redis that could not be read; they are passed over."),
    Family(_P + "hot_tables_kept", "gauge", (), "Models whose table of hot prefixes this gateway keeps for all."),
    Family(
        _P + "hot_table_stale_seconds", "gauge", (), "Age of the oldest table that nobody could renew; absent without."
    ),
    Family("gen_ai_server_time_to_first_token_seconds", "histogram", _GENAI, "OpenTelemetry's name of ttft_seconds."),
    Family("gen_ai_server_time_per_output_token_seconds", "histogram", _GENAI, "OpenTelemetry's name of tpot_seconds."),
    Family("gen_ai_server_request_duration_seconds", "histogram", _GENAI, "OpenTelemetry's name of duration_seconds."),
    Family(
        "gen_ai_client_token_usage",
        "histogram",
        (*_GENAI, "gen_ai_token_type"),
        "OpenTelemetry's name of request_prompt_tokens (input) and request_output_tokens (output).",
    ),
    Family("inference_objective_request_total", "counter", _OBJECTIVE, "Gateway API Inference's name: requests ended."),
    Family(
        "inference_objective_request_error_total",
        "counter",
        (*_OBJECTIVE, "error_code"),
        "Gateway API Inference's name: requests answered 4xx or 5xx.",
    ),
    Family(
        "inference_objective_request_duration_seconds",
        "histogram",
        _OBJECTIVE,
        "Gateway API Inference's name of duration_seconds.",
    ),
    Family(
        "inference_objective_input_tokens",
        "histogram",
        _OBJECTIVE,
        "Gateway API Inference's name of request_prompt_tokens.",
    ),
    Family(
        "inference_objective_output_tokens",
        "histogram",
        _OBJECTIVE,
        "Gateway API Inference's name of request_output_tokens.",
    ),
    Family(
        "inference_objective_running_requests", "gauge", ("model_name",), "Gateway API Inference's name of in_flight."
    ),
    Family(
        "inference_pool_average_kv_cache_utilization",
        "gauge",
        _POOL,
        "Mean KV usage over the pool's instances that told it; absent when none did.",
    ),
    Family(
        "inference_pool_average_queue_size",
        "gauge",
        _POOL,
        "Mean of the engines' own queues over the pool's instances that told it; absent when none did.",
    ),
    Family(
        "inference_pool_per_pod_queue_size",
        "gauge",
        (*_POOL, "model_server_pod"),
        "The queue of one engine, as it says.",
    ),
    Family("inference_pool_ready_pods", "gauge", _POOL, "Ready instances of the pool."),
    Family(_E + "request_total", "counter", _OBJECTIVE, f"{_IS}: requests ended."),
    Family(_E + "request_error_total", "counter", (*_OBJECTIVE, "error_code"), f"{_IS}: requests answered 4xx or 5xx."),
    Family(_E + "request_duration_seconds", "histogram", _OBJECTIVE, f"{_IS} of duration_seconds."),
    Family(
        _E + "request_ttft_seconds",
        "histogram",
        (*_OBJECTIVE, "streaming"),
        f"{_IS} of ttft_seconds, which only streams have.",
    ),
    Family(_E + "request_streaming_tpot_seconds", "histogram", _OBJECTIVE, f"{_IS} of tpot_seconds."),
    Family(_E + "request_streaming_itl_seconds", "histogram", _OBJECTIVE, f"{_IS} of itl_seconds."),
    Family(_E + "request_input_tokens", "histogram", _OBJECTIVE, f"{_IS} of request_prompt_tokens."),
    Family(_E + "request_output_tokens", "histogram", _OBJECTIVE, f"{_IS} of request_output_tokens."),
    Family(_E + "request_running", "gauge", _OBJECTIVE, f"{_IS} of in_flight."),
    Family(_E + "average_kv_cache_utilization", "gauge", _POOL, f"{_IS}: mean KV usage of the pool's instances."),
    Family(_E + "average_queue_size", "gauge", _POOL, f"{_IS}: mean of the engines' own queues."),
    Family(_E + "average_running_requests", "gauge", _POOL, f"{_IS}: mean of the engines' own batches."),
    Family(
        _E + "per_endpoint_queue_size", "gauge", (*_POOL, "model_server_endpoint"), f"{_IS}: the queue of one engine."
    ),
    Family(_E + "ready_endpoints", "gauge", _POOL, f"{_IS}: ready instances of the pool."),
)
"""In the order in which a scrape shows them."""
