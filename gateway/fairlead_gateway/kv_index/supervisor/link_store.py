"""The links of prompts in Redis, so that a gateway that starts need not query engines for them.

Each model has one stream of what its gateways learned lately. The links of a prompt that continues
an earlier one include those of the earlier one. So its entry replaces the earlier entry: a
conversation is one entry. Entries are bounded in size and number, and expire a day after the last.

One task reads what other gateways wrote and writes what was learned here, every two seconds, all
models in one round trip. It pauses after each prompt that it learns, for four times as long, so
that a flood takes a fifth of the process. After `_MAX_ROUNDS` pages of a model, it writes first.

Redis has the links of a prompt as hashes and counts only: byte blocks and token blocks under the
installation's secrets, eight bytes each. It never has text or tokens. All of it is validated.

Links are hints: lost ones are learned again, and those that are read twice change nothing. Wrong
ones cause drift, and then the model's stream is deleted.
"""

import asyncio
import logging
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
from redis.exceptions import ResponseError

from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead_gateway.kv_index.links import PromptLinks
from fairlead_gateway.peers.peer_messages import DATA_FIELD, GATEWAY_FIELD, secret_fingerprint
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.codec import decode, encode
from fairlead_kvstore.redis.link import RedisLink

PREFIX_MAP_STORES_PENDING: Final = 256
"""Limit: learned prompts that wait to be stored there; the oldest go."""
PREFIX_MAP_SYNC_SECONDS: Final = 2.0
"""Limit: interval of storing prompts and of loading those of other gateways."""
PREFIX_MAP_RETENTION_SECONDS: Final = 86_400.0
"""Limit: until the map of a model without new prompts expires in Redis."""
PREFIX_MAP_STORED_PROMPTS: Final = 1_024
"""Limit: prompts of one model whose map is in Redis, 1 to 10 KB each; the oldest go."""
PREFIX_MAP_STORED_BYTES: Final = 65_536
"""Limit: one of them, stored or loaded: some 130,000 tokens in blocks of 16; longer prompts are not
stored.
"""

_log = logging.getLogger("fairlead.gateway")
PAGE_ENTRIES: Final = 32
_MAX_ROUNDS: Final = 64
_PAUSE_FACTOR: Final = 4.0
_STREAM_START: Final = b"0-0"


class _StoredLinks(msgspec.Struct, frozen=True):
    """The links of a prompt as stored; arrays are little-endian. `secret` identifies the
    installation's secret.
    """

    secret: bytes
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    hashes: bytes
    owns: bytes
    depths: bytes


def encode_links(links: PromptLinks, *, secret: bytes) -> bytes:
    """Returns the links of a prompt as bytes. `secret` is a fingerprint of the installation's
    secret.
    """
    depths = [min(depth, len(links.token_hashes)) for depth in links.depths]
    parts = array("Q", links.hashes), array("Q", links.token_hashes), array("I", depths)
    return encode(_StoredLinks(secret, links.block_size, *(part.tobytes() for part in parts)))


def decode_links(data: bytes, *, secret: bytes, max_bytes: int) -> PromptLinks | None:
    """Returns the links of a prompt; None if they are damaged, too large, of another schema or
    secret.
    """
    stored = decode(data, _StoredLinks) if len(data) <= max_bytes else None
    if stored is None or stored.secret != secret:
        return None
    hashes, token_hashes, depths = array("Q"), array("Q"), array("I")
    try:
        hashes.frombytes(stored.hashes)
        token_hashes.frombytes(stored.owns)
        depths.frombytes(stored.depths)
    except ValueError:
        return None
    if not hashes or len(depths) != len(hashes) or 0 in hashes:
        return None
    return PromptLinks(hashes, token_hashes, depths, stored.block_size)


@dataclass(slots=True)
class _ModelStream:
    """The stream of one model: read position, and entry ids by hash of a prompt's last block."""

    position: bytes = _STREAM_START
    entry_ids: OrderedDict[int, bytes] = field(default_factory=OrderedDict)


class LinkStore:
    """The links of prompts in Redis, for one run of a gateway. The caller starts and stops `link`.

    on_learned: called with the model and the links of each prompt that another gateway learned.
    bounds: prompts of one model in Redis, and bytes of one of them.
    now: seconds of a clock that also runs within one iteration of the event loop.
    """

    def __init__(
        self,
        link: RedisLink,
        name: str,
        on_learned: Callable[[str, PromptLinks], None],
        *,
        secret: bytes,
        bounds: tuple[int, int] = (PREFIX_MAP_STORED_PROMPTS, PREFIX_MAP_STORED_BYTES),
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._link = link
        self._now = now
        self._name = name.encode()
        self._on_learned = on_learned
        self._secret_fingerprint = secret_fingerprint(secret)
        self._max_prompts, self._max_bytes = bounds
        self._streams: dict[str, _ModelStream] = {}
        self._pending: deque[tuple[str, Sequence[int], bytes]] = deque(maxlen=PREFIX_MAP_STORES_PENDING)
        self._deleted_models: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self.received: dict[str, int] = {}
        self.unreadable = 0

    # --- called by the index service

    def set_models(self, models: Iterable[str]) -> None:
        """Sets the models whose links are stored and read."""
        wanted = set(models)
        for model in self._streams.keys() - wanted:
            del self._streams[model]
            self.received.pop(model, None)
        for model in wanted - self._streams.keys():
            self._streams[model] = _ModelStream()

    def offer(self, model: str, links: PromptLinks) -> None:
        """Queues the links of a prompt that was learned here, unless they are too large to be
        stored.
        """
        if model not in self._streams or not links.token_hashes:
            return
        data = encode_links(links, secret=self._secret_fingerprint)
        if len(data) <= self._max_bytes:
            self._pending.append((model, links.hashes, data))

    def delete_model(self, model: str) -> None:
        self._pending = deque((entry for entry in self._pending if entry[0] != model), self._pending.maxlen)
        self._deleted_models.add(model)

    def start(self) -> None:
        name = "links of prompts in Redis"
        self._task = self._task or asyncio.create_task(run_despite_defects(self._run, _log, name), name=name)

    async def stop(self) -> None:
        """Writes what is queued and stops reading."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        await self.write()

    # --- internal

    async def _run(self) -> None:
        while True:
            await self._link.wait_connected()
            await self.read()
            await self.write()
            await asyncio.sleep(PREFIX_MAP_SYNC_SECONDS)

    async def read(self) -> None:
        """Reads what was written since the last time, one page per model at a time."""
        behind = list(self._streams)
        for _ in range(_MAX_ROUNDS):
            if not behind:
                return
            starts = [(redis_keys.prompt_links(model), b"(" + self._streams[model].position) for model in behind]
            replies = await self._link.run([("XRANGE", *start, "+", "COUNT", PAGE_ENTRIES) for start in starts])
            if replies is None:
                return
            more = []
            for model, reply in zip(behind, replies, strict=True):
                if not isinstance(reply, ResponseError) and model in self._streams:
                    await self._apply_entries(model, reply)
                    if len(reply) == PAGE_ENTRIES:
                        more.append(model)
            behind = [model for model in more if model in self._streams]

    async def _apply_entries(self, model: str, entries: Sequence[Any]) -> None:
        stream = self._streams[model]
        for identifier, fields in entries:
            if self._streams.get(model) is not stream:
                return  # the model has left meanwhile
            stream.position = identifier
            if not fields or fields.get(GATEWAY_FIELD) == self._name:
                continue
            data = fields.get(DATA_FIELD, b"")
            links = decode_links(data, secret=self._secret_fingerprint, max_bytes=self._max_bytes)
            if links is None:
                self.unreadable += 1
                continue
            self.received[model] = self.received.get(model, 0) + 1
            self._remember_entry(stream, links.hashes[-1], identifier)
            started_at = self._now()
            self._on_learned(model, links)
            await asyncio.sleep(_PAUSE_FACTOR * max(0.0, self._now() - started_at))

    async def write(self) -> None:
        """Writes what was learned since the last time, and deletes what it replaces.

        Deletes the streams of `delete_model` first. While Redis is away, what was queued is lost.
        """
        pending, deleted = list(self._pending), self._deleted_models
        self._pending.clear()
        self._deleted_models = set()
        commands: list[Command] = []
        for model in deleted & self._streams.keys():
            self._streams[model].entry_ids.clear()
            commands.append(("DEL", redis_keys.prompt_links(model)))
        first, bounds = len(commands), ("MAXLEN", "~", self._max_prompts, "*")
        written = [entry for entry in pending if entry[0] in self._streams]
        for model, _, data in written:
            fields = (GATEWAY_FIELD, self._name, DATA_FIELD, data)
            commands.append(("XADD", redis_keys.prompt_links(model), *bounds, *fields))
        for model in {entry[0] for entry in written}:
            commands.append(("EXPIRE", redis_keys.prompt_links(model), int(PREFIX_MAP_RETENTION_SECONDS)))
        for model, hashes, _ in written:
            ids = self._streams[model].entry_ids
            replaced = [ids.pop(digest) for digest in hashes if digest in ids]
            if replaced:
                commands.append(("XDEL", redis_keys.prompt_links(model), *replaced))
        replies = await self._link.run(commands) if commands else []
        if replies is None:  # Redis is away; this gateway still has its own links
            self._deleted_models |= deleted
            return
        for (model, hashes, _), reply in zip(written, replies[first:], strict=False):
            if not isinstance(reply, ResponseError) and model in self._streams:
                self._remember_entry(self._streams[model], hashes[-1], reply)

    def _remember_entry(self, stream: _ModelStream, tail: int, identifier: bytes) -> None:
        stream.entry_ids[tail] = identifier
        stream.entry_ids.move_to_end(tail)
        while len(stream.entry_ids) > self._max_prompts:
            stream.entry_ids.popitem(last=False)
