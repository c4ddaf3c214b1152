"""The order in which queued requests are released.

1. **Overdue** requests of tenants with credit come first: those that waited `OVERDUE_OBJECTIVES`
   times their objective. This bounds the waits of a tenant that takes no more than its share.
2. Then the highest **tier** with a queued request.
3. In it, the tenants with **credit**: those served least for their weight, by the engine time of
   prompts and answers. An answer counts as expected, and from its end on as it was.
   A tenant has credit until it got `QUANTUM_SECONDS` more than the least served one. So deadlines
   are compared among several tenants. A tier's weight is ten times that of the next
   (`TIER_WEIGHTS`). So credit decides between tiers under overload, and none starves.
4. Among their requests, those that can still meet the target if started now (slack ≥ 0), by
   **deadline**.
5. For a twentieth of the work (`RESCUE_SHARE`), and if no target can be met, a late request: the
   one whose **program** began first. So a conversation half done ends before another begins.

Why: near saturation, earliest deadline first serves requests that are already lost and makes the
next ones late. Serving only those that can be saved would starve the rest. The rescue share is of
work, not of turns: a long prompt takes as much as fifteen short ones. By turns, the long class lost
6 % at load 1.

Why credit goes before overdue: under a sustained overload every request is overdue. If these went
first, a tenant's share of the service would be its share of the arrivals.

Measured with eight engines, 88 % short prompts (objective 0.25 s) and 12 % of 8,000 to 16,000
tokens (4 s). The highest load at which nine of ten requests of both classes meet their objectives
is 0.82 of capacity by arrival. By deadline it is 0.96, by these rules 0.99. No request waits longer
than five times its target.

Source: S-EDF of FlowPrefill (feasible first), with the bounded rescue of its implementers. Counters
of service: VTC (arXiv 2401.00588). Order by arrival of the program: Continuum (arXiv 2511.02230).
Rule 1 and the quantum of rule 3 are ours.

The bounds of a queue, shared by its callers.

A full queue refuses the lowest tier first, and in it the caller that has most in the queue for its
weight: the newcomer, or the newest request of another caller. So no caller is refused that has no
more than its fair share, whatever others of its tier and of lower ones send. With one caller, the
newcomer is refused.

Source: max-min fairness; longest queue drop (Suter et al., INFOCOM 1998).
"""

import heapq
from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import count
from typing import Final

from fairlead_gateway.admission.fair_share import FairShare

OVERDUE_OBJECTIVES: Final = 3.0
RESCUE_SHARE: Final = 0.05
QUANTUM_SECONDS: Final = 0.5
TIER_WEIGHTS: Final = (10.0, 1.0, 0.1)
"""The weight of a tenant, by tier, besides its own weight."""

_TenantKey = tuple[Hashable, bool]

_EARLIEST: Final = "has the earliest deadline of those that can still be met"
_MIN_REMOVED: Final = 32
_MAX_COMPARED: Final = 64
"""So many overdue requests are compared, in the order in which they became overdue."""

_Rank = tuple[int, float]


class QueuedRequest:
    """A queued request. Fields that are not given have their defaults.

    - tier: 0 goes before 1.
    - objective_seconds: TTFT target.
    - prefill_seconds: engine time of its prefill.
    - decode_seconds: expected engine time of its answer.
    - charged: its tenant was charged for it.
    - program_started_at: start of its conversation; None: its own arrival.
    - is_long: its length class.
    - body_bytes: memory used while it waits.

    Why not a dataclass: its constructor is not compiled, and each request makes one.
    """

    __slots__ = (
        "arrived_at",
        "body_bytes",
        "charged",
        "decode_seconds",
        "id",
        "is_long",
        "objective_seconds",
        "prefill_seconds",
        "program_started_at",
        "tenant",
        "tier",
        "weight",
    )

    def __init__(
        self,
        id: str,
        arrived_at: float,
        objective_seconds: float,
        prefill_seconds: float,
        tenant: Hashable = None,
        body_bytes: int = 0,
    ) -> None:
        self.id = id
        self.arrived_at = arrived_at
        self.objective_seconds = objective_seconds
        self.prefill_seconds = prefill_seconds
        self.tier: int = 0
        self.tenant = tenant
        self.weight: float = 1.0
        self.program_started_at: float | None = None
        self.is_long = False
        self.body_bytes = body_bytes
        self.decode_seconds: float = 0.0
        self.charged = False

    @property
    def deadline(self) -> float:
        return self.arrived_at + self.objective_seconds

    @property
    def latest_start(self) -> float:
        return self.deadline - self.prefill_seconds

    @property
    def overdue_at(self) -> float:
        return self.arrived_at + OVERDUE_OBJECTIVES * self.objective_seconds - self.prefill_seconds


class NextRequest:
    """The request to release next, and the rule: `overdue`, `deadline`, `rescue` or `late`.

    passes_over_late: late requests were passed over, which brings their turn nearer.
    """

    __slots__ = ("passes_over_late", "reason", "request", "rule")

    def __init__(self, request: QueuedRequest, rule: str, reason: str, passes_over_late: bool = False) -> None:
        self.request = request
        self.rule = rule
        self.reason = reason
        self.passes_over_late = passes_over_late


_HeapEntry = tuple[float, int, QueuedRequest]


class _TenantQueue:
    """Queued requests of one tenant, tier and length class.

    - feasible: heap by deadline. Those that can no longer meet it move to `late`.
    - late: heap by the start of the program.
    """

    __slots__ = ("feasible", "late")

    def __init__(self) -> None:
        self.feasible: list[_HeapEntry] = []
        self.late: list[_HeapEntry] = []


class _TenantCounts:
    """The number of a tenant's queued requests, by length class, and its weight."""

    __slots__ = ("_long", "_short", "weight")

    def __init__(self, weight: float) -> None:
        self._long = self._short = 0
        self.weight = weight

    def add(self, request: QueuedRequest, number: int) -> None:
        if request.is_long:
            self._long += number
        else:
            self._short += number

    def has_open(self, closed: Collection[bool]) -> bool:
        return (self._long > 0 and True not in closed) or (self._short > 0 and False not in closed)

    def __bool__(self) -> bool:
        return self._long > 0 or self._short > 0


class RequestQueue:
    """All queued requests of one model.

    The heaps skip removed requests when they reach them. Once more than half of the entries may be
    of removed requests, all heaps are compacted.

    A request that is queued alone enters no heap until another one comes, or its turn depends on
    more than itself. Why: most queues are that short, and the heaps cost more than the rest.

    fair_share: the service of its tenants, which other queues may share.
    """

    def __init__(self, fair_share: FairShare | None = None) -> None:
        self._requests: dict[str, QueuedRequest] = {}
        self._arrival_numbers = count()
        self._tiers: dict[int, dict[_TenantKey, _TenantQueue]] = {}
        self._overdue: dict[Hashable, list[_HeapEntry]] = {}
        self._tenants: dict[Hashable, _TenantCounts] = {}
        self._fair_share = FairShare() if fair_share is None else fair_share
        self.has_small_share = self._fair_share.has_small_share
        self._rescue_seconds = 0.0
        self._removed_count = 0
        self._lone: QueuedRequest | None = None
        self._lone_number = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def requests(self) -> Iterable[QueuedRequest]:
        return self._requests.values()

    def add(self, request: QueuedRequest) -> None:
        is_alone = not self._requests
        self._requests[request.id] = request
        number = next(self._arrival_numbers)
        if is_alone:
            self._fair_share.on_join(request.tenant, request.weight)
            self._lone, self._lone_number = request, number
            return
        self._enqueue_lone()
        if request.tenant not in self._tenants:
            self._fair_share.on_join(request.tenant, request.weight)
        self._enqueue(request, number)

    def _enqueue_lone(self) -> None:
        """Enters the request that was queued alone into the heaps."""
        lone = self._lone
        if lone is not None:
            self._lone = None
            self._enqueue(lone, self._lone_number)

    def _enqueue(self, request: QueuedRequest, number: int) -> None:
        """Enters a request into the heaps.

        number: grows with each arrival.
        """
        queues = self._tiers.setdefault(request.tier, {})
        key = (request.tenant, request.is_long)
        queue = queues.get(key)
        if queue is None:
            queue = queues[key] = _TenantQueue()
        heapq.heappush(queue.feasible, (request.deadline, number, request))
        heapq.heappush(self._overdue.setdefault(request.tenant, []), (request.overdue_at, number, request))
        counts = self._tenants.get(request.tenant)
        if counts is None:
            counts = self._tenants[request.tenant] = _TenantCounts(request.weight)
        counts.add(request, 1)

    def remove(self, request_id: str) -> bool:
        """Removes a request that was not served. Returns False if it is not queued."""
        request = self._requests.get(request_id)
        if request is not None:
            self._forget(request)
        return request is not None

    def has_late(self, *, long: bool) -> bool:
        """Returns True if a request of that class has missed its chance to meet the TTFT target."""
        return any(queue.late for queues in self._tiers.values() for (_, its), queue in queues.items() if its is long)

    def peek(
        self, now: float, closed: Collection[bool] = (), passed_over: Collection[Hashable] = ()
    ) -> NextRequest | None:
        """Returns the next request, and does not remove it; None if there is none.

        closed: the values of `is_long` to skip.
        passed_over: the tenants to skip.
        """
        lone = self._lone
        if lone is not None:
            if lone.is_long in closed or lone.tenant in passed_over:
                return None
            if lone.latest_start >= now and lone.overdue_at > now:
                return NextRequest(lone, "deadline", _EARLIEST)
            self._enqueue_lone()
        overdue = self._most_overdue(now, closed, passed_over)
        if overdue is not None:
            waited = (now - overdue.arrived_at) / overdue.objective_seconds
            return NextRequest(overdue, "overdue", f"has waited {waited:.1f} times its TTFT target")
        for tier in sorted(self._tiers):
            queues = self._open_queues(tier, now, closed, passed_over)
            if queues:
                return self._next_of(queues)
        return None

    def take(self, candidate: NextRequest) -> None:
        """Removes a request and charges its tenant for prompt and expected answer."""
        request = candidate.request
        self.charge(request)
        if candidate.rule == "rescue":
            self._rescue_seconds -= request.prefill_seconds
        elif candidate.passes_over_late:
            self._rescue_seconds += RESCUE_SHARE / (1.0 - RESCUE_SHARE) * request.prefill_seconds
        self._forget(request)

    def charge(self, request: QueuedRequest) -> None:
        """Charges the tenant for prompt and expected answer, once for each request."""
        if not request.charged:
            request.charged = True
            seconds = request.prefill_seconds + request.decode_seconds
            self._fair_share.charge(request.tenant, seconds, request.weight)

    def settle(self, request: QueuedRequest, decode_seconds: float) -> None:
        self._fair_share.settle(request.tenant, decode_seconds - request.decode_seconds, request.weight)
        request.decode_seconds = decode_seconds

    def _next_of(self, queues: dict[_TenantKey, _TenantQueue]) -> NextRequest:
        """Chooses by credit, then by deadline or rescue. No queue is empty."""
        served = self._fair_share.served_seconds
        least = min(served(tenant) for tenant, _ in queues)
        near = [
            lane
            for (tenant, _), lane in queues.items()
            if has_credit(served(tenant), least, self._tenants[tenant].weight)
        ]
        feasible = [lane for lane in near if lane.feasible]
        late = [lane for lane in near if lane.late]
        rescued = min(late, key=_first_late).late[0][2] if late else None
        if feasible and (rescued is None or self._rescue_seconds < rescued.prefill_seconds):
            request = min(feasible, key=_first_feasible).feasible[0][2]
            return NextRequest(request, "deadline", _EARLIEST, passes_over_late=rescued is not None)
        assert rescued is not None
        if not feasible:
            return NextRequest(rescued, "late", "no TTFT target can be met; the program of this request began first")
        return NextRequest(rescued, "rescue", "is late; a twentieth of the work goes to late requests")

    def _open_queues(
        self, tier: int, now: float, closed: Collection[bool], passed_over: Collection[Hashable]
    ) -> dict[_TenantKey, _TenantQueue]:
        """Moves the late requests of a tier to `late`, and returns the non-empty queues.

        closed: the values of `is_long` to skip.
        passed_over: the tenants to skip.
        """
        queues, found = self._tiers[tier], {}
        for key, queue in list(queues.items()):
            if key[1] in closed or key[0] in passed_over:
                continue
            while queue.feasible:
                _, number, request = queue.feasible[0]
                if self._is_queued(request) and request.latest_start >= now:
                    break
                heapq.heappop(queue.feasible)
                if self._is_queued(request):
                    started_at = (
                        request.arrived_at if request.program_started_at is None else request.program_started_at
                    )
                    heapq.heappush(queue.late, (started_at, number, request))
            while queue.late and not self._is_queued(queue.late[0][2]):
                heapq.heappop(queue.late)
            if queue.feasible or queue.late:
                found[key] = queue
            else:
                del queues[key]
        return found

    def _most_overdue(
        self, now: float, closed: Collection[bool], passed_over: Collection[Hashable]
    ) -> QueuedRequest | None:
        """Returns the overdue request that waited longest relative to its objective, if any.

        Only the tenants that were served least are considered.
        """
        latest: QueuedRequest | None = None
        for tenant in self._least_served(closed, passed_over):
            found = self._most_overdue_of(self._overdue[tenant], now, closed)
            if found is not None and (latest is None or _wait_ratio(found, now) > _wait_ratio(latest, now)):
                latest = found
        return latest

    def _most_overdue_of(self, heap: list[_HeapEntry], now: float, closed: Collection[bool]) -> QueuedRequest | None:
        latest: QueuedRequest | None = None
        due: list[_HeapEntry] = []
        while heap and heap[0][0] <= now:
            entry = heapq.heappop(heap)
            if not self._is_queued(entry[2]):
                continue
            due.append(entry)
            if entry[2].is_long in closed:
                continue
            if latest is None or _wait_ratio(entry[2], now) > _wait_ratio(latest, now):
                latest = entry[2]
            if len(due) >= _MAX_COMPARED:
                break
        for entry in due:
            heapq.heappush(heap, entry)
        return latest

    def _least_served(self, closed: Collection[bool], passed_over: Collection[Hashable]) -> list[Hashable]:
        """Returns the tenants with an open request that were served least."""
        if len(self._tenants) == 1 and not passed_over:
            return list(self._tenants)
        served = {
            tenant: self._fair_share.served_seconds(tenant)
            for tenant, counts in self._tenants.items()
            if counts.has_open(closed) and tenant not in passed_over
        }
        least = min(served.values(), default=0.0)
        return [tenant for tenant, seconds in served.items() if seconds <= least]

    def _forget(self, request: QueuedRequest) -> None:
        """Removes a request; its heap entries stay until they surface."""
        del self._requests[request.id]
        if request is self._lone:
            self._lone = None
            self._fair_share.on_leave(request.tenant)
            return
        counts = self._tenants[request.tenant]
        counts.add(request, -1)
        if not counts:
            del self._tenants[request.tenant], self._overdue[request.tenant]
            self._fair_share.on_leave(request.tenant)
        self._removed_count += 1
        if not self._requests:
            self._tiers.clear()
            self._removed_count = 0
        elif self._removed_count > max(_MIN_REMOVED, len(self._requests)):
            self._compact()

    def _compact(self) -> None:
        """Drops the heap entries of removed requests. The order of the others is total, and stays.

        One entry of a removed late request stays if it is the last: `has_late` counts it until the
        next `peek`, with and without compaction.
        """
        self._removed_count = 0
        for queues in self._tiers.values():
            for key, queue in list(queues.items()):
                queue.feasible, queue.late = self._live(queue.feasible), self._live(queue.late) or queue.late[:1]
                if not queue.feasible and not queue.late:
                    del queues[key]
        self._overdue = {tenant: self._live(heap) for tenant, heap in self._overdue.items()}

    def _live(self, heap: list[_HeapEntry]) -> list[_HeapEntry]:
        live = [entry for entry in heap if self._is_queued(entry[2])]
        heapq.heapify(live)
        return live

    def _is_queued(self, request: QueuedRequest) -> bool:
        return self._requests.get(request.id) is request


def has_credit(served_seconds: float, least_seconds: float, weight: float) -> bool:
    """Returns whether a tenant may go before the one that was served least.

    It may be ahead by a quantum of engine time, of its own. Both counts are divided by weights.
    """
    return served_seconds <= least_seconds + QUANTUM_SECONDS / weight


def waits_behind(served_seconds: float, least_seconds: float, weight: float) -> bool:
    """Returns whether a tenant's requests surely wait behind those of one that was served less.

    Tenants that wait all the time take turns. Each is ahead by a quantum and a request at times,
    which says little about the next second. So the distance is one and a half quanta.

    Source: ours. Without the half, the gap between two floods grew from 0.9 to 1.3 of its bound.
    """
    return served_seconds > least_seconds + 1.5 * QUANTUM_SECONDS / weight


def _wait_ratio(request: QueuedRequest, now: float) -> float:
    return (now - request.arrived_at) / request.objective_seconds


def _first_feasible(queue: _TenantQueue) -> tuple[float, int]:
    return queue.feasible[0][0], queue.feasible[0][1]


def _first_late(queue: _TenantQueue) -> tuple[float, int]:
    return queue.late[0][0], queue.late[0][1]


class CallerClass:
    """The tier of a caller, of which a larger number is refused first, and its weight."""

    __slots__ = ("tier", "weight")

    def __init__(self, tier: int = 0, weight: float = 1.0) -> None:
        self.tier = tier
        self.weight = weight


ALIKE: Final = CallerClass()
"""The class of callers that do not differ in tier and weight."""


class _CallerUsage:
    """The queued requests of one caller: their bytes by id, oldest first."""

    __slots__ = ("body_bytes", "caller_class", "requests")

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.body_bytes = 0
        self.caller_class = ALIKE

    def rank(self) -> _Rank:
        return self.caller_class.tier, len(self.requests) / self.caller_class.weight


class CallerBounds:
    """The number and bytes of queued requests, in all and by caller."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._callers: dict[Hashable, _CallerUsage] = {}
        self._spare = _CallerUsage()  # an empty one, for the next caller
        self._has_spare = True
        self.requests = 0
        self.body_bytes = 0

    def requests_of(self, caller: Hashable) -> int:
        usage = self._callers.get(caller)
        return 0 if usage is None else len(usage.requests)

    def callers(self) -> Collection[Hashable]:
        return self._callers.keys()

    def classes(self) -> list[tuple[Hashable, CallerClass]]:
        return [(caller, usage.caller_class) for caller, usage in self._callers.items()]

    @property
    def has_several_callers(self) -> bool:
        return len(self._callers) > 1

    def add(self, request_id: str, caller: Hashable, body_bytes: int, caller_class: CallerClass = ALIKE) -> None:
        """Adds a request. Its id is not in the queue yet."""
        usage = self._callers.get(caller)
        if usage is None:
            usage = self._callers[caller] = self._spare if self._has_spare else _CallerUsage()
            self._has_spare = False
        usage.caller_class = caller_class
        usage.requests[request_id] = body_bytes
        usage.body_bytes += body_bytes
        self.requests += 1
        self.body_bytes += body_bytes

    def remove(self, request_id: str, caller: Hashable) -> None:
        """Removes a request that is in the queue."""
        usage = self._callers[caller]
        body_bytes = usage.requests[request_id]
        del usage.requests[request_id]
        usage.body_bytes -= body_bytes
        self.requests -= 1
        self.body_bytes -= body_bytes
        if not usage.requests:
            del self._callers[caller]
            self._spare, self._has_spare = usage, True

    def has_most(self, caller: Hashable, caller_class: CallerClass = ALIKE) -> bool:
        own = caller_class.tier, (self.requests_of(caller) + 1) / caller_class.weight
        return all(usage.rank() <= own for other, usage in self._callers.items() if other != caller)

    def newest_of_largest(self) -> str:
        """Returns the newest request of the caller to refuse first; the queue is not empty."""
        usage = max(self._callers.values(), key=_CallerUsage.rank)
        return next(reversed(usage.requests))

    def displaced_by(
        self, caller: Hashable, body_bytes: int, caller_class: CallerClass = ALIKE
    ) -> Sequence[str] | None:
        """Returns the requests that must leave for a new one; None if the new one is refused."""
        requests, total_bytes = self.requests + 1, self.body_bytes + body_bytes
        if requests <= self._max_requests and total_bytes <= self._max_bytes:
            return ()
        displaced: list[str] = []
        counts = {other: len(usage.requests) for other, usage in self._callers.items()}
        sizes = {other: usage.body_bytes for other, usage in self._callers.items()}
        counts[caller] = counts.get(caller, 0) + 1
        sizes[caller] = sizes.get(caller, 0) + body_bytes
        classes = {other: usage.caller_class for other, usage in self._callers.items()}
        classes[caller] = caller_class
        newest = {other: reversed(usage.requests.items()) for other, usage in self._callers.items()}
        while requests > self._max_requests or total_bytes > self._max_bytes:
            usages = counts if requests > self._max_requests else sizes
            ranks = {
                other: (classes[other].tier, used / classes[other].weight) for other, used in usages.items() if used
            }
            largest = max(ranks, key=ranks.__getitem__)
            if ranks[caller] >= ranks[largest]:
                return None
            request_id, request_bytes = next(newest[largest])
            displaced.append(request_id)
            counts[largest] -= 1
            sizes[largest] -= request_bytes
            requests -= 1
            total_bytes -= request_bytes
        return displaced
