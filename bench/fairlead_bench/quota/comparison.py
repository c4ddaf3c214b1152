"""Limits of Fairlead, LiteLLM, AIBrix and Envoy AI Gateway: their accuracy and cost.

Simulated: Fairlead's own gates and services, and presets of the others, on the same traffic.
Over loopback: gateways of Fairlead and proxies of LiteLLM with one real Redis, in real minutes.

The cost of limits: processor time of a gateway and of Redis, with limits and without.

Rounds alternate between two tenants of the same running gateway: one with limits that it never
reaches, one without. Nothing else differs.

Traffic of tenants over HTTP: the same requests to the gateways of any product.

The engine is one server, before which all gateways stand. Of each request it knows how long the
answer is, which no gateway can know before.

Gateways with limits as processes before one Redis: those of Fairlead, and LiteLLM's proxies.

LiteLLM gets its limits through its `custom_auth` hook, which needs no database. Departures from its
defaults: it writes no log line per request, and does not cache responses.
"""

import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import httpx
from redis.asyncio import Redis

from fairlead.fleet.file import write_fleet_file
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_bench.gateway.target_process import tree_usage
from fairlead_bench.gateway.targets import PeerUnavailable, install_peer
from fairlead_bench.quota.accuracy import (
    ESTIMATED,
    PRODUCTS,
    STRICT,
    WINDOW_SECONDS,
    Accuracy,
    AdmittedRequests,
    TenantLimits,
    TenantRequest,
    TrafficCase,
    accuracy,
    can_serve,
    play,
    tenant_requests,
)
from fairlead_bench.results import Goals, MapFunction, ResultRow
from fairlead_testing.engines.scripted import EngineCall, ScriptedEngine, scripted_engine, usage
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.gateway.tenant_keys import tenant_document
from fairlead_testing.processes import unused_port
from fairlead_testing.redis.valkey_cluster import HOST, ValkeyGroup, ValkeyNode

MODEL = "tiny"
REPLICAS = 2
_NUMBER = re.compile(rb"request ([0-9]+) ")
_AT_ONCE = TenantRequest(0.0, 0, 300, 70, 10, None)
"""The answer of a chat without a number, which takes no time."""
_WORDS = "what a long day it was for all of us and none knew how it would end "


@dataclass(frozen=True, slots=True)
class NumberedRequest:
    """A request of a tenant; the engine finds its answer by the number in its prompt."""

    number: int
    tenant: str
    request: TenantRequest

    def body(self) -> dict[str, object]:
        """Returns the chat. No two prompts begin alike, so that nothing is cached."""
        text = f"request {self.number} {_WORDS * (self.request.prompt_bytes // len(_WORDS) + 1)}"
        body: dict[str, object] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text[: max(20, self.request.prompt_bytes)]}],
        }
        return body if self.request.max_tokens is None else {**body, "max_tokens": self.request.max_tokens}


def numbered_requests(cases: Mapping[str, TrafficCase], seconds: float, seed: int) -> list[NumberedRequest]:
    """Returns the requests of all tenants in the order of their times."""
    found = [
        (tenant, request)
        for tenant, case in cases.items()
        for request in tenant_requests(case, seconds, REPLICAS, seed)
    ]
    found.sort(key=lambda one: one[1].at)
    return [NumberedRequest(number, tenant, request) for number, (tenant, request) in enumerate(found)]


@asynccontextmanager
async def answering_engine(requests: Sequence[NumberedRequest]) -> AsyncIterator[ScriptedEngine]:
    """Runs an engine that answers each request with its own length, after its own time."""

    async def script(call: EngineCall) -> None:
        found = _NUMBER.search(call.body)
        if not call.path.endswith("/chat/completions"):  # a probe of a gateway
            await call.respond({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
            return
        request = _AT_ONCE if found is None else requests[int(found[1])].request
        if found is not None:
            await asyncio.sleep(request.seconds)
        message = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
        counted = usage(request.prompt_tokens, 0, request.output_tokens)["usage"]
        counted["total_tokens"] = request.tokens
        head = {"id": "x", "object": "chat.completion", "created": int(time.time()), "model": MODEL}
        await call.respond({**head, "choices": [message], "usage": counted})

    async with scripted_engine(script) as engine:
        yield engine


async def send_all(
    requests: Sequence[NumberedRequest], urls: Sequence[str], keys: Mapping[str, str]
) -> dict[str, AdmittedRequests]:
    """Sends all requests at their times, from the next minute on; returns what each tenant got."""
    found = {tenant: AdmittedRequests() for tenant in keys}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def send(one: NumberedRequest) -> None:
            sent_at = time.time()
            headers = {"authorization": f"Bearer {keys[one.tenant]}"}
            url = f"{urls[one.request.replica]}/v1/chat/completions"
            try:
                answer = await client.post(url, json=one.body(), headers=headers)
            except httpx.HTTPError:
                found[one.tenant].failed += 1
                return
            if answer.status_code == 200:
                found[one.tenant].admitted.append((sent_at, time.time(), one.request.tokens))
            elif answer.status_code == 429:
                found[one.tenant].refused += 1
            else:
                found[one.tenant].failed += 1

        first = (time.time() // WINDOW_SECONDS + 1) * WINDOW_SECONDS
        tasks = []
        for one in requests:
            await asyncio.sleep(max(0.0, first + one.request.at - time.time()))
            tasks.append(asyncio.create_task(send(one)))
        await asyncio.gather(*tasks)
    return found


def calendar_starts(requests: Mapping[str, AdmittedRequests]) -> list[float]:
    """Returns the beginnings of all minutes in which a request was admitted."""
    times = [at for found in requests.values() for at, _, _ in found.admitted]
    first, last = (int(at // WINDOW_SECONDS) for at in (min(times), max(times)))
    return [number * WINDOW_SECONDS for number in range(first, last + 1)]


PEPPER = "the pepper of this benchmark"
_START_SECONDS = 600.0
_POLL_SECONDS = 0.1
_WINDOW_KEY = re.compile(r"\{api_key:sk-(.+)\}:window")
_CUSTOM_AUTH = """from litellm.proxy._types import UserAPIKeyAuth

LIMITS = {limits!r}


async def authenticate(request, api_key):
    requests, tokens = LIMITS[api_key]
    return UserAPIKeyAuth(api_key=api_key, rpm_limit=requests, tpm_limit=tokens)
"""
_CONFIG = """model_list:
  - {{model_name: {model}, litellm_params: {{model: openai/{model}, api_base: "{engine}/v1", api_key: none}}}}
general_settings: {{custom_auth: custom_auth.authenticate, dangerously_permit_weak_or_unset_master_key: true}}
litellm_settings:
  cache: true
  cache_params: {{type: redis, host: {host}, port: {port}, supported_call_types: []}}
"""


@dataclass(frozen=True, slots=True)
class ProductProcesses:
    """The running processes of a product.

    roots: the first process of each replica.
    key_prefix: before the name of a tenant, for its API key.
    windows: the beginnings of each tenant's windows in Unix seconds; None: whole minutes.
    """

    urls: Sequence[str]
    roots: Sequence[int]
    key_prefix: str = ""
    windows: dict[str, list[float]] | None = None

    def key(self, tenant: str) -> str:
        """Returns the API key of a tenant."""
        return self.key_prefix + tenant

    def starts(self, tenant: str) -> Sequence[float] | None:
        """Returns the beginnings of a tenant's windows; None: whole minutes."""
        return None if self.windows is None else self.windows.get(tenant, [])


async def watch_windows(redis: "Redis", windows: dict[str, list[float]]) -> None:
    """Notes when LiteLLM's windows begin, until it is cancelled."""
    while True:
        async for key in redis.scan_iter("*:window"):
            found = _WINDOW_KEY.search(key.decode())
            value = await redis.get(key)
            if found is not None and value is not None:
                starts = windows.setdefault(found[1], [])
                if not starts or starts[-1] < float(value):
                    starts.append(float(value))
        await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[ValkeyNode]:
    """Runs an empty Redis-compatible server on a loopback port."""
    group = ValkeyGroup()
    try:
        yield group.start(folder)
    finally:
        group.stop()


@asynccontextmanager
async def fairlead_processes(
    tenants: Mapping[str, TenantLimits], strict: frozenset[str], engine: str, redis: ValkeyNode, folder: Path
) -> AsyncIterator[ProductProcesses]:
    """Runs gateways; `FAIRLEAD_KEY_PEPPER` must be set to `PEPPER`.

    strict: the tenants whose limits are strict.
    """
    write_fleet_file(folder / "fleet.yaml", fleet_of([engine]))
    documents = [_tenant_document(name, limits, is_strict=name in strict) for name, limits in tenants.items()]
    (folder / "tenants.yaml").write_text("---\n".join(documents), encoding="utf-8")
    options = ("--tenants", str(folder / "tenants.yaml"), "--redis", f"redis://{HOST}:{redis.port}", "--workers", "1")
    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(gateway_process(folder / "fleet.yaml", *options)) for _ in range(REPLICAS)
        ]
        yield ProductProcesses([gateway.url for gateway in gateways], [gateway.process.pid for gateway in gateways])


def _tenant_document(name: str, limits: TenantLimits, *, is_strict: bool) -> str:
    amounts = {"requests": limits.requests, "tokens": limits.tokens}
    known = {unit: amount for unit, amount in amounts.items() if amount is not None}
    spec: dict[str, object] = {"enforcement": "Strict"} if is_strict else {}
    return tenant_document(name, PEPPER, **spec, **({"limits": [{"per": "Minute", **known}]} if known else {}))


@asynccontextmanager
async def litellm_processes(
    tenants: Mapping[str, TenantLimits], engine: str, redis: ValkeyNode, folder: Path
) -> AsyncIterator[ProductProcesses]:
    """Runs LiteLLM's proxies. Raises PeerUnavailable if it cannot be installed."""
    program = install_peer("litellm").program
    keys = {f"sk-{name}": (limits.requests, limits.tokens) for name, limits in tenants.items()}
    (folder / "custom_auth.py").write_text(_CUSTOM_AUTH.format(limits=keys), encoding="utf-8")
    config = _CONFIG.format(model=MODEL, engine=engine, host=HOST, port=redis.port)
    (folder / "litellm.yaml").write_text(config, encoding="utf-8")
    started: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        started += [_start_litellm(str(program), folder) for _ in range(REPLICAS)]
        for url, process in started:
            await _wait_ready(url, process)
        windows: dict[str, list[float]] = {}
        pids = [process.pid for _, process in started]
        async with Redis(host=HOST, port=redis.port) as client:
            watch = asyncio.create_task(watch_windows(client, windows))
            try:
                yield ProductProcesses([url for url, _ in started], pids, "sk-", windows)
            finally:
                await cancel_and_wait(watch)
    finally:
        for _, process in started:
            process.kill()
            process.wait()


def _start_litellm(program: str, folder: Path) -> tuple[str, "subprocess.Popen[bytes]"]:
    """Starts a proxy, whose output goes to a file; returns its URL and process."""
    port = unused_port()
    command = [program, "--config", str(folder / "litellm.yaml"), "--host", HOST, "--port", str(port)]
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    return f"http://{HOST}:{port}", process


async def _wait_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + _START_SECONDS
    async with httpx.AsyncClient(timeout=5) as client:
        while loop.time() < end and process.poll() is None:
            try:
                if (await client.get(f"{url}/health/liveliness")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.2)
    raise RuntimeError("LiteLLM's proxy did not start")


COST_TENANTS = {"limited": TenantLimits(100_000_000, 10_000_000_000), "free": TenantLimits()}
_CLIENTS = 8


@dataclass(frozen=True, slots=True)
class LimitCost:
    """Microseconds of processor time of a request, of all processes: medians of rounds."""

    limited: float
    free: float

    @property
    def added(self) -> float:
        """The part that limits add."""
        return self.limited - self.free


async def limit_cost(product: ProductProcesses, redis_root: int, requests: int, rounds: int) -> LimitCost:
    """Returns the cost of one gateway of a product.

    requests: of each round.
    """
    found: dict[str, list[float]] = {tenant: [] for tenant in COST_TENANTS}
    roots = (product.roots[0], redis_root)
    limits = httpx.Limits(max_connections=_CLIENTS)
    async with httpx.AsyncClient(timeout=60, limits=limits, base_url=product.urls[0]) as client:
        for tenant in COST_TENANTS:
            await _round(client, product.key(tenant), max(1, requests // 4))
        for number in range(rounds):
            order = list(COST_TENANTS) if number % 2 else list(reversed(COST_TENANTS))
            for tenant in order:
                before = _cpu_seconds(roots)
                await _round(client, product.key(tenant), requests)
                found[tenant].append((_cpu_seconds(roots) - before) / requests * 1e6)
    return LimitCost(median(found["limited"]), median(found["free"]))


async def _round(client: httpx.AsyncClient, key: str, requests: int) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 20}
    headers = {"authorization": f"Bearer {key}"}
    numbers = iter(range(requests))

    async def send() -> None:
        for _ in numbers:
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            if answer.status_code != 200:
                raise RuntimeError(f"a request of the cost round got {answer.status_code}: {answer.text[:200]}")

    await asyncio.gather(*(send() for _ in range(_CLIENTS)))


def _cpu_seconds(roots: Sequence[int]) -> float:
    return sum(tree_usage(root).cpu_seconds for root in roots)


FAIRLEAD, LITELLM = ESTIMATED, "litellm"
SIMULATED_WINDOWS = 8
CASES = (
    TrafficCase("requests", TenantLimits(requests=600), 1_200),
    TrafficCase("tokens", TenantLimits(tokens=200_000), 1_000),
    TrafficCase("tokens, max_tokens 1,000", TenantLimits(tokens=200_000), 1_000, max_tokens=1_000),
    TrafficCase("tokens, a small tenant", TenantLimits(tokens=30_000), 150),
    TrafficCase("requests and tokens", TenantLimits(requests=600, tokens=200_000), 1_000),
    TrafficCase("budget", TenantLimits(budget=1_800_000_000), 1_000),
    TrafficCase("budget, max_tokens 1,000", TenantLimits(budget=1_800_000_000), 1_000, max_tokens=1_000),
    TrafficCase("budget, a small tenant", TenantLimits(budget=270_000_000), 150),
)
"""Each tenant wants about twice what its limits allow."""
LOOPBACK_CASES = (
    TrafficCase("requests", TenantLimits(requests=60), 120),
    TrafficCase("tokens", TenantLimits(tokens=30_000), 150),
    TrafficCase("tokens, max_tokens 1,000", TenantLimits(tokens=30_000), 150, max_tokens=1_000),
    TrafficCase("requests and tokens", TenantLimits(requests=90, tokens=30_000), 150),
)
_STRICT_CASE = LOOPBACK_CASES[2]
_COST_REQUESTS = {FAIRLEAD: 4_000, LITELLM: 300}
_COST_ROUNDS = {FAIRLEAD: 32, LITELLM: 8}


@dataclass(slots=True)
class Comparison:
    """The measured values: by case and product, over all seeds."""

    simulated: dict[tuple[str, str], list[Accuracy]] = field(default_factory=dict)
    loopback: dict[tuple[str, str], list[Accuracy]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    costs: dict[str, LimitCost] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def simulated(seeds: Sequence[int], windows: int, mapped: MapFunction = map) -> dict[tuple[str, str], list[Accuracy]]:
    """Returns the accuracy of every product in every case."""
    jobs = [
        (case, product, seed, windows)
        for case in CASES
        for product in PRODUCTS
        if can_serve(product, case)
        for seed in seeds
    ]
    found: dict[tuple[str, str], list[Accuracy]] = {}
    for (case, product, _, _), one in zip(jobs, mapped(_simulate, jobs), strict=True):
        found.setdefault((case.name, product), []).append(one)
    return found


def _simulate(job: tuple[TrafficCase, str, int, int]) -> Accuracy:
    case, product, seed, windows = job
    return accuracy(play(product, case, windows, seed), case.limits, windows)


Starter = Callable[[str, ValkeyNode, Path], AbstractAsyncContextManager[ProductProcesses]]


def _starters(tenants: Mapping[str, TenantLimits], strict: frozenset[str]) -> dict[str, Starter]:
    return {
        FAIRLEAD: lambda engine, redis, folder: fairlead_processes(tenants, strict, engine, redis, folder),
        LITELLM: lambda engine, redis, folder: litellm_processes(tenants, engine, redis, folder),
    }


async def over_loopback(windows: int, seed: int, found: Comparison) -> None:
    """Sends the same traffic to real gateways of all products in the same minutes.

    So what else runs on the machine slows all of them down.
    """
    cases = {f"tenant-{number}": case for number, case in enumerate(LOOPBACK_CASES)}
    starters = _starters({tenant: case.limits for tenant, case in cases.items()}, frozenset())
    strict = {"tenant-strict": _STRICT_CASE}
    starters[STRICT] = _starters({"tenant-strict": _STRICT_CASE.limits}, frozenset(strict))[FAIRLEAD]
    os.environ["FAIRLEAD_KEY_PEPPER"] = PEPPER
    products = {name: strict if name == STRICT else cases for name in starters}
    runs = [_run_loopback(starters[name], used, windows, seed) for name, used in products.items()]
    for (name, used), got in zip(products.items(), await asyncio.gather(*runs, return_exceptions=True), strict=True):
        if isinstance(got, PeerUnavailable):
            found.absent.append(f"{name}: {got}")
            continue
        if isinstance(got, BaseException):
            raise got
        for tenant, case in used.items():
            found.loopback.setdefault((case.name, name), []).append(accuracy(got[tenant], case.limits, windows))
            found.failed[name] = found.failed.get(name, 0) + got[tenant].failed


async def _run_loopback(
    start: Starter, cases: Mapping[str, TrafficCase], windows: int, seed: int
) -> dict[str, AdmittedRequests]:
    requests = numbered_requests(cases, (windows + 1) * WINDOW_SECONDS, seed)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            answering_engine(requests) as engine,
            redis_server(Path(folder)) as redis,
            start(engine.url, redis, Path(folder)) as running,
        ):
            got = await send_all(requests, running.urls, {tenant: running.key(tenant) for tenant in cases})
            for tenant, answers in got.items():
                answers.starts = running.starts(tenant) or calendar_starts(got)
            return got


async def costs(product: str) -> LimitCost:
    """Measures what limits cost a request in a product."""
    os.environ["FAIRLEAD_KEY_PEPPER"] = PEPPER
    with tempfile.TemporaryDirectory() as folder:
        async with (
            answering_engine(()) as engine,
            redis_server(Path(folder)) as redis,
            _starters(COST_TENANTS, frozenset())[product](engine.url, redis, Path(folder)) as running,
        ):
            return await limit_cost(running, redis.process.pid, _COST_REQUESTS[product], _COST_ROUNDS[product])


def measure(parts: Sequence[str], seeds: Sequence[int], windows: int, mapped: MapFunction = map) -> Comparison:
    """Measures the parts `simulated`, `loopback` and `cost`."""
    found = Comparison()
    if "simulated" in parts:
        found.simulated = simulated(seeds, SIMULATED_WINDOWS, mapped)
    if "loopback" in parts:
        asyncio.run(over_loopback(windows, seeds[0], found))
    for product in (FAIRLEAD, LITELLM) if "cost" in parts else ():
        try:
            found.costs[product] = asyncio.run(costs(product))
        except PeerUnavailable as error:
            found.absent.append(f"{product}: {error}")
    return found


def rows(found: Comparison, goals: Goals) -> list[ResultRow]:
    """Returns the rows of all parts that were measured."""
    made: list[ResultRow] = []
    for part, accuracies in (("simulated", found.simulated), ("over loopback", found.loopback)):
        for (case, product), values in accuracies.items():
            for name, share in _shares(values).items():
                made.append(goals.value(f"{part}, {case}: {name}, %: {product}", "%", 100.0 * share))
        made += _differences(part, accuracies, goals)
    for product, failed in found.failed.items():
        made.append(goals.value(f"over loopback: requests that failed: {product}", "requests", float(failed)))
    for product, cost in found.costs.items():
        for name, value in (("limits add", cost.added), ("without limits", cost.free)):
            made.append(goals.value(f"processor time of a request: {name}: {product}", "µs", value))
    if found.costs.keys() >= {FAIRLEAD, LITELLM}:
        # Rounds of LiteLLM differ by more than limits add, so whole requests are compared.
        metric = f"processor time of a request: with limits: Fairlead ÷ {LITELLM}"
        own, other = found.costs[FAIRLEAD].limited, found.costs[LITELLM].limited
        made.append(goals.ratio(metric, "µs", own, LITELLM, other))
    return made


def _shares(values: Sequence[Accuracy]) -> dict[str, float]:
    return {
        "over-run": fmean(value.overrun for value in values),
        "under-use": fmean(value.underuse for value in values),
        "all use": fmean(value.total for value in values),
    }


def _differences(part: str, accuracies: Mapping[tuple[str, str], Sequence[Accuracy]], goals: Goals) -> list[ResultRow]:
    """Returns Fairlead's over-run and under-use less those of each other product."""
    made = []
    for (case, product), values in accuracies.items():
        if product in (FAIRLEAD, STRICT) or (case, FAIRLEAD) not in accuracies:
            continue
        own, other = _shares(accuracies[case, FAIRLEAD]), _shares(values)
        for name in ("over-run", "under-use"):
            metric = f"{part}, {case}: {name}: Fairlead − {product}, points"
            made.append(goals.value(metric, "points", 100.0 * (own[name] - other[name])))
    return made
