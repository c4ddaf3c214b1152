"""The router's view of what is cached where: from its own dispatches and from the KV-cache index.

Each ready instance has one bit for prompts dispatched to it, and one for what the index reports. A
block with either bit should be cached there. The first counts alone while prompts that were
dispatched fill the instance's memory.

Why: then each further prompt evicts what the index still reports, often before a prompt that was
sent for it can begin. An engine reports that a step and a tenth of a second later. Sessions of
agents would stay where they evict each other, while other engines have room.

The approximate prefix index: which instance probably has which prefix cached.

It maps a block hash to a bit mask of instances. Equal hashes mean equal prompts up to there, and
the tail of a prompt is evicted before its head. So an instance with a block has all blocks before
it, and a match is found by bisection.

Each instance has an LRU order of its blocks, bounded by its KV memory: what the engine must have
evicted is dropped here too. The order is kept in *runs*, stretches of a chain that were always used
together. So a prompt of a hundred known blocks moves two or three entries.

Entries come from this gateway's own dispatches. A wrong one costs a recomputation, never a request.

Why: hashes are typed `Hashable`, not `int`, so that compiled code passes 64-bit numbers on
unconverted.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource
from fairlead_gateway.routing.load.inflight import Endpoint, EndpointLoad, SampledLoads
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, PrefixChain, block_ends
from fairlead_gateway.routing.request import RouteRequest

_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)
_TIER_SUFFIXES: Final = ("\0", "\0c", "\0d")
_UNLIMITED_BYTES: Final = 1 << 60
"""Blocks that the index reports lie in the approximate index too, under the instance's id and the
suffix of a tier: what is in GPU memory, or also in CPU memory, or also on disk. They have no
capacity, since engines report evictions.
"""
_FULL_SHARE: Final = 0.9
"""The share of its memory from which an instance counts as full. Estimated sizes are that wrong."""
SHARED_STORE: Final = ""
"""The instance that stands for the store that all instances reach."""
CachedTokens = Callable[[RouteRequest], Mapping[str, float] | None]
"""A lookup that replaces the view: cached prompt tokens by instance; None if it knows nothing."""


class PrefixMatch:
    """The match of a prompt: the instances in `masks[i]` have its first `matched_bytes[i]` bytes.

    The lengths rise with `i`. An instance is in the mask of its longest match only.
    """

    __slots__ = ("masks", "matched_bytes")

    def __init__(self) -> None:
        self.matched_bytes: list[int] = []
        self.masks: list[int] = []

    def bytes_at(self, bit: int) -> int:
        """Returns the bytes from the start of the prompt that the instance with this bit has
        cached.
        """
        masks = self.masks
        index = len(masks)
        while index:
            index -= 1
            if masks[index] & bit:
                return self.matched_bytes[index]
        return 0


class _Run:
    """A run: `count` blocks of a chain from index `first`, last used at the same time.

    - previous: the block before the run; None at the start of a chain.
    - ends: the ends of the whole chain's blocks, in bytes.
    - branched: prompts continue differently after the end of the run.
    - extra_bytes: cache used by other content, for a run without blocks.
    """

    __slots__ = ("branched", "count", "ends", "extra_bytes", "first", "hashes", "newer", "older", "previous")

    def __init__(
        self, previous: Hashable, hashes: tuple[Hashable, ...], ends: tuple[int, ...], first: int, extra_bytes: int = 0
    ) -> None:
        self.previous = previous
        self.hashes = hashes
        self.ends = ends
        self.first = first
        self.count = len(hashes)
        self.extra_bytes = extra_bytes
        self.branched = False
        self.newer: _Run | None = None  # both are None outside of the LRU order
        self.older: _Run | None = None

    def bytes_before(self, index: int) -> int:
        """Returns the end in bytes of what lies before the run's block `index`."""
        end = self.first + index
        return self.ends[end - 1] if end else 0

    def move_behind(self, older: "_Run | None") -> None:
        """Moves the run behind `older` in the LRU order."""
        if older is self or older is None:
            return
        self.unlink()
        newer = older.newer
        assert newer is not None
        self.older, self.newer = older, newer
        older.newer = newer.older = self

    def unlink(self) -> None:
        """Removes the run from the LRU order, so that it is in no cycle of references."""
        newer, older = self.newer, self.older
        if newer is not None and older is not None:
            newer.older, older.newer = older, newer
            self.newer = self.older = None


class _InstanceCache:
    """The blocks of one instance: its runs by block, by the block before them, and in LRU order.

    The LRU order is a ring; `lru.newer` is the oldest run.
    """

    __slots__ = ("bit", "blocks", "lru", "runs", "runs_after", "size")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.runs: dict[Hashable, _Run] = {}
        self.runs_after: dict[Hashable, list[_Run]] = {}
        self.lru = order = _Run(None, (), (), 0)
        order.newer = order.older = order
        self.size = 0
        self.blocks = 0

    def cached_blocks(self, hashes: tuple[Hashable, ...]) -> int:
        """Returns how many blocks from the start of the chain are cached."""
        runs = self.runs
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) >> 1
            if hashes[middle] in runs:
                low = middle + 1
            else:
                high = middle
        return low

    def touch(self, hashes: tuple[Hashable, ...], count: int) -> "_Run | None":
        """Marks the first `count` blocks as used.

        Returns the run that ends with the last of them; None if `count` is 0.
        """
        runs, order = self.runs, self.lru
        deepest: _Run | None = None
        at = count
        while at:
            run = runs.get(hashes[at - 1])
            if run is None or run.first >= at:
                break  # a collision of 64-bit hashes
            if run.first + run.count > at:
                run = self._split(run, at - run.first)
            # Tail first, head last: the head becomes the most recently used, as in an engine.
            run.move_behind(order.older)
            if deepest is None:
                deepest = run
            at = run.first
        return deepest

    def extend(self, deepest: _Run | None, hashes: tuple[Hashable, ...], ends: tuple[int, ...], known: int) -> None:
        """Adds the blocks of a chain from index `known` on.

        deepest: the run before them, which was just used; None at the start of the chain.
        """
        runs = self.runs
        if deepest is None or deepest.branched or deepest.first + deepest.count != known:
            run = _Run(hashes[known - 1] if known else None, hashes[known:] if known else hashes, ends, known)
            run.move_behind(self.lru.older if deepest is None else deepest.older)
            if known:
                self._link_run(run)
        else:
            run = deepest
            run.hashes = run.hashes[: run.count] + hashes[known:]
            run.ends = ends
            run.count = len(run.hashes)
        index, count = known, len(hashes)
        while index < count:
            runs[hashes[index]] = run
            index += 1
        self.blocks += count - known
        self.size += ends[count - 1] - (ends[known - 1] if known else 0)

    def _link_run(self, run: _Run) -> None:
        """Adds the run to those that follow `run.previous`."""
        known = self.runs_after.get(run.previous)
        if known is None:
            self.runs_after[run.previous] = [run]
        else:
            known.append(run)

    def unlink_run(self, run: _Run) -> None:
        """Removes the run from those that follow `run.previous`."""
        known = self.runs_after.get(run.previous)
        if known is not None and run in known:
            known.remove(run)
            if not known:
                del self.runs_after[run.previous]

    def _split(self, run: _Run, head_count: int) -> _Run:
        """Cuts a run after its first `head_count` blocks and returns the run of these.

        The longer part stays the same object, since its blocks point to it.
        """
        runs, count = self.runs, run.count
        head, tail = run.hashes[:head_count], run.hashes[head_count:count]
        if head_count * 2 <= count:
            other = _Run(run.previous, head, run.ends, run.first)
            other.branched = True
            self.unlink_run(run)
            if run.first:
                self._link_run(other)
            run.previous, run.hashes, run.count = head[head_count - 1], tail, count - head_count
            run.first += head_count
            self._link_run(run)
            for digest in head:
                runs[digest] = other
            return other
        other = _Run(head[head_count - 1], tail, run.ends, run.first + head_count)
        other.branched = run.branched
        other.move_behind(run.older)
        self._link_run(other)
        run.hashes, run.count, run.branched = head, head_count, True
        for digest in tail:
            runs[digest] = other
        return run


class ApproximatePrefixIndex:
    """The approximate prefix index of one model. Sizes and capacities are bytes of prompt text.

    version: grows with every change of a match.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self.version = 0
        self._masks: dict[Hashable, int] = {}
        self._instances: dict[str, _InstanceCache] = {}
        self._free_bits: list[int] = []

    def __len__(self) -> int:
        return len(self._masks)

    def register(self, instance: str) -> int:
        return self._instance_cache(instance).bit

    def bit_of(self, instance: str) -> int:
        cache = self._instances.get(instance)
        return 0 if cache is None else cache.bit

    def cached_bytes(self, instance: str) -> int:
        """Returns the bytes of all blocks that an instance has cached; 0 if it is unknown."""
        cache = self._instances.get(instance)
        return 0 if cache is None else cache.size

    def match(self, hashes: tuple[Hashable, ...], ends: tuple[int, ...]) -> PrefixMatch:
        """Returns how far each instance has the prompt cached."""
        result = PrefixMatch()
        masks, count = self._masks, len(hashes)
        holders = (masks.get(hashes[0]) or 0) if count else 0
        low = 0  # all of ``alive`` hold this block
        while holders:
            high, deeper = count, 0  # not all of them hold that one, only those in ``behind``
            while high - low > 1:
                middle = (low + high) >> 1
                still = (masks.get(hashes[middle]) or 0) & holders
                if still == holders:
                    low = middle
                else:
                    high, deeper = middle, still
            result.matched_bytes.append(ends[low])
            result.masks.append(holders ^ deeper)
            holders, low = deeper, high
        return result

    def add(self, instance: str, hashes: tuple[Hashable, ...], ends: tuple[int, ...], *, capacity: int) -> None:
        """Adds the blocks of a prompt to an instance, as the most recently used.

        Evicts the least recently used blocks beyond `capacity` bytes, or beyond the maximum number
        of blocks.
        """
        cache = self._instance_cache(instance)
        count = len(hashes)
        if count:
            known = cache.cached_blocks(hashes)
            deepest = cache.touch(hashes, known)
            if known < count:
                cache.extend(deepest, hashes, ends, known)
                self._set_bit(hashes, known, cache.bit)
        if cache.size > capacity or cache.blocks > self._max_blocks:
            self._evict(cache, capacity)

    def reserve(self, instance: str, size: int, *, capacity: int) -> None:
        """Counts `size` bytes of other content, which evicts blocks beyond `capacity`."""
        cache = self._instance_cache(instance)
        _Run(None, (), (), 0, size).move_behind(cache.lru.older)
        cache.blocks += 1
        cache.size += size
        if cache.size > capacity or cache.blocks > self._max_blocks:
            self._evict(cache, capacity)

    def remove(self, instance: str, hashes: Sequence[Hashable]) -> None:
        """Removes blocks, and those that continue from them, from an instance."""
        cache = self._instances.get(instance)
        if cache is None:
            return
        removed: list[Hashable] = list(hashes)
        while removed:
            digest = removed.pop()
            run = cache.runs.get(digest)
            if run is not None:
                removed += self._truncate(cache, run, run.hashes.index(digest))
            for child in cache.runs_after.pop(digest, ()):
                removed += self._truncate(cache, child, 0)

    def retain(self, instances: Collection[str]) -> None:
        for gone in [name for name in self._instances if name not in instances]:
            self.remove_instance(gone)

    def remove_instance(self, instance: str) -> None:
        """Removes an instance that left or lost its cache."""
        cache = self._instances.pop(instance, None)
        if cache is None:
            return
        self.version += 1
        for digest in cache.runs:
            _clear_bit(self._masks, digest, cache.bit)
        cache.runs.clear()
        cache.runs_after.clear()
        while (run := cache.lru.newer) is not None:
            run.unlink()  # the ring is a cycle of references; its head is unlinked last
        self._free_bits.append(cache.bit)

    def _instance_cache(self, instance: str) -> _InstanceCache:
        cache = self._instances.get(instance)
        if cache is None:
            cache = self._instances[instance] = _InstanceCache(
                self._free_bits.pop() if self._free_bits else 1 << len(self._instances)
            )
        return cache

    def _set_bit(self, hashes: tuple[Hashable, ...], known: int, bit: int) -> None:
        masks, is_only = self._masks, len(self._instances) == 1
        index, count = known, len(hashes)
        self.version += 1
        while index < count:
            digest = hashes[index]
            masks[digest] = bit if is_only else (masks.get(digest) or 0) | bit
            index += 1

    def _evict(self, cache: _InstanceCache, capacity: int) -> None:
        max_blocks, order = self._max_blocks, cache.lru
        while cache.size > capacity or cache.blocks > max_blocks:
            run = order.newer
            if run is None or run is order:
                break
            if not run.count:
                cache.size -= run.extra_bytes
                cache.blocks -= 1
                run.unlink()
                continue
            count, excess_blocks = run.count, cache.blocks - max_blocks
            max_size = capacity + run.bytes_before(count)
            while count and (cache.size + run.bytes_before(count) > max_size or excess_blocks > 0):
                count -= 1
                excess_blocks -= 1
            self._drop_blocks(cache, run, count)

    def _drop_blocks(self, cache: _InstanceCache, run: _Run, count: int) -> None:
        """Removes the run's blocks from `count` on, and a run without blocks."""
        runs, masks, hashes, bit = cache.runs, self._masks, run.hashes, cache.bit
        index = run.count
        cache.size -= run.bytes_before(index) - run.bytes_before(count)
        cache.blocks -= index - count
        self.version += 1
        is_only = len(self._instances) == 1
        while index > count:
            index -= 1
            digest = hashes[index]
            try:  # a lookup before it would cost as much
                del runs[digest]
                if is_only:
                    del masks[digest]
            except KeyError:  # a collision of 64-bit hashes
                pass
            if not is_only:
                _clear_bit(masks, digest, bit)
        run.count = count
        if not count:
            run.unlink()
            if run.first:
                cache.unlink_run(run)

    def _truncate(self, cache: _InstanceCache, run: _Run, count: int) -> tuple[Hashable, ...]:
        """Shortens a run to `count` blocks and returns the removed ones."""
        removed = run.hashes[count : run.count]
        if removed:
            self._drop_blocks(cache, run, count)
        return removed


def _clear_bit(masks: dict[Hashable, int], digest: Hashable, bit: int) -> None:
    mask = masks.get(digest) or 0
    if mask == bit:
        del masks[digest]
    elif mask & bit:
        masks[digest] = mask & ~bit


class CacheView:
    """The prefixes that the endpoints of one model have cached.

    cached_tokens: queried before the approximate index; None: only the index is used.
    """

    def __init__(self, max_blocks: int, cached_tokens: CachedTokens | None = None) -> None:
        self._index = ApproximatePrefixIndex(max_blocks)
        self._cached_tokens = cached_tokens
        self._endpoint_by_bit: dict[int, Endpoint] = {}
        self._endpoint_by_id: dict[str, Endpoint] = {}
        self._ready_bits = self._store_bit = 0
        self._matched_request: RouteRequest | None = None  # whose match is in ``_found``
        self._match = PrefixMatch()
        self._match_version = 0

    def __len__(self) -> int:
        return len(self._index)

    def retain(self, instances: Sequence[str]) -> None:
        """Forgets instances that are neither ready nor draining: they have lost their cache."""
        self._index.retain(
            {*instances, *[item + suffix for item in (*instances, SHARED_STORE) for suffix in _TIER_SUFFIXES]}
        )

    def create_endpoint(
        self, instance: str, profile: EngineProfile, load: EndpointLoad, pull: KvPullSource | None
    ) -> Endpoint:
        """Returns a new endpoint for a ready instance, with its bits."""
        endpoint = Endpoint(instance, profile, load, pull)
        self._update_bits(endpoint)
        return endpoint

    def _update_bits(self, endpoint: Endpoint) -> bool:
        """Gives an endpoint its present bits. Returns whether they changed."""
        index, instance = self._index, endpoint.id
        gpu, cpu, disk = [index.bit_of(instance + suffix) for suffix in _TIER_SUFFIXES]
        return endpoint.set_bits(index.register(instance), gpu, cpu, disk, self._store_bit)

    def set_endpoints(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Sets the ready endpoints. All bits of an instance lead to its endpoint."""
        found: dict[int, Endpoint] = {}
        for endpoint in endpoints.values():
            bits = endpoint.local_bit
            while bits:
                found[bits & -bits] = endpoint
                bits &= bits - 1
        self._endpoint_by_bit = found
        self._endpoint_by_id = dict(endpoints)
        self._ready_bits = sum(found)

    def bit_of(self, instance: str) -> int:
        return self._index.bit_of(instance)

    def cached_bytes(self, endpoint: Endpoint) -> int:
        """Returns how many bytes of prompt text an instance should have cached by dispatches."""
        return self._index.cached_bytes(endpoint.id)

    def drop_match(self) -> None:
        self._matched_request = None

    def begin_decision(self) -> None:
        if self._cached_tokens is not None or self._match_version != self._index.version:
            self._matched_request = None

    def match(self, request: RouteRequest) -> PrefixMatch:
        """Returns how much of the prompt each instance has cached, in bytes.

        The match is cached until `drop_match` or another request.
        """
        if self._matched_request is not request:  # else the match of the decision just made is reused
            tokens = None if self._cached_tokens is None else self._cached_tokens(request)
            if tokens is None:
                self._match = self._index.match(request.chain.hashes, request.chain.ends)
                self._match_version = self._index.version
            else:
                self._match = self._match_of_tokens(tokens)
            self._matched_request = request
        return self._match

    def _match_of_tokens(self, tokens: Mapping[str, float]) -> PrefixMatch:
        """Returns the match of cached tokens by instance.

        It has each length once, in the order of `_by_tokens`, with the bits of its instances.
        """
        found = PrefixMatch()
        for instance, cached in sorted(tokens.items(), key=_by_tokens):
            endpoint = self._endpoint_by_id.get(instance)
            if endpoint is not None and cached > 0.0:
                size = int(cached * _BYTES_PER_TOKEN)
                if not found.matched_bytes or found.matched_bytes[-1] != size:
                    found.matched_bytes.append(size)
                    found.masks.append(0)
                found.masks[-1] |= endpoint.local_bit
        return found

    def longest_match(self, request: RouteRequest) -> int:
        """Returns the longest prefix of the prompt that a ready instance can use, in bytes."""
        found = self.match(request)
        index = len(found.masks)
        while index:
            index -= 1
            if found.masks[index] & (self._ready_bits | self._store_bit):
                return found.matched_bytes[index]
        return 0

    def least_busy_holder(
        self,
        match: PrefixMatch,
        prompt: float,
        tokens_per_byte: float,
        endpoints: list[Endpoint] | None,
        loads: SampledLoads,
    ) -> Endpoint | None:
        """Returns the least busy of the endpoints with the longest cached prefix; None if there is
        none.

        - prompt: in tokens.
        - endpoints: the eligible ones; None: all.
        """
        usable = self._ready_bits if endpoints is None else sum([endpoint.local_bit for endpoint in endpoints])
        longest = least = 0.0
        chosen: Endpoint | None = None
        index = len(match.masks)
        while index:
            index -= 1
            mask = match.masks[index] & usable
            if not mask:
                continue
            tokens = min(prompt, match.matched_bytes[index] * tokens_per_byte)
            if tokens <= 0 or (chosen is not None and tokens != longest):
                break
            longest = tokens
            while mask:
                bit = mask & -mask
                mask ^= bit
                endpoint = self._endpoint_by_bit[bit]
                seconds = loads.estimate(endpoint.load).backlog_seconds
                if chosen is None or seconds < least or (seconds == least and endpoint.id < chosen.id):
                    chosen, least = endpoint, seconds
        return chosen

    def add(self, endpoint: Endpoint, chain: PrefixChain, capacity: int) -> None:
        """Adds the blocks of a dispatched prompt.

        capacity: size of the instance's cache as the fleet states it, in bytes of prompt text.
        """
        capacity = self._shown_capacity(endpoint, capacity)
        self._index.add(endpoint.id, chain.hashes, chain.ends, capacity=capacity)
        self._update_full(endpoint, capacity)

    def remove(self, endpoint: Endpoint, chain: PrefixChain, size: int) -> None:
        """Removes the blocks of a prompt after its first `size` bytes, because it moved to another
        instance.
        """
        for digest, end in zip(chain.hashes, chain.ends, strict=True):
            if end > size:
                self._index.remove(endpoint.id, (digest,))
                return

    def reserve(self, endpoint: Endpoint, size: int, capacity: int) -> None:
        """Counts `size` bytes of generated text, which evicts older blocks from the cache."""
        capacity = self._shown_capacity(endpoint, capacity)
        self._index.reserve(endpoint.id, size, capacity=capacity)
        self._update_full(endpoint, capacity)

    def _shown_capacity(self, endpoint: Endpoint, capacity: int) -> int:
        """Returns a capacity that is not less than what the index reports in GPU memory."""
        return (
            max(capacity, self._index.cached_bytes(endpoint.id + _TIER_SUFFIXES[0])) if endpoint.index_bit else capacity
        )

    def _update_full(self, endpoint: Endpoint, capacity: int) -> None:
        if endpoint.index_bit:
            was_full = endpoint.is_full
            endpoint.is_full = self._index.cached_bytes(endpoint.id) >= _FULL_SHARE * capacity
            if endpoint.is_full != was_full and self._update_bits(endpoint):
                self.set_endpoints(self._endpoint_by_id)

    def apply_correction(
        self,
        instance: str,
        tier: int,
        forget: str,
        removed: Sequence[Hashable],
        cached: Sequence[tuple[Hashable, ...]],
    ) -> None:
        """Applies what the index reports; see `ModelRouter.apply_correction`."""
        endpoint = self._endpoint_by_id.get(instance)
        if endpoint is None and instance != SHARED_STORE:
            return
        mirror, indexed = self._index, instance + _TIER_SUFFIXES[tier]
        if forget:
            for suffix in _TIER_SUFFIXES:
                mirror.remove_instance(instance + suffix)
            if forget == "all":
                mirror.remove_instance(instance)
            if endpoint is not None:
                endpoint.is_full = False  # until the next dispatch
        if removed and forget != "all":
            mirror.remove(indexed, removed)
            if tier == 0:
                mirror.remove(instance, removed)
        for hashes in cached:
            mirror.add(indexed, hashes, block_ends(len(hashes)), capacity=_UNLIMITED_BYTES)
        if endpoint is None:
            self._store_bit = mirror.bit_of(indexed)
        changed = [self._update_bits(reader) for reader in ([endpoint] if endpoint else self._endpoint_by_id.values())]
        if any(changed):
            self.set_endpoints(self._endpoint_by_id)


def slow_tokens(
    endpoint: Endpoint, match: PrefixMatch, prompt: float, tokens_per_byte: float
) -> tuple[float, float, float]:
    """Returns the tokens of a prompt that an instance would load from its CPU memory, its disk and
    the shared store.
    """
    gpu, cpu, local, all_tiers = [
        min(prompt, match.bytes_at(bit) * tokens_per_byte)
        for bit in (endpoint.gpu_bit, endpoint.cpu_bit, endpoint.local_bit, endpoint.cache_bit)
    ]
    return cpu - gpu, local - cpu, all_tiers - local


def _by_tokens(item: tuple[str, float]) -> tuple[float, str]:
    return item[1], item[0]
