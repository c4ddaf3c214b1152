"""What a worker tells without being asked: its dispatches, for its siblings' mirrors; its decisions and loads, for Redis.

The request's way only puts things aside. They go out together a twentieth of a second after the first of them. A worker that has
neither siblings nor a Redis tells nothing, and then nothing of this is called.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.channel_messages import Sent, Told, WireLoad
from fairlead_gateway.decision_log import DecisionRecord
from fairlead_gateway.routing import InstanceLoad, PrefixChain, RouteRequest
from fairlead_gateway.routing.prefix import block_ends
from fairlead_gateway.wired import wire_record

_AT_ONCE = 64
_BLOCKS_A_TURN = 8_192
_encode = msgspec.msgpack.Encoder().encode
_sent = msgspec.msgpack.Decoder(list[Sent])


class Sink(Protocol):
    """Where it goes: the channel."""

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        ...


class Teller:
    """``loads`` says what is in flight by instance. Its methods are hooks of the router and of the decision log."""

    def __init__(
        self,
        sink: Sink,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        *,
        publish: bool,
        loads: Callable[[], Mapping[str, InstanceLoad]],
    ) -> None:
        self._sink = sink
        self._loop = loop
        self._limits = limits
        self._publish = publish
        self._loads = loads
        self._dispatched: deque[tuple[str, str, PrefixChain, Hashable]] = deque()
        self._deaths: list[tuple[bytes, str, float, float]] = []
        self._cleared: list[tuple[bytes, float]] = []
        self._records: deque[DecisionRecord] = deque()
        self._shown: dict[str, WireLoad] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._dropped = 0

    def sent(self, model: str, request: RouteRequest, instance: str) -> None:
        """A prompt was sent to an instance."""
        if len(self._dispatched) >= self._limits.sibling_decisions:
            self._dispatched.popleft()
        self._dispatched.append((model, instance, request.chain, request.pin))
        self._later(len(self._dispatched))

    def died(self, print_: bytes, instance: str, began: float, at: float) -> None:
        """An instance broke off on a body that it had since ``began``: the siblings should know before it is sent to them."""
        if len(self._deaths) < self._limits.quarantine:
            self._deaths.append((print_, instance, began, at))
        self.flush()

    def cleared(self, print_: bytes, at: float) -> None:
        """A body on which an instance broke off was answered."""
        if len(self._cleared) < self._limits.quarantine:
            self._cleared.append((print_, at))
        self.flush()

    def decided(self, record: DecisionRecord) -> None:
        """A choice was made."""
        if len(self._records) >= self._limits.published_decisions_waiting:
            self._records.popleft()
            self._dropped += 1
        self._records.append(record)
        self._later(len(self._records))

    def flush(self) -> None:
        """Tell what waits now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sent = None
        if self._dispatched:
            sent = _encode([_wire_sent(*item) for item in self._dispatched])
            self._dispatched.clear()
        deaths, self._deaths = self._deaths, []
        cleared, self._cleared = self._cleared, []
        records = [wire_record(record) for record in self._records]
        self._records.clear()
        loads = self._changed_loads() if self._publish else None
        if sent is None and not deaths and not cleared and not records and loads is None:
            return
        if self._sink.send(Told(sent, deaths, records, loads, self._dropped, cleared)):
            self._dropped = 0
        else:
            self._dropped += len(records)
        if self._shown:  # in flight: its end is to be told too
            self._later(0)

    def _changed_loads(self) -> dict[str, WireLoad] | None:
        found = {
            item: WireLoad(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
            for item, load in self._loads().items()
            if load.inflight
        }
        if found == self._shown:
            if found:
                self._later(0)
            return None
        self._shown = found
        return found

    def _later(self, waiting: int) -> None:
        if waiting == _AT_ONCE and self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(0, self.flush)
        elif self._timer is None:
            self._timer = self._loop.call_later(self._limits.sibling_seconds, self.flush)


class Hearer:
    """What siblings and other gateways have sent, given to ``heard`` (model, instance, chain, the session's pin or None) a
    bounded number of blocks a turn of
    the loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, heard: Callable[[str, str, PrefixChain, Hashable], None]
    ) -> None:
        self._loop = loop
        self._most = limits.sibling_decisions
        self._heard = heard
        self._waiting: deque[Sent] = deque()

    def take(self, sent: bytes) -> None:
        """One batch; the oldest go when too many wait."""
        idle = not self._waiting
        self._waiting.extend(_sent.decode(sent))
        while len(self._waiting) > self._most:
            self._waiting.popleft()
        if idle:
            self._turn()

    def _turn(self) -> None:
        blocks = 0
        while self._waiting and blocks < _BLOCKS_A_TURN:
            item = self._waiting.popleft()
            hashes = array("Q", item.hashes)
            blocks += len(hashes) + 1
            chain = PrefixChain(tuple(hashes), block_ends(len(hashes)), item.tail)
            self._heard(item.model, item.instance, chain, item.pin or None)
        if self._waiting:
            self._loop.call_soon(self._turn)


def hashes_of(packed: bytes) -> frozenset[Hashable]:
    """The hashes that one half of a ``Hot`` holds."""
    return frozenset(array("Q", packed))


def _wire_sent(model: str, instance: str, chain: PrefixChain, pin: Hashable) -> Sent:
    return Sent(model, instance, array("Q", chain.hashes).tobytes(), chain.tail, pin if isinstance(pin, int) else 0)
