"""Decode slack: the short prompts that decode engines could compute themselves.

A decode engine below its largest batch has time left in each step before the TPOT target. Let steps
last the share θ of the target (`ITL_SHARE`): t = θ·itl. The engine decodes λ answers of g tokens
per second, so its batch is b = λ·g·t. The rest of the step computes m prompt tokens:

    m = (t - d - s·b - c·b·ctx - p·b) / (p + q·n/2)        prompt tokens per second = m / t

if the tokens take longer than the floor w; else t - d - w is left for their attention. A prompt is
taken whole: its n tokens need n·t/m seconds, which must be within `TTFT_SHARE` of the TTFT target.
That gives the longest prompt to take.

There is slack while the batch at θ·itl is below `BATCH_SLACK` of the largest batch, so that the
outputs of these prompts fit too. Its size is m / t tokens per second of each engine. Sizing does
not use it: it is for bursts, until ordered prefill engines are ready. Gateways decide for each
prompt by the current load of the engine, which they know better
(`fairlead_gateway.routing.prefill_placement`).

Source: the convertible decoders of TokenScale.
"""

import math
from dataclasses import dataclass

from fairlead.engine_profile import EngineProfile

ITL_SHARE = 0.9
"""Share of the TPOT target that steps with prompts may take."""
TTFT_SHARE = 0.5
"""Share of the TTFT target that the prefill of such a prompt may take."""
BATCH_SLACK = 0.8
"""Decode takes prompts while its batch is below this share of the largest one."""


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """The load of one decode engine.

    output_tokens: mean of an answer.
    context_tokens: mean of a running sequence.
    """

    requests_per_second: float
    output_tokens: float
    context_tokens: float


@dataclass(frozen=True, slots=True)
class DecodeSlack:
    """The prompts that one decode engine could compute; zeros if there is no slack.

    prompt_tokens: the longest prompt.
    rule: `slack`, `batch-full` or `step-full`.
    """

    prompt_tokens: float
    tokens_per_second: float
    rule: str


def decode_slack(
    profile: EngineProfile, load: DecodeLoad, *, itl_seconds: float, ttft_seconds: float | None
) -> DecodeSlack:
    """Returns the slack of one engine.

    ttft_seconds: None: prompts may have any length.
    """
    seconds = ITL_SHARE * itl_seconds
    per_sequence = profile.sequence_seconds + profile.resident_token_seconds * load.context_tokens
    batch = load.requests_per_second * load.output_tokens * seconds
    if batch > BATCH_SLACK * _max_batch(profile, load.context_tokens, per_sequence, itl_seconds):
        return DecodeSlack(0.0, 0.0, "batch-full")
    spent = profile.step_seconds + batch * per_sequence
    over_floor = seconds - spent - profile.weights_seconds
    left = seconds - spent - profile.prefill_token_seconds * batch
    room = profile.step_tokens - batch
    if min(over_floor, left, room) <= 0.0:
        return DecodeSlack(0.0, 0.0, "step-full")

    def chunk(prompt: float) -> float:
        """Returns the prompt tokens that fit in one step, for prompts of `prompt` tokens."""
        attention = profile.attention_seconds * prompt / 2.0
        token = profile.prefill_token_seconds + attention
        by_tokens = left / token if token > 0.0 else math.inf
        by_floor = over_floor / attention if attention > 0.0 else math.inf
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


def _max_batch(profile: EngineProfile, context_tokens: float, per_sequence: float, itl_seconds: float) -> float:
    """Returns the largest batch within the TPOT target, the KV memory and the number of
    sequences.
    """
    left = itl_seconds - profile.step_seconds
    floor, token = left - profile.weights_seconds, per_sequence + profile.prefill_token_seconds
    bounds = [float(profile.max_sequences), profile.kv_tokens / max(1.0, context_tokens)]
    bounds += [floor / per_sequence] if per_sequence > 0.0 else []
    bounds += [left / token] if token > 0.0 else []
    return max(0.0, min(bounds))
