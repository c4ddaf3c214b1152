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

from fairlead_gateway.routing.ledger import Tally
from fairlead_sim.seam_words import amount

LATE_SECONDS: Final = 5.0


class _Sent:
    """How many of the requests under way to an endpoint have a block, and a bit for each endpoint that has any."""

    __slots__ = ("at", "mask")

    def __init__(self) -> None:
        self.at: dict[str, int] = {}
        self.mask = 0


class EndpointView:
    """The endpoints of the last call by name, and who was sent which blocks. ``prefill_token_seconds`` turns tokens into
    seconds."""

    def __init__(self, prefill_token_seconds: float, block_tokens: int) -> None:
        self._seconds = prefill_token_seconds
        self._block_tokens = block_tokens
        self._endpoints: Mapping[str, Any] = {}
        self._told: dict[
            str, tuple[Mapping[str, float], Sequence[Hashable]]
        ] = {}  # by request: what events told, its blocks
        self._sent: dict[str, tuple[str, tuple[Hashable, ...]]] = {}
        self._blocks: dict[Hashable, _Sent] = {}
        self._names: list[str] = []  # by bit
        self._bits: dict[str, int] = {}
        self._over: deque[tuple[float, str, tuple[Hashable, ...]]] = deque()
        self._tells = (
            False  # of some request something was cached somewhere: a tool without events may write 0 everywhere
        )
        self._counts = False  # some endpoint has had something in flight
        self.deaf = False  # the tool says of no request that it is over, so we do not know better than its counters

    def look(self, endpoints: Mapping[str, Any]) -> None:
        """These are offered from now on."""
        self._endpoints = endpoints

    def asked(self, request: str, blocks: Sequence[Hashable], now: float) -> None:
        """A request is to be placed: what events tell of it now is what is known until its first token."""
        while self._over and self._over[0][0] <= now:
            _, endpoint, gone = self._over.popleft()
            self._drop(endpoint, gone)
        matched = {name: amount(item, "matched_tokens", "endpoint") for name, item in self._endpoints.items()}
        self._tells = self._tells or any(matched.values())
        if self._tells and any(tokens is not None for tokens in matched.values()):
            self._told[request] = {name: tokens for name, tokens in matched.items() if tokens}, blocks
        else:
            self.answered(request)

    def matched(self, request: str) -> Mapping[str, float] | None:
        """Prompt tokens of a request that are cached, by endpoint; None where nobody tells."""
        found = self._told.get(request)
        if found is None:
            return None
        told, blocks = found
        here = self._under_way(blocks)
        for name, tokens in told.items():
            if tokens > here.get(name, 0.0):
                here[name] = tokens
        return here

    def load(self, own: Tally) -> Tally:
        """An endpoint's whole load, given what this core sent there."""
        endpoint = self._endpoints.get(own.instance)
        inflight = None if endpoint is None else amount(endpoint, "inflight", "endpoint")
        if inflight is None:
            return own
        self._counts = self._counts or inflight > 0.0
        if inflight < own.inflight and not (self.deaf and self._counts):
            return own
        waiting = amount(endpoint, "waiting", "endpoint")
        pending = amount(endpoint, "pending_prefill_tokens", "endpoint")
        tokens = amount(endpoint, "inflight_tokens", "endpoint")
        backlog = own.backlog_seconds if pending is None else pending * self._seconds
        if inflight == own.inflight:  # all of it is ours, and who knows of more that is cached is right
            backlog = min(backlog, own.backlog_seconds)
        return Tally(
            own.instance,
            int(inflight),
            own.waiting if waiting is None else int(waiting),
            backlog,
            own.inflight_tokens if tokens is None else tokens,
        )

    def sent(self, request: str, endpoint: str, blocks: Sequence[Hashable], now: float) -> None:
        """It goes there, or there instead of where it went before."""
        self.ended(request, now, began=False)
        kept = tuple(blocks)
        self._sent[request] = (endpoint, kept)
        bit = self._bits.get(endpoint, 0)
        if not bit:
            bit = self._bits[endpoint] = 1 << len(self._names)
            self._names.append(endpoint)
        for block in kept:
            here = self._blocks.get(block)
            if here is None:
                here = self._blocks[block] = _Sent()
            here.at[endpoint] = here.at.get(endpoint, 0) + 1
            here.mask |= bit

    def answered(self, request: str) -> None:
        """Its place is settled: what events told of it is not asked for again."""
        self._told.pop(request, None)

    def ended(self, request: str, now: float, *, began: bool = True) -> None:
        """It is over there; where it never ``began``, nothing of it is cached."""
        if began:
            self.answered(request)
        found = self._sent.pop(request, None)
        if found is None:
            return
        if began:
            self._over.append((now + LATE_SECONDS, *found))
        else:
            self._drop(*found)

    def left(self, endpoint: str) -> None:
        """It is out of service, and its cache with it."""
        for block in [block for block, here in self._blocks.items() if endpoint in here.at]:
            self._clear(block, endpoint)
        self._over = deque(item for item in self._over if item[1] != endpoint)
        self._sent = {name: sent for name, sent in self._sent.items() if sent[0] != endpoint}

    def _under_way(self, blocks: Iterable[Hashable]) -> dict[str, float]:
        """Tokens from the prompt's start that somebody was sent lately, by endpoint."""
        found: dict[str, float] = {}
        reached, alive, tokens = 0, -1, 0.0
        for block in blocks:
            here = self._blocks.get(block)
            held = 0 if here is None else alive & here.mask
            if reached and held != alive:
                self._reached(alive & ~held, tokens, found)
            alive = held
            if not alive:
                return found
            reached += 1
            tokens = float(reached * self._block_tokens)
        if reached:
            self._reached(alive, tokens, found)
        return found

    def _reached(self, mask: int, tokens: float, found: dict[str, float]) -> None:
        while mask:
            bit = mask & -mask
            mask ^= bit
            found[self._names[bit.bit_length() - 1]] = tokens

    def _drop(self, endpoint: str, blocks: Sequence[Hashable]) -> None:
        for block in blocks:
            here = self._blocks.get(block)
            if here is None or endpoint not in here.at:
                continue
            here.at[endpoint] -= 1
            if not here.at[endpoint]:
                self._clear(block, endpoint)

    def _clear(self, block: Hashable, endpoint: str) -> None:
        """Nothing under way to the endpoint has the block."""
        here = self._blocks[block]
        del here.at[endpoint]
        here.mask &= ~self._bits[endpoint]
        if not here.at:
            del self._blocks[block]
