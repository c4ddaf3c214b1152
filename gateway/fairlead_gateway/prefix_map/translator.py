"""One model's index in byte space: what workers, who know prompts as bytes only, are told of what engines hold.

Three things come together here: the links, the mirror of what engines told, and what was just sent where. Out of them come
*corrections*: for an instance, chains of byte blocks that it holds, and byte blocks that it does not. A correction is made from
what is true at the moment of ``corrections``, not from the change that gave rise to it, so any order of events, links and
questions ends in the same place, and telling one twice does no harm.

    held     every link of the chain, from its start, leads to a block that the mirror finds at the instance
    not      the first link of a chain that does not, when absence means something: the block was told to be removed,
             or the slice is complete, so that everything that the instance holds was told
    neither  while a prompt with that block is on its way there: its blocks count as held, since the engine will have them
             (``research/routing.md``, fact 6), and are looked at again a moment after its end, when all was told

Blocks of stores that all instances share are hints for the whole model and no reason to prefer an instance; they are not told.
"""

import heapq
import math
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.prefix_map.cache_correction import CacheCorrection, ForgetScope
from fairlead_gateway.prefix_map.index_view import IndexView
from fairlead_gateway.prefix_map.inflight_blocks import InflightBlocks
from fairlead_gateway.prefix_map.prefix_table import PrefixTable
from fairlead_gateway.prefix_map.prompt_alignment import PromptAlignment, estimate_alignment, exact_alignment
from fairlead_gateway.prefix_map.recent_blocks import RecentBlocks
from fairlead_kvstore.blockstore import block_hash
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change, InstanceCleared, InstanceDetached
from fairlead_kvstore.blockstore.storage_tiers import StorageTier

_LIMITS: Final = Limits()
BLOCK_SIZES: Final = (16, 32, 64, 128, 256, 1, 2, 4, 8, 48, 96, 112, 144, 192, 272, 400, 512, 528, 544, 784, 1024, 1056)
"""Tokens of a block, the usual ones first; the odd ones are those of hybrid models. Which one it is, a prompt that is held tells."""


class Standing(msgspec.Struct, frozen=True):
    """Whether all of an instance is known, and if not, why."""

    complete: bool
    reason: str


class _SentPrompt:
    """A prompt that was sent to an instance: its byte blocks, how many of it are under way, when it is looked at again."""

    __slots__ = ("hashes", "is_inflight", "open_requests", "recheck_at")

    def __init__(self, hashes: Sequence[int]) -> None:
        self.hashes = hashes
        self.is_inflight = False
        self.open_requests = 0
        self.recheck_at = 0.0


class _InstanceChanges:
    """What is to be told of one instance, and what is on its way there."""

    __slots__ = ("doubtful", "forget", "inflight", "removed", "removed_at", "stored")

    def __init__(self) -> None:
        self.removed_at: OrderedDict[int, float] = OrderedDict()  # told to be removed, and when we heard of it
        self.stored: set[int] = set()  # byte blocks whose own hash was stored there
        self.removed: set[int] = set()
        self.doubtful: set[int] = set()  # linked anew, or no longer on their way
        self.forget = ForgetScope.NOTHING
        self.inflight = InflightBlocks()

    def has_pending(self) -> bool:
        return bool(self.stored or self.removed or self.doubtful or self.forget)


class PrefixTranslator:
    """``model_key`` and ``secret`` are those of the own hashes. Times are monotonic seconds."""

    def __init__(self, model_key: str, index: IndexView, *, secret: bytes, limits: Limits = _LIMITS) -> None:
        self.index = index
        self.table = PrefixTable(max_links=limits.prefix_map_blocks, max_token_hashes=limits.prefix_map_token_blocks)
        self.recent = RecentBlocks(most=limits.index_recent_blocks, seconds=limits.index_recent_seconds)
        self._last_sent_at = float("-inf")
        self.block_size: int | None = None
        self._model_key = model_key
        self._secret = secret
        self._limits = limits
        self._instances: dict[str, _InstanceChanges] = {}
        self._sent: dict[tuple[str, int], _SentPrompt] = {}
        self._rechecks: list[tuple[float, str, int]] = []
        self._distrusted: set[str] = set()

    # --- what gateways do -----------------------------------------------------------------------------------------------

    def on_dispatch(self, instance: str, tail: int, hashes: Sequence[int], now: float, *, reports_end: bool) -> bool:
        """A prompt was sent there; whether a part of it is not linked. ``ends_told``: ``ended`` will say when it is over."""
        self.table.touch(hashes)
        self._last_sent_at = now
        key = (instance, tail)
        sent = self._sent.get(key)
        if sent is None:
            if len(self._sent) >= self._limits.prefix_map_inflight:
                self._end_sent(next(iter(self._sent)))
            sent = self._sent[key] = _SentPrompt(hashes)
        if not sent.is_inflight:
            sent.is_inflight = True
            self._pending(instance).inflight.add(sent.hashes)
        limits = self._limits
        if reports_end:
            sent.open_requests += 1
            self._schedule_recheck(key, sent, now + limits.prefix_map_inflight_seconds)
        else:
            self._schedule_recheck(key, sent, max(sent.recheck_at, now + limits.prefix_map_provisional_seconds))
        linked = self.table.linked_count(hashes)
        if linked:
            self.recent.add(self.table.token_hashes_of(hashes[linked - 1]), now)
        return linked < len(hashes)

    def on_finish(self, instance: str, tail: int, now: float) -> None:
        """One of those is over; what the engine then told of it comes within a moment."""
        key = (instance, tail)
        sent = self._sent.get(key)
        if sent is not None and sent.open_requests:
            sent.open_requests -= 1
            if not sent.open_requests:
                self._clear_inflight(instance, sent)
                self._schedule_recheck(key, sent, now + self._limits.prefix_map_settle_seconds)

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
        is_unverified: bool = False,
    ) -> int | None:
        """A prompt's byte blocks and its tokens; how many whole blocks these are, None when no engine's block size is known yet.

        Equal tokens under another cache salt or another LoRA adapter are other blocks: both are those that the engine computes with.
        ``doubted``: the tokens are no engine's word. Then nothing is linked (None) until an engine holds the last of the blocks,
        which the chain makes a proof of all of them.
        """
        root = block_hash.chain_root(self._model_key, adapter, secret=self._secret)
        block_size = self._find_block_size(root, tokens, salt)
        if block_size is None:
            return None
        token_hashes = _token_hashes(root, tokens, block_size, salt)
        if is_unverified and token_hashes and not self.index.holders(token_hashes[-1]):
            return None
        self.recent.add(token_hashes, self._last_sent_at)  # a prompt is learned a moment after it was sent
        self.add_alignment(
            estimate_alignment(hashes, ends, token_hashes, size=size, tokens=len(tokens), block_size=block_size)
            if token_ends is None
            else exact_alignment(hashes, token_hashes, token_ends, block_size=block_size)
        )
        return len(token_hashes)

    def add_alignment(self, alignment: PromptAlignment) -> None:
        """The same from own hashes, of a prompt that nobody here need have sent."""
        if self.block_size is None:
            self.block_size = alignment.block_size
        changed = self.table.learn(alignment)
        if changed:
            for instance in self.index.instances():
                self._pending(instance).doubtful.update(changed)

    def clear(self) -> None:
        """What was learned is wrong: begin anew."""
        self.table.clear()
        self.recent.clear()
        for instance in self.index.instances():
            pending = self._pending(instance)
            pending.forget = pending.forget or ForgetScope.CORRECTED

    # --- what engines tell ----------------------------------------------------------------------------------------------

    def on_changes(self, changes: Iterable[Change]) -> None:
        """The mirror has just taken these over."""
        linked_blocks = self.table.linked_blocks
        for change in changes:
            if isinstance(change, BlocksStored | BlocksRemoved):
                if change.tier is StorageTier.REMOTE:
                    continue
                pending = self._pending(change.instance)
                into = pending.stored if isinstance(change, BlocksStored) else pending.removed
                for token_hash in change.hashes:
                    blocks = linked_blocks(token_hash)
                    if blocks:
                        into.update(blocks)
            elif isinstance(change, InstanceCleared | InstanceDetached):
                pending = self._pending(change.instance)
                pending.forget = ForgetScope.ALL
                pending.stored.clear()
                pending.removed.clear()
                pending.doubtful.clear()

    def set_index(self, index: IndexView) -> None:
        """Another mirror, or the same with another content: everything is told anew."""
        self.index = index
        self._resend({*self._instances, *index.instances()})

    def resend_all(self) -> None:
        """A worker knows nothing yet."""
        self.set_index(self.index)

    def has_removed_since(self, instance: str, hashes: Iterable[int], since: float) -> bool:
        """Whether the instance was heard to lose any of these byte blocks at or after that moment, though it may hold them again."""
        pending = self._instances.get(instance)
        return pending is not None and any(pending.removed_at.get(digest, -math.inf) >= since for digest in hashes)

    # --- trust ----------------------------------------------------------------------------------------------------------

    def distrust(self, instance: str) -> None:
        """What is told of this instance does not hold: nothing of it counts until ``trust``."""
        self._distrusted.add(instance)
        pending = self._pending(instance)
        pending.forget = pending.forget or ForgetScope.CORRECTED

    def trust(self, instance: str) -> None:
        """It counts again, as it is now."""
        if instance in self._distrusted:
            self._distrusted.discard(instance)
            self._resend({instance})

    def retain(self, instances: Iterable[str]) -> None:
        """Instances that have left the fleet are forgotten."""
        kept = set(instances)
        for gone in self._instances.keys() - kept:
            del self._instances[gone]
        self._distrusted &= kept
        for key in [key for key in self._sent if key[0] not in kept]:
            del self._sent[key]

    # --- corrections ----------------------------------------------------------------------------------------------------

    def take_corrections(self, now: float) -> list[CacheCorrection]:
        """What is to be told now; the rest, where that is much, the next time."""
        self._run_rechecks(now)
        corrections: list[CacheCorrection] = []
        free = self._limits.prefix_map_corrections
        for instance, pending in self._instances.items():
            if free <= 0:
                break
            if pending.has_pending():
                stored, doubtful = pending.stored, pending.doubtful
                pending.stored, pending.doubtful = _take_beyond(stored, free), _take_beyond(doubtful, free)
                free -= len(stored) + len(doubtful)
                self._record_removals(pending, now)
                correction = self._correction_for(instance, pending, stored, doubtful)
                if correction is not None:
                    corrections.append(correction)
        return corrections

    def _correction_for(
        self, instance: str, pending: _InstanceChanges, stored: set[int], doubtful: set[int]
    ) -> CacheCorrection | None:
        table, inflight = self.table, pending.inflight
        removed, pending.removed = pending.removed, set()
        forget, pending.forget = pending.forget, ForgetScope.NOTHING
        if instance in self._distrusted:
            pending.stored, pending.doubtful = set(), set()
            return CacheCorrection(instance, forget, b"", []) if forget else None
        known = self.index.completeness(instance)
        complete = known is not None and known.complete
        cached: list[bytes] = []
        missing_blocks: dict[int, None] = {}
        covered: set[int] = set()
        links = [(link.index, digest) for digest in stored | doubtful if (link := table.get(digest)) is not None]
        for _, digest in sorted(links, reverse=True):
            if digest in covered:
                continue
            chain = table.chain(digest)
            covered.update(chain)
            cached_depth = self._cached_depth(chain, instance)
            if cached_depth:
                cached.append(array("Q", chain[:cached_depth]).tobytes())
            missing = self._first_missing(chain, cached_depth)
            if missing is not None and missing not in inflight and (complete or missing in removed):
                missing_blocks[missing] = None
        for digest in removed:
            link = table.get(digest)
            if link is not None and digest not in inflight and instance not in self.index.holders(link.token_hash):
                missing_blocks[digest] = None
        if not (forget or missing_blocks or cached):
            return None
        return CacheCorrection(instance, forget, array("Q", missing_blocks).tobytes(), cached)

    def _record_removals(self, pending: _InstanceChanges, now: float) -> None:
        removed_at = pending.removed_at
        for digest in pending.removed:
            removed_at[digest] = now
            removed_at.move_to_end(digest)
        while len(removed_at) > self._limits.prefix_map_evicted_blocks:
            removed_at.popitem(last=False)

    def _cached_depth(self, chain: Sequence[int], instance: str) -> int:
        """How many of these byte blocks, from the start, the instance holds; those that reach no token block count with the next."""
        depth = last = 0
        for index, digest in enumerate(chain):
            link = self.table.get(digest)
            if link is None:
                break
            if link.depth != last:
                if instance not in self.index.holders(link.token_hash):
                    break
                last = link.depth
            if link.depth:
                depth = index + 1
        return depth

    def _first_missing(self, chain: Sequence[int], depth: int) -> int | None:
        """The first byte block behind those that are held, of which anything is known."""
        for digest in chain[depth:]:
            link = self.table.get(digest)
            if link is not None and link.depth:
                return digest
        return None

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _pending(self, instance: str) -> _InstanceChanges:
        pending = self._instances.get(instance)
        if pending is None:
            pending = self._instances[instance] = _InstanceChanges()
        return pending

    def _resend(self, instances: set[str]) -> None:
        """Forget what was told of these, and tell what they hold."""
        for instance in instances:
            pending = self._pending(instance)
            pending.forget = pending.forget or ForgetScope.CORRECTED
        for digest, link in self.table.items():
            if link.depth:
                for instance in self.index.holders(link.token_hash):
                    if instance in instances:
                        self._pending(instance).stored.add(digest)

    def _schedule_recheck(self, key: tuple[str, int], sent: _SentPrompt, due: float) -> None:
        sent.recheck_at = due
        heapq.heappush(self._rechecks, (due, *key))

    def _run_rechecks(self, now: float) -> None:
        """Prompts whose time on the way is over: what of them the engine did not tell of, it does not hold."""
        while self._rechecks and self._rechecks[0][0] <= now:
            due, instance, tail = heapq.heappop(self._rechecks)
            sent = self._sent.get((instance, tail))
            if sent is not None and sent.recheck_at == due:
                self._end_sent((instance, tail))

    def _end_sent(self, key: tuple[str, int]) -> None:
        sent = self._sent.pop(key)
        self._clear_inflight(key[0], sent)
        self._pending(key[0]).doubtful.update(sent.hashes)

    def _clear_inflight(self, instance: str, sent: _SentPrompt) -> None:
        if sent.is_inflight:
            sent.is_inflight = False
            self._pending(instance).inflight.remove(sent.hashes)

    def _find_block_size(self, root: int, tokens: Sequence[int], salt: str | None) -> int | None:
        """The block size with which the prompt's first block is one that some engine holds; else the one known before."""
        sizes = BLOCK_SIZES if self.block_size is None else (self.block_size, *BLOCK_SIZES)
        for size in sizes:
            if len(tokens) >= size and self.index.holders(_token_hashes(root, tokens[:size], size, salt)[0]):
                self.block_size = size
                break
        return self.block_size


def _token_hashes(root: int, tokens: Sequence[int], block_size: int, salt: str | None) -> list[int]:
    extras = block_hash.block_extras(len(tokens) // block_size, block_size, salt=salt) if salt is not None else None
    return block_hash.block_hashes(root, tokens, block_size, extras)


def _take_beyond(digests: set[int], limit: int) -> set[int]:
    """Leave so many in the set, and return what was taken out of it."""
    rest: set[int] = set()
    while len(digests) > max(1, limit):
        rest.add(digests.pop())
    return rest
