"""The KV-event publisher of a simulated engine: a PUB socket, and a ROUTER socket for replays.

Every batch has three frames: topic, sequence number (8 bytes, big-endian, from 0 in each process)
and payload. A subscriber that missed batches sends ``["", first number]`` to the ROUTER. It
receives every buffered batch from there on, four frames each, and then an end mark. A request with
another number of frames gets no reply.

Start and stop publish nothing, and neither does an empty step. The event of a cache that is cleared
while the engine is idle leaves with the next step.

Nothing here blocks: PUB drops messages for slow subscribers, and replays are sent in slices.

The wire format of vLLM's KV events.

A batch is an array ``[unix seconds, events, data-parallel rank]``. Present engines send each event
as a map with a ``type`` and leave out fields at their default. Older engines send arrays that begin
with the type and have fewer fields. The class names of the events are their types on the wire.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import zmq

from fairlead.errors import BadInput
from fairlead.runtime.clock import Clock
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, KvEvent

Encoding = Literal["map", "array"]
AdapterIds = Callable[[str], int | None]
ExtraKeys = list[list[str] | None]

_STORAGE_MEDIUM = "GPU"
_CACHE_SPEC_KIND = "full_attention"

_StoredFieldValues = tuple[Sequence[int], int | None, Sequence[int], int, int | None, str | None, str | None]

END_OF_REPLAY = b"\xff" * 8
BUFFER_STEPS = 10_000
HIGH_WATER_MARK = 100_000
_REPLAY_SLICE = 256
_LINGER_MS = 1_000


class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """The cache changes of one engine step."""

    ts: float
    events: Sequence[msgspec.Struct]
    data_parallel_rank: int | None = None


class _StoredBlocks(msgspec.Struct, omit_defaults=True, gc=False):
    """The fields that both forms of stored blocks have.

    extra_keys: what else went into each block's hash; None for tokens only.
    """

    block_hashes: Sequence[int]
    parent_block_hash: int | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: ExtraKeys | None = None


class BlockStored(_StoredBlocks, tag_field="type", tag=True):
    """A run of stored blocks, as a map."""

    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    session_id: str | None = None


class BlockRemoved(msgspec.Struct, tag_field="type", tag=True, omit_defaults=True, gc=False):
    """One evicted copy of one block, as a map."""

    block_hashes: Sequence[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag_field="type", tag=True, gc=False):
    """The emptied cache, as a map."""


class BlockStoredArray(_StoredBlocks, array_like=True, tag="BlockStored"):
    """A run of stored blocks, as an array."""


class BlockRemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved", omit_defaults=True, gc=False):
    """One evicted copy of one block, as an array."""

    block_hashes: Sequence[int]
    medium: str | None


class AllBlocksClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    """The emptied cache, as an array."""


def event_batch(
    events: Sequence[KvEvent], *, wall: float, rank: int, encoding: Encoding, adapter_id: AdapterIds
) -> EventBatch:
    convert = _as_map if encoding == "map" else _as_array
    return EventBatch(wall, [convert(event, adapter_id) for event in events], rank)


def extra_keys(event: BlocksStored) -> ExtraKeys:
    """Returns per block the adapter, and for the first block of a prompt also the cache salt."""
    rest = [event.adapter] if event.adapter is not None else []
    first = [*rest, event.salt] if event.parent is None and event.salt is not None else rest
    return [(first if number == 0 else rest) or None for number in range(len(event.keys))]


def _as_map(event: KvEvent, adapter_id: AdapterIds) -> msgspec.Struct:
    match event:
        case BlocksStored():
            return BlockStored(
                *_stored_fields(event, adapter_id),
                extra_keys=extra_keys(event),
                group_idx=0,
                kv_cache_spec_kind=_CACHE_SPEC_KIND,
                session_id=event.session,
            )
        case BlockEvicted(key):
            return BlockRemoved((key,), _STORAGE_MEDIUM, 0)
        case CacheCleared():
            return AllBlocksCleared()


def _as_array(event: KvEvent, adapter_id: AdapterIds) -> msgspec.Struct:
    match event:
        case BlocksStored():
            extra = extra_keys(event)
            return BlockStoredArray(*_stored_fields(event, adapter_id), extra_keys=extra if any(extra) else None)
        case BlockEvicted(key):
            return BlockRemovedArray((key,), _STORAGE_MEDIUM)
        case CacheCleared():
            return AllBlocksClearedArray()


def _stored_fields(event: BlocksStored, adapter_id: AdapterIds) -> _StoredFieldValues:
    """Returns the fields that begin both encodings, in the order of the wire."""
    adapter = event.adapter
    number = adapter_id(adapter) if adapter is not None else None
    return (event.keys, event.parent, event.tokens or (), event.block_tokens, number, _STORAGE_MEDIUM, adapter)


def _no_adapter_id(_name: str) -> int | None:
    return None


@dataclass(frozen=True, slots=True)
class KvEventsSettings:
    """The KV-event endpoints of an engine.

    - endpoint: None: no events; ``replay_endpoint``: None: no replays.
    - encoding: ``map`` (0.32) or ``array`` (older).
    """

    endpoint: str | None = None
    replay_endpoint: str | None = None
    topic: str | None = None
    encoding: Encoding = "map"


class KvEventPublisher:
    """The publisher of one rank. The constructor binds; ``start`` needs a running loop and
    serves replays.

    An endpoint is ``tcp://HOST:PORT``; port 0 takes a free port, and the rank is added to any
    other. The endpoint of rank 0 may be ``ipc://PATH``, as in vLLM. Raises BadInput for an address
    that cannot be bound.
    """

    def __init__(
        self,
        settings: KvEventsSettings,
        *,
        clock: Clock,
        buffer_steps: int = BUFFER_STEPS,
        rank: int = 0,
        adapter_id: AdapterIds = _no_adapter_id,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    ) -> None:
        if settings.endpoint is None:
            raise BadInput("a publisher needs an endpoint", field="endpoint")
        self._topic = (settings.topic or "").encode()
        self._clock = clock
        self._encoding = settings.encoding
        self._rank = rank
        self._adapter_id = adapter_id
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._sequence = 0
        self._own_context = context is None
        self._context = context if context is not None else zmq.Context()
        self._replays: deque[tuple[bytes, deque[tuple[int, bytes]]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publisher = self._context.socket(zmq.PUB)
        self._router: zmq.Socket[bytes] | None = None
        self.replay_endpoint: str | None = None
        try:
            self.endpoint = _bind(self._publisher, settings.endpoint, rank)
            if settings.replay_endpoint is not None:
                self._router = self._context.socket(zmq.ROUTER)
                self.replay_endpoint = _bind(self._router, settings.replay_endpoint, rank)
        except BaseException:
            self.close()
            raise

    @property
    def sequence(self) -> int:
        return self._sequence

    def start(self) -> None:
        """Serves replays on the running loop; does nothing without a replay endpoint."""
        if self._router is None:
            return
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._router.fileno(), self._read_requests)
        self._loop.call_soon(self._read_requests)  # the descriptor reports changes only

    def publish(self, events: Sequence[KvEvent]) -> None:
        """Sends the events of one step as one batch, if there are any."""
        if not events:
            return
        batch = event_batch(
            events, wall=self._clock.wall(), rank=self._rank, encoding=self._encoding, adapter_id=self._adapter_id
        )
        payload = self._encoder.encode(batch)
        number = self._sequence
        self._sequence += 1
        self._buffer.append((number, payload))
        self._publisher.send_multipart((self._topic, number.to_bytes(8, "big"), payload), flags=zmq.NOBLOCK, copy=True)

    def sources(self) -> dict[str, dict[str, Any]]:
        """Returns this rank's part of the answer to ``/kv_event_sources``."""
        return {
            str(self._rank): {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": self.endpoint,
                "replay_endpoint": self.replay_endpoint,
                "buffer_steps": self._buffer.maxlen,
                "hwm": HIGH_WATER_MARK,
                "max_queue_size": HIGH_WATER_MARK,
                "topic": self._topic.decode(),
            }
        }

    def close(self) -> None:
        """Stops serving and releases the addresses; queued batches get a second to leave."""
        if self._loop is not None and self._router is not None:
            self._loop.remove_reader(self._router.fileno())
        self._loop = None
        self._replays.clear()
        for socket in (self._publisher, self._router):
            if socket is not None and not socket.closed:
                socket.close(linger=_LINGER_MS)
        if self._own_context and not self._context.closed:
            self._context.term()

    def _read_requests(self) -> None:
        """Reads all waiting replay requests.

        Why: the descriptor reports changes, not states, so the socket is read until it is empty.
        """
        router = self._router
        if router is None or self._loop is None:
            return
        while router.poll(0, zmq.POLLIN):
            frames = router.recv_multipart(flags=zmq.NOBLOCK)
            if len(frames) != 3:
                continue
            peer, _, start = frames
            first = int.from_bytes(start, "big")
            missed = deque(item for item in self._buffer if item[0] >= first)
            self._replays.append((peer, missed))
            if len(self._replays) == 1:
                self._loop.call_soon(self._send_replay_slice)

    def _send_replay_slice(self) -> None:
        """Sends a part of the oldest replay, so that a long one does not delay tokens."""
        router = self._router
        if router is None or self._loop is None or not self._replays:
            return
        peer, missed = self._replays[0]
        for _ in range(min(_REPLAY_SLICE, len(missed))):
            number, payload = missed.popleft()
            _send_reply(router, (peer, b"", self._topic, number.to_bytes(8, "big"), payload))
        if not missed:
            _send_reply(router, (peer, b"", b"", END_OF_REPLAY, b""))
            self._replays.popleft()
        if self._replays:
            self._loop.call_soon(self._send_replay_slice)
        self._read_requests()  # sending may have swallowed the descriptor's report of a new request


def _send_reply(router: "zmq.Socket[bytes]", frames: tuple[bytes, ...]) -> None:
    """Sends one reply; a peer that left or reads too slowly loses it, as with the real engine."""
    try:
        router.send_multipart(frames, flags=zmq.NOBLOCK)
    except zmq.Again:
        pass


def _bind(socket: "zmq.Socket[bytes]", endpoint: str, rank: int) -> str:
    """Binds the socket and returns its public address. Raises BadInput if that fails."""
    base, colon, port = endpoint.rpartition(":")
    is_path = endpoint.startswith("ipc://") and rank == 0
    if not is_path and not (base.startswith("tcp://") and port.isdecimal()):
        raise BadInput(f"{endpoint!r} is not a TCP address for ZMQ", field="endpoint", hint="write tcp://HOST:PORT")
    address = endpoint if is_path or port == "0" else f"{base}{colon}{int(port) + rank}"
    socket.set_hwm(HIGH_WATER_MARK)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise BadInput(f"cannot bind {address}: {error}", field="endpoint", hint="port 0 takes a free port") from error
    if port != "0":
        return address
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0").replace("0.0.0.0", "127.0.0.1")
