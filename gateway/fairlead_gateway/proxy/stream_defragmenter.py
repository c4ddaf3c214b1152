"""Defragmentation of KV memory in one worker: streams leave an instance for a waiting request.

Requests that wait are looked at with each check of their queue, every `MOVE_INTERVAL_SECONDS` at
most. A worker plans for the first of its own requests, and moves its own streams. It counts those
of other processes as memory that is taken. So each process makes room for itself alone.

No stream moves while streams break, since each move fills an instance, and breaks may follow.
"""

from collections.abc import Callable, Iterable
from typing import Final

from fairlead_gateway.admission.defragmentation import MovableStream, plan_moves
from fairlead_gateway.admission.worker.admission_queue import AdmissionController
from fairlead_gateway.proxy.relayed_stream import RelayedStream
from fairlead_gateway.proxy.stream_moves import MOVE_INTERVAL_SECONDS, MOVES_AT_ONCE

REST_SECONDS: Final = 10.0
"""A stream that has moved stays so long, and after a break no stream moves for so long."""


class StreamDefragmenter:
    """The moves of one worker.

    streams: returns those that are relayed now.
    broken_at: when a stream broke last; None if none has.
    """

    def __init__(
        self, admission: AdmissionController, streams: Callable[[], Iterable[RelayedStream]], now: Callable[[], float]
    ) -> None:
        self._admission = admission
        self._streams = streams
        self._now = now
        self._looked_at: dict[str, float] = {}
        self.broken_at: float | None = None

    def defragment(self, key: str) -> None:
        """Moves streams of a model if its first waiting request lacks memory, and if that pays."""
        now = self._now()
        if now - self._looked_at.get(key, -MOVE_INTERVAL_SECONDS) < MOVE_INTERVAL_SECONDS:
            return
        self._looked_at[key] = now
        if self.broken_at is not None and now - self.broken_at < REST_SECONDS:
            return
        wait = self._admission.memory_wait(key, now)
        if wait is None:
            return
        streams: dict[str, RelayedStream] = {}
        movable: dict[str, list[MovableStream]] = {}
        for stream in self._streams():
            if stream.context.request.model_key != key:
                continue
            found = stream.movable(now, REST_SECONDS)
            if found is not None:
                streams[found.id] = stream
                movable.setdefault(stream.instance_id, []).append(found)
        if streams:
            for move in plan_moves(self._admission.instance_memory(key, movable, now), wait, MOVES_AT_ONCE):
                streams[move.stream].move(move)

    def retain(self, models: Iterable[str]) -> None:
        """Forgets all other models."""
        self._looked_at = {key: self._looked_at[key] for key in models if key in self._looked_at}
