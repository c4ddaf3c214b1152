"""The modules that an idle gateway imports, which are most of its memory.

Unused features stay on disk. `bench/gateway` measures the memory itself. Here both processes write
down at exit what they imported.
"""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.fleet.file import write_fleet_file
from fairlead_testing.engines.scripted import scripted_engine, well_behaved
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process, process_before
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.sockets

TELL = """
import atexit, os, sys
def told():
    with open(os.path.join(os.environ["TELL"], str(os.getpid())), "w") as file:
        file.write("\\n".join(sys.modules))
atexit.register(told)
"""
NOBODY = {
    *(
        "fastapi",
        "starlette",
        "anyio",
        "click",
        "httpx",
        "redis",
        "prometheus_client",
        "opentelemetry",
        "aiohttp",
        "kopf",
        "cryptography",
    ),
    *("multiprocessing", "statistics", "difflib", "http.client", "urllib.request"),
    *(
        "fairlead_gateway.telemetry.worker.observers",
        "fairlead_gateway.telemetry.worker.otlp_exporter",
        "fairlead_kvstore.redis.link",
        "fairlead_gateway.bearer_tokens.supervisor",
        "fairlead_gateway.bearer_tokens.worker",
    ),
}
"""With the default features, neither process imports these, in traffic, probes or scrapes."""
WORKER = {
    *("pydantic", "yaml", "argparse", "email", "shutil", "tempfile", "json"),
    *(
        "fairlead_gateway.supervisor.management",
        "fairlead_gateway.telemetry.metrics",
        "fairlead.fleet.file",
        "fairlead.api.v1alpha1",
    ),
}
HELPER = {
    *(
        "uvloop",
        "pydantic",
        "pydantic_core",
        "yaml",
        "email",
        "fairlead.api",
        "fairlead.fleet.file",
        "fairlead.manifests",
    ),
    *(
        "fairlead_gateway.proxy.gateway",
        "fairlead_gateway.proxy.forwarder",
        "fairlead_gateway.upstream.connection",
        "fairlead_gateway.supervisor.management.api",
    ),
}


async def _used(gateway: GatewayProcess) -> None:
    assert (await request(gateway.url, GOOD)).status == 200
    assert (await gateway.get("/readyz")).status == 200
    assert (await gateway.get("/metrics")).status == 200
    assert (await gateway.get("/")).status == 200


async def test_an_idle_gateway_has_not_imported_unused_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(TELL)
    folder = tmp_path / "told"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TELL", str(folder))
    async with process_before(tmp_path, well_behaved) as (gateway, *_):
        await _used(gateway)
        (worker,) = gateway.worker_pids()
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.wait() == 0
    helper, worker = [set((folder / str(pid)).read_text().split()) for pid in (gateway.process.pid, worker)]
    assert helper & (NOBODY | HELPER) == set()
    assert worker & (NOBODY | WORKER) == set()


def test_reading_kv_events_does_not_import_the_client_of_redis() -> None:
    code = "import sys, fairlead_gateway.kv_index.supervisor.event_reader as reader; assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_the_api_is_imported_once_by_concurrent_first_requests(tmp_path: Path) -> None:
    async with scripted_engine() as engine:
        path = tmp_path / "fleet.yaml"
        write_fleet_file(path, fleet_of([engine.url]))
        async with gateway_process(path) as gateway:
            asked = ("/api/fleet", "/api/stats", "/openapi.json", "/readyz")
            answers = await asyncio.gather(*(gateway.get(path) for path in asked))
            assert [answer.status for answer in answers] == [200] * 4
