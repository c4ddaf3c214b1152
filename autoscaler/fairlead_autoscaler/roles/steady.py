"""What one engine sustains of a traffic, from its step profile: a prefill engine in prompts, a decode engine in answers.

*Prefill.* Under load an engine packs chunks of several prompts into each step until its token budget B is spent, so a prompt
of n new tokens costs n/B of the fixed part of a step, its own tokens and its attention:

    T_p = n/B · (d + max(w, p·B)) + s·(1 + n/B) + q·n·(cached + n/2) + h·cached

*Decode.* With b sequences that have ctx tokens on average, a step takes t(b) = d + max(w, p·b) + s·b + c·b·ctx, and each
sequence gets a token every t(b). The batch is the largest b with t(b) within the inter-token objective, with b·ctx inside
the KV memory, and within the engine's sequences. A sequence is in the batch for as many steps as its answer has tokens, so
the mean context of the batch weighs classes by rate × answer, and an answer half done stands for all its ages: ctx = prompt
+ answer/2.

Means, not distributions: what varies around them is left to the margins in ``sizing``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles.values import Traffic


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch that a decode engine runs at: ``sequences``, what bounds it (``itl``, ``kv`` or ``sequences``), seconds of a
    step and requests per second that finish. ``met`` is False where not even one sequence meets the objective or fits the
    memory; the batch is then what one sequence makes of it."""

    sequences: float
    bound: str
    step_seconds: float
    requests_per_second: float
    met: bool = True


def total_rate(traffic: Sequence[Traffic]) -> float:
    """Requests per second of all classes."""
    return sum([max(0.0, one.requests_per_second) for one in traffic])


def blend(traffic: Sequence[Traffic]) -> Traffic | None:
    """All classes as one, means weighted by rate; None where nothing arrives."""
    rate = total_rate(traffic)
    if rate <= 0.0:
        return None

    def mean(of: Sequence[float]) -> float:
        pairs = zip(traffic, of, strict=True)
        return sum([max(0.0, one.requests_per_second) * value for one, value in pairs]) / rate

    return Traffic(
        rate,
        mean([one.prompt_tokens for one in traffic]),
        mean([one.output_tokens for one in traffic]),
        mean([one.cached_tokens for one in traffic]),
    )


def prefill_seconds(profile: EngineProfile, one: Traffic) -> float:
    """Engine seconds that a prompt of this class costs when steps are full (T_p)."""
    new = max(1.0, one.prompt_tokens - one.cached_tokens)
    share = new / profile.step_tokens
    step = profile.step_seconds + max(profile.weights_seconds, profile.prefill_token_seconds * profile.step_tokens)
    return (
        share * step
        + profile.sequence_seconds * (1.0 + share)
        + profile.attention_seconds * new * (one.cached_tokens + new / 2.0)
        + profile.hit_token_seconds * one.cached_tokens
    )


def mean_prefill_seconds(profile: EngineProfile, traffic: Sequence[Traffic]) -> float:
    """The same of the mean request; 0 where nothing arrives."""
    rate = total_rate(traffic)
    if rate <= 0.0:
        return 0.0
    return sum([max(0.0, one.requests_per_second) * prefill_seconds(profile, one) for one in traffic]) / rate


def decode_context(traffic: Sequence[Traffic]) -> float:
    """Mean KV tokens of a sequence in a decode batch; 0 where nothing arrives."""
    weights = [max(0.0, one.requests_per_second) * max(1.0, one.output_tokens) for one in traffic]
    total = sum(weights)
    if total <= 0.0:
        return 0.0
    contexts = [one.prompt_tokens + one.output_tokens / 2.0 for one in traffic]
    return sum([weight * context for weight, context in zip(weights, contexts, strict=True)]) / total


def decode_step(profile: EngineProfile, sequences: float, context: float) -> float:
    """Seconds of a step in which so many sequences decode (t(b); ``sequences`` may be a mean)."""
    return (
        profile.step_seconds
        + max(profile.weights_seconds, profile.prefill_token_seconds * sequences)
        + sequences * (profile.sequence_seconds + profile.resident_token_seconds * context)
    )


def decode_batch(
    profile: EngineProfile, traffic: Sequence[Traffic], *, itl_seconds: float | None, fill: float = 1.0
) -> Batch:
    """The batch at the objective, filled to the share ``fill`` (0..1) of what would be allowed."""
    context = max(1.0, decode_context(traffic))
    bounds = {"sequences": float(profile.max_sequences), "kv": profile.kv_tokens / context}
    if itl_seconds is not None:
        bounds["itl"] = _within(profile, context, itl_seconds)
    bound = min(bounds, key=lambda name: bounds[name])
    sequences = max(1.0, fill * bounds[bound])
    seconds = decode_step(profile, sequences, context)
    mean = blend(traffic)
    answer = max(1.0, mean.output_tokens) if mean is not None else 1.0
    return Batch(sequences, bound, seconds, sequences / (answer * seconds), met=bounds[bound] >= 1.0)


def _within(profile: EngineProfile, context: float, itl_seconds: float) -> float:
    """The largest batch whose step takes at most ``itl_seconds``; 0 where one sequence alone takes longer."""
    each = profile.sequence_seconds + profile.resident_token_seconds * context
    left = itl_seconds - profile.step_seconds
    floor = left - profile.weights_seconds
    if floor < 0.0:
        return 0.0
    by_floor = floor / each if each > 0.0 else math.inf
    by_tokens = (
        left / (each + profile.prefill_token_seconds) if each + profile.prefill_token_seconds > 0.0 else math.inf
    )
    return min(by_floor, by_tokens)
