"""The translation of an engine's reports into corrections of a worker's prefix index.

Workers know prompts as bytes only. The translator joins the prefix table, the blocks that engines
reported and what was just sent. It produces *corrections*: for an instance, chains of byte blocks
that are cached, and byte blocks that are not. A correction is computed from the state at the time
of `take_corrections`, not from single changes. So any order of events ends in the same state, and a
repeated correction does no harm.

A byte block of an instance is reported as

- cached, if its link and all links before it lead to token blocks that the instance has,
- not cached, if its token block was reported as removed,
- not cached, if it is the first block of its chain that is missing in a complete instance.

A block is never reported as not cached while a prompt with it is in flight at the instance, since
the engine will have it. It is checked a moment after the end of the prompt.

The store that all instances of a model reach is one more instance, without a name in corrections.

The blocks of prompts that were sent to one instance and not answered yet.

They count as cached before any event reports them. The engine has such a block by the time it
admits a later request. It takes requests in order, stores a prompt's blocks as it begins, and
evicts none of a running request. A block counts as often as prompts with it are in flight. Blocks
are 64-bit numbers, of bytes or of tokens.

Why: with a real vLLM, eight clients and a cache far too small, an exact count at the engine
expected too little of 91 prompts. The blocks of 90 were in flight.
"""

import heapq
import math
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from fairlead_gateway.kv_index.cache_correction import CacheCorrection, ForgetScope
from fairlead_gateway.kv_index.links import LinkTable, PromptLinks, estimate_links
from fairlead_gateway.routing.prefix.cache_view import SHARED_STORE
from fairlead_kvstore.blockstore import block_hash
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    InstanceCleared,
    InstanceDetached,
)
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier, shared_store_id

PREFIX_MAP_BLOCKS: Final = 131_072
"""Limit: text blocks per model with known index blocks, some 300 bytes each; the oldest go."""
PREFIX_MAP_TOKEN_BLOCKS: Final = 4_194_304
"""Limit: token blocks of the prompts that taught the text blocks, 8 bytes each."""
PREFIX_MAP_INFLIGHT: Final = 16_384
"""Limit: prompts of one model in flight; the oldest count as arrived."""
PREFIX_MAP_INFLIGHT_SECONDS: Final = 600.0
"""Limit: a prompt in flight counts as cached this long at most."""
PREFIX_MAP_PROVISIONAL_SECONDS: Final = 30.0
"""Limit: the same for another gateway's prompt, whose end is not reported."""
PREFIX_MAP_SETTLE_SECONDS: Final = 2.0
"""Limit: from a prompt's end until blocks that the engine did not report count as not cached."""
PREFIX_MAP_EVICTED_BLOCKS: Final = 65_536
"""Limit: recently evicted text blocks of one instance: responses that missed them had late events.
"""
PREFIX_MAP_CORRECTIONS: Final = 16_384
"""Limit: blocks checked for one batch of corrections; the rest is in the next."""


_NOWHERE: Final = len(INSTANCE_TIERS)
_RESEND_LOOKUPS: Final = 4
"""Look-ups for one batch of blocks that are reported again, in `PREFIX_MAP_CORRECTIONS`."""


class InflightBlocks:
    """A multiset of blocks: `block in inflight` is True for a block in flight."""

    def __init__(self) -> None:
        self._prompts: dict[int, int] = {}

    def __contains__(self, block: object) -> bool:
        return block in self._prompts

    def add(self, blocks: Iterable[int]) -> None:
        """Adds the blocks of a prompt that was sent."""
        prompts = self._prompts
        for block in blocks:
            prompts[block] = prompts.get(block, 0) + 1

    def remove(self, blocks: Iterable[int]) -> None:
        """Removes the blocks of a prompt that has finished or was given up."""
        prompts = self._prompts
        for block in blocks:
            left = prompts.pop(block, 0) - 1
            if left > 0:
                prompts[block] = left


class ReportedBlocks(Protocol):
    """The blocks of one model's instances, as `fairlead_kvstore` has them from the engines."""

    def instances(self) -> Sequence[str]:
        """Returns all known instances."""

    def tiers(self, instance: str, block_hash: int) -> int:
        """Returns where an instance has a block: a bit for each tier; 0: nowhere."""

    def completeness(self, instance: str) -> tuple[bool, str, float] | None:
        """Returns whether all blocks of an instance are known, why, and since when; None for an
        unknown instance.
        """

    def block_size(self, instance: str) -> int | None:
        """Returns the tokens of an instance's blocks; None while they are unknown."""

    def touch(self, instance: str, hashes: Sequence[int], now: float) -> None:
        """Marks the cached ones of these blocks as used."""


@dataclass(slots=True, eq=False)
class SentPrompt:
    """A prompt that was sent to an instance: its byte blocks, its open requests, and the time of
    the next check.

    linked_blocks: how many of its first blocks were linked at its last dispatch.
    dispatched_at, linked_share: of the last dispatch of this gateway, and the share of the bytes
    that was linked at the first of its open requests.
    """

    hashes: Sequence[int]
    is_inflight: bool = False
    linked_blocks: int = 0
    linked_share: float = 0.0
    dispatched_at: float = 0.0
    open_requests: int = 0
    recheck_at: float = 0.0


@dataclass(slots=True, eq=False)
class _InstanceChanges:
    """The pending corrections of one instance, and its prompts in flight.

    removed_at: reported removals and their times.
    changed: byte blocks whose token block was stored there, that were linked again, or that are no
    longer in flight.
    removed: byte blocks whose token block was removed there.
    """

    has_slow_tiers: bool = False
    removed_at: OrderedDict[int, float] = field(default_factory=OrderedDict)
    changed: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    forget: ForgetScope = ForgetScope.NOTHING
    inflight: InflightBlocks = field(default_factory=InflightBlocks)


class PrefixTranslator:
    """The translator from KV events to corrections, for one model. Times are monotonic seconds.

    model_key, secret: the inputs of the token hashes.
    """

    def __init__(
        self, model_key: str, blocks: ReportedBlocks, *, secret: bytes, max_corrections: int = PREFIX_MAP_CORRECTIONS
    ) -> None:
        self.blocks = blocks
        self.table = LinkTable(max_links=PREFIX_MAP_BLOCKS, max_token_hashes=PREFIX_MAP_TOKEN_BLOCKS)
        self.block_size: int | None = None
        self._model_key = model_key
        self._secret = secret
        self._max_corrections = max_corrections
        self._shared_store = shared_store_id(model_key)
        self._instances: defaultdict[str, _InstanceChanges] = defaultdict(_InstanceChanges)
        self._sent: dict[tuple[str, int], SentPrompt] = {}
        self._rechecks: list[tuple[float, str, int]] = []
        self._distrusted: set[str] = set()
        self._resent: set[str] = set()
        self._resent_links: list[int] = []

    # --- dispatches and links

    def on_dispatch(
        self, instance: str, tail: int, hashes: Sequence[int], now: float, *, reports_end: bool
    ) -> SentPrompt:
        """Records a dispatch, and marks the cached blocks of the prompt as used.

        - tail: the hash of the whole prompt.
        - reports_end: `on_finish` will be called.
        """
        self.table.touch(hashes)
        key = (instance, tail)
        sent = self._sent.get(key)
        if sent is None:
            if len(self._sent) >= PREFIX_MAP_INFLIGHT:
                self._end_sent(next(iter(self._sent)))
            sent = self._sent[key] = SentPrompt(hashes)
        if not sent.is_inflight:
            sent.is_inflight = True
            self._instances[instance].inflight.add(sent.hashes)
        if reports_end:
            sent.open_requests += 1
        provisional = max(sent.recheck_at, now + PREFIX_MAP_PROVISIONAL_SECONDS)
        self._schedule_recheck(key, sent, now + PREFIX_MAP_INFLIGHT_SECONDS if reports_end else provisional)
        sent.linked_blocks = self.table.linked_count(hashes)
        if sent.linked_blocks:
            self.blocks.touch(instance, self.table.token_hashes_of(hashes[sent.linked_blocks - 1]), now)
        return sent

    def on_finish(self, instance: str, tail: int, now: float) -> SentPrompt | None:
        """Records the end of a request; the engine's events follow within a moment. Returns its
        prompt; None if it is not known any more.
        """
        key = (instance, tail)
        sent = self._sent.get(key)
        if sent is None or not sent.open_requests:
            return None
        sent.open_requests -= 1
        if not sent.open_requests:
            self._clear_inflight(instance, sent)
            self._schedule_recheck(key, sent, now + PREFIX_MAP_SETTLE_SECONDS)
        return sent

    def learn(
        self,
        hashes: Sequence[int],
        ends: Sequence[int],
        tokens: Sequence[int],
        *,
        size: int,
        salt: str | None = None,
        adapter: str | None = None,
        token_ends: Sequence[int] | None = None,
    ) -> int | None:
        """Learns a prompt's byte blocks and tokens; returns the number of whole token blocks.

        None if no block size is known yet. Equal tokens under another cache salt or LoRA adapter
        are other blocks.
        """
        root = block_hash.chain_root(self._model_key, adapter, secret=self._secret)
        block_size = self._find_block_size(root, tokens, salt)
        if block_size is None:
            return None
        token_hashes = _token_hashes(root, tokens, block_size, salt)
        if token_ends is None:
            links = estimate_links(hashes, ends, token_hashes, size=size, tokens=len(tokens), block_size=block_size)
        else:
            links = PromptLinks(hashes, token_hashes, [before // block_size for before in token_ends], block_size)
        self.add_links(links)
        return len(token_hashes)

    def add_links(self, links: PromptLinks) -> None:
        """Learns the links of a prompt that this gateway need not have sent."""
        if self.block_size is None:
            self.block_size = links.block_size
        changed = self.table.learn(links)
        if changed:
            for instance in self._reporting():
                self._instances[instance].changed.update(changed)

    def clear(self) -> None:
        self.table.clear()
        self._resend(set(self._reporting()))

    # --- changes of the index

    def on_changes(self, changes: Iterable[Change]) -> None:
        """Records changes of the blocks, which already have them, for the next corrections."""
        linked_blocks = self.table.linked_blocks
        for change in changes:
            if isinstance(change, BlocksStored | BlocksRemoved):
                pending = self._instances[change.instance]
                into = pending.changed if isinstance(change, BlocksStored) else pending.removed
                for token_hash in change.hashes:
                    blocks = linked_blocks(token_hash)
                    if blocks:
                        into.update(blocks)
                pending.has_slow_tiers = pending.has_slow_tiers or change.tier is not StorageTier.GPU
            elif isinstance(change, InstanceCleared | InstanceDetached):
                pending = self._instances[change.instance]
                pending.forget = ForgetScope.ALL
                pending.changed.clear()
                pending.removed.clear()

    def resend_all(self) -> None:
        self._resend({*self._instances, *self.blocks.instances(), self._shared_store})

    def has_removed_since(self, instance: str, hashes: Iterable[int], since: float) -> bool:
        """Returns True if a correction removed any of these byte blocks at `since` or later."""
        pending = self._instances.get(instance)
        return pending is not None and any(pending.removed_at.get(digest, -math.inf) >= since for digest in hashes)

    # --- trust

    def distrust(self, instance: str) -> None:
        """Withdraws the corrections of an instance, and ignores its reports until `trust`."""
        self._distrusted.add(instance)
        pending = self._instances[instance]
        pending.forget = pending.forget or ForgetScope.CORRECTED

    def trust(self, instance: str) -> None:
        """Uses the reports of an instance again."""
        if instance in self._distrusted:
            self._distrusted.discard(instance)
            self._resend({instance})

    def retain(self, instances: Iterable[str]) -> None:
        """Forgets instances that left the fleet."""
        kept = {*instances, self._shared_store}
        for gone in self._instances.keys() - kept:
            del self._instances[gone]
        self._distrusted &= kept
        self._resent &= kept
        for key in [key for key in self._sent if key[0] not in kept]:
            del self._sent[key]

    # --- corrections

    def take_corrections(self, now: float) -> list[CacheCorrection]:
        """Returns and removes the corrections that are due, up to a limit. The next call returns
        the others.
        """
        self._run_rechecks(now)
        self._find_resent()
        corrections: list[CacheCorrection] = []
        free = self._max_corrections
        for instance, pending in self._instances.items():
            if free <= 0:
                break
            if pending.changed or pending.removed or pending.forget:
                changed, pending.changed = pending.changed, set()
                while len(changed) > max(1, free):
                    pending.changed.add(changed.pop())
                free -= len(changed)
                self._record_removals(pending, now)
                corrections += self._corrections_for(instance, pending, changed)
        return corrections

    def _corrections_for(self, instance: str, pending: _InstanceChanges, changed: set[int]) -> list[CacheCorrection]:
        """Returns the corrections of one instance: one, or one for each of its tiers."""
        table, inflight = self.table, pending.inflight
        removed, pending.removed = pending.removed, set()
        forget, pending.forget = pending.forget, ForgetScope.NOTHING
        if instance in self._distrusted:
            pending.changed = set()
            return [CacheCorrection(instance, forget, b"", [])] if forget else []
        name = SHARED_STORE if instance == self._shared_store else instance
        known = self.blocks.completeness(instance)
        complete = known is not None and known[0]
        tiers = INSTANCE_TIERS if pending.has_slow_tiers else INSTANCE_TIERS[:1]
        cached: list[list[bytes]] = [[] for _ in tiers]
        missing_blocks: list[dict[int, None]] = [{} for _ in tiers]
        covered: set[int] = set()
        levels = {digest: self._level(link.token_hash, instance) for digest in removed if (link := table.get(digest))}
        moved = {digest for digest, level in levels.items() if 0 < level < _NOWHERE}
        links = [(link.index, digest) for digest in changed | moved if (link := table.get(digest))]
        for _, digest in sorted(links, reverse=True):
            if digest in covered:
                continue
            chain = table.chain(digest)
            covered.update(chain)
            faster = 0
            for tier, cached_depth in zip(tiers, self._cached_depths(chain, instance), strict=False):
                if cached_depth > faster:
                    cached[tier].append(array("Q", chain[:cached_depth]).tobytes())
                    faster = cached_depth
                missing = self._first_missing(chain, cached_depth)
                if missing is not None and missing not in inflight and (complete or missing in removed):
                    missing_blocks[tier][missing] = None
        for digest, level in levels.items():
            if digest not in inflight:
                for tier in tiers[:level]:
                    missing_blocks[tier][digest] = None
        corrections = []
        for tier in tiers:
            if forget or missing_blocks[tier] or cached[tier]:
                missing_bytes = array("Q", missing_blocks[tier]).tobytes()
                corrections.append(CacheCorrection(name, forget, missing_bytes, cached[tier], tier))
                forget = ForgetScope.NOTHING
        return corrections

    def _record_removals(self, pending: _InstanceChanges, now: float) -> None:
        removed_at = pending.removed_at
        for digest in pending.removed:
            removed_at[digest] = now
            removed_at.move_to_end(digest)
        while len(removed_at) > PREFIX_MAP_EVICTED_BLOCKS:
            removed_at.popitem(last=False)

    def _level(self, block_hash: int, instance: str) -> int:
        tiers = self.blocks.tiers(instance, block_hash)
        return (tiers & -tiers).bit_length() - 1 if tiers else _NOWHERE

    def _cached_depths(self, chain: Sequence[int], instance: str) -> list[int]:
        """Returns how many of these byte blocks, from the start, the instance has cached.

        One number for GPU memory, one with CPU memory too, one with the disk too. Byte blocks that
        end in the middle of a token block count with the first one beyond it.
        """
        depths = [0] * len(INSTANCE_TIERS)
        level = last = 0
        for index, digest in enumerate(chain):
            link = self.table.get(digest)
            if link is None:
                break
            if link.depth != last:
                level = max(level, self._level(link.token_hash, instance))
                if level == _NOWHERE:
                    break
                last = link.depth
                for tier in range(level, len(depths)):
                    depths[tier] = index + 1
        return depths

    def _first_missing(self, chain: Sequence[int], depth: int) -> int | None:
        """Returns the first byte block after `depth` that reaches a further token block; None
        without one.
        """
        held = self.table.get(chain[depth - 1]) if depth else None
        reached = 0 if held is None else held.depth
        for digest in chain[depth:]:
            link = self.table.get(digest)
            if link is not None and link.depth > reached:
                return digest
        return None

    # --- helpers

    def _reporting(self) -> list[str]:
        shared = (self._shared_store,) if self._shared_store in self._instances else ()
        return [*self.blocks.instances(), *shared]

    @property
    def is_resending(self) -> bool:
        return bool(self._resent_links)

    def _resend(self, instances: set[str]) -> None:
        """Reports the blocks of these instances again, those of the latest prompts first."""
        for instance in instances:
            pending = self._instances[instance]
            pending.forget = pending.forget or ForgetScope.CORRECTED
        self._resent |= instances
        self._resent_links = [digest for digest, link in self.table.items() if link.depth]

    def _find_resent(self) -> None:
        """Marks the next blocks that are to be reported again, up to a limit of look-ups."""
        left = self._max_corrections * _RESEND_LOOKUPS // max(1, len(self._resent))
        links, table = self._resent_links, self.table
        for _ in range(min(max(1, left), len(links))):
            digest = links.pop()
            link = table.get(digest)
            if link is not None and link.depth:
                for instance in self._resent:
                    if self._level(link.token_hash, instance) != _NOWHERE:
                        self._instances[instance].changed.add(digest)
        if not links:
            self._resent.clear()

    def _schedule_recheck(self, key: tuple[str, int], sent: SentPrompt, due: float) -> None:
        sent.recheck_at = due
        heapq.heappush(self._rechecks, (due, *key))

    def _run_rechecks(self, now: float) -> None:
        """Ends the prompts whose check is due at `now`, and marks their blocks for the next
        corrections.
        """
        while self._rechecks and self._rechecks[0][0] <= now:
            due, instance, tail = heapq.heappop(self._rechecks)
            sent = self._sent.get((instance, tail))
            if sent is not None and sent.recheck_at == due:
                self._end_sent((instance, tail))

    def _end_sent(self, key: tuple[str, int]) -> None:
        sent = self._sent.pop(key)
        self._clear_inflight(key[0], sent)
        self._instances[key[0]].changed.update(sent.hashes)

    def _clear_inflight(self, instance: str, sent: SentPrompt) -> None:
        if sent.is_inflight:
            sent.is_inflight = False
            self._instances[instance].inflight.remove(sent.hashes)

    def _find_block_size(self, root: int, tokens: Sequence[int], salt: str | None) -> int | None:
        """Returns the block size of the instances; None before one of them is known.

        Of several, that with which an instance has the prompt's first block cached, else the last
        one found.
        """
        known = (self.block_size, *map(self.blocks.block_size, self.blocks.instances()))
        sizes = [size for size in dict.fromkeys(known) if size is not None]
        if len(sizes) > 1:
            first = {size: _token_hashes(root, tokens[:size], size, salt) for size in sizes}
            sizes.sort(key=lambda size: not any(map(self._is_cached, first[size])))
        self.block_size = sizes[0] if sizes else None
        return self.block_size

    def _is_cached(self, token_hash: int) -> bool:
        return any(self.blocks.tiers(instance, token_hash) for instance in self.blocks.instances())


def _token_hashes(root: int, tokens: Sequence[int], block_size: int, salt: str | None) -> list[int]:
    return block_hash.block_hashes(root, tokens, block_size, {0: [salt]} if salt is not None else None)
