"""A fleet engine as a replica of a ``Pool``: its gauges, counters and loss.

The simulation advances all engines together, and its gateway sends the requests.
"""

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_sim.autoscaling.fleet_plant.conversation_prompts import ConversationPrompts
from fairlead_sim.autoscaling.plant_engine import PlantEngine, StepTotals
from fairlead_sim.autoscaling.request_table import RequestTable
from fairlead_sim.engine.sequence import EngineSequence
from fairlead_sim.fleet.simulation import EngineObserver, FleetSimulation


class CacheCounters:
    """The prompt tokens of a run so far, and the part of them that was cached."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0


class FleetReplicaEngine(PlantEngine):
    """A plant engine that is an engine of a fleet simulation, while its replica serves.

    - next_step_at: when its last answer ended.
    - applied_slowdown: the slowdown that the simulation knows.
    """

    def __init__(
        self,
        name: str,
        profile: EngineProfile,
        requests: RequestTable,
        totals: StepTotals,
        simulation: FleetSimulation,
        prompts: ConversationPrompts,
    ) -> None:
        super().__init__(profile, Role.SERVE, requests, totals)
        self.name = name
        self.applied_slowdown = 1.0
        self._simulation = simulation
        self._prompts = prompts

    def add(self, request: int, now: float) -> None:
        """Sends a request to this engine, past the gateway's router."""
        self.requests.sent[request] = now
        self._simulation.arrive_at(self._prompts.take(request), self.name, now)

    def advance(self, until: float) -> None:
        """Advances the whole simulation."""
        self._simulation.run_until(until)

    def drop_abandoned(self, now: float) -> None:
        """Does nothing: the plant ends such requests in time."""

    def evict(self) -> list[int]:
        """Removes the engine. Returns no request: the simulation cuts or reroutes them."""
        if self._simulation.engine_core(self.name) is not None:
            self._simulation.lose_engine(self.name, self._simulation.now)
        return []

    def running(self) -> int:
        """Returns the sequences in the batch; one at least while the last step is not over."""
        core = self._simulation.engine_core(self.name)
        if core is None:
            return 0
        running = core.stats.running
        return running if running or not core.is_idle else int(self._simulation.is_engine_busy(self.name))

    def waiting(self) -> int:
        core = self._simulation.engine_core(self.name)
        return 0 if core is None else core.stats.waiting

    def kv_share(self) -> float:
        core = self._simulation.engine_core(self.name)
        return 0.0 if core is None else core.stats.kv_usage

    def load_tokens(self) -> int:
        core = self._simulation.engine_core(self.name)
        sequences = [] if core is None else core.sequences()
        return self.uncomputed_tokens() + sum([sequence.prompt_tokens + sequence.generated for sequence in sequences])

    def uncomputed_tokens(self) -> int:
        core = self._simulation.engine_core(self.name)
        sequences = [] if core is None else core.sequences()
        return sum([sequence.prompt_tokens - sequence.computed for sequence in sequences if not sequence.generated])


class ReplicaObserver(EngineObserver):
    """Writes what an engine does into its counters and the request table."""

    def __init__(self, engine: FleetReplicaEngine, caches: CacheCounters) -> None:
        self._engine = engine
        self._caches = caches

    def on_gaps(self, tokens: int, seconds: float) -> None:
        if tokens:
            totals = self._engine.totals
            totals.generated_tokens += tokens
            totals.add_gaps(tokens, seconds)

    def on_first_token(self, sequence: EngineSequence, now: float) -> None:
        engine, request = self._engine, int(sequence.id)
        totals, table, caches = engine.totals, engine.requests, self._caches
        totals.add_first_token(now - table.sent[request], sequence.prompt_tokens)
        totals.cached_tokens = (totals.cached_tokens or 0) + sequence.cached_tokens
        caches.prompt_tokens += sequence.prompt_tokens
        caches.cached_tokens += sequence.cached_tokens
        table.first[request] = now

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        engine = self._engine
        book, request = engine.requests, int(sequence.id)
        book.end[request] = now
        engine.totals.add_answer(now - book.first[request], book.output[request] - 1)
        engine.next_step_at = now
