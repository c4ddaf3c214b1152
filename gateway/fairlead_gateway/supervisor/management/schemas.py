"""The types of the management API's JSON, from which OpenAPI is generated.

Null means unknown, not zero.
"""

from pydantic import BaseModel, ConfigDict, Field


class ResponseModel(BaseModel):
    """Base of all types of answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ReadyOut(ResponseModel):
    """The readiness of this gateway."""

    ready: bool
    notes: list[str] = Field(description="Texts about what is wrong or degraded; a ready gateway can have some.")


class ObjectivesOut(ResponseModel):
    """The latency targets of a model's requests."""

    target: float = Field(description="Share of requests that must meet the latency targets, 0 to 1.")
    ttft_seconds: float | None
    ttft_per_kilo_token_seconds: float
    itl_seconds: float | None


class SignalsOut(ResponseModel):
    """The last metrics of the engine."""

    age_seconds: float | None
    running: float | None
    waiting: float | None
    kv_usage: float | None = Field(description="Share of KV blocks in use by running requests, 0 to 1.")
    prefix_hit_share: float | None = Field(description="Prefix-cache hits per queried token since the engine started.")
    preemptions_total: float | None
    sleeping: bool | None


class ScaleDownOut(ResponseModel):
    """The cached content that the removal of an instance would lose."""

    rank: int | None = Field(
        description="1 is the cheapest instance of the model to remove. Null while its cached blocks are not all known."
    )
    blocks: int = Field(description="Distinct blocks that it has cached, in any storage tier.")
    unique_blocks: int = Field(description="Those that no other instance has cached.")
    unique_used_blocks: int | None = Field(description="Unique blocks that were in prompts of the last minutes.")
    reason: str


class IndexOut(ResponseModel):
    """The router's knowledge of an instance's cache, and its accuracy.

    Token counts are sums since this gateway started.
    """

    state: str = Field(
        description="index: all its cached blocks are known; incomplete: some are; stale: no new KV events arrive; quarantined: its "
        "KV events proved wrong and are not used; hashing only: it sends no KV events, so the prompts sent there count as cached."
    )
    reason: str | None = Field(description="The reason for any state but index, as text.")
    predicted_tokens: int = Field(
        description="Cached tokens that the index predicted, over the answers that reported their cached tokens."
    )
    reported_tokens: int = Field(description="Cached tokens that these answers reported.")
    ratio: float | None = Field(description="Predicted tokens per reported token.")
    answers: int = Field(description="Answers that reported their cached tokens.")
    silent: int = Field(description="Answers that did not report them; they do not count.")
    late: int = Field(
        description="Answers with fewer cached tokens than predicted because the engine evicted them meanwhile; not drift."
    )
    quarantines: int
    scale_down: ScaleDownOut | None = Field(description="Null if the instance sends no KV events.")


class LinksOut(ResponseModel):
    """The prefix map: links from prompt text to the token blocks of KV events."""

    blocks: int = Field(description="Blocks of prompt text that are linked to token blocks.")
    lowered: int = Field(description="Links that another prompt contradicted, cut to the prefix that both share.")
    prompts: int = Field(description="Prompts that the links were learned from.")
    how: str = Field(description="The source of the prompts' tokens, as text.")


class ProfileOut(ResponseModel):
    """The engine profile with which the gateway routes requests to an instance."""

    learned: bool = Field(description="True if learned from requests; false while it is the assumed profile.")
    prefill_kilotoken_seconds: float = Field(description="Seconds to prefill 1,000 tokens, none of them cached.")
    prefill_ten_kilotokens_seconds: float = Field(description="Seconds to prefill 10,000 tokens, none of them cached.")
    decode_step_seconds: float = Field(description="Seconds of one decode step of 16 sequences of 1,000 tokens.")
    coefficients: dict[str, str | int | float] = Field(description="The whole `profile`, as in a fleet file.")
    pace: float = Field(description="Seconds that it takes for one second of work of its pool.")
    spans: float = Field(description="Weight of the observations behind it; older ones count less.")
    error: float | None = Field(description="Mean relative error of the last single predictions.")


class EjectionOut(ResponseModel):
    """An ejection by failures with which an engine may hang; load is none of them."""

    seconds: float = Field(description="Seconds since the ejection, without any answer since then.")
    cause: str = Field(description="The failures that led to it, as text.")
    failed_probes: int = Field(description="Probes of the gateway itself that failed since; each asks for one token.")
    workers: int = Field(description="Number of workers that have ejected it.")


class InstanceOut(ResponseModel):
    """One instance: its state, its in-flight load from this gateway, and its signals."""

    id: str
    pool: str
    url: str
    engine: str
    role: str
    state: str
    weight: float
    adapters: list[str] = Field(description="LoRA adapters that it holds, as far as the gateway knows.")
    in_flight: int | None
    waiting: int | None = Field(description="Requests sent there that have no first token yet.")
    backlog_seconds: float | None = Field(description="Engine time of the work already sent there.")
    in_flight_tokens: float | None
    standing: str | None = Field(description="The health state: Healthy, Ejected, Probing or WarmingUp.")
    standing_reason: str | None = Field(description="The reason for any health state but Healthy, as text.")
    ejection: EjectionOut | None = Field(description="Null unless it is ejected, may hang, and has not answered since.")
    answer_age_seconds: float | None = Field(description="Seconds since its last answer to a worker; null without one.")
    signals: SignalsOut | None
    index: IndexOut | None = Field(description="Null if no instance of the model sends KV events.")
    profile: ProfileOut | None = Field(description="Null if nothing is learned, as with prefill instances.")


class ModelOut(ResponseModel):
    """One model with its instances."""

    key: str = Field(description="namespace/name")
    namespace: str
    name: str
    preset: str
    wakes: bool = Field(description="True if a request waits for an instance to start or wake when none serves.")
    objectives: ObjectivesOut
    links: LinksOut | None = Field(description="Null if no instance of the model sends KV events.")
    instances: list[InstanceOut]


class DeclaredFallbackOut(ResponseModel):
    """A model that answers where another one of the route has not."""

    model: str
    when: list[str] = Field(description="The kinds of failures after which it may answer.")
    after: str | None = Field(description="The model that must have failed; null: any target, or a fallback above.")


class DeclaredShadowOut(ResponseModel):
    """The model that gets copies of a route's requests. `/api/stats` has what became of them."""

    model: str = Field(description="Its key.")
    percent: int = Field(description="Share of the conversations whose requests are copied.")


class DeclaredRouteOut(ResponseModel):
    """A route: a name for clients that stands for models."""

    key: str = Field(description="namespace/name")
    names: list[str] = Field(description="Its other names for clients.")
    targets: dict[str, int] = Field(description="Weights by model, of requests that no override takes.")
    overrides: int = Field(description="Number of rules for requests with some headers or of some tenants.")
    fallbacks: list[DeclaredFallbackOut]
    shadow: DeclaredShadowOut | None = Field(description="The model that gets copies; null: none does.")


class FleetOut(ResponseModel):
    """The fleet that requests are routed over."""

    version: int
    membership_epoch: int
    models: list[ModelOut]
    routes: list[DeclaredRouteOut]


class QuantilesOut(ResponseModel):
    """Quantiles in seconds, null without an observation.

    They come from a histogram and are accurate to about 10 %.
    """

    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None


class SliceOut(ResponseModel):
    """Counts and latencies of one time window."""

    seconds: float
    requests: int = Field(description="Requests that ended, the gateway's own refusals included.")
    requests_per_second: float
    errors: int
    aborts: int
    rejected: int
    retries: int
    ttft_seconds: QuantilesOut
    itl_seconds: QuantilesOut
    overhead_seconds: QuantilesOut = Field(description="The gateway's own time without queues; buckets from 10 µs.")
    within_objective: float | None = Field(description="Share of assessed requests that met all latency targets.")
    cached_token_share: float | None = Field(
        description="Share of prompt tokens that were cached, where engines reported it."
    )
    predicted_cached_token_share: float | None = Field(
        description="Share of the same tokens that the router predicted to be cached."
    )
    share_on_homes: float | None
    prompt_tokens: int
    output_tokens: int
    load_cov: float | None = Field(
        description="Standard deviation over mean of computed prompt tokens per instance; 0 is an even load."
    )


class InstanceTotalsOut(ResponseModel):
    """The totals of one instance since the gateway started."""

    attempts: int
    errors: int
    first_tokens: int
    ttft_seconds: float = Field(description="Sum over all first tokens.")
    gaps: int = Field(description="Gaps between the tokens of streams.")
    gap_seconds: float = Field(description="Sum over all gaps.")
    answers: int = Field(description="Complete answers whose length is known.")
    log_tokens: float = Field(description="Sum of the natural logarithms of their lengths in tokens.")
    computed_tokens: int = Field(description="Tokens of prompts that were not cached.")


class InstanceStatsOut(ResponseModel):
    """The last minute of one instance."""

    requests: int
    errors: int
    ttft_mean_seconds: float | None
    itl_mean_seconds: float | None
    computed_tokens: int
    output_tokens: int
    share_of_work: float | None = Field(description="Share of the model's computed prompt and generated tokens.")
    totals: InstanceTotalsOut


class ShadowSideOut(ResponseModel):
    """The answers of one of two models to the same requests. A mean is null if none is known."""

    errors: int
    ttft_mean_seconds: float | None = Field(description="From its dispatch to an engine, of streams.")
    tpot_mean_seconds: float | None = Field(description="Of streams.")
    output_tokens_mean: float | None


class ShadowOut(ResponseModel):
    """Comparison of a model that gets copies of requests with the model that was asked."""

    original: str = Field(description="Key of the model that was asked.")
    outcomes: dict[str, int] = Field(description="Requests that were to be copied, by outcome.")
    compared: int = Field(description="Requests that both models have answered, or failed.")
    copies: ShadowSideOut
    originals: ShadowSideOut


class ModelStatsOut(ResponseModel):
    """The numbers of one model: now, in the last minute, and since the gateway started."""

    in_flight: int
    queue: int = Field(description="Requests in flight without a first token.")
    window: SliceOut
    totals: SliceOut
    decisions: dict[str, int] = Field(description="Decisions by rule since the start.")
    instances: dict[str, InstanceStatsOut]
    shadows: list[ShadowOut] = Field(description="By model whose requests are copied to this one.")


class OtherGatewayOut(ResponseModel):
    """A peer: another gateway that this one receives messages from through Redis."""

    name: str
    age_seconds: float = Field(description="Seconds since its last message.")


class StatsOut(ResponseModel):
    """The numbers of the whole gateway."""

    version: str
    wall: float = Field(description="Time of this answer in Unix seconds.")
    uptime_seconds: float
    ready: bool
    notes: list[str]
    loop_lag_p99_seconds: float | None
    gateways: list[OtherGatewayOut] | None = Field(description="Peers with recent messages; null without Redis.")
    unknown_model_requests: int = Field(description="Requests of the last minute that named no model of the fleet.")
    models: dict[str, ModelStatsOut]


class NumberOut(ResponseModel):
    """An input of a decision and its age; the age is null if it was computed for the decision."""

    value: float | None
    age_seconds: float | None


class CandidateOut(ResponseModel):
    """One candidate of a decision."""

    id: str
    chosen: bool
    why: str = Field(description="The reason why the instance was chosen or not, as text.")
    inputs: dict[str, NumberOut]


class ChoiceOut(ResponseModel):
    """One decision with its rule, reason and candidates."""

    attempt: int
    wall: float
    instance: str | None
    rule: str
    reason: str
    cost_seconds: float | None
    candidates: list[CandidateOut]
    inputs: dict[str, NumberOut] = Field(description="Inputs that belong to no single candidate.")


class FailureOut(ResponseModel):
    """An attempt that failed before the client received a byte."""

    instance: str
    why: str = Field(description="Cause of the failure, such as refused, timeout or status-503.")


class OutcomeOut(ResponseModel):
    """The outcome of a request."""

    status: int
    error: str | None
    client_gone: bool
    attempts: int
    duration_seconds: float
    ttft_seconds: float | None
    itl_mean_seconds: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    predicted_cached_tokens: int | None
    output_tokens: int | None
    within_objective: bool | None
    overhead_seconds: float | None = Field(
        description="The gateway's own time before the dispatch, without queued_seconds; null after a failed attempt."
    )
    queued_seconds: float = Field(description="Waits in the gateway's queues for an engine, in all attempts.")
    failures: list[FailureOut] = Field(
        description="Attempts that failed before the client received a byte, oldest first."
    )
    continued: bool = Field(description="True if the rest of a broken stream was requested from another instance.")


class PrefillLegOut(ResponseModel):
    """One attempt at a prefill instance."""

    instance: str
    rule: str
    reason: str
    cost_seconds: float | None
    candidates: list[CandidateOut]
    inputs: dict[str, NumberOut] = Field(description="Inputs that belong to no single candidate.")
    seconds: float | None = Field(description="Seconds from request to answer; null while it runs.")
    result: str = Field(description="pending, ok, or one word for the failure.")


class WhereOut(ResponseModel):
    """The decision where to prefill: on the decode instance or on a prefill instance."""

    instance: str | None = Field(description="Null if no prefill instance is ready.")
    rule: str
    reason: str
    candidates: list[CandidateOut]
    inputs: dict[str, NumberOut] = Field(description="Inputs that belong to no single candidate.")


class HandoffOut(ResponseModel):
    """The hand-off of a request from prefill to decode."""

    outcome: str = Field(description="pending, done, bypassed or failed; with the latter two, one instance serves all.")
    reason: str = Field(description="One word of a closed list; if the outcome is done, the rule of the decision.")
    words: str
    where: WhereOut | None = Field(description="Null if the request cannot be split, or no instance could answer.")
    waited_seconds: float = Field(description="Seconds before a decode instance could be chosen.")
    legs: list[PrefillLegOut] = Field(description="Attempts at prefill instances, oldest first.")


class FallbackOut(ResponseModel):
    """A model that has not answered, and the one that got the request instead."""

    failed: str
    kind: str = Field(description="The kind of the failure, as in `onFailure[].when`.")
    model: str
    reason: str


class RouteOut(ResponseModel):
    """The choice of a model by a route."""

    name: str = Field(description="The name that the client wrote.")
    route: str = Field(description="The route, as namespace/name.")
    reason: str
    fallbacks: list[FallbackOut] = Field(default_factory=list, description="Models that answered for others, in order.")
    withheld: list[str] = Field(
        default_factory=list,
        description="Models outside the cluster that would have been next, which the tenant refuses.",
    )


class DecisionOut(ResponseModel):
    """The choices of one request, oldest first, and its outcome, null while it runs."""

    request_id: str
    model: str
    wall: float
    prompt_tokens: float = Field(description="The estimate at the time of the choice.")
    caller: str | None = Field(description="The name of the client's API key; null if none is required.")
    route: RouteOut | None = Field(default=None, description="Null if the client named the model itself.")
    kept_back: list[str] = Field(
        default_factory=list, description="Fields and headers of the request that its engine did not get."
    )
    handoff: HandoffOut | None = Field(description="Null unless the model has prefill engines.")
    choices: list[ChoiceOut]
    outcome: OutcomeOut | None


class RoutePreviewOut(ResponseModel):
    """The decision that a request would get now; nothing was sent."""

    decision: DecisionOut = Field(description="The same as of a real request, without an outcome.")
    workers: int = Field(description="Number of workers that answered; the decision is that of the first.")
    agreeing: int = Field(description="Number of these workers that choose the same instance.")
    fallbacks: list[DeclaredFallbackOut] = Field(
        default_factory=list, description="The fallbacks of the route that the request names, in its order."
    )


class DecisionsOut(ResponseModel):
    """Decisions, newest first."""

    decisions: list[DecisionOut]


class ErrorBodyOut(ResponseModel):
    """An error in the format of OpenAI, with a hint what to do."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    hint: str | None = None


class ErrorOut(ResponseModel):
    """The body of every answer but 200; `/readyz` has its own body with 503."""

    error: ErrorBodyOut
