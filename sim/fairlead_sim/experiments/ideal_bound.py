"""An upper bound for all routing: one cache under all engines, and exact knowledge of every queue.

Every engine reads and writes one memory of the fleet's size, which has each block once. A request
goes to the engine with the least queued prefill. Nothing is transferred and nothing is late, so
only the queues remain. No gateway could follow this policy, so it is not a preset.
"""

from collections.abc import Mapping, Sequence

from fairlead.engine_profile import EngineProfile
from fairlead_gateway.routing import InstanceLoad
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.sequence import EngineSequence
from fairlead_sim.fleet.router_front import SimulationContext
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest


class PooledCacheBound:
    """A router that sends each request to the engine with the least queued prefill.

    The prefill is in seconds, without what the shared cache has.
    """

    def __init__(self, names: Sequence[str], profile: EngineProfile, prompts: TracePromptCache) -> None:
        self._profile = profile
        self._prompts = prompts
        self._queued = dict.fromkeys(names, 0.0)
        self._sent: dict[str, tuple[str, float]] = {}
        self._simulation: SimulationContext | None = None

    def start(self, simulation: SimulationContext) -> None:
        self._simulation = simulation

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Chooses the engine with the least queued prefill, and adds the request's prefill.

        Returns the engine (the first of equal ones) and an empty reason.
        """
        del now
        assert self._simulation is not None
        core = next(iter(self._simulation.engine_cores.values()))
        keys = self._prompts.block_keys(request)
        hit = len(core.pool.match(keys, len(keys))) * core.block_tokens
        seconds = self._profile.prefill_time(request.prompt_tokens, min(hit, request.prompt_tokens - 1))
        name = min(self._queued, key=self._queued.__getitem__)
        self._queued[name] += seconds
        self._sent[request.id] = name, seconds
        return name, ""

    def on_first_token(self, request: str, now: float) -> None:
        self.on_lost(request, now)

    def on_lost(self, request: str, now: float) -> None:
        """Removes the prefill of the request from its queue."""
        del now
        name, seconds = self._sent.pop(request, ("", 0.0))
        if name:
            self._queued[name] = max(0.0, self._queued[name] - seconds)

    def on_rejected(self, request: str, now: float) -> None:
        self.on_lost(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self.on_lost(sequence.id, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Does nothing: the router reads the cache itself."""

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Adds new engines with an empty queue, and drops engines that left with their queues."""
        del now
        self._queued = {name: self._queued.get(name, 0.0) for name in live_engines}

    def set_unreachable(self, names: frozenset[str], now: float) -> None:
        """Does nothing: the bound reaches every engine."""

    def loads(self) -> Mapping[str, InstanceLoad]:
        """Returns an empty mapping: the bound has no gateway."""
        return {}
