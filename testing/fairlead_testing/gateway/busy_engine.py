"""A gateway in front of one busy engine: every later request waits in the gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet, SloTargets
from fairlead.limits import Limits
from fairlead_testing.engines.scripted import ScriptedEngine, SilentEngine, scripted_engine
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.waiting import wait_until

SLOW = EngineProfile("slow", 1.0, kv_tokens=100_000, step_tokens=8)
"""A second a token: the engine works nothing off while a test runs."""
ALIKE = SloTargets(ttft_seconds=10_000.0)
"""One target for all prompts: requests wait for their chosen instance."""
GROWING = SloTargets(ttft_seconds=10.0, ttft_per_kilo_token_seconds=1_000.0)
"""A target that grows with the prompt: requests wait for admission."""


def chat(words: int, **more: Any) -> dict[str, Any]:
    """Returns the body of a streamed request with a prompt of so many words."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "w " * words}], "stream": True, **more}


LONG = chat(400)


def slow_fleet(urls: list[str], objectives: SloTargets = GROWING, **more: Any) -> Fleet:
    """Returns a fleet of one model whose engines work nothing off while a test runs."""
    fleet = fleet_of(urls, objectives=objectives, **more)
    instances = tuple(replace(instance, profile=SLOW) for instance in fleet.instances[MODEL_KEY])
    return replace(fleet, instances={MODEL_KEY: instances})


def count_queued(running: RunningGateway) -> int:
    """Returns the number of requests that wait in the gateway."""
    return running.gateway.stack.admission.queued().get(MODEL_KEY, 0)


def queue_exits(running: RunningGateway) -> dict[str, int]:
    """Returns how many requests have left the queues, by cause."""
    return dict(running.gateway.telemetry.models[MODEL_KEY].held)


@asynccontextmanager
async def gateway_before_busy_engine(
    limits: Limits | None = None, **more: Any
) -> AsyncIterator[tuple[RunningGateway, ScriptedEngine, SilentEngine, "asyncio.Task[RawResponse]"]]:
    """Runs a gateway whose one engine is silent at its first prompt; requests have two targets.

    Afterwards no request waits, and no load is left.
    """
    silent = SilentEngine()
    async with (
        scripted_engine(silent.script) as engine,
        running_gateway(slow_fleet([engine.url], **more), limits) as running,
    ):
        async with asyncio.TaskGroup() as group:
            first = group.create_task(request(running.url, LONG))
            await wait_until(lambda: len(engine.calls) == 1)
            yield running, engine, silent, first
            silent.go_on.set()
        assert count_queued(running) == 0
        await wait_until(lambda: {load.inflight for load in running.loads().values()} <= {0})
