"""Decode engines that could take short prompts themselves while they have slack (TokenScale's convertible decoders).

A decode engine below its batch has time left in each step before the inter-token objective. Let steps last θ of the objective
(θ = ``ITL_SHARE``): t = θ·itl. At λ answers of g tokens a second on the engine the batch is then b = λ·g·t, and what is left
of the step computes m prompt tokens:

    m = (t - d - s·b - c·b·ctx - p·b) / (p + q·n/2)        prompt tokens a second = m / t

where the tokens outweigh the floor w, else what t - d - w leaves for their attention. A prompt is taken whole: its n tokens
need n·t/m seconds, which must be inside ``TTFT_SHARE`` of the first-token objective. That gives the longest prompt to
convert.

*When:* the batch at θ·itl is below ``BATCH_SLACK`` of what decode may hold, so that the answers of the prompts taken have
room too. *How much:* m / t tokens a second of each engine. Sizing does not count on it: the slack is there for bursts, until
prefill engines that were ordered are ready. The core tells it with the number of each decode pool, for people; gateways decide for
each prompt from the engine's present load, which they know better (``fairlead_gateway.routing.prefill_placement``).
"""

import math
from dataclasses import dataclass

from fairlead.engine_profile import EngineProfile

ITL_SHARE = 0.9
"""Share of the inter-token objective that steps with prompts may take."""
TTFT_SHARE = 0.5
"""Share of the first-token objective that the prefill of such a prompt may take."""
BATCH_SLACK = 0.8
"""Decode takes prompts while its batch is below this share of what it may hold."""


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """What one engine decodes: answers a second, their tokens on average, and the tokens that a running sequence holds."""

    requests_per_second: float
    output_tokens: float
    context_tokens: float


@dataclass(frozen=True, slots=True)
class DecodeSlack:
    """What one decode engine could take of prefill: prompts of up to ``prompt_tokens``, ``tokens_per_second`` of them.
    Zeros where there is none. ``rule`` is ``slack``, ``batch-full`` or ``step-full``."""

    prompt_tokens: float
    tokens_per_second: float
    rule: str


def decode_slack(
    profile: EngineProfile, decoding: DecodeLoad, *, itl_seconds: float, ttft_seconds: float | None
) -> DecodeSlack:
    """The slack of one engine; ``ttft_seconds`` None = prompts of any length."""
    seconds = ITL_SHARE * itl_seconds
    each = profile.sequence_seconds + profile.resident_token_seconds * decoding.context_tokens
    batch = decoding.requests_per_second * decoding.output_tokens * seconds
    if batch > BATCH_SLACK * _max_batch(profile, decoding.context_tokens, each, itl_seconds):
        return DecodeSlack(0.0, 0.0, "batch-full")
    spent = profile.step_seconds + batch * each
    over_floor = seconds - spent - profile.weights_seconds
    left = seconds - spent - profile.prefill_token_seconds * batch
    room = profile.step_tokens - batch
    if min(over_floor, left, room) <= 0.0:
        return DecodeSlack(0.0, 0.0, "step-full")

    def chunk(prompt: float) -> float:
        """Prompt tokens of a step, of prompts this long."""
        paid = profile.attention_seconds * prompt / 2.0
        token = profile.prefill_token_seconds + paid
        by_tokens = left / token if token > 0.0 else math.inf
        by_floor = over_floor / paid if paid > 0.0 else math.inf
        return min(room, by_tokens, by_floor)

    longest = float(profile.kv_tokens)
    most = math.inf if ttft_seconds is None else TTFT_SHARE * ttft_seconds
    if longest * seconds > most * chunk(longest):
        low, high = 0.0, longest  # n·t/m(n) grows with n
        for _ in range(40):
            middle = (low + high) / 2.0
            low, high = (middle, high) if middle * seconds <= most * chunk(middle) else (low, middle)
        longest = low
    return DecodeSlack(longest, chunk(longest) / seconds, "slack")


def _max_batch(profile: EngineProfile, context: float, each: float, itl_seconds: float) -> float:
    """The largest batch that decodes within the objective, the memory and the limit of sequences."""
    left = itl_seconds - profile.step_seconds
    floor, token = left - profile.weights_seconds, each + profile.prefill_token_seconds
    bounds = [float(profile.max_sequences), profile.kv_tokens / max(1.0, context)]
    bounds += [floor / each] if each > 0.0 else []
    bounds += [left / token] if token > 0.0 else []
    return max(0.0, min(bounds))
