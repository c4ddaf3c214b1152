"""An outside tool before the simulator's engines: it drives cores by the router seam (docs/reference/seams.md) and knows no more.

Each gateway has a core of its own. What a core is told of an endpoint is what such a tool knows: this gateway's counters, exact, and
the others' as they were ``loads_seconds`` ago; of its cache what engines' events told, and what any gateway decided to send there,
``sent_seconds`` after it happened. Where gateways share nothing, a core is told its own counters and no cached prefix at all.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from fairlead_sim.asked import Asked
from fairlead_sim.blocks import Cleared, KvEvent, Removed, Stored
from fairlead_sim.course import HELD, Course
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.holding import Holding
from fairlead_sim.trace_prompts import trace_keys
from fairlead_sim.traces import TRACE_BLOCK_TOKENS, TraceRequest
from fairlead_sim.weather import CALM, Weather

_INFLIGHT: Final = 0
_WAITING: Final = 1
_PENDING: Final = 2
_TOKENS: Final = 3


@dataclass(frozen=True, slots=True)
class Sharing:
    """How late gateways hear what others sent and what engines tell, and of others' load."""

    sent_seconds: float = 0.0
    loads_seconds: float = 0.0


class Endpoint:
    """An engine as one gateway sees it when it asks its core."""

    def __init__(
        self, id: str, counters: Sequence[float], kv_tokens: int, matched_tokens: int | None, held: Sequence[Asked]
    ) -> None:
        self.id = id
        self.up = True
        self.inflight = int(counters[_INFLIGHT])
        self.waiting = int(counters[_WAITING])
        self.running = self.inflight - self.waiting
        self.held = held
        self.pending_prefill_tokens = counters[_PENDING]
        self.inflight_tokens = counters[_TOKENS]
        self.kv_util = min(1.0, self.inflight_tokens / kv_tokens)
        self.matched_tokens = matched_tokens


class _Order:
    """Late binding, by the seam."""

    def __init__(self, gateway: "_Gateway") -> None:
        self._gateway = gateway

    def order(self, request_id: str) -> Any:
        return self._gateway.core.order_key(self._gateway.all.asked[request_id])

    def rebalance(self, held: Mapping[str, Sequence[str]], now: float) -> list[tuple[str, str]]:
        gateway, asked = self._gateway, self._gateway.all.asked
        offered = gateway.endpoints((), {name: [asked[one] for one in ones] for name, ones in held.items()})
        moves = [(request.id, to) for request, to in gateway.core.rebalance(offered, now)]
        for request, to in moves:
            gateway.moved(request, to, now)
        return moves


class _Gateway:
    """One core, and the counters of what it sent."""

    def __init__(self, all_: "Outside", core: Any) -> None:
        self.all = all_
        self.core = core
        self.holding: Holding | None = None
        self.counters: dict[str, list[float]] = {}
        self.published: dict[str, list[float]] = {}
        self.cut: frozenset[str] = frozenset()
        self._flying: dict[str, tuple[str, list[float]]] = {}

    def flying(self, among: frozenset[str] | None = None) -> list[str]:
        """Requests that it sent or holds, to any engine or to these."""
        return [request for request, (to, _) in self._flying.items() if among is None or to in among]

    def endpoints(self, blocks: Sequence[int], held: Mapping[str, Sequence[Asked]]) -> list[Endpoint]:
        """All that are in service and can be reached, as this gateway sees them."""
        found, sharing = [], self.all.sharing
        for name in self.all.live:
            if name in self.cut:
                continue
            seen = list(self.counters.get(name, (0.0, 0.0, 0.0, 0.0)))
            if sharing is not None:
                for other in self.all.gateways:
                    if other is not self and name in other.published:
                        seen = [mine + theirs for mine, theirs in zip(seen, other.published[name], strict=True)]
            matched = None if sharing is None else self.all.matched(name, blocks) * TRACE_BLOCK_TOKENS
            found.append(Endpoint(name, seen, self.all.kv_tokens, matched, held.get(name, ())))
        return found

    def sent(self, asked: Asked, to: str, now: float) -> None:
        """It counts there from now on."""
        hit = self.all.matched(to, asked.blocks) * TRACE_BLOCK_TOKENS
        mine = [1.0, 1.0, float(max(0, asked.prompt_tokens - hit)), float(asked.prompt_tokens)]
        self._flying[asked.id] = to, mine
        self._add(to, mine, now)

    def moved(self, request: str, to: str, now: float) -> None:
        """It counts elsewhere."""
        self.over(request, now)
        self.sent(self.all.asked[request], to, now)
        self.all.forget(request, now)
        self.all.tell(request, to, now)

    def begun(self, request: str, now: float) -> str | None:
        """Its prefill is over; where."""
        found = self._flying.get(request)
        if found is None:
            return None
        to, mine = found
        self._add(to, [0.0, -mine[_WAITING], -mine[_PENDING], 0.0], now)
        mine[_WAITING] = mine[_PENDING] = 0.0
        return to

    def over(self, request: str, now: float) -> str | None:
        """It counts no more; where it did."""
        found = self._flying.pop(request, None)
        if found is None:
            return None
        self._add(found[0], [-value for value in found[1]], now)
        return found[0]

    def _add(self, to: str, delta: list[float], now: float) -> None:
        _add(self.counters, to, delta)
        sharing = self.all.sharing
        if sharing is not None and len(self.all.gateways) > 1:
            told = tuple(delta)
            self.all.later(now + sharing.loads_seconds, lambda _: _add(self.published, to, told))


class Outside:
    """The front: ``cores`` are those of the gateways, which requests reach by chance from ``seed``. ``sharing`` None: nothing is
    shared between gateways, nor told by engines."""

    def __init__(
        self,
        cores: Sequence[Any],
        names: Sequence[str],
        *,
        kv_tokens: int,
        sharing: Sharing | None,
        seed: int = 0,
        weather: Weather = CALM,
    ) -> None:
        self.sharing = sharing
        self._weather = weather
        self.kv_tokens = kv_tokens
        self.live = list(names)
        self.asked: dict[str, Asked] = {}
        self.gateways = [_Gateway(self, core) for core in cores]
        self._seed = seed
        self._of: dict[str, _Gateway] = {}
        self._cached: dict[str, Counter[int]] = {name: Counter() for name in names}
        self._sent: dict[str, Counter[int]] = {name: Counter() for name in names}
        self._where: dict[str, str] = {}
        self._course: Course | None = None

    def begin(self, course: Course) -> None:
        """Those that bind late hold requests from now on."""
        self._course = course
        for gateway in self.gateways:
            self._may_hold(gateway, course)

    def later(self, at: float, act: Callable[[float], None]) -> None:
        """As the course has it."""
        assert self._course is not None
        self._course.later(at, act)

    def matched(self, name: str, blocks: Sequence[int]) -> int:
        """Blocks from the prompt's start that are cached there, or on their way, as far as everybody has heard."""
        cached, sent, count = self._cached[name], self._sent[name], 0
        for block in blocks:
            if block not in cached and block not in sent:
                break
            count += 1
        return count

    def arrive(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """As the core of one gateway decides; always the same one for a request."""
        asked = self.asked.get(request.id)
        if asked is None:
            blocks = trace_keys(request.blocks, request.prompt_tokens, TRACE_BLOCK_TOKENS)
            asked = self.asked[request.id] = Asked(request, blocks)
            draw = xxh3_64_intdigest(f"{self._seed} {request.id}".encode())
            self._of[request.id] = self.gateways[draw % len(self.gateways)]
        gateway = self._of[request.id]
        chosen = gateway.core.pick(asked, gateway.endpoints(asked.blocks, {}), now)
        if chosen is None:
            return None, "the core chose nobody"
        gateway.sent(asked, chosen, now)
        self.tell(request.id, chosen, now)
        if gateway.holding is not None and not gateway.holding.assigned(request.id, chosen, now):
            return HELD, ""
        return chosen, ""

    def refused(self, request: str, now: float) -> None:
        """It counts nowhere."""
        self.lost(request, now)

    def first_token(self, request: str, now: float) -> None:
        """With what the engine reports of its cache."""
        gateway = self._of[request]
        to = gateway.begun(request, now)
        assert self._course is not None
        if to is not None and hasattr(gateway.core, "on_first_token"):
            sequence = self._course.flight(request).sequence
            cached = sequence.cached_tokens if sequence is not None else None
            gateway.core.on_first_token(self.asked[request], to, now, cached)
        if gateway.holding is not None:
            gateway.holding.begun(request, now)

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """Its answer is complete."""
        gateway = self._of[sequence.id]
        to = gateway.over(sequence.id, now)
        if to is not None and hasattr(gateway.core, "on_complete"):
            gateway.core.on_complete(self.asked[sequence.id], to, now, sequence.generated)
        self.forget(sequence.id, now)

    def told(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Engines' events, as late as everything that is shared."""
        if self.sharing is not None:
            for at in self._weather.arrivals(now, self.sharing.sent_seconds):
                self.later(at, lambda _: self._apply(instance, events))

    def members(self, live: Sequence[str], now: float) -> None:
        """As a watch tells it; what was held for an engine that left is asked anew."""
        for name in live:
            if name not in self.live:
                self._cached[name], self._sent[name] = Counter(), Counter()
        self.live = list(live)
        assert self._course is not None
        for gateway in self.gateways:
            if hasattr(gateway.core, "on_endpoints"):
                gateway.core.on_endpoints(list(live), now)
            for request in [] if gateway.holding is None else gateway.holding.left(live):
                gateway.over(request, now)
                self.forget(request, now)
                self._course.again(request, now)

    def lost(self, request: str, now: float) -> None:
        """It counts nowhere any more."""
        gateway = self._of[request]
        gateway.over(request, now)
        if gateway.holding is not None:
            gateway.holding.begun(request, now)
        self.forget(request, now)

    def unreachable(self, gateway: int, names: frozenset[str], now: float) -> None:
        """One gateway does not reach these engines from now on, and no others: what it has there without a first token arrives
        anew, the other answers are cut."""
        one = self.gateways[gateway]
        one.cut = names
        self._anew(one, names, now)

    def cut_of(self, request: str) -> frozenset[str]:
        """The engines that the request's gateway does not reach."""
        return self._of[request].cut

    def killed(self, gateway: int, core: Any, now: float) -> None:
        """One gateway is killed and its answers are cut; what had no first token arrives anew, at the one with this ``core``."""
        assert self._course is not None
        old = self.gateways[gateway]
        new = self.gateways[gateway] = _Gateway(self, core)
        new.cut = old.cut
        self._may_hold(new, self._course)
        if hasattr(core, "on_endpoints"):
            core.on_endpoints(list(self.live), now)
        for request, its in self._of.items():
            if its is old:
                self._of[request] = new
        self._anew(old, None, now)

    def _anew(self, gateway: "_Gateway", among: frozenset[str] | None, now: float) -> None:
        """Everything that it has in flight."""
        assert self._course is not None
        for request in gateway.flying(among):
            to = gateway.over(request, now)
            if to is not None and among is not None and hasattr(gateway.core, "on_complete"):
                gateway.core.on_complete(self.asked[request], to, now, None)
            if gateway.holding is not None:
                gateway.holding.begun(request, now)
            self.forget(request, now)
            self._course.again(request, now)

    def _may_hold(self, gateway: "_Gateway", course: Course) -> None:
        if hasattr(gateway.core, "order_key"):
            gateway.holding = Holding(_Order(gateway), self._let_go, course.later)

    def _let_go(self, request: str, to: str, now: float) -> None:
        assert self._course is not None
        self._course.send(request, to, now)

    def tell(self, request: str, to: str, now: float) -> None:
        """It was decided that it goes there, whether at once or when the engine can begin: decisions are what gateways share."""
        self._where[request] = to
        if self.sharing is not None:
            blocks = self.asked[request].blocks
            self.later(now + self.sharing.sent_seconds, lambda _: self._sent[to].update(blocks))

    def forget(self, request: str, now: float) -> None:
        """Events tell by now what an engine has of it."""
        to = self._where.pop(request, None)
        if self.sharing is not None and to is not None:
            self.later(now + self.sharing.sent_seconds, partial(self._unsend, to, self.asked[request].blocks))

    def _unsend(self, to: str, blocks: Sequence[int], now: float) -> None:
        del now
        sent = self._sent[to]
        for block in blocks:
            _less(sent, block)

    def _apply(self, instance: str, events: Sequence[KvEvent]) -> None:
        cached = self._cached[instance]
        for event in events:
            match event:
                case Stored():
                    cached.update(event.keys)
                case Removed():
                    _less(cached, event.key)
                case Cleared():
                    cached.clear()


def _less(counts: Counter[int], key: int) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


def _add(sums: dict[str, list[float]], to: str, delta: Sequence[float]) -> None:
    here = sums.setdefault(to, [0.0, 0.0, 0.0, 0.0])
    for index, value in enumerate(delta):
        here[index] += value
