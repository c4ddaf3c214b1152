"""Prefill:decode ratio: a fixed number of engines divided between prefill and decode.

Let b_p and b_d be the batches of an engine of each role. T_p is the time of a prefill batch, T_d
that of an answer, with its transfer and all decode steps. Then n_p prefill and n_d decode engines
finish min(n_p·b_p/T_p, n_d·b_d/T_d) requests per second. That is the most per engine if both sides
are equal:

    n_p / n_d = (b_d · T_p) / (b_p · T_d)

b_p/T_p is the capacity of a prefill engine, b_d/T_d that of a decode engine. So at λ requests per
second the law is the ratio of the demands λ·T_p/b_p and λ·T_d/b_d, which sizing knows. Of the whole
numbers, the one that carries most is taken: rounding the ratio misses it if one side has few
engines.

Source: P/D-Serve, which corrects the division by the measured share of prefill in a request's time.
Here the error budget of each role corrects its demand, before the division.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.decision import DecisionInput
from fairlead.errors import BadInput

KEEP_FACTOR = 1.1
"""A division stays unless another carries this many times as much. While engines change roles they
serve nothing."""


@dataclass(frozen=True, slots=True)
class RoleSplit:
    """The engines of each role.

    carried: share of the load that they carry; 1 is all of it.
    rule: `ratio`, `kept` or `idle`.
    """

    prefill: int
    decode: int
    carried: float
    rule: str
    reason: str
    inputs: Mapping[str, DecisionInput] = field(default_factory=dict)


def split_by_role(total: int, prefill_engines: float, decode_engines: float, *, now: int | None = None) -> RoleSplit:
    """Returns the division of `total` engines that carries most, with at least one engine of each
    role.

    prefill_engines, decode_engines: the demand of each role.
    now: current prefill engines. They stay unless another number carries `KEEP_FACTOR` times as
        much, and also if nothing is needed.

    Raises BadInput for fewer than two engines.
    """
    if total < 2:
        raise BadInput(f"{total} replicas cannot be divided between two roles, which need one each", field="total")
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
