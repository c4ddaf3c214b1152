"""The bound of an indexer's blocks and streams by Redis' ``maxmemory``.

A full Redis evicts any key, by default, so the index of one model could push out those of all.
Below the bound, the block store decides which blocks give way, with equal shares of namespaces.

The bound leaves most of ``maxmemory`` free. Each indexer has one, and Redis also has the data of
gateways. Without ``maxmemory``, or if Redis refuses to tell it, only the limits hold.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from redis.exceptions import ResponseError

from fairlead.errors import first_line
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.fleet_reader import FleetReader
from fairlead_kvstore.index.writer import INDEX_FLUSH_SECONDS, IndexWriter
from fairlead_kvstore.index.writer_state import INDEX_STREAM_BYTES
from fairlead_kvstore.redis.link import RedisLink

INDEX_MEMORY_BYTES_PER_BLOCK: Final = 128
"""Limit: part of Redis' `maxmemory` for one block of an indexer; a stored one takes 34 bytes, other
indexers and data too.
"""
INDEX_MEMORY_STREAM_FRACTION: Final = 8
"""Limit: the streams of all models that an indexer writes take at most one part of so many of
`maxmemory`.
"""
INDEX_MEMORY_SECONDS: Final = 30.0
"""Limit: interval at which the indexer reads `maxmemory`, besides at each connect."""

_LOG: Final = logging.getLogger("fairlead.indexer")
_BLOCKS_PER_STEP: Final = 16_384
"""A bound that falls is lowered by so many blocks at a time, with other work in between."""
_MIN_BLOCKS: Final = 65_536
"""The lowest bound, some 2 MB, whatever ``maxmemory`` is."""
_FULL_SECONDS: Final = 600.0
"""The bound counts as too low for this long after blocks gave way to it."""


class RedisMemoryBound:
    """The bound of one indexer process, and what is known of Redis' memory.

    led_models: returns the number of models that this process writes.
    max_memory: ``maxmemory`` in bytes, 0 without one; None while it is unknown.
    problem: why Redis refuses to tell it; empty if it does not.
    """

    def __init__(
        self,
        link: RedisLink,
        reader: FleetReader,
        writer: IndexWriter,
        clock: Clock,
        led_models: Callable[[], int],
        limits: Limits,
    ) -> None:
        self._link = link
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._led_models = led_models
        self._limits = limits
        self.max_memory: int | None = None
        self.problem = ""

    async def run(self) -> None:
        """Reads and applies the bound at each connect and every ``index_memory_seconds``."""
        while True:
            await self._link.wait_connected()
            await self.read_once()
            with suppress(TimeoutError):
                async with asyncio.timeout(INDEX_MEMORY_SECONDS):
                    await self._link.wait_lost()

    async def read_once(self) -> None:
        """Reads ``maxmemory`` and applies it. Keeps the last bound while Redis is unreachable."""
        found = await self._link.max_memory()
        if found is None:
            return
        self.max_memory, self.problem = (None, first_line(found)) if isinstance(found, ResponseError) else (found, "")
        limits = self._limits
        blocks, stream_bytes = limits.kv_blocks, INDEX_STREAM_BYTES
        if self.max_memory:
            blocks = min(blocks, max(_MIN_BLOCKS, self.max_memory // INDEX_MEMORY_BYTES_PER_BLOCK))
            shared = self.max_memory // INDEX_MEMORY_STREAM_FRACTION
            stream_bytes = min(stream_bytes, shared // max(1, self._led_models()))
        self._writer.max_stream_bytes = stream_bytes
        store = self._reader.store
        if blocks != store.max_blocks:
            _LOG.info("this indexer keeps at most %d blocks", blocks)
        while store.block_count > blocks:  # in steps that the writer can follow
            store.set_max_blocks(max(blocks, store.block_count - _BLOCKS_PER_STEP), self._clock.now())
            self._reader.offer_evictions()
            await asyncio.sleep(INDEX_FLUSH_SECONDS)
        store.set_max_blocks(blocks, self._clock.now())

    def warnings(self) -> list[str]:
        """Returns texts that say why there is no bound, or that it is too low."""
        if self.problem:
            return [f"Redis does not tell its maxmemory, which bounds the index otherwise: {self.problem}"]
        store = self._reader.store
        full = store.full_at is not None and self._clock.now() - store.full_at < _FULL_SECONDS
        if full and self.max_memory and store.max_blocks < self._limits.kv_blocks:
            return [
                f"engines have more blocks than the {store.max_blocks} that a maxmemory of {self.max_memory} bytes "
                "allows: give Redis more memory"
            ]
        return []
