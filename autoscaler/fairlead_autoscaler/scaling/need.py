"""How many replicas a load needs: from what arrived, at the knee, with its spread and where it goes, the backlog, and the margin.

    need = margin · (level at now + start-up time + sigmas · spread) + backlog / (knee · drain time)

in replicas of the group's first pool. Pools that serve the same are one group; prefill and decode pools are two, sized apart: for
prefill a request is its prompt, for decode it is its tokens, with a prompt that is there already. Every bin is priced at the mean
output length that was known when it closed, so a drift of lengths is a trend like any other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fairlead.decision import Input
from fairlead.fleet import Role
from fairlead.profile import EngineProfile, preset
from fairlead_autoscaler.scaling.capacity import Capacity, Mix, Objectives, Step, knee
from fairlead_autoscaler.scaling.learned import Lengths
from fairlead_autoscaler.scaling.load import Bin, Level, Load, Price
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.values import PoolFacts, ScaledModel

_PROMPT, _OUTPUT = 1_000.0, 250.0
"""Tokens of a request before any was seen."""
_UNEVEN_MOST = 4.0
_OF_NOBODY = "a100-qwen7b"
"""The profile that stands in where nobody knows one; the speed that is seen corrects it."""


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


def profile_of(pool: PoolFacts) -> EngineProfile:
    """The pool's profile, or the one that stands in."""
    return pool.profile or preset(_OF_NOBODY)


def mix_of(lengths: Lengths, role: Role, output: float | None = None) -> Mix:
    """The mean request as a group of ``role`` sees it; ``output`` instead of the length that is known now."""
    prompt = max(1.0, lengths.prompt.mean(_PROMPT))
    answer = max(1.0, lengths.output.mean(_OUTPUT) if output is None else output)
    uneven = min(_UNEVEN_MOST, lengths.prompt_variance.mean(prompt * prompt) / (prompt * prompt))
    cached = min(0.95, max(0.0, lengths.cached.mean(0.0)))
    if role is Role.PREFILL:
        return Mix(prompt, 1.0, cached, uneven)
    return Mix(prompt, answer, 1.0 if role is Role.DECODE else cached, uneven)


def objectives_of(model: ScaledModel, role: Role) -> Objectives:
    """What a group of ``role`` has to keep."""
    miss = min(0.5, max(1e-4, 1.0 - model.target))
    return Objectives(
        None if role is Role.DECODE else model.ttft_seconds, None if role is Role.PREFILL else model.itl_seconds, miss
    )


def capacity_of(
    pool: PoolFacts, mix: Mix, factor: float, objectives: Objectives, replicas: float, settings: ScalingSettings
) -> Capacity:
    """What one of ``replicas`` that share a load carries, with the profile of ``pool`` and ``factor`` times as slow."""
    if pool.role is Role.PREFILL:
        settings = replace(settings, prefill_busy_most=min(settings.prefill_busy_most, settings.prefill_pool_busy))
    return knee(Step.of(profile_of(pool), factor), mix, objectives, replicas, settings)


def price_of(
    pool: PoolFacts,
    load: Load,
    lengths: Lengths,
    factor: float,
    objectives: Objectives,
    capacity: Capacity,
    replicas: float,
    settings: ScalingSettings,
) -> Price:
    """Bins in replicas of ``pool``. Of output lengths between the oldest bin's and now's the knee is interpolated: it is dear."""
    role = pool.role
    mix = mix_of(lengths, role)
    outputs = [each.output for each in load.bins] or [mix.output]
    far = max(outputs, key=lambda output: abs(output - mix.output))
    share_now = 1.0 / (capacity.requests_per_second * capacity.work_seconds)
    share_far = share_now
    if role is not Role.PREFILL and abs(far - mix.output) > 0.05 * mix.output:
        other = capacity_of(pool, mix_of(lengths, role, far), factor, objectives, replicas, settings)
        share_far = 1.0 / (other.requests_per_second * other.work_seconds)
    step = Step.of(profile_of(pool), factor)
    per_prompt = step.prompt_seconds(mix) / mix.prompt
    span = far - mix.output

    def price(bin: Bin) -> float:
        output = 1.0 if role is Role.PREFILL else bin.output
        work = bin.prompt * per_prompt + bin.requests * output * step.token_seconds(mix.prompt + output / 2)
        along = min(1.0, max(0.0, (output - mix.output) / span)) if abs(span) > 1e-9 else 0.0
        return work / bin.seconds * (share_now + (share_far - share_now) * along)

    return price


@dataclass(frozen=True, slots=True)
class Need:
    """What a group needs, in replicas of its first pool, and from what that follows. ``level_now`` is what there is now, without
    anything added; ``trend`` is replicas per second."""

    replicas: float
    level_now: float
    trend: float
    inputs: Mapping[str, Input]


def need_of(
    level: Level,
    capacity: Capacity,
    crowd: Callable[[float], float],
    margin: float,
    ahead_seconds: float,
    backlog_requests: float,
    settings: ScalingSettings,
) -> Need:
    """Level, forecast, spread, margin and backlog together. ``crowd`` says how many times as much a replica carries where so many
    share the load than what the level was taken with."""
    upper = level.upper(settings.spread_sigmas, ahead_seconds) * margin
    gain = crowd(upper)
    upper /= gain
    backlog = backlog_requests / (capacity.requests_per_second * settings.drain_seconds)
    inputs = {
        "level_replicas": Input(level.now),
        "spread_replicas": Input(level.spread),
        "trend_replicas_per_minute": Input(level.slope * 60.0),
        "ahead_seconds": Input(ahead_seconds),
        "forecast_replicas": Input(level.now + level.slope * ahead_seconds),
        "margin": Input(margin),
        "backlog_requests": Input(backlog_requests),
        "backlog_replicas": Input(backlog),
        "crowd_gain": Input(gain),
        "need_replicas": Input(upper + backlog),
    }
    return Need(upper + backlog, level.now / gain, level.slope * margin, inputs)
