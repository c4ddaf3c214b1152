"""What the autoscaler decides from, and what it decides: the values between its shell, its core and the simulator.

Missing is None, never zero: a counter that nobody could read, a gateway that did not answer. What the API server says of pods is
always there; where it was away the shell does not call the core at all. Counters come as what they rose by since the last tick
(``fairlead_autoscaler.core.signals.validation`` mends what no counter can be: NaN, negative, infinite, a reset).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fairlead.decision import DecisionInput
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    PENDING = "pending"
    READY = "ready"
    DRAINING = "draining"
    FALLING_ASLEEP = "falling-asleep"
    ASLEEP = "asleep"
    WAKING = "waking"


@dataclass(frozen=True, slots=True)
class ReplicaSchedule:
    """Other bounds at some hours: from ``start_seconds`` to ``end_seconds`` of a day (over midnight where the end is not after the
    start) that begins on one of ``days`` (0 = Monday), in a zone ``offset_seconds`` east of UTC. None = as the pool says."""

    start_seconds: float
    end_seconds: float
    minimum: int | None = None
    maximum: int | None = None
    days: frozenset[int] = frozenset(range(7))
    offset_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SleepTier:
    """How many replicas of a pool may sleep instead of ending (``most``), how many are to be asleep whatever the load (``least``),
    and at which ``level``. ``after_seconds``: one that nobody needed for so long ends; None = for as long as sleeping is worth.
    ``wake_seconds``: how long waking is believed to take; None where nobody knows."""

    most: int
    least: int = 0
    level: int = 1
    after_seconds: float | None = None
    wake_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What does not change about a pool while it is scaled. ``profile`` is a prior and may be wrong; start-up seconds (median and
    nine in ten) are None where nobody knows them yet; ``cost_per_hour`` is that of one replica, to
    compare pools by, and ``usd_per_hour`` the same in dollars, None where nobody priced it. Without a ``tier`` no replica
    sleeps."""

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
    """One model and its pools. The objective for the first token of a prompt is ``ttft_seconds``, and more by
    ``ttft_per_kilo_token_seconds`` for each thousand of its tokens. ``ttft_bounds`` and ``itl_bounds`` are the upper edges in
    seconds of the histograms that replicas come with (the last bucket, beyond them, is not listed). ``patience_seconds``: how long
    a client waits for a first token. ``replicas_most``: how many replicas there may be of all pools together; None = as many as
    their maxima say."""

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


@dataclass(frozen=True, slots=True)
class GatewayTraffic:
    """What gateways counted since the last tick, of the model: requests that arrived (held and rejected included), their prompt
    tokens, those held now, and clients that gave up. Of models whose prefill and decode are apart: how many prompts, and how many of
    their tokens, the engines that answer them computed; None = nobody could tell."""

    arrivals: float
    prompt_tokens: float
    held: float = 0.0
    abandoned: float = 0.0
    kept: float | None = None
    kept_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class ShapeCount:
    """So many requests of about so many prompt and generated tokens ended since the last tick."""

    prompt_tokens: float
    output_tokens: float
    requests: float


@dataclass(frozen=True, slots=True)
class WakeTiming:
    """How long the last waking of a replica took that is over: from which level, and the how many-th of that replica it was."""

    level: int
    number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ReplicaMetrics:
    """A replica: what the API server knows of it, and what was measured (gauges now, counters since the last tick; None = nobody
    could tell). ``kv_share`` is 0..1. ``itl_seconds`` is the sum of the gaps between the tokens generated. Histograms are counts
    per bucket, one more than there are bounds. ``startup_seconds``: how long it took to become ready; None before. ``woken``: of its
    last waking; None where there was none."""

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
    """A pool: what is asked and what there is (Kubernetes API), and its replicas; None where their metrics could not be read.
    ``pending_ages_seconds``: since when each pending replica starts.

    ``desired`` are to serve and ``asleep_desired`` to sleep. ``asleep`` are those that could be woken now (what falls asleep turns
    back at once); they are neither ready nor pending. ``waking`` says how many of the pending ones wake instead of starting."""

    desired: int
    ready: int
    pending: int = 0
    draining: int = 0
    pending_ages_seconds: tuple[float, ...] = ()
    replicas: tuple[ReplicaMetrics, ...] | None = None
    asleep_desired: int = 0
    asleep: int = 0
    waking: int = 0


@dataclass(frozen=True, slots=True)
class PoolCandidate:
    """A pool that may take a part of the traffic: one replica costs ``cost_per_hour`` and serves ``throughput`` of each
    shape alone (requests per second; 0 = it cannot). ``running`` replicas are there or starting; a new one takes
    ``startup_seconds``, for which it costs and serves nothing."""

    name: str
    cost_per_hour: float
    throughput: tuple[float, ...]
    minimum: int = 0
    maximum: int = 1_000
    running: int = 0
    startup_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MixRequest:
    """A question for a solver, asked ``at`` seconds on the core's clock: which pools carry so many requests per second of each
    shape at the least cost?"""

    at: float
    rates: tuple[float, ...]
    candidates: tuple[PoolCandidate, ...]


@dataclass(frozen=True, slots=True)
class MixResult:
    """What a solver said to the question asked ``asked_at``: replicas by pool, None where it found none that is better than no
    solver. ``rule`` is its word for how it came to that."""

    asked_at: float
    replicas: Mapping[str, int] | None
    rule: str


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a model. ``now`` is seconds on a clock that only goes on; ``wall`` is seconds since 1970, for schedules only.
    ``shapes`` are those of the requests that ended, of a model with several pools of one role; None = nobody could tell. ``mixes``
    are the answers, by role, to questions of earlier plans that came since the last look."""

    now: float
    gateway: GatewayTraffic | None
    pools: Mapping[str, PoolObservation]
    wall: float | None = None
    shapes: tuple[ShapeCount, ...] | None = None
    mixes: Mapping[str, MixResult] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """How many replicas a pool should have that serve, how many beside them that sleep, and why: ``rule`` is the closed-list name of
    what decided, ``reason`` one sentence, ``inputs`` the numbers by name with their ages, in the order in which they lead to
    ``replicas``."""

    replicas: int
    rule: str
    reason: str
    inputs: Mapping[str, DecisionInput] = field(default_factory=dict)
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """What to do now. A pool that is not in ``pools`` stays as it is. ``asks`` are questions, by role, whose answers a later
    observation may bring (``Observation.mixes``); whoever has no solver leaves them unanswered."""

    pools: Mapping[str, PoolPlan] = field(default_factory=dict)
    asks: Mapping[str, MixRequest] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolGroup:
    """Pools of one model that do the same for a request."""

    role: Role
    pools: tuple[PoolSpec, ...]

    @property
    def allows_zero(self) -> bool:
        """May the group be left without a replica?"""
        return all(pool.minimum == 0 for pool in self.pools)


def pool_groups(model: ModelSpec) -> tuple[PoolGroup, ...]:
    """The groups of ``model``, those that requests meet first first."""
    by_role = ((role, tuple(pool for pool in model.pools if pool.role is role)) for role in Role)
    return tuple(PoolGroup(role, pools) for role, pools in by_role if pools)


def has_pool_choice(model: ModelSpec) -> bool:
    """Can a request of ``model`` be served by one pool or by another?"""
    return any(len(group.pools) > 1 for group in pool_groups(model))
