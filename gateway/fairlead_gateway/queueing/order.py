"""Who goes next of the requests that are held.

1. **Overdue** ones before all others: who has waited ``OVERDUE`` times the objective goes now, the latest by that measure first.
   This is what bounds everybody's wait, whatever the rules below prefer.
2. The highest **tier** that has anyone.
3. In it the tenants with **credit**: those that were served least for their weight, and all within ``QUANTUM_SECONDS`` of them, so
   that deadlines are still compared among several tenants.
4. Among theirs, those that can still meet their objective if they start now (slack ≥ 0), by **deadline**.
5. For a twentieth of the work (``RESCUE``), and whenever nobody can meet his any more, one that cannot: the one whose **program**
   began first, so that a conversation half done is finished before another begins. By work and not by turns: a long prompt takes
   as much as fifteen short ones, so every twentieth turn was far more of the work (at load 1 the long class lost six of a hundred
   by it).

Why not simply the earliest deadline: near saturation those that are already lost come first and make the next ones late too. And
not only those that can be saved: whoever has just missed would wait for ever. With eight engines, 88 % short prompts (objective
0.25 s) and 12 % of 8,000 to 16,000 tokens (4 s), the highest load at which nine of ten of both keep theirs is 0.82 of what the
engines can compute by order of arrival, 0.96 by deadline, and 0.99 by these rules; nobody waits beyond five objectives.

Sources: FlowPrefill's S-EDF (feasible first) with the bounded rescue that its implementers added; VTC's counters of service
(arXiv 2401.00588); Continuum's order by the program's arrival (arXiv 2511.02230). Ours: rule 1, and the quantum of rule 3.
"""

import heapq
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Final

from fairlead_gateway.queueing.credit import Credits

OVERDUE: Final = 3.0
RESCUE: Final = 0.05
QUANTUM_SECONDS: Final = 0.5


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that is held. ``tier`` 0 goes before 1; ``objective_seconds`` is to its first token; ``own_seconds`` the engine time
    of its prefill; ``program_at`` when the conversation or program it belongs to began (its own arrival where it belongs to none);
    ``long`` is its class of prompts; ``size`` the bytes kept while it waits."""

    id: str
    arrival: float
    objective_seconds: float
    own_seconds: float
    tier: int = 0
    tenant: Hashable = None
    weight: float = 1.0
    program_at: float | None = None
    long: bool = False
    size: int = 0

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
    """Who goes now, and by which rule: ``overdue``, ``deadline``, ``rescue`` or ``late`` (nobody can meet the objective). ``owed``:
    those that are late were passed over, and come nearer to their turn."""

    request: Waiting
    rule: str
    reason: str
    owed: bool = False


_Entry = tuple[float, int, Waiting]
_Key = tuple[Hashable, bool]


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
        self._tiers: dict[int, dict[_Key, _Lane]] = {}
        self._overdue: list[_Entry] = []
        self._credits = Credits()
        self._rescue = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def held(self) -> Iterable[Waiting]:
        """All of them, by arrival here."""
        return self._held.values()

    def add(self, request: Waiting) -> None:
        """Hold one more."""
        self._held[request.id] = request
        lanes = self._tiers.setdefault(request.tier, {})
        key = (request.tenant, request.long)
        lane = lanes.get(key)
        if lane is None:
            lane = lanes[key] = _Lane()
        turn = next(self._order)
        heapq.heappush(lane.feasible, (request.deadline, turn, request))
        heapq.heappush(self._overdue, (request.overdue_at, turn, request))
        self._credits.joined(request.tenant, self._present(request.tenant))

    def remove(self, request_id: str) -> bool:
        """It is not held any more, and was not served: its client left. False when it is not here."""
        found = self._held.pop(request_id, None) is not None
        self._forget_if_empty()
        return found

    def late(self, *, long: bool) -> bool:
        """Whether anybody of that class was found too late for his objective and is still held."""
        return any(lane.late for lanes in self._tiers.values() for (_, its), lane in lanes.items() if its is long)

    def next(self, now: float, closed: Collection[bool] = ()) -> Turn | None:
        """Who goes ``now``, taken. None when nobody is held who may."""
        turn = self.peek(now, closed)
        if turn is not None:
            self.take(turn)
        return turn

    def peek(self, now: float, closed: Collection[bool] = ()) -> Turn | None:
        """Who would go ``now``, of the classes (``Waiting.long``) that are not ``closed``."""
        latest = self._latest_overdue(now, closed)
        if latest is not None:
            waited = (now - latest.arrival) / latest.objective_seconds
            return Turn(latest, "overdue", f"has waited {waited:.1f} times its objective")
        for tier in sorted(self._tiers):
            lanes = self._open_lanes(tier, now, closed)
            if lanes:
                return self._of_lanes(lanes)
        return None

    def take(self, turn: Turn) -> None:
        """It goes: it is no longer held, and its tenant is charged for it."""
        request = turn.request
        del self._held[request.id]
        self._credits.served(request.tenant, request.own_seconds, request.weight)
        if turn.rule == "rescue":
            self._rescue -= request.own_seconds
        elif turn.owed:
            self._rescue += RESCUE / (1.0 - RESCUE) * request.own_seconds
        self._forget_if_empty()

    def _of_lanes(self, lanes: dict[_Key, _Lane]) -> Turn:
        """By credit, then by deadline or rescue. Each lane has somebody."""
        least = min(self._credits.of(tenant) for tenant, _ in lanes)
        near = [lane for (tenant, _), lane in lanes.items() if self._credits.of(tenant) <= least + QUANTUM_SECONDS]
        feasible = [lane for lane in near if lane.feasible]
        late = [lane for lane in near if lane.late]
        lost = min(late, key=_first_late).late[0][2] if late else None
        if feasible and (lost is None or self._rescue < lost.own_seconds):
            request = min(feasible, key=_first_feasible).feasible[0][2]
            reason = "has the earliest deadline of those that can still be met"
            return Turn(request, "deadline", reason, owed=lost is not None)
        assert lost is not None  # each lane has somebody
        if not feasible:
            return Turn(lost, "late", "nobody's objective can be met; its program began first")
        return Turn(lost, "rescue", "is late, and a twentieth of the work belongs to those")

    def _open_lanes(self, tier: int, now: float, closed: Collection[bool]) -> dict[_Key, _Lane]:
        """The lanes of a tier that have somebody, after those that cannot meet their objective any more have moved over."""
        lanes, found = self._tiers[tier], {}
        for key, lane in list(lanes.items()):
            if key[1] in closed:
                continue
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
                found[key] = lane
            else:
                del lanes[key]
        return found

    def _latest_overdue(self, now: float, closed: Collection[bool]) -> Waiting | None:
        """Of those that are overdue, the one that waits longest for its objective."""
        found: Waiting | None = None
        due: list[_Entry] = []
        while self._overdue and self._overdue[0][0] <= now:
            entry = heapq.heappop(self._overdue)
            if not self._is_held(entry[2]):
                continue
            due.append(entry)
            if entry[2].long in closed:
                continue
            if found is None or _stretch(entry[2], now) > _stretch(found, now):
                found = entry[2]
            if len(due) >= _LOOK_MOST:
                break
        for entry in due:
            heapq.heappush(self._overdue, entry)
        return found

    def _forget_if_empty(self) -> None:
        if not self._held:
            self._tiers.clear()
            self._overdue.clear()

    def _is_held(self, request: Waiting) -> bool:
        return self._held.get(request.id) is request

    def _present(self, newcomer: Hashable) -> list[Hashable]:
        """The tenants that have somebody, but for the newcomer."""
        return [tenant for lanes in self._tiers.values() for tenant, _ in lanes if tenant != newcomer]


_LOOK_MOST: Final = 64
"""So many that are overdue are compared; they come by the moment they became so."""


def _stretch(request: Waiting, now: float) -> float:
    return (now - request.arrival) / request.objective_seconds


def _first_feasible(lane: _Lane) -> tuple[float, int]:
    return lane.feasible[0][0], lane.feasible[0][1]


def _first_late(lane: _Lane) -> tuple[float, int]:
    return lane.late[0][0], lane.late[0][1]
