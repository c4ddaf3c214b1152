"""DualMap as its public code does it: two hashed homes, the longer hit while the objective is safe, and queues that are mended.

A prompt's key reaches as deep as it is shared (``hotness``) and hashes to two homes, and nobody else is asked.

1. **Choice.** The home that holds more of the prompt is taken, unless its first token is predicted later than half the objective;
   then the one whose first token is sooner. Equal hits: the one with fewer tokens in flight, and then a lot per request.
2. **Order.** The gateway holds what it has assigned, a queue for each instance: longest hit first, then arrival. An instance is
   given the next when it has no prefill before it any more. So a long prompt without a hit waits as long as hits keep coming.
3. **Rebalancing.** Where what is queued and pending exceeds the objective, or the oldest waits 3 s or longer, requests move to where
   they gain most: to their other home, or, if that is as full, to the instance behind it. Largest gain first, while there is one.

Source: DualMap (arXiv 2602.06502) and its public code; where the two differ (the switch at half the objective, the neighbour),
the code. What we changed: keys grow beyond a share of 2/n and shrink below 1/n as in the paper (the code has fixed shares for
its own fleet); seconds come of the engine's profile, with the attention that a price per token leaves out; ties of the code's
fixed random seed are a lot per request; a round of moves is made in one pass, each gain computed with the moves before it,
instead of a simulation of all queues after each; the code's allowance for engines that finish no prefill for 2 s is left out.

Live, where a gateway holds nothing, only the choice is DualMap's: requests wait in the engines, in their order of arrival.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead.decision import Decision
from fairlead.units import duration
from fairlead_gateway.routing.presets.answer import chosen
from fairlead_gateway.routing.presets.question import Question

SWITCH_SHARE: Final = 0.5
"""Of the objective: from which predicted first token on the hit counts no more."""
OLDEST_SECONDS: Final = 3.0
"""Who waits so long in a queue makes it one to be mended."""

Order = tuple[float, float, str]


def choose(question: Question) -> Decision:
    """One of the homes; of one home, that."""
    homes = [question.option(home) for home in question.homes]
    scores = {item.id: item.ttft_seconds for item in homes}
    longer = min(homes, key=lambda item: (-item.matched_tokens, item.inflight_tokens, question.lot(item.id)))
    sooner = min(homes, key=lambda item: (item.ttft_seconds, item.inflight_tokens, question.lot(item.id)))
    limit = SWITCH_SHARE * question.objective_seconds
    if longer.ttft_seconds > limit and sooner is not longer:
        reason = f"the home with the longer hit would take {duration(longer.ttft_seconds)}, over {duration(limit)}"
        best = sooner
    else:
        best = longer
        equal = all(item.matched_tokens == best.matched_tokens for item in homes)
        reason = "the less busy of homes that hold as much" if equal else "the home with the longer hit"
    return chosen(question, best, "dualmap", reason, what="predicted_ttft_seconds", scores=scores)


def order(hit_tokens: float, arrival: float, request_id: str) -> Order:
    """What a queue is sorted by, smallest first."""
    return -hit_tokens, arrival, request_id


@dataclass(frozen=True, slots=True)
class Held:
    """A request that the gateway still holds. ``at`` says of each instance it may be at what of it is cached there (tokens) and
    what the rest takes (seconds); ``twin`` is its other home, None where there is none."""

    id: str
    arrival: float
    twin: str | None
    at: Mapping[str, tuple[float, float]]

    def place(self, instance: str) -> Order:
        """Where it stands in the queue of an instance."""
        return order(self.at[instance][0], self.arrival, self.id)


@dataclass(slots=True)
class _Queue:
    """One instance's: what was sent there and is not prefilled yet, and what is held for it, in order with its seconds."""

    pending_seconds: float
    orders: list[Order] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds until it is empty."""
        return self.pending_seconds + sum(self.seconds.values())

    def before(self, place: Order) -> float:
        """Seconds before a request at that place begins."""
        ahead = self.orders[: bisect_left(self.orders, place)]
        return self.pending_seconds + sum([self.seconds[name] for _, _, name in ahead])

    def put(self, place: Order, seconds: float) -> None:
        """One more is held."""
        insort(self.orders, place)
        self.seconds[place[2]] = seconds

    def take(self, place: Order) -> None:
        """It is held no more."""
        del self.orders[bisect_left(self.orders, place)]
        del self.seconds[place[2]]


def rebalance(
    held: Mapping[str, Sequence[Held]], pending_seconds: Mapping[str, float], *, objective_seconds: float, now: float
) -> list[tuple[str, str]]:
    """Moves (request, instance) of requests that are ``held``, by instance. ``pending_seconds`` names all instances, in the
    order in which they are neighbours, with what was sent to each and is not prefilled."""
    queues = {name: _Queue(seconds) for name, seconds in pending_seconds.items()}
    for name, ones in held.items():
        for one in ones:
            queues[name].put(one.place(name), one.at[name][1])
    wishes = []
    for name, ones in held.items():
        oldest = min((one.arrival for one in ones), default=now)
        if queues[name].total > objective_seconds or now - oldest >= OLDEST_SECONDS:
            wishes += [
                (_gain(queues, one, name, to), one, name, to)
                for one, to in _targets(ones, name, queues, objective_seconds)
            ]
    wishes.sort(key=lambda wish: (-wish[0], wish[1].id))
    moves = []
    for _, one, name, to in wishes:
        if _gain(queues, one, name, to) > 0.0:
            queues[name].take(one.place(name))
            queues[to].put(one.place(to), one.at[to][1])
            moves.append((one.id, to))
    return moves


def _targets(
    ones: Sequence[Held], name: str, queues: Mapping[str, _Queue], objective_seconds: float
) -> Iterator[tuple[Held, str]]:
    """Where each might go: its other home, or the one behind that when it is as full."""
    full = {other: queue.total > objective_seconds for other, queue in queues.items()}
    ring = list(queues)
    for one in ones:
        to = one.twin
        if to is None or to not in full or full[to]:
            to = ring[(ring.index(name) + 1) % len(ring)]
        if to != name and to in one.at:
            yield one, to


def _gain(queues: Mapping[str, _Queue], one: Held, name: str, to: str) -> float:
    """By how many seconds its first token comes sooner there."""
    here = queues[name].before(one.place(name)) + one.at[name][1]
    return here - queues[to].before(one.place(to)) - one.at[to][1]
