"""The JSON of the management API as types; OpenAPI is generated from them. Null is "not known" and never zero."""

from pydantic import BaseModel, ConfigDict, Field


class _ResponseModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReadyOut(_ResponseModel):
    """Whether this gateway answers requests."""

    ready: bool
    notes: list[str] = Field(description="What is wrong or degraded, in words; may be non-empty while ready.")


class ObjectivesOut(_ResponseModel):
    """What a request of the model should see."""

    target: float = Field(description="Share of requests that should meet the objectives, 0 to 1.")
    ttft_seconds: float | None
    ttft_per_kilo_token_seconds: float
    itl_seconds: float | None


class SignalsOut(_ResponseModel):
    """What the engine said of itself."""

    age_seconds: float | None
    running: float | None
    waiting: float | None
    kv_usage: float | None = Field(description="Share of KV blocks that running requests hold, 0 to 1.")
    prefix_hit_share: float | None = Field(
        description="Prefix-cache hits per token looked up since the engine started."
    )
    preemptions_total: float | None
    sleeping: bool | None


class ScaleDownOut(_ResponseModel):
    """What would be lost with an instance, so that the cheapest one can be chosen."""

    rank: int | None = Field(
        description="1: the cheapest of the model to lose. Null where that cannot be told, since it is not known all that it holds."
    )
    blocks: int = Field(description="Different blocks that it holds, in whatever memory.")
    unique_blocks: int = Field(description="Of these, how many no other instance holds.")
    unique_used_blocks: int | None = Field(description="Of those, how many were in prompts of the last minutes.")
    reason: str


class IndexOut(_ResponseModel):
    """What routing knows of an instance's cache, and how good that was. Tokens are sums since this gateway started."""

    state: str = Field(
        description="index: all that it holds is known; incomplete: a part; stale: nothing new is heard; quarantined: what is told "
        "does not hold, and is not used; hashing only: it does not tell, so what was sent there is taken for held."
    )
    reason: str | None = Field(description="Why it is not index, in words.")
    predicted_tokens: int = Field(description="Cached tokens that the index credited, of answers that reported theirs.")
    reported_tokens: int = Field(description="Cached tokens that those reported.")
    ratio: float | None = Field(description="Predicted to reported.")
    answers: int = Field(description="Answers that reported their cached tokens.")
    silent: int = Field(description="Answers that did not; they count for nothing.")
    late: int = Field(
        description="Answers that found less than was credited since the engine lost it meanwhile; no sign of drift."
    )
    quarantines: int
    scale_down: ScaleDownOut | None = Field(description="Null where it does not tell what it holds.")


class LinksOut(_ResponseModel):
    """How prompts are linked to what engines tell."""

    blocks: int = Field(description="Blocks of prompt text whose place in the index is known.")
    lowered: int = Field(
        description="Links that another prompt has contradicted, and that were lowered to what both share."
    )
    prompts: int = Field(description="Prompts that were learned.")
    how: str = Field(description="How that is learned, in words.")


class WantedOut(_ResponseModel):
    """A hot prefix that fewer instances hold than its share of the prompts keeps busy."""

    prefix: str = Field(description="The keyed hash of its text.")
    share: float = Field(description="Of the last prompts.")
    per_second: float
    tokens: int
    holders: int
    wanted: int = Field(description="Instances that should hold it.")
    worth: float = Field(description="Tokens a second that may be computed for lack of another home.")
    reason: str


class ProfileOut(_ResponseModel):
    """What an engine's work costs, as requests are routed by it."""

    learned: bool = Field(description="From its requests; otherwise it is assumed, and nothing contradicts it yet.")
    prefill_kilotoken_seconds: float = Field(description="To prefill 1,000 tokens, none of them cached.")
    prefill_ten_kilotokens_seconds: float = Field(description="To prefill 10,000.")
    decode_step_seconds: float = Field(description="A token of each of 16 answers that hold 1,000 tokens.")
    coefficients: dict[str, str | int | float] = Field(
        description="All of it, as `profile` of an instance in a fleet file."
    )
    pace: float = Field(description="How long it takes for what takes its pool a second.")
    spans: float = Field(description="Observations that this rests on; older ones count for less.")
    error: float | None = Field(description="How far single predictions were off lately, as a share.")


class InstanceOut(_ResponseModel):
    """One engine endpoint: its state, this gateway's own work on it, and the engine's signals."""

    id: str
    pool: str
    url: str
    engine: str
    role: str
    state: str
    weight: float
    adapters: list[str]
    in_flight: int | None
    waiting: int | None = Field(description="Requests sent there that have no first token yet.")
    backlog_seconds: float | None = Field(description="Engine time of the work already sent there.")
    in_flight_tokens: float | None
    standing: str | None = Field(description="Healthy, Ejected, Probing or WarmingUp, as this gateway saw it.")
    standing_reason: str | None = Field(description="Why it is not Healthy, in words.")
    signals: SignalsOut | None
    index: IndexOut | None = Field(description="Null where no instance of the model tells what it holds.")
    profile: ProfileOut | None = Field(description="Null where nothing is learned: legs of hand-offs.")


class ModelOut(_ResponseModel):
    """One model with its instances."""

    key: str = Field(description="namespace/name")
    namespace: str
    name: str
    preset: str
    wakes: bool = Field(
        description="It may have no instance that serves; a request then waits while one starts or wakes."
    )
    objectives: ObjectivesOut
    links: LinksOut | None = Field(description="Null where no instance of the model tells what it holds.")
    wanted: list[WantedOut] = Field(description="Known where gateways share a Redis and instances tell what they hold.")
    instances: list[InstanceOut]


class FleetOut(_ResponseModel):
    """The snapshot that requests are routed over."""

    version: int
    membership_epoch: int
    models: list[ModelOut]


class QuantilesOut(_ResponseModel):
    """Seconds; null without an observation. Read from a histogram: within about 10 %."""

    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None


class SliceOut(_ResponseModel):
    """What happened in some stretch of time."""

    seconds: float
    requests: int = Field(description="Requests that ended, the gateway's own refusals included.")
    requests_per_second: float
    errors: int
    aborts: int
    rejected: int
    retries: int
    ttft_seconds: QuantilesOut
    itl_seconds: QuantilesOut
    overhead_seconds: QuantilesOut = Field(description="The gateway's own time; one bucket per doubling from 10 µs.")
    within_objective: float | None = Field(description="Share of judged requests that met all objectives.")
    cached_token_share: float | None = Field(description="Of prompt tokens whose caching the engines reported.")
    predicted_cached_token_share: float | None = Field(description="What the router expected of the same tokens.")
    share_on_homes: float | None
    prompt_tokens: int
    output_tokens: int
    load_cov: float | None = Field(
        description="Standard deviation over mean of prompt tokens computed per instance; 0 is an even load."
    )


class InstanceStatsOut(_ResponseModel):
    """One instance's part in the last minute."""

    requests: int
    errors: int
    ttft_mean_seconds: float | None
    itl_mean_seconds: float | None
    computed_tokens: int
    output_tokens: int
    share_of_work: float | None = Field(description="Its share of the model's computed prompt and generated tokens.")


class ModelStatsOut(_ResponseModel):
    """One model: now, the last minute, and since the gateway started."""

    in_flight: int
    queue: int = Field(description="Requests in flight without a first token.")
    window: SliceOut
    totals: SliceOut
    decisions: dict[str, int] = Field(description="Choices by rule since the start.")
    instances: dict[str, InstanceStatsOut]


class OtherGatewayOut(_ResponseModel):
    """Another gateway that is heard through Redis."""

    name: str
    age_seconds: float = Field(description="Since its last word.")


class StatsOut(_ResponseModel):
    """The gateway in numbers."""

    version: str
    wall: float = Field(description="Unix seconds of this answer.")
    uptime_seconds: float
    ready: bool
    notes: list[str]
    loop_lag_p99_seconds: float | None
    gateways: list[OtherGatewayOut] | None = Field(description="Other gateways that are heard; null without a Redis.")
    unknown_model_requests: int = Field(description="Requests of the last minute that named no model of the fleet.")
    models: dict[str, ModelStatsOut]


class NumberOut(_ResponseModel):
    """An input of a decision and how old it was (null = computed just then)."""

    value: float | None
    age_seconds: float | None


class CandidateOut(_ResponseModel):
    """One instance that was looked at."""

    id: str
    chosen: bool
    why: str = Field(description="Why it was taken or not, in words.")
    inputs: dict[str, NumberOut]


class ChoiceOut(_ResponseModel):
    """One decision: the rule, the words, everyone who was looked at."""

    attempt: int
    wall: float
    instance: str | None
    rule: str
    reason: str
    cost_seconds: float | None
    candidates: list[CandidateOut]
    inputs: dict[str, NumberOut] = Field(description="Inputs that belong to no single candidate.")


class FailureOut(_ResponseModel):
    """An attempt that ended before the client had a byte."""

    instance: str
    why: str = Field(description="One word of a closed list.")


class OutcomeOut(_ResponseModel):
    """How the request ended."""

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
        description="The gateway's own time until the dispatch; null behind a failure."
    )
    failures: list[FailureOut] = Field(description="Attempts that ended before the client had a byte, oldest first.")
    continued: bool = Field(description="Another engine was asked for the rest of a stream that broke.")


class PrefillLegOut(_ResponseModel):
    """One prefill engine that was asked."""

    instance: str
    rule: str
    reason: str
    cost_seconds: float | None
    candidates: list[CandidateOut]
    inputs: dict[str, NumberOut] = Field(description="Inputs that belong to no single candidate.")
    seconds: float | None = Field(description="From asked to answered; null while it runs.")
    result: str = Field(description="pending, ok, or one word for what went wrong.")


class WhereOut(_ResponseModel):
    """Who computes the prompt: the engine that answers it, or one that prefills."""

    instance: str | None = Field(description="Null when no prefill engine is ready.")
    rule: str
    reason: str
    candidates: list[CandidateOut]
    inputs: dict[str, NumberOut] = Field(description="Inputs that belong to no single candidate.")


class HandoffOut(_ResponseModel):
    """What became of the prompt's way from prefill to decode."""

    outcome: str = Field(description="pending, done, bypassed or failed; the latter two went on on one engine.")
    reason: str = Field(description="One word of a closed list; of one that was done, the rule by which it went.")
    words: str
    where: WhereOut | None = Field(description="Null where two engines cannot serve it, or none could answer.")
    waited_seconds: float = Field(description="Passed before a decode engine could be chosen.")
    legs: list[PrefillLegOut] = Field(description="Prefill engines asked, oldest first.")


class DecisionOut(_ResponseModel):
    """A request's choices, oldest first, and its end (null while it runs)."""

    request_id: str
    model: str
    wall: float
    prompt_tokens: float = Field(description="The estimate that the choice was made with.")
    caller: str | None = Field(description="The name of the API key that was shown; null where nobody asks for one.")
    handoff: HandoffOut | None = Field(description="Null unless the model has prefill engines.")
    choices: list[ChoiceOut]
    outcome: OutcomeOut | None


class RoutePreviewOut(_ResponseModel):
    """Where a request would go just now; nothing was sent."""

    decision: DecisionOut = Field(description="As that of a request, without an outcome.")
    workers: int = Field(description="How many of the gateway's workers were asked; the decision is the first one's.")
    agreeing: int = Field(description="How many of them would choose the same instance.")


class DecisionsOut(_ResponseModel):
    """Newest first."""

    decisions: list[DecisionOut]


class ErrorBodyOut(_ResponseModel):
    """An error as OpenAI writes it, with what to do about it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    hint: str | None = None


class ErrorOut(_ResponseModel):
    """Every answer that is not 200, except that ``/readyz`` keeps its own shape with 503."""

    error: ErrorBodyOut
