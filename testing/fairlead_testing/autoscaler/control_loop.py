"""Control loop."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.api.spec.autoscaling import Autoscaling
from fairlead.audit import AuditEvent
from fairlead.errors import Unavailable
from fairlead.fleet.model import SloTargets
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot
from fairlead_autoscaler.control_loop import ControlLoop, LoopOptions, LoopParts, MixSolver
from fairlead_autoscaler.core import (
    CoreState,
    MixRequest,
    ModelSpec,
    Observation,
    PoolPlan,
    PoolSpec,
    ReplicaState,
    ScalingPlan,
    ScalingSettings,
)
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.model_spec import scaled_model
from fairlead_autoscaler.target import ModelState, PoolState, Replica

KEY = "default/tiny"


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

    def loop(self, *, limits: Limits | None = None, mix_solver: MixSolver | None = None) -> ControlLoop:
        return ControlLoop(
            LoopParts(self, self, self, self.core, self.records.append, mix_solver, self.audited.append),
            LoopOptions(is_leader=lambda: self.leading),
            self.clock,
            limits or Limits(),
        )

    def state(self, *given: Any, **policy: Any) -> ModelState:
        """Returns a model with one pool."""
        return model_state(*given, **policy)

    def tick(self, loop: ControlLoop) -> None:
        """Runs one tick, 5 s after the last."""
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
