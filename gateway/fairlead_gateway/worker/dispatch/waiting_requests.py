"""The requests that wait for the instances of a model, by caller and in the preset's order.

`late_binding_queue` decides when one of them starts.
"""

from collections.abc import Callable, Collection, Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from fairlead_gateway.admission.caller_bounds import CallerBounds, CallerClass
from fairlead_gateway.admission.fair_share import MAX_COMPARED, FairShare
from fairlead_gateway.admission.request_queue import has_credit, waits_behind
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.worker.request_context import RequestContext

_MIN_REMOVED: Final = 32
_NOBODY: Final[frozenset[Hashable]] = frozenset()
_SortKey = tuple[float, float, str]
OnRoom = Callable[[bool, GatewayError | None], None]
"""Called once when a wait ends: whether the instance can start the request, and the error of a
request that is refused. False without an error: the instance is no longer ready.
"""


class QueuedDispatch:
    """A waiting request.

    router: counts it as load of its instance.
    on_end: called when its wait ends.
    prefill_seconds: the request's own share of the instance's backlog.
    decode_seconds: expected engine time of its answer.
    sort_key: its place in the preset's order; the smallest goes first.
    """

    __slots__ = (
        "caller",
        "context",
        "decode_seconds",
        "on_end",
        "prefill_seconds",
        "queued_at",
        "router",
        "sort_key",
    )

    def __init__(
        self,
        context: RequestContext,
        router: ModelRouter,
        on_end: OnRoom,
        queued_at: float,
        prefill_seconds: float,
        sort_key: _SortKey,
    ) -> None:
        self.context = context
        self.router = router
        self.on_end = on_end
        self.queued_at = queued_at
        self.prefill_seconds = prefill_seconds
        self.caller: CallerKey = context.caller
        self.sort_key = sort_key
        self.decode_seconds = 0.0


_HeapEntry = tuple[_SortKey, int, str, QueuedDispatch]
"""Place, number and id of a request, and the request. No two have the same number."""


class InstanceQueue:
    """The requests that wait for one instance, by id, and by caller in the preset's order.

    prefill_seconds: of all of them.

    The heaps skip removed requests when they reach them. A heap of which more than half may be
    removed ones is compacted.
    """

    __slots__ = ("_heaps", "_numbers", "prefill_seconds", "requests")

    def __init__(self) -> None:
        self._numbers = count()
        self.requests: dict[str, QueuedDispatch] = {}
        self.prefill_seconds = 0.0
        self._heaps: dict[CallerKey, CallerHeap] = {}

    def add(self, request_id: str, queued: QueuedDispatch) -> None:
        self.requests[request_id] = queued
        self.prefill_seconds += queued.prefill_seconds
        heap = self._heaps.get(queued.caller)
        if heap is None:
            heap = self._heaps[queued.caller] = CallerHeap(queued.context.policy.weight)
        heap.live_count += 1
        heap.prefill_seconds += queued.prefill_seconds
        heappush(heap.entries, (queued.sort_key, next(self._numbers), request_id, queued))

    def pop(self, request_id: str) -> QueuedDispatch | None:
        """Removes and returns a request; None if it does not wait here."""
        queued = self.requests.pop(request_id, None)
        if queued is None:
            return None
        self.prefill_seconds = self.prefill_seconds - queued.prefill_seconds if self.requests else 0.0
        heap = self._heaps[queued.caller]
        heap.live_count -= 1
        heap.prefill_seconds -= queued.prefill_seconds
        if not heap.live_count:
            del self._heaps[queued.caller]
        elif len(heap.entries) > 2 * heap.live_count + _MIN_REMOVED:
            heap.entries = [entry for entry in heap.entries if self.requests.get(entry[2]) is entry[3]]
            heapify(heap.entries)
        return queued

    def first(self, fair_share: FairShare, passed_over: Collection[CallerKey] = ()) -> QueuedDispatch | None:
        """Returns the next request of the callers that were served least; None if none waits.

        passed_over: callers that do not count.
        """
        callers = list(self._heaps)
        if passed_over:
            callers = [caller for caller in callers if caller not in passed_over]
        if len(callers) > 1:
            served = fair_share.served_seconds
            least = min(map(served, callers))
            callers = [caller for caller in callers if has_credit(served(caller), least, self._heaps[caller].weight)]
        if len(callers) == 1:
            return self._first_of(self._heaps[callers[0]])[3]
        return min([self._first_of(self._heaps[caller]) for caller in callers])[3] if callers else None

    def seconds_of(self, callers: Collection[Hashable]) -> float:
        """Returns the prefill of the requests of some callers."""
        return sum([heap.prefill_seconds for caller, heap in self._heaps.items() if caller in callers])

    def _first_of(self, heap: "CallerHeap") -> _HeapEntry:
        entries = heap.entries
        while True:
            entry = entries[0]
            if self.requests.get(entry[2]) is entry[3]:
                return entry
            heappop(entries)


class CallerHeap:
    """The requests of one caller that wait for one instance: how many do, and their prefill."""

    __slots__ = ("entries", "live_count", "prefill_seconds", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.entries: list[_HeapEntry] = []
        self.live_count = 0
        self.prefill_seconds = 0.0


class WaitingCallers:
    """The callers that wait for instances of one model: their credit, and how many requests each
    has waiting.
    """

    __slots__ = ("bounds", "fair_share")

    def __init__(self, max_requests: int, fair_share: FairShare) -> None:
        self.bounds = CallerBounds(max_requests, 0)
        self.fair_share = fair_share

    def add(self, request_id: str, caller: CallerKey, caller_class: CallerClass) -> None:
        if not self.bounds.requests_of(caller):
            self.fair_share.on_join(caller, caller_class.weight)
        self.bounds.add(request_id, caller, 0, caller_class)

    def remove(self, request_id: str, caller: CallerKey) -> None:
        self.bounds.remove(request_id, caller)
        if not self.bounds.requests_of(caller):
            self.fair_share.on_leave(caller)

    def is_alone(self, caller: CallerKey) -> bool:
        """Returns whether all requests that wait are this caller's; some do."""
        return not self.bounds.has_several_callers and self.bounds.requests_of(caller) > 0

    def behind(self, caller: CallerKey, weight: float) -> frozenset[Hashable]:
        """Returns the callers whose requests surely wait behind one of this caller's.

        Empty with more than `MAX_COMPARED` callers: then a decision would take too long.
        """
        if len(self.bounds.callers()) > MAX_COMPARED:
            return _NOBODY
        share = self.fair_share
        least = share.seconds_at_join(caller, weight)
        found: list[Hashable] = []
        for other, its in self.bounds.classes():
            if other != caller and waits_behind(share.served_seconds(other), least, its.weight):
                found.append(other)
        return frozenset(found) if found else _NOBODY

    def charge(self, queued: "QueuedDispatch") -> None:
        """Charges the caller for prompt and expected answer, unless admission has charged it."""
        request = queued.context.admission.request
        if request is None:
            self.fair_share.charge(
                queued.caller, queued.prefill_seconds + queued.decode_seconds, queued.context.policy.weight
            )
        elif not request.queued.charged:
            request.queued.charged = True
            self.fair_share.charge(
                queued.caller, queued.prefill_seconds + request.queued.decode_seconds, request.queued.weight
            )
