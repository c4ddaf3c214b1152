"""An engine's prefix cache as far as its events show it: vLLM's rules in a hundred lines.

Blocks are physical. A full block of a prompt gets a hash and can be found by it. Freed blocks keep
theirs until they are needed again, least recently used first and a prompt's last block before its
first. Therefore the same content can exist twice. Every copy is announced and removed by itself.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec
import xxhash

from fairlead_kvstore.events.types import EventFrame


class PrefixCacheEngine:
    """A cache of ``capacity`` blocks of ``block_size`` tokens.

    seed: differs between processes whose hashes are not reproducible.
    """

    def __init__(
        self, *, capacity: int, block_size: int = 4, seed: int = 0, maps: bool = True, buffer: int = 10_000
    ) -> None:
        self.block_size = block_size
        self.maps = maps
        self.number = 0
        self.frames: list[EventFrame] = []
        self._capacity = capacity
        self._seed = seed
        self._buffer = buffer
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(capacity))
        self._hash: dict[int, int] = {}
        self._cached: dict[int, list[int]] = {}
        self._pending: list[Any] = []
        self._numbers: dict[str, tuple[int, str]] = {}
        self._loads = 0

    def load(self, adapter: str, path: str) -> int:
        """Loads an adapter, or loads it again; returns its number."""
        self._loads += 1
        self._numbers[adapter] = (self._loads, path)
        return self._loads

    def chain(self, tokens: Sequence[int], adapter: str | None = None, salt: str | None = None) -> list[int]:
        """Returns the engine's own hashes of a prompt's full blocks.

        They depend on seed, tokens, salt and the adapter's *path*.
        """
        parent = xxhash.xxh3_64_intdigest(f"seed{self._seed}".encode())
        found = []
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            path = None if adapter is None else self._numbers[adapter]
            keys = [list(tokens[start : start + self.block_size]), path and [adapter, path[1]], None if start else salt]
            parent = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(keys), parent)
            found.append(parent)
        return found

    def hit_blocks(self, tokens: Sequence[int], adapter: str | None = None, salt: str | None = None) -> int:
        return self._found(self.chain(tokens, adapter, salt)[: max(0, len(tokens) - 1) // self.block_size])

    @property
    def cached_blocks(self) -> int:
        return len(self._cached)

    def has_block(self, value: int) -> bool:
        return value in self._cached

    def serve_prompt(self, tokens: Sequence[int], adapter: str | None = None, salt: str | None = None) -> int:
        """Serves a prompt; returns its cached blocks. Its events wait for ``publish``."""
        chain, hit = self.chain(tokens, adapter, salt), self.hit_blocks(tokens, adapter, salt)
        used = [self._cached[value][0] for value in chain[:hit]]
        for block in used:
            self._free.pop(block, None)
        for _ in range(-(-len(tokens) // self.block_size) - hit):
            if not self._free:
                break  # the prompt is longer than the cache
            block, _ = self._free.popitem(last=False)
            self._evict(block)
            used.append(block)
        for block, value in zip(used[hit:], chain[hit:], strict=False):
            self._hash[block] = value
            self._cached.setdefault(value, []).append(block)
        self._announce(tokens, chain, hit, min(len(chain), len(used)), adapter, salt)
        for block in reversed(used):
            self._free[block] = None
        return hit

    def clear(self) -> None:
        """Resets the prefix cache; the next batch has the event."""
        self._hash.clear()
        self._cached.clear()
        self._free = OrderedDict.fromkeys(range(self._capacity))
        self._pending.append({"type": "AllBlocksCleared"} if self.maps else ["AllBlocksCleared"])

    def publish(self, wall: float = 0.0) -> EventFrame | None:
        """Returns the events since the last batch as a frame; None without events."""
        if not self._pending:
            return None
        payload = msgspec.msgpack.encode([wall, self._pending, 0])
        self._pending = []
        frame = EventFrame(self.number, payload)
        self.number += 1
        self.frames.append(frame)
        del self.frames[: -self._buffer]
        return frame

    def replay(self, start: int) -> list[EventFrame]:
        return [frame for frame in self.frames if frame.number >= start]

    def _found(self, chain: Sequence[int]) -> int:
        for index, value in enumerate(chain):
            if value not in self._cached:
                return index
        return len(chain)

    def _evict(self, block: int) -> None:
        value = self._hash.pop(block, None)
        if value is None:
            return
        blocks = self._cached[value]
        blocks.remove(block)
        if not blocks:
            del self._cached[value]
        one = {"type": "BlockRemoved", "block_hashes": [value], "medium": "GPU", "group_idx": 0}
        self._pending.append(one if self.maps else ["BlockRemoved", [value], "GPU"])

    def _announce(
        self, tokens: Sequence[int], chain: list[int], hit: int, upto: int, adapter: str | None, salt: str | None
    ) -> None:
        if upto <= hit:
            return
        size = self.block_size
        number = None if adapter is None else self._numbers[adapter][0]
        keys: list[Any] = [[adapter] if adapter else [] for _ in range(hit, upto)]
        if salt is not None and not hit:
            keys[0].append(salt)
        parent, ids = chain[hit - 1] if hit else None, list(tokens[hit * size : upto * size])
        if not self.maps:
            extras = [key or None for key in keys]
            fields = ["BlockStored", chain[hit:upto], parent, ids, size, number, "GPU", adapter, extras]
            self._pending.append(fields)
            return
        self._pending.append(
            {
                "type": "BlockStored",
                "block_hashes": chain[hit:upto],
                "parent_block_hash": parent,
                "token_ids": ids,
                "block_size": size,
                "lora_id": number,
                "medium": "GPU",
                "lora_name": adapter,
                "extra_keys": [key or None for key in keys],
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            }
        )
