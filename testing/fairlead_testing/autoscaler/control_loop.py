"""Control loop.

One pool and what is seen of it, for tests of controllers.

Engines, requests and objectives of every kind, drawn: what a model of the autoscaler may be.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from fairlead.api.spec.autoscaling import Autoscaling
from fairlead.audit import AuditEvent
from fairlead.engine_profile import EngineProfile
from fairlead.errors import Unavailable
from fairlead.fleet.model import Role, SloTargets
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot
from fairlead_autoscaler.control_loop import ControlLoop, LoopOptions, LoopParts, MixSolver
from fairlead_autoscaler.core import (
    CoreState,
    GatewayTraffic,
    MixRequest,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingPlan,
    ScalingSettings,
)
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.model_spec import scaled_model
from fairlead_autoscaler.target import ModelState, PoolState, Replica

KEY = "default/tiny"

POOL = "main"
# A step of 10 ms, 1 ms for each sequence and 0.1 ms for each prompt token: easy numbers.
PROFILE = EngineProfile(
    "simple",
    prefill_token_seconds=1e-4,
    step_seconds=10e-3,
    sequence_seconds=9e-4,
    kv_tokens=100_000,
    max_sequences=100,
    step_tokens=1_000,
)

SMALL_ENGINE = EngineProfile(
    "S", 3.3e-4, step_seconds=28e-3, resident_token_seconds=2.2e-7, kv_tokens=40_000, max_sequences=64, step_tokens=512
)
LARGE_ENGINE = EngineProfile(
    "L", 9e-5, step_seconds=12e-3, resident_token_seconds=8.7e-8, kv_tokens=400_000, step_tokens=1_024
)

MISSES = st.sampled_from([0.5, 0.1, 0.05, 0.01, 0.001, 1e-4])


@dataclass
class StubCore:
    """A core that wants ``wants`` replicas and asks ``asks``, or fails."""

    model: ModelSpec
    settings: ScalingSettings
    wants: dict[str, int]
    state: CoreState = field(default_factory=CoreState)
    observations: list[Observation] = field(default_factory=list)
    fails: bool = False
    asks: dict[str, MixRequest] = field(default_factory=dict)

    def step(self, observation: Observation) -> ScalingPlan:
        self.observations.append(observation)
        if self.fails:
            raise ZeroDivisionError
        return ScalingPlan(
            {name: PoolPlan(replicas, "need", "because") for name, replicas in self.wants.items()}, self.asks
        )


@dataclass
class ControlLoopHarness:
    """The world, the scaler and the gateways in one."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(1_000.0))
    models: dict[str, ModelState] = field(default_factory=dict)
    unavailable: str | None = None
    refuses: str | None = None
    asked: list[tuple[str, str, int, tuple[str, ...]]] = field(default_factory=list)
    readings: GatewaySnapshot = field(default_factory=lambda: GatewaySnapshot((GatewayMetrics("gateway", {}, {}, {}),)))
    cores: list[StubCore] = field(default_factory=list)
    wants: dict[str, int] = field(default_factory=dict)
    records: list[TickRecord] = field(default_factory=list)
    audited: list[AuditEvent] = field(default_factory=list)
    leading: bool = True

    async def observe(self) -> Mapping[str, ModelState]:
        if self.unavailable is not None:
            raise Unavailable(self.unavailable)
        return dict(self.models)

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        if self.refuses is not None:
            raise Unavailable(self.refuses)
        self.asked.append((key, pool, replicas, tuple(leaving)))

    async def scrape(self, models: frozenset[str]) -> GatewaySnapshot:
        return self.readings

    def core(self, model: ModelSpec, settings: ScalingSettings) -> StubCore:
        made = StubCore(model, settings, self.wants)
        self.cores.append(made)
        return made

    def loop(self, *, mix_solver: MixSolver | None = None, **options: Any) -> ControlLoop:
        return ControlLoop(
            LoopParts(self, self, self, self.core, self.records.append, mix_solver, self.audited.append),
            LoopOptions(is_leader=lambda: self.leading, **options),
            self.clock,
            Limits(),
        )

    def state(self, *given: Any, **policy: Any) -> ModelState:
        return model_state(*given, **policy)

    def tick(self, loop: ControlLoop) -> None:
        self.clock.advance(5.0)
        asyncio.run(loop.tick())


def model_state(
    desired: int = 2, ready: int | None = None, *, least: int = 0, most: int = 9, **policy: Any
) -> ModelState:
    """Returns a model with one pool."""
    facts = PoolSpec("main", minimum=least, maximum=most)
    model = scaled_model(KEY, SloTargets(ttft_seconds=2.0), [facts], interval_seconds=5.0)
    there = tuple(
        Replica(f"main-{n}", ReplicaState.READY, 100.0 + n, 5.0, (f"main-{n}/1/0",))
        for n in range(desired if ready is None else ready)
    )
    return ModelState(model, Autoscaling(**({"mode": "Auto"} | policy)), {"main": PoolState(desired, there)})


def single_pool_model(minimum: int = 1, maximum: int = 60, role: Role = Role.SERVE) -> ModelSpec:
    facts = PoolSpec(name=POOL, role=role, minimum=minimum, maximum=maximum, profile=PROFILE)
    return ModelSpec(name="model", ttft_seconds=2.0, itl_seconds=0.05, pools=(facts,))


def ready_replica(
    number: int, running: float | None, waiting: float | None = 0.0, kv: float | None = 0.5
) -> ReplicaMetrics:
    """Returns a ready replica; None stands for values that are missing."""
    return ReplicaMetrics(f"engine-{number}", ReplicaState.READY, 600.0, running=running, waiting=waiting, kv_share=kv)


def pool_observation(
    replicas: Sequence[ReplicaMetrics] | None, *, desired: int | None = None, ready: int = 0, pending: int = 0
) -> PoolObservation:
    """Returns a pool of these ready replicas and ``pending`` starting ones.

    replicas: None if their metrics are missing; ``ready`` is their number then.
    """
    if replicas is None:
        return PoolObservation(ready + pending if desired is None else desired, ready, pending)
    starting = [ReplicaMetrics(f"starting-{number}", ReplicaState.PENDING, 30.0) for number in range(pending)]
    asked = len(replicas) + pending if desired is None else desired
    return PoolObservation(asked, len(replicas), pending, replicas=(*replicas, *starting))


def build_observation(
    now: float, pool: PoolObservation, *, arrivals: float | None = 0.0, held: float = 0.0
) -> Observation:
    """Returns an observation with prompts of 1,000 tokens.

    arrivals: None if no gateway answered.
    """
    gateway = None if arrivals is None else GatewayTraffic(arrivals, arrivals * 1_000.0, held)
    return Observation(now, gateway, {POOL: pool})


def _spread(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(0.0, 1.0).map(lambda share: least * (most / least) ** share)


PROFILES = st.builds(
    EngineProfile,
    name=st.just("drawn"),
    prefill_token_seconds=_spread(1e-6, 3e-3),
    step_seconds=_spread(1e-3, 0.3),
    sequence_seconds=_spread(1e-6, 1e-2),
    resident_token_seconds=_spread(1e-9, 1e-6),
    attention_seconds=st.just(0.0) | _spread(1e-12, 1e-8),
    kv_tokens=_spread(2e3, 5e6).map(round),
    max_sequences=_spread(1.0, 1_024.0).map(round),
    step_tokens=_spread(16.0, 16_384.0).map(round),
)
"""Engines from the fastest to the slowest anyone runs, some with hardly any memory."""
TTFT = st.none() | _spread(1e-3, 120.0)
ITL = st.none() | _spread(1e-3, 3.0)
"""Objectives in seconds: easy ones, tight ones, and such as no engine meets."""
OBJECTIVES = st.builds(LatencyTargets, ttft_seconds=TTFT, itl_seconds=ITL, allowed_miss_share=MISSES)
PROMPTS = _spread(1.0, 30_000.0)
OUTPUTS = _spread(1.0, 5_000.0)
MIXES = st.builds(
    MeanRequest,
    prompt_tokens=PROMPTS,
    output_tokens=OUTPUTS,
    cached_share=st.sampled_from([0.0, 0.0, 0.5, 0.95, 1.0]),
    prompt_variability=st.floats(0.0, 4.0),
)
"""Mean requests, from one token to a book."""
