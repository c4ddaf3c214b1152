"""What the gateway's management API answers, as far as the command line reads it. A field that is missing is not known."""

from msgspec import Struct, field


class Instance(Struct, frozen=True):
    """One engine endpoint as the gateway sees it."""

    id: str
    pool: str = "main"
    url: str = ""
    engine: str = ""
    state: str = ""
    in_flight: int | None = None
    waiting: int | None = None
    backlog_seconds: float | None = None

    @property
    def display_name(self) -> str:
        """What people call it."""
        return short_instance_name(self.id)


class Objectives(Struct, frozen=True):
    """What a request of the model should see."""

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
    """``/api/fleet``"""

    version: int = 0
    models: list[Model] = field(default_factory=list)


class Quantiles(Struct, frozen=True):
    """Seconds; None without an observation."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    mean: float | None = None


class PeriodStats(Struct, frozen=True):
    """What happened in some stretch of time."""

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
    """One instance's part in the last minute."""

    requests: int = 0
    errors: int = 0
    ttft_mean_seconds: float | None = None
    itl_mean_seconds: float | None = None
    share_of_work: float | None = None


class ModelStats(Struct, frozen=True):
    """One model: now, the last minute, and since the gateway started."""

    in_flight: int = 0
    queue: int = 0
    window: PeriodStats = PeriodStats()
    totals: PeriodStats = PeriodStats()
    instances: dict[str, InstanceStats] = field(default_factory=dict)


class GatewayStats(Struct, frozen=True):
    """``/api/stats``"""

    ready: bool = False
    notes: list[str] = field(default_factory=list)
    uptime_seconds: float = 0.0
    models: dict[str, ModelStats] = field(default_factory=dict)


class InputValue(Struct, frozen=True):
    """An input of a decision."""

    value: float | None = None
    age_seconds: float | None = None


class Candidate(Struct, frozen=True):
    """One instance that was looked at."""

    id: str
    chosen: bool = False
    why: str = ""
    inputs: dict[str, InputValue] = field(default_factory=dict)


class Choice(Struct, frozen=True):
    """One decision: the rule, the words, everyone who was looked at."""

    attempt: int = 1
    instance: str | None = None
    rule: str = ""
    reason: str = ""
    cost_seconds: float | None = None
    candidates: list[Candidate] = field(default_factory=list)
    inputs: dict[str, InputValue] = field(default_factory=dict)


class PrefillAttempt(Struct, frozen=True):
    """One prefill engine that was asked."""

    instance: str
    rule: str = ""
    reason: str = ""
    candidates: list[Candidate] = field(default_factory=list)
    inputs: dict[str, InputValue] = field(default_factory=dict)
    seconds: float | None = None
    result: str = ""


class PrefillPlacement(Struct, frozen=True):
    """Who computes the prompt."""

    instance: str | None = None
    rule: str = ""
    reason: str = ""
    candidates: list[Candidate] = field(default_factory=list)
    inputs: dict[str, InputValue] = field(default_factory=dict)


class Handoff(Struct, frozen=True):
    """What became of the prompt's way from prefill to decode."""

    outcome: str = ""
    reason: str = ""
    words: str = ""
    where: PrefillPlacement | None = None
    waited_seconds: float = 0.0
    legs: list[PrefillAttempt] = field(default_factory=list)


class FailedAttempt(Struct, frozen=True):
    """An attempt that ended before the client had a byte."""

    instance: str = ""
    why: str = ""


class RequestOutcome(Struct, frozen=True):
    """How the request ended."""

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
    failures: list[FailedAttempt] = field(default_factory=list)
    continued: bool = False


class Decision(Struct, frozen=True):
    """A request's choices, oldest first, and its end (None while it runs)."""

    request_id: str
    model: str = ""
    wall: float = 0.0
    prompt_tokens: float = 0.0
    choices: list[Choice] = field(default_factory=list)
    outcome: RequestOutcome | None = None
    caller: str | None = None
    handoff: Handoff | None = None


class RoutePreview(Struct, frozen=True):
    """``/api/route``: where a request would go, and how many of the workers asked say so."""

    decision: Decision
    workers: int
    agreeing: int


class DecisionList(Struct, frozen=True):
    """``/api/decisions``, newest first."""

    decisions: list[Decision] = field(default_factory=list)


def short_instance_name(instance_id: str) -> str:
    """``main-3`` of ``main-3/40123/0``; ``127.0.0.1:9001`` of an id that a fleet file's address gave.

    A rank other than 0 is told too: it is what tells such instances apart.
    """
    name, _, rest = instance_id.partition("/")
    port, _, rank = rest.rpartition("/")
    if port and (name == "localhost" or "." in name or ":" in name):
        name = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    return name if rank in ("", "0") else f"{name}/{rank}"
