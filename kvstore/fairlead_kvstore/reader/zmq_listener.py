"""Engines that dial us: one socket that binds, on which many publish. The topic says who: ``kv@<ip>:<port>@<model>``.

ZMQ tells of connections by their descriptor and of messages by the descriptor they came over, and that is how a connection that
ends is known to be an engine's. Ranks of one address share its topic; the payload then says which it is. What nobody in the fleet
publishes is counted and thrown away.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec
import zmq

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead_kvstore.reader.endpoints import topic_address
from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES, FairScheduler
from fairlead_kvstore.reader.timers import ReaderLoop
from fairlead_kvstore.reader.zmq_socket import PolledSocket, ZmqSockets, message_size

_FRAMES_PER_MESSAGE: Final = 3
_ADDRESS: Final = re.compile(r"tcp://\S+:[0-9]{1,5}")


class _BatchRank(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: msgspec.Raw
    rank: int | None = None


_RANK: Final = msgspec.msgpack.Decoder(_BatchRank)


class DialingEngine(Protocol):
    """The line of an engine that dials us."""

    def on_connected(self) -> None:
        """It is there."""
        ...

    def on_disconnected(self, reason: str) -> None:
        """It is not."""
        ...

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Messages in order, each in its parts."""
        ...


class ZmqListener:
    """``find`` names the line of ``10.0.0.7:8000`` and a rank (None: not said).

    Raises BadInput for an address that cannot be bound.
    """

    def __init__(
        self,
        endpoint: str,
        find: Callable[[str, int | None], DialingEngine | None],
        *,
        sockets: ZmqSockets,
        turns: FairScheduler,
        loop: ReaderLoop,
        limits: Limits,
    ) -> None:
        hint = "write tcp://ADDRESS:PORT with a free port of this machine"
        if not _ADDRESS.fullmatch(endpoint) or int(endpoint.rpartition(":")[2]) > 65_535:  # ZMQ takes any number
            raise BadInput(f"KV events cannot be listened for on {endpoint}", field="events", hint=hint)
        self.unidentified: Counter[str] = Counter()
        self._find = find
        self._limits = limits
        self._descriptors: dict[DialingEngine, int] = {}
        self._socket = sockets.open(zmq.SUB, limits.kv_pending_batches)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._monitor = sockets.monitor(self._socket)
        bind = partial(self._socket.bind, endpoint)
        try:
            self._polled = PolledSocket(self, self._socket, bind, turns=turns, loop=loop, monitor=self._monitor)
        except zmq.ZMQError as error:
            text = f"KV events cannot be listened for on {endpoint}: {error}"
            raise BadInput(text, field="events", hint=hint) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._polled.mark_ready()

    @property
    def engine_count(self) -> int:
        """How many speak here."""
        return len(self._descriptors)

    def read(self, most: int) -> tuple[int, bool]:
        """Its turn, see ``Turns``."""
        used = 0
        while self._polled.is_open:
            self._handle_monitor_events()
            frames = self._receive()
            if frames is None:
                return used, False
            parts = [frame.bytes for frame in frames]
            used += message_size(parts) + MESSAGE_OVERHEAD_BYTES
            self._dispatch(parts, _descriptor(frames[0]))
            if used >= most:
                return used, self._polled.is_open
        return used, False

    def remove(self, line: DialingEngine) -> None:
        """The line is closed."""
        self._descriptors.pop(line, None)

    def close(self) -> None:
        """Stop listening."""
        self._polled.close()

    def _receive(self) -> list[zmq.Frame] | None:
        try:
            frames = [self._socket.recv(zmq.NOBLOCK, copy=False)]
        except zmq.Again:
            return None
        while self._socket.getsockopt(zmq.RCVMORE):
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            if len(frames) <= self._limits.kv_frames:
                frames.append(frame)
        return frames

    def _dispatch(self, parts: list[bytes], descriptor: int) -> None:
        if len(parts) != _FRAMES_PER_MESSAGE:
            self.unidentified["frame"] += 1
            return
        place = topic_address(parts[0])
        if place is None:
            self.unidentified["topic"] += 1
            return
        line = self._find(place, None) or self._find(place, _rank(parts[2]))
        if line is None:
            self.unidentified["unknown"] += 1
            return
        before = self._descriptors.get(line)
        if before != descriptor:
            if before is not None:
                line.on_disconnected("it dialed again")
            elif len(self._descriptors) >= self._limits.kv_inbound_connections:
                self.unidentified["many"] += 1
                return
            self._descriptors[line] = descriptor
            line.on_connected()
        line.on_messages([parts])

    def _handle_monitor_events(self) -> None:
        for event, value in self._monitor.events():
            if event == zmq.EVENT_DISCONNECTED:
                for line in [line for line, descriptor in self._descriptors.items() if descriptor == value]:
                    del self._descriptors[line]
                    line.on_disconnected("disconnected")


def _descriptor(frame: zmq.Frame) -> int:
    """Which connection it came over."""
    return int(frame.get(zmq.SRCFD))


def _rank(payload: bytes) -> int | None:
    try:
        return _RANK.decode(payload).rank
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
