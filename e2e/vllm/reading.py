"""The index under test: what it holds and predicts of real engines, read from their events."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import zmq
import zmq.asyncio
from engines import fetch
from zmq.utils.monitor import parse_monitor_message

from fairlead_kvstore.errors import EventsError
from fairlead_kvstore.events.sequence import Outcome, Stream, parse_frame, parse_replay, replay_request
from fairlead_kvstore.follow import follow
from fairlead_kvstore.truth.tiers import Tier
from fairlead_kvstore.truth.truth import Truth

MODEL_KEY = "default/tiny"
SECRET = b"a secret of the test"
PLACES_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Source:
    """One engine × rank: its HTTP side and its two sockets."""

    instance: str
    url: str
    events: str
    replay: str


class Known(Protocol):
    """An index that follows engines."""

    async def follow(self, sources: Sequence[Source]) -> None: ...
    async def close(self) -> None: ...
    def stamp(self) -> object: ...
    def blocks(self, instance: str, chain: Sequence[int]) -> Mapping[Tier, int]: ...
    def content(self, instance: str, tier: Tier) -> set[int]: ...
    def standing(self, instance: str) -> tuple[bool, str]: ...
    async def cleared_by_us(self, instance: str) -> None: ...


@dataclass(slots=True)
class _Reading:
    source: Source
    stream: Stream
    sockets: list[zmq.asyncio.Socket] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    batches: int = 0


class Direct:
    """The pure parts of the index behind the least of sockets: ``Stream``, ``follow``, ``Truth``; no Redis."""

    def __init__(self) -> None:
        self.truth = Truth(secret=SECRET)
        self._context = zmq.asyncio.Context()
        self._readings: dict[str, _Reading] = {}

    async def follow(self, sources: Sequence[Source]) -> None:
        for source in sources:
            self.truth.attach(source.instance, MODEL_KEY, time.monotonic())
            reading = self._readings[source.instance] = _Reading(source, Stream(replayable=True))
            live, replay = self._context.socket(zmq.SUB), self._context.socket(zmq.DEALER)
            live.setsockopt(zmq.SUBSCRIBE, b"")
            live.setsockopt(zmq.RECONNECT_IVL, 50)
            monitor = live.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            reading.sockets = [live, replay, monitor]
            reading.tasks = [
                asyncio.create_task(self._live(reading)),
                asyncio.create_task(self._replay(reading)),
                asyncio.create_task(self._monitor(reading)),
                asyncio.create_task(self._places(reading)),
            ]
            live.connect(source.events)
            replay.connect(source.replay)

    async def close(self) -> None:
        for reading in self._readings.values():
            for task in reading.tasks:
                task.cancel()
            await asyncio.gather(*reading.tasks, return_exceptions=True)
            for socket in reading.sockets:
                with suppress(zmq.ZMQError):
                    socket.close(0)
        self._readings.clear()

    def stamp(self) -> object:
        return {name: (one.batches, one.stream.held) for name, one in self._readings.items()}

    def blocks(self, instance: str, chain: Sequence[int]) -> Mapping[Tier, int]:
        return self.truth.held(instance, chain)

    def content(self, instance: str, tier: Tier) -> set[int]:
        return {own for own, at in self.truth.content(instance) if at is tier}

    def standing(self, instance: str) -> tuple[bool, str]:
        state = self.truth.state(instance)
        return state.complete, state.reason

    async def cleared_by_us(self, instance: str) -> None:
        self.truth.cleared_by_us(instance, time.monotonic())

    async def _live(self, reading: _Reading) -> None:
        while True:
            parts = await reading.sockets[0].recv_multipart()
            await self._take(reading, reading.stream.live(parse_frame(parts)))

    async def _replay(self, reading: _Reading) -> None:
        while True:
            with suppress(EventsError):
                await self._take(
                    reading, reading.stream.replayed(parse_replay(await reading.sockets[1].recv_multipart()))
                )

    async def _monitor(self, reading: _Reading) -> None:
        while True:
            event = parse_monitor_message(await reading.sockets[2].recv_multipart())["event"]
            up = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            await self._take(reading, reading.stream.connected() if up else reading.stream.disconnected())

    async def _take(self, reading: _Reading, outcomes: Sequence[Outcome]) -> None:
        instance = reading.source.instance
        found = follow(self.truth, instance, outcomes, time.monotonic())
        reading.batches += found.batches + found.restarts
        if found.ask is not None:
            await reading.sockets[1].send_multipart(replay_request(found.ask))

    async def _places(self, reading: _Reading) -> None:
        """No event tells where an adapter was loaded from."""
        while True:
            with suppress(OSError):
                told = json.loads(await asyncio.to_thread(fetch, f"{reading.source.url}/v1/models"))
                for one in told["data"]:
                    if one.get("parent") and not reading.stream.replaying:
                        self.truth.adapter(reading.source.instance, one["id"], one["root"])
            await asyncio.sleep(PLACES_SECONDS)
