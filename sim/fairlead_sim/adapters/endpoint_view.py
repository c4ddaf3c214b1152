"""What a tool behind the router seam tells of its endpoints, as the router takes it.

**Load.** The tool's counters are the whole load of an endpoint: this core's own part, exact, and that of the others as it was
published last. They are read when a decision asks for that endpoint and not before. Where they count just the requests that
this core sent, prefill before us is the less of what the tool counts and of our own ledger: both count a cached prompt that they have
not heard of as uncached, the tool for as long as events are late, we where another gateway sent it. A tool that does not count what
it was told to send is not believed, unless it is the one that does not say what ends (``seam_silence``).

**Cached prefixes.** ``matched_tokens`` is what KV events tell. They come late, and never of what waits or runs, so the blocks of
every request sent there count as cached from the pick until ``LATE_SECONDS`` after its end. Where no endpoint says what is cached,
or none has ever said more than 0, the router goes by its own memory.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_sim.adapters.field_parsing import read_count

EVENT_DELAY_SECONDS: Final = 5.0


class _BlockRoutes:
    """How many of the requests under way to an endpoint have a block, and a bit for each endpoint that has any."""

    __slots__ = ("counts", "endpoint_mask")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.endpoint_mask = 0


class EndpointView:
    """The endpoints of the last call by name, and who was sent which blocks. ``prefill_token_seconds`` turns tokens into
    seconds."""

    def __init__(self, prefill_token_seconds: float, block_tokens: int) -> None:
        self._prefill_token_seconds = prefill_token_seconds
        self._block_tokens = block_tokens
        self._endpoints: Mapping[str, Any] = {}
        self._reported: dict[
            str, tuple[Mapping[str, float], Sequence[Hashable]]
        ] = {}  # by request: what events told, its blocks
        self._sent: dict[str, tuple[str, tuple[Hashable, ...]]] = {}
        self._blocks: dict[Hashable, _BlockRoutes] = {}
        self._names: list[str] = []  # by bit
        self._bits: dict[str, int] = {}
        self._expiring: deque[tuple[float, str, tuple[Hashable, ...]]] = deque()
        self._reports_cache = (
            False  # of some request something was cached somewhere: a tool without events may write 0 everywhere
        )
        self._reports_load = False  # some endpoint has had something in flight
        self.is_inferring = (
            False  # the tool says of no request that it is over, so we do not know better than its counters
        )

    def set_endpoints(self, endpoints: Mapping[str, Any]) -> None:
        """These are offered from now on."""
        self._endpoints = endpoints

    def add_request(self, request: str, blocks: Sequence[Hashable], now: float) -> None:
        """A request is to be placed: what events tell of it now is what is known until its first token."""
        while self._expiring and self._expiring[0][0] <= now:
            _, endpoint, expired_blocks = self._expiring.popleft()
            self._drop_blocks(endpoint, expired_blocks)
        matched = {name: read_count(item, "matched_tokens", "endpoint") for name, item in self._endpoints.items()}
        self._reports_cache = self._reports_cache or any(matched.values())
        if self._reports_cache and any(tokens is not None for tokens in matched.values()):
            self._reported[request] = {name: tokens for name, tokens in matched.items() if tokens}, blocks
        else:
            self.settle(request)

    def cached_tokens(self, request: str) -> Mapping[str, float] | None:
        """Prompt tokens of a request that are cached, by endpoint; None where nobody tells."""
        entry = self._reported.get(request)
        if entry is None:
            return None
        reported, blocks = entry
        by_endpoint = self._routed_tokens(blocks)
        for name, tokens in reported.items():
            if tokens > by_endpoint.get(name, 0.0):
                by_endpoint[name] = tokens
        return by_endpoint

    def load(self, own: EndpointLoad) -> EndpointLoad:
        """An endpoint's whole load, given what this core sent there."""
        endpoint = self._endpoints.get(own.instance)
        inflight = None if endpoint is None else read_count(endpoint, "inflight", "endpoint")
        if inflight is None:
            return own
        self._reports_load = self._reports_load or inflight > 0.0
        if inflight < own.inflight and not (self.is_inferring and self._reports_load):
            return own
        waiting = read_count(endpoint, "waiting", "endpoint")
        pending = read_count(endpoint, "pending_prefill_tokens", "endpoint")
        tokens = read_count(endpoint, "inflight_tokens", "endpoint")
        backlog = own.backlog_seconds if pending is None else pending * self._prefill_token_seconds
        if inflight == own.inflight:  # all of it is ours, and who knows of more that is cached is right
            backlog = min(backlog, own.backlog_seconds)
        return EndpointLoad(
            own.instance,
            int(inflight),
            own.waiting if waiting is None else int(waiting),
            backlog,
            own.inflight_tokens if tokens is None else tokens,
        )

    def add_routed(self, request: str, endpoint: str, blocks: Sequence[Hashable], now: float) -> None:
        """It goes there, or there instead of where it went before."""
        self.remove_routed(request, now, had_first_token=False)
        routed_blocks = tuple(blocks)
        self._sent[request] = (endpoint, routed_blocks)
        bit = self._bits.get(endpoint, 0)
        if not bit:
            bit = self._bits[endpoint] = 1 << len(self._names)
            self._names.append(endpoint)
        for block in routed_blocks:
            routes = self._blocks.get(block)
            if routes is None:
                routes = self._blocks[block] = _BlockRoutes()
            routes.counts[endpoint] = routes.counts.get(endpoint, 0) + 1
            routes.endpoint_mask |= bit

    def settle(self, request: str) -> None:
        """Its place is settled: what events told of it is not asked for again."""
        self._reported.pop(request, None)

    def remove_routed(self, request: str, now: float, *, had_first_token: bool = True) -> None:
        """It is over there; where it never ``began``, nothing of it is cached."""
        if had_first_token:
            self.settle(request)
        routed = self._sent.pop(request, None)
        if routed is None:
            return
        if had_first_token:
            self._expiring.append((now + EVENT_DELAY_SECONDS, *routed))
        else:
            self._drop_blocks(*routed)

    def remove_endpoint(self, endpoint: str) -> None:
        """It is out of service, and its cache with it."""
        for block in [block for block, routes in self._blocks.items() if endpoint in routes.counts]:
            self._clear_block(block, endpoint)
        self._expiring = deque(item for item in self._expiring if item[1] != endpoint)
        self._sent = {name: sent for name, sent in self._sent.items() if sent[0] != endpoint}

    def _routed_tokens(self, blocks: Iterable[Hashable]) -> dict[str, float]:
        """Tokens from the prompt's start that somebody was sent lately, by endpoint."""
        by_endpoint: dict[str, float] = {}
        reached, alive, tokens = 0, -1, 0.0
        for block in blocks:
            routes = self._blocks.get(block)
            holders = 0 if routes is None else alive & routes.endpoint_mask
            if reached and holders != alive:
                self._record_tokens(alive & ~holders, tokens, by_endpoint)
            alive = holders
            if not alive:
                return by_endpoint
            reached += 1
            tokens = float(reached * self._block_tokens)
        if reached:
            self._record_tokens(alive, tokens, by_endpoint)
        return by_endpoint

    def _record_tokens(self, mask: int, tokens: float, by_endpoint: dict[str, float]) -> None:
        while mask:
            bit = mask & -mask
            mask ^= bit
            by_endpoint[self._names[bit.bit_length() - 1]] = tokens

    def _drop_blocks(self, endpoint: str, blocks: Sequence[Hashable]) -> None:
        for block in blocks:
            routes = self._blocks.get(block)
            if routes is None or endpoint not in routes.counts:
                continue
            routes.counts[endpoint] -= 1
            if not routes.counts[endpoint]:
                self._clear_block(block, endpoint)

    def _clear_block(self, block: Hashable, endpoint: str) -> None:
        """Nothing under way to the endpoint has the block."""
        routes = self._blocks[block]
        del routes.counts[endpoint]
        routes.endpoint_mask &= ~self._bits[endpoint]
        if not routes.counts:
            del self._blocks[block]
