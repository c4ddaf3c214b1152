"""The bounds of a queue, shared by its callers.

A full queue refuses the caller that has most in it: the newcomer, or the newest request of another
caller. So no caller is refused that has no more than its fair share, whatever others send. With one
caller, the newcomer is refused.

Source: max-min fairness; longest queue drop (Suter et al., INFOCOM 1998).
"""

from collections.abc import Collection, Hashable, Sequence


class _CallerUsage:
    """The queued requests of one caller: their bytes by id, oldest first."""

    __slots__ = ("body_bytes", "requests")

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.body_bytes = 0


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

    @property
    def has_several_callers(self) -> bool:
        """Whether requests of more than one caller are queued."""
        return len(self._callers) > 1

    def add(self, request_id: str, caller: Hashable, body_bytes: int) -> None:
        """Adds a request. Its id is not in the queue yet."""
        usage = self._callers.get(caller)
        if usage is None:
            usage = self._callers[caller] = self._spare if self._has_spare else _CallerUsage()
            self._has_spare = False
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

    def has_most(self, caller: Hashable) -> bool:
        """Whether no caller would have more in the queue than this one with a new request."""
        own = self.requests_of(caller) + 1
        return all(len(usage.requests) <= own for usage in self._callers.values())

    def newest_of_largest(self) -> str:
        """Returns the newest request of the caller that has most; the queue is not empty."""
        usage = max(self._callers.values(), key=lambda usage: len(usage.requests))
        return next(reversed(usage.requests))

    def displaced_by(self, caller: Hashable, body_bytes: int) -> Sequence[str] | None:
        """Returns the requests that must leave for a new one; None if the new one is refused."""
        requests, total_bytes = self.requests + 1, self.body_bytes + body_bytes
        if requests <= self._max_requests and total_bytes <= self._max_bytes:
            return ()
        displaced: list[str] = []
        counts = {other: len(usage.requests) for other, usage in self._callers.items()}
        sizes = {other: usage.body_bytes for other, usage in self._callers.items()}
        counts[caller] = counts.get(caller, 0) + 1
        sizes[caller] = sizes.get(caller, 0) + body_bytes
        newest = {other: reversed(usage.requests.items()) for other, usage in self._callers.items()}
        while requests > self._max_requests or total_bytes > self._max_bytes:
            usages = counts if requests > self._max_requests else sizes
            largest = max(usages, key=usages.__getitem__)
            if usages[caller] >= usages[largest]:
                return None
            request_id, request_bytes = next(newest[largest])
            displaced.append(request_id)
            counts[largest] -= 1
            sizes[largest] -= request_bytes
            requests -= 1
            total_bytes -= request_bytes
        return displaced
