"""Who should hold how much of a prompt: what this gateway sent where, what the index says, and who of several is asked.

Every ready instance is a ``Place`` with one bit for what it should hold by all that is known, and one for what the index says.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPull
from fairlead_gateway.routing.endpoint import Endpoint
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.load.sampled_load import SampledLoads
from fairlead_gateway.routing.prefix.approximate_index import ApproximatePrefixIndex, PrefixMatch
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, PrefixChain, block_ends
from fairlead_gateway.routing.request import RouteRequest

_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)
_INDEX_SUFFIX: Final = "\0"
_UNLIMITED_BYTES: Final = 1 << 60
"""What the index told of an instance is held in the mirror under its id and this, without a capacity: engines tell what they
evict."""
CachedTokens = Callable[[RouteRequest], Mapping[str, float] | None]
"""Somebody who knows better: prompt tokens of a request that are cached, by instance; None where he knows nothing."""


class CacheView:
    """The mirror of one model, and the places it is asked for. ``knows`` takes the mirror's place where it is given."""

    def __init__(self, max_blocks: int, cached_tokens: CachedTokens | None = None) -> None:
        self._index = ApproximatePrefixIndex(max_blocks)
        self._cached_tokens = cached_tokens
        self._endpoint_by_bit: dict[int, Endpoint] = {}
        self._endpoint_by_id: dict[str, Endpoint] = {}
        self._ready_bits = 0
        self._matched_request: RouteRequest | None = None  # whose match is in ``_found``
        self._match = PrefixMatch()

    def __len__(self) -> int:
        return len(self._index)

    def retain(self, instances: Sequence[str]) -> None:
        """Those that are neither ready nor draining have lost their cache."""
        self._index.retain({*instances, *[item + _INDEX_SUFFIX for item in instances]})

    def create_endpoint(
        self, instance: str, profile: EngineProfile, load: EndpointLoad, pull: KvPull | None
    ) -> Endpoint:
        """A ready instance."""
        mirror = self._index
        return Endpoint(
            instance, profile, load, mirror.register(instance), mirror.bit_of(instance + _INDEX_SUFFIX), pull
        )

    def set_endpoints(self, endpoints: Mapping[str, Endpoint]) -> None:
        """These are ready, and no others. Both bits of an instance lead to it."""
        found: dict[int, Endpoint] = {}
        for place in endpoints.values():
            found[place.cache_bit ^ place.index_bit] = place
            if place.index_bit:
                found[place.index_bit] = place
        self._endpoint_by_bit = found
        self._endpoint_by_id = dict(endpoints)
        self._ready_bits = sum(found)

    def bit_of(self, instance: str) -> int:
        """Of an instance that is not ready any more; 0 when nothing is known of it."""
        return self._index.bit_of(instance)

    def cached_bytes(self, endpoint: Endpoint) -> int:
        """All that an instance should have in its cache, as prompt text."""
        return self._index.cached_bytes(endpoint.id)

    def drop_match(self) -> None:
        """What was found is of another request, or of another moment."""
        self._matched_request = None

    def match(self, request: RouteRequest) -> PrefixMatch:
        """What of the prompt each instance holds, in bytes."""
        if self._matched_request is not request:  # it is at the dispatch of what has just been decided
            tokens = None if self._cached_tokens is None else self._cached_tokens(request)
            if tokens is None:
                self._match = self._index.match(request.chain.hashes, request.chain.ends)
            else:
                self._match = self._match_of_tokens(tokens)
            self._matched_request = request
        return self._match

    def _match_of_tokens(self, tokens: Mapping[str, float]) -> PrefixMatch:
        found = PrefixMatch()
        for instance, cached in sorted(tokens.items(), key=_by_tokens):
            endpoint = self._endpoint_by_id.get(instance)
            if endpoint is not None and cached > 0.0:
                size = int(cached * _BYTES_PER_TOKEN)
                if not found.matched_bytes or found.matched_bytes[-1] != size:
                    found.matched_bytes.append(size)
                    found.masks.append(0)
                found.masks[-1] |= endpoint.cache_bit
        return found

    def longest_match(self, request: RouteRequest) -> int:
        """Bytes of the prompt that the instance which holds most of it holds."""
        found = self.match(request)
        index = len(found.masks)
        while index:
            index -= 1
            if found.masks[index] & self._ready_bits:
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
        """The least busy of those that hold the longest prefix, among ``places`` or (None) all. ``rate`` is tokens of a byte."""
        usable = self._ready_bits if endpoints is None else sum([endpoint.cache_bit for endpoint in endpoints])
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
        """A prompt was sent there: its blocks count as held from now on. ``capacity`` is of the cache, in bytes of prompt text."""
        self._index.add(endpoint.id, chain.hashes, chain.ends, capacity=capacity)

    def remove(self, endpoint: Endpoint, chain: PrefixChain, size: int) -> None:
        """A prompt goes elsewhere before it began: what it would have added to the first ``size`` bytes is not held there."""
        for digest, end in zip(chain.hashes, chain.ends, strict=True):
            if end > size:
                self._index.remove(endpoint.id, (digest,))
                return

    def reserve(self, endpoint: Endpoint, size: int, capacity: int) -> None:
        """What was generated occupies the engine's cache too and pushes older blocks out."""
        self._index.reserve(endpoint.id, size, capacity=capacity)

    def apply_correction(
        self, endpoint: Endpoint, forget: str, removed: Sequence[Hashable], cached: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """What the index says of an instance, as ``ModelRouter.corrected`` is told it."""
        instance, mirror, indexed = endpoint.id, self._index, endpoint.id + _INDEX_SUFFIX
        if forget:
            mirror.remove_instance(indexed)
            if forget == "all":
                mirror.remove_instance(instance)
        if removed and forget != "all":
            mirror.remove(indexed, removed)
            mirror.remove(instance, removed)
        for hashes in cached:
            mirror.add(indexed, hashes, block_ends(len(hashes)), capacity=_UNLIMITED_BYTES)
        own_bit, index_bit = mirror.register(instance), mirror.bit_of(indexed)
        if (own_bit | index_bit, index_bit) != (endpoint.cache_bit, endpoint.index_bit):
            endpoint.cache_bit, endpoint.index_bit = own_bit | index_bit, index_bit
            self.set_endpoints(self._endpoint_by_id)


def _by_tokens(item: tuple[str, float]) -> tuple[float, str]:
    return item[1], item[0]
