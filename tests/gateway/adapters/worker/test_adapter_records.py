"""Metrics and usage of adapters."""

import asyncio
from dataclasses import replace

import pytest

from fairlead_gateway.journal import Journal, JournalBounds, Reporters
from fairlead_gateway.telemetry.snapshot import restore_counters, snapshot_of
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.gateway.gateway_process import Setting, adapted
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RecordedReports
from fairlead_testing.http.raw_client import request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

FAST = EngineSettings(model="tiny", served_names=("tiny",), speed=50.0, max_loaded_adapters=8)
_NAME = "fairlead_gateway_adapter_"


def metrics(setting: Setting) -> dict[str, float]:
    """Returns the adapter metrics, by name without prefix and adapter."""
    gateway = setting.running.gateway
    text = gateway.telemetry.render(gateway.stages.routers.fleet, {}, gateway.telemetry.started_at).decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(_NAME)]
    labels = f'{{model="{MODEL_KEY}",adapter="'
    return {name.removeprefix(_NAME).replace(labels, " ").rstrip('"}'): float(value) for name, _, value in lines}


async def chat(setting: Setting, name: str) -> int:
    body = {"model": name, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4}
    return (await request(setting.running.url, body)).status


async def test_requests_loads_failures_and_evictions_are_counted_by_adapter() -> None:
    settings = replace(FAST, adapter_load_seconds=0.5, missing_adapters=frozenset({"/adapters/gone"}))
    async with adapted(["a", "b", "gone"], slots=1, settings=settings) as setting:
        for name in ("a", "a", "b"):
            assert await chat(setting, name) == 200
        assert await chat(setting, "gone") == 503
        values = metrics(setting)
        assert {name: value for name, value in values.items() if name.endswith(" a")} == {
            "requests_total a": 2,
            "load_seconds_sum a": values["load_seconds_sum a"],
            "load_seconds_count a": 1,
            "load_failures_total a": 0,
            "evictions_total a": 1,
        }
        assert values["load_seconds_sum a"] > 0.0
        assert (values["load_seconds_count b"], values["evictions_total b"]) == (1, 1)
        assert values["load_failures_total gone"] == 1


async def test_counts_of_adapters_pass_between_processes() -> None:
    async with adapted(["a"], settings=FAST) as setting:
        assert await chat(setting, "a") == 200
        counters = setting.running.gateway.telemetry.models[MODEL_KEY]
        restored = restore_counters(snapshot_of(MODEL_KEY, counters, None), 0.0)
        assert restored.adapter_tables() == counters.adapter_tables()
        assert restored.adapter_loads == {"a": 1}


async def test_usage_names_the_adapter() -> None:
    sent = RecordedReports()
    journal = Journal(sent, asyncio.get_running_loop(), bounds=JournalBounds(usage_seconds=0.0), keeps_usage=True)
    async with adapted(["a"], settings=FAST, reporters=Reporters(journal)) as setting:
        for name in ("a", "tiny"):
            assert await chat(setting, name) == 200

        async def are_reported() -> bool:
            journal.flush()
            return len(sent.usage) == 2

        await wait_until(are_reported)
    assert [(row.model, row.adapter) for row in sent.usage] == [(MODEL_KEY, "a"), (MODEL_KEY, "")]
