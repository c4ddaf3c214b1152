"""What no fleet can be: engines over one cache, as large as all of theirs, and a router that sees every queue as it is.

A bound to hold routing against. Every engine finds every block and writes into the same memory, each block is there once, and a
request goes where the least prefill is queued. Nothing travels and nothing is late, so what is left is the queue itself. The bound
is that of the study behind ``docs/decisions/0031``; it is not a preset, since no gateway could follow it.
"""

from collections.abc import Mapping, Sequence

from fairlead.engine_profile import EngineProfile
from fairlead_gateway.routing import InstanceLoad
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.sequence import EngineSequence
from fairlead_sim.fleet.simulation import FleetSimulation
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest


class PooledCacheBound:
    """Sends each request where the least prefill waits, in seconds, with what the one cache holds of it left out."""

    def __init__(self, names: Sequence[str], profile: EngineProfile, prompts: TracePromptCache) -> None:
        self._profile = profile
        self._prompts = prompts
        self._queued = dict.fromkeys(names, 0.0)
        self._sent: dict[str, tuple[str, float]] = {}
        self._simulation: FleetSimulation | None = None

    def start(self, simulation: FleetSimulation) -> None:
        """From now on its engines' cache can be looked into."""
        self._simulation = simulation

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """The engine with the least prefill before it, the first of equal ones."""
        del now
        assert self._simulation is not None
        core = next(iter(self._simulation.cores.values()))
        keys = self._prompts.block_keys(request)
        hit = len(core.pool.match(keys, len(keys))) * core.block_tokens
        seconds = self._profile.prefill_time(request.prompt_tokens, min(hit, request.prompt_tokens - 1))
        name = min(self._queued, key=self._queued.__getitem__)
        self._queued[name] += seconds
        self._sent[request.id] = name, seconds
        return name, ""

    def on_first_token(self, request: str, now: float) -> None:
        """Its prefill is done."""
        self.on_lost(request, now)

    def on_lost(self, request: str, now: float) -> None:
        """Nothing of it is queued any more."""
        del now
        name, seconds = self._sent.pop(request, ("", 0.0))
        if name:
            self._queued[name] = max(0.0, self._queued[name] - seconds)

    def on_rejected(self, request: str, now: float) -> None:
        """Likewise."""
        self.on_lost(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        """Likewise, of one whose first token was its last."""
        self.on_lost(sequence.id, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """It looks by itself."""

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Engines come with nothing queued, and leave with what they had."""
        del now
        self._queued = {name: self._queued.get(name, 0.0) for name in live_engines}

    def set_unreachable(self, names: frozenset[str], now: float) -> None:
        """It is no gateway, and reaches all."""

    def loads(self) -> Mapping[str, InstanceLoad]:
        """Nothing that a gateway would count."""
        return {}
