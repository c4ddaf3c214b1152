"""How many prefill and how many decode engines a traffic needs, each role by what bounds it.

*Prefill* by prompt work: rate × T_p engines would be busy all the time; they may be busy ``PREFILL_BUSY`` (0.78: above it
the wait grows faster than any forecast is good). Where few engines serve prompts that take a good part of the first-token
objective, that is too much, since a prompt that finds all of them busy waits for a whole one. So the engines are also as
many as keep the tail of the wait: with n engines, busy ρ each, a prompt waits longer than x with probability about

    P(wait > x) = C(n, ρ) · exp(-2·n·(1-ρ)·x / T_p),    C(n, ρ) = ρ^(√(2(n+1)) - 1)   (Sakasegawa's form of Erlang's C)

(2: prefill times of one class hardly vary, which halves the wait of exponential ones). x is what the objective leaves
after the prompt itself, its transfer and the first decode step; half of the error budget may be spent on it.

*Decode* by residence: rate × answer tokens ÷ tokens per second at the batch of the objective, filled to ``DECODE_FILL``: a
batch that is full on average is over its memory half of the time, and then prompts wait outside or sequences are preempted.

Neither raises: an objective that no number of engines meets gives what carries the load, and the rule ``impossible``.
"""

import math
from collections.abc import Sequence

from fairlead.decision import Input
from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles.steady import (
    blend,
    decode_batch,
    decode_context,
    decode_step,
    mean_prefill_seconds,
    prefill_seconds,
)
from fairlead_autoscaler.roles.values import Need, Traffic, Transfer

PREFILL_BUSY = 0.78
"""Share of its time that a prefill engine may compute."""
DECODE_FILL = 0.9
"""Share of the allowed batch that a decode engine runs at on average."""
_WAIT_SHARE = 0.5
"""Share of the error budget that waiting for a prefill engine may use up."""


def size_prefill(
    profile: EngineProfile,
    traffic: Sequence[Traffic],
    objectives: Objectives,
    *,
    transfer: Transfer | None = None,
    busy: float = PREFILL_BUSY,
) -> Need:
    """Prefill engines for ``traffic``. ``busy`` (0..1) is the most that one may be. Rules: ``idle`` (nothing arrives),
    ``prefill-busy``, ``prefill-tail``, ``impossible``."""
    mean = blend(traffic)
    if mean is None:
        return Need(0.0, 0, 0.0, "idle", "no prompts arrive")
    seconds = mean_prefill_seconds(profile, traffic)
    work = mean.requests_per_second * seconds
    engines, rule = work / busy, "prefill-busy"
    left = _left(profile, traffic, objectives, transfer)
    reason = f"{work:.2f} engines of prefill work at most {busy:.0%} busy"
    if left is not None and left <= 0.0:
        rule = "impossible"
        reason += "; its longest prompts miss the first-token objective even alone"
    elif left is not None:
        replicas = _for_tail(work, seconds, left, _WAIT_SHARE * (1.0 - objectives.target), math.ceil(engines))
        if replicas > math.ceil(engines):
            engines, rule = float(replicas), "prefill-tail"
            reason = (
                f"{work:.2f} engines of prefill work; fewer than {replicas} would let prompts wait over {left:.2f} s"
            )
    inputs = {
        "requests_per_second": Input(mean.requests_per_second),
        "prefill_seconds": Input(seconds),
        "prefill_work_engines": Input(work),
        "busy_most": Input(busy),
        "wait_most_seconds": Input(left),
    }
    return Need(engines, max(1, _up(engines)), busy / seconds, rule, reason, inputs)


def size_decode(
    profile: EngineProfile, traffic: Sequence[Traffic], objectives: Objectives, *, fill: float = DECODE_FILL
) -> Need:
    """Decode engines for ``traffic``. Rules: ``idle``, ``decode-itl``, ``decode-kv``, ``decode-sequences`` (what bounds the
    batch), ``impossible`` (one sequence alone misses the objective or does not fit)."""
    mean = blend(traffic)
    if mean is None:
        return Need(0.0, 0, 0.0, "idle", "no answers are due")
    batch = decode_batch(profile, traffic, itl_seconds=objectives.itl_seconds, fill=fill)
    engines = mean.requests_per_second / batch.requests_per_second
    bounds = {"itl": "inter-token objective", "kv": "KV memory", "sequences": "limit of sequences"}
    reason = (
        f"{mean.requests_per_second:.2f} answers a second of {mean.output_tokens:.0f} tokens; "
        f"the {bounds[batch.bound]} allows a batch of {batch.sequences:.0f}, "
        f"{batch.requests_per_second:.2f} answers a second an engine"
    )
    if not batch.met:
        reason += "; not even one sequence keeps it"
    inputs = {
        "requests_per_second": Input(mean.requests_per_second),
        "output_tokens": Input(mean.output_tokens),
        "context_tokens": Input(decode_context(traffic)),
        "batch_sequences": Input(batch.sequences),
        "step_seconds": Input(batch.step_seconds),
        "fill": Input(fill),
    }
    rule = f"decode-{batch.bound}" if batch.met else "impossible"
    return Need(engines, max(1, _up(engines)), batch.requests_per_second, rule, reason, inputs)


def _left(
    profile: EngineProfile, traffic: Sequence[Traffic], objectives: Objectives, transfer: Transfer | None
) -> float | None:
    """Seconds that the class with the least slack may wait for a prefill engine; None without a first-token objective."""
    slack = []
    for one in traffic:
        limit = objectives.ttft_limit(one.prompt_tokens)
        if limit is None or one.requests_per_second <= 0.0:
            continue
        travels = (transfer or Transfer(0.0)).of(one.prompt_tokens)
        first = decode_step(profile, 1.0, one.prompt_tokens)
        slack.append(limit - prefill_seconds(profile, one) - travels - first)
    return min(slack, default=None)


def _for_tail(work: float, seconds: float, left: float, share: float, least: int) -> int:
    """The fewest engines, from ``least`` on, whose prompts wait over ``left`` no more often than ``share``."""
    replicas = max(1, least, math.floor(work) + 1)
    while _late(replicas, work / replicas, seconds, left) > share and replicas < 4 * (least + 1):
        replicas += 1
    return replicas


def _late(replicas: int, busy: float, seconds: float, left: float) -> float:
    """How often a prompt waits longer than ``left``."""
    waits = busy ** (math.sqrt(2.0 * (replicas + 1)) - 1.0)
    return float(waits * math.exp(-2.0 * replicas * (1.0 - busy) * left / seconds))


def _up(engines: float) -> int:
    """Whole engines; a hair over a whole number is that number."""
    return math.ceil(engines - 1e-9)
