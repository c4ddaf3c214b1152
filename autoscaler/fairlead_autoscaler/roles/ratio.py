"""How a fixed number of engines is divided between prefill and decode, and which way a division that has become wrong should
move.

The law is P/D-Serve's: with batches b_p, b_d and the times T_p of a prefill batch and T_d of an answer (transfer and all of
its decode steps), n_p prefill and n_d decode engines finish min(n_p·b_p/T_p, n_d·b_d/T_d) requests a second, which is most
per engine where both sides are equal:

    n_p / n_d = (b_d · T_p) / (b_p · T_d),    T_d = transfer + answer · t(b_d)

Ours differs in three things: T_p and T_d come from the step profile and the traffic of now instead of a measured scenario;
the transfer counts into T_d only as the time that a sequence holds its place in the decode batch; and of the whole numbers
the one with the most throughput is taken, which rounding the ratio misses when one side has few engines.

The law stands on estimates, answers' lengths above all. The *direction* stands on what is measured: where prefill (waiting
included) takes more of a request's time than the plan expects, prompts are what is short, where less, decode.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.decision import Input
from fairlead.errors import BadInput
from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles.sizing import DECODE_FILL, PREFILL_BUSY
from fairlead_autoscaler.roles.steady import blend, decode_batch, mean_prefill_seconds
from fairlead_autoscaler.roles.values import Traffic, Transfer

KEEP = 1.1
"""A division stays until another carries so much more: engines that change roles serve nothing meanwhile."""
_TOLERANCE = 1.3
"""How far the observed share of prefill may be from the expected one, as a factor, before it counts."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests a second that one engine of each role carries, and the seconds and batches they follow from. ``ratio`` is n_p
    / n_d."""

    prefill: float
    decode: float
    prefill_seconds: float
    decode_seconds: float
    batch_sequences: float

    @property
    def ratio(self) -> float:
        """Prefill engines for each decode engine (the law)."""
        return self.decode / self.prefill


@dataclass(frozen=True, slots=True)
class Split:
    """So many engines of each role, and which share of the load they carry (1 = just all of it). ``rule``: ``ratio``,
    ``kept`` or ``idle``."""

    prefill: int
    decode: int
    carried: float
    rule: str
    reason: str
    inputs: Mapping[str, Input] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Direction:
    """``prefill`` is +1 (one engine more of it), -1 (one more of decode) or 0; with why."""

    prefill: int
    rule: str
    reason: str


def rates(
    prefill: EngineProfile,
    decode: EngineProfile,
    traffic: Sequence[Traffic],
    objectives: Objectives,
    *,
    transfer: Transfer | None = None,
    busy: float = PREFILL_BUSY,
    fill: float = DECODE_FILL,
) -> Rates | None:
    """What one engine of each role carries of this traffic; None where nothing arrives. ``busy`` and ``fill`` are the
    margins of ``sizing`` (both 1: at saturation)."""
    mean = blend(traffic)
    if mean is None:
        return None
    seconds = mean_prefill_seconds(prefill, traffic)
    batch = decode_batch(decode, traffic, itl_seconds=objectives.itl_seconds, fill=fill)
    travels = (transfer or Transfer(0.0)).of(mean.prompt_tokens)
    answer = travels + max(1.0, mean.output_tokens) * batch.step_seconds
    return Rates(busy / seconds, batch.sequences / answer, seconds, answer, batch.sequences)


def split(total: int, prefill_engines: float, decode_engines: float, *, now: int | None = None) -> Split:
    """``total`` engines (two or more) divided so that they carry most of a load that needs so many of each role
    (``Need.engines``, or what any other sizing says; the ratio of the needs is the law's). At least one of each. ``now``
    is how many prefill today: it stays where another number would carry less than ``KEEP`` more, and where nothing is
    needed. Raises BadInput for fewer than two engines."""
    if total < 2:
        raise BadInput(f"{total} engines cannot be divided between two roles", field="total")
    today = None if now is None else min(total - 1, max(1, now))
    if prefill_engines <= 0.0 and decode_engines <= 0.0:
        kept = today or max(1, total // 2)
        return Split(kept, total - kept, math.inf, "idle", "nothing arrives, so the roles stay")
    tiny = 1e-9 * (prefill_engines + decode_engines)
    needs = max(tiny, prefill_engines), max(tiny, decode_engines)
    carried = {count: min(count / needs[0], (total - count) / needs[1]) for count in range(1, total)}
    best = max(carried, key=lambda count: carried[count])
    rule = "ratio"
    if today is not None and today != best and carried[best] < KEEP * carried[today]:
        best, rule = today, "kept"
    inputs = {
        "prefill_need_engines": Input(prefill_engines),
        "decode_need_engines": Input(decode_engines),
        "carried_share": Input(carried[best]),
    }
    reason = (
        f"{prefill_engines:.1f} engines of prefill to {decode_engines:.1f} of decode are needed: "
        f"{best} to {total - best} carry {carried[best]:.0%} of it"
    )
    return Split(best, total - best, carried[best], rule, reason, inputs)


def direction(
    prefill_seconds: float | None, total_seconds: float | None, expected: Rates, *, tolerance: float = _TOLERANCE
) -> Direction:
    """Which role is short, by T_p / T_total as measured: mean seconds from arrival to the end of prefill and to the last
    token, over recent requests. None (nobody could tell, or nothing finished) moves nothing. ``expected`` is what the plan's
    engines should take; its share allows for the wait at the planned load, once the prefill itself."""
    if prefill_seconds is None or total_seconds is None or total_seconds <= 0.0:
        return Direction(0, "unknown", "nobody measured how long prefill takes")
    share = prefill_seconds / total_seconds
    alone = expected.prefill_seconds / (expected.prefill_seconds + expected.decode_seconds)
    waited = 2.0 * expected.prefill_seconds / (2.0 * expected.prefill_seconds + expected.decode_seconds)
    said = f"prefill takes {share:.0%} of a request's time"
    if share > tolerance * waited:
        return Direction(1, "prefill-short", f"{said}, at most {waited:.0%} expected: prompts wait")
    if share < alone / tolerance:
        return Direction(-1, "decode-short", f"{said}, at least {alone:.0%} expected: answers wait")
    return Direction(0, "balanced", f"{said}, as expected")
