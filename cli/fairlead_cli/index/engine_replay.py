"""The blocks of an engine by its own KV events: all batches that it can replay, applied to an empty
block store.

An engine keeps its last thousands of batches. When they reach back to its start the comparison is
*whole*: absent blocks are known. Otherwise the comparison is a *part*: blocks that the batches
stored and did not remove must be in the index. All other blocks are unknown.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import zmq

from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError
from fairlead_kvstore.events.stream_sequencer import EventSequencer, parse_replay_frame, replay_request
from fairlead_kvstore.events.types import StreamOutcome
from fairlead_kvstore.reader.event_application import apply_outcomes

Content = frozenset[tuple[int, StorageTier]]
_POLL_MS: Final = 200


class ReplayedContent(msgspec.Struct, frozen=True):
    """Blocks by an engine's replay. ``whole``: ``content`` has all blocks since the engine's start,
    else only those from batch ``first`` on.
    """

    content: Content
    whole: bool
    first: int | None
    batches: int


def replay_engine(
    endpoint: str, instance: str, model_key: str, secret: bytes, clock: Clock, limits: Limits
) -> ReplayedContent:
    """Requests a replay and returns the blocks by it. Raises Unavailable.

    The call blocks for up to ``limits.index_engine_seconds``, so call it in a thread.
    """
    truth, stream = BlockStore(secret=secret, limits=limits), EventSequencer(replayable=True, limits=limits)
    truth.attach(instance, model_key, clock.now())

    def apply(outcomes: Iterable[StreamOutcome]) -> None:
        apply_outcomes(truth, instance, outcomes, clock.now(), limits)

    apply(stream.on_connected())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        _request_replay(socket, endpoint, limits)
        first, batches = _follow_replay(socket, endpoint, stream, apply, clock, limits)
    except zmq.ZMQError as error:
        raise Unavailable(f"{endpoint} cannot be queried: {error}") from None
    except EventsError as error:
        raise Unavailable(f"{endpoint} sent an unexpected reply: {error.message}") from None
    finally:
        socket.close(0)
        context.term()
    return ReplayedContent(frozenset(truth.content(instance)), truth.state(instance).complete, first, batches)


def _request_replay(socket: "zmq.Socket[bytes]", endpoint: str, limits: Limits) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, limits.kv_replay_pending)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.kv_events_bytes)
    socket.setsockopt(zmq.IPV6, 1)
    socket.connect(endpoint)
    socket.send_multipart(replay_request(0))


def _follow_replay(
    socket: "zmq.Socket[bytes]",
    endpoint: str,
    stream: EventSequencer,
    apply: Callable[[Iterable[StreamOutcome]], None],
    clock: Clock,
    limits: Limits,
) -> tuple[int | None, int]:
    """Applies a replay; returns the first batch's number, None without any, and the count of
    batches.

    Raises Unavailable when the replay is too long or takes too long.
    """
    deadline, received_bytes, batches = clock.now() + limits.index_engine_seconds, 0, 0
    first: int | None = None
    while True:
        if clock.now() > deadline or received_bytes > limits.index_engine_bytes:
            raise Unavailable(f"{endpoint} does not end its replay ({batches} batches, {received_bytes} bytes)")
        if not socket.poll(_POLL_MS, zmq.POLLIN):
            continue
        parts = socket.recv_multipart()
        received_bytes += sum(map(len, parts))
        frame = parse_replay_frame(parts)
        apply(stream.on_replayed_frame(frame))
        if frame is None:
            return first, batches
        first = frame.number if first is None else first
        batches += 1
