"""The prefills that run at the same time as their decodes, as those of SGLang.

A prefill runs to its end even if its request ends, since to cancel it would abort the transfer. Of
those without a request, each caller has a few. Beyond, the oldest is cancelled.

Why: a caller could send requests and leave at once. Each left a connection and a body for as long
as a prefill may take.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from fairlead_gateway.caller_key import CallerKey

MAX_WITHOUT_REQUEST: Final = 16


class ConcurrentPrefills:
    """The tasks of these prefills in one worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._without_request: dict[CallerKey, dict[asyncio.Task[None], None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, prefill: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a prefill."""
        task = self._loop.create_task(prefill)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def on_request_ended(self, task: asyncio.Task[None], caller: CallerKey) -> None:
        """Counts a prefill that runs on without its request. Cancels the caller's oldest one if
        there are too many.
        """
        if task.done():
            return
        tasks = self._without_request.setdefault(caller, {})
        tasks[task] = None
        task.add_done_callback(lambda ended: self._forget(ended, caller))
        if len(tasks) > MAX_WITHOUT_REQUEST:
            oldest = next(iter(tasks))
            del tasks[oldest]
            oldest.cancel()

    def close(self) -> None:
        """Cancels all prefills."""
        for task in self._tasks:
            task.cancel()

    def _forget(self, task: asyncio.Task[None], caller: CallerKey) -> None:
        tasks = self._without_request.get(caller)
        if tasks is not None:
            tasks.pop(task, None)
            if not tasks:
                del self._without_request[caller]
