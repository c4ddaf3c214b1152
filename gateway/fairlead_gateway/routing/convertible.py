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

from fairlead.decision import Decision, Input, Rejected
from fairlead.profile import EngineProfile
from fairlead.units import duration
from fairlead_gateway.routing.gaps import SECONDS, Gaps
from fairlead_gateway.routing.holdings import Place
from fairlead_gateway.routing.ledger import Tally

ITL_SHARE: Final = 0.9
"""Share of the inter-token objective that a step with prompts may take."""
BATCH_SLACK: Final = 0.8
"""A decode engine takes prompts while it is filled to less than this share."""
SHORT_TOKENS: Final = 16.0
"""Answers of so many tokens are to bear a run of steps with prompts, and still have their mean gap, where prefill engines are late: a
first token that is missed costs more than a shorter answer now and then."""
LATE_SHARE: Final = 0.7
"""They are from this share of the first-token objective on."""
LIGHT_SHARE: Final = 0.05
"""By so much of itself a prompt may lengthen a step and be as good as none."""
GAP_OLD_SECONDS: Final = 15.0
"""Gaps that were seen longer ago say nothing of now."""

STAYS: Final = frozenset({"slack", "light", "short"})
"""The rules by which a prompt is computed where it is answered."""
GOES: Final = frozenset({"gaps-long", "batch-full", "run-long", "share-full", "sooner-there", "step-full", "long"})
"""Those by which it goes to a prefill engine."""


@dataclass(frozen=True, slots=True)
class Side:
    """One engine as a prompt would find it. ``profile`` is None where nobody knows it; ``own_seconds`` of prefill are the prompt's
    uncached part, ``backlog_seconds`` those before it. ``prefill_share`` of its time is spent on prompts that it computes itself.
    ``gap_seconds`` is the mean gap of streams that ended ``gap_age_seconds`` ago, None where none did."""

    id: str
    profile: EngineProfile | None
    backlog_seconds: float
    own_seconds: float
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


def side_of(
    place: Place, load: Tally, prompt: float, hit: float, profiled: bool, gaps: Gaps | None, now: float
) -> Side:
    """A ready instance with ``load`` on it, others' included, and ``hit`` tokens of the ``prompt``; ``profiled``: its profile is its
    own, not the default one. ``gaps`` is what this gateway saw of it; others are taken to keep as many prompts there for each request
    as this one."""
    gap = None if gaps is None else gaps.seen(place.id, now)
    share = 0.0
    if gaps is not None:
        share = gaps.prefill_share(place.id, now) * max(1.0, load.inflight / max(1, place.tally.inflight))
    return Side(
        place.id,
        place.profile if profiled else None,
        load.backlog_seconds,
        place.profile.prefill(prompt, hit),
        prompt,
        hit,
        load.inflight,
        load.inflight_tokens,
        share,
        None if gap is None else gap[0],
        None if gap is None else gap[1],
    )


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds of a decode engine's steps: without a prompt, with this one, and the longest that it and those that wait make;
    ``stretch`` is how many times as long prefill takes there as in an engine that only prefills. ``mean`` is the gap that answers
    there have on average if the prompt stays, ``run`` what it and those that wait add to the answers that meet them all."""

    plain: float
    with_it: float
    longest: float
    stretch: float
    mean: float
    run: float


def steps(side: Side, profile: EngineProfile) -> Steps:
    """What a prompt makes of the steps of a decode engine."""
    running = side.inflight
    resident = int(side.inflight_tokens)
    plain = profile.step(computed=running, sequences=running, resident=resident)
    room = max(1.0, float(profile.step_tokens - running))
    own = side.uncached_tokens
    each = profile.prefill_token_seconds
    ahead = room if each <= 0.0 else side.backlog_seconds / each

    def step(tokens: float) -> float:
        ours = min(tokens, own)
        return profile.step(
            computed=int(running + tokens),
            sequences=running + 1,
            resident=resident,
            attention=ours * (side.matched_tokens + own - ours / 2.0),
        )

    longest = step(min(room, own + ahead))
    decoding = max(0.0, plain - profile.step_seconds - profile.weights_seconds)
    share = min(0.99, side.prefill_share + side.own_seconds / SECONDS)
    return Steps(
        plain,
        step(min(room, own)),
        longest,
        longest / max(1e-9, longest - decoding),
        plain / (1.0 - share),
        side.backlog_seconds + side.own_seconds,
    )


def where(
    here: Side,
    there: Side | None,
    *,
    itl_seconds: float | None,
    ttft_seconds: float | None,
    way_seconds: float,
    least_tokens: float,
) -> Decision:
    """Who computes a prompt that ``here``, the engine that would answer it, and ``there``, the best prefill engine (None: there is
    none), could. ``chosen`` is that engine. The rule is ``slack``, ``light`` or ``short`` where the prompt stays, and ``long``,
    one of ``GOES`` where it goes. ``way_seconds``: what its KV takes from there to
    here; ``least_tokens``: from how many uncached tokens on a prompt goes where the numbers are not known."""
    profile = here.profile
    if itl_seconds is None or profile is None or there is None or there.profile is None:
        return _by_length(here, there, least_tokens, "inter-token objective" if itl_seconds is None else "profile")
    made = steps(here, profile)
    most = ITL_SHARE * itl_seconds
    first_here = made.plain + (here.backlog_seconds + here.own_seconds) * made.stretch
    leg = there.backlog_seconds + there.own_seconds + way_seconds
    first_there = max(leg, here.backlog_seconds * made.stretch) + 2.0 * made.plain
    batch = (here.inflight + 1) / profile.max_sequences
    memory = (here.inflight_tokens + here.prompt_tokens) / profile.kv_tokens
    full = max(batch, memory)
    fresh = here.gap_age_seconds is not None and here.gap_age_seconds <= GAP_OLD_SECONDS
    gap = here.gap_seconds if fresh else None
    inputs = {
        "uncached_tokens": Input(here.uncached_tokens),
        "step_seconds": Input(made.plain),
        "longest_step_seconds": Input(made.longest),
        "mean_gap_seconds": Input(made.mean),
        "prefill_share": Input(here.prefill_share),
        "step_most_seconds": Input(most),
        "gap_seconds": Input(gap, here.gap_age_seconds if gap is not None else None),
        "filled_share": Input(full),
        "way_seconds": Input(way_seconds),
        f"{here.id}/predicted_ttft_seconds": Input(first_here),
        f"{there.id}/predicted_ttft_seconds": Input(first_there),
    }
    soon, later = f"first token in about {duration(first_here)}", f"{duration(first_there)} through {there.id}"
    slack = f"a gap is {duration(made.mean)} with it, the longest {duration(made.longest)}, of {duration(most)}"
    if made.with_it <= (1.0 + LIGHT_SHARE) * made.plain and first_here <= first_there:
        why = f"{here.uncached_tokens:.0f} tokens to compute hardly lengthen a step of {duration(made.plain)}"
        return _made("light", here, there, why, inputs, first_here)
    if gap is not None and gap > most:
        return _made("gaps-long", there, here, f"{here.id} has gaps of {duration(gap)}", inputs, first_there)
    if full > BATCH_SLACK:
        return _made("batch-full", there, here, f"{here.id} is filled to {full:.0%}", inputs, first_there)
    if made.longest > most:
        if ttft_seconds is None or first_there <= LATE_SHARE * ttft_seconds:
            why = f"the longest step of {here.id} would take {duration(made.longest)}, over {duration(most)}"
            return _made("step-full", there, here, why, inputs, first_there)
        if made.run > SHORT_TOKENS * max(0.0, most - made.plain):
            why = f"{duration(made.run)} of prefill in a row on {here.id}, with steps over {duration(most)}"
            return _made("run-long", there, here, why, inputs, first_there)
        if made.mean > most:
            why = f"gaps on {here.id} would be {duration(made.mean)} on average, over {duration(most)}"
            return _made("share-full", there, here, why, inputs, first_there)
    if first_here > first_there:
        return _made(
            "sooner-there",
            there,
            here,
            f"first token in about {later}, {duration(first_here)} here",
            inputs,
            first_there,
        )
    return _made("slack", here, there, f"{here.id} has slack: {slack}; {soon}, {later}", inputs, first_here)


def _by_length(here: Side, there: Side | None, least_tokens: float, lacking: str) -> Decision:
    """By the limit alone."""
    tokens = here.uncached_tokens
    inputs = {"uncached_tokens": Input(tokens), "least_tokens": Input(least_tokens)}
    unknown = "no prefill engine is ready" if there is None else f"no {lacking} is known"
    if tokens < least_tokens:
        why = f"about {tokens:.0f} tokens to compute, under {least_tokens:.0f} ({unknown})"
        return _made("short", here, there, why, inputs, None)
    why = f"about {tokens:.0f} tokens to compute, {least_tokens:.0f} or more ({unknown})"
    return _made("long", there, here, why, inputs, None)


def _made(
    rule: str, chosen: Side | None, other: Side | None, why: str, inputs: dict[str, Input], ttft_seconds: float | None
) -> Decision:
    return Decision(
        None if chosen is None else chosen.id,
        rule,
        why,
        () if other is None else (Rejected(other.id, why),),
        inputs,
        matched_tokens=None if chosen is None else chosen.matched_tokens,
        ttft_seconds=ttft_seconds,
    )
