"""Smooth goodput: what users get out of answers, as one number that neither delay nor abandoning
raises.

Why: plain goodput counts an answer or not, so that a server gains by abandoning late answers.

The model is a user who reads. The first token is due ``ttft_seconds`` after the request, each
further one ``token_seconds`` after the one before. A late token stops the reader, and all later
deadlines move by the delay (the slip is carried). The benefit of an answer of n tokens is

    w(n) · max(0, 1 - alpha · idle / (ttft_seconds + token_seconds · n))

where idle is the sum of all slips and w(n) = n. A dropped answer costs ``beta`` per token that was
sent in vain, and never brings more than the complete answer. Goodput is the sum of benefits per
engine-second.

Properties, tested on random timelines:

- A later token never raises it.
- A dropped answer never raises it.
- With ``alpha`` to infinity and ``beta`` to 0 it becomes plain goodput: the tokens of the answers
  that were never late.
- It adds up over replicas.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fairlead_sim.fleet.request import RequestResult


@dataclass(frozen=True, slots=True)
class TokenDeadlines:
    """The speed at which a user reads, and the price of waiting.

    token_seconds: 0 describes a program that waits for the whole answer.
    """

    ttft_seconds: float = 5.0
    token_seconds: float = 0.05
    alpha: float = 1.0
    beta: float = 1.0


def idle_seconds(deadlines: TokenDeadlines, arrival: float, times: Iterable[float]) -> float:
    """Returns how many seconds a reader waits in all for tokens that come at ``times``."""
    idle = 0.0
    due = arrival + deadlines.ttft_seconds
    for at in times:
        if at > due + idle:
            idle = at - due
        due += deadlines.token_seconds
    return idle


def benefit(deadlines: TokenDeadlines, arrival: float, times: Sequence[float], *, dropped: bool = False) -> float:
    """Returns the benefit of one answer, in tokens.

    times: when its tokens came; those of a dropped answer up to the drop.
    """
    tokens = len(times)
    if dropped:
        return -deadlines.beta * tokens
    if not tokens:
        return 0.0
    idle = idle_seconds(deadlines, arrival, times)
    return tokens * max(0.0, 1.0 - deadlines.alpha * idle / (deadlines.ttft_seconds + deadlines.token_seconds * tokens))


def smooth_goodput(
    results: Iterable[RequestResult], engine_seconds: float, deadlines: TokenDeadlines | None = None
) -> float:
    """Returns the benefit of all answers in tokens per engine-second.

    engine_seconds: must be positive.
    """
    deadlines = deadlines or TokenDeadlines()
    total = sum(
        [benefit(deadlines, result.arrival, result.token_times, dropped=result.error is not None) for result in results]
    )
    return total / engine_seconds
