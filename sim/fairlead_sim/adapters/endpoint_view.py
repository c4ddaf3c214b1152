"""The router's view of the endpoints that a tool describes through the router seam.

**Load.** The tool's counters are the whole load of an endpoint: this core's own part, exact, and
the part of other gateways as last published. They are read only for endpoints that a decision
compares. If they count only the requests of this core, the backlog is the smaller of two counts,
the tool's and this core's. Both overestimate: the tool counts a cached prompt as uncached until
events arrive, and this core does so if another gateway sent the prompt's prefix. Counters below
what this core sent are ignored, unless the tool reports no completions (``missing_feedback``).

**Cached prefixes.** ``matched_tokens`` comes from KV events. Events are late and do not cover
waiting or running requests. So the blocks of a routed request count as cached from the pick until
``EVENT_DELAY_SECONDS`` after its end. If no endpoint has ever reported more than 0, the router uses
its own prefix map.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_sim.adapters.field_parsing import read_count

EVENT_DELAY_SECONDS: Final = 5.0


class _BlockRoutes:
    """The endpoints to which a block is routed: a request count and a bit for each."""

    __slots__ = ("counts", "endpoint_mask")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.endpoint_mask = 0


class EndpointView:
    """The endpoints of the last call by name, and the blocks routed to each."""

    def __init__(self, prefill_token_seconds: float, block_tokens: int) -> None:
        self._prefill_token_seconds = prefill_token_seconds
        self._block_tokens = block_tokens
        self._endpoints: Mapping[str, Any] = {}
        self._reported: dict[
            str, tuple[Mapping[str, float], Sequence[Hashable]]
        ] = {}  # request → reported cache, its blocks
        self._sent: dict[str, tuple[str, tuple[Hashable, ...]]] = {}
        self._blocks: dict[Hashable, _BlockRoutes] = {}
        self._names: list[str] = []  # by bit
        self._bits: dict[str, int] = {}
        self._expiring: deque[tuple[float, str, tuple[Hashable, ...]]] = deque()
        self._reports_cache = False  # a tool without events may send 0 everywhere
        self._reports_load = False  # an endpoint has had load
        self.is_inferring = False  # the tool reports no completions, so its counters are better than ours

    def set_endpoints(self, endpoints: Mapping[str, Any]) -> None:
        """Replaces the offered endpoints."""
        self._endpoints = endpoints

    def add_request(self, request: str, blocks: Sequence[Hashable], now: float) -> None:
        """Stores the cached tokens that the tool reports for a request, until its first token."""
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
        """Returns the cached prompt tokens of a request by endpoint; None if the tool
        reports none.
        """
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
        """Returns the whole load of an endpoint.

        own: the load that this core sent.
        """
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
        if inflight == own.inflight:  # all load is ours: the side that knows of more cached blocks is right
            backlog = min(backlog, own.backlog_seconds)
        return EndpointLoad(
            own.instance,
            int(inflight),
            own.waiting if waiting is None else int(waiting),
            backlog,
            own.inflight_tokens if tokens is None else tokens,
        )

    def add_routed(self, request: str, endpoint: str, blocks: Sequence[Hashable], now: float) -> None:
        """Counts the blocks of a request at its endpoint, and no longer at an earlier endpoint."""
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
        """Drops the reported cache of a request."""
        self._reported.pop(request, None)

    def remove_routed(self, request: str, now: float, *, had_first_token: bool = True) -> None:
        """Ends a request. After a first token its blocks count ``EVENT_DELAY_SECONDS`` longer."""
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
        """Drops an endpoint that left, with its cache."""
        for block in [block for block, routes in self._blocks.items() if endpoint in routes.counts]:
            self._clear_block(block, endpoint)
        self._expiring = deque(item for item in self._expiring if item[1] != endpoint)
        self._sent = {name: sent for name, sent in self._sent.items() if sent[0] != endpoint}

    def _routed_tokens(self, blocks: Iterable[Hashable]) -> dict[str, float]:
        """Returns the routed prefix of a prompt in tokens, by endpoint."""
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
        """Removes an endpoint from the routes of a block."""
        routes = self._blocks[block]
        del routes.counts[endpoint]
        routes.endpoint_mask &= ~self._bits[endpoint]
        if not routes.counts:
            del self._blocks[block]
