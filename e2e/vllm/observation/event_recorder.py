"""Recorder of all batches that an engine published, and of the cached blocks that follow.

This is the ground truth of the part ``index``, so it shares no decoder, sequence, table or tier
with the index. It subscribes before the engine's first request, so it needs no replay and knows
every parent. The program that restarts engines and loads adapters reports both to it. It is also
the *reference*: an index that counts copies, directly at the engine, without a batch or a store
between.

A block is named by a chain of BLAKE2b over tokens, extra keys, adapter and place. Engine hash →
name, name → copies.
"""

import asyncio
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root

Name = bytes
GPU, CPU = "GPU", "CPU"


@dataclass(frozen=True, slots=True)
class RecordedBlock:
    """One block as it was announced."""

    parent: Name | None
    tokens: tuple[int, ...]
    extras: tuple[Any, ...]
    adapter: str | None
    place: str | None


class EventRecorder:
    """One engine process × rank. ``loaded`` is shared by the ranks of an engine: adapter → the
    place that it was loaded from."""

    def __init__(self, endpoint: str, context: "zmq.asyncio.Context", loaded: Mapping[str, str]) -> None:
        self.payloads: list[bytes] = []
        self.numbers: list[int] = []
        self.heard_after: list[float] = []
        self.missed = 0
        self.orphans = 0
        self.clears = 0
        self._loaded = loaded
        self._places: dict[Any, str] = {}
        self._blocks: dict[Name, RecordedBlock] = {}
        self._name: dict[tuple[str, Any], Name] = {}
        self._copies: dict[str, Counter[Any]] = {}
        self._there: defaultdict[str, Counter[Name]] = defaultdict(Counter)
        self._socket = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.connect(endpoint)
        self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        """Stop listening."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close(0)

    def restarted(self) -> None:
        self._clear()
        self._places.clear()

    @property
    def stored(self) -> int:
        return sum(1 for copies in self._there[GPU].values() if copies > 0)

    @property
    def copies(self) -> int:
        return sum(self._there[GPU].values())

    def names(self, tokens: Sequence[int], size: int, adapter: str | None, salt: str | None) -> list[Name]:
        """The chain of a prompt, for what is loaded now."""
        place = self._loaded[adapter] if adapter else None
        found: list[Name] = []
        for at in range(len(tokens) // size):
            extras = (*((adapter,) if adapter else ()), *((salt,) if salt and not at else ()))
            parent = found[-1] if found else None
            found.append(
                _name(RecordedBlock(parent, tuple(tokens[at * size : at * size + size]), extras, adapter, place))
            )
        return found

    def cached_blocks(
        self, tokens: Sequence[int], size: int, adapter: str | None = None, salt: str | None = None
    ) -> int:
        """Blocks of a prompt that are found: on the GPU from its start, but never its last token's;
        from there on in the CPU tier."""
        names = self.names(tokens, size, adapter, salt)
        found = 0
        for medium, most in ((GPU, (len(tokens) - 1) // size), (CPU, len(names))):
            while found < most and self._there[medium][names[found]] > 0:
                found += 1
        return found

    def index_hashes(self, model_key: str, secret: bytes, medium: str = GPU) -> set[int]:
        """Returns the hashes that an index must have: all blocks that a request can name."""
        found: set[int] = set()
        known: dict[Name, int] = {}
        for one, copies in self._copies.get(medium, Counter()).items():
            block = self._blocks[self._name[medium, one]]
            if copies > 0 and (block.adapter is None or self._loaded.get(block.adapter) == block.place):
                found.add(self._own(self._name[medium, one], model_key, secret, known))
        return found

    def _own(self, name: Name, model_key: str, secret: bytes, known: dict[Name, int]) -> int:
        line: list[Name] = []
        at: Name | None = name
        while at is not None and at not in known:
            line.append(at)
            at = self._blocks[at].parent
        own = known[at] if at is not None else chain_root(model_key, self._blocks[name].adapter, secret=secret)
        for one in reversed(line):
            block = self._blocks[one]
            extras = [key for key in block.extras if key != block.adapter]
            own = block_hashes(own, block.tokens, len(block.tokens), {0: extras})[0]
            known[one] = own
        return own

    async def _listen(self) -> None:
        while True:
            _, number, payload = await self._socket.recv_multipart()
            seq = int.from_bytes(number, "big")
            if self.numbers and seq not in (0, self.numbers[-1] + 1):
                self.missed += 1
            self.numbers.append(seq)
            self.payloads.append(payload)
            stepped, events, *_ = msgspec.msgpack.decode(payload)
            self.heard_after.append(time.time() - stepped)
            for event in events:
                self._apply(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "AllBlocksCleared":
            self.clears += 1
            self._clear()
            return
        medium = event.get("medium") or GPU
        copies = self._copies.setdefault(medium, Counter())
        if kind == "BlockRemoved":
            for one in event["block_hashes"]:
                copies[one] -= 1
                self._there[medium][self._name[medium, one]] -= 1
            return
        adapter, size = event.get("lora_name"), event["block_size"]
        place = None
        if adapter is not None:
            place = self._places.setdefault(event["lora_id"], self._loaded[adapter])
        parent = None
        if (before := event.get("parent_block_hash")) is not None:
            parent = self._name.get((medium, before)) or self._name.get((GPU, before))
            if parent is None:
                self.orphans += 1
                return
        extras = event.get("extra_keys") or [None] * len(event["block_hashes"])
        for at, one in enumerate(event["block_hashes"]):
            tokens = tuple(event["token_ids"][at * size : at * size + size])
            known = (
                self._name.get((GPU, one)) if medium != GPU else None
            )  # other tiers are announced without extra keys
            block = RecordedBlock(parent, tokens, tuple(extras[at] or ()), adapter, place)
            parent = known or _name(block)
            self._blocks.setdefault(parent, block)
            self._name[medium, one] = parent
            copies[one] += 1
            self._there[medium][parent] += 1

    def _clear(self) -> None:
        self._copies.clear()
        self._there.clear()
        self._name.clear()
        self._blocks.clear()


def _name(block: RecordedBlock) -> Name:
    seen = hashlib.blake2b(block.parent or b"", digest_size=16)
    for part in (block.tokens, block.extras, block.adapter, block.place):
        seen.update(repr(part).encode())
    return seen.digest()
