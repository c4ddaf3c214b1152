"""Alerts on recordings of real gateways before and after a fault, which is prolonged.

Each alert fires only on its fault. The series of operator and indexer are the healthy ones of
alerts.yaml.
"""

import hashlib
import hmac
import json
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from fairlead_testing.engines.disaggregated import EngineProcess, engine_process
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.http.raw_client import request
from fairlead_testing.prometheus import AlertRules, Scrape, SeriesRecording, expression_names, parse_scrape
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document

pytestmark = pytest.mark.timeout(300)
HEALTHY: dict[str, str] = load_document((Path(__file__).parent / "alerts.yaml").read_text())["healthy"]
PEPPER, KEY = "pepper", "sk-recorded"
ROUNDS = 20
SIGNALS_AGE = "fairlead_gateway_engine_signals_age_seconds"
Fault = Callable[["FaultScenario"], Awaitable[None]]


class FaultScenario:
    """A gateway with its Redis and its one engine."""

    def __init__(self, gateway: GatewayProcess, engine: EngineProcess, redis: Valkey) -> None:
        self.gateway, self.engine, self.redis = gateway, engine, redis

    async def traffic(self, key: str = KEY) -> None:
        """Some requests, whatever becomes of them."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
        for _ in range(ROUNDS):
            await request(self.gateway.url, body, more=f"authorization: Bearer {key}\r\n")

    async def scrape(self) -> Scrape:
        return parse_scrape((await self.gateway.get("/metrics")).body.decode(), namespace="fairlead", pod="g-1")

    async def wait_for_metric(self, name: str, value: float) -> None:
        """Waits until a metric of the gateway has this value."""

        async def says() -> bool:
            return await self.gateway.metric(name) == value

        await wait_until(says)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Scrapes before some traffic, and around a fault or the same traffic."""

    before: Scrape
    last: tuple[Scrape, Scrape]

    def prolonged(self, *, gone: bool = False, aging: str = "") -> SeriesRecording:
        """Returns 46 minutes of traffic, and 14 of the fault or without the gateway."""
        recording = SeriesRecording()
        healthy = self.last if self.before is self.last[0] else (self.before, self.last[0])
        recording.grow(46, healthy)
        recording.grow(14, *([] if gone else [self.last]), aging=aging)
        return recording


async def record(folder: Path, *faults: Fault | None, ttft: str = "30s") -> list[Recorded]:
    """Returns what one gateway reports before and after each fault in turn, and before and after
    traffic without a fault.
    """
    redis = Valkey(folder)
    redis.start()
    digest = hmac.new(PEPPER.encode(), KEY.encode(), hashlib.sha256).hexdigest()
    keys = folder / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "team", "digest": digest}]}))
    recordings = []
    try:
        async with engine_process("--profile", "tiny-cpu", "--speed", "20") as engine:
            model = {"name": "tiny", "slo": {"ttft": ttft}, "instances": [{"url": engine.url, "engine": "sim"}]}
            (folder / "fleet.yaml").write_text(json.dumps({"models": [model]}))
            options = ("--keys", str(keys), "--redis", redis.url)
            async with gateway_process(folder / "fleet.yaml", *options) as gateway:
                scene = FaultScenario(gateway, engine, redis)
                await scene.wait_for_metric("fairlead_gateway_redis_connected", 1.0)
                for fault in faults:
                    await scene.traffic()
                    before = await scene.scrape()
                    await scene.traffic()
                    well = await scene.scrape()
                    if fault is not None:
                        await fault(scene)
                        recordings.append(Recorded(before, (well, await scene.scrape())))
                    else:
                        recordings.append(Recorded(before, (before, well)))
    finally:
        redis.kill()
    return recordings


def expect_firing(rules: AlertRules, **cases: tuple[SeriesRecording, list[str]]) -> None:
    names = {name for rule in rules.alerts.values() for name, _ in expression_names(rule["expr"]).metrics}
    others = {
        key.replace("{", '{namespace="fairlead",'): value for key, value in HEALTHY.items() if "_gateway_" not in key
    }
    rules.expect_firing(
        {
            case: (recording.series(names) | others, recording.minutes, alerts)
            for case, (recording, alerts) in cases.items()
        }
    )


@pytest.fixture(autouse=True)
def pepper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_KEY_PEPPER", PEPPER)


async def redis_unreachable(scene: FaultScenario) -> None:
    scene.redis.kill()
    await scene.wait_for_metric("fairlead_gateway_redis_connected", 0.0)
    await scene.traffic()


async def engine_killed(scene: FaultScenario) -> None:
    scene.engine.send(signal.SIGKILL)
    await scene.engine.process.wait()
    await scene.traffic()
    last = await scene.gateway.metric(SIGNALS_AGE)

    async def older() -> bool:
        return await scene.gateway.metric(SIGNALS_AGE) > last + 3.0

    await wait_until(older)


async def worker_killed(scene: FaultScenario) -> None:
    (worker,) = scene.gateway.worker_pids()
    os.kill(worker, signal.SIGKILL)
    await scene.wait_for_metric("fairlead_gateway_worker_deaths_total", 1.0)
    await scene.wait_for_metric("fairlead_gateway_workers", 1.0)


async def wrong_keys(scene: FaultScenario) -> None:
    await scene.traffic("sk-another")


async def more_traffic(scene: FaultScenario) -> None:
    await scene.traffic()


async def test_each_fault_of_a_gateway_fires_its_alert_and_a_healthy_hour_none(
    rules: AlertRules, tmp_path: Path
) -> None:
    """Redis is last, since it does not come back."""
    healthy, keys, worker, redis = await record(tmp_path, None, wrong_keys, worker_killed, redis_unreachable)
    expect_firing(
        rules,
        healthy=(healthy.prolonged(), []),
        gateway_missing=(healthy.prolonged(gone=True), ["FairleadGatewayDown"]),
        wrong_keys=(keys.prolonged(), ["FairleadKeysRefused"]),
        worker_killed=(worker.prolonged(), ["FairleadGatewayWorkerDied"]),
        redis_unreachable=(redis.prolonged(), ["FairleadRedisAway"]),
    )


async def test_killed_only_engine_alerts(rules: AlertRules, tmp_path: Path) -> None:
    (killed,) = await record(tmp_path, engine_killed)
    alerts = ["FairleadRequestsFail", "FairleadObjectivesMissed", "FairleadEngineSilent"]
    expect_firing(rules, engine_killed=(killed.prolonged(aging=SIGNALS_AGE), alerts))


async def test_missed_slo_alerts(rules: AlertRules, tmp_path: Path) -> None:
    (missed,) = await record(tmp_path, more_traffic, ttft="1us")
    expect_firing(rules, slo_missed=(missed.prolonged(), ["FairleadObjectivesMissed"]))
