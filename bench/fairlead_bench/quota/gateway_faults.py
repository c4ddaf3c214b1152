"""Limits of two tenants over three gateways, while a gateway dies and Redis loses its state.

    python -m fairlead_bench quota [--seconds 60] [--out out/bench/quota.json]

Gateways and engines are processes, Redis is real. 200 clients stream from simulated engines through
random gateways. One tenant has a limit of requests, the other of tokens, both per day. They are
reached while the faults happen: a gateway is killed and replaced, Redis is killed and starts empty,
and later gets FLUSHALL.

The truth is what clients got: answers with status 200, and the tokens that engines reported in
them. Answers that a killed gateway cut off are counted apart.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from redis import Redis

from fairlead.fleet.file import write_fleet_file
from fairlead_bench.results import ResultRow, load_goals, value_row, write_results
from fairlead_gateway.worker.api_keys import key_digest
from fairlead_testing.engines.simulated_process import engine_processes
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.redis.valkey import Valkey

CLIENTS = 100
"""Clients of each tenant; 200 streams at once."""
REQUESTS = 2_000
TOKENS = 60_000
_PEPPER = "the pepper of this benchmark"
_PAUSE_SECONDS = 0.2
_AFTER_SECONDS = 6.0
"""For answers beyond the limit, after it was reached: longer than a lease."""


@dataclass(slots=True)
class TenantCount:
    """The answers that clients of one tenant got."""

    answered: int = 0
    tokens: int = 0
    refused: int = 0
    unavailable: int = 0
    cut: int = 0
    other: int = 0
    statuses: dict[int, int] = field(default_factory=dict)


class _Traffic:
    """The clients of both tenants."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.gateways: list[GatewayProcess] = []
        self.counts = {"counted": TenantCount(), "metered": TenantCount()}
        self.has_ended = False

    async def run_client(self, client: httpx.AsyncClient, tenant: str) -> None:
        """Streams one answer after the other."""
        count = self.counts[tenant]
        while not self.has_ended:
            gateway = self.draw.choice(self.gateways)
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": "hello " * self.draw.randrange(1, 20)}],
                "max_tokens": self.draw.randrange(2, 30),
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            try:
                await self._stream(client, gateway.url, tenant, body)
            except (httpx.HTTPError, OSError):
                count.cut += 1
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _stream(self, client: httpx.AsyncClient, url: str, tenant: str, body: dict[str, object]) -> None:
        count = self.counts[tenant]
        headers = {"authorization": f"Bearer {tenant}"}
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            count.statuses[answer.status_code] = count.statuses.get(answer.status_code, 0) + 1
            if answer.status_code == 429:
                count.refused += 1
            elif answer.status_code != 200:
                count.other += 1
            else:
                async for line in answer.aiter_lines():
                    if '"usage":{' in line or '"usage": {' in line:
                        usage = json.loads(line.removeprefix("data: "))["usage"]
                        count.tokens += usage["prompt_tokens"] + usage["completion_tokens"]
                count.answered += 1
                return
        await asyncio.sleep(_PAUSE_SECONDS)


def _write_tenants(path: Path) -> None:
    documents = []
    for tenant, limit in (("counted", f"requests: {REQUESTS}"), ("metered", f"tokens: {TOKENS}")):
        digest = key_digest(tenant.encode(), _PEPPER.encode()).hex()
        documents.append(
            "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\n"
            f"metadata: {{name: {tenant}}}\n"
            f'spec: {{keys: [{{name: k, digest: "{digest}"}}], limits: [{{per: Day, {limit}}}]}}\n'
        )
    path.write_text("---\n".join(documents))


async def _measure(folder: Path, seconds: float, seed: int) -> dict[str, TenantCount]:
    """Runs traffic and faults; returns what clients got."""
    traffic = _Traffic(seed)
    server = Valkey(folder)
    server.start()
    try:
        async with AsyncExitStack() as stack:
            engines = await stack.enter_async_context(engine_processes(2, "--profile", "tiny-cpu", "--speed", "4"))
            write_fleet_file(folder / "fleet.yaml", fleet_of([engine.url for engine in engines]))
            _write_tenants(folder / "tenants.yaml")

            async def start_gateway() -> GatewayProcess:
                tenants = ("--tenants", str(folder / "tenants.yaml"), "--redis", server.url)
                return await stack.enter_async_context(gateway_process(folder / "fleet.yaml", *tenants))

            traffic.gateways = [await start_gateway() for _ in range(3)]
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=60, limits=limits))
            tasks = [
                asyncio.create_task(traffic.run_client(client, tenant))
                for tenant in traffic.counts
                for _ in range(CLIENTS)
            ]
            await _make_faults(traffic, server, start_gateway, seconds)
            traffic.has_ended = True
            await asyncio.gather(*tasks)
    finally:
        server.kill()
    return traffic.counts


async def _make_faults(traffic: _Traffic, server: Valkey, start_gateway: object, seconds: float) -> None:
    """Makes the faults at equal distances, then waits until both limits are reached."""
    assert callable(start_gateway)
    pause = seconds / 6
    await asyncio.sleep(pause)
    dead = traffic.gateways.pop()
    dead.process.kill()
    traffic.gateways.append(await start_gateway())
    await asyncio.sleep(pause)
    server.kill()
    await asyncio.sleep(1.0)
    server.start()
    await asyncio.sleep(pause)
    with Redis(unix_socket_path=str(server.path)) as redis:
        redis.flushall()
    loop = asyncio.get_running_loop()
    end = loop.time() + 4 * seconds
    while loop.time() < end and not all(_is_reached(name, count) for name, count in traffic.counts.items()):  # noqa: ASYNC110
        await asyncio.sleep(_PAUSE_SECONDS)
    await asyncio.sleep(_AFTER_SECONDS)


def _is_reached(tenant: str, count: TenantCount) -> bool:
    return count.answered >= REQUESTS - 1 if tenant == "counted" else count.tokens >= TOKENS * 0.98


def _rows(counts: dict[str, TenantCount], goals: dict[str, str]) -> list[ResultRow]:
    counted, metered = counts["counted"], counts["metered"]
    values = {
        "requests answered beyond the limit": ("requests", float(max(0, counted.answered - REQUESTS))),
        "requests of the limit that stayed unused": (
            "requests",
            float(max(0, REQUESTS - counted.answered - counted.cut)),
        ),
        "tokens beyond the limit, %": ("%", 100.0 * max(0, metered.tokens - TOKENS) / TOKENS),
        "tokens of the limit that stayed unused, %": ("%", 100.0 * max(0, TOKENS - metered.tokens) / TOKENS),
        "answers with 503": ("answers", float(sum(c.statuses.get(503, 0) for c in counts.values()))),
        "answers that the killed gateway cut off": ("answers", float(counted.cut + metered.cut)),
        "answers with 429": ("answers", float(counted.refused + metered.refused)),
    }
    return [value_row(metric, unit, value, goals.get(metric)) for metric, (unit, value) in values.items()]


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark, prints the table and writes it; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("out/bench/quota.json"))
    given = parser.parse_args(arguments)
    os.environ["FAIRLEAD_KEY_PEPPER"] = _PEPPER
    os.environ.setdefault("FAIRLEAD_HASH_SECRET", "the secret of this benchmark")
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        counts = asyncio.run(_measure(Path(folder), given.seconds, given.seed))
    loads.append(os.getloadavg()[0])
    rows = _rows(counts, load_goals("quota"))
    write_results("quota", rows, seed=given.seed, file=given.out, load_average=loads)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
