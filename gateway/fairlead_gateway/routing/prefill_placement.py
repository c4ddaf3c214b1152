"""Prefill placement: whether a prefill instance computes a prompt, or the decode instance that
answers it.

A decode instance below its batch limit has time left in each step before the inter-token objective.
A prompt that it computes itself needs no KV transfer. The decode instance computes the prompt if
all of the following hold.

- *The batch has room*: sequences and KV tokens stay below `BATCH_SLACK` of the instance's limits.
  Longer steps keep every response longer, which costs throughput in a full engine.
- *The steps have room*. The longest step that the prompt can cause, with what already waits, takes
  at most `most`, which is `ITL_SHARE` of the inter-token objective. With b sequences in flight,
  every gap is then within it:

      m    = min(step tokens - b, uncached + waiting tokens)             prompt tokens in a step
      step = d + max(w, p·(b + m)) + s·(b + 1) + c·resident + q·m·context

If prefill instances are late (`there` takes `LATE_SHARE` of its objective), single gaps may exceed
it. The objective is for the mean gap of a response, and is met if:

      run  = backlog + own           ≤ `MIN_ANSWER_TOKENS` · (most - plain step)
      mean = plain step / (1 - share)        ≤ most

`share` is the share of prefill in the instance's time over the last `WINDOW_SECONDS` of
`inter_token_times`, this prompt included. So prefill is bounded to 1 - plain step / most.
- *Observed gaps agree*: if streams of this gateway had larger gaps there lately than `most`, there
  is no slack. Then the profile is wrong, or there is unknown load.
- *The first token is no later* than with the best prefill instance:

      here  = step + (backlog + own) · stretch        stretch: steps there ÷ steps of prefill alone
      there = max(backlog and own of the prefill instance + transfer, backlog here · stretch)
              + 2 · step

As here ≤ there, the TTFT objective is met here whenever it would be met there. If neither meets it,
the sooner one is taken. So decode takes a part of a burst that is too large for the prefill
instances.

A nearly cached prompt, which lengthens a step by at most `LIGHT_SHARE`, stays on the decode
instance if the last of these holds. If the inter-token objective or the profile is unknown, prompts
up to a limit stay, and longer ones go to a prefill instance.

Source: TokenScale (convertible decoders: a few engines that take chunks in bursts). Changed: no
engine is convertible permanently; each prompt is placed by the same numbers as routing.
"""

from dataclasses import dataclass
from typing import Final

from fairlead.decision import Decision, DecisionInput, DecisionText, RejectedCandidate
from fairlead.engine_profile import EngineProfile
from fairlead.units import format_duration
from fairlead_gateway.routing.load.inflight import Endpoint, EndpointLoad
from fairlead_gateway.routing.load.inter_token_times import WINDOW_SECONDS, InterTokenTimes

ITL_SHARE: Final = 0.9
"""Share of the inter-token objective that a step with prompts may take."""
BATCH_SLACK: Final = 0.8
"""A decode instance takes prompts while it is filled to less than this share."""
MIN_ANSWER_TOKENS: Final = 16.0
"""Responses of so many tokens keep their mean gap in a run of steps with prompts.

It applies where prefill instances are late. A missed first token costs more than a late short
response now and then.
"""
LATE_SHARE: Final = 0.7
"""Prefill instances are late from this share of the TTFT objective on."""
LIGHT_SHARE: Final = 0.05
"""A prompt that lengthens a step by at most this share counts as none."""
MAX_GAP_AGE_SECONDS: Final = 15.0
"""Older gaps say nothing about the present."""

LOCAL_RULES: Final = frozenset({"slack", "light", "short"})
"""The rules by which the decode instance computes the prompt."""
REMOTE_RULES: Final = frozenset(
    {"gaps-long", "batch-full", "run-long", "share-full", "sooner-there", "step-full", "long"}
)
"""The rules by which a prefill instance computes it."""


@dataclass(frozen=True, slots=True)
class PrefillEstimate:
    """The state of an instance, with the estimated cost of computing a prompt there.

    - profile: None if unknown.
    - prefill_seconds: time for the uncached part of the prompt.
    - prefill_share: share of its time that the instance spends on prefill.
    - gap_seconds: mean gap of streams that ended `gap_age_seconds` ago; None without any.
    """

    id: str
    profile: EngineProfile | None
    backlog_seconds: float
    prefill_seconds: float
    prompt_tokens: float
    matched_tokens: float
    inflight: int
    inflight_tokens: float
    prefill_share: float = 0.0
    gap_seconds: float | None = None
    gap_age_seconds: float | None = None

    @property
    def uncached_tokens(self) -> float:
        return max(1.0, self.prompt_tokens - self.matched_tokens)


def estimate_prefill(
    endpoint: Endpoint,
    load: EndpointLoad,
    prompt: float,
    cached: float,
    has_profile: bool,
    inter_token: InterTokenTimes | None,
    now: float,
    load_seconds: float = 0.0,
) -> PrefillEstimate:
    """Returns the state of a ready instance and the cost of computing a prompt there.

    - load: includes other processes.
    - has_profile: the profile is the instance's, not the default one.
    - load_seconds: to load cached tokens from slower memory.
    - inter_token: what this gateway observed. Other gateways are assumed to cause as much prefill
      there per request in flight.
    """
    gap = None if inter_token is None else inter_token.mean_gap(endpoint.id, now)
    share = 0.0
    if inter_token is not None:
        share = inter_token.prefill_share(endpoint.id, now) * max(1.0, load.inflight / max(1, endpoint.load.inflight))
    return PrefillEstimate(
        endpoint.id,
        endpoint.profile if has_profile else None,
        load.backlog_seconds,
        load_seconds + endpoint.profile.prefill_time(prompt, cached),
        prompt,
        cached,
        load.inflight,
        load.inflight_tokens,
        share,
        None if gap is None else gap[0],
        None if gap is None else gap[1],
    )


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Estimated steps of a decode instance, in seconds.

    - plain_seconds, with_prompt_seconds, longest_seconds: a step without the prompt, with it, and
      the longest that it can cause.
    - stretch: prefill time there ÷ prefill time on an instance that only prefills.
    - mean_gap_seconds: the mean gap of its responses if it computes the prompt.
    - run_seconds: seconds of prefill in a row, during which responses decode in longer steps.
    """

    plain_seconds: float
    with_prompt_seconds: float
    longest_seconds: float
    stretch: float
    mean_gap_seconds: float
    run_seconds: float


def estimate_steps(option: PrefillEstimate, profile: EngineProfile) -> StepEstimate:
    """Returns the estimated steps of a decode instance if it computes the prompt."""
    running = option.inflight
    resident = int(option.inflight_tokens)
    plain = profile.step_time(computed=running, sequences=running, resident=resident)
    step_budget = max(1.0, float(profile.step_tokens - running))
    uncached = option.uncached_tokens
    token_seconds = profile.prefill_token_seconds
    ahead = step_budget if token_seconds <= 0.0 else option.backlog_seconds / token_seconds

    def step(tokens: float) -> float:
        ours = min(tokens, uncached)
        return profile.step_time(
            computed=int(running + tokens),
            sequences=running + 1,
            resident=resident,
            attention=ours * (option.matched_tokens + uncached - ours / 2.0),
        )

    longest = step(min(step_budget, uncached + ahead))
    decoding = max(0.0, plain - profile.step_seconds - profile.weights_seconds)
    share = min(0.99, option.prefill_share + option.prefill_seconds / WINDOW_SECONDS)
    return StepEstimate(
        plain,
        step(min(step_budget, uncached)),
        longest,
        longest / max(1e-9, longest - decoding),
        plain / (1.0 - share),
        option.backlog_seconds + option.prefill_seconds,
    )


def place_prefill(
    decode: PrefillEstimate,
    prefill: PrefillEstimate | None,
    *,
    itl_seconds: float | None,
    ttft_seconds: float | None,
    transfer_seconds: float,
    min_remote_tokens: float,
) -> Decision:
    """Returns the decision on the instance that computes a prompt.

    - decode: the instance that answers.
    - prefill: the best prefill instance; None: there is none.
    - transfer_seconds: time of the KV transfer from `prefill` to `decode`.
    - min_remote_tokens: uncached tokens from which a prompt goes to `prefill` if numbers are
      missing.

    The rule of the decision is one of `LOCAL_RULES` or `REMOTE_RULES`. For a long prompt without a
    prefill instance, `chosen` is None.
    """
    profile = decode.profile
    if itl_seconds is None or profile is None or prefill is None or prefill.profile is None:
        return _place_by_length(
            decode, prefill, min_remote_tokens, "inter-token objective" if itl_seconds is None else "profile"
        )
    steps = estimate_steps(decode, profile)
    max_step_seconds = ITL_SHARE * itl_seconds
    local_ttft = steps.plain_seconds + (decode.backlog_seconds + decode.prefill_seconds) * steps.stretch
    remote_seconds = prefill.backlog_seconds + prefill.prefill_seconds + transfer_seconds
    remote_ttft = max(remote_seconds, decode.backlog_seconds * steps.stretch) + 2.0 * steps.plain_seconds
    batch = (decode.inflight + 1) / profile.max_sequences
    memory = (decode.inflight_tokens + decode.prompt_tokens) / profile.kv_tokens
    filled_share = max(batch, memory)
    gap_is_recent = decode.gap_age_seconds is not None and decode.gap_age_seconds <= MAX_GAP_AGE_SECONDS
    gap = decode.gap_seconds if gap_is_recent else None
    inputs = {
        "uncached_tokens": DecisionInput(decode.uncached_tokens),
        "step_seconds": DecisionInput(steps.plain_seconds),
        "longest_step_seconds": DecisionInput(steps.longest_seconds),
        "mean_gap_seconds": DecisionInput(steps.mean_gap_seconds),
        "prefill_share": DecisionInput(decode.prefill_share),
        "step_most_seconds": DecisionInput(max_step_seconds),
        "gap_seconds": DecisionInput(gap, decode.gap_age_seconds if gap is not None else None),
        "filled_share": DecisionInput(filled_share),
        "way_seconds": DecisionInput(transfer_seconds),
        f"{decode.id}/predicted_ttft_seconds": DecisionInput(local_ttft),
        f"{prefill.id}/predicted_ttft_seconds": DecisionInput(remote_ttft),
    }
    if steps.with_prompt_seconds <= (1.0 + LIGHT_SHARE) * steps.plain_seconds and local_ttft <= remote_ttft:
        plain = format_duration(steps.plain_seconds)
        reason = f"{decode.uncached_tokens:.0f} tokens to compute hardly lengthen a step of {plain}"
        return _decision("light", decode, prefill, reason, inputs, local_ttft)
    is_late = ttft_seconds is not None and remote_ttft > LATE_SHARE * ttft_seconds
    obstacle = _obstacle(decode, steps, max_step_seconds, gap, filled_share, is_late)
    later = f"{format_duration(remote_ttft)} through {prefill.id}"
    if obstacle is None and local_ttft > remote_ttft:
        obstacle = "sooner-there", f"first token in about {later}, {format_duration(local_ttft)} here"
    if obstacle is not None:
        return _decision(obstacle[0], prefill, decode, obstacle[1], inputs, remote_ttft)
    reason = (
        f"{decode.id} has slack: a gap is {format_duration(steps.mean_gap_seconds)} with it, "
        f"the longest {format_duration(steps.longest_seconds)}, of {format_duration(max_step_seconds)}; "
        f"first token in about {format_duration(local_ttft)}, {later}"
    )
    return _decision("slack", decode, prefill, reason, inputs, local_ttft)


def _obstacle(
    decode: PrefillEstimate,
    steps: StepEstimate,
    max_step_seconds: float,
    gap: float | None,
    filled_share: float,
    is_prefill_late: bool,
) -> tuple[str, str] | None:
    """Returns rule and reason against a prefill on the decode instance; None if nothing is against
    it.

    gap: mean observed gap in seconds; None without a recent one.
    """
    limit = format_duration(max_step_seconds)
    if gap is not None and gap > max_step_seconds:
        return "gaps-long", f"{decode.id} has gaps of {format_duration(gap)}"
    if filled_share > BATCH_SLACK:
        return "batch-full", f"{decode.id} is filled to {filled_share:.0%}"
    if steps.longest_seconds <= max_step_seconds:
        return None
    if not is_prefill_late:
        longest = format_duration(steps.longest_seconds)
        return "step-full", f"the longest step of {decode.id} would take {longest}, over {limit}"
    if steps.run_seconds > MIN_ANSWER_TOKENS * max(0.0, max_step_seconds - steps.plain_seconds):
        run = format_duration(steps.run_seconds)
        return "run-long", f"{run} of prefill in a row on {decode.id}, with steps over {limit}"
    if steps.mean_gap_seconds > max_step_seconds:
        mean = format_duration(steps.mean_gap_seconds)
        return "share-full", f"gaps on {decode.id} would be {mean} on average, over {limit}"
    return None


def _place_by_length(
    decode: PrefillEstimate, prefill: PrefillEstimate | None, min_remote_tokens: float, missing: str
) -> Decision:
    """Returns the decision by `min_remote_tokens` alone, because the number `missing` is
    unknown.
    """
    tokens = decode.uncached_tokens
    inputs = {"uncached_tokens": DecisionInput(tokens), "least_tokens": DecisionInput(min_remote_tokens)}
    unknown = "no prefill instance is ready" if prefill is None else f"no {missing} is known"
    if tokens < min_remote_tokens:
        reason = f"about {tokens:.0f} tokens to compute, under {min_remote_tokens:.0f} ({unknown})"
        return _decision("short", decode, prefill, reason, inputs, None)
    reason = f"about {tokens:.0f} tokens to compute, {min_remote_tokens:.0f} or more ({unknown})"
    return _decision("long", prefill, decode, reason, inputs, None)


def _decision(
    rule: str,
    chosen: PrefillEstimate | None,
    other: PrefillEstimate | None,
    reason: str,
    inputs: dict[str, DecisionInput],
    ttft_seconds: float | None,
) -> Decision:
    return Decision(
        None if chosen is None else chosen.id,
        rule,
        DecisionText(reason, () if other is None else (RejectedCandidate(other.id, reason),), inputs),
        matched_tokens=None if chosen is None else chosen.matched_tokens,
        ttft_seconds=ttft_seconds,
    )
