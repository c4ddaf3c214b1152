"""A bound socket for engines that dial the indexer; several engines publish on it. The topic is
``kv@<ip>:<port>@<model>``.

ZMQ reports connections by their descriptor, and messages with the descriptor of their connection.
That relates a closed connection to an engine. Ranks of one address share its topic; the payload
then contains the rank. Messages of an engine that is not in the fleet are counted and dropped.

Beyond loopback, a peer speaks for engines at its own IP address only: the host of the topic must be
the address of the connection. Engines behind address translation, or with names instead of
addresses in their URLs, cannot dial such a listener.

Of too many connections, the oldest that is no known engine's is ended. So a peer that opens many
does not keep engines out.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec
import zmq

from fairlead.errors import BadInput
from fairlead_kvstore.reader.endpoints import topic_address
from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES
from fairlead_kvstore.reader.unread_bytes import PENDING_FACTOR, UnreadBytes, endpoint_port
from fairlead_kvstore.reader.zmq_socket import PolledSocket, SocketContext, message_size, wire_size

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_FIRST_VERSION_WITH_PEER_ADDRESSES: Final = (4, 1)
_FRAMES_PER_MESSAGE: Final = 3
_ADDRESS: Final = re.compile(r"tcp://\S+:[0-9]{1,5}")


class _BatchRank(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: msgspec.Raw
    rank: int | None = None


_RANK: Final = msgspec.msgpack.Decoder(_BatchRank)


class DialingEngine(Protocol):
    """The interface of a subscription to an engine that dials the indexer.

    model_key: the model (``namespace/name``) of the engine.
    """

    model_key: str

    def on_connected(self) -> None:
        """Handles a new connection."""
        ...

    def on_disconnected(self, reason: str) -> None:
        """Handles a closed connection."""
        ...

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Handles messages in order; each is a list of its parts."""
        ...


class ZmqListener:
    """A listener for engines that dial. Raises BadInput for an address that cannot be bound, or
    that is not loopback if this ZMQ does not report the addresses of peers.

    find: returns the subscription of an address such as ``10.0.0.7:8000`` and a rank (None: any);
    None if there is none.
    """

    def __init__(
        self,
        endpoint: str,
        find: Callable[[str, int | None], DialingEngine | None],
        context: SocketContext,
    ) -> None:
        hint = "write tcp://ADDRESS:PORT with a free port of this machine"
        if not _ADDRESS.fullmatch(endpoint) or int(endpoint.rpartition(":")[2]) > 65_535:  # ZMQ takes any number
            raise BadInput(f"cannot listen for KV events on {endpoint}", field="events", hint=hint)
        self.model_key = None  # engines of any model dial it
        self.unidentified: Counter[str] = Counter()
        self._find = find
        self._limits = context.limits
        self._descriptors: dict[DialingEngine, int] = {}
        self._socket = context.sockets.open_subscriber()
        self._monitor = context.sockets.monitor(self._socket)
        bind = partial(self._socket.bind, endpoint)
        try:
            self._polled = PolledSocket(self, self._socket, bind, context, self._monitor)
        except zmq.ZMQError as error:
            text = f"cannot listen for KV events on {endpoint}: {error}"
            raise BadInput(text, field="events", hint=hint) from error
        self._watch = context.unread
        self._unread: dict[int, UnreadBytes] = {}
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._checks_peers = not _is_loopback(self.endpoint)
        if self._checks_peers and zmq.zmq_version_info() < _FIRST_VERSION_WITH_PEER_ADDRESSES:
            self._polled.close()
            raise BadInput(
                f"cannot check who sends KV events to {endpoint}: ZMQ {zmq.zmq_version()} reports no addresses",
                field="events",
                hint="listen on a loopback address, or use ZMQ 4.1 or later",
            )
        self._polled.mark_ready()

    @property
    def engine_count(self) -> int:
        """The number of connected engines."""
        return len(self._descriptors)

    def read(self, most: int) -> tuple[int, bool]:
        """Reads messages of one turn, see ``ReadSource``."""
        used, has_more = 0, True
        descriptors: set[int] = set()
        while self._polled.is_open and has_more and used < most:
            self._handle_monitor_events()
            frames, size = self._receive()
            has_more = bool(frames)
            if frames:
                parts = [frame.bytes for frame in frames]
                used += message_size(parts) + MESSAGE_OVERHEAD_BYTES
                descriptor = int(frames[0].get(zmq.SRCFD))
                descriptors.add(descriptor)
                if descriptor in self._unread:
                    self._unread[descriptor].on_read(size)
                self._dispatch(parts, frames[0])
        for descriptor in () if has_more else descriptors & self._unread.keys():
            self._unread[descriptor].on_queue_empty()
        return used, has_more and self._polled.is_open

    def remove(self, engine: DialingEngine) -> None:
        """Forgets the connection of a closed subscription."""
        self._descriptors.pop(engine, None)

    def close(self) -> None:
        """Stops listening."""
        for unread in self._unread.values():
            unread.close()
        self._polled.close()

    def _receive(self) -> tuple[list[zmq.Frame], int]:
        """Returns the first parts of the next message, and its bytes; none if there is none now."""
        try:
            frames = [self._socket.recv(zmq.NOBLOCK, copy=False)]
        except zmq.Again:
            return [], 0
        size = wire_size(len(frames[0]))
        while self._socket.getsockopt(zmq.RCVMORE):
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            size += wire_size(len(frame))
            if len(frames) <= self._limits.kv_frames:
                frames.append(frame)
        return frames, size

    def _dispatch(self, parts: list[bytes], first: zmq.Frame) -> None:
        if len(parts) != _FRAMES_PER_MESSAGE:
            self.unidentified["frame"] += 1
            return
        address = topic_address(parts[0])
        if address is None:
            self.unidentified["topic"] += 1
            return
        if self._checks_peers and _host(address) != _peer_address(first):
            self.unidentified["peer"] += 1
            return
        engine = self._find(address, None) or self._find(address, _rank(parts[2]))
        if engine is None:
            self.unidentified["unknown"] += 1
            return
        descriptor = int(first.get(zmq.SRCFD))
        before = self._descriptors.get(engine)
        if before != descriptor:
            if before is not None:
                engine.on_disconnected("it dialed again")
            elif len(self._descriptors) >= self._limits.kv_inbound_connections:
                self.unidentified["many"] += 1
                return
            self._descriptors[engine] = descriptor
            if descriptor in self._unread:
                self._unread[descriptor].set_namespace(engine.model_key.partition("/")[0])
            engine.on_connected()
        engine.on_messages([parts])

    def _handle_monitor_events(self) -> None:
        for event, value in self._monitor.events():
            if event == zmq.EVENT_ACCEPTED:
                self._on_accepted(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._on_closed(value)
                for engine in [engine for engine, descriptor in self._descriptors.items() if descriptor == value]:
                    del self._descriptors[engine]
                    engine.on_disconnected("disconnected")

    def _on_accepted(self, descriptor: int) -> None:
        self._on_closed(descriptor)
        unread = self._watch.add(
            descriptor,
            endpoint_port(self.endpoint),
            PENDING_FACTOR * self._limits.kv_pending_bytes,
            lambda reason: self._end_connection(descriptor, "overflow"),
        )
        if unread is not None:
            self._unread[descriptor] = unread
            if len(self._unread) > self._limits.kv_inbound_connections:
                engines = set(self._descriptors.values())
                oldest = next((peer for peer in self._unread if peer not in engines), descriptor)
                self._end_connection(oldest, "many")

    def _end_connection(self, descriptor: int, reason: str) -> None:
        self.unidentified[reason] += 1
        self._unread[descriptor].shut_down()
        self._on_closed(descriptor)

    def _on_closed(self, descriptor: int) -> None:
        unread = self._unread.pop(descriptor, None)
        if unread is not None:
            unread.close()


def _is_loopback(endpoint: str) -> bool:
    """Returns whether a bound endpoint such as ``tcp://[::1]:5557`` is reached from this machine
    only.
    """
    host = _host(endpoint.removeprefix("tcp://"))
    return host is not None and host.is_loopback


def _host(address: str) -> IpAddress | None:
    """Returns the IP address in ``10.0.0.7:8000``; None for a name."""
    return _ip_address(address.rpartition(":")[0].strip("[]"))


def _peer_address(frame: zmq.Frame) -> IpAddress | str:
    """Returns the IP address of the connection that a frame came over; a text if it is unknown."""
    try:
        text = str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""
    return _ip_address(text) or text


def _ip_address(text: str) -> IpAddress | None:
    """Returns an IP address, without a zone and not as IPv4 within IPv6; None for other text."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


def _rank(payload: bytes) -> int | None:
    try:
        return _RANK.decode(payload).rank
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
