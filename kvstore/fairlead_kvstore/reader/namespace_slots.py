"""The limits on concurrent replays of engines and on queries to them, shared by namespaces."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class NamespaceSlot:
    """A granted or queued permission to work for an engine of a namespace."""

    def __init__(self, on_granted: Callable[[], None], namespace: str) -> None:
        self.on_granted = on_granted
        self.namespace = namespace


class NamespaceSlots:
    """The slots for concurrent work: ``max_slots`` are granted, further ones are queued.

    Namespaces with queued slots get a free one in turn, each for its oldest.

    Why: the replays or queries of one namespace, however many and slow, must not delay all others.
    """

    def __init__(self, max_slots: int) -> None:
        self._max_slots = max_slots
        self._granted: set[NamespaceSlot] = set()
        self._queues: dict[str, deque[NamespaceSlot]] = {}  # by namespace; the first has the next turn

    def acquire(self, on_granted: Callable[[], None], namespace: str) -> NamespaceSlot:
        """Returns a slot. ``on_granted`` is called with its turn, perhaps before this returns."""
        slot = NamespaceSlot(on_granted, namespace)
        self._queues.setdefault(namespace, deque()).append(slot)
        self._grant_next()
        return slot

    async def run(self, namespace: str, work: Callable[[], Awaitable[T]]) -> T:
        """Returns the result of some work, which begins when a slot is granted."""
        granted = asyncio.Event()
        slot = self.acquire(granted.set, namespace)
        try:
            await granted.wait()
            return await work()
        finally:
            self.release(slot)

    def release(self, slot: NamespaceSlot) -> None:
        """Releases a slot, granted or queued; call it once."""
        self._granted.discard(slot)
        queue = self._queues.get(slot.namespace)
        if queue is not None and slot in queue:
            queue.remove(slot)
            if not queue:
                del self._queues[slot.namespace]
        self._grant_next()

    def _grant_next(self) -> None:
        while self._queues and len(self._granted) < self._max_slots:
            namespace = next(iter(self._queues))
            queue = self._queues.pop(namespace)
            slot = queue.popleft()
            if queue:
                self._queues[namespace] = queue  # behind the others
            self._granted.add(slot)
            slot.on_granted()
