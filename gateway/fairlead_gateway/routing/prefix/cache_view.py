"""The router's view of what is cached where: from its own dispatches and from the KV-cache index.

Each ready instance has one bit for prompts dispatched to it, and one for what the index reports. A
block with either bit should be cached there.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource
from fairlead_gateway.routing.endpoint import Endpoint
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.load.sampled_load import SampledLoads
from fairlead_gateway.routing.prefix.approximate_index import ApproximatePrefixIndex, PrefixMatch
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, PrefixChain, block_ends
from fairlead_gateway.routing.request import RouteRequest

_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)
_INDEX_SUFFIX: Final = "\0"
_UNLIMITED_BYTES: Final = 1 << 60
"""Blocks that the index reports lie in the approximate index too, under the instance's id and
`_INDEX_SUFFIX`. They have no capacity, since engines report evictions.
"""
CachedTokens = Callable[[RouteRequest], Mapping[str, float] | None]
"""A lookup that replaces the view: cached prompt tokens by instance; None if it knows nothing."""


class CacheView:
    """The prefixes that the endpoints of one model have cached.

    cached_tokens: queried before the approximate index; None: only the index is used.
    """

    def __init__(self, max_blocks: int, cached_tokens: CachedTokens | None = None) -> None:
        self._index = ApproximatePrefixIndex(max_blocks)
        self._cached_tokens = cached_tokens
        self._endpoint_by_bit: dict[int, Endpoint] = {}
        self._endpoint_by_id: dict[str, Endpoint] = {}
        self._ready_bits = 0
        self._matched_request: RouteRequest | None = None  # whose match is in ``_found``
        self._match = PrefixMatch()
        self._match_version = 0

    def __len__(self) -> int:
        return len(self._index)

    def retain(self, instances: Sequence[str]) -> None:
        """Forgets instances that are neither ready nor draining: they have lost their cache."""
        self._index.retain({*instances, *[item + _INDEX_SUFFIX for item in instances]})

    def create_endpoint(
        self, instance: str, profile: EngineProfile, load: EndpointLoad, pull: KvPullSource | None
    ) -> Endpoint:
        """Returns a new endpoint for a ready instance, with its bits."""
        mirror = self._index
        return Endpoint(
            instance, profile, load, mirror.register(instance), mirror.bit_of(instance + _INDEX_SUFFIX), pull
        )

    def set_endpoints(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Sets the ready endpoints. Both bits of an instance lead to its endpoint."""
        found: dict[int, Endpoint] = {}
        for endpoint in endpoints.values():
            found[endpoint.cache_bit ^ endpoint.index_bit] = endpoint
            if endpoint.index_bit:
                found[endpoint.index_bit] = endpoint
        self._endpoint_by_bit = found
        self._endpoint_by_id = dict(endpoints)
        self._ready_bits = sum(found)

    def bit_of(self, instance: str) -> int:
        """Returns the bit for dispatches to an instance, ready or not; 0 if it is unknown."""
        return self._index.bit_of(instance)

    def cached_bytes(self, endpoint: Endpoint) -> int:
        """Returns how many bytes of prompt text an instance should have cached by dispatches."""
        return self._index.cached_bytes(endpoint.id)

    def drop_match(self) -> None:
        """Drops the cached match, when a decision has been carried out."""
        self._matched_request = None

    def begin_decision(self) -> None:
        """Drops the cached match if it may differ now, at the start of another decision."""
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
        """Returns the longest prefix of the prompt that a ready instance has cached, in bytes."""
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
        """Returns the least busy of the endpoints with the longest cached prefix; None if there is
        none.

        - prompt: in tokens.
        - endpoints: the eligible ones; None: all.
        """
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
        """Adds the blocks of a dispatched prompt.

        capacity: size of the instance's cache, in bytes of prompt text.
        """
        self._index.add(endpoint.id, chain.hashes, chain.ends, capacity=capacity)

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
        self._index.reserve(endpoint.id, size, capacity=capacity)

    def apply_correction(
        self, endpoint: Endpoint, forget: str, removed: Sequence[Hashable], cached: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """Applies what the index reports; see `ModelRouter.apply_correction`."""
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
