"""Watches whether engines that send nothing compute, by the token counters of their metrics pages.

An engine that answers plain requests sends nothing while it generates, and nothing while it hangs.
Its counters tell the difference. They are read only while a request waits longer than it should, by
the worker that has the request.
"""

import asyncio
from typing import Final

from fairlead.errors import BadInput
from fairlead.fleet.model import Instance
from fairlead.fleet.signals import EngineSignals
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import request_prefix
from fairlead_gateway.worker.runtime import WorkerRuntime

_MAX_WATCHED: Final = 256
_NO_PAGE: Final = "timeout"


class _Watch:
    """The watch of one instance.

    counters: the last reading; None before the first.
    changed_at: when the counters changed, or the watch began.
    until: when it ends unless it is asked for again.
    is_unreadable: the page has no counters of tokens, or there is no page.
    """

    __slots__ = ("changed_at", "counters", "instance", "is_unreadable", "task", "until")

    def __init__(self, instance: Instance, now: float) -> None:
        self.instance = instance
        self.counters: tuple[float | None, float | None] | None = None
        self.changed_at = self.until = now
        self.is_unreadable = False
        self.task: asyncio.Task[None] | None = None


class EngineProgress:
    """The reader of the counters of engines that are asked for.

    hop_id: this gateway, for the hop header.
    """

    def __init__(self, runtime: WorkerRuntime, pool: ConnectionPool, hop_id: str) -> None:
        self._loop = runtime.loop
        self._now = runtime.now
        self._poll_seconds: float = runtime.limits.scrape_seconds
        self._timeout_seconds: float = runtime.limits.scrape_timeout_seconds
        self._pool = pool
        self._hop_id = hop_id
        self._watches: dict[str, _Watch] = {}

    def still_seconds(self, instance: Instance, ask_again_seconds: float) -> float | None:
        """Returns for how long the counters of an instance have stood still; None: unknown.

        The first call begins to watch, and returns 0. A page that does not come counts as counters
        that stand still: the process that serves it is the one that takes requests.

        ask_again_seconds: until the next call; without it, the watch ends a little later.
        """
        now, watch = self._now(), self._watches.get(instance.id)
        if watch is None:
            if instance.leaves_cluster or len(self._watches) >= _MAX_WATCHED:
                return None
            watch = self._watches[instance.id] = _Watch(instance, now)
            watch.task = self._loop.create_task(self._run(watch))
        watch.until = now + 2.0 * ask_again_seconds + self._poll_seconds
        return None if watch.is_unreadable else now - watch.changed_at

    def close(self) -> None:
        """Ends all watches."""
        for watch in self._watches.values():
            if watch.task is not None:
                watch.task.cancel()

    async def _run(self, watch: _Watch) -> None:
        try:
            while self._now() < watch.until:
                await self._read(watch)
                await asyncio.sleep(self._poll_seconds)
        finally:
            del self._watches[watch.instance.id]

    async def _read(self, watch: _Watch) -> None:
        instance = watch.instance
        try:
            from fairlead.engines.registry import engine_adapter  # most workers never need it

            adapter = engine_adapter(instance.engine)
            prefix = request_prefix("GET", adapter.metrics_path, instance.url, self._hop_id)
            message = [f"{prefix.text}\r\n".encode("latin-1")]
            page = await call_engine(
                self._pool, instance.address, message, self._timeout_seconds, instance=instance, needs_core=False
            )
            signals = adapter.parse_signals(page, instance.dp_rank)
        except EngineCallFailed as failure:
            watch.is_unreadable = failure.cause != _NO_PAGE
            return
        except BadInput:
            watch.is_unreadable = True
            return
        counters = _counters(signals)
        watch.is_unreadable = counters == (None, None)
        if watch.counters is not None and counters != watch.counters:
            watch.changed_at = self._now()
        watch.counters = counters


def _counters(signals: EngineSignals) -> tuple[float | None, float | None]:
    return signals.prompt_tokens_total, signals.generation_tokens_total
