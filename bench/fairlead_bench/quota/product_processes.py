"""Gateways with limits as processes before one Redis: those of Fairlead, and LiteLLM's proxies.

LiteLLM gets its limits through its `custom_auth` hook, which needs no database. Departures from its
defaults: it writes no log line per request, and does not cache responses.
"""

import asyncio
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
from redis.asyncio import Redis

from fairlead.fleet.file import write_fleet_file
from fairlead_bench.gateway.peer_installation import install_peer
from fairlead_bench.quota.loopback_traffic import MODEL, REPLICAS
from fairlead_bench.quota.tenant_traffic import TenantLimits
from fairlead_gateway.worker.api_keys import key_digest
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.ports import unused_port
from fairlead_testing.redis.valkey_cluster import HOST, ValkeyGroup, ValkeyNode

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


class ProductProcesses(ABC):
    """Running gateways of one product.

    roots: the process ids of the gateways.
    """

    def __init__(self, urls: Sequence[str], roots: Sequence[int]) -> None:
        self.urls = urls
        self.roots = roots

    @abstractmethod
    def key(self, tenant: str) -> str:
        """Returns the API key of a tenant."""

    @abstractmethod
    def starts(self, tenant: str) -> Sequence[float] | None:
        """Returns the beginnings of a tenant's windows in Unix seconds; None: whole minutes."""


class FairleadProcesses(ProductProcesses):
    """Gateways of Fairlead."""

    def key(self, tenant: str) -> str:
        """Returns the API key of a tenant."""
        return tenant

    def starts(self, tenant: str) -> Sequence[float] | None:
        """Windows are whole minutes."""
        return None


class LitellmProcesses(ProductProcesses):
    """LiteLLM's proxies."""

    def __init__(self, urls: Sequence[str], roots: Sequence[int]) -> None:
        super().__init__(urls, roots)
        self.found: dict[str, list[float]] = {}
        self.has_ended = False

    def key(self, tenant: str) -> str:
        """Returns the API key of a tenant."""
        return f"sk-{tenant}"

    def starts(self, tenant: str) -> Sequence[float] | None:
        """Returns the windows that were seen in Redis."""
        return self.found.get(tenant, [])

    async def watch(self, redis: "Redis") -> None:
        """Notes when windows begin, until `has_ended` is set."""
        while not self.has_ended:
            async for key in redis.scan_iter("*:window"):
                found = _WINDOW_KEY.search(key.decode())
                value = await redis.get(key)
                if found is not None and value is not None:
                    starts = self.found.setdefault(found[1], [])
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
        yield FairleadProcesses([one.url for one in gateways], [one.process.pid for one in gateways])


def _tenant_document(name: str, limits: TenantLimits, *, is_strict: bool) -> str:
    digest = key_digest(name.encode(), PEPPER.encode()).hex()
    units = (("requests", limits.requests), ("tokens", limits.tokens))
    lines = "".join(f", {unit}: {amount}" for unit, amount in units if amount is not None)
    spec = f'keys: [{{name: k, digest: "{digest}"}}]'
    if lines:
        spec += f", limits: [{{per: Minute{lines}}}]"
    if is_strict:
        spec += ", enforcement: Strict"
    return (
        f"apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )


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
        found = LitellmProcesses([url for url, _ in started], [process.pid for _, process in started])
        async with Redis(host=HOST, port=redis.port) as client:
            watch = asyncio.create_task(found.watch(client))
            try:
                yield found
            finally:
                found.has_ended = True
                await watch
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
