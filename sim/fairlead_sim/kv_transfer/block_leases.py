"""The blocks that a prefill engine keeps until they are pulled or their lease expires.

Readers name block numbers, and nothing else is checked, as in real engines. A reader of a block
that was reused gets its present content.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairlead_sim.engine.block_pool import chain_key
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence


@dataclass(slots=True)
class BlockLease:
    """The lease of one prefilled prompt; the last of its ``blocks`` may be partial."""

    rank: int
    blocks: list[int]
    tokens: int
    expiry: asyncio.TimerHandle


class BlockLeases:
    """The leases of one engine, by the name that was promised to the reader."""

    def __init__(self, cores: Sequence[EngineCore], seconds: float) -> None:
        self._cores = cores
        self._seconds = seconds
        self._leases: dict[str, BlockLease] = {}
        self._partial: dict[tuple[int, int], int] = {}
        self._waiters: dict[str, list[Callable[[], None]]] = {}
        self._loop = asyncio.get_running_loop()
        self.expired = 0

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, name: str) -> BlockLease | None:
        return self._leases.get(name)

    def grant(self, name: str, rank: int, sequence: EngineSequence) -> BlockLease | None:
        """Keeps the blocks of a completed prompt until release or expiry, and calls the waiters.

        Returns None if some are no longer cached, or memory lacks room for a partial last block.
        """
        core = self._cores[rank]
        pool, size = core.pool, core.block_tokens
        full = sequence.prompt_tokens // size
        blocks = pool.match(sequence.chain, full)
        if len(blocks) < full or sequence.tokens is None:
            return None
        pool.acquire(blocks)
        rest = sequence.tokens[full * size : sequence.prompt_tokens]
        if rest:
            last = pool.allocate()
            if last is None:
                pool.release(blocks)
                return None
            self._partial[rank, last] = chain_key(sequence.chain[full - 1] if full else 0, rest)
            blocks.append(last)
        expiry = self._loop.call_later(self._seconds, self._expire_lease, name)
        lent = self._leases[name] = BlockLease(rank, blocks, sequence.prompt_tokens, expiry)
        for callback in self._waiters.pop(name, ()):
            callback()
        return lent

    def renew(self, name: str) -> None:
        """Makes the lease last two thirds of its full duration from now on, before a read."""
        lent = self._leases.get(name)
        if lent is not None:
            lent.expiry.cancel()
            lent.expiry = self._loop.call_later(self._seconds * 2 / 3, self._expire_lease, name)

    def contents(self, rank: int, blocks: Sequence[int]) -> list[int | None]:
        """Returns the present contents of blocks. Raises IndexError for an unknown block number."""
        pool = self._cores[rank].pool
        if any(not 0 <= block < pool.blocks for block in blocks):
            raise IndexError("no such block")
        return [pool.key_in(block) or self._partial.get((rank, block)) for block in blocks]

    def release(self, name: str) -> bool:
        """Releases the blocks of a lease. Returns False if there is no such lease any more."""
        lent = self._leases.pop(name, None)
        if lent is None:
            return False
        lent.expiry.cancel()
        self._cores[lent.rank].pool.release(lent.blocks)
        return True

    def call_when_granted(self, name: str, callback: Callable[[], None]) -> None:
        """Calls ``callback`` at the next grant of a lease of this name."""
        self._waiters.setdefault(name, []).append(callback)

    def remove_waiter(self, name: str, callback: Callable[[], None]) -> None:
        waiting = self._waiters.get(name, [])
        if callback in waiting:
            waiting.remove(callback)

    def close(self) -> None:
        """Cancels all expiries."""
        for lent in self._leases.values():
            lent.expiry.cancel()

    def _expire_lease(self, name: str) -> None:
        if self.release(name):
            self.expired += 1
