"""The fleet simulator: the production router in front of simulated engines, on a virtual clock.

Open loop: requests arrive when the trace says, whatever the engines do. Between arrivals the only events are ends of engine steps,
so the simulation is one heap of those, merged with the sorted arrivals. The router is the class that the gateway runs, told what
the gateway would be told, when it would be told: dispatch at the arrival, the first token and the end when their steps end.
No byte is sent and no time is read, so equal arguments give equal results.
"""

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from fairlead.errors import BadInput, FairleadError
from fairlead.fleet import Instance, Model, Objectives
from fairlead.profile import EngineProfile
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_sim.engine import EngineCore, Step
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.trace_prompts import trace_chain, trace_keys
from fairlead_sim.traces import TraceRequest

MODEL = "sim"
NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one request; times in simulated seconds, ``finish`` since the simulation began.

    ``gaps`` are the seconds between its tokens, in order. ``error`` is set when no engine could take it.
    """

    id: str
    arrival: float
    instance: str | None
    ttft_seconds: float | None
    itl_mean_seconds: float | None
    finish: float | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str | None
    gaps: Sequence[float]


def _made_up_chain(request: TraceRequest, *, secret: bytes, seed: bytes) -> PrefixChain:
    return trace_chain(request.blocks, request.prompt_tokens, secret=secret, seed=seed)


def simulate(
    requests: Sequence[TraceRequest],
    *,
    profile: EngineProfile,
    engines: int,
    preset: str,
    objectives: Objectives,
    block_tokens: int,
    secret: bytes,
    seed: int,
    instance_ids: Sequence[str] | None = None,
    chain: Callable[[TraceRequest], PrefixChain] | None = None,
    choices: Mapping[str, str] | None = None,
    hearing_seconds: float = 0.0,
) -> list[Served]:
    """Every request served by ``engines`` equal engines under one routing preset, in the order given.

    ``instance_ids`` name the engines as the router sees them; homes depend on names. ``chain`` replaces the made-up prefix
    chain where the prompts' real text is known: with both, homes are the very ones that a live gateway computes.
    ``choices`` (request id → instance id) overrule the router: what the same engines make of decisions taken elsewhere.
    The router hears of first tokens and ends ``hearing_seconds`` after they happened, as a gateway does.
    """
    names = [f"sim-{index}/0/0" for index in range(engines)] if instance_ids is None else list(instance_ids)
    if not names or len(names) != engines or len(set(names)) != engines:
        raise BadInput(f"{engines} engines need as many different instance ids", field="engines")
    model = Model(NAMESPACE, MODEL, objectives, preset)
    router = ModelRouter(secret=secret, seed=seed)
    router.update(
        model,
        [Instance(id=name, namespace=NAMESPACE, model=MODEL, pool="sim", url="", profile=profile) for name in names],
        1,
    )
    if chain is None:
        chain = partial(_made_up_chain, secret=secret, seed=model.key.encode())
    run = _Run(router, [_Engine(name, profile, block_tokens) for name in names], chain, choices or {}, hearing_seconds)
    return run.serve(requests)


@dataclass(slots=True, eq=False)
class _Engine:
    """One simulated engine and whether a step of it is under way."""

    name: str
    profile: EngineProfile
    block_tokens: int
    stepping: bool = False
    core: EngineCore = field(init=False)

    def __post_init__(self) -> None:
        self.core = EngineCore(self.profile, block_tokens=self.block_tokens, events=False)


@dataclass(slots=True, eq=False)
class _Flight:
    """One request on its way: what it is, where it went, when its last token came."""

    request: TraceRequest
    instance: str | None
    error: str | None = None
    sequence: EngineSequence | None = None
    first: float | None = None
    last: float = 0.0
    finish: float | None = None
    gaps: "array[float]" = field(default_factory=lambda: array("d"))

    def served(self) -> Served:
        sequence = self.sequence
        return Served(
            id=self.request.id,
            arrival=self.request.arrival,
            instance=self.instance,
            ttft_seconds=None if self.first is None else self.first - self.request.arrival,
            itl_mean_seconds=sum(self.gaps) / len(self.gaps) if self.gaps else None,
            finish=self.finish,
            prompt_tokens=self.request.prompt_tokens,
            cached_tokens=sequence.cached_tokens if sequence else 0,
            output_tokens=sequence.generated if sequence else 0,
            error=self.error,
            gaps=self.gaps,
        )


class _Run:
    """The heap of step ends, and what happens at an arrival and at the end of a step."""

    def __init__(
        self,
        router: ModelRouter,
        engines: Sequence[_Engine],
        chain: Callable[[TraceRequest], PrefixChain],
        choices: Mapping[str, str],
        hearing_seconds: float,
    ) -> None:
        self._router = router
        self._engines = {engine.name: engine for engine in engines}
        self._chain = chain
        self._choices = choices
        self._hearing_seconds = hearing_seconds
        self._unheard: deque[tuple[float, Callable[[], None]]] = deque()
        self._ends: list[tuple[float, int, _Engine, Step]] = []
        self._order = count()
        self._flights: dict[str, _Flight] = {}

    def serve(self, requests: Sequence[TraceRequest]) -> list[Served]:
        """Run until the last request has ended."""
        arrivals = sorted(requests, key=lambda request: request.arrival)
        if len({request.id for request in arrivals}) != len(arrivals):
            raise BadInput("two requests have one id", field="id")
        ends = self._ends
        for request in arrivals:
            while ends and ends[0][0] <= request.arrival:
                self._end_step()
            self._arrive(request)
        while ends:
            self._end_step()
        return [self._flights[request.id].served() for request in requests]

    def _arrive(self, request: TraceRequest) -> None:
        now = request.arrival
        while self._unheard and self._unheard[0][0] <= now:
            self._unheard.popleft()[1]()
        asked = RouteRequest(
            request.id, self._chain(request), request.prompt_tokens, request.output_tokens, request.session
        )
        decision = self._router.decide(asked, now)
        chosen = self._choices.get(request.id, decision.chosen)
        flight = self._flights[request.id] = _Flight(request, chosen)
        if chosen is None:
            flight.error = decision.reason
            return
        self._router.dispatched(asked, chosen, now)
        engine = self._engines[chosen]
        sequence = EngineSequence(
            id=request.id,
            arrival=now,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.output_tokens,
            keys=trace_keys(request.blocks, request.prompt_tokens, engine.block_tokens),
        )
        try:
            engine.core.add(sequence)
        except FairleadError as error:
            flight.error = error.message
            self._router.abandoned(request.id, now)
            return
        flight.sequence = sequence
        if not engine.stepping:
            self._begin_step(engine, now)

    def _begin_step(self, engine: _Engine, now: float) -> None:
        step = engine.core.step(now)
        engine.stepping = step is not None
        if step is not None:
            heapq.heappush(self._ends, (now + step.seconds, next(self._order), engine, step))

    def _end_step(self) -> None:
        now, _, engine, step = heapq.heappop(self._ends)
        flights, router = self._flights, self._router
        heard = now + self._hearing_seconds
        for sequence in step.first:
            flight = flights[sequence.id]
            flight.first = now
            self._hear(heard, partial(router.first_token, sequence.id, heard))
        for sequence in step.tokens:
            flight = flights[sequence.id]
            if flight.last:
                flight.gaps.append(now - flight.last)
            flight.last = now
        for sequence, _ in step.finished:
            flights[sequence.id].finish = now
            ended = partial(
                router.finished,
                sequence.id,
                heard,
                prompt_tokens=sequence.prompt_tokens,
                cached_tokens=sequence.cached_tokens,
                output_tokens=sequence.generated,
            )
            self._hear(heard, ended)
        self._begin_step(engine, now)

    def _hear(self, at: float, tell: Callable[[], None]) -> None:
        """Steps end in order and the delay is always the same, so the oldest notice is due first."""
        if self._hearing_seconds:
            self._unheard.append((at, tell))
        else:
            tell()
