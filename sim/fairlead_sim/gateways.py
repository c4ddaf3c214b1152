"""Several gateways in front of one simulated fleet, and what each of them knows of what the others do.

A gateway here is the production router and the pure cores around it: what it tells (``exchange.outgoing``), what it hears of others
(``exchange.peers``), the row of memory in which their load lies (``others_row``), the count of hot prefixes, and the bridge from
what engines tell to what the router believes (``links.bridge``). Redis and sockets are replaced by delays:

    every ``round_seconds``      a gateway tells what it sent and what it has in flight; ``told_seconds`` later the others know
    every ``hot_ask_seconds``    the keeper of the table of hot prefixes tells it; it is known just as much later
    ``index_seconds``            after the end of a step gateways hear what the engine stored and removed

A gateway that is restarted in good order goes on with what it has in flight; a new one takes what arrives, and knows what it
finds in the stream (the last ``sent_kept_seconds``), the table, and what engines tell from then on of prompts that it has seen.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import xxhash

from fairlead.errors import BadInput
from fairlead.fleet import Model, Objectives
from fairlead.limits import Limits
from fairlead.profile import EngineProfile
from fairlead_gateway.others_row import OthersRow
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.hotness import HotPrefixes
from fairlead_gateway.routing.ledger import InstanceLoad
from fairlead_gateway.routing.prefix import block_ends
from fairlead_gateway.routing.shared import SharedRows, Siblings, bytes_of
from fairlead_kvstore.exchange.outgoing import Outgoing
from fairlead_kvstore.exchange.peers import Peers
from fairlead_kvstore.exchange.records import Batch, Load, Sent
from fairlead_kvstore.links.bridge import Bridge
from fairlead_kvstore.links.lesson import guessed
from fairlead_kvstore.truth import changes as said
from fairlead_sim.blocks import KvEvent
from fairlead_sim.course import Course
from fairlead_sim.engine import EngineCore
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.fleet import MODEL, NAMESPACE, instances_of, made_up_chain
from fairlead_sim.told_index import ToldIndex, held_blocks
from fairlead_sim.trace_prompts import BYTES_PER_TOKEN, trace_keys
from fairlead_sim.traces import TraceRequest
from fairlead_sim.weather import CALM, Weather

_LIMITS = Limits()
_PRINT = b"one secret for all"


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What gateways know of one another and of the engines: what others ``sent``, what they have in flight (``loads``), one table of
    ``hot`` prefixes for all, who served a session last (``pins``, where clients name it), and the ``index`` of what engines tell.
    Loads are taken for what is to be expected of them (``exchange.pace``), or where ``as_said`` for what was said, which shows what
    that is good for. ``perfect``: before each choice, what every engine holds at that moment or is about to compute, instead of all
    beliefs; the load is then its own and what ``loads`` tells."""

    sent: bool = True
    loads: bool = True
    hot: bool = True
    pins: bool = False
    index: bool = False
    as_said: bool = False
    perfect: bool = False
    round_seconds: float = 0.05
    told_seconds: float = 0.05
    index_seconds: float = 0.05


NOTHING = Knowledge(sent=False, loads=False, hot=False)
PERFECT = Knowledge(sent=False, loads=True, hot=True, perfect=True)


@dataclass(frozen=True, slots=True)
class Restart:
    """Gateway number ``gateway`` is restarted when the request with this number (in the order of arrival) arrives."""

    gateway: int
    at_request: int


class Gateways:
    """``count`` gateways of one fleet as one ``Front``. Requests go to one of them by chance, or where ``by_session`` all of a
    session go to one. ``engines`` are the names of equal engines, those that
    come later included (``members`` says who is there). ``weather`` is what becomes of all that is told.
    ``chain`` replaces the made-up prefix chains where the prompts' real text is known."""

    def __init__(
        self,
        count: int,
        engines: Sequence[str],
        profile: EngineProfile,
        *,
        knowledge: Knowledge,
        objectives: Objectives,
        secret: bytes,
        seed: int,
        block_tokens: int,
        by_session: bool = False,
        restart: Restart | None = None,
        weather: Weather = CALM,
        preset: str = "dual-hash",
        chain: Callable[[TraceRequest], PrefixChain] | None = None,
    ) -> None:
        if count < 1:
            raise BadInput(f"{count} gateways cannot answer anything", field="gateways")
        self.knowledge = knowledge
        self.engines = tuple(engines)
        self.live: Sequence[str] = self.engines
        self.profile = profile
        self.model = Model(NAMESPACE, MODEL, objectives, preset)
        self.secret = secret
        self.block_tokens = block_tokens
        self.index = ToldIndex(self.engines)
        self.hot = _Hot()
        self.stream: list[tuple[float, str, Batch]] = []
        self.course: Course | None = None
        self._seed = seed
        self._runs = 0
        self._draw = Random(f"which gateway {seed}")
        self._by_session = by_session
        self._restart = restart
        self._weather = weather
        self._lives = Counter[str]()
        self._arrived = 0
        self._epoch = 1
        self._chain = chain or partial(made_up_chain, secret=secret, seed=self.model.key.encode())
        self._serving = [self._gateway() for _ in range(count)]
        self._all = list(self._serving)
        self._flying: dict[str, _Gateway] = {}
        self._last = self._serving[0]

    # --- the front of a course --------------------------------------------------------------------------------------------

    def begin(self, course: Course) -> None:
        """Everybody begins to tell and to listen, not all at the same moment."""
        self.course = course
        shares = len(self._serving) > 1
        for index, gateway in enumerate(self._serving):
            gateway.start(self.knowledge.round_seconds * (1 + index / len(self._serving)), shares=shares)
        if self.knowledge.hot and shares:
            course.later(_LIMITS.hot_ask_seconds, self._tell_hot)

    def arrive(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """One of the gateways chooses."""
        if self._restart is not None and self._arrived == self._restart.at_request:
            self._start_anew(self._restart.gateway, now)
        self._arrived += 1
        gateway = self._last = self._serving[self._way(request)]
        chosen, why = gateway.arrive(request, self._chain(request), now)
        if chosen is not None:
            self._flying[request.id] = gateway
        return chosen, why

    def refused(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        self._flying.pop(request).router.abandoned(request, now)

    def first_token(self, request: str, now: float) -> None:
        """The gateway that sent it hears of it."""
        self._flying[request].router.first_token(request, now)

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """The same."""
        self._flying.pop(sequence.id).finished(sequence, now)

    def told(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Every gateway hears of it a little later, in the order in which engines tell."""
        if self.knowledge.index:
            life = self._lives[instance]
            for at in self._weather.arrivals(now, self.knowledge.index_seconds):
                self._course().later(at, partial(self._hear_engine, instance, life, events))

    def members(self, live: Sequence[str], now: float) -> None:
        """Every gateway's watch tells it. Of an engine that left nothing is believed any more."""
        self._epoch += 1
        left = [name for name in self.live if name not in live]
        self.live = list(live)
        self._lives.update(left)
        for name in left:
            self._tell_changes(self.index.left(name))
        for gateway in self._all:
            gateway.router.update(self.model, instances_of(live, self.profile), self._epoch)

    def lost(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        self._flying.pop(request).router.abandoned(request, now)

    def unreachable(self, gateway: int, names: frozenset[str], now: float) -> None:
        """One gateway does not reach these engines from now on, and no others: what it has there without a first token arrives
        anew, the other answers are cut."""
        one = self._serving[gateway]
        one.cut = names
        course = self._course()
        there = [name for name, its in self._flying.items() if its is one and course.flight(name).instance in names]
        self._anew(there, now)

    def cut_of(self, request: str) -> frozenset[str]:
        """The engines that the gateway does not reach which has, or just refused, the request."""
        return self._flying.get(request, self._last).cut

    def killed(self, gateway: int, now: float) -> None:
        """One gateway is killed and its answers are cut; what had no first token arrives anew, at a new gateway."""
        old = self._serving[gateway]
        old.gone = True
        self._start_anew(gateway, now)
        self._serving[gateway].cut = old.cut
        self._anew([name for name, its in self._flying.items() if its is old], now)

    def _anew(self, requests: Sequence[str], now: float) -> None:
        for request in requests:
            self.lost(request, now)
            self._course().again(request, now)

    def loads(self) -> list[Mapping[str, InstanceLoad]]:
        """What each gateway that is there counts as its own."""
        return [gateway.router.loads() for gateway in self._all if not gateway.gone]

    def believed(self, request: TraceRequest) -> float:
        """Tokens of a prompt that some instance holds, as the gateway believes that believes most."""
        asked = RouteRequest(request.id, self._chain(request), request.prompt_tokens)
        return max(request.prompt_tokens - gateway.router.uncached(asked) for gateway in self._serving)

    # --- between gateways -------------------------------------------------------------------------------------------------

    def tell(self, teller: "_Gateway", batch: Batch, now: float) -> None:
        """The others know it a little later."""
        arrivals = self._weather.arrivals(now, self.knowledge.told_seconds)
        if arrivals:
            self.stream.append((now, teller.name, batch))
        for at in arrivals:
            self._course().later(at, partial(self._hear, teller.name, batch))

    def later(self, at: float, act: Callable[[float], None]) -> None:
        """As the course's."""
        self._course().later(at, act)

    def _course(self) -> Course:
        assert self.course is not None, "nothing happens before the course begins"
        return self.course

    def _hear(self, name: str, batch: Batch, now: float) -> None:
        for gateway in self._all:
            if gateway.name != name:
                gateway.hear(name, batch, now, live=True)

    def _hear_engine(self, instance: str, life: int, events: Sequence[KvEvent], now: float) -> None:
        if life == self._lives[instance]:
            self._tell_changes(self.index.changes(instance, events))

    def _tell_changes(self, changes: Sequence[said.Change]) -> None:
        for gateway in self._all:
            gateway.bridge.changed(changes)

    def _tell_hot(self, now: float) -> None:
        if self.hot.asked(self._serving, now):
            for at in self._weather.arrivals(now, self.knowledge.told_seconds):
                self.later(at, partial(self._hear_hot, self.hot.epoch, self.hot.table))
        self.later(now + _LIMITS.hot_ask_seconds, self._tell_hot)

    def _hear_hot(self, epoch: int, table: frozenset[int], now: float) -> None:
        for gateway in self._all:
            gateway.router.hot(epoch, table)

    def _way(self, request: TraceRequest) -> int:
        if self._by_session and request.session is not None:
            return xxhash.xxh3_64_intdigest(request.session.encode(), self._seed) % len(self._serving)
        return self._draw.randrange(len(self._serving))

    def _start_anew(self, index: int, now: float) -> None:
        """What it has in flight goes on; who comes in its place has only what others know."""
        old = self._serving[index]
        old.leaving = True
        new = self._serving[index] = self._gateway()
        self._all = [gateway for gateway in self._all if not gateway.gone] + [new]
        new.start(now + self.knowledge.round_seconds, shares=len(self._serving) > 1)
        new.catch_up(now)

    def _gateway(self) -> "_Gateway":
        self._runs += 1
        return _Gateway(self, f"gateway {self._runs}")

    def cores(self) -> Mapping[str, EngineCore]:
        """The engines, for perfect knowledge."""
        return self._course().cores


class _Gateway:
    """One run of one gateway."""

    def __init__(self, all_: Gateways, name: str) -> None:
        self.name = name
        self._all = all_
        self._slots = {engine: slot for slot, engine in enumerate(all_.engines)}
        cells = memoryview(bytearray(bytes_of(2, len(self._slots)))).cast("q")
        rows = SharedRows(cells, len(self._slots), 0)
        rows.place(self._slots)
        self._others = OthersRow(cells, len(self._slots), 1)
        self._others.place(self._slots)
        rows.read_rows([1])
        self.out = Outgoing(_PRINT, _LIMITS)
        self.peers = Peers(_PRINT, _LIMITS)
        self.count = HotPrefixes()
        self.bridge = Bridge(all_.model.key, all_.index.mirror, secret=all_.secret)
        self._flying: dict[str, tuple[str, int]] = {}
        self.leaving = False
        self.gone = False
        self.cut: frozenset[str] = frozenset()
        self._beaten = float("-inf")
        self.router = ModelRouter(
            secret=all_.secret,
            seed=0,
            siblings=Siblings(rows, self._sent, lambda *_: None, lambda *_: None),
        )
        self.router.update(all_.model, instances_of(all_.live, all_.profile), 1)

    def start(self, at: float, *, shares: bool) -> None:
        """Rounds begin."""
        knowledge = self._all.knowledge
        if shares and (knowledge.sent or knowledge.loads or knowledge.hot):
            self._all.later(at, self._tell)
        if knowledge.index:
            self._all.later(at, self._correct)

    def catch_up(self, now: float) -> None:
        """What Redis keeps is read back: what was sent, the table, and what engines hold."""
        for at, name, batch in self._all.stream:
            if now - at <= _LIMITS.sent_kept_seconds:
                self.hear(name, batch, now, live=False)
        if self._all.knowledge.hot and self._all.hot.epoch:
            self.router.hot(self._all.hot.epoch, self._all.hot.table)
        self.bridge.tell_all()

    # --- requests -------------------------------------------------------------------------------------------------------

    def arrive(self, request: TraceRequest, chain: PrefixChain, now: float) -> tuple[str | None, str]:
        """Choose and send."""
        pin = None
        if self._all.knowledge.pins and request.session is not None:
            pin = xxhash.xxh3_64_intdigest(request.session.encode())
        tokens, output = request.prompt_tokens, request.output_tokens
        asked = RouteRequest(request.id, chain, tokens, output, request.session, pin=pin)
        if self._all.knowledge.perfect:
            self._know(request, chain)
        decision = self.router.decide(asked, now, excluded=self.cut)
        if decision.chosen is None:
            return None, decision.reason
        self.router.dispatched(asked, decision.chosen, now)
        if self._all.knowledge.index:
            self._link(request, chain, decision.chosen, now)
        return decision.chosen, ""

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """With what an engine reports."""
        self.router.finished(
            sequence.id,
            now,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens,
            output_tokens=sequence.generated,
        )
        sent = self._flying.pop(sequence.id, None)
        if sent is not None:
            self.bridge.ended(*sent, now)

    def _know(self, request: TraceRequest, chain: PrefixChain) -> None:
        keys = trace_keys(request.blocks, request.prompt_tokens, self._all.block_tokens)
        for name, core in self._all.cores().items():
            blocks = held_blocks(core, keys)
            held = bisect_left(chain.ends, blocks * self._all.block_tokens * BYTES_PER_TOKEN + 1)
            self.router.corrected(name, "all", (), [chain.hashes[:held]] if held else [])

    def _link(self, request: TraceRequest, chain: PrefixChain, chosen: str, now: float) -> None:
        block_tokens = self._all.block_tokens
        self._flying[request.id] = (chosen, chain.tail)
        self.bridge.sent(chosen, chain.tail, chain.hashes, now, ends_told=True)
        self.bridge.link(
            guessed(
                chain.hashes,
                chain.ends,
                trace_keys(request.blocks, request.prompt_tokens, block_tokens),
                size=request.prompt_tokens * BYTES_PER_TOKEN,
                tokens=request.prompt_tokens,
                block_size=block_tokens,
            )
        )

    # --- telling and hearing --------------------------------------------------------------------------------------------

    def _sent(self, model: str, request: RouteRequest, instance: str) -> None:
        knowledge, chain, pin = self._all.knowledge, request.chain, request.pin
        if knowledge.hot:
            self.count.observe(chain, len(self._slots))
        if knowledge.sent or knowledge.hot:
            self.out.sent(
                MODEL, instance, array("Q", chain.hashes).tobytes(), chain.tail, pin if isinstance(pin, int) else 0
            )

    def _tell(self, now: float) -> None:
        if self.gone:
            return
        loads: dict[str, Load] = {}
        if self._all.knowledge.loads:
            for name, load in self.router.loads().items():
                if load.inflight:
                    loads[name] = (load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
        beats = now - self._beaten >= _LIMITS.beat_seconds / 2
        if beats:
            self._beaten = now
        for model, batch in self.out.batches([MODEL], {MODEL: loads} if loads else {}, now, beats=beats):
            self.out.written(model, batch, now)
            self._all.tell(self, batch, now)
        if self.leaving and not any(load.inflight for load in self.router.loads().values()):
            for _, batch in self.out.farewell():
                self._all.tell(self, batch, now)
            self.gone = True
        else:
            self._all.later(now + self._all.knowledge.round_seconds, self._tell)
        self._settle(now)

    def hear(self, name: str, batch: Batch, now: float, *, live: bool) -> None:
        """Another gateway's batch."""
        knowledge = self._all.knowledge
        for item in self.peers.heard(MODEL, name, batch, now, live=live):
            self._take(item, now)
        if live and knowledge.loads:
            self._settle(now)

    def _take(self, item: Sent, now: float) -> None:
        knowledge = self._all.knowledge
        instance, packed, tail, pin = item
        hashes = tuple(array("Q", packed))
        chain = PrefixChain(hashes, block_ends(len(hashes)), tail)
        if knowledge.hot:
            self.count.observe(chain, len(self._slots))
        if knowledge.sent:
            self.router.heard(instance, chain, now, pin or None)
            if knowledge.index:
                self.bridge.sent(instance, tail, hashes, now, ends_told=False)

    def _settle(self, now: float) -> None:
        self.peers.expire(now)
        as_said = self._all.knowledge.as_said
        self._others.show(self.peers.loads() if as_said else self.peers.expected({MODEL: (self._all.live,)}))

    def _correct(self, now: float) -> None:
        if self.gone:
            return
        for one in self.bridge.corrections(now):
            held = [tuple(array("Q", chain)) for chain in one.held]
            self.router.corrected(one.instance, one.forget.value, array("Q", one.gone), held)
        self._all.later(now + _LIMITS.link_correction_seconds, self._correct)


class _Hot:
    """The table of hot prefixes and who keeps it; who finds it kept by nobody keeps it from then on."""

    def __init__(self) -> None:
        self.epoch = 0
        self.table: frozenset[int] = frozenset()
        self._keeper: _Gateway | None = None
        self._free = 0.0

    def asked(self, gateways: Sequence[_Gateway], now: float) -> bool:
        """Whether the table has changed; a keeper that has left is followed when its lease is over."""
        if self._keeper is None or self._keeper.leaving:
            if self._keeper is not None and now < self._free:
                return False
            self._keeper = gateways[0]
            if self.epoch:
                self._keeper.count.adopt(self.table)
        self._free = now + _LIMITS.hot_lease_seconds
        table = frozenset(self._keeper.count.table(_LIMITS.hot_prefixes))
        if self.epoch and table == self.table:
            return False
        self.table = table  # type: ignore[assignment]
        self.epoch += 1
        return True
