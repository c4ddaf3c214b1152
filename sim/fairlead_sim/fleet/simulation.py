"""The fleet simulation: engines, requests in flight and one heap of events on a virtual clock.

No byte is sent and no clock is read, so equal arguments give equal results. Events of the same
moment are ordered: ends of steps first (by engine), then notices, then arrivals. A ``RouterFront``
chooses engines and receives what a gateway would receive, when it would receive it.

Steps that only decode are not simulated one by one. The simulation predicts their ends up to the
first step in which a sequence fills a block or ends, and takes them together. If the engine changes
before that (a request arrives, or the engine is lost), it takes the steps that have begun and
continues from there. All times equal those of single steps to the last bit; a property test
compares the two.

``run`` and ``run_sessions`` run all requests to their ends. A caller with its own
clock submits requests with ``arrive`` and advances the simulation with ``run_until``.

Why: ``RouterFront`` and the observer of an engine are base classes, since compiled calls through a
Protocol look up each method by name. Engines take millions of steps.
"""

import heapq
import random
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Final, Protocol, TypeAlias

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput, FairleadError
from fairlead.fleet.model import KvPullSource
from fairlead_sim.engine.block_pool import BlockPool, KvEvent
from fairlead_sim.engine.lower_tiers import LowerTier, TierOptions
from fairlead_sim.engine.scheduler import EngineCore, EngineStep
from fairlead_sim.engine.sequence import EngineSequence
from fairlead_sim.fleet.request import InflightRequest, RequestResult
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest

Action: TypeAlias = Callable[[float], None]
QUEUED: Final = ""
"""The choice of a router that keeps a request and sends it later."""

_STEP_END: Final = 0
_NOTICE: Final = 1
_ARRIVAL: Final = 2
_MAX_FORESEEN_STEPS: Final = 64
"""The number of predicted steps. Most runs are shorter, because a request arrives."""
ENGINE_LOST: Final = "the engine was lost during the answer"
CLIENT_GONE: Final = "the client gave up before the first token"


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """The engines of one fleet.

    - engine_names: names of the engines at the start, for the router; homes depend on them.
    - profiles: profiles of single engines by name; the others have ``profile``.
    - publishes_kv_events: the router receives what engines store and evict.
    - feedback_delay_seconds: delay of first tokens and ends at the router.
    - reserve_tokens: output tokens that must fit at admission. None: all. 0: none, so that engines
      preempt.
    - is_pooled: one memory for all engines (``experiments.ideal_bound``).
    - lower_tiers: slower memory of each engine, or of all, the fastest first.
    - pull: how engines copy KV out of each other's caches; None: they do not.
    - keeps_results: False forgets a request when it ends, for simulations of days.
    """

    engine_names: Sequence[str]
    profile: EngineProfile
    block_tokens: int
    profiles: Mapping[str, EngineProfile] = field(default_factory=dict)
    publishes_kv_events: bool = False
    feedback_delay_seconds: float = 0.0
    reserve_tokens: int | None = None
    is_pooled: bool = False
    lower_tiers: Sequence[TierOptions] = ()
    pull: KvPullSource | None = None
    keeps_results: bool = True


class SimulationContext(ABC):
    """The fleet simulation, as its router sees it.

    Why: a base class, since compiled calls through a Protocol look up each method by name.
    """

    @property
    @abstractmethod
    def engine_cores(self) -> Mapping[str, EngineCore]:
        """Returns the present engines by name."""

    @abstractmethod
    def schedule(self, at: float, act: Action) -> None:
        """Calls ``act(at)`` at a simulated time, unless all requests have ended before."""

    @abstractmethod
    def send_queued_request(self, request_id: str, instance: str, now: float) -> None:
        """Sends a queued request.

        If the engine is absent or rejects the request, the router is notified and the request ends
        with an error.
        """

    @abstractmethod
    def refuse(self, request_id: str, reason: str, now: float) -> None:
        """Ends a queued request with an error."""

    @abstractmethod
    def interrupt_request(self, request_id: str, now: float) -> None:
        """Routes a request without a first token again; cuts an answer in progress.

        The router must have dropped the request.
        """

    @abstractmethod
    def pull_prefix(self, request_id: str, source: str) -> None:
        """Lets the engine of a request copy what ``source`` has cached of its prompt."""

    @abstractmethod
    def known_request(self, request_id: str) -> InflightRequest:
        """Returns a request that has arrived."""

    @abstractmethod
    def all_requests(self) -> Iterator[InflightRequest]:
        """Returns all requests that have arrived, also the ended ones."""


class RouterFront(Protocol):
    """The router of a fleet simulation. Times are simulated seconds.

    A router receives what a gateway receives, when the gateway receives it.
    """

    def start(self, simulation: SimulationContext) -> None:
        """Starts the router; ``simulation.schedule`` works from now on."""

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Chooses an engine and counts the request as sent.

        Returns ``QUEUED`` to send the request later. Returns None and the reason if no engine is
        available.
        """

    def on_rejected(self, request: str, now: float) -> None:
        """Notes that the engine did not take the request."""

    def on_first_token(self, request: str, now: float) -> None:
        """Notes the first token of a request."""

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        """Notes a complete answer."""

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Notes what an engine stored and evicted in the step that ends now, if the fleet publishes
        events.
        """

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Replaces the set of engines that take requests."""

    def on_lost(self, request: str, now: float) -> None:
        """Notes that the engine of a request was lost.

        A request without a first token is routed again right after.
        """


class EngineObserver:
    """Receives what an engine's clients receive. These methods ignore it.

    Predicted steps are reported when they are taken (``FleetSimulation.settle``).
    """

    def on_gaps(self, tokens: int, seconds: float) -> None:
        """Notes tokens, each of which came ``seconds`` after the one before of its answer."""

    def on_first_token(self, sequence: EngineSequence, now: float) -> None:
        """Notes the first token of an answer."""

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        """Notes the last token of an answer."""


class _FleetEngine:
    """One engine of the fleet.

    - step_ends: the ends of all steps; the last ``foreseen`` of them have not been taken yet.
    - version: heap entries of an older version are void.
    - stretch_began: when the first predicted step began.
    """

    __slots__ = (
        "core",
        "foreseen",
        "index",
        "is_stepping",
        "name",
        "observer",
        "step_ends",
        "stretch_began",
        "version",
    )

    def __init__(self, name: str, index: int, core: EngineCore, observer: EngineObserver | None) -> None:
        self.name = name
        self.index = index
        self.core = core
        self.step_ends: array[float] = array("d")
        self.foreseen = 0
        self.is_stepping = False
        self.version = 0
        self.observer = observer
        self.stretch_began = 0.0


class FleetSimulation(SimulationContext):
    """A simulation of one fleet behind one router.

    - prompts: block keys, which several simulations may share.
    - on_progress: called for each request at its first token, and at its end if that is an error.
    - now: the time up to which ``run_until`` has simulated.
    """

    def __init__(
        self,
        router: RouterFront,
        options: FleetOptions,
        *,
        prompts: TracePromptCache | None = None,
        on_progress: Callable[[InflightRequest, float], None] | None = None,
    ) -> None:
        self._router = router
        self._options = options
        self._publishes_kv_events = options.publishes_kv_events
        self._feedback_delay_seconds = options.feedback_delay_seconds
        self._reserve_tokens = options.reserve_tokens
        self._keeps_results = options.keeps_results
        self._prompts = prompts or TracePromptCache(options.block_tokens)
        self._on_progress = on_progress
        blocks = options.profile.kv_tokens // options.block_tokens * len(options.engine_names)
        self._pool = BlockPool(blocks, options.block_tokens, events=False) if options.is_pooled else None
        self._shared_tiers = {
            tier: LowerTier(tier, options.block_tokens) for tier in options.lower_tiers if tier.is_shared
        }
        self._engines: dict[str, _FleetEngine] = {}
        self._draining: set[str] = set()
        self._engine_indexes = count()
        for name in options.engine_names:
            self._add_engine(name)
        self._event_heap: list[tuple[float, int, int, int, Action]] = []
        self._order = count()
        self._requests: dict[str, InflightRequest] = {}
        self._open_requests = 0
        self._pull_sources: dict[str, str] = {}
        self._on_ended: dict[str, Action] = {}
        self.now = 0.0

    @property
    def engine_cores(self) -> Mapping[str, EngineCore]:
        return {name: engine.core for name, engine in self._engines.items()}

    @property
    def open_requests(self) -> int:
        return self._open_requests

    def schedule(self, at: float, act: Action) -> None:
        heapq.heappush(self._event_heap, (at, _NOTICE, next(self._order), 0, act))

    def run(self, requests: Sequence[TraceRequest]) -> list[RequestResult]:
        """Runs an open loop: requests arrive at their times, whatever the engines do.

        Returns the results in the order given.
        """
        _check_ids_unique(requests)
        self._open_requests = len(requests)
        self._run_events(sorted(requests, key=_arrival))
        return [self._requests[request.id].result() for request in requests]

    def run_sessions(
        self, sessions: Sequence[Sequence[TraceRequest]], *, concurrency: int, round_trip_seconds: float, seed: int
    ) -> list[RequestResult]:
        """Runs a closed loop of ``concurrency`` sessions; the arrival times of the requests are
        ignored.

        round_trip_seconds: mean pause between an answer and the next turn, drawn from 0.5 to 1.5
        times it.
        """
        _check_ids_unique([request for session in sessions for request in session])
        random_, waiting = random.Random(seed), deque(sessions)

        def turn(session: Sequence[TraceRequest], index: int, now: float) -> None:
            if index == len(session):
                if not waiting:
                    return
                session, index = waiting.popleft(), 0
            at = now + round_trip_seconds * random_.uniform(0.5, 1.5)
            self._open_requests += 1
            self._schedule_turn(session[index], at, partial(turn, session, index + 1))

        for _ in range(min(concurrency, len(sessions))):
            turn((), 0, 0.0)
        self._run_events([])
        return [self._requests[request.id].result() for session in sessions for request in session]

    def _schedule_turn(self, request: TraceRequest, at: float, on_ended: Action) -> None:
        """Schedules a request of a closed loop; ``on_ended`` is called at its end."""
        self._on_ended[request.id] = on_ended
        arrive: Action = partial(self._arrive, replace(request, arrival=at))
        heapq.heappush(self._event_heap, (at, _ARRIVAL, next(self._order), 0, arrive))

    # --- a caller with its own clock ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._router.start(self)

    def arrive(self, request: TraceRequest, now: float) -> None:
        self._open_requests += 1
        self._arrive(request, now)

    def arrive_at(self, request: TraceRequest, instance: str, now: float) -> None:
        """Takes a request for one engine, past the router."""
        self._open_requests += 1
        inflight = self._requests[request.id] = InflightRequest(request)
        inflight.instance = instance
        self._submit(inflight, now)

    def run_until(self, until: float) -> None:
        """Simulates all events up to ``until``."""
        heap = self._event_heap
        while heap and heap[0][0] <= until:
            now, _, _, _, act = heapq.heappop(heap)
            act(now)
        self.now = until

    def settle(self, now: float) -> None:
        for engine in self._engines.values():
            self._take_begun_steps(engine, now)

    def abandon_request(self, request_id: str, now: float) -> bool:
        """Ends a request whose client gave up before the first token.

        Returns False if the request has a first token or has ended.
        """
        inflight = self._requests.get(request_id)
        if inflight is None or inflight.is_ended or inflight.first_token_at is not None:
            return False
        self._router.on_lost(request_id, now)
        self._abort_on_engine(inflight, now)
        self._end(inflight, now, CLIENT_GONE)
        return True

    def engine_core(self, name: str) -> EngineCore | None:
        """Returns a present engine; None if it is absent."""
        engine = self._engines.get(name)
        return None if engine is None else engine.core

    def is_engine_busy(self, name: str) -> bool:
        return self._engines[name].is_stepping

    # --- what a front or a script does ------------------------------------------------------------------------------------

    def send_queued_request(self, request_id: str, instance: str, now: float) -> None:
        inflight = self._requests[request_id]
        inflight.instance = instance
        self._submit(inflight, now)

    def pull_prefix(self, request_id: str, source: str) -> None:
        self._pull_sources[request_id] = source

    def refuse(self, request_id: str, reason: str, now: float) -> None:
        self._end(self._requests[request_id], now, reason)

    def interrupt_request(self, request_id: str, now: float) -> None:
        inflight = self._requests[request_id]
        self._abort_on_engine(inflight, now)
        self._on_lost(inflight, now)

    def lose_engine(self, name: str, now: float) -> None:
        """Removes an engine and its requests.

        Requests without a first token arrive again; answers in progress are cut.
        """
        engine = self._engines.pop(name)
        self._draining.discard(name)
        self._take_begun_steps(engine, now)
        engine.version += 1
        self._publish_membership(now)
        # Not the core's sequences: one with its last token in the present step has left the core.
        for inflight in [
            candidate for candidate in self._requests.values() if candidate.instance == name and not candidate.is_ended
        ]:
            self._router.on_lost(inflight.request.id, now)
            self._on_lost(inflight, now)

    def add_engine(self, name: str, now: float, observer: EngineObserver | None = None) -> None:
        """Adds an engine with an empty cache."""
        self._add_engine(name, observer)
        self._publish_membership(now)

    def cordon_engine(self, name: str, now: float) -> None:
        self._draining.add(name)
        self._publish_membership(now)

    def uncordon_engine(self, name: str, now: float) -> None:
        self._draining.discard(name)
        self._publish_membership(now)

    def remove_engine(self, name: str) -> None:
        """Removes a cordoned engine that has no request left."""
        if name not in self._draining or self._engines[name].is_stepping:
            raise BadInput(f"engine {name} has requests or takes new ones", field="name")
        self._draining.discard(name)
        del self._engines[name]

    def slow_engine(self, name: str, factor: float, now: float) -> None:
        """Makes further steps of the engine take ``factor`` times as long as by its profile."""
        engine = self._engines[name]
        self._take_begun_steps(engine, now)
        engine.core.profile = self._profile_of(name).sped_up(1.0 / factor)

    def reset_engine(self, name: str, now: float) -> None:
        """Empties the caches of an engine: another process is behind its address.

        Its running requests are computed again, from their prompts on.
        """
        engine = self._engines[name]
        self._take_begun_steps(engine, now)
        for sequence in engine.core.sequences():
            self._requests[sequence.id].end_span(bisect_right(engine.step_ends, now))
        engine.core.reset_prefix_cache(preempt_running=True)
        engine.core.clear_lower_tiers()

    def known_request(self, request_id: str) -> InflightRequest:
        return self._requests[request_id]

    def all_requests(self) -> Iterator[InflightRequest]:
        return iter(self._requests.values())

    # --- what happens ---------------------------------------------------------------------------------------------------

    def _publish_membership(self, now: float) -> None:
        self._router.on_membership([name for name in self._engines if name not in self._draining], now)

    def _abort_on_engine(self, inflight: InflightRequest, now: float) -> None:
        """Drops a request from its engine, if it is on one."""
        engine = None if inflight.instance is None else self._engines.get(inflight.instance)
        if engine is not None and inflight.sequence is not None:
            self._take_begun_steps(engine, now)
            engine.core.abort(inflight.request.id)

    def _add_engine(self, name: str, observer: EngineObserver | None = None) -> None:
        profile = self._profile_of(name)
        core = EngineCore(
            profile,
            block_tokens=self._options.block_tokens,
            events=self._publishes_kv_events,
            pool=self._pool,
        )
        core.lower_tiers = [
            self._shared_tiers.get(tier) or LowerTier(tier, self._options.block_tokens)
            for tier in self._options.lower_tiers
        ]
        self._engines[name] = _FleetEngine(name, next(self._engine_indexes), core, observer)

    def _profile_of(self, name: str) -> EngineProfile:
        return self._options.profiles.get(name, self._options.profile)

    def _run_events(self, requests: Sequence[TraceRequest]) -> None:
        self._router.start(self)
        heap, arrived, total = self._event_heap, 0, len(requests)
        while self._open_requests:
            if arrived < total:
                request = requests[arrived]
                at = request.arrival
                if not heap or heap[0][0] > at or (heap[0][0] == at and heap[0][1] == _ARRIVAL):
                    arrived += 1
                    self._arrive(request, at)
                    continue
            now, _, _, _, act = heapq.heappop(heap)
            act(now)

    def _arrive(self, request: TraceRequest, now: float) -> None:
        inflight = self._requests.get(request.id)
        if inflight is None:
            inflight = self._requests[request.id] = InflightRequest(request)
        chosen, reason = self._router.route(request, now)
        inflight.instance = chosen
        if chosen is None:
            self._end(inflight, now, reason)
        elif chosen != QUEUED:
            self._submit(inflight, now)

    def _submit(self, inflight: InflightRequest, now: float) -> None:
        request, instance = inflight.request, inflight.instance
        engine = None if instance is None else self._engines.get(instance)
        if engine is None:
            self._router.on_rejected(request.id, now)
            self._end(inflight, now, f"{instance} is not there")
            return
        sequence = EngineSequence(
            id=request.id,
            arrival=now,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.output_tokens,
            keys=self._prompts.block_keys(request),
            reserve_tokens=self._reserve_tokens,
        )
        source = self._pull_sources.pop(request.id, None)
        if source is not None:
            self._offer_peer_blocks(sequence, source)
        if engine.foreseen:
            self._take_begun_steps(engine, now)
        try:
            engine.core.add(sequence)
        except FairleadError as error:
            self._router.on_rejected(request.id, now)
            self._end(inflight, now, error.message)
            return
        inflight.sequence = sequence
        inflight.step_ends = engine.step_ends
        if not engine.is_stepping:
            self._begin_step(engine, now)

    def _offer_peer_blocks(self, sequence: EngineSequence, source: str) -> None:
        peer, pull = self._engines.get(source), self._options.pull
        if peer is not None and pull is not None:
            sequence.peer_blocks = len(peer.core.pool.match(sequence.keys, len(sequence.keys)))
            sequence.pull = pull

    def _begin_step(self, engine: _FleetEngine, now: float) -> None:
        core = engine.core
        if not self._keeps_results:
            del engine.step_ends[:]
        engine.stretch_began = now
        steps = core.steady_steps()
        if steps:
            steps = min(steps, _MAX_FORESEEN_STEPS)
            engine.foreseen = steps
            self._schedule_step_end(
                engine, core.predict_step_ends(now, steps, engine.step_ends), partial(self._end_stretch, engine)
            )
            return
        step = core.step(now)
        engine.is_stepping = step is not None
        if step is not None:
            end = now + step.seconds
            engine.step_ends.append(end)
            self._schedule_step_end(engine, end, partial(self._end_step, engine, step))

    def _schedule_step_end(self, engine: _FleetEngine, at: float, act: Callable[[int, float], None]) -> None:
        engine.version += 1
        ended: Action = partial(act, engine.version)
        heapq.heappush(self._event_heap, (at, _STEP_END, engine.index, engine.version, ended))

    def _end_stretch(self, engine: _FleetEngine, version: int, now: float) -> None:
        if version != engine.version:
            return
        if engine.foreseen:
            self._advance(engine, engine.foreseen, len(engine.step_ends) - engine.foreseen)
            engine.foreseen = 0
        self._begin_step(engine, now)

    def _take_begun_steps(self, engine: _FleetEngine, now: float) -> None:
        """Takes the predicted steps that have begun, and drops the others.

        The engine continues when the last step ends.
        """
        if not engine.foreseen:
            return
        ends = engine.step_ends
        first = len(ends) - engine.foreseen
        begun = min(bisect_right(ends, now, first) + 1, len(ends))
        self._advance(engine, begun - first, first)
        engine.foreseen = 0
        del ends[begun:]
        self._schedule_step_end(engine, ends[-1], partial(self._end_stretch, engine))

    def _advance(self, engine: _FleetEngine, steps: int, first: int) -> None:
        """Takes predicted steps; the first of them ends at ``step_ends[first]``."""
        observer = engine.observer
        if observer is not None:
            sequences, began = engine.core.decoding_count, engine.stretch_began
            for ended in engine.step_ends[first : first + steps]:
                observer.on_gaps(sequences, ended - began)
                began = ended
        engine.core.advance(steps)

    def _end_step(self, engine: _FleetEngine, step: EngineStep, version: int, now: float) -> None:
        if version != engine.version:
            return
        requests, router, observer = self._requests, self._router, engine.observer
        index = len(engine.step_ends) - 1
        if self._publishes_kv_events and step.events:
            router.on_kv_events(engine.name, step.events, now)
        if observer is not None:
            observer.on_gaps(len(step.tokens) - len(step.decode_starts), step.seconds)
        for sequence in step.preempted:
            inflight = requests.get(sequence.id)
            if inflight is not None:
                inflight.end_span(index)
        for sequence in step.decode_starts:
            inflight = requests.get(sequence.id)
            if inflight is not None and inflight.is_current(sequence):
                inflight.begin_span(index)
        for sequence in step.first_tokens:
            inflight = requests.get(sequence.id)
            if inflight is not None and inflight.is_current(sequence):
                inflight.first_token_at = now
                if observer is not None:
                    observer.on_first_token(sequence, now)
                if self._on_progress is not None:
                    self._on_progress(inflight, now)
                self._notify(partial(router.on_first_token, sequence.id), now)
        for sequence, _ in step.finished:
            inflight = requests.get(sequence.id)
            if inflight is None or not inflight.is_current(sequence):
                continue
            inflight.end_span(index + 1)
            if observer is not None:
                observer.on_finished(sequence, now)
            self._notify(partial(router.on_finished, sequence), now)
            self._end(inflight, now, None)
        self._begin_step(engine, now)

    def _on_lost(self, inflight: InflightRequest, now: float) -> None:
        """Reroutes or cuts a request whose engine or gateway was lost."""
        if inflight.first_token_at is None:
            inflight.sequence = None
            inflight.retries += 1
            self._arrive(inflight.request, now)
        else:
            inflight.end_span(bisect_right(inflight.step_ends, now))
            self._end(inflight, now, ENGINE_LOST)

    def _end(self, inflight: InflightRequest, now: float, error: str | None) -> None:
        inflight.error = error
        inflight.is_ended = True
        if error is None:
            inflight.finish = now
        elif self._on_progress is not None:
            self._on_progress(inflight, now)
        self._open_requests -= 1
        if not self._keeps_results:
            del self._requests[inflight.request.id]
        after = self._on_ended.pop(inflight.request.id, None)
        if after is not None:
            after(now)

    def _notify(self, callback: Action, now: float) -> None:
        if self._feedback_delay_seconds:
            self.schedule(now + self._feedback_delay_seconds, callback)
        else:
            callback(now)


def _arrival(request: TraceRequest) -> float:
    return request.arrival


def _check_ids_unique(requests: Sequence[TraceRequest]) -> None:
    if len({request.id for request in requests}) != len(requests):
        raise BadInput("two requests have the same id", field="id")
