"""Limits over gateways that are processes, with tenants from a file and a real server."""

import asyncio
from pathlib import Path

import httpx
import pytest

from fairlead.fleet.file import write_fleet_file
from fairlead_gateway.tenants.worker.api_keys import key_digest
from fairlead_testing.engines.scripted import responds, scripted_engine
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.limited_gateway import answer
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of
from fairlead_testing.redis.valkey import Valkey

pytestmark = pytest.mark.sockets

_PEPPER = "pepper" * 6
_TENANT = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelTenant
metadata: {{name: acme}}
spec:
  keys: [{{name: prod, digest: "{digest}"}}]
  limits: [{{per: Day, requests: 40}}]
"""


async def _send(client: httpx.AsyncClient, gateways: list[GatewayProcess], count: int) -> list[int]:
    async def send(number: int) -> int:
        url = f"{gateways[number % len(gateways)].url}/v1/chat/completions"
        return (await client.post(url, json=GOOD, headers={"authorization": "Bearer acme"})).status_code

    return await asyncio.gather(*map(send, range(count)))


async def test_two_gateways_share_a_limit_and_show_it(
    server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_KEY_PEPPER", _PEPPER)
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(_TENANT.format(digest=key_digest(b"acme", _PEPPER.encode()).hex()))
    async with scripted_engine(responds(answer())) as engine, httpx.AsyncClient(timeout=60) as client:
        write_fleet_file(tmp_path / "fleet.yaml", fleet_of([engine.url]))
        options = ("--tenants", str(tenants), "--redis", server.url)
        async with (
            gateway_process(tmp_path / "fleet.yaml", *options) as gateway,
            gateway_process(tmp_path / "fleet.yaml", *options) as other,
        ):
            codes = await _send(client, [gateway, other], 60)
            assert (codes.count(200), codes.count(429)) == (40, 20)
            shown = (await other.get_json("/api/limits?tenant=acme"))["limits"][0]
            assert (shown["amount"], shown["used"], shown["available"]) == (40, 40, 0)
