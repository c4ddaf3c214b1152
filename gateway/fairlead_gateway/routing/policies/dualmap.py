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
from fairlead.units import format_duration
from fairlead_gateway.routing.policies.policy_input import AssignedRequest, PolicyInput, QueueKey
from fairlead_gateway.routing.policies.scored_decision import scored_decision

SWITCH_SHARE: Final = 0.5
"""Of the objective: from which predicted first token on the hit counts no more."""
MAX_OLDEST_WAIT_SECONDS: Final = 3.0
"""Who waits so long in a queue makes it one to be mended."""


def choose(policy_input: PolicyInput) -> Decision:
    """One of the homes; of one home, that."""
    homes = [policy_input.candidate(home) for home in policy_input.homes]
    scores = {item.id: item.ttft_seconds for item in homes}
    longer = min(homes, key=lambda item: (-item.matched_tokens, item.inflight_tokens, policy_input.tie_break(item.id)))
    sooner = min(homes, key=lambda item: (item.ttft_seconds, item.inflight_tokens, policy_input.tie_break(item.id)))
    limit = SWITCH_SHARE * policy_input.objective_seconds
    if longer.ttft_seconds > limit and sooner is not longer:
        reason = f"the home with the longer hit would take {format_duration(longer.ttft_seconds)}, over {format_duration(limit)}"
        best = sooner
    else:
        best = longer
        equal = all(item.matched_tokens == best.matched_tokens for item in homes)
        reason = "the less busy of homes that hold as much" if equal else "the home with the longer hit"
    return scored_decision(policy_input, best, "dualmap", reason, score_name="predicted_ttft_seconds", scores=scores)


def queue_key(request: AssignedRequest) -> QueueKey:
    """What a queue is sorted by."""
    return _queue_key(request.cached_tokens, request.assigned_at, request.id)


def _queue_key(cached_tokens: float, assigned_at: float, request_id: str) -> QueueKey:
    return -cached_tokens, assigned_at, request_id


@dataclass(frozen=True, slots=True)
class QueuedAssignment:
    """A request that the gateway still holds. ``at`` says of each instance it may be at what of it is cached there (tokens) and
    what the rest takes (seconds); ``twin`` is its other home, None where there is none."""

    id: str
    assigned_at: float
    alternate: str | None
    costs: Mapping[str, tuple[float, float]]

    def queue_key(self, instance: str) -> QueueKey:
        """Where it stands in the queue of an instance."""
        return _queue_key(self.costs[instance][0], self.assigned_at, self.id)


class _EndpointQueue:
    """One instance's: what was sent there and is not prefilled yet, and what is held for it, in order. ``total_seconds`` is until it
    was empty before anything moved. How long each place waits is summed from the front as far as it is asked for: most requests that
    might move are looked at between two moves of their queues."""

    __slots__ = ("_keys", "_pending", "_seconds", "_summed", "total_seconds")

    def __init__(self, pending_seconds: float, entries: Sequence[tuple[QueueKey, float]]) -> None:
        self._pending = pending_seconds
        self.total_seconds = pending_seconds + sum([seconds for _, seconds in entries])
        inside = sorted(entries)
        self._keys = [place for place, _ in inside]
        self._seconds = [seconds for _, seconds in inside]
        self._summed = [0.0]  # of the first so many, as far as nothing has changed

    def seconds_before(self, key: QueueKey) -> float:
        """Seconds before a request at that place begins."""
        summed, index = self._summed, bisect_left(self._keys, key)
        while len(summed) <= index:
            summed.append(summed[-1] + self._seconds[len(summed) - 1])
        return self._pending + summed[index]

    def add(self, key: QueueKey, seconds: float) -> None:
        """One more is held."""
        index = bisect_left(self._keys, key)
        self._keys.insert(index, key)
        self._seconds.insert(index, seconds)
        del self._summed[index + 1 :]

    def remove(self, key: QueueKey) -> None:
        """It is held no more."""
        index = bisect_left(self._keys, key)
        del self._keys[index]
        del self._seconds[index]
        del self._summed[index + 1 :]


class _Move:
    """A request that had better wait at ``to``, with its place and its own seconds here and there."""

    __slots__ = ("request_id", "source", "source_key", "source_seconds", "target", "target_key", "target_seconds")

    def __init__(self, assignment: QueuedAssignment, source: str, target: str) -> None:
        self.request_id = assignment.id
        self.source = source
        self.target = target
        self.source_key, self.source_seconds = assignment.queue_key(source), assignment.costs[source][1]
        self.target_key, self.target_seconds = assignment.queue_key(target), assignment.costs[target][1]

    def gain_seconds(self, queues: Mapping[str, _EndpointQueue]) -> float:
        """By how many seconds its first token comes sooner there."""
        here = queues[self.source].seconds_before(self.source_key) + self.source_seconds
        return here - queues[self.target].seconds_before(self.target_key) - self.target_seconds


def rebalance(
    queued: Mapping[str, Sequence[QueuedAssignment]],
    pending_seconds: Mapping[str, float],
    *,
    objective_seconds: float,
    now: float,
) -> list[tuple[str, str]]:
    """Moves (request, instance) of requests that are ``held``, by instance. ``pending_seconds`` names all instances, in the
    order in which they are neighbours, with what was sent to each and is not prefilled."""
    queues = {
        name: _EndpointQueue(seconds, [(one.queue_key(name), one.costs[name][1]) for one in queued.get(name, ())])
        for name, seconds in pending_seconds.items()
    }
    ring = list(queues)
    neighbours = {name: ring[(index + 1) % len(ring)] for index, name in enumerate(ring)}
    full = {name: queue.total_seconds > objective_seconds for name, queue in queues.items()}
    candidates = []
    for name, assignments in queued.items():
        if needs_rebalance(
            queues[name].total_seconds, [one.assigned_at for one in assignments], objective_seconds, now
        ):
            candidates += _possible_moves(assignments, name, full, neighbours[name])
    gains = sorted([(-move.gain_seconds(queues), move.request_id, index) for index, move in enumerate(candidates)])
    moves = []
    for _, _, index in gains:
        move = candidates[index]
        if move.gain_seconds(queues) > 0.0:
            queues[move.source].remove(move.source_key)
            queues[move.target].add(move.target_key, move.target_seconds)
            moves.append((move.request_id, move.target))
    return moves


def needs_rebalance(total_seconds: float, assigned_at: Sequence[float], objective_seconds: float, now: float) -> bool:
    """Whether a queue is looked at for moves: for how long it is, or for who waits in it."""
    return total_seconds > objective_seconds or (
        bool(assigned_at) and now - min(assigned_at) >= MAX_OLDEST_WAIT_SECONDS
    )


def _possible_moves(
    assignments: Sequence[QueuedAssignment], name: str, full: Mapping[str, bool], neighbour: str
) -> list[_Move]:
    """Where each might go: its other home, or the one behind this when it is as full."""
    found = []
    for assignment in assignments:
        target = assignment.alternate
        if target is None or target not in full or full[target]:
            target = neighbour
        if target != name and target in assignment.costs:
            found.append(_Move(assignment, name, target))
    return found
