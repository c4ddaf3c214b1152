"""DualMap as its public code does it: two homes, the longer match while the objective is safe.

A prompt's routing key (`prefix.hot_prefixes`) hashes to two homes, which are the only candidates.

1. **Choice.** The home with the longer cached prefix is taken, unless its first token is predicted
   later than half of the objective. Then the sooner one is taken. Ties go to fewer tokens in
   flight, then by hash.
2. **Order.** Assigned requests wait in the gateway, in a queue per instance: longest match first,
   then arrival. An instance gets the next when no prefill waits there. So a long prompt without a
   match waits as long as matches keep coming.
3. **Rebalancing.** If queued and pending work exceeds the objective, or the oldest request waits 3
   s or longer, requests move to where they gain most. That is their other home or, if it is full
   too, the next instance. The largest gain moves first.

Source: DualMap (arXiv 2602.06502) and its public code. Where the two differ (the switch at half of
the objective, the next instance), the code is followed. Changed:

- Keys grow above a share of 2/n and shrink below 1/n as in the paper; the code has fixed shares.
- Seconds come from the engine profile, with the attention that a price per token leaves out.
- Ties go by hash instead of a fixed random seed.
- A round of moves is one pass, each gain computed after the moves before it.
- The code's allowance for engines that finish no prefill for 2 s is left out.

The gateway follows choice and order (`LateBindingQueue`); it moves nothing.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.decision import Decision
from fairlead.units import format_duration
from fairlead_gateway.routing.policies.policy_input import AssignedRequest, PolicyInput, QueueKey, scored_decision

SWITCH_SHARE: Final = 0.5
"""Share of the objective above which the predicted first token counts more than the match."""
MAX_OLDEST_WAIT_SECONDS: Final = 3.0
"""A queue with a request that waits so long is rebalanced."""


def choose(policy_input: PolicyInput) -> Decision:
    """Chooses the home with the longer match, or the sooner one if that home would be too late."""
    homes = [policy_input.candidate(home) for home in policy_input.homes]
    scores = {home.id: home.ttft_seconds for home in homes}
    longer = min(homes, key=lambda home: (-home.matched_tokens, home.inflight_tokens, policy_input.tie_break(home.id)))
    sooner = min(homes, key=lambda home: (home.ttft_seconds, home.inflight_tokens, policy_input.tie_break(home.id)))
    limit = SWITCH_SHARE * policy_input.objective_seconds
    if longer.ttft_seconds > limit and sooner is not longer:
        reason = f"the home with the longer match would take {format_duration(longer.ttft_seconds)}, over {format_duration(limit)}"
        best = sooner
    else:
        best = longer
        equal = all(home.matched_tokens == best.matched_tokens for home in homes)
        reason = "the less busy of homes with equal matches" if equal else "the home with the longer match"
    return scored_decision(policy_input, best, "dualmap", reason, score_name="predicted_ttft_seconds", scores=scores)


def queue_sort_key(request: AssignedRequest) -> QueueKey:
    return _queue_key(request.cached_tokens, request.assigned_at, request.id)


def _queue_key(cached_tokens: float, assigned_at: float, request_id: str) -> QueueKey:
    return -cached_tokens, assigned_at, request_id


@dataclass(frozen=True, slots=True)
class QueuedAssignment:
    """An assigned request that waits in the gateway.

    - alternate: the other home of the request; None if there is none.
    - costs: cached tokens and prefill seconds, by instance.
    """

    id: str
    assigned_at: float
    alternate: str | None
    costs: Mapping[str, tuple[float, float]]

    def queue_sort_key(self, instance: str) -> QueueKey:
        return _queue_key(self.costs[instance][0], self.assigned_at, self.id)


class _EndpointQueue:
    """The queue of one instance: pending seconds, then queued requests in order.

    total_seconds: seconds until the queue is empty, before any move. Waits are summed lazily, since
    most requests are looked up between two moves.
    """

    __slots__ = ("_keys", "_pending", "_seconds", "_summed", "total_seconds")

    def __init__(self, pending_seconds: float, entries: Sequence[tuple[QueueKey, float]]) -> None:
        self._pending = pending_seconds
        self.total_seconds = pending_seconds + sum([seconds for _, seconds in entries])
        inside = sorted(entries)
        self._keys = [place for place, _ in inside]
        self._seconds = [seconds for _, seconds in inside]
        self._summed = [0.0]  # prefix sums, as far as nothing has changed

    def seconds_before(self, key: QueueKey) -> float:
        """Returns the seconds before a request with that key begins."""
        summed, index = self._summed, bisect_left(self._keys, key)
        while len(summed) <= index:
            summed.append(summed[-1] + self._seconds[len(summed) - 1])
        return self._pending + summed[index]

    def add(self, key: QueueKey, seconds: float) -> None:
        index = bisect_left(self._keys, key)
        self._keys.insert(index, key)
        self._seconds.insert(index, seconds)
        del self._summed[index + 1 :]

    def remove(self, key: QueueKey) -> None:
        """Removes the request with that key, which must be queued."""
        index = bisect_left(self._keys, key)
        del self._keys[index]
        del self._seconds[index]
        del self._summed[index + 1 :]


class _Move:
    """A possible move of a request, with its sort key and prefill seconds at source and target."""

    __slots__ = ("request_id", "source", "source_key", "source_seconds", "target", "target_key", "target_seconds")

    def __init__(self, assignment: QueuedAssignment, source: str, target: str) -> None:
        self.request_id = assignment.id
        self.source = source
        self.target = target
        self.source_key, self.source_seconds = assignment.queue_sort_key(source), assignment.costs[source][1]
        self.target_key, self.target_seconds = assignment.queue_sort_key(target), assignment.costs[target][1]

    def gain_seconds(self, queues: Mapping[str, _EndpointQueue]) -> float:
        """Returns how many seconds sooner the first token comes at the target; negative: later."""
        here = queues[self.source].seconds_before(self.source_key) + self.source_seconds
        return here - queues[self.target].seconds_before(self.target_key) - self.target_seconds


def rebalance(
    queued: Mapping[str, Sequence[QueuedAssignment]],
    pending_seconds: Mapping[str, float],
    *,
    objective_seconds: float,
    now: float,
) -> list[tuple[str, str]]:
    """Returns the requests to move, as pairs of request id and new instance.

    - queued: assigned requests by instance.
    - pending_seconds: prefill that waits at each instance. The order of its keys defines the
      next instance.
    """
    queues = {
        name: _EndpointQueue(
            seconds,
            [(assignment.queue_sort_key(name), assignment.costs[name][1]) for assignment in queued.get(name, ())],
        )
        for name, seconds in pending_seconds.items()
    }
    ring = list(queues)
    neighbours = {name: ring[(index + 1) % len(ring)] for index, name in enumerate(ring)}
    full = {name: queue.total_seconds > objective_seconds for name, queue in queues.items()}
    candidates = []
    for name, assignments in queued.items():
        if needs_rebalance(
            queues[name].total_seconds, [assignment.assigned_at for assignment in assignments], objective_seconds, now
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
    """Returns True if a queue is longer than the objective, or its oldest request waits too
    long.
    """
    return total_seconds > objective_seconds or (
        bool(assigned_at) and now - min(assigned_at) >= MAX_OLDEST_WAIT_SECONDS
    )


def _possible_moves(
    assignments: Sequence[QueuedAssignment], name: str, full: Mapping[str, bool], neighbour: str
) -> list[_Move]:
    """Returns the possible moves of requests away from `name`: to the other home or, if that is
    full or absent, to `neighbour`.

    A request without costs for its target gets no move.
    """
    found = []
    for assignment in assignments:
        target = assignment.alternate
        if target is None or target not in full or full[target]:
            target = neighbour
        if target != name and target in assignment.costs:
            found.append(_Move(assignment, name, target))
    return found
