"""The watches of engines that send nothing: how many there are, and whose."""

import asyncio
from unittest import mock

import pytest

from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead_gateway.resilience.worker.engine_progress import EngineProgress
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_testing.simulated.event_loop import running_clock


def _instance(namespace: str, number: int) -> Instance:
    url = f"http://{namespace}-{number}:80"
    return Instance(id=f"{namespace}-{number}", namespace=namespace, model="m", pool="p", url=url)


@pytest.mark.parametrize("number", [1, 127, 128, 300])
async def test_silent_engines_of_one_namespace_leave_watches_to_others(number: int) -> None:
    runtime = WorkerRuntime(running_clock(), Limits(), asyncio.get_running_loop())
    progress = EngineProgress(runtime, mock.create_autospec(ConnectionPool), "hop")
    watched = [progress.still_seconds(_instance("hostile", one), 5.0) is not None for one in range(number)]
    assert sum(watched) == min(number, 128)
    assert [progress.still_seconds(_instance("honest", one), 5.0) for one in range(128)] == [0.0] * 128
    assert progress.still_seconds(_instance("hostile", 0), 5.0) == 0.0, "an engine keeps its watch"
    progress.close()
