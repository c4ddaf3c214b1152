"""Answers of the gateway's management API: what it sends and what the command line reads.

The gateway's OpenAPI description is made from these types: a name, its type and, in the list of
its class, its text. Null means unknown, not zero. An answer of an older gateway may lack a field;
it then has the value that is written here.
"""

from msgspec import Struct

from fairlead.audit.record import AuditRecord
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.routes.model import Shadow


class ReadyOut(Struct, frozen=True):
    """The readiness of this gateway.

    - notes: Texts about what is wrong or degraded; a ready gateway can have some.
    """

    ready: bool
    notes: list[str]


class ObjectivesOut(Struct, frozen=True):
    """The latency targets of a model's requests.

    - target: Share of requests that must meet the latency targets, 0 to 1.
    """

    target: float = 0.95
    ttft_seconds: float | None = None
    ttft_per_kilo_token_seconds: float = 0.0
    itl_seconds: float | None = None


class SignalsOut(Struct, frozen=True):
    """The last metrics of the engine.

    - kv_usage: Share of KV blocks in use by running requests, 0 to 1.
    - prefix_hit_share: Prefix-cache hits per queried token since the engine started.
    """

    age_seconds: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    prefix_hit_share: float | None = None
    preemptions_total: float | None = None
    sleeping: bool | None = None


class ScaleDownOut(Struct, frozen=True):
    """The cached content that the removal of an instance would lose.

    - blocks: Distinct blocks that it has cached, in any storage tier.
    - unique_blocks: Those that no other instance has cached.
    - unique_used_blocks: Unique blocks that were stored or used in the last minutes.
    """

    blocks: int = 0
    unique_blocks: int = 0
    unique_used_blocks: int | None = None


class IndexOut(Struct, frozen=True):
    """The router's knowledge of an instance's cache, and its accuracy.

    Token counts are sums since this gateway started.

    - state: index: all its cached blocks are known; incomplete: some are; quarantined: its KV
      events proved wrong and are not used; hashing only: it sends no KV events, so the prompts sent
      there count as cached.
    - reason: The reason for any state but index, as text.
    - predicted_tokens: Cached tokens that the index predicted, over the answers that reported their
      cached tokens.
    - reported_tokens: Cached tokens that these answers reported.
    - ratio: Predicted tokens per reported token.
    - answers: Answers that reported their cached tokens.
    - silent: Answers that did not report them; they do not count.
    - late: Answers with fewer cached tokens than predicted because the engine evicted them
      meanwhile; not drift.
    - scale_down: Null if the instance sends no KV events.
    """

    state: str = ""
    reason: str | None = None
    predicted_tokens: int = 0
    reported_tokens: int = 0
    ratio: float | None = None
    answers: int = 0
    silent: int = 0
    late: int = 0
    quarantines: int = 0
    scale_down: ScaleDownOut | None = None


class LinksOut(Struct, frozen=True):
    """The prefix map: links from prompt text to the token blocks of KV events.

    - blocks: Blocks of prompt text that are linked to token blocks.
    - lowered: Links that another prompt contradicted, cut to the prefix that both share.
    - prompts: Prompts that the links were learned from.
    - how: The source of the prompts' tokens, as text.
    """

    blocks: int = 0
    lowered: int = 0
    prompts: int = 0
    how: str = ""


class ProfileOut(Struct, frozen=True):
    """The engine profile with which the gateway routes requests to an instance.

    - learned: True if learned from requests; false while it is the assumed profile.
    - prefill_kilotoken_seconds: Seconds to prefill 1,000 tokens, none of them cached.
    - prefill_ten_kilotokens_seconds: Seconds to prefill 10,000 tokens, none of them cached.
    - decode_step_seconds: Seconds of one decode step of 16 sequences of 1,000 tokens.
    - coefficients: The whole `profile`, as in a fleet file.
    - pace: Seconds that it takes for one second of work of its pool.
    - spans: Weight of the observations behind it; older ones count less.
    - error: Mean relative error of the last single predictions.
    """

    learned: bool = False
    prefill_kilotoken_seconds: float = 0.0
    prefill_ten_kilotokens_seconds: float = 0.0
    decode_step_seconds: float = 0.0
    coefficients: dict[str, str | int | float] = {}
    pace: float = 0.0
    spans: float = 0.0
    error: float | None = None


class InstanceOut(Struct, frozen=True):
    """One instance: its state, its in-flight load from this gateway, and its signals.

    - adapters: LoRA adapters that it holds, as far as the gateway knows.
    - waiting: Requests sent there that have no first token yet.
    - backlog_seconds: Engine time of the work already sent there.
    - standing: The health state: Healthy, Ejected, Probing or WarmingUp.
    - standing_reason: The reason for any health state but Healthy, as text.
    - ejection: Null unless it is ejected, may hang, and has not answered since.
    - answer_age_seconds: Seconds since its last answer to a worker; null without one.
    - index: Null if no instance of the model sends KV events.
    - profile: Null if nothing is learned, as with prefill instances.
    """

    id: str
    pool: str = "main"
    url: str = ""
    engine: str = ""
    role: str = ""
    state: str = ""
    weight: float = 0.0
    adapters: list[str] = []
    in_flight: int | None = None
    waiting: int | None = None
    backlog_seconds: float | None = None
    in_flight_tokens: float | None = None
    standing: str | None = None
    standing_reason: str | None = None
    ejection: EjectionReport | None = None
    answer_age_seconds: float | None = None
    signals: SignalsOut | None = None
    index: IndexOut | None = None
    profile: ProfileOut | None = None


class LostInstanceOut(Struct, frozen=True):
    """An instance that left the fleet without being drained.

    - seconds: Seconds since then.
    """

    id: str
    seconds: float = 0.0


class ModelOut(Struct, frozen=True):
    """One model with its instances.

    - key: namespace/name
    - wakes: True if a request waits for an instance to start or wake when none serves.
    - links: Null if no instance of the model sends KV events.
    - lost: Instances that are gone and not replaced, of the last five minutes.
    """

    key: str
    namespace: str
    name: str
    preset: str = ""
    wakes: bool = False
    objectives: ObjectivesOut = ObjectivesOut()
    links: LinksOut | None = None
    instances: list[InstanceOut] = []
    lost: list[LostInstanceOut] = []


class DeclaredFallbackOut(Struct, frozen=True):
    """A model that answers where another one of the route has not.

    - when: The kinds of failures after which it may answer.
    - after: The model that must have failed; null: any target, or a fallback above.
    """

    model: str
    when: list[str] = []
    after: str | None = None


class DeclaredRouteOut(Struct, frozen=True):
    """A route: a name for clients that stands for models.

    - key: namespace/name
    - names: Its other names for clients.
    - targets: Weights by model, of requests that no override takes.
    - overrides: Number of rules for requests with some headers or of some tenants.
    - shadow: The model that gets copies; null: none does.
    """

    key: str
    names: list[str] = []
    targets: dict[str, int] = {}
    overrides: int = 0
    fallbacks: list[DeclaredFallbackOut] = []
    shadow: Shadow | None = None


class FleetOut(Struct, frozen=True):
    """The fleet that requests are routed over."""

    version: int = 0
    membership_epoch: int = 0
    models: list[ModelOut] = []
    routes: list[DeclaredRouteOut] = []


class QuantilesOut(Struct, frozen=True):
    """Quantiles in seconds, null without an observation.

    They come from a histogram and are accurate to about 10 %.
    """

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    mean: float | None = None


class SliceOut(Struct, frozen=True):
    """Counts and latencies of one time window.

    - requests: Requests that ended, the gateway's own refusals included.
    - overhead_seconds: The gateway's own time without queues; buckets from 10 µs.
    - within_objective: Share of assessed requests that met all latency targets.
    - cached_token_share: Share of prompt tokens that were cached, where engines reported it.
    - predicted_cached_token_share: Share of the same tokens that the router predicted to be cached.
    - load_cov: Standard deviation over mean of computed prompt tokens per instance; 0 is an even
      load.
    """

    seconds: float = 0.0
    requests: int = 0
    requests_per_second: float = 0.0
    errors: int = 0
    aborts: int = 0
    rejected: int = 0
    retries: int = 0
    ttft_seconds: QuantilesOut = QuantilesOut()
    itl_seconds: QuantilesOut = QuantilesOut()
    overhead_seconds: QuantilesOut = QuantilesOut()
    within_objective: float | None = None
    cached_token_share: float | None = None
    predicted_cached_token_share: float | None = None
    share_on_homes: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    load_cov: float | None = None


class InstanceTotalsOut(Struct, frozen=True):
    """The totals of one instance since the gateway started.

    - ttft_seconds: Sum over all first tokens.
    - gaps: Gaps between the tokens of streams.
    - gap_seconds: Sum over all gaps.
    - answers: Complete answers whose length is known.
    - log_tokens: Sum of the natural logarithms of their lengths in tokens.
    - computed_tokens: Tokens of prompts that were not cached.
    """

    attempts: int = 0
    errors: int = 0
    first_tokens: int = 0
    ttft_seconds: float = 0.0
    gaps: int = 0
    gap_seconds: float = 0.0
    answers: int = 0
    log_tokens: float = 0.0
    computed_tokens: int = 0


class InstanceStatsOut(Struct, frozen=True):
    """The last minute of one instance.

    - share_of_work: Share of the model's computed prompt and generated tokens.
    """

    requests: int = 0
    errors: int = 0
    ttft_mean_seconds: float | None = None
    itl_mean_seconds: float | None = None
    computed_tokens: int = 0
    output_tokens: int = 0
    share_of_work: float | None = None
    totals: InstanceTotalsOut = InstanceTotalsOut()


class ShadowSideOut(Struct, frozen=True):
    """The answers of one of two models to the same requests. A mean is null if none is known.

    - ttft_mean_seconds: From its dispatch to an engine, of streams.
    - tpot_mean_seconds: Of streams.
    """

    errors: int = 0
    ttft_mean_seconds: float | None = None
    tpot_mean_seconds: float | None = None
    output_tokens_mean: float | None = None


class ShadowOut(Struct, frozen=True):
    """Comparison of a model that gets copies of requests with the model that was asked.

    - original: Key of the model that was asked.
    - outcomes: Requests that were to be copied, by outcome.
    - compared: Requests that both models have answered, or failed.
    """

    original: str
    outcomes: dict[str, int] = {}
    compared: int = 0
    copies: ShadowSideOut = ShadowSideOut()
    originals: ShadowSideOut = ShadowSideOut()


class ModelStatsOut(Struct, frozen=True):
    """The numbers of one model: now, in the last minute, and since the gateway started.

    - queue: Requests in flight without a first token.
    - decisions: Decisions by rule since the start.
    - shadows: By model whose requests are copied to this one.
    """

    in_flight: int = 0
    queue: int = 0
    window: SliceOut = SliceOut()
    totals: SliceOut = SliceOut()
    decisions: dict[str, int] = {}
    instances: dict[str, InstanceStatsOut] = {}
    shadows: list[ShadowOut] = []


class OtherGatewayOut(Struct, frozen=True):
    """A peer: another gateway that this one receives messages from through Redis.

    - age_seconds: Seconds since its last message.
    """

    name: str
    age_seconds: float = 0.0


class StatsOut(Struct, frozen=True):
    """The numbers of the whole gateway.

    - wall: Time of this answer in Unix seconds.
    - gateways: Peers with recent messages; null without Redis.
    - unknown_model_requests: Requests of the last minute that named no model of the fleet, or were
        refused before they were bound to one.
    """

    version: str = ""
    wall: float = 0.0
    uptime_seconds: float = 0.0
    ready: bool = False
    notes: list[str] = []
    loop_lag_p99_seconds: float | None = None
    gateways: list[OtherGatewayOut] | None = None
    unknown_model_requests: int = 0
    models: dict[str, ModelStatsOut] = {}


class NumberOut(Struct, frozen=True):
    """An input of a decision and its age; the age is null if it was computed for the decision."""

    value: float | None = None
    age_seconds: float | None = None


class CandidateOut(Struct, frozen=True):
    """One candidate of a decision.

    - why: The reason why the instance was chosen or not, as text.
    """

    id: str
    chosen: bool = False
    why: str = ""
    inputs: dict[str, NumberOut] = {}


class ChoiceOut(Struct, frozen=True):
    """One decision with its rule, reason and candidates.

    - inputs: Inputs that belong to no single candidate.
    """

    attempt: int = 1
    wall: float = 0.0
    instance: str | None = None
    rule: str = ""
    reason: str = ""
    cost_seconds: float | None = None
    candidates: list[CandidateOut] = []
    inputs: dict[str, NumberOut] = {}


class FailureOut(Struct, frozen=True):
    """An attempt that failed before the client received a byte.

    - why: Cause of the failure, such as refused, timeout or status-503.
    """

    instance: str = ""
    why: str = ""


class OutcomeOut(Struct, frozen=True):
    """The outcome of a request.

    - overhead_seconds: The gateway's own time before the dispatch, without queued_seconds; null
      after a failed attempt.
    - queued_seconds: Waits in the gateway's queues for an engine, in all attempts.
    - failures: Attempts that failed before the client received a byte, oldest first.
    - continued: True if the rest of a broken stream was requested from another instance.
    - break_seconds: Longest pause that the client saw while an instance took the stream over.
    - recomputed_tokens: Tokens of prompt and answer that those instances computed again.
    - not_continued: Why no instance continued a stream that broke, in one word; empty without one.
    """

    status: int = 0
    error: str | None = None
    client_gone: bool = False
    attempts: int = 1
    duration_seconds: float = 0.0
    ttft_seconds: float | None = None
    itl_mean_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    predicted_cached_tokens: int | None = None
    output_tokens: int | None = None
    within_objective: bool | None = None
    overhead_seconds: float | None = None
    queued_seconds: float = 0.0
    failures: list[FailureOut] = []
    continued: bool = False
    break_seconds: float | None = None
    recomputed_tokens: int = 0
    not_continued: str = ""


class PrefillLegOut(Struct, frozen=True):
    """One attempt at a prefill instance.

    - inputs: Inputs that belong to no single candidate.
    - seconds: Seconds from request to answer; null while it runs.
    - result: pending, ok, or one word for the failure.
    """

    instance: str
    rule: str = ""
    reason: str = ""
    cost_seconds: float | None = None
    candidates: list[CandidateOut] = []
    inputs: dict[str, NumberOut] = {}
    seconds: float | None = None
    result: str = ""


class WhereOut(Struct, frozen=True):
    """The decision where to prefill: on the decode instance or on a prefill instance.

    - instance: Null if no prefill instance is ready.
    - inputs: Inputs that belong to no single candidate.
    """

    instance: str | None = None
    rule: str = ""
    reason: str = ""
    candidates: list[CandidateOut] = []
    inputs: dict[str, NumberOut] = {}


class HandoffOut(Struct, frozen=True):
    """The hand-off of a request from prefill to decode.

    - outcome: pending, done, bypassed or failed; with the latter two, one instance serves all.
    - reason: One word of a closed list; if the outcome is done, the rule of the decision.
    - where: Null if the request cannot be split, or no instance could answer.
    - waited_seconds: Seconds before a decode instance could be chosen.
    - legs: Attempts at prefill instances, oldest first.
    """

    outcome: str = ""
    reason: str = ""
    words: str = ""
    where: WhereOut | None = None
    waited_seconds: float = 0.0
    legs: list[PrefillLegOut] = []


class FallbackOut(Struct, frozen=True, kw_only=True):
    """A model that has not answered, and the one that got the request instead.

    - kind: The kind of the failure, as in `onFailure[].when`.
    """

    failed: str
    kind: str = ""
    model: str
    reason: str = ""


class RouteOut(Struct, frozen=True):
    """The choice of a model by a route.

    - name: The name that the client wrote.
    - route: The route, as namespace/name.
    - fallbacks: Models that answered for others, in order.
    - withheld: Models outside the cluster that would have been next, which the tenant refuses.
    """

    name: str
    route: str = ""
    reason: str = ""
    fallbacks: list[FallbackOut] = []
    withheld: list[str] = []


class DecisionOut(Struct, frozen=True):
    """The choices of one request, oldest first, and its outcome, null while it runs.

    - prompt_tokens: The estimate at the time of the choice.
    - caller: The tenant of the client's key or token; null if none is required.
    - route: Null if the client named the model itself.
    - kept_back: Fields and headers of the request that its engine did not get.
    - handoff: Null unless the model has prefill engines.
    """

    request_id: str
    model: str = ""
    wall: float = 0.0
    prompt_tokens: float = 0.0
    caller: str | None = None
    route: RouteOut | None = None
    kept_back: list[str] = []
    handoff: HandoffOut | None = None
    choices: list[ChoiceOut] = []
    outcome: OutcomeOut | None = None


class RoutePreviewOut(Struct, frozen=True):
    """The decision that a request would get now; nothing was sent.

    - decision: The same as of a real request, without an outcome.
    - workers: Number of workers that answered; the decision is that of the first.
    - agreeing: Number of these workers that choose the same instance.
    - fallbacks: The fallbacks of the route that the request names, in its order.
    """

    decision: DecisionOut
    workers: int
    agreeing: int
    fallbacks: list[DeclaredFallbackOut] = []


class DecisionsOut(Struct, frozen=True):
    """Decisions, newest first."""

    decisions: list[DecisionOut] = []


class ErrorBodyOut(Struct, frozen=True):
    """An error in the format of OpenAI, with a hint what to do."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    hint: str | None = None


class ErrorOut(Struct, frozen=True):
    """The body of every answer but 200; `/readyz` has its own body with 503."""

    error: ErrorBodyOut


class KeyUseOut(Struct, frozen=True, kw_only=True):
    """An API key of a tenant.

    - digest: The first 12 digits of the key's digest.
    - expires_at: Unix seconds; null if it does not expire.
    - last_used_at: Unix seconds, to the minute; null if it was not used since this gateway started.
    """

    name: str = ""
    digest: str
    expires_at: float | None = None
    last_used_at: float | None = None


class TenantOut(Struct, frozen=True):
    """A tenant with its keys."""

    name: str
    tier: str = ""
    weight: int = 0
    is_suspended: bool = False
    keys: list[KeyUseOut] = []


class TenantsOut(Struct, frozen=True):
    """The tenants that the token may see, by name.

    - started_at: Since when this gateway counts uses, in Unix seconds; null if it has no tenants.
    """

    started_at: float | None = None
    tenants: list[TenantOut] = []


class AuditOut(Struct, frozen=True):
    """Audit records of this gateway, newest first."""

    records: list[AuditRecord] = []


class LimitOut(Struct, frozen=True):
    """One limit over all gateways. Null means that the store has not answered about it.

    - unit: The name of the amount in a ModelTenant's `limits`; cost in place of usd.
    - per: Minute, Day or Month; null for units that requests give back.
    - key: Name of the API key that it is for; null for all.
    - model: The model that it is for; null for all.
    - amount: Billionths of a US dollar for cost.
    - soft: It refuses nothing.
    - used: By all gateways, with slices that workers hold and debt of the last window.
    - available: The rest of the amount; negative after an overrun.
    - resets_at: Unix seconds of the end of the window.
    """

    tenant: str
    unit: str
    per: str | None
    key: str | None
    model: str | None
    amount: int
    soft: bool
    used: int | None
    available: int | None
    resets_at: float | None


class LimitsOut(Struct, frozen=True):
    """Limits by tenant."""

    limits: list[LimitOut]


class UsageTotalsOut(Struct, frozen=True):
    """The use of the requests of one group. Fields that are not grouped by are empty.

    - day: UTC day on which the requests ended.
    - key: Name of the API key.
    - dialect: Such as chat, messages or responses.
    - failed: Requests with a status of 400 or more; disconnected clients count.
    - estimated: Requests whose tokens the engine did not report.
    - unpriced: Requests for models without a price; they are not in cost_nano_usd.
    - cached_tokens: The part of input_tokens that engines had in their KV caches.
    - cost_nano_usd: By the prices of the models, in billionths of a US dollar.
    - saved_nano_usd: How much more the cached tokens would have cost otherwise.
    """

    # Why its own fields: those of `UsageTotals` have other names in the ledger's files.
    day: str = ""
    tenant: str = ""
    key: str = ""
    model: str = ""
    adapter: str = ""
    dialect: str = ""
    pool: str = ""
    requests: int = 0
    failed: int = 0
    estimated: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    saved_nano_usd: int = 0
    engine_microseconds: int = 0


class ReplicaSpanOut(Struct, frozen=True):
    """A replica from second `start` until before second `end`, as a gateway saw it.

    - nano_usd_per_hour: Null if its accelerator class has no costPerHour.
    """

    replica: str
    start: int
    end: int
    model: str
    pool: str
    state: str
    nano_usd_per_hour: int | None = None


class BudgetOut(Struct, frozen=True, kw_only=True):
    """A budget of a tenant in its present window.

    - start: Begin of the window in Unix seconds.
    - used_nano_usd: Spent over all gateways, with what the last window overspent.
    - used_share: Above 1 after an overrun.
    - soft: Requests go on when it is used up.
    """

    tenant: str
    start: float = 0.0
    end: float
    used_nano_usd: int
    amount_nano_usd: int
    used_share: float
    soft: bool


class BudgetsOut(Struct, frozen=True):
    """The budgets that this gateway knows, the most used first."""

    budgets: list[BudgetOut] = []


class UsageOut(Struct, frozen=True):
    """Usage by group. Gateways that share a ledger answer the same, and name the same ledger.

    - ledger: Id of the folder. Count answers with the same id once.
    - first_day: At most 400 days before last_day, whatever was asked for.
    - replicas: Empty unless asked for.
    - broken: Lines that could not be read, such as the last one before a crash.
    - lost: Records that this gateway could not write since it started.
    """

    ledger: str
    first_day: str = ""
    last_day: str = ""
    usage: list[UsageTotalsOut] = []
    replicas: list[ReplicaSpanOut] = []
    broken: int = 0
    lost: int = 0
