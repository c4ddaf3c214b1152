"""Peer updates."""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Hashable

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.ipc.messages import Dispatch
from fairlead_gateway.routing import PrefixChain
from fairlead_gateway.routing.prefix.prefix_hash import block_ends

_BLOCKS_PER_TURN = 8_192


_dispatch_decoder = msgspec.msgpack.Decoder(list[Dispatch])


class PeerUpdateApplier:
    """What siblings and other gateways have sent, given to ``heard`` (model, instance, chain, the session's pin or None) a
    bounded number of blocks a turn of
    the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        on_peer_dispatch: Callable[[str, str, PrefixChain, Hashable], None],
    ) -> None:
        self._loop = loop
        self._max_waiting = limits.sibling_decisions_pending
        self._on_peer_dispatch = on_peer_dispatch
        self._waiting: deque[Dispatch] = deque()

    def enqueue(self, sent: bytes) -> None:
        """One batch; the oldest go when too many wait."""
        idle = not self._waiting
        self._waiting.extend(_dispatch_decoder.decode(sent))
        while len(self._waiting) > self._max_waiting:
            self._waiting.popleft()
        if idle:
            self._apply_batch()

    def _apply_batch(self) -> None:
        blocks = 0
        while self._waiting and blocks < _BLOCKS_PER_TURN:
            item = self._waiting.popleft()
            hashes = array("Q", item.hashes)
            blocks += len(hashes) + 1
            chain = PrefixChain(tuple(hashes), block_ends(len(hashes)), item.tail)
            self._on_peer_dispatch(item.model, item.instance, chain, item.pin or None)
        if self._waiting:
            self._loop.call_soon(self._apply_batch)
