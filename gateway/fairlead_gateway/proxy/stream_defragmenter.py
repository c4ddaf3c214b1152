"""Defragmentation of KV memory in one worker: streams leave an instance for a waiting request.

Checks of a queue also plan moves, every `MOVE_INTERVAL_SECONDS` at most. A worker plans for the
first of its own waiting requests, and moves its own streams. The memory that other processes use
counts as taken.

No stream moves while streams of its model break, since a move fills an instance, and breaks may
follow.
"""

from collections.abc import Callable, Iterable
from typing import Final

from fairlead_gateway.admission.defragmentation import MovableStream, MovableStreams, plan_moves
from fairlead_gateway.admission.worker.admission_queue import AdmissionController
from fairlead_gateway.proxy.relayed_stream import RelayedStream
from fairlead_gateway.proxy.stream_moves import MOVE_INTERVAL_SECONDS, MOVES_AT_ONCE

REST_SECONDS: Final = 10.0
"""Time for which a moved stream stays, and for which no stream of a model moves after one broke."""


class StreamDefragmenter:
    """The moves of one worker.

    streams: returns those that are relayed now.
    """

    def __init__(
        self, admission: AdmissionController, streams: Callable[[], Iterable[RelayedStream]], now: Callable[[], float]
    ) -> None:
        self._admission = admission
        self._streams = streams
        self._now = now
        self._looked_at: dict[str, float] = {}
        self._broken_at: dict[str, float] = {}

    def defragment(self, key: str) -> None:
        """Moves streams of a model if its first waiting request lacks memory, and if that pays."""
        now = self._now()
        if now - self._looked_at.get(key, -MOVE_INTERVAL_SECONDS) < MOVE_INTERVAL_SECONDS:
            return
        self._looked_at[key] = now
        if now - self._broken_at.get(key, -REST_SECONDS) < REST_SECONDS:
            return
        wait = self._admission.memory_wait(key, now)
        if wait is None:
            return
        streams = _ModelStreams(key, self._streams(), now)
        for move in plan_moves(self._admission.instance_memory(key, now), wait, MOVES_AT_ONCE, streams):
            streams.by_id[move.stream].move(move)

    def on_broken(self, key: str) -> None:
        """Notes that a stream of a model has broken."""
        self._broken_at[key] = self._now()

    def retain(self, models: Iterable[str]) -> None:
        """Forgets all other models."""
        known = frozenset(models)
        for times in (self._looked_at, self._broken_at):
            for key in times.keys() - known:
                del times[key]


class _ModelStreams(MovableStreams):
    """The streams of one model. by_id: those that were returned as movable."""

    def __init__(self, key: str, streams: Iterable[RelayedStream], now: float) -> None:
        super().__init__({})
        self._now = now
        self._relayed: dict[str, list[RelayedStream]] = {}
        self.by_id: dict[str, RelayedStream] = {}
        for stream in streams:
            if stream.context.request.model_key == key:
                self._relayed.setdefault(stream.instance_id, []).append(stream)

    def at(self, instance: str) -> list[MovableStream]:
        found: list[MovableStream] = []
        for stream in self._relayed.get(instance, ()):
            movable = stream.movable(self._now, REST_SECONDS)
            if movable is not None:
                self.by_id[movable.id] = stream
                found.append(movable)
        return found

    def may_go(self, stream: str, destination: str) -> bool:
        return self.by_id[stream].may_go(destination)
