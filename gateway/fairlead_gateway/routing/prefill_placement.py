"""Where a prompt is computed when prefill and decode are apart: on a prefill engine, or on the decode engine that answers it
(TokenScale's convertible decoders, for every prompt anew).

A decode engine below its batch has time left in each step before the inter-token objective, and a prompt that it computes
itself travels nowhere. So it does, if nobody there is hurt by it:

- *the batch has room*: sequences and KV tokens stay below ``BATCH_SLACK`` of what the engine holds. Longer steps keep every answer
  there longer, and in a full engine that is throughput lost;
- *the steps have room*. Either the longest step that the prompt can make, with what already waits there, takes at most ``most``,
  which is ``ITL_SHARE`` of the inter-token objective:

      m    = min(step tokens - b, uncached + those that wait)            prompt tokens in one step
      step = d + max(w, p·(b + m)) + s·(b + 1) + c·resident + q·m·context

  with b sequences in flight: then every gap is within it, whatever follows whom. Or, where prefill engines are late (``there`` takes
  ``LATE_SHARE`` of its objective), some gaps pass it, but the objective, which is one of an answer's mean gap, is kept:

      run  = backlog + own                   ≤ ``SHORT_TOKENS`` · (most - plain step): an answer of so many tokens absorbs it
      mean = plain step / (1 - share)        ≤ most

  ``share`` is that of prefill in the engine's time over the last ``gaps.SECONDS``, this prompt included. Prefill on decode engines
  is thereby bounded to 1 - plain step / most of their time;
- *the gaps seen agree*: where this gateway's own streams from there were further apart lately than ``most`` (a profile that is wrong,
  load that nobody told of), there is no slack, whatever the sums say;
- *the first token is no later* than by way of the best prefill engine:

      here  = step + (backlog + own) · stretch         stretch: how much longer steps take there than in an engine that only prefills
      there = max(backlog and own of the prefill engine + way, backlog here · stretch) + 2 · step

  ``way`` is what KV takes to travel. As here ≤ there, the first-token objective is met here whenever it would be met there, and when
  neither meets it the sooner is taken: decode then takes a part of a burst that prefill engines are too few for.

A prompt that is as good as cached (it lengthens a step by no more than ``LIGHT_SHARE``) never travels. Where one of the numbers is
not known (no inter-token objective, no profile of the engine), prompts of up to a limit stay and longer ones go.

Source: TokenScale (convertible decoders: a few engines that take chunks in bursts), papers.md "flip by request class". Ours: no
engine has the property for good, every prompt asks anew, by the same numbers as routing.
"""

from dataclasses import dataclass
from typing import Final

from fairlead.decision import Decision, DecisionInput, RejectedCandidate
from fairlead.engine_profile import EngineProfile
from fairlead.units import format_duration
from fairlead_gateway.routing.endpoint import Endpoint
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.load.inter_token_times import WINDOW_SECONDS, InterTokenTimes

ITL_SHARE: Final = 0.9
"""Share of the inter-token objective that a step with prompts may take."""
BATCH_SLACK: Final = 0.8
"""A decode engine takes prompts while it is filled to less than this share."""
MIN_ANSWER_TOKENS: Final = 16.0
"""Answers of so many tokens are to bear a run of steps with prompts, and still have their mean gap, where prefill engines are late: a
first token that is missed costs more than a shorter answer now and then."""
LATE_SHARE: Final = 0.7
"""They are from this share of the first-token objective on."""
LIGHT_SHARE: Final = 0.05
"""By so much of itself a prompt may lengthen a step and be as good as none."""
MAX_GAP_AGE_SECONDS: Final = 15.0
"""Gaps that were seen longer ago say nothing of now."""

LOCAL_RULES: Final = frozenset({"slack", "light", "short"})
"""The rules by which a prompt is computed where it is answered."""
REMOTE_RULES: Final = frozenset(
    {"gaps-long", "batch-full", "run-long", "share-full", "sooner-there", "step-full", "long"}
)
"""Those by which it goes to a prefill engine."""


@dataclass(frozen=True, slots=True)
class PrefillOption:
    """One engine as a prompt would find it. ``profile`` is None where nobody knows it; ``own_seconds`` of prefill are the prompt's
    uncached part, ``backlog_seconds`` those before it. ``prefill_share`` of its time is spent on prompts that it computes itself.
    ``gap_seconds`` is the mean gap of streams that ended ``gap_age_seconds`` ago, None where none did."""

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
        """What of the prompt it would compute, at least one token."""
        return max(1.0, self.prompt_tokens - self.matched_tokens)


def prefill_option(
    endpoint: Endpoint,
    load: EndpointLoad,
    prompt: float,
    cached: float,
    has_profile: bool,
    inter_token: InterTokenTimes | None,
    now: float,
) -> PrefillOption:
    """A ready instance with ``load`` on it, others' included, and ``hit`` tokens of the ``prompt``; ``profiled``: its profile is its
    own, not the default one. ``gaps`` is what this gateway saw of it; others are taken to keep as many prompts there for each request
    as this one."""
    gap = None if inter_token is None else inter_token.mean_gap(endpoint.id, now)
    share = 0.0
    if inter_token is not None:
        share = inter_token.prefill_share(endpoint.id, now) * max(1.0, load.inflight / max(1, endpoint.load.inflight))
    return PrefillOption(
        endpoint.id,
        endpoint.profile if has_profile else None,
        load.backlog_seconds,
        endpoint.profile.prefill_time(prompt, cached),
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
    """Seconds of a decode engine's steps: without a prompt, with this one, and the longest that it and those that wait make;
    ``stretch`` is how many times as long prefill takes there as in an engine that only prefills. ``mean`` is the gap that answers
    there have on average if the prompt stays, ``run`` what it and those that wait add to the answers that meet them all."""

    plain_seconds: float
    with_prompt_seconds: float
    longest_seconds: float
    stretch: float
    mean_gap_seconds: float
    run_seconds: float


def estimate_steps(option: PrefillOption, profile: EngineProfile) -> StepEstimate:
    """What a prompt makes of the steps of a decode engine."""
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
    decode: PrefillOption,
    prefill: PrefillOption | None,
    *,
    itl_seconds: float | None,
    ttft_seconds: float | None,
    transfer_seconds: float,
    min_remote_tokens: float,
) -> Decision:
    """Who computes a prompt that ``here``, the engine that would answer it, and ``there``, the best prefill engine (None: there is
    none), could. ``chosen`` is that engine. The rule is ``slack``, ``light`` or ``short`` where the prompt stays, and ``long``,
    one of ``GOES`` where it goes. ``way_seconds``: what its KV takes from there to
    here; ``least_tokens``: from how many uncached tokens on a prompt goes where the numbers are not known."""
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
    soon, later = (
        f"first token in about {format_duration(local_ttft)}",
        f"{format_duration(remote_ttft)} through {prefill.id}",
    )
    slack = (
        f"a gap is {format_duration(steps.mean_gap_seconds)} with it, "
        f"the longest {format_duration(steps.longest_seconds)}, of {format_duration(max_step_seconds)}"
    )
    if steps.with_prompt_seconds <= (1.0 + LIGHT_SHARE) * steps.plain_seconds and local_ttft <= remote_ttft:
        reason = f"{decode.uncached_tokens:.0f} tokens to compute hardly lengthen a step of {format_duration(steps.plain_seconds)}"
        return _decision("light", decode, prefill, reason, inputs, local_ttft)
    if gap is not None and gap > max_step_seconds:
        return _decision(
            "gaps-long", prefill, decode, f"{decode.id} has gaps of {format_duration(gap)}", inputs, remote_ttft
        )
    if filled_share > BATCH_SLACK:
        return _decision(
            "batch-full", prefill, decode, f"{decode.id} is filled to {filled_share:.0%}", inputs, remote_ttft
        )
    if steps.longest_seconds > max_step_seconds:
        if ttft_seconds is None or remote_ttft <= LATE_SHARE * ttft_seconds:
            reason = (
                f"the longest step of {decode.id} would take {format_duration(steps.longest_seconds)}, "
                f"over {format_duration(max_step_seconds)}"
            )
            return _decision("step-full", prefill, decode, reason, inputs, remote_ttft)
        if steps.run_seconds > MIN_ANSWER_TOKENS * max(0.0, max_step_seconds - steps.plain_seconds):
            reason = (
                f"{format_duration(steps.run_seconds)} of prefill in a row on {decode.id}, "
                f"with steps over {format_duration(max_step_seconds)}"
            )
            return _decision("run-long", prefill, decode, reason, inputs, remote_ttft)
        if steps.mean_gap_seconds > max_step_seconds:
            reason = (
                f"gaps on {decode.id} would be {format_duration(steps.mean_gap_seconds)} on average, "
                f"over {format_duration(max_step_seconds)}"
            )
            return _decision("share-full", prefill, decode, reason, inputs, remote_ttft)
    if local_ttft > remote_ttft:
        return _decision(
            "sooner-there",
            prefill,
            decode,
            f"first token in about {later}, {format_duration(local_ttft)} here",
            inputs,
            remote_ttft,
        )
    return _decision("slack", decode, prefill, f"{decode.id} has slack: {slack}; {soon}, {later}", inputs, local_ttft)


def _place_by_length(
    decode: PrefillOption, prefill: PrefillOption | None, min_remote_tokens: float, missing: str
) -> Decision:
    """By the limit alone."""
    tokens = decode.uncached_tokens
    inputs = {"uncached_tokens": DecisionInput(tokens), "least_tokens": DecisionInput(min_remote_tokens)}
    unknown = "no prefill engine is ready" if prefill is None else f"no {missing} is known"
    if tokens < min_remote_tokens:
        reason = f"about {tokens:.0f} tokens to compute, under {min_remote_tokens:.0f} ({unknown})"
        return _decision("short", decode, prefill, reason, inputs, None)
    reason = f"about {tokens:.0f} tokens to compute, {min_remote_tokens:.0f} or more ({unknown})"
    return _decision("long", prefill, decode, reason, inputs, None)


def _decision(
    rule: str,
    chosen: PrefillOption | None,
    other: PrefillOption | None,
    reason: str,
    inputs: dict[str, DecisionInput],
    ttft_seconds: float | None,
) -> Decision:
    return Decision(
        None if chosen is None else chosen.id,
        rule,
        reason,
        () if other is None else (RejectedCandidate(other.id, reason),),
        inputs,
        matched_tokens=None if chosen is None else chosen.matched_tokens,
        ttft_seconds=ttft_seconds,
    )
