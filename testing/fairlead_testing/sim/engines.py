"""Simulated engines in the caller's event loop, for tests and small programs."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

from fairlead.runtime.clock import Clock
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.runtime.simulated_engine import EngineResources
from fairlead_sim.server.process import RunningEngine, start_engine
from fairlead_testing.simulated.event_loop import running_clock


@asynccontextmanager
async def running_engine(
    settings: EngineSettings | None = None, *, clock: Clock | None = None, tokenizer: Tokenizer | None = None
) -> AsyncIterator[RunningEngine]:
    async with running_engines(1, settings, clock=clock, tokenizer=tokenizer) as (running,):
        yield running


@asynccontextmanager
async def running_engines(
    count: int,
    settings: EngineSettings | None = None,
    *,
    clock: Clock | None = None,
    tokenizer: Tokenizer | None = None,
) -> AsyncIterator[list[RunningEngine]]:
    """Yields several equal engines, each on its own port."""
    shared = tokenizer or Tokenizer()
    async with AsyncExitStack() as stack:
        engines = []
        for number in range(count):
            running = await start_engine(
                settings or EngineSettings(),
                EngineResources(clock or running_clock(), Random(number), shared),
                host="127.0.0.1",
                port=0,
            )
            stack.push_async_callback(running.close)
            engines.append(running)
        yield engines
