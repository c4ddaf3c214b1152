"""A gateway before simulated engines whose model has LoRA adapters."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.runtime.engine_factory import EngineResources
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.server.process import RunningEngine, start_engine
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.simulated.event_loop import running_clock


@dataclass
class Setting:
    """A gateway and its engines."""

    running: RunningGateway
    engines: list[RunningEngine]

    def loaded(self) -> list[set[str]]:
        """Returns the names of the adapters of each engine."""
        return [{one.name for one in engine.engine.models.adapters} for engine in self.engines]

    async def restart(self, number: int, settings: EngineSettings) -> None:
        """Starts a stopped engine again, at its port and without adapters."""
        port = int(self.engines[number].url.rpartition(":")[2])
        self.engines[number] = await start_engine(settings, resources(number), host="127.0.0.1", port=port)


def resources(number: int) -> EngineResources:
    """Returns what the engine of this number needs, with a random seed of its own."""
    return EngineResources(running_clock(), random.Random(number), Tokenizer())


def with_adapters(fleet: Fleet, names: Sequence[str], slots: int) -> Fleet:
    """Returns the fleet with adapters of its model, whose sources are `/adapters/NAME`."""
    adapters = tuple(LoraAdapter(name, f"/adapters/{name}") for name in names)
    model = replace(fleet.models[MODEL_KEY], adapters=adapters, adapter_slots=slots)
    return replace(fleet, models={MODEL_KEY: model})


@asynccontextmanager
async def adapted(
    names: Sequence[str],
    *,
    settings: EngineSettings,
    engines: int = 1,
    slots: int = 8,
    limits: Limits | None = None,
    **more: Any,
) -> AsyncIterator[Setting]:
    """Runs a gateway and simulated engines until the block ends; no load may be left then.

    more: for `running_gateway`.
    """
    started = [await start_engine(settings, resources(number), host="127.0.0.1", port=0) for number in range(engines)]
    fleet = with_adapters(fleet_of([engine.url for engine in started]), names, slots)
    try:
        async with running_gateway(fleet, limits, **more) as running:
            setting = Setting(running, started)
            yield setting
            assert {load.inflight for load in running.loads().values()} == {0}
    finally:
        for engine in started:
            await engine.close()
