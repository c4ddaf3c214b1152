"""Answers of the gateway's management API, with the fields that the command line reads. A missing
field is unknown.
"""

from msgspec import Struct, field

from fairlead.audit.record import AuditRecord
from fairlead.fleet.hung_engines import EjectionReport


class Instance(Struct, frozen=True):
    """One engine endpoint as the gateway sees it.

    ejection: None unless the gateway has ejected it and has had no answer since.
    """

    id: str
    pool: str = "main"
    url: str = ""
    engine: str = ""
    state: str = ""
    in_flight: int | None = None
    waiting: int | None = None
    backlog_seconds: float | None = None
    ejection: EjectionReport | None = None

    @property
    def display_name(self) -> str:
        """The short name for people."""
        return short_instance_name(self.id)


class Objectives(Struct, frozen=True):
    """Latency targets of a model."""

    target: float = 0.95
    ttft_seconds: float | None = None
    ttft_per_kilo_token_seconds: float = 0.0
    itl_seconds: float | None = None


class Model(Struct, frozen=True):
    """One model with its instances."""

    key: str
    namespace: str
    name: str
    preset: str = ""
    objectives: Objectives = Objectives()
    instances: list[Instance] = field(default_factory=list)


class Fleet(Struct, frozen=True):
    """Answer of ``/api/fleet``."""

    version: int = 0
    models: list[Model] = field(default_factory=list)


class Quantiles(Struct, frozen=True):
    """Quantiles in seconds; None without an observation."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    mean: float | None = None


class PeriodStats(Struct, frozen=True):
    """Counters and latencies of a period."""

    requests: int = 0
    requests_per_second: float = 0.0
    errors: int = 0
    rejected: int = 0
    retries: int = 0
    ttft_seconds: Quantiles = Quantiles()
    itl_seconds: Quantiles = Quantiles()
    within_objective: float | None = None
    cached_token_share: float | None = None
    share_on_homes: float | None = None
    load_cov: float | None = None


class InstanceStats(Struct, frozen=True):
    """Statistics of one instance in the last minute."""

    requests: int = 0
    errors: int = 0
    ttft_mean_seconds: float | None = None
    itl_mean_seconds: float | None = None
    share_of_work: float | None = None


class ShadowSide(Struct, frozen=True):
    """The answers of one of two models to the same requests."""

    errors: int = 0
    ttft_mean_seconds: float | None = None
    tpot_mean_seconds: float | None = None
    output_tokens_mean: float | None = None


class Shadow(Struct, frozen=True):
    """Comparison of a model that gets copies of requests with the model that was asked."""

    original: str
    outcomes: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    copies: ShadowSide = ShadowSide()
    originals: ShadowSide = ShadowSide()


class ModelStats(Struct, frozen=True):
    """Statistics of one model: now, in the last minute, and since the gateway started."""

    in_flight: int = 0
    queue: int = 0
    window: PeriodStats = PeriodStats()
    totals: PeriodStats = PeriodStats()
    instances: dict[str, InstanceStats] = field(default_factory=dict)
    shadows: list[Shadow] = field(default_factory=list)


class GatewayStats(Struct, frozen=True):
    """Answer of ``/api/stats``."""

    ready: bool = False
    notes: list[str] = field(default_factory=list)
    uptime_seconds: float = 0.0
    models: dict[str, ModelStats] = field(default_factory=dict)


class InputValue(Struct, frozen=True):
    """An input of a decision. ``age_seconds`` None: it is current."""

    value: float | None = None
    age_seconds: float | None = None


class Candidate(Struct, frozen=True):
    """An instance that the decision considered."""

    id: str
    chosen: bool = False
    why: str = ""
    inputs: dict[str, InputValue] = field(default_factory=dict)


class Choice(Struct, frozen=True):
    """One decision: its rule, its reason and all candidates."""

    attempt: int = 1
    instance: str | None = None
    rule: str = ""
    reason: str = ""
    cost_seconds: float | None = None
    candidates: list[Candidate] = field(default_factory=list)
    inputs: dict[str, InputValue] = field(default_factory=dict)


class PrefillAttempt(Struct, frozen=True):
    """One attempt at a prefill instance."""

    instance: str
    rule: str = ""
    reason: str = ""
    candidates: list[Candidate] = field(default_factory=list)
    inputs: dict[str, InputValue] = field(default_factory=dict)
    seconds: float | None = None
    result: str = ""


class PrefillPlacement(Struct, frozen=True):
    """The choice of the engine that computes the prompt."""

    instance: str | None = None
    rule: str = ""
    reason: str = ""
    candidates: list[Candidate] = field(default_factory=list)
    inputs: dict[str, InputValue] = field(default_factory=dict)


class Handoff(Struct, frozen=True):
    """The transfer of the prompt's KV cache from prefill to decode."""

    outcome: str = ""
    reason: str = ""
    words: str = ""
    where: PrefillPlacement | None = None
    waited_seconds: float = 0.0
    legs: list[PrefillAttempt] = field(default_factory=list)


class FailedAttempt(Struct, frozen=True):
    """An attempt that ended before the first byte reached the client."""

    instance: str = ""
    why: str = ""


class RequestOutcome(Struct, frozen=True):
    """The end of a request."""

    status: int = 0
    error: str | None = None
    client_gone: bool = False
    attempts: int = 1
    duration_seconds: float | None = None
    ttft_seconds: float | None = None
    itl_mean_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    predicted_cached_tokens: int | None = None
    within_objective: bool | None = None
    overhead_seconds: float | None = None
    queued_seconds: float | None = None
    failures: list[FailedAttempt] = field(default_factory=list)
    continued: bool = False

    @property
    def is_broken(self) -> bool:
        """Whether the response broke after its status was sent."""
        return self.status < 400 and self.error is not None


class Route(Struct, frozen=True):
    """The choice of a model by a route."""

    name: str
    route: str = ""
    reason: str = ""


class Decision(Struct, frozen=True):
    """All choices of a request, oldest first, and its outcome (None while it runs)."""

    request_id: str
    model: str = ""
    wall: float = 0.0
    prompt_tokens: float = 0.0
    choices: list[Choice] = field(default_factory=list)
    outcome: RequestOutcome | None = None
    caller: str | None = None
    handoff: Handoff | None = None
    route: Route | None = None
    kept_back: list[str] = field(default_factory=list)


class RouteFallback(Struct, frozen=True):
    """A model that may answer after some kinds of failures.

    after: the model that must have failed; None: any target, or a fallback above this one.
    """

    model: str
    when: list[str] = field(default_factory=list)
    after: str | None = None


class RoutePreview(Struct, frozen=True):
    """Answer of ``/api/route``: where a request would go, and how many of the queried workers
    agree.

    fallbacks: of the route that the request names, in its order.
    """

    decision: Decision
    workers: int
    agreeing: int
    fallbacks: list[RouteFallback] = field(default_factory=list)


class DecisionList(Struct, frozen=True):
    """Answer of ``/api/decisions``, newest first."""

    decisions: list[Decision] = field(default_factory=list)


def short_instance_name(instance_id: str) -> str:
    """Returns ``main-3`` for ``main-3/40123/0``, and ``127.0.0.1:9001`` for an id made from an
    address.

    A rank other than 0 stays, because it distinguishes instances of one address.
    """
    name, _, rest = instance_id.partition("/")
    port, _, rank = rest.rpartition("/")
    if port and (name == "localhost" or "." in name or ":" in name):
        name = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    return name if rank in ("", "0") else f"{name}/{rank}"


class KeyUse(Struct, frozen=True):
    """The use of an API key, as one gateway counted it.

    digest: the beginning of the key's digest.

    last_used_at: in Unix time, to the minute; None if the gateway has not seen it since it started.
    """

    digest: str
    last_used_at: float | None = None


class TenantUse(Struct, frozen=True):
    """The keys of a tenant that one gateway accepts."""

    name: str
    keys: list[KeyUse] = field(default_factory=list)


class TenantList(Struct, frozen=True):
    """The tenants of one gateway.

    started_at: since when it counts uses, in Unix time; None if it has no tenants.
    """

    started_at: float | None = None
    tenants: list[TenantUse] = field(default_factory=list)


class AuditList(Struct, frozen=True):
    """Answer of ``/api/audit``, the newest first."""

    records: list[AuditRecord] = field(default_factory=list)


class UsageRow(Struct, frozen=True):
    """The use of one day, tenant, key, model, adapter and pool."""

    day: str
    tenant: str
    key: str
    model: str
    adapter: str
    pool: str
    requests: int
    failed: int
    estimated: int
    unpriced: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano_usd: int
    saved_nano_usd: int
    engine_microseconds: int


class ReplicaTime(Struct, frozen=True):
    """A replica from second ``start`` until before second ``end``."""

    replica: str
    start: int
    end: int
    model: str
    pool: str
    state: str
    nano_usd_per_hour: int | None = None


class UsageReply(Struct, frozen=True):
    """The content of a gateway's ledger. Gateways that share one name the same ``ledger``."""

    ledger: str
    usage: list[UsageRow] = field(default_factory=list)
    replicas: list[ReplicaTime] = field(default_factory=list)
    broken: int = 0
    lost: int = 0


class BudgetUse(Struct, frozen=True):
    """The state of a tenant's budget in a window that ends at ``end``, in Unix time."""

    tenant: str
    end: float
    used_nano_usd: int
    amount_nano_usd: int
    used_share: float
    soft: bool


class BudgetList(Struct, frozen=True):
    """Answer of ``/api/budgets``."""

    budgets: list[BudgetUse] = field(default_factory=list)
