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

from collections.abc import Callable
from dataclasses import replace

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
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin
from fairlead_autoscaler.core.workload.level import BinPrice
from fairlead_autoscaler.core.workload.mean_request import DecodePrefillShare

_FALLBACK_PROFILE = "a100-qwen7b"
"""The profile that stands in where nobody knows one; the speed that is seen corrects it."""


ReplicasForRate = Callable[[float, float], float]
"""How many replicas so many requests per second take, about as many as the second number."""


def pool_profile(pool: PoolSpec) -> EngineProfile:
    """The pool's profile, or the one that stands in."""
    return pool.profile or builtin_profile(_FALLBACK_PROFILE)


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
