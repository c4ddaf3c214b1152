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

Live the choice and the order are DualMap's (``berths``); nothing is moved there.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.decision import Decision
from fairlead.units import duration
from fairlead_gateway.routing.presets.answer import chosen
from fairlead_gateway.routing.presets.question import Question
from fairlead_gateway.routing.presets.stay import Order, Stay

SWITCH_SHARE: Final = 0.5
"""Of the objective: from which predicted first token on the hit counts no more."""
OLDEST_SECONDS: Final = 3.0
"""Who waits so long in a queue makes it one to be mended."""


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


def order(stay: Stay) -> Order:
    """What a queue is sorted by."""
    return _order(stay.hit_tokens, stay.arrived, stay.id)


def _order(hit_tokens: float, arrival: float, request_id: str) -> Order:
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
        return _order(self.at[instance][0], self.arrival, self.id)


class _Queue:
    """One instance's: what was sent there and is not prefilled yet, and what is held for it, in order. ``total_seconds`` is until it
    was empty before anything moved. How long each place waits is summed from the front as far as it is asked for: most requests that
    might move are looked at between two moves of their queues."""

    __slots__ = ("_orders", "_pending", "_seconds", "_summed", "total_seconds")

    def __init__(self, pending_seconds: float, ones: Sequence[tuple[Order, float]]) -> None:
        self._pending = pending_seconds
        self.total_seconds = pending_seconds + sum([seconds for _, seconds in ones])
        inside = sorted(ones)
        self._orders = [place for place, _ in inside]
        self._seconds = [seconds for _, seconds in inside]
        self._summed = [0.0]  # of the first so many, as far as nothing has changed

    def before(self, place: Order) -> float:
        """Seconds before a request at that place begins."""
        summed, index = self._summed, bisect_left(self._orders, place)
        while len(summed) <= index:
            summed.append(summed[-1] + self._seconds[len(summed) - 1])
        return self._pending + summed[index]

    def put(self, place: Order, seconds: float) -> None:
        """One more is held."""
        index = bisect_left(self._orders, place)
        self._orders.insert(index, place)
        self._seconds.insert(index, seconds)
        del self._summed[index + 1 :]

    def take(self, place: Order) -> None:
        """It is held no more."""
        index = bisect_left(self._orders, place)
        del self._orders[index]
        del self._seconds[index]
        del self._summed[index + 1 :]


class _Wish:
    """A request that had better wait at ``to``, with its place and its own seconds here and there."""

    __slots__ = ("here", "here_seconds", "name", "source", "there", "there_seconds", "to")

    def __init__(self, one: Held, source: str, to: str) -> None:
        self.name = one.id
        self.source = source
        self.to = to
        self.here, self.here_seconds = one.place(source), one.at[source][1]
        self.there, self.there_seconds = one.place(to), one.at[to][1]

    def gain(self, queues: Mapping[str, _Queue]) -> float:
        """By how many seconds its first token comes sooner there."""
        here = queues[self.source].before(self.here) + self.here_seconds
        return here - queues[self.to].before(self.there) - self.there_seconds


def rebalance(
    held: Mapping[str, Sequence[Held]], pending_seconds: Mapping[str, float], *, objective_seconds: float, now: float
) -> list[tuple[str, str]]:
    """Moves (request, instance) of requests that are ``held``, by instance. ``pending_seconds`` names all instances, in the
    order in which they are neighbours, with what was sent to each and is not prefilled."""
    queues = {
        name: _Queue(seconds, [(one.place(name), one.at[name][1]) for one in held.get(name, ())])
        for name, seconds in pending_seconds.items()
    }
    ring = list(queues)
    behind = {name: ring[(index + 1) % len(ring)] for index, name in enumerate(ring)}
    full = {name: queue.total_seconds > objective_seconds for name, queue in queues.items()}
    wishes = []
    for name, ones in held.items():
        if mended(queues[name].total_seconds, [one.arrival for one in ones], objective_seconds, now):
            wishes += _wishes(ones, name, full, behind[name])
    gains = sorted([(-wish.gain(queues), wish.name, index) for index, wish in enumerate(wishes)])
    moves = []
    for _, _, index in gains:
        wish = wishes[index]
        if wish.gain(queues) > 0.0:
            queues[wish.source].take(wish.here)
            queues[wish.to].put(wish.there, wish.there_seconds)
            moves.append((wish.name, wish.to))
    return moves


def mended(total_seconds: float, arrivals: Sequence[float], objective_seconds: float, now: float) -> bool:
    """Whether a queue is looked at for moves: for how long it is, or for who waits in it."""
    return total_seconds > objective_seconds or (bool(arrivals) and now - min(arrivals) >= OLDEST_SECONDS)


def _wishes(ones: Sequence[Held], name: str, full: Mapping[str, bool], behind: str) -> list[_Wish]:
    """Where each might go: its other home, or the one behind this when it is as full."""
    found = []
    for one in ones:
        to = one.twin
        if to is None or to not in full or full[to]:
            to = behind
        if to != name and to in one.at:
            found.append(_Wish(one, name, to))
    return found
