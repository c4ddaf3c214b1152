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

from fairlead.decision import Input
from fairlead.fleet import Role
from fairlead.profile import EngineProfile, preset
from fairlead_autoscaler.scaling.capacity import Capacity, Mix, Objectives, Step, knee, replicas_for
from fairlead_autoscaler.scaling.learned import Lengths
from fairlead_autoscaler.scaling.load import Bin, Level, Load, Price
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.turn import grown, turning, unended
from fairlead_autoscaler.scaling.values import PoolFacts, ScaledModel

_PROMPT, _OUTPUT = 1_000.0, 250.0
"""Tokens of a request before any was seen."""
_UNEVEN_MOST = 4.0
_SOME = 0.5
"""Replicas' worth of waiting that is as usual."""
_MANY = 50.0
"""Requests that a drift of lengths must rest on."""
_KEPT_MOST = 0.95
_OF_NOBODY = "a100-qwen7b"
"""The profile that stands in where nobody knows one; the speed that is seen corrects it."""


Sized = Callable[[float, float], float]
"""How many replicas so many requests per second take, about as many as the second number."""


@dataclass(frozen=True, slots=True)
class Group:
    """Pools of one model that do the same for a request."""

    role: Role
    pools: tuple[PoolFacts, ...]

    @property
    def to_zero(self) -> bool:
        """May the group be left without a replica?"""
        return all(pool.minimum == 0 for pool in self.pools)


def groups(model: ScaledModel) -> tuple[Group, ...]:
    """The groups of ``model``, those that requests meet first first."""
    by_role = ((role, tuple(pool for pool in model.pools if pool.role is role)) for role in Role)
    return tuple(Group(role, pools) for role, pools in by_role if pools)


def has_choice(model: ScaledModel) -> bool:
    """Can a request of ``model`` be served by one pool or by another?"""
    return any(len(group.pools) > 1 for group in groups(model))


def profile_of(pool: PoolFacts) -> EngineProfile:
    """The pool's profile, or the one that stands in."""
    return pool.profile or preset(_OF_NOBODY)


@dataclass(frozen=True, slots=True)
class Kept:
    """What share of prompts, and of their tokens, the engines that decode compute."""

    requests: float = 0.0
    tokens: float = 0.0


NOTHING_KEPT = Kept()


def mix_of(lengths: Lengths, role: Role, kept: Kept = NOTHING_KEPT) -> Mix:
    """The mean request as a group of ``role`` sees it, where decode engines keep so much of prefill. Until prompts are settled it is
    the slow mean: those that come now count in it, and at the one that makes the fast mean rest on enough, a few long ones of some
    seconds ago would count for less at once, and more requests would take fewer replicas."""
    if lengths.known is not None:
        known, variance = lengths.known
        mean = known.mean(_PROMPT)
    else:
        mean, variance = lengths.prompt.whole(_PROMPT), lengths.prompt_variance
    prompt = max(1.0, mean)
    answer = max(1.0, lengths.answer(_OUTPUT))
    uneven = min(_UNEVEN_MOST, variance.steady(prompt * prompt) / (prompt * prompt))
    cached = min(0.95, max(0.0, lengths.cached.mean(0.0)))
    seen = as_seen(role, Mix(prompt, answer, cached, uneven))
    if role is Role.PREFILL:
        return replace(seen, prompt=max(1.0, prompt * (1.0 - kept.tokens) / (1.0 - kept.requests)))
    return replace(seen, cached=1.0 - kept.tokens) if role is Role.DECODE else seen


def kept_of(lengths: Lengths) -> Kept:
    """As it was lately."""
    return Kept(*[min(_KEPT_MOST, max(0.0, ratio.mean(0.0))) for ratio in (lengths.kept, lengths.kept_tokens)])


def as_seen(role: Role, mix: Mix) -> Mix:
    """What of a request a group of ``role`` has to do."""
    if role is Role.PREFILL:
        return replace(mix, output=1.0)
    return replace(mix, cached=1.0) if role is Role.DECODE else mix


def objectives_of(model: ScaledModel, role: Role, prompt_tokens: float) -> Objectives:
    """What a group of ``role`` has to keep, of prompts of so many tokens."""
    miss = min(0.5, max(1e-4, 1.0 - model.target))
    ttft = model.ttft_seconds
    if ttft is not None:
        ttft += model.ttft_per_kilo_token_seconds * prompt_tokens / 1000.0
    return Objectives(None if role is Role.DECODE else ttft, None if role is Role.PREFILL else model.itl_seconds, miss)


def capacity_of(
    pool: PoolFacts, mix: Mix, factor: float, objectives: Objectives, replicas: float, settings: ScalingSettings
) -> Capacity:
    """What one of ``replicas`` that share a load carries, with the profile of ``pool`` and ``factor`` times as slow."""
    return knee(Step.of(profile_of(pool), factor), mix, objectives, replicas, _kept(pool, settings))


def sized_of(pool: PoolFacts, mix: Mix, factor: float, objectives: Objectives, settings: ScalingSettings) -> Sized:
    """How many replicas of ``pool`` serve so many requests of ``mix`` per second, probably about as many as the second number."""
    step, kept = Step.of(profile_of(pool), factor), _kept(pool, settings)
    return lambda rate, near: replicas_for(step, mix, objectives, rate, near, kept)


def _kept(pool: PoolFacts, settings: ScalingSettings) -> ScalingSettings:
    if pool.role is not Role.PREFILL:
        return settings
    return replace(settings, prefill_busy_most=min(settings.prefill_busy_most, settings.prefill_pool_busy))


def price_of(
    pool: PoolFacts,
    mix: Mix,
    factor: float,
    capacity: Capacity,
    kept: Kept,
    settled: bool,
    own: bool,
    settings: ScalingSettings,
) -> Price:
    """Bins in replicas of ``pool``, as if answers had always been as long as they are in ``mix``, and decode engines had always
    ``kept`` as much of prefill. Where decode engines are priced by their ``own`` prompts, what they hold beside answers are those of
    the bin; where these are much longer than was known, not all of them: nobody knows yet that answers to them are as long as those
    before (``turn``). Until prompts are ``settled`` as if they too had always been so long: the mean moves with each tick, and bins
    of shorter ones would be worth less the longer those are that come now."""
    if not settled:
        each = 1.0 - kept.requests if pool.role is Role.PREFILL else 1.0
        return lambda bin: bin.requests / bin.seconds * each / capacity.requests_per_second
    step = Step.of(profile_of(pool), factor)
    per_prompt = step.prompt_seconds(mix) / mix.prompt
    per_request = mix.output * step.token_seconds(mix.context)
    per_held, most = 0.0, mix.prompt * settings.turn_times
    share = 1.0 / (capacity.requests_per_second * capacity.work_seconds)
    if pool.role is Role.PREFILL:
        per_prompt *= 1.0 - kept.tokens
        per_request *= 1.0 - kept.requests
    elif pool.role is Role.DECODE and own:
        per_request = mix.output * step.token_seconds(mix.output / 2)
        per_held = mix.output * step.per_resident

    def price(bin: Bin) -> float:
        held = min(bin.prompt, bin.requests * most)
        return (bin.prompt * per_prompt + bin.requests * per_request + held * per_held) / bin.seconds * share

    return price


def longer(lengths: Lengths, load: Load, ahead_seconds: float, settings: ScalingSettings) -> float:
    """How many times as long answers will be, by how they grew over the last minutes; 1 where they did not, by more than chance.
    Where traffic turned just now, those that began since and are not over will take as much longer as any answer takes of which
    nothing is known."""
    now = lengths.answer(_OUTPUT)
    if load.recent and turning(lengths, load.recent[-1].at, settings):
        return 1.0 + unended(lengths) * _OUTPUT / now
    bins = grown(lengths, load, settings)
    if len(bins) < 4 or lengths.output.fast_of < _MANY or not lengths.output.off(settings.drift_sigmas):
        return 1.0
    then = bins[0]
    seconds = bins[-1].at - then.at
    growth = (now - then.output) / seconds
    if growth <= 0.0:
        return 1.0
    # What is known of lengths is as old as what it was averaged over.
    return min(settings.drift_most, 1.0 + growth * (ahead_seconds + settings.length_seconds) / now)


@dataclass(frozen=True, slots=True)
class Need:
    """What a group needs, in replicas of its first pool, and from what that follows. ``backlog`` is what it takes on top to work
    off what waits; ``level_now`` is what there is now, without anything added; ``trend`` is replicas per second."""

    replicas: float
    backlog: float
    level_now: float
    trend: float
    inputs: Mapping[str, Input]


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits: requests now, how many replicas are ready and asked for already, and for how long it will have grown when
    what is ordered now can be ready."""

    requests: float
    ready: float
    asked: float
    grows_seconds: float


def _gently(
    replicas: float,
    upper: float,
    steady: float,
    capacity: Capacity,
    sized: Sized,
    steeply: Sized,
    settings: ScalingSettings,
) -> float:
    """``replicas`` for ``upper``, or fewer where what makes them so many is missed gently: short answers between the chunks of long
    prompts. Of these about as many are late at times of more load as on the mean (0.9 % of requests with ten replicas, 0.6 % with
    twelve, 0.4 % with fifteen), so that room beside the ``steady`` level saves few. Where queues or memory would follow with no more
    than ``gentle_reserve`` times as many replicas, nothing is gentle."""
    cliff = settings.gentle_reserve * steeply(upper * capacity.requests_per_second, upper)
    if cliff >= replicas:
        return replicas
    return min(replicas, max(cliff, sized(steady * capacity.requests_per_second, steady)))


def need_of(
    level: Level,
    swing: float,
    bursts: float,
    capacity: Capacity,
    sized: Sized,
    steeply: Sized,
    margin: float,
    spared: float,
    ahead_seconds: float,
    queue: Queue,
    settings: ScalingSettings,
) -> Need:
    """Level, forecast, spread, bursts, margin and backlog together. Where more waits than usual, the last seconds count as the
    level. ``sized`` says how many replicas so many requests per second take, about as many as the second number, and ``steeply`` how
    many where only those objectives count that are missed steeply (``_gently``)."""
    if queue.requests > settings.queue_usual * max(1.0, queue.ready):
        level = replace(level, now=max(level.now, level.recent))
    raised = max(level.upper(settings.spread_sigmas, swing, ahead_seconds), bursts)
    upper = raised * margin
    replicas = sized(upper * capacity.requests_per_second, upper)
    steady = max(level.steady + settings.gentle_room * (raised - level.steady), bursts) * margin
    replicas = _gently(replicas, upper, steady, capacity, sized, steeply, settings)
    gain = upper / replicas if replicas > 0.0 else 1.0
    replicas = max(replicas - spared, min(replicas, level.now / gain * margin))
    short = max(0.0, level.now - queue.asked)
    waiting = queue.requests / capacity.requests_per_second + short * queue.grows_seconds * settings.backlog_ahead
    backlog = max(0.0, waiting / settings.drain_seconds - _SOME)
    inputs = {
        "level_replicas": Input(level.now),
        "spread_replicas": Input(level.spread),
        "swing_share": Input(swing),
        "trend_replicas_per_minute": Input(level.slope * 60.0),
        "ahead_seconds": Input(ahead_seconds),
        "forecast_replicas": Input(level.now + level.slope * ahead_seconds),
        "recurring_burst_replicas": Input(bursts),
        "margin": Input(margin),
        "spared_replicas": Input(spared),
        "crowd_gain": Input(gain),
        "need_replicas": Input(replicas),
        "backlog_requests": Input(queue.requests),
        "backlog_replicas": Input(backlog),
    }
    return Need(replicas, backlog, level.now, level.slope * margin, inputs)
