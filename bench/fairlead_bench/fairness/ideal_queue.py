"""One ideal queue before all sequences of the engines: what fairness costs at least.

A sequence that ends takes the next request of the caller that was served least for its weight, at
once. A request that has begun is never interrupted. The ideal knows what no gateway knows before:
how long each request takes.

Source: the counters of VTC (arXiv 2401.00588), at one dispatcher and with true lengths.
"""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True, slots=True)
class QueuedWork:
    """A request: when it comes, and how many seconds it takes a sequence."""

    arrival: float
    caller: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A caller that has so many requests in flight at all times, until `end`.

    seconds: of its requests, over and over.
    """

    caller: str
    in_flight: int
    seconds: Sequence[float]
    end: float


@dataclass(slots=True)
class IdealRun:
    """Waits and service of all requests.

    waits: arrival and seconds until it began of each request, by caller.
    served: seconds of sequences by caller, of what ended before the end.
    """

    waits: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)


def ideal_run(
    sequences: int, arrivals: Sequence[QueuedWork], floods: Sequence[ClosedLoop], weights: Mapping[str, float]
) -> IdealRun:
    """Returns what one queue before so many sequences does with the requests."""
    run = IdealRun()
    order = count()
    counts = dict.fromkeys(weights, 0.0)
    waiting: dict[str, deque[QueuedWork]] = {}
    loops = {flood.caller: flood for flood in floods}
    used = dict.fromkeys(loops, 0)
    # Time, number, and what comes (a request) or ends (the request of a sequence).
    events: list[tuple[float, int, QueuedWork, bool]] = []
    free = sequences

    def again(flood: ClosedLoop, now: float) -> None:
        seconds = flood.seconds[used[flood.caller] % len(flood.seconds)]
        used[flood.caller] += 1
        if now < flood.end:
            heapq.heappush(events, (now, next(order), QueuedWork(now, flood.caller, seconds), False))

    for work in arrivals:
        heapq.heappush(events, (work.arrival, next(order), work, False))
    for flood in floods:
        for _ in range(flood.in_flight):
            again(flood, 0.0)
    while events:
        now, _, work, has_ended = heapq.heappop(events)
        if has_ended:
            free += 1
            run.served[work.caller] = run.served.get(work.caller, 0.0) + work.seconds
            if work.caller in loops:
                again(loops[work.caller], now)
        else:
            if work.caller not in waiting:  # no caller saves up what it did not ask for
                others = [counts[caller] for caller in waiting]
                counts[work.caller] = max([counts[work.caller], *([min(others)] if others else [])])
            waiting.setdefault(work.caller, deque()).append(work)
        while free and waiting:
            caller = min(waiting, key=lambda name: counts[name])
            begun = waiting[caller].popleft()
            if not waiting[caller]:
                del waiting[caller]
            free -= 1
            counts[caller] += begun.seconds / weights[caller]
            run.waits.setdefault(caller, []).append((begun.arrival, now - begun.arrival))
            heapq.heappush(events, (now + begun.seconds, next(order), begun, True))
    return run
