"""Decode engines that take short prompts themselves while they have slack (TokenScale's convertible decoders).

A decode engine below its batch has time left in each step before the inter-token objective. Let steps last θ of the objective
(θ = ``ITL_SHARE``): t = θ·itl. At λ answers of g tokens a second on the engine the batch is then b = λ·g·t, and what is left
of the step computes m prompt tokens:

    m = (t - d - s·b - c·b·ctx - p·b) / (p + q·n/2)        prompt tokens a second = m / t

where the tokens outweigh the floor w, else what t - d - w leaves for their attention. A prompt is taken whole: its n tokens
need n·t/m seconds, which must be inside ``TTFT_SHARE`` of the first-token objective. That gives the longest prompt to
convert.

*When:* the batch at θ·itl is below ``BATCH_SLACK`` of what decode may hold, so that the answers of the prompts taken have
room too. *How much:* m / t tokens a second an engine, times engines. Sizing does not count on it: the slack is there for
bursts, until prefill engines that were ordered are ready.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles.steady import blend, decode_batch, decode_context
from fairlead_autoscaler.roles.values import Traffic

ITL_SHARE = 0.9
"""Share of the inter-token objective that steps with prompts may take."""
TTFT_SHARE = 0.5
"""Share of the first-token objective that the prefill of such a prompt may take."""
BATCH_SLACK = 0.8
"""Decode takes prompts while its batch is below this share of what it may hold."""


@dataclass(frozen=True, slots=True)
class Slack:
    """What decode engines may take of prefill: prompts of up to ``prompt_tokens``, ``tokens_per_second`` of them on all
    engines together. Zeros where there is none. ``rule`` is ``slack``, ``no-objective``, ``batch-full`` or ``step-full``."""

    prompt_tokens: float
    tokens_per_second: float
    rule: str
    reason: str


def slack(profile: EngineProfile, decoding: Sequence[Traffic], objectives: Objectives, *, engines: int) -> Slack:
    """The slack of ``engines`` that decode ``decoding``, shared evenly. Without an inter-token objective nothing says how
    much a step may take, and nothing is converted."""
    if engines < 1 or objectives.itl_seconds is None:
        return Slack(
            0.0, 0.0, "no-objective", "no engine decodes, or no inter-token objective says how long a step may take"
        )
    seconds = ITL_SHARE * objectives.itl_seconds
    mean = blend(decoding)
    batch = 0.0 if mean is None else mean.requests_per_second * mean.output_tokens * seconds / engines
    most = decode_batch(profile, decoding, itl_seconds=objectives.itl_seconds).sequences
    if batch > BATCH_SLACK * most:
        said = f"a batch of {batch:.0f} with at most {most:.0f}: answers of more prompts would have no room"
        return Slack(0.0, 0.0, "batch-full", said)
    held = batch * (profile.sequence_seconds + profile.resident_token_seconds * decode_context(decoding))
    over_floor = seconds - profile.step_seconds - held - profile.weights_seconds
    left = seconds - profile.step_seconds - held - profile.prefill_token_seconds * batch
    if min(over_floor, left) <= 0.0:
        return Slack(0.0, 0.0, "step-full", f"steps with a batch of {batch:.0f} take all of {seconds * 1e3:.0f} ms")
    return _fitting(
        profile, objectives, seconds=seconds, left=left, over_floor=over_floor, batch=batch, engines=engines
    )


def _fitting(
    profile: EngineProfile,
    objectives: Objectives,
    *,
    seconds: float,
    left: float,
    over_floor: float,
    batch: float,
    engines: int,
) -> Slack:
    """The longest prompt that fits in time, and the rate at that length. ``left`` is what of a step prompt tokens may take,
    with their attention; ``over_floor`` what their attention may take where weights outweigh all tokens."""
    room = max(0.0, profile.step_tokens - batch)
    token, pair = profile.prefill_token_seconds, profile.attention_seconds

    def chunk(prompt: float) -> float:
        """Prompt tokens of a step, of prompts this long."""
        paid = pair * prompt / 2.0
        each = token + paid
        by_tokens = left / each if each > 0.0 else math.inf
        by_floor = over_floor / paid if paid > 0.0 else math.inf
        return min(room, by_tokens, by_floor)

    ttft = objectives.ttft_limit(0.0)
    longest = float(profile.kv_tokens)
    if ttft is not None and chunk(longest) * TTFT_SHARE * ttft < longest * seconds:
        low, high = 0.0, longest  # n·t/m(n) grows with n
        for _ in range(40):
            middle = (low + high) / 2.0
            low, high = (middle, high) if middle * seconds <= chunk(middle) * TTFT_SHARE * ttft else (low, middle)
        longest = low
    rate = engines * chunk(longest) / seconds
    said = (
        f"a batch of {batch:.0f} leaves {left * 1e3:.0f} ms of a step: "
        f"prompts of up to {longest:.0f} tokens, {rate:.0f} tokens a second"
    )
    return Slack(longest, rate, "slack", said)
