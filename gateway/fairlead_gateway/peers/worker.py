"""Applies the dispatches of sibling workers and other gateways to this worker's routers."""

import asyncio
from array import array
from collections import deque
from collections.abc import Sequence

from fairlead.runtime.clock import Clock
from fairlead_gateway.peers.messages import SIBLING_DECISIONS_PENDING, Dispatch
from fairlead_gateway.router_registry import RouterRegistry
from fairlead_gateway.routing import PrefixChain
from fairlead_gateway.routing.prefix.prefix_hash import block_ends

_BLOCKS_PER_TURN = 8_192


class PeerUpdateApplier:
    """The applier of dispatch batches: a bounded number of blocks per event loop iteration."""

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop, routers: RouterRegistry) -> None:
        self._clock = clock
        self._loop = loop
        self._routers = routers
        self._pending: deque[Dispatch] = deque()

    def enqueue(self, dispatches: Sequence[Dispatch]) -> None:
        """Queues a batch to be applied; drops the oldest dispatches if too many wait."""
        was_idle = not self._pending
        self._pending.extend(dispatches)
        while len(self._pending) > SIBLING_DECISIONS_PENDING:
            self._pending.popleft()
        if was_idle:
            self._apply_batch()

    def _apply_batch(self) -> None:
        blocks = 0
        try:
            while self._pending and blocks < _BLOCKS_PER_TURN:
                dispatch = self._pending.popleft()
                hashes = array("Q", dispatch.hashes)
                blocks += len(hashes) + 1
                chain = PrefixChain(tuple(hashes), block_ends(len(hashes)), dispatch.tail)
                now = self._clock.now()
                for router in self._routers.routers(dispatch.model):
                    router.on_peer_dispatch(dispatch.instance, chain, now, dispatch.session_hash or None)
        finally:
            if self._pending:
                self._loop.call_soon(self._apply_batch)
