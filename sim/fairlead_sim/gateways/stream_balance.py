"""A simulated gateway that moves running streams between engines, by a rule.

Every ``interval_seconds`` the rule gets the streams of all engines, and its moves begin at once.
Forecasts come from the answers that have ended, as in the gateway. KV memory and queues are those
of the engines themselves; a live gateway would know them by its own requests and by metrics.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from fairlead.fleet.model import KvPullSource
from fairlead_gateway.admission.defragmentation import MemoryWait
from fairlead_gateway.admission.output_lengths import OutputForecast, OutputLengths
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence, SequenceState
from fairlead_sim.fleet.simulation import SimulationContext
from fairlead_sim.gateways.move_planner import (
    REST_SECONDS,
    InstanceStreams,
    MovePlan,
    RecentMoves,
    StreamLoad,
    plan_moves,
)
from fairlead_sim.gateways.single_gateway import SingleGateway
from fairlead_sim.workload.traces import TraceRequest

MoveRule: TypeAlias = Callable[[Sequence[InstanceStreams], RecentMoves, MemoryWait], MovePlan]
MOVE_SECONDS: Final = 0.25
"""Interval of plans."""


@dataclass(frozen=True, slots=True)
class BalanceOptions:
    """The rule of moves, and what it needs.

    - rule: makes the moves from the streams of all engines.
    - tiers: the tier of each tenant; 0, the highest, without an entry.
    - only_drains: the rule runs while an engine drains.
    - pull: how moved streams get their KV; None: it is computed again.
    """

    rule: MoveRule = plan_moves
    interval_seconds: float = MOVE_SECONDS
    tiers: Mapping[str, int] = field(default_factory=dict)
    only_drains: bool = False
    pull: KvPullSource | None = None


class BalancedGateway:
    """A router of a fleet simulation that forwards all to a gateway, and moves its streams.

    - moves, moved_tokens: of streams, and of requests that had not begun; the tokens are those of
      prompt and answer, cached ones included.
    """

    def __init__(self, gateway: SingleGateway, options: BalanceOptions) -> None:
        self._gateway = gateway
        self._options = options
        self._lengths = OutputLengths(max_classes=64)
        self._forecast = OutputForecast(self._lengths)
        self._simulation: SimulationContext | None = None
        self._live: frozenset[str] = frozenset()
        self._begun: deque[tuple[float, str]] = deque()
        self._moved_at: dict[str, float] = {}
        self._inflight: set[str] = set()
        self._broken: deque[float] = deque()
        self.moves = 0
        self.moved_tokens = 0

    def start(self, simulation: SimulationContext) -> None:
        self._simulation = simulation
        self._gateway.start(simulation)
        self._live = frozenset(simulation.engine_cores)
        simulation.schedule(self._options.interval_seconds, self._tick)

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        return self._gateway.route(request, now)

    def on_rejected(self, request: str, now: float) -> None:
        self._gateway.on_rejected(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        self._inflight.discard(request)
        self._gateway.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self._inflight.discard(sequence.id)
        self._lengths.learn("", sequence.prompt_tokens, sequence.generated, now)
        self._gateway.on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        self._gateway.on_kv_events(instance, events, now)

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        self._live = frozenset(live_engines)
        self._gateway.on_membership(live_engines, now)

    def on_lost(self, request: str, now: float) -> None:
        self._broken.append(now)
        self._inflight.discard(request)
        self._gateway.on_lost(request, now)

    def _tick(self, now: float) -> None:
        simulation = self._simulation
        assert simulation is not None
        simulation.schedule(now + self._options.interval_seconds, self._tick)
        while self._begun and self._begun[0][0] <= now - 1.0:
            self._begun.popleft()
        while self._broken and self._broken[0] <= now - REST_SECONDS:
            self._broken.popleft()
        if self._options.only_drains and self._live.issuperset(simulation.engine_cores):
            return
        recent = RecentMoves(len(self._inflight), len(self._begun), len(self._broken))
        instances = [self._streams(name, core, now) for name, core in simulation.engine_cores.items()]
        queued = self._gateway.queued_requests(now)
        for move in self._options.rule(instances, recent, queued).moves:
            if simulation.move_request(move.stream, move.destination, now):
                inflight = simulation.known_request(move.stream)
                self._gateway.on_moved(move.stream, move.destination, now)
                self._begun.append((now, move.stream))
                self._moved_at[move.stream] = now
                self._inflight.add(move.stream)
                self.moves += 1
                self.moved_tokens += inflight.request.prompt_tokens + inflight.received_tokens

    def _streams(self, name: str, core: EngineCore, now: float) -> InstanceStreams:
        running: list[StreamLoad] = []
        waiting: list[StreamLoad] = []
        for sequence in core.sequences():
            (waiting if sequence.state is SequenceState.WAITING else running).append(self._stream(sequence, now))
        kv_tokens = core.pool.blocks * core.block_tokens
        is_ready, pull = name in self._live, self._options.pull
        return InstanceStreams(name, core.profile, kv_tokens, running, waiting, is_ready, pull)

    def _stream(self, sequence: EngineSequence, now: float) -> StreamLoad:
        simulation = self._simulation
        assert simulation is not None
        inflight = simulation.known_request(sequence.id)
        forecast = self._forecast.expected_remaining("", sequence.prompt_tokens, sequence.generated, now)
        moved_at = self._moved_at.get(sequence.id)
        is_waiting = sequence.state is SequenceState.WAITING
        return StreamLoad(
            sequence.id,
            sequence.prompt_tokens + sequence.generated,
            DEFAULT_OUTPUT_TOKENS if forecast is None else forecast,
            self._options.tiers.get(inflight.request.tenant or "", 0),
            is_movable=sequence.id not in self._inflight and (is_waiting or inflight.first_token_at is not None),
            moves=inflight.moves,
            seconds_since_move=None if moved_at is None else now - moved_at,
        )
