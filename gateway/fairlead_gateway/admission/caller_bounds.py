"""The bounds of a queue, shared by its callers.

A full queue refuses the lowest tier first, and in it the caller that has most in the queue for its
weight: the newcomer, or the newest request of another caller. So no caller is refused that has no
more than its fair share, whatever others of its tier and of lower ones send. With one caller, the
newcomer is refused.

Source: max-min fairness; longest queue drop (Suter et al., INFOCOM 1998).
"""

from collections.abc import Collection, Hashable, Sequence
from typing import Final


class CallerClass:
    """The tier of a caller, of which a larger number is refused first, and its weight."""

    __slots__ = ("tier", "weight")

    def __init__(self, tier: int = 0, weight: float = 1.0) -> None:
        self.tier = tier
        self.weight = weight


ALIKE: Final = CallerClass()
"""The class of callers that do not differ in tier and weight."""
_Rank = tuple[int, float]


class _CallerUsage:
    """The queued requests of one caller: their bytes by id, oldest first."""

    __slots__ = ("body_bytes", "caller_class", "requests")

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.body_bytes = 0
        self.caller_class = ALIKE

    def rank(self) -> _Rank:
        """Returns the caller's rank by number of requests; the largest is refused first."""
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
        """Returns the number of a caller's queued requests."""
        usage = self._callers.get(caller)
        return 0 if usage is None else len(usage.requests)

    def callers(self) -> Collection[Hashable]:
        """Returns the callers with queued requests."""
        return self._callers.keys()

    def classes(self) -> list[tuple[Hashable, CallerClass]]:
        """Returns the callers with queued requests, and their classes."""
        return [(caller, usage.caller_class) for caller, usage in self._callers.items()]

    @property
    def has_several_callers(self) -> bool:
        """Whether requests of more than one caller are queued."""
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
        """Whether no caller would be refused before this one, with a new request of it."""
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
