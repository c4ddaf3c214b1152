"""Several gateways in front of one simulated fleet, and what each of them knows of what the others do.

A gateway here (``gateway_run``) is the production router and the pure cores around it: what it tells (``exchange.outgoing``), what
it hears of others (``exchange.peers``), the row of memory in which their load lies (``others_row``), the count of hot prefixes, the
bridge from what engines tell to what the router believes (``links.bridge``), and the requests that it keeps until their engines can
begin (``holding``). Redis and sockets are replaced by delays:

    every ``round_seconds``      a gateway tells what it sent and what it has in flight; ``told_seconds`` later the others know
    every ``hot_ask_seconds``    the keeper of the table of hot prefixes tells it; it is known just as much later
    ``index_seconds``            after the end of a step gateways hear what the engine stored and removed

A gateway that is restarted in good order goes on with what it has in flight; a new one takes what arrives, and knows what it
finds in the stream (the last ``sent_kept_seconds``), the table, and what engines tell from then on of prompts that it has seen.
A gateway chooses anew for what it loses before a first token; what a killed one had or kept comes back to any.
"""

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
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_gateway.routing.ledger import InstanceLoad
from fairlead_kvstore.exchange.records import Batch
from fairlead_kvstore.truth import changes as said
from fairlead_sim.blocks import KvEvent
from fairlead_sim.course import Course
from fairlead_sim.engine import EngineCore
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.fleet import MODEL, NAMESPACE, instances_of, made_up_chain
from fairlead_sim.gateway_run import GatewayRun
from fairlead_sim.knowledge import Knowledge
from fairlead_sim.told_index import ToldIndex
from fairlead_sim.traces import TraceRequest
from fairlead_sim.weather import CALM, Weather

_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Restart:
    """Gateway number ``gateway`` is restarted when the request with this number (in the order of arrival) arrives."""

    gateway: int
    at_request: int


class Gateways:
    """``count`` gateways of one fleet as one ``Front``. Requests go to one of them by chance, or where ``by_session`` all of a
    session go to one. ``engines`` are the names of equal engines, those that
    come later included (``members`` says who is there). ``weather`` is what becomes of all that is told.
    ``chain`` replaces the made-up prefix chains where the prompts' real text is known; ``choices`` (request id → engine) overrule
    the routers: what the same fleet makes of decisions taken elsewhere."""

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
        choices: Mapping[str, str] | None = None,
    ) -> None:
        if count < 1:
            raise BadInput(f"{count} gateways cannot answer anything", field="gateways")
        self.knowledge = knowledge
        self.engines = tuple(engines)
        self.live: Sequence[str] = self.engines
        self.profile = profile
        self.choices = choices or {}
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
        self._flying: dict[str, GatewayRun] = {}
        self._last = self._serving[0]
        self._left: tuple[str, GatewayRun] | None = None  # who was lost just now, and where

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
        gateway = self._last = self._again_at(request.id) or self._serving[self._way(request)]
        chosen, why = gateway.arrive(request, self._chain(request), now)
        if chosen is not None:
            self._flying[request.id] = gateway
        return chosen, why

    def refused(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        self.lost(request, now)

    def first_token(self, request: str, now: float) -> None:
        """The gateway that sent it hears of it."""
        self._flying[request].first_token(request, now)

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
        for gateway in self._all:
            self._anew(gateway.left(live, now), now)

    def lost(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        gateway = self._flying.pop(request)
        gateway.over(request, now)
        self._left = request, gateway

    def unreachable(self, gateway: int, names: frozenset[str], now: float) -> None:
        """One gateway does not reach these engines from now on, and no others: what it has there without a first token arrives
        anew, the other answers are cut."""
        one = self._serving[gateway]
        one.cut = names
        course = self._course()
        self._anew(one.left([name for name in self.live if name not in names], now), now)
        there = [name for name, its in self._flying.items() if its is one and course.flight(name).instance in names]
        self._anew(there, now)

    def cut_of(self, request: str) -> frozenset[str]:
        """The engines that the gateway does not reach which has, or just refused, the request."""
        return self._flying.get(request, self._last).cut

    def killed(self, gateway: int, now: float) -> None:
        """One gateway is killed and its answers are cut; what had no first token arrives anew, at a new gateway."""
        old = self._serving[gateway]
        old.gone = True
        old.left((), now)  # what it kept goes nowhere any more
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

    def tell(self, teller: GatewayRun, batch: Batch, now: float) -> None:
        """The others know it a little later."""
        arrivals = self._weather.arrivals(now, self.knowledge.told_seconds)
        if arrivals:
            self.stream.append((now, teller.name, batch))
        for at in arrivals:
            self._course().later(at, partial(self._hear, teller.name, batch))

    def later(self, at: float, act: Callable[[float], None]) -> None:
        """As the course's."""
        self._course().later(at, act)

    def send(self, request: str, instance: str, now: float) -> None:
        """As the course's."""
        self._course().send(request, instance, now)

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

    def _again_at(self, request: str) -> GatewayRun | None:
        """A gateway that is there chooses anew itself; a client whose gateway is gone comes back to any."""
        left, self._left = self._left, None
        return left[1] if left is not None and left[0] == request and not left[1].gone else None

    def _start_anew(self, index: int, now: float) -> None:
        """What it has in flight goes on; who comes in its place has only what others know."""
        old = self._serving[index]
        old.leaving = True
        new = self._serving[index] = self._gateway()
        self._all = [gateway for gateway in self._all if not gateway.gone] + [new]
        new.start(now + self.knowledge.round_seconds, shares=len(self._serving) > 1)
        new.catch_up(now)

    def _gateway(self) -> GatewayRun:
        self._runs += 1
        return GatewayRun(self, f"gateway {self._runs}")

    def cores(self) -> Mapping[str, EngineCore]:
        """The engines, for perfect knowledge."""
        return self._course().cores


class _Hot:
    """The table of hot prefixes and who keeps it; who finds it kept by nobody keeps it from then on."""

    def __init__(self) -> None:
        self.epoch = 0
        self.table: frozenset[int] = frozenset()
        self._keeper: GatewayRun | None = None
        self._free = 0.0

    def asked(self, gateways: Sequence[GatewayRun], now: float) -> bool:
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
