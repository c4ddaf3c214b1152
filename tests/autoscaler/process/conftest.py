"""A made-up world for the loop: models, a scaler that notes what it is asked for, gateways, a core that does as it is told."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fairlead.api import Autoscaling
from fairlead.clock import ManualClock
from fairlead.errors import Unavailable
from fairlead.fleet import Objectives
from fairlead.limits import Limits
from fairlead_autoscaler.loop import Loop
from fairlead_autoscaler.recording import Look
from fairlead_autoscaler.scaling import (
    MixAsked,
    Observation,
    Plan,
    PoolFacts,
    PoolPlan,
    ReplicaState,
    ScaledModel,
    ScalingSettings,
    State,
)
from fairlead_autoscaler.seen import Readings, Told, scaled_model
from fairlead_autoscaler.world import ModelState, PoolState, Replica

KEY = "default/tiny"


@dataclass
class Standin:
    """A core that wants ``wants`` replicas and asks ``asks``, or fails."""

    model: ScaledModel
    settings: ScalingSettings
    wants: dict[str, int]
    state: State = field(default_factory=State)
    seen: list[Observation] = field(default_factory=list)
    fails: bool = False
    asks: dict[str, MixAsked] = field(default_factory=dict)

    def step(self, seen: Observation) -> Plan:
        self.seen.append(seen)
        if self.fails:
            raise ZeroDivisionError
        return Plan({name: PoolPlan(replicas, "need", "because") for name, replicas in self.wants.items()}, self.asks)


@dataclass
class Made:
    """The world, the scaler and the gateways in one."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(1_000.0))
    models: dict[str, ModelState] = field(default_factory=dict)
    away: str | None = None
    refuses: str | None = None
    asked: list[tuple[str, str, int, tuple[str, ...]]] = field(default_factory=list)
    readings: Readings = field(default_factory=lambda: Readings((Told("gateway", {}, {}, {}),)))
    cores: list[Standin] = field(default_factory=list)
    wants: dict[str, int] = field(default_factory=dict)
    kept: list[Look] = field(default_factory=list)
    leading: bool = True

    async def look(self) -> Mapping[str, ModelState]:
        if self.away is not None:
            raise Unavailable(self.away)
        return dict(self.models)

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        if self.refuses is not None:
            raise Unavailable(self.refuses)
        self.asked.append((key, pool, replicas, tuple(leaving)))

    async def read(self, models: frozenset[str]) -> Readings:
        return self.readings

    def core(self, model: ScaledModel, settings: ScalingSettings) -> Standin:
        made = Standin(model, settings, self.wants)
        self.cores.append(made)
        return made

    def loop(self, *, limits: Limits | None = None, **more: Any) -> Loop:
        return Loop(
            self,
            self,
            self,
            self.core,
            clock=self.clock,
            limits=limits or Limits(),
            keep=self.kept.append,
            leads=lambda: self.leading,
            **more,
        )

    def state(self, *given: Any, **policy: Any) -> ModelState:
        """A model with one pool."""
        return model_state(*given, **policy)

    def tick(self, loop: Loop) -> None:
        """One tick, 5 s after the last."""
        self.clock.advance(5.0)
        asyncio.run(loop.tick())


def model_state(
    desired: int = 2, ready: int | None = None, *, least: int = 0, most: int = 9, **policy: Any
) -> ModelState:
    """A model with one pool."""
    facts = PoolFacts("main", minimum=least, maximum=most)
    model = scaled_model(KEY, Objectives(ttft_seconds=2.0), [facts], interval_seconds=5.0)
    there = tuple(
        Replica(f"main-{n}", ReplicaState.READY, 100.0 + n, 5.0, (f"main-{n}/1/0",))
        for n in range(desired if ready is None else ready)
    )
    return ModelState(model, Autoscaling(**({"mode": "Auto"} | policy)), {"main": PoolState(desired, there)})


@pytest.fixture
def made() -> Made:
    return Made(models={KEY: model_state()})
