"""Whether a request's tokens will fit an engine's memory to the end: Past-Future, over everything this process has sent there.

What is held now is known: prompts without what they share, and the tokens that came since (the time since the first, at the pace
of the engine's last answers). What is still to come is what six of ten answers that got as far stay within
(``learning/lengths``), never more than the client allowed. The request joins where the worst moment still to come
(``learning/peak``) stays under the memory.

Nobody is stopped by what is not known: an engine whose memory nobody stated has room; before the first answers of a model its
requests count ``GUESS_TOKENS`` of output. While an engine is at most half planned, nothing is computed for it at all.

**Headroom** (Llumnix): a request of a lower tier leaves ``HEADROOM`` of the memory free for each tier above it. **Freeness**,
tokens free at the worst moment for each sequence there, is what engines are compared by; one that drains has none.

What other processes hold there is not known one by one; the caller says how many tokens that is, and they count as they are.

Sources: Past-Future (arXiv 2507.10150), Llumnix (arXiv 2406.03243).
"""

from collections.abc import Callable, Hashable
from typing import Final

from fairlead_gateway.learning.peak import FULL, Held, peak_tokens
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN
from fairlead_gateway.routing.request import RouteRequest

GUESS_TOKENS: Final = 256.0
HEADROOM: Final = 0.05
PLAIN: Final = 0.5
PACE_SECONDS: Final = 0.02
_PACE_SHARE: Final = 0.1

Coming = Callable[[Hashable, float, int, float], float | None]
"""Tokens still to come of an answer: of a class (whatever the caller tells apart), of a prompt of so many tokens, with so many out,
at a time. None where nothing was seen yet."""


class _Flight:
    __slots__ = ("engine", "first_at", "kind", "plan", "prompt_tokens", "request")

    def __init__(self, request: RouteRequest, engine: str, prompt_tokens: float, kind: Hashable, plan: float) -> None:
        self.request = request
        self.engine = engine
        self.prompt_tokens = prompt_tokens
        self.kind = kind
        self.plan = plan
        self.first_at: float | None = None


class _Engine:
    __slots__ = ("flights", "pace", "plan")

    def __init__(self) -> None:
        self.flights: dict[str, _Flight] = {}
        self.plan = 0.0
        self.pace = PACE_SECONDS


class Memory:
    """Of one model: what is in flight, by engine."""

    def __init__(self, coming: Coming) -> None:
        self._coming = coming
        self._flights: dict[str, _Flight] = {}
        self._engines: dict[str, _Engine] = {}
        self._plan = 0.0

    def sent(self, request: RouteRequest, engine: str, prompt_tokens: float, kind: Hashable, now: float) -> None:
        """A request went to an engine; a retry first ends what it was."""
        if request.id in self._flights:
            self.ended(request.id)
        plan = prompt_tokens + self._to_come(request, prompt_tokens, kind, 0, now)
        flight = self._flights[request.id] = _Flight(request, engine, prompt_tokens, kind, plan)
        place = self._engines.get(engine)
        if place is None:
            place = self._engines[engine] = _Engine()
        place.flights[request.id] = flight
        place.plan += plan
        self._plan += plan

    def first_token(self, request_id: str, now: float) -> None:
        """From now on its answer grows."""
        flight = self._flights.get(request_id)
        if flight is not None and flight.first_at is None:
            flight.first_at = now

    def ended(self, request_id: str, now: float | None = None, output_tokens: int | None = None) -> None:
        """It holds nothing any more. What a complete answer had in how long is the engine's pace."""
        flight = self._flights.pop(request_id, None)
        if flight is None:
            return
        self._plan = self._plan - flight.plan if self._flights else 0.0
        place = self._engines[flight.engine]
        del place.flights[request_id]
        place.plan = place.plan - flight.plan if place.flights else 0.0
        if now is not None and output_tokens is not None and output_tokens > 1 and flight.first_at is not None:
            place.pace += _PACE_SHARE * ((now - flight.first_at) / (output_tokens - 1) - place.pace)

    def keep(self, engines: frozenset[str]) -> None:
        """The others are gone, once nothing of ours is there."""
        for name in [name for name, place in self._engines.items() if name not in engines and not place.flights]:
            del self._engines[name]

    def roomy(self, request: RouteRequest, capacity: float) -> bool:
        """Whether the request fits an engine of this capacity even with all that is in flight anywhere."""
        most = request.max_tokens
        own = 2.0 * request.prompt_tokens + (most or GUESS_TOKENS)
        return self._plan + own <= PLAIN * FULL * capacity

    def free_tokens(self, engine: str, capacity: float, now: float) -> float:
        """Llumnix's numerator: what is free at the worst moment still to come."""
        return FULL * capacity - self._peak(engine, None, 0.0, None, now)

    def freeness(self, engine: str, capacity: float, now: float) -> float:
        """Tokens free for each sequence there."""
        place = self._engines.get(engine)
        return self.free_tokens(engine, capacity, now) / max(1, len(place.flights) if place is not None else 0)

    def lacks(
        self,
        engine: str,
        capacity: float,
        request: RouteRequest,
        prompt_tokens: float,
        kind: Hashable,
        now: float,
        *,
        tier: int = 0,
        others_tokens: float = 0.0,
    ) -> float:
        """Tokens that would be missing at the worst moment still to come if the request joined ``now``; 0 where it fits."""
        place = self._engines.get(engine)
        plan = others_tokens + (0.0 if place is None else place.plan)
        mine = prompt_tokens + self._to_come(request, prompt_tokens, kind, 0, now)
        usable = FULL * capacity * max(0.0, 1.0 - HEADROOM * tier)
        if plan + mine <= PLAIN * usable or (plan <= 0.0 and (place is None or not place.flights)):
            return 0.0
        return max(0.0, others_tokens + self._peak(engine, request, prompt_tokens, kind, now) - usable)

    def _peak(
        self, engine: str, request: RouteRequest | None, prompt_tokens: float, kind: Hashable, now: float
    ) -> float:
        place = self._engines.get(engine)
        held: list[Held] = []
        seen: set[int] = set()
        for flight in place.flights.values() if place is not None else ():
            out = 0
            if place is not None and flight.first_at is not None:
                out = 1 + int((now - flight.first_at) / max(1e-6, place.pace))
            own = _own_tokens(flight.request, flight.prompt_tokens, seen)
            held.append(Held(own + out, self._to_come(flight.request, flight.prompt_tokens, flight.kind, out, now)))
        if request is not None:
            own = _own_tokens(request, prompt_tokens, seen)
            held.append(Held(own, self._to_come(request, prompt_tokens, kind, 0, now)))
        return peak_tokens(held)

    def _to_come(self, request: RouteRequest, prompt_tokens: float, kind: Hashable, out: int, now: float) -> float:
        found = self._coming(kind, prompt_tokens, out, now)
        more = max(1.0, GUESS_TOKENS - out) if found is None else found
        return more if not request.max_tokens else max(0.0, min(more, request.max_tokens - out))


def _own_tokens(request: RouteRequest, prompt_tokens: float, seen: set[int]) -> float:
    """Tokens of a prompt but for the blocks at its front that somebody before it holds there as well; ``seen`` learns of it."""
    chain = request.chain
    hashes, shared = chain.hashes, 0
    while shared < len(hashes) and hashes[shared] in seen:
        shared += 1
    seen.update(hashes[shared:])
    if not shared or request.prompt_tokens <= 0.0:
        return prompt_tokens
    part = chain.ends[shared - 1] / max(1.0, request.prompt_tokens * BYTES_PER_TOKEN)
    return prompt_tokens * (1.0 - min(1.0, part))
