"""Watches whether engines that send nothing compute, by what their metrics pages count.

An engine that answers plain requests sends nothing while it generates, and nothing while it hangs.
The same holds for a stream whose engine holds a long tool call. The counters tell the difference.
They are read only while a request waits longer than it should, by the worker that has the request.

An engine hangs if it does not answer, or if it has running requests and nothing that counts its
work moves. Else it lives: an engine without such counters lives while it answers.
"""

import asyncio
from typing import Final

from fairlead.errors import BadInput
from fairlead.fleet.model import Instance
from fairlead.fleet.signals import EngineSignals
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import request_prefix

_MAX_WATCHED: Final = 256
"""Limit: engines that are watched at once; half for one namespace."""
_NO_ANSWER: Final = ("timeout", "connect-timeout")
_POLL_SECONDS: Final = 1.0
_LATER_SECONDS: Final = 5.0
"""Between two looks at an engine that lives."""
_HANG_GAPS: Final = 20.0
"""A stream is silent for too long after so many of its usual gaps."""
_HANG_PREFILLS: Final = 3.0
"""And after so many times the predicted prefill of all that its engine has to compute."""
_DECIDED_SHARE: Final = 0.8
"""The share of that time after which it is decided, so that the stream goes on within it."""
_WATCHED_GAPS: Final = 4.0
"""An engine is watched after so many usual gaps."""

Counters = tuple[float | None, float | None, float | None]


def hang_seconds(gap_seconds: float, prefill_seconds: float, min_seconds: float) -> float:
    """Returns after how many seconds of silence an engine hangs that counts no work meanwhile.

    gap_seconds: between two events of the stream, in the mean; 0 if it is not known.
    prefill_seconds: predicted for the prompts that the engine has not computed yet. Why: in a long
        step, an engine counts nothing.
    """
    return max(min_seconds, _HANG_GAPS * gap_seconds, _HANG_PREFILLS * prefill_seconds)


class _Watch:
    """The watch of one instance.

    counters: the last reading; None before the first.
    changed_at: when the counters changed, or the watch began.
    known_at: until when they are known to have stood still; None: the page does not come.
    until: when it ends unless it is asked for again.
    is_unreadable: the page has no counters of work, or there is no page.
    """

    __slots__ = ("changed_at", "counters", "instance", "is_unreadable", "known_at", "task", "until")

    def __init__(self, instance: Instance, now: float) -> None:
        self.instance = instance
        self.counters: Counters | None = None
        self.changed_at = self.until = now
        self.known_at: float | None = now
        self.is_unreadable = False
        self.task: asyncio.Task[None] | None = None


class EngineProgress:
    """The reader of the counters of engines that are asked for.

    hop_id: this gateway, for the hop header.
    """

    def __init__(self, runtime: WorkerRuntime, pool: ConnectionPool, hop_id: str) -> None:
        self._loop = runtime.loop
        self._now = runtime.now
        self._min_hang_seconds: float = runtime.limits.stream_hang_seconds
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
            own = sum([other.instance.namespace == instance.namespace for other in self._watches.values()])
            if instance.leaves_cluster or len(self._watches) >= _MAX_WATCHED or own >= _MAX_WATCHED // 2:
                return None
            watch = self._watches[instance.id] = _Watch(instance, now)
            watch.task = self._loop.create_task(self._run(watch))
        watch.until = now + 2.0 * ask_again_seconds + _POLL_SECONDS
        if watch.is_unreadable:
            return None
        return (now if watch.known_at is None else watch.known_at) - watch.changed_at

    def check_stream(
        self, instance: Instance, silent_seconds: float, gap_seconds: float, prefill_seconds: float
    ) -> float:
        """Returns after how many more seconds to look at a silent stream again; 0 if it hangs.

        See `hang_seconds`.
        """
        limit = _DECIDED_SHARE * hang_seconds(gap_seconds, prefill_seconds, self._min_hang_seconds)
        unwatched = _WATCHED_GAPS * gap_seconds - silent_seconds
        if unwatched > 0.0:
            return unwatched
        left = limit - silent_seconds
        still_seconds = self.still_seconds(instance, max(_LATER_SECONDS, left))
        if left > 0.0:
            return max(_POLL_SECONDS, left)
        watched = limit - max(_POLL_SECONDS, _WATCHED_GAPS * gap_seconds) - _POLL_SECONDS
        if still_seconds is None or still_seconds == 0.0:
            return _LATER_SECONDS
        return 0.0 if still_seconds >= watched else _POLL_SECONDS

    def close(self) -> None:
        """Ends all watches."""
        for watch in self._watches.values():
            if watch.task is not None:
                watch.task.cancel()

    async def _run(self, watch: _Watch) -> None:
        try:
            while self._now() < watch.until:
                await self._read(watch)
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            del self._watches[watch.instance.id]

    async def _read(self, watch: _Watch) -> None:
        try:
            from fairlead.engines.registry import engine_adapter  # most workers never need it

            adapter = engine_adapter(watch.instance.engine)
            page = await self._get(watch.instance, adapter.metrics_path)
            if page is None:
                watch.known_at = None
                # Some engines answer it between two steps only, but say at once that they live.
                watch.is_unreadable = await self._get(watch.instance, adapter.health_path) is not None
                return
            signals = adapter.parse_signals(page, watch.instance.dp_rank)
        except (EngineCallFailed, BadInput):
            watch.is_unreadable = True
            return
        counters, now = _counters(signals), self._now()
        watch.is_unreadable = counters[:2] == (None, None)
        if (watch.counters is not None and counters != watch.counters) or signals.running == 0.0:
            watch.changed_at = now
        watch.counters, watch.known_at = counters, now

    async def _get(self, instance: Instance, path: str) -> bytes | None:
        """Returns a page of an engine; None if it does not answer. Raises EngineCallFailed."""
        prefix = request_prefix("GET", path, instance.url, self._hop_id)
        message = [f"{prefix.text}\r\n".encode("latin-1")]
        try:
            return await call_engine(
                self._pool, instance.address, message, self._timeout_seconds, instance=instance, needs_core=False
            )
        except EngineCallFailed as failure:
            if failure.cause in _NO_ANSWER:
                return None
            raise


def _counters(signals: EngineSignals) -> Counters:
    return signals.prompt_tokens_total, signals.generation_tokens_total, signals.kv_usage
