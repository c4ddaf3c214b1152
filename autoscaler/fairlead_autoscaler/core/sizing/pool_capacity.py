"""How many replicas a load needs: from what arrived, at the knee, with its spread and where it goes, the backlog, and the margin.

    need = replicas for margin · max(level at now + start-up time + sigmas · spread, bursts that come back)
           + backlog / (knee · drain time)

in replicas of the group's first pool. Levels are counted in what a replica carries where as many
share the load as were needed last; how many it takes follows from the requests per second that they stand for, since more replicas
carry more each. Pools that serve the same are one group; prefill and decode pools are two, sized apart: for
prefill a request is its prompt, for decode it is its tokens, with a prompt that is there already. What decode engines compute of
prompts themselves (``Kept``, as gateways count it) is work of theirs and not of prefill's, so every token is counted once. Bins are
priced at the mean lengths that are known now; where answers got longer over the last minutes by more than chance, at the lengths
they will have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.capacity import (
    LatencyTargets,
    MeanRequest,
    ReplicaCapacity,
    StepModel,
    knee_capacity,
    replicas_for,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.types import ModelSpec, PoolSpec
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory, BinPrice, LoadLevel
from fairlead_autoscaler.core.workload.length_shift import bins_for_growth, is_shifting, unfinished_share
from fairlead_autoscaler.core.workload.request_lengths import RequestLengths

_DEFAULT_PROMPT_TOKENS, _DEFAULT_OUTPUT_TOKENS = 1_000.0, 250.0
"""Tokens of a request before any was seen."""
_MAX_VARIABILITY = 4.0
_USUAL_BACKLOG_REPLICAS = 0.5
"""Replicas' worth of waiting that is as usual."""
_MIN_REQUESTS = 50.0
"""Requests that a drift of lengths must rest on."""
_MAX_DECODE_PREFILL_SHARE = 0.95
_FALLBACK_PROFILE = "a100-qwen7b"
"""The profile that stands in where nobody knows one; the speed that is seen corrects it."""


ReplicasForRate = Callable[[float, float], float]
"""How many replicas so many requests per second take, about as many as the second number."""


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


def pool_profile(pool: PoolSpec) -> EngineProfile:
    """The pool's profile, or the one that stands in."""
    return pool.profile or builtin_profile(_FALLBACK_PROFILE)


@dataclass(frozen=True, slots=True)
class DecodePrefillShare:
    """What share of prompts, and of their tokens, the engines that decode compute."""

    requests: float = 0.0
    tokens: float = 0.0


NO_DECODE_PREFILL = DecodePrefillShare()


def mean_request(
    lengths: RequestLengths, role: Role, decode_prefill: DecodePrefillShare = NO_DECODE_PREFILL
) -> MeanRequest:
    """The mean request as a group of ``role`` sees it, where decode engines keep so much of prefill. Until prompts are settled it is
    the slow mean: those that come now count in it, and at the one that makes the fast mean rest on enough, a few long ones of some
    seconds ago would count for less at once, and more requests would take fewer replicas."""
    if lengths.settled_prompt is not None:
        known, variance = lengths.settled_prompt
        mean = known.mean(_DEFAULT_PROMPT_TOKENS)
    else:
        mean, variance = lengths.prompt.slow_mean(_DEFAULT_PROMPT_TOKENS), lengths.prompt_variance
    prompt = max(1.0, mean)
    answer = max(1.0, lengths.mean_output_tokens(_DEFAULT_OUTPUT_TOKENS))
    uneven = min(_MAX_VARIABILITY, variance.smoothed_mean(prompt * prompt) / (prompt * prompt))
    cached = min(0.95, max(0.0, lengths.cached.mean(0.0)))
    seen = request_for_role(role, MeanRequest(prompt, answer, cached, uneven))
    if role is Role.PREFILL:
        return replace(
            seen, prompt_tokens=max(1.0, prompt * (1.0 - decode_prefill.tokens) / (1.0 - decode_prefill.requests))
        )
    return replace(seen, cached_share=1.0 - decode_prefill.tokens) if role is Role.DECODE else seen


def decode_prefill_share(lengths: RequestLengths) -> DecodePrefillShare:
    """As it was lately."""
    return DecodePrefillShare(
        *[min(_MAX_DECODE_PREFILL_SHARE, max(0.0, ratio.mean(0.0))) for ratio in (lengths.kept, lengths.kept_tokens)]
    )


def request_for_role(role: Role, request: MeanRequest) -> MeanRequest:
    """What of a request a group of ``role`` has to do."""
    if role is Role.PREFILL:
        return replace(request, output_tokens=1.0)
    return replace(request, cached_share=1.0) if role is Role.DECODE else request


def latency_targets(model: ModelSpec, role: Role, prompt_tokens: float) -> LatencyTargets:
    """What a group of ``role`` has to keep, of prompts of so many tokens."""
    miss = min(0.5, max(1e-4, 1.0 - model.target))
    ttft = model.ttft_seconds
    if ttft is not None:
        ttft += model.ttft_per_kilo_token_seconds * prompt_tokens / 1000.0
    return LatencyTargets(
        None if role is Role.DECODE else ttft, None if role is Role.PREFILL else model.itl_seconds, miss
    )


def replica_capacity(
    pool: PoolSpec,
    request: MeanRequest,
    slowdown: float,
    targets: LatencyTargets,
    replicas: float,
    settings: ScalingSettings,
) -> ReplicaCapacity:
    """What one of ``replicas`` that share a load carries, with the profile of ``pool`` and ``factor`` times as slow."""
    return knee_capacity(
        StepModel.from_profile(pool_profile(pool), slowdown),
        request,
        targets,
        replicas,
        _settings_for_role(pool, settings),
    )


def replicas_for_pool(
    pool: PoolSpec, request: MeanRequest, slowdown: float, targets: LatencyTargets, settings: ScalingSettings
) -> ReplicasForRate:
    """How many replicas of ``pool`` serve so many requests of ``mix`` per second, probably about as many as the second number."""
    step, kept = StepModel.from_profile(pool_profile(pool), slowdown), _settings_for_role(pool, settings)
    return lambda rate, near: replicas_for(step, request, targets, rate, near, kept)


def _settings_for_role(pool: PoolSpec, settings: ScalingSettings) -> ScalingSettings:
    if pool.role is not Role.PREFILL:
        return settings
    return replace(settings, prefill_busy_most=min(settings.prefill_busy_most, settings.prefill_pool_busy))


def bin_price(
    pool: PoolSpec,
    request: MeanRequest,
    slowdown: float,
    capacity: ReplicaCapacity,
    decode_prefill: DecodePrefillShare,
    settled: bool,
    prices_own_prompts: bool,
    settings: ScalingSettings,
) -> BinPrice:
    """Bins in replicas of ``pool``, as if answers had always been as long as they are in ``mix``, and decode engines had always
    ``kept`` as much of prefill. Where decode engines are priced by their ``own`` prompts, what they hold beside answers are those of
    the bin; where these are much longer than was known, not all of them: nobody knows yet that answers to them are as long as those
    before (``turn``). Until prompts are ``settled`` as if they too had always been so long: the mean moves with each tick, and bins
    of shorter ones would be worth less the longer those are that come now."""
    if not settled:
        each = 1.0 - decode_prefill.requests if pool.role is Role.PREFILL else 1.0
        return lambda bin: bin.requests / bin.seconds * each / capacity.requests_per_second
    step = StepModel.from_profile(pool_profile(pool), slowdown)
    per_prompt = step.prompt_seconds(request) / request.prompt_tokens
    per_request = request.output_tokens * step.token_seconds(request.context_tokens)
    per_held, most = 0.0, request.prompt_tokens * settings.turn_times
    share = 1.0 / (capacity.requests_per_second * capacity.engine_seconds)
    if pool.role is Role.PREFILL:
        per_prompt *= 1.0 - decode_prefill.tokens
        per_request *= 1.0 - decode_prefill.requests
    elif pool.role is Role.DECODE and prices_own_prompts:
        per_request = request.output_tokens * step.token_seconds(request.output_tokens / 2)
        per_held = request.output_tokens * step.resident_token_seconds

    def price(bin: ArrivalBin) -> float:
        held = min(bin.prompt, bin.requests * most)
        return (bin.prompt * per_prompt + bin.requests * per_request + held * per_held) / bin.seconds * share

    return price


def output_growth(
    lengths: RequestLengths, load: ArrivalHistory, ahead_seconds: float, settings: ScalingSettings
) -> float:
    """How many times as long answers will be, by how they grew over the last minutes; 1 where they did not, by more than chance.
    Where traffic turned just now, those that began since and are not over will take as much longer as any answer takes of which
    nothing is known."""
    now = lengths.mean_output_tokens(_DEFAULT_OUTPUT_TOKENS)
    if load.recent and is_shifting(lengths, load.recent[-1].at, settings):
        return 1.0 + unfinished_share(lengths) * _DEFAULT_OUTPUT_TOKENS / now
    bins = bins_for_growth(lengths, load, settings)
    if len(bins) < 4 or lengths.output.fast_of < _MIN_REQUESTS or not lengths.output.deviates(settings.drift_sigmas):
        return 1.0
    then = bins[0]
    seconds = bins[-1].at - then.at
    growth = (now - then.output) / seconds
    if growth <= 0.0:
        return 1.0
    # What is known of lengths is as old as what it was averaged over.
    return min(settings.drift_most, 1.0 + growth * (ahead_seconds + settings.length_seconds) / now)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a group needs, in replicas of its first pool, and from what that follows. ``backlog`` is what it takes on top to work
    off what waits; ``level_now`` is what there is now, without anything added; ``trend`` is replicas per second."""

    replicas: float
    backlog: float
    current_level: float
    trend: float
    inputs: Mapping[str, DecisionInput]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits: requests now, how many replicas are ready and asked for already, and for how long it will have grown when
    what is ordered now can be ready."""

    requests: float
    ready_replicas: float
    desired_replicas: float
    growth_seconds: float


def _cap_soft_overshoot(
    replicas: float,
    upper: float,
    steady: float,
    capacity: ReplicaCapacity,
    replicas_for: ReplicasForRate,
    replicas_for_hard_targets: ReplicasForRate,
    settings: ScalingSettings,
) -> float:
    """``replicas`` for ``upper``, or fewer where what makes them so many is missed gently: short answers between the chunks of long
    prompts. Of these about as many are late at times of more load as on the mean (0.9 % of requests with ten replicas, 0.6 % with
    twelve, 0.4 % with fifteen), so that room beside the ``steady`` level saves few. Where queues or memory would follow with no more
    than ``gentle_reserve`` times as many replicas, nothing is gentle."""
    cliff = settings.gentle_reserve * replicas_for_hard_targets(upper * capacity.requests_per_second, upper)
    if cliff >= replicas:
        return replicas
    return min(replicas, max(cliff, replicas_for(steady * capacity.requests_per_second, steady)))


def estimate_demand(
    level: LoadLevel,
    swing: float,
    bursts: float,
    capacity: ReplicaCapacity,
    replicas_for: ReplicasForRate,
    replicas_for_hard_targets: ReplicasForRate,
    margin: float,
    spare_replicas: float,
    ahead_seconds: float,
    queue: Backlog,
    settings: ScalingSettings,
) -> Demand:
    """Level, forecast, spread, bursts, margin and backlog together. Where more waits than usual, the last seconds count as the
    level. ``sized`` says how many replicas so many requests per second take, about as many as the second number, and ``steeply`` how
    many where only those objectives count that are missed steeply (``_gently``)."""
    if queue.requests > settings.queue_usual * max(1.0, queue.ready_replicas):
        level = replace(level, current=max(level.current, level.recent))
    raised = max(level.upper_bound(settings.spread_sigmas, swing, ahead_seconds), bursts)
    upper = raised * margin
    replicas = replicas_for(upper * capacity.requests_per_second, upper)
    steady = max(level.steady + settings.gentle_room * (raised - level.steady), bursts) * margin
    replicas = _cap_soft_overshoot(replicas, upper, steady, capacity, replicas_for, replicas_for_hard_targets, settings)
    gain = upper / replicas if replicas > 0.0 else 1.0
    replicas = max(replicas - spare_replicas, min(replicas, level.current / gain * margin))
    short = max(0.0, level.current - queue.desired_replicas)
    waiting = queue.requests / capacity.requests_per_second + short * queue.growth_seconds * settings.backlog_ahead
    backlog = max(0.0, waiting / settings.drain_seconds - _USUAL_BACKLOG_REPLICAS)
    inputs = {
        "level_replicas": DecisionInput(level.current),
        "spread_replicas": DecisionInput(level.spread),
        "swing_share": DecisionInput(swing),
        "trend_replicas_per_minute": DecisionInput(level.slope * 60.0),
        "ahead_seconds": DecisionInput(ahead_seconds),
        "forecast_replicas": DecisionInput(level.current + level.slope * ahead_seconds),
        "recurring_burst_replicas": DecisionInput(bursts),
        "margin": DecisionInput(margin),
        "spared_replicas": DecisionInput(spare_replicas),
        "crowd_gain": DecisionInput(gain),
        "need_replicas": DecisionInput(replicas),
        "backlog_requests": DecisionInput(queue.requests),
        "backlog_replicas": DecisionInput(backlog),
    }
    return Demand(replicas, backlog, level.current, level.slope * margin, inputs)
