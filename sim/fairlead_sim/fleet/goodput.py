"""Smooth goodput: what users got out of their answers, as one number that neither waiting nor giving up can raise.

Plain goodput counts an answer or not, so a server gains by abandoning what is late already. Here (``research/papers.md``, B6) a
user is taken to read: the first token is due ``ttft_seconds`` after the request, each one after it ``token_seconds`` after the one
before. A token that comes later than it is due stops the reader, and everything after it is due that much later (the slip is
carried). The benefit of an answer of n tokens is

    w(n) · max(0, 1 - alpha · idle / (ttft_seconds + token_seconds · n))        idle = the sum of all slips

with w(n) = n, and for an answer that was dropped minus ``beta`` per token that was sent in vain, never more than the same answer
complete would have brought. Goodput is the sum of benefits over engine-seconds.

What holds, and is tested on drawn timelines: a token delivered later never raises it; dropping an answer never raises it; with
``alpha`` to infinity (and ``beta`` to 0) it becomes the tokens of the answers that were never late, plain goodput; over replicas
it adds up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fairlead_sim.fleet.request import RequestResult


@dataclass(frozen=True, slots=True)
class TokenDeadlines:
    """How fast an answer is read and how much waiting costs. ``token_seconds`` 0 is a program that waits for the whole answer."""

    ttft_seconds: float = 5.0
    token_seconds: float = 0.05
    alpha: float = 1.0
    beta: float = 1.0


def idle_seconds(deadlines: TokenDeadlines, arrival: float, times: Iterable[float]) -> float:
    """How long a reader stood still over tokens that came at ``times``."""
    idle = 0.0
    due = arrival + deadlines.ttft_seconds
    for at in times:
        if at > due + idle:
            idle = at - due
        due += deadlines.token_seconds
    return idle


def benefit(deadlines: TokenDeadlines, arrival: float, times: Sequence[float], *, dropped: bool = False) -> float:
    """Of one answer, in tokens read with pleasure. ``times`` are when its tokens came, those of a dropped one until then."""
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
    """Tokens read with pleasure per second of an engine. ``engine_seconds`` must be positive."""
    deadlines = deadlines or TokenDeadlines()
    total = sum(
        [benefit(deadlines, result.arrival, result.token_times, dropped=result.error is not None) for result in results]
    )
    return total / engine_seconds


def plain_goodput(
    served: Iterable[RequestResult], engine_seconds: float, reader: TokenDeadlines | None = None
) -> float:
    """The tokens of answers in which no token came later than it was due, per second of an engine."""
    reader = reader or TokenDeadlines()
    good = [
        sum([end - begin for begin, end in one.spans])
        for one in served
        if one.error is None and idle_seconds(reader, one.arrival, one.token_times) <= 0.0
    ]
    return sum(good) / engine_seconds
