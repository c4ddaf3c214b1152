"""How a fixed number of engines is divided between prefill and decode.

The law is P/D-Serve's: with batches b_p, b_d and the times T_p of a prefill batch and T_d of an answer (transfer and all of
its decode steps), n_p prefill and n_d decode engines finish min(n_p·b_p/T_p, n_d·b_d/T_d) requests a second, which is most
per engine where both sides are equal:

    n_p / n_d = (b_d · T_p) / (b_p · T_d)

b_p/T_p is what one prefill engine carries and b_d/T_d what one decode engine does, so at λ requests a second the law is the
ratio of the *needs* λ·T_p/b_p and λ·T_d/b_d, which sizing knows anyway, of the traffic of now, at the knee of each role's
objective and with the speed that is seen. Of the whole numbers the one is taken that carries most: rounding the ratio misses
it where one side has few engines.

P/D-Serve moves the division by what it measures, the share of prefill in a request's time. Here each role's need has its own
error budget, which rises where first tokens or gaps miss the objective: the same correction, before the division.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.decision import DecisionInput
from fairlead.errors import BadInput

KEEP_FACTOR = 1.1
"""A division stays until another carries so much more: engines that change roles serve nothing meanwhile."""


@dataclass(frozen=True, slots=True)
class RoleSplit:
    """So many engines of each role, and which share of the load they carry (1 = just all of it). ``rule``: ``ratio``,
    ``kept`` or ``idle``."""

    prefill: int
    decode: int
    carried: float
    rule: str
    reason: str
    inputs: Mapping[str, DecisionInput] = field(default_factory=dict)


def split_by_role(total: int, prefill_engines: float, decode_engines: float, *, now: int | None = None) -> RoleSplit:
    """``total`` engines (two or more) divided so that they carry most of a load that needs so many of each role
    (the ratio of the needs is the law's). At least one of each. ``now`` is how many prefill today: it stays where another
    number would carry less than ``KEEP`` more, and where nothing is needed. Raises BadInput for fewer than two engines."""
    if total < 2:
        raise BadInput(f"{total} engines cannot be divided between two roles", field="total")
    today = None if now is None else min(total - 1, max(1, now))
    if prefill_engines <= 0.0 and decode_engines <= 0.0:
        kept = today or max(1, total // 2)
        return RoleSplit(kept, total - kept, math.inf, "idle", "nothing arrives, so the roles stay")
    tiny = 1e-9 * (prefill_engines + decode_engines)
    needs = max(tiny, prefill_engines), max(tiny, decode_engines)
    carried = {count: min(count / needs[0], (total - count) / needs[1]) for count in range(1, total)}
    best = max(carried, key=lambda count: carried[count])
    rule = "ratio"
    if today is not None and today != best and carried[best] < KEEP_FACTOR * carried[today]:
        best, rule = today, "kept"
    inputs = {
        "prefill_need_engines": DecisionInput(prefill_engines),
        "decode_need_engines": DecisionInput(decode_engines),
        "carried_share": DecisionInput(carried[best]),
    }
    reason = (
        f"{prefill_engines:.1f} engines of prefill to {decode_engines:.1f} of decode are needed: "
        f"{best} to {total - best} carry {carried[best]:.0%} of it"
    )
    return RoleSplit(best, total - best, carried[best], rule, reason, inputs)
