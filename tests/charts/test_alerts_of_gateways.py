"""Alerts over what real gateways told: before a fault and after it, taken to go on for a while. Each fires on its fault, alone.

What operator and indexer would tell meanwhile is that of healthy ones, from alerts.yaml.
"""

import asyncio
import hashlib
import hmac
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.testing.chart import Tools
from fairlead.testing.prometheus import Recording, Rules, Scrape, asked, scraped
from fairlead.testing.raw_http import ask
from fairlead.testing.sim_engine import EngineProcess, engine_process
from fairlead.testing.valkey import Valkey
from fairlead.testing.waiting import until_async
from fairlead_gateway.testing_process import GatewayProcess, gateway_process

pytestmark = pytest.mark.timeout(300)
HEALTHY: dict[str, str] = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())["healthy"]
PEPPER, KEY = "pepper", "sk-recorded"
ROUNDS = 20
SIGNALS_AGE = "fairlead_gateway_engine_signals_age_seconds"
Groups = Callable[..., list[dict[str, Any]]]
Fault = Callable[["Scene"], Awaitable[None]]


class Scene:
    """A gateway with its Redis and its one engine."""

    def __init__(self, gateway: GatewayProcess, engine: EngineProcess, redis: Valkey) -> None:
        self.gateway, self.engine, self.redis = gateway, engine, redis

    async def traffic(self, key: str = KEY) -> None:
        """Some requests, whatever becomes of them."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
        for _ in range(ROUNDS):
            await ask(self.gateway.url, body, more=f"authorization: Bearer {key}\r\n")

    async def scrape(self) -> Scrape:
        return scraped((await self.gateway.asked("/metrics")).body.decode(), namespace="fairlead", pod="g-1")

    async def told(self, name: str, value: float) -> None:
        """Wait until the gateway says so."""

        async def says() -> bool:
            return await self.gateway.metric(name) == value

        await until_async(says)


async def record(
    folder: Path, fault: Fault | None, *, gone: bool = False, ttft: str = "30s", aging: str = ""
) -> Recording:
    """Three quarters of an hour of traffic, then the fault for a quarter; without one, an hour of traffic."""
    redis = Valkey(folder)
    redis.start()
    digest = hmac.new(PEPPER.encode(), KEY.encode(), hashlib.sha256).hexdigest()
    keys = folder / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "team", "digest": digest}]}))
    recording = Recording()
    try:
        async with engine_process("--profile", "tiny-cpu", "--speed", "20") as engine:
            model = {"name": "tiny", "objectives": {"ttft": ttft}, "instances": [{"url": engine.url, "engine": "sim"}]}
            (folder / "fleet.yaml").write_text(json.dumps({"models": [model]}))
            options = ("--keys", str(keys), "--redis", redis.url)
            async with gateway_process(folder / "fleet.yaml", *options) as gateway:
                scene = Scene(gateway, engine, redis)
                await scene.told("fairlead_gateway_redis_connected", 1.0)
                await scene.traffic()
                before = await scene.scrape()
                await scene.traffic()
                well = await scene.scrape()
                recording.growing(46, (before, well))
                if fault is not None:
                    await fault(scene)
                after = await scene.scrape()
                pairs = [(well, after) if fault else (before, well)]
                recording.growing(14, *([] if gone else pairs), aging=aging)
    finally:
        redis.kill()
    return recording


def fires(recording: Recording, groups: Groups, tools: Tools, folder: Path, *alerts: str) -> None:
    rules = Rules(tools.promtool, groups(), folder)
    names = {name for rule in rules.alerts.values() for name, _ in asked(rule["expr"]).metrics}
    others = {
        key.replace("{", '{namespace="fairlead",'): value for key, value in HEALTHY.items() if "_gateway_" not in key
    }
    rules.fire({"recorded": (recording.series(names) | others, recording.minutes, alerts)})


@pytest.fixture(autouse=True)
def pepper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_KEY_PEPPER", PEPPER)


async def redis_unreachable(scene: Scene) -> None:
    scene.redis.kill()
    await scene.told("fairlead_gateway_redis_connected", 0.0)
    await scene.traffic()


async def engine_killed(scene: Scene) -> None:
    scene.engine.send(signal.SIGKILL)
    await scene.engine.process.wait()
    await scene.traffic()
    last = await scene.gateway.metric(SIGNALS_AGE)

    async def older() -> bool:
        return await scene.gateway.metric(SIGNALS_AGE) > last + 3.0

    await until_async(older)


async def worker_killed(scene: Scene) -> None:
    (worker,) = scene.gateway.workers()
    os.kill(worker, signal.SIGKILL)
    await scene.told("fairlead_gateway_worker_deaths_total", 1.0)
    await scene.told("fairlead_gateway_workers", 1.0)


async def wrong_keys(scene: Scene) -> None:
    await scene.traffic("sk-another")


async def more_traffic(scene: Scene) -> None:
    await scene.traffic()


def test_a_healthy_hour_is_silent(groups: Groups, tools: Tools, tmp_path: Path) -> None:
    fires(asyncio.run(record(tmp_path, None)), groups, tools, tmp_path)


@pytest.mark.parametrize(
    ("fault", "alerts"),
    [
        (redis_unreachable, ["FairleadRedisAway"]),
        (worker_killed, ["FairleadGatewayWorkerDied"]),
        (wrong_keys, ["FairleadKeysRefused"]),
    ],
)
def test_a_fault_fires_its_alert(fault: Fault, alerts: list[str], groups: Groups, tools: Tools, tmp_path: Path) -> None:
    fires(asyncio.run(record(tmp_path, fault)), groups, tools, tmp_path, *alerts)


def test_an_engine_that_is_killed_and_was_the_only_one_is_told(groups: Groups, tools: Tools, tmp_path: Path) -> None:
    alerts = ("FairleadRequestsFail", "FairleadObjectivesMissed", "FairleadEngineSilent")
    fires(asyncio.run(record(tmp_path, engine_killed, aging=SIGNALS_AGE)), groups, tools, tmp_path, *alerts)


def test_a_gateway_that_is_gone_is_missed(groups: Groups, tools: Tools, tmp_path: Path) -> None:
    fires(asyncio.run(record(tmp_path, None, gone=True)), groups, tools, tmp_path, "FairleadGatewayDown")


def test_objectives_that_cannot_be_held_are_told(groups: Groups, tools: Tools, tmp_path: Path) -> None:
    recording = asyncio.run(record(tmp_path, more_traffic, ttft="1us"))
    fires(recording, groups, tools, tmp_path, "FairleadObjectivesMissed")
