"""Values that the autoscaler's shell, its scaling core and the simulator exchange.

Missing is None, never zero: a counter that was not read, a gateway that did not answer. The numbers
of pods are always known: without the API server the shell does not call the core. Counters hold
their increase since the last tick; `core.signals.validation` drops values that no counter can have.

Field names are those of recordings and of the management API.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fairlead.decision import DecisionInput
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role


class ReplicaState(StrEnum):
    """The state of a replica in its life cycle."""

    PENDING = "pending"
    READY = "ready"
    DRAINING = "draining"
    FALLING_ASLEEP = "falling-asleep"
    ASLEEP = "asleep"
    WAKING = "waking"


@dataclass(frozen=True, slots=True)
class ReplicaSchedule:
    """Other bounds of a pool during some hours.

    start_seconds, end_seconds: seconds of the day; an end that is not later than the start is on
        the next day.
    minimum, maximum: None keeps the bound of the pool.
    days: weekdays on which the interval begins, 0 = Monday.
    offset_seconds: the time zone, east of UTC.
    """

    start_seconds: float
    end_seconds: float
    minimum: int | None = None
    maximum: int | None = None
    days: frozenset[int] = frozenset(range(7))
    offset_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SleepTier:
    """The sleep policy of a pool: how many replicas sleep instead of being removed, and for how
    long.

    most: the most that may sleep.
    least: the fewest that sleep, at any load.
    level: the sleep level of the engines.
    after_seconds: a replica that was not needed for this long is removed; None: after the time for
        which sleeping is cheaper than a start.
    wake_seconds: the expected time to wake; None: unknown.
    """

    most: int
    least: int = 0
    level: int = 1
    after_seconds: float | None = None
    wake_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The declared, constant properties of a pool.

    cost_per_hour: of one replica, in any unit; only compares pools.
    profile: a prior, which may be wrong; None: unknown.
    startup_p50_seconds, startup_p90_seconds: None: unknown.
    usd_per_hour: of one replica; None: it has no price.
    tier: None: no replica sleeps.
    """

    name: str
    role: Role = Role.SERVE
    cost_per_hour: float = 1.0
    minimum: int = 1
    maximum: int = 1
    profile: EngineProfile | None = None
    startup_p50_seconds: float | None = None
    startup_p90_seconds: float | None = None
    schedules: tuple[ReplicaSchedule, ...] = ()
    usd_per_hour: float | None = None
    tier: SleepTier | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model, its latency targets and its pools.

    The TTFT target of a prompt is `ttft_seconds` plus `ttft_per_kilo_token_seconds` for each 1,000
    of its tokens.

    target: share of requests that must meet the targets.
    patience_seconds: how long a client waits for a first token; None: forever.
    ttft_bounds, itl_bounds: upper edges of the histogram buckets in seconds, without the last
        bucket.
    replicas_most: the most replicas of all pools together; None: only the pools' maxima hold.
    period_seconds: time over which the target holds.
    """

    name: str
    ttft_seconds: float | None
    itl_seconds: float | None
    pools: tuple[PoolSpec, ...]
    target: float = 0.99
    patience_seconds: float | None = None
    interval_seconds: float = 5.0
    ttft_bounds: tuple[float, ...] = ()
    itl_bounds: tuple[float, ...] = ()
    ttft_per_kilo_token_seconds: float = 0.0
    replicas_most: int | None = None
    period_seconds: float = 86_400.0


@dataclass(frozen=True, slots=True)
class GatewayTraffic:
    """The traffic of a model that all gateways counted since the last tick.

    arrivals: requests that arrived, queued and rejected ones included.
    held: requests that are queued now.
    abandoned: requests whose client disconnected before the first token.
    kept, kept_tokens: prompts, and their tokens, that decode instances computed themselves; None:
        unknown, or the roles are not separate.
    """

    arrivals: float
    prompt_tokens: float
    held: float = 0.0
    abandoned: float = 0.0
    kept: float | None = None
    kept_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class ShapeCount:
    """Requests of about one shape that finished since the last tick."""

    prompt_tokens: float
    output_tokens: float
    requests: float


@dataclass(frozen=True, slots=True)
class WakeTiming:
    """The last completed wake of a replica.

    number: the count of wakes of this replica so far.
    """

    level: int
    number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ReplicaMetrics:
    """One replica: its state from the API server, and its metrics.

    Gauges are current, counters are increases since the last tick, None is missing.

    startup_seconds: time until it was ready; None before.
    kv_share: used share of the KV cache, 0..1.
    itl_seconds: sum of the gaps between its generated tokens.
    ttft_counts, itl_counts: one count for each bucket, one more than there are bounds.
    woken: its last wake; None before the first.
    """

    id: str
    state: ReplicaState
    age_seconds: float
    startup_seconds: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_share: float | None = None
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    itl_seconds: float | None = None
    finished: float | None = None
    first_tokens: float | None = None
    cached_tokens: float | None = None
    ttft_seconds: float | None = None
    ttft_counts: tuple[float, ...] | None = None
    itl_counts: tuple[float, ...] | None = None
    woken: WakeTiming | None = None


@dataclass(frozen=True, slots=True)
class PoolObservation:
    """One pool: its numbers from the Kubernetes API, and its replicas.

    desired, asleep_desired: replicas that should serve, and that should sleep.
    pending: replicas that start or wake; `waking` is the part of them that wakes.
    asleep: replicas that could wake now, those that fall asleep included; neither ready nor
        pending.
    pending_ages_seconds: ages of the replicas that start.
    ejected: ready replicas that every gateway has ejected for a while; None: missing.
    replicas: None: their metrics are missing.
    """

    desired: int
    ready: int
    pending: int = 0
    draining: int = 0
    pending_ages_seconds: tuple[float, ...] = ()
    replicas: tuple[ReplicaMetrics, ...] | None = None
    asleep_desired: int = 0
    asleep: int = 0
    waking: int = 0
    ejected: int | None = None


@dataclass(frozen=True, slots=True)
class PoolCandidate:
    """The throughput, cost and bounds of a pool, from which an accelerator mix is computed.

    throughput: requests per second of each shape on one replica, if it served that shape alone; 0:
        the pool cannot serve it.
    running: replicas that run or start.
    startup_seconds: time for which a new replica costs and serves nothing.
    """

    name: str
    cost_per_hour: float
    throughput: tuple[float, ...]
    minimum: int = 0
    maximum: int = 1_000
    running: int = 0
    startup_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MixRequest:
    """A query to a solver: which pools carry these rates at the least cost?

    at: seconds on the core's clock.
    rates: requests per second of each shape.
    """

    at: float
    rates: tuple[float, ...]
    candidates: tuple[PoolCandidate, ...]


@dataclass(frozen=True, slots=True)
class MixResult:
    """The solver's reply to the query of time `asked_at`.

    replicas: by pool; None: no mix that is better than the core's own allocation.
    rule: the solver's name for how it found the mix.
    """

    asked_at: float
    replicas: Mapping[str, int] | None
    rule: str


@dataclass(frozen=True, slots=True)
class Observation:
    """All signals of one model at one tick.

    now: seconds of a monotonic clock.
    gateway: None: no gateway answered.
    wall: Unix seconds, only for schedules.
    shapes: of finished requests, if several pools have one role; None: missing.
    mixes: replies of the solver, by role, that came since the last tick.
    """

    now: float
    gateway: GatewayTraffic | None
    pools: Mapping[str, PoolObservation]
    wall: float | None = None
    shapes: tuple[ShapeCount, ...] | None = None
    mixes: Mapping[str, MixResult] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The decision about one pool.

    replicas: replicas that should serve.
    rule: the rule that decided, from a closed list.
    reason: one sentence.
    inputs: the numbers of the decision with their ages, in the order of the computation.
    asleep: replicas that should sleep.
    """

    replicas: int
    rule: str
    reason: str
    inputs: Mapping[str, DecisionInput] = field(default_factory=dict)
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """The decision about one model.

    pools: by name; a pool without a plan stays as it is.
    asks: queries to a solver, by role; a later observation may bring the replies.
    """

    pools: Mapping[str, PoolPlan] = field(default_factory=dict)
    asks: Mapping[str, MixRequest] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolGroup:
    """The pools of one model that have the same role."""

    role: Role
    pools: tuple[PoolSpec, ...]

    @property
    def allows_zero(self) -> bool:
        return all(pool.minimum == 0 for pool in self.pools)


def pool_groups(model: ModelSpec) -> tuple[PoolGroup, ...]:
    by_role = ((role, tuple(pool for pool in model.pools if pool.role is role)) for role in Role)
    return tuple(PoolGroup(role, pools) for role, pools in by_role if pools)


def has_pool_choice(model: ModelSpec) -> bool:
    return any(len(group.pools) > 1 for group in pool_groups(model))
