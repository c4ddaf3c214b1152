"""How many requests of one shape a serving engine carries within the objectives, from its step profile.

In the steady state b sequences decode, and every step also computes the prompt tokens that keep them coming: each sequence
stays g steps, so b/g prompts of n tokens begin in a step.

    t(b) = d + max(w, p·b·(1 + n/g)) + s·b·(1 + 1/g) + c·b·ctx + q·(b/g)·n²/2,    ctx = n + g/2

and b/(g·t(b)) requests finish a second. b is as large as the inter-token objective (t(b) at most that), memory (b·ctx), the
limit of sequences and the step's token budget allow, times ``FILL``, the margin for what varies around the mean.

First tokens are a second bound. A prompt computes for T = p·n + q·n²/2, beside the decode steps that go on in the meantime,
so at r requests a second prefill takes ρ = r·T of the engine, and a prompt waits longer than x for those before it with
probability about ρ·exp(-2·(1-ρ)·x/T). With x what the objective leaves after the prompt itself, ρ may be as large as half of
the error budget allows, and never above ``PREFILL_BUSY``.

A mixed pool serves shapes side by side and each takes its share of the engine: r_1/R_1 + r_2/R_2 + … ≤ 1. That is what the
program of the mix assumes, as Mélange does.
"""

import math

from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles import PREFILL_BUSY

FILL = 0.9
"""Share of the allowed batch that an engine runs at on average."""
_WAIT_SHARE = 0.5


def throughput(profile: EngineProfile, prompt_tokens: float, output_tokens: float, objectives: Objectives) -> float:
    """Requests per second of this shape on one engine; 0 where it cannot meet the objectives even alone."""
    prompt, output = max(1.0, prompt_tokens), max(1.0, output_tokens)
    if prompt + output > profile.kv_tokens:
        return 0.0
    batch = FILL * _batch(profile, prompt, output, objectives.itl_seconds)
    if batch <= 0.0:
        return 0.0
    own = profile.prefill_token_seconds * prompt + profile.attention_seconds * prompt * prompt / 2.0
    step = _step(profile, prompt, output, batch)
    served = batch / (output * step)
    limit = objectives.ttft_limit(prompt)
    busy = PREFILL_BUSY
    if limit is not None:
        left = limit - _first(profile, prompt, output, batch, own)
        if left <= 0.0:
            return 0.0
        busy = min(busy, _busy(left / own, _WAIT_SHARE * (1.0 - objectives.target)))
    return min(served, busy / own)


def _step(profile: EngineProfile, prompt: float, output: float, batch: float) -> float:
    """t(b)."""
    computed = profile.prefill_token_seconds * batch * (1.0 + prompt / output)
    return profile.step_seconds + max(profile.weights_seconds, computed) + batch * _each(profile, prompt, output)


def _each(profile: EngineProfile, prompt: float, output: float) -> float:
    """Seconds that a sequence of the batch adds to a step, beside its tokens."""
    return (
        profile.sequence_seconds * (1.0 + 1.0 / output)
        + profile.resident_token_seconds * (prompt + output / 2.0)
        + profile.attention_seconds * prompt * prompt / (2.0 * output)
    )


def _batch(profile: EngineProfile, prompt: float, output: float, itl_seconds: float | None) -> float:
    """The largest batch within all bounds; 0 where a sequence alone misses the inter-token objective."""
    tokens = 1.0 + prompt / output
    bounds = [
        float(profile.max_sequences),
        profile.kv_tokens / (prompt + output / 2.0),
        profile.step_tokens / tokens,
    ]
    if itl_seconds is not None and output > 1.0:
        left = itl_seconds - profile.step_seconds
        if left < profile.weights_seconds:
            return 0.0
        each = _each(profile, prompt, output)
        by_floor = (left - profile.weights_seconds) / each if each > 0.0 else math.inf
        work = each + profile.prefill_token_seconds * tokens
        bounds += [by_floor, left / work if work > 0.0 else math.inf]
    return min(bounds)


def _first(profile: EngineProfile, prompt: float, output: float, batch: float, own: float) -> float:
    """Seconds from the start of a prompt's first chunk to its first token, while the batch goes on decoding, and the step
    under way when it arrives."""
    decode = (
        profile.step_seconds
        + max(profile.weights_seconds, profile.prefill_token_seconds * batch)
        + batch * (profile.sequence_seconds + profile.resident_token_seconds * (prompt + output / 2.0))
    )
    chunks = max(1.0, math.ceil(prompt / max(1.0, profile.step_tokens - batch)))
    return chunks * decode + own + _step(profile, prompt, output, batch) / 2.0


def _busy(wait: float, share: float) -> float:
    """The largest ρ whose waits beyond ``wait`` (in prefill times) are no more than ``share``."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2.0
        low, high = (middle, high) if middle * math.exp(-2.0 * (1.0 - middle) * wait) <= share else (low, middle)
    return low
