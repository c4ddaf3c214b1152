"""Limits of two tenants over three gateways, minute by minute, while parts of the system die.

Gateways and engines are processes; Redis is a master with a replica and two sentinels. 200 clients
stream from simulated engines through random gateways, and always want more than the limits. One
tenant has a limit of requests a minute, the other of tokens. Each minute has one event:

1. Nothing happens.
2. A gateway is killed and replaced.
3. The Redis master is killed, and its replica promoted.
4. Redis gets FLUSHALL.
5. The new master is killed and starts empty.

The truth is what clients got: answers with status 200, and the tokens that engines reported in
them. Each counts in the minute of its first byte. Answers that a killed gateway cut off are counted
apart. The ledger must have the same tokens, request by request.
"""

import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from fairlead.fleet.file import write_fleet_file
from fairlead_bench.results import Goals, ResultRow
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.gateway.tenant_keys import tenant_document
from fairlead_testing.redis.valkey_cluster import ValkeyGroup, ValkeyNode, sentinel_pair

CLIENTS = 100
"""Clients of each tenant; 200 streams at once."""
REQUESTS = 300
TOKENS = 8_000
MINUTE_SECONDS = 60.0
FAULTS = ("none", "gateway", "failover", "flush", "restart")
METRICS = ("requests answered", "requests of the limit", "tokens beyond", "tokens of the limit", "ledger", "answers")
"""The beginnings of its metrics."""
_PEPPER = "the pepper of this benchmark"
_REFUSED_SECONDS = 1.0
_FAULT_AFTER_SECONDS = 6.0
"""After the beginning of a minute: its limits are partly used, and slices are out."""
_LEDGER_SECONDS = 4.0
"""Until the last records are on the disk."""
_UNWRITTEN_SECONDS = 2.5
"""Records of so long before its death are lost with a gateway: they were not on the disk."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. Times are Unix seconds; gateway: the number of its process."""

    id: str
    gateway: int
    begun_at: float
    ended_at: float
    tokens: int


@dataclass(slots=True)
class TenantCount:
    """The answers that clients of one tenant got. cut: when an answer broke off."""

    answers: list[Answer] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class FaultRun:
    """One run.

    first: the first judged minute; minutes: their number.
    killed: when which gateway was killed.
    ledger: the tokens of each record by request id.
    """

    first: int
    minutes: int
    counts: Mapping[str, TenantCount]
    killed: Mapping[int, float]
    ledger: Mapping[str, int]


class _Traffic:
    """The clients of both tenants."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.gateways: dict[int, GatewayProcess] = {}
        self.killed: dict[int, float] = {}
        self.counts = {"counted": TenantCount(), "metered": TenantCount()}
        self.has_ended = False

    async def run_client(self, client: httpx.AsyncClient, tenant: str) -> None:
        """Streams one answer after the other."""
        while not self.has_ended:
            number, gateway = self.draw.choice(list(self.gateways.items()))
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": "hello " * self.draw.randrange(1, 20)}],
                "max_tokens": self.draw.randrange(2, 30),
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            try:
                if not await self._stream(client, (number, gateway.url), tenant, body):
                    await asyncio.sleep(_REFUSED_SECONDS * self.draw.uniform(0.5, 1.5))
            except (httpx.HTTPError, OSError):
                self.counts[tenant].cut.append(time.time())
                await asyncio.sleep(_REFUSED_SECONDS)

    async def _stream(
        self, client: httpx.AsyncClient, gateway: tuple[int, str], tenant: str, body: dict[str, object]
    ) -> bool:
        """Returns whether the answer has status 200."""
        count = self.counts[tenant]
        headers = {"authorization": f"Bearer {tenant}"}
        async with client.stream("POST", f"{gateway[1]}/v1/chat/completions", json=body, headers=headers) as answer:
            begun_at = time.time()
            count.statuses[answer.status_code] = count.statuses.get(answer.status_code, 0) + 1
            if answer.status_code != 200:
                return False
            tokens = 0
            async for line in answer.aiter_lines():
                if '"usage":{' in line or '"usage": {' in line:
                    usage = json.loads(line.removeprefix("data: "))["usage"]
                    tokens = usage["prompt_tokens"] + usage["completion_tokens"]
            id_ = answer.headers["x-fairlead-decision"]
            count.answers.append(Answer(id_, gateway[0], begun_at, time.time(), tokens))
            return True


async def measure(folder: Path, seed: int) -> FaultRun:
    """Runs traffic and faults for as many minutes as there are faults; returns what clients got."""
    os.environ["FAIRLEAD_KEY_PEPPER"] = _PEPPER
    os.environ["FAIRLEAD_USAGE_DIR"] = str(folder / "usage")
    os.environ.setdefault("FAIRLEAD_HASH_SECRET", "the secret of this benchmark")
    traffic = _Traffic(seed)
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(sentinel_pair(folder))
        engines = await stack.enter_async_context(engine_processes(2, "--profile", "tiny-cpu", "--speed", "4"))
        write_fleet_file(folder / "fleet.yaml", fleet_of([engine.url for engine in engines]))
        limits = (("counted", {"requests": REQUESTS}), ("metered", {"tokens": TOKENS}))
        documents = [tenant_document(name, _PEPPER, limits=[{"per": "Minute", **limit}]) for name, limit in limits]
        (folder / "tenants.yaml").write_text("---\n".join(documents), encoding="utf-8")

        async def start_gateway() -> None:
            tenants = ("--tenants", str(folder / "tenants.yaml"), "--redis", redis.url, "--workers", "1")
            started = await stack.enter_async_context(gateway_process(folder / "fleet.yaml", *tenants))
            traffic.gateways[len(traffic.gateways) + len(traffic.killed)] = started

        for _ in range(3):
            await start_gateway()
        unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60, limits=unbounded))
        tasks = [
            asyncio.create_task(traffic.run_client(client, tenant)) for tenant in traffic.counts for _ in range(CLIENTS)
        ]
        first = int(time.time() // MINUTE_SECONDS) + 1
        await _make_faults(first, traffic, redis, start_gateway)
        traffic.has_ended = True
        await asyncio.gather(*tasks)
        await asyncio.sleep(_LEDGER_SECONDS)
    return FaultRun(first, len(FAULTS), traffic.counts, traffic.killed, read_ledger_tokens(folder / "usage"))


async def _make_faults(
    first: int, traffic: _Traffic, redis: ValkeyGroup, start_gateway: Callable[[], Awaitable[None]]
) -> None:
    """Makes one fault in each minute, and waits for the end of the last one."""
    master, replica = redis.nodes
    for number, fault in enumerate(FAULTS):
        await _sleep_until((first + number) * MINUTE_SECONDS + _FAULT_AFTER_SECONDS)
        if fault == "gateway":
            name, dead = next(iter(traffic.gateways.items()))
            del traffic.gateways[name]
            traffic.killed[name] = time.time()
            dead.process.kill()
            await start_gateway()
        elif fault == "failover":
            master.kill()
        elif fault == "flush":
            await asyncio.to_thread(replica.execute, "FLUSHALL")
        elif fault == "restart":
            await asyncio.to_thread(_restart, replica)
    await _sleep_until((first + len(FAULTS)) * MINUTE_SECONDS)


def _restart(node: ValkeyNode) -> None:
    """Restarts a replica that was promoted.

    Why without the option: Sentinel would have removed it from the server's file.
    """
    node.kill()
    at = node.command.index("--replicaof")
    node.command = node.command[:at] + node.command[at + 3 :]
    node.restart()


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.time()))


def read_ledger_tokens(folder: Path) -> dict[str, int]:
    """Returns the tokens of each record of a ledger, by the id of its request."""
    found = {}
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "inputTokens" in record or "outputTokens" in record:
                found[record["id"]] = record.get("inputTokens", 0) + record.get("outputTokens", 0)
    return found


def per_minute(run: FaultRun, tenant: str) -> list[tuple[int, int, int]]:
    """Returns complete answers, their tokens, and cut answers of each judged minute."""
    found = []
    for minute in range(run.first, run.first + run.minutes):
        count = run.counts[tenant]
        inside = [answer for answer in count.answers if int(answer.begun_at // MINUTE_SECONDS) == minute]
        cut = sum(int(at // MINUTE_SECONDS) == minute for at in count.cut)
        found.append((len(inside), sum(one.tokens for one in inside), cut))
    return found


def ledger_difference(run: FaultRun, *, with_unwritten: bool) -> float:
    """Returns what the ledger has more or less than engines reported, as a share.

    with_unwritten: answers count too whose record a killed gateway could not write any more.
    """
    reported = recorded = 0
    for count in run.counts.values():
        for answer in count.answers:
            killed_at = run.killed.get(answer.gateway)
            if with_unwritten or killed_at is None or answer.ended_at < killed_at - _UNWRITTEN_SECONDS:
                reported += answer.tokens
                recorded += run.ledger.get(answer.id, 0)
    return recorded / reported - 1.0


def result_rows(run: FaultRun, goals: Goals) -> list[ResultRow]:
    """Returns the rows of a run: of its worst minute, except the numbers of answers."""
    requests = [(answers, cut) for answers, _, cut in per_minute(run, "counted")]
    tokens = [used for _, used, _ in per_minute(run, "metered")]
    statuses = [count.statuses for count in run.counts.values()]
    worst = ", the worst minute"
    values = {
        f"requests answered beyond the limit{worst}": ("requests", max(max(0, one - REQUESTS) for one, _ in requests)),
        f"requests of the limit that stayed unused{worst}": (
            "requests",
            max(max(0, REQUESTS - one - cut) for one, cut in requests),
        ),
        f"tokens beyond the limit{worst}, %": ("%", max(100.0 * max(0, used / TOKENS - 1.0) for used in tokens)),
        f"tokens of the limit that stayed unused{worst}, %": (
            "%",
            max(100.0 * max(0, 1.0 - used / TOKENS) for used in tokens),
        ),
        "ledger: tokens apart from engines' usage, %": (
            "%",
            100.0 * abs(ledger_difference(run, with_unwritten=False)),
        ),
        "ledger: the same with the last seconds of the killed gateway, %": (
            "%",
            100.0 * abs(ledger_difference(run, with_unwritten=True)),
        ),
        "answers with 503": ("answers", sum(found.get(503, 0) for found in statuses)),
        "answers that the killed gateway cut off": ("answers", sum(len(count.cut) for count in run.counts.values())),
        "answers with 429": ("answers", sum(found.get(429, 0) for found in statuses)),
        "answers with 200": ("answers", sum(found.get(200, 0) for found in statuses)),
    }
    return [goals.value(metric, unit, float(value)) for metric, (unit, value) in values.items()]


def rows(seed: int, goals: Goals) -> list[ResultRow]:
    """Runs it once and returns the rows."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return result_rows(asyncio.run(measure(Path(folder), seed)), goals)
        finally:
            os.environ.pop("FAIRLEAD_USAGE_DIR", None)  # of the folder that is gone
