"""The listener for engines that dial the indexer. Their topic is ``kv@<ip>:<port>@<model>``.

A message belongs to the engine that its topic names. Ranks of one address share its topic; the
payload then contains the rank. Messages of an engine that is not in the fleet are counted and
dropped.

Beyond loopback, a peer speaks for engines at its own IP address only: the host of the topic must be
the address of the connection. Engines behind address translation, or with names instead of
addresses in their URLs, cannot dial such a listener.

Of too many connections, one that has named no engine is ended: the oldest of the address that has
most of these. A peer that opens many thus keeps out no engine at another address, not even one that
has sent nothing yet.
"""

import asyncio
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from fairlead.errors import BadInput
from fairlead_kvstore.errors import ProtocolError
from fairlead_kvstore.reader.endpoints import topic_address
from fairlead_kvstore.reader.engine_subscription import EngineSubscription
from fairlead_kvstore.reader.timers import OneShotTimer
from fairlead_kvstore.reader.zmtp_connection import (
    ConnectionContext,
    ZmtpConnection,
    accept_connection,
    describe,
    socket_address,
)

_LOG: Final = logging.getLogger("fairlead.indexer")
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_FRAMES_PER_MESSAGE: Final = 3
_BACKLOG: Final = 1_024
_MAX_ACCEPTED: Final = 64
"""So many connections are accepted before other work."""
_ACCEPT_PAUSE_SECONDS: Final = 1.0


class _BatchRank(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: msgspec.Raw
    rank: int | None = None


_RANK: Final = msgspec.msgpack.Decoder(_BatchRank)


class EventListener:
    """A listener for engines that dial. Raises BadInput for an address that cannot be bound.

    find: returns the subscription of an address such as ``10.0.0.7:8000`` and a rank (None: any);
    None if there is none.
    """

    def __init__(
        self,
        endpoint: str,
        find: Callable[[str, int | None], EngineSubscription | None],
        context: ConnectionContext,
    ) -> None:
        self.unidentified: Counter[str] = Counter()
        self._find = find
        self._context = context
        self._connections: dict[InboundConnection, None] = {}  # the oldest first
        # those that have named no engine yet, the oldest first
        self._unidentified_by_peer: dict[IpAddress, dict[InboundConnection, None]] = {}
        self._engines: dict[EngineSubscription, InboundConnection] = {}
        self._pause = OneShotTimer(context.loop)
        self._socket = _bind(endpoint)
        self._is_open = True
        host, port = self._socket.getsockname()[:2]
        self.endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._checks_peers = not _ip_address(host).is_loopback
        context.loop.add_reader(self._socket.fileno(), self._accept)

    def remove(self, engine: EngineSubscription) -> None:
        """Forgets the connection of a closed subscription."""
        connection = self._engines.pop(engine, None)
        if connection is not None:
            connection.engines.discard(engine)
            self._update_unidentified(connection)

    def close(self) -> None:
        """Stops listening and closes all connections, without a callback."""
        if not self._is_open:
            return
        self._is_open = False
        self._pause.clear()
        self._context.loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for connection in tuple(self._connections):
            connection.close()
        self._connections.clear()
        self._unidentified_by_peer.clear()

    def on_message(self, connection: "InboundConnection", parts: list[bytes]) -> None:
        """Passes a message to the engine that its topic names."""
        if len(parts) != _FRAMES_PER_MESSAGE:
            self.unidentified["frame"] += 1
            return
        address = topic_address(parts[0])
        if address is None:
            self.unidentified["topic"] += 1
            return
        if self._checks_peers and _host(address) != connection.peer:
            self.unidentified["peer"] += 1
            return
        engine = self._find(address, None) or self._find(address, _rank(parts[2]))
        if engine is None:
            self.unidentified["unknown"] += 1
            return
        before = self._engines.get(engine)
        if before is not connection:
            if before is not None:
                self.remove(engine)
                engine.on_disconnected("it dialed again")
            self._engines[engine] = connection
            connection.engines.add(engine)
            self._update_unidentified(connection)
            connection.set_model(engine.model_key)
            engine.on_connected()
        engine.on_messages([parts])

    def on_ended(self, connection: "InboundConnection", reason: str) -> None:
        """Handles the end of a connection; its engines are disconnected."""
        self._connections.pop(connection, None)
        for engine in tuple(connection.engines):
            self.remove(engine)
            engine.on_disconnected(reason)
        self._update_unidentified(connection)

    def _update_unidentified(self, connection: "InboundConnection") -> None:
        """Adds a connection to those that have named no engine, or removes it."""
        of_peer = self._unidentified_by_peer.setdefault(connection.peer, {})
        if connection in self._connections and not connection.engines:
            of_peer[connection] = None
        else:
            of_peer.pop(connection, None)
        if not of_peer:
            del self._unidentified_by_peer[connection.peer]

    def _accept(self) -> None:
        for _ in range(_MAX_ACCEPTED):
            try:
                peer, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:  # no descriptor is left
                _LOG.warning(
                    "%s: cannot accept connections, next try in %g s: %s", self.endpoint, _ACCEPT_PAUSE_SECONDS, error
                )
                self._context.loop.remove_reader(self._socket.fileno())
                self._pause.set(_ACCEPT_PAUSE_SECONDS, self._resume)
                return
            peer.setblocking(False)
            connection = InboundConnection(peer, _ip_address(address[0]), self, self._context)
            self._connections[connection] = None
            self._update_unidentified(connection)
            if len(self._connections) > self._context.limits.kv_inbound_connections:
                self._end_oldest()

    def _resume(self) -> None:
        self._context.loop.add_reader(self._socket.fileno(), self._accept)

    def _end_oldest(self) -> None:
        """Ends the oldest connection of the address with most that have named no engine.

        There is one: the connection that was just accepted.
        """
        largest = max(self._unidentified_by_peer.values(), key=len)
        ended = next(iter(largest))
        self.unidentified["many"] += 1
        ended.close()
        self.on_ended(ended, "too many connections")


class InboundConnection:
    """One connection that a peer made. It is read in turns of its own.

    peer: the IP address of the peer.
    engines: those that it speaks for.
    model_key: the model of the engine that it last spoke for; None before the first.
    """

    def __init__(
        self, accepted: socket.socket, peer: IpAddress, listener: EventListener, context: ConnectionContext
    ) -> None:
        self.peer = peer
        self.engines: set[EngineSubscription] = set()
        self.model_key: str | None = None
        self._listener = listener
        self._context = context
        self._connection: ZmtpConnection | None = None
        self._opening = asyncio.get_running_loop().create_task(self._open(accepted))
        self._opening.add_done_callback(lambda _: self._close_unopened(accepted))

    def set_model(self, model_key: str) -> None:
        """Notes for which model the peer speaks."""
        self.model_key = model_key
        if self._connection is not None:
            self._connection.set_namespace(model_key.partition("/")[0])

    def read(self, max_bytes: int) -> tuple[int, bool]:
        """Reads messages of one turn, see ``ReadSource``."""
        if self._connection is None:
            return 0, False
        return self._connection.read(max_bytes, lambda: False, lambda parts: self._listener.on_message(self, parts))

    def close(self) -> None:
        """Closes the connection without a callback."""
        self._opening.cancel()
        if self._connection is not None:
            self._connection.close()

    def on_ended(self, reason: str, *, is_overflow: bool) -> None:
        """Handles the end of the connection."""
        if is_overflow:
            self._listener.unidentified["overflow"] += 1
        self._listener.on_ended(self, reason)

    def _close_unopened(self, accepted: socket.socket) -> None:
        if self._connection is None:
            accepted.close()

    async def _open(self, accepted: socket.socket) -> None:
        try:
            stream = await accept_connection(accepted, self._context.limits)
        except (OSError, ProtocolError) as error:
            self._listener.on_ended(self, describe(error))
            return
        self._connection = ZmtpConnection(accepted, stream, self, self._context)


def _bind(endpoint: str) -> socket.socket:
    """Returns a socket that listens at a ZMQ endpoint; host ``*`` means all addresses. Raises
    BadInput.
    """
    hint = "write tcp://ADDRESS:PORT with a free port of this machine"
    try:
        address = socket_address(endpoint)
        if isinstance(address, str):
            raise BadInput("engines dial TCP addresses only", field="events")
        host, port = address
        is_any = host == "*"
        family = socket.AF_INET6 if ":" in host or (is_any and socket.has_dualstack_ipv6()) else socket.AF_INET
        bound = socket.create_server(
            ("" if is_any else host, port),
            family=family,
            backlog=_BACKLOG,
            dualstack_ipv6=is_any and family is socket.AF_INET6,
        )
    except (OSError, BadInput, UnicodeError) as error:
        text = f"cannot listen for KV events on {endpoint}: {error}"
        raise BadInput(text, field="events", hint=hint) from error
    bound.setblocking(False)
    return bound


def _host(address: str) -> IpAddress | None:
    """Returns the IP address in ``10.0.0.7:8000``; None for a name."""
    try:
        return _ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return None


def _ip_address(text: str) -> IpAddress:
    """Returns an IP address, without a zone and not as IPv4 within IPv6. Raises ValueError."""
    found = ipaddress.ip_address(text.partition("%")[0])
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


def _rank(payload: bytes) -> int | None:
    try:
        return _RANK.decode(payload).rank
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
