"""Records events for `kubectl describe` (events.k8s.io/v1).

`record` neither waits nor fails. While the API server is away, a limited number of events waits.
`dropped` counts the lost events; `problem` is the current error. `aggregator` decides what is
written when.
"""

import asyncio
from collections.abc import Awaitable, Callable

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import AlreadyExists, NotFound, Unreachable
from fairlead.kube.events.aggregator import EventAggregator, EventWrite, write_count
from fairlead.kube.events.event import EventKey, EventType, object_reference
from fairlead.kube.resources import EVENTS, Manifest
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import end_with_first

FLUSH_SECONDS = 5.0


class EventRecorder:
    """The event recorder of a process.

    controller: qualified name, such as `fairlead.io/operator`.
    instance: name of the pod.
    """

    def __init__(
        self,
        api: KubeApi,
        controller: str,
        instance: str,
        clock: Clock,
        *,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.problem: FairleadError | None = None
        self._api = api
        self._manager = controller.rpartition("/")[2]
        self._clock = clock
        self._pause = pause
        self._aggregator = EventAggregator(controller, instance)
        self._wakeup = asyncio.Event()

    @property
    def dropped(self) -> int:
        return self._aggregator.dropped

    def record(self, about: Manifest, type: EventType, reason: str, action: str, note: str) -> None:
        """Records an event about an object.

        reason, action: CamelCase words.
        note: a sentence for people, without prompts or keys.
        """
        key = EventKey(object_reference(about), type, reason, action, note)
        self._aggregator.add(key, self._clock.now(), self._clock.wall())
        self._wakeup.set()

    async def run(self) -> None:
        """Writes due events until cancelled."""
        while True:
            self._wakeup.clear()
            for write in self._aggregator.due_writes(self._clock.now()):
                await self._write(write)
            due_at = self._aggregator.next_due_at()
            await self._wait_for_work(None if due_at is None else due_at - self._clock.now())

    async def flush(self) -> None:
        """Writes the remaining events at the end of a process, for at most five seconds."""
        writing = self._write_all(self._aggregator.pending_writes())
        await end_with_first(writing, self._pause(FLUSH_SECONDS))

    async def _write_all(self, writes: list[EventWrite]) -> None:
        for write in writes:
            await self._write(write)

    async def _wait_for_work(self, seconds: float | None) -> None:
        """Waits for a new event or for `seconds`."""
        if seconds is None:
            await self._wakeup.wait()
        elif seconds > 0:
            await end_with_first(self._wakeup.wait(), self._pause(seconds))

    async def _write(self, write: EventWrite) -> None:
        count = write_count(write)
        try:
            if write.manifest is not None:
                await self._api.create(write.manifest, self._manager)
            else:
                await self._api.patch_merge(EVENTS, write.namespace, write.name, write.patch or {}, self._manager)
        except AlreadyExists:
            self._aggregator.on_written(write, count, self._clock.now())
        except Unreachable as error:
            self.problem = error
            self._aggregator.on_postponed(write, self._clock.now())
        except NotFound as error:
            if write.patch is not None:
                self._aggregator.on_deleted(write)
            else:
                self._drop(write, error)
        except FairleadError as error:
            self._drop(write, error)
        else:
            self.problem = None
            self._aggregator.on_written(write, count, self._clock.now())

    def _drop(self, write: EventWrite, error: FairleadError) -> None:
        self.problem = error
        self._aggregator.on_rejected(write)
