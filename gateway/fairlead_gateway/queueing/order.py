"""Who goes next of the requests that are held.

1. **Overdue** ones before all others: who has waited ``OVERDUE`` times the objective goes now, the latest by that measure first.
   This is what bounds everybody's wait, whatever the rules below prefer.
2. The highest **tier** that has anyone.
3. In it the tenants with **credit**: those that were served least for their weight, and all within ``QUANTUM_SECONDS`` of them, so
   that deadlines are still compared among several tenants.
4. Among theirs, those that can still meet their objective if they start now (slack ≥ 0), by **deadline**.
5. Every twentieth turn (``RESCUE``), and whenever nobody can meet his any more, one that cannot: the one whose **program** began
   first, so that a conversation half done is finished before another begins.

Why not simply the earliest deadline: near saturation those that are already lost come first and make the next ones late too. And
not only those that can be saved: whoever has just missed would wait for ever. With eight engines, 88 % short prompts (objective
0.25 s) and 12 % of 8,000 to 16,000 tokens (4 s), the highest load at which nine of ten of both keep theirs is 0.82 of what the
engines can compute by order of arrival, 0.96 by deadline, and 0.99 by these rules; nobody waits beyond five objectives.

Sources: FlowPrefill's S-EDF (feasible first) with the bounded rescue that its implementers added; VTC's counters of service
(arXiv 2401.00588); Continuum's order by the program's arrival (arXiv 2511.02230). Ours: rule 1, and the quantum of rule 3.
"""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Final

from fairlead_gateway.queueing.credit import Credits

OVERDUE: Final = 3.0
RESCUE: Final = 0.05
QUANTUM_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that is held. ``tier`` 0 goes before 1; ``objective_seconds`` is to its first token; ``own_seconds`` the engine time
    of its prefill; ``program_at`` when the conversation or program it belongs to began (its own arrival where it belongs to none)."""

    id: str
    arrival: float
    objective_seconds: float
    own_seconds: float
    tier: int = 0
    tenant: Hashable = None
    weight: float = 1.0
    program_at: float | None = None

    @property
    def deadline(self) -> float:
        """When its first token is due."""
        return self.arrival + self.objective_seconds

    @property
    def latest_start(self) -> float:
        """When its prefill has to begin for that."""
        return self.deadline - self.own_seconds

    @property
    def overdue_at(self) -> float:
        """When it goes before all others."""
        return self.arrival + OVERDUE * self.objective_seconds - self.own_seconds


@dataclass(frozen=True, slots=True)
class Turn:
    """Who goes now, and by which rule: ``overdue``, ``deadline``, ``rescue`` or ``late`` (nobody can meet the objective)."""

    request: Waiting
    rule: str
    reason: str


_Entry = tuple[float, int, Waiting]


class _Lane:
    """One tenant's requests of one tier: those that can meet their objective by deadline, the others by program."""

    __slots__ = ("feasible", "late")

    def __init__(self) -> None:
        self.feasible: list[_Entry] = []
        self.late: list[_Entry] = []


class Line:
    """All requests held of one model. What left while it waited is skipped when it surfaces."""

    def __init__(self) -> None:
        self._held: dict[str, Waiting] = {}
        self._order = count()
        self._tiers: dict[int, dict[Hashable, _Lane]] = {}
        self._overdue: list[_Entry] = []
        self._credits = Credits()
        self._rescue = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def add(self, request: Waiting) -> None:
        """Hold one more."""
        self._held[request.id] = request
        lanes = self._tiers.setdefault(request.tier, {})
        lane = lanes.get(request.tenant)
        if lane is None:
            lane = lanes[request.tenant] = _Lane()
        turn = next(self._order)
        heapq.heappush(lane.feasible, (request.deadline, turn, request))
        heapq.heappush(self._overdue, (request.overdue_at, turn, request))
        self._credits.joined(request.tenant, self._present(request.tenant))

    def remove(self, request_id: str) -> bool:
        """It is not held any more, and was not served: its client left. False when it is not here."""
        return self._held.pop(request_id, None) is not None

    def next(self, now: float) -> Turn | None:
        """Who goes ``now``; it is no longer held, and its tenant is charged for it. None when nobody is held."""
        turn = self._choose(now)
        if turn is not None:
            request = turn.request
            del self._held[request.id]
            self._credits.served(request.tenant, request.own_seconds, request.weight)
            if not self._held:
                self._tiers.clear()
                self._overdue.clear()
        return turn

    def _choose(self, now: float) -> Turn | None:
        latest = self._latest_overdue(now)
        if latest is not None:
            waited = (now - latest.arrival) / latest.objective_seconds
            return Turn(latest, "overdue", f"has waited {waited:.1f} times its objective")
        for tier in sorted(self._tiers):
            lanes = self._open_lanes(tier, now)
            if lanes:
                return self._of_lanes(lanes)
        return None

    def _of_lanes(self, lanes: dict[Hashable, _Lane]) -> Turn:
        """By credit, then by deadline or rescue. Each lane has somebody."""
        least = min(self._credits.of(tenant) for tenant in lanes)
        near = [lane for tenant, lane in lanes.items() if self._credits.of(tenant) <= least + QUANTUM_SECONDS]
        feasible = [lane for lane in near if lane.feasible]
        late = [lane for lane in near if lane.late]
        if feasible and late:
            self._rescue += RESCUE
        if feasible and (not late or self._rescue < 1.0):
            _, _, request = heapq.heappop(min(feasible, key=_first_feasible).feasible)
            return Turn(request, "deadline", "has the earliest deadline of those that can still be met")
        _, _, request = heapq.heappop(min(late, key=_first_late).late)
        if not feasible:
            return Turn(request, "late", "nobody's objective can be met; its program began first")
        self._rescue -= 1.0
        return Turn(request, "rescue", "is late, and every twentieth turn belongs to those")

    def _open_lanes(self, tier: int, now: float) -> dict[Hashable, _Lane]:
        """The lanes of a tier that have somebody, after those that cannot meet their objective any more have moved over."""
        lanes, found = self._tiers[tier], {}
        for tenant, lane in list(lanes.items()):
            while lane.feasible:
                _, turn, request = lane.feasible[0]
                if self._is_held(request) and request.latest_start >= now:
                    break
                heapq.heappop(lane.feasible)
                if self._is_held(request):
                    began = request.arrival if request.program_at is None else request.program_at
                    heapq.heappush(lane.late, (began, turn, request))
            while lane.late and not self._is_held(lane.late[0][2]):
                heapq.heappop(lane.late)
            if lane.feasible or lane.late:
                found[tenant] = lane
            else:
                del lanes[tenant]
        return found

    def _latest_overdue(self, now: float) -> Waiting | None:
        """Of those that are overdue, the one that waits longest for its objective."""
        found: Waiting | None = None
        due: list[_Entry] = []
        while self._overdue and self._overdue[0][0] <= now:
            entry = heapq.heappop(self._overdue)
            if not self._is_held(entry[2]):
                continue
            due.append(entry)
            if found is None or _stretch(entry[2], now) > _stretch(found, now):
                found = entry[2]
            if len(due) >= _LOOK_MOST:
                break
        for entry in due:
            if entry[2] is not found:
                heapq.heappush(self._overdue, entry)
        return found

    def _is_held(self, request: Waiting) -> bool:
        return self._held.get(request.id) is request

    def _present(self, newcomer: Hashable) -> list[Hashable]:
        """The tenants that have somebody, but for the newcomer."""
        return [tenant for lanes in self._tiers.values() for tenant in lanes if tenant != newcomer]


_LOOK_MOST: Final = 64
"""So many that are overdue are compared; they come by the moment they became so."""


def _stretch(request: Waiting, now: float) -> float:
    return (now - request.arrival) / request.objective_seconds


def _first_feasible(lane: _Lane) -> tuple[float, int]:
    return lane.feasible[0][0], lane.feasible[0][1]


def _first_late(lane: _Lane) -> tuple[float, int]:
    return lane.late[0][0], lane.late[0][1]
