"""A whole gateway: scoped tokens over HTTP, and its audit records on a stream and in files."""

import asyncio
import hmac
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fairlead.audit.reader import AuditQuery, read_folder
from fairlead_testing.engines.scripted import scripted_engine, well_behaved
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.waiting import wait_until

PEPPER = "canary-pepper"
KEYS = {"acme": "canary-key-of-acme", "beta": "canary-key-of-beta"}
TOKENS = {"acme-team": "canary-token-of-acme", "support": "canary-token-of-support"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "canary prompt"}]}


def _digest(text: str) -> str:
    return hmac.digest(PEPPER.encode(), text.encode(), "sha256").hex()


def _token_file(**scopes: str) -> str:
    rows = [f"- {{name: {name}, digest: '{_digest(TOKENS[name])}', {scope}}}\n" for name, scope in scopes.items()]
    return "tokens:\n" + "".join(rows)


async def _chat(gateway: GatewayProcess, tenant: str, request_id: str) -> str:
    headers = {"authorization": f"Bearer {KEYS[tenant]}", "x-request-id": request_id}
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 200
    return answer.headers["x-fairlead-decision"]


async def _manage(gateway: GatewayProcess, path: str, token: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.manage, trust_env=False) as client:
        return await client.get(path, headers={"authorization": f"Bearer {token}"})


async def _use(gateway: GatewayProcess, files: Path) -> None:
    """Uses a gateway as two tenants, and reads as three tokens."""
    own = await _chat(gateway, "acme", "job-7")
    other = await _chat(gateway, "beta", "job-7")
    team, support = TOKENS["acme-team"], TOKENS["support"]

    async def get(path: str, token: str) -> Any:
        answer = await _manage(gateway, path, token)
        return answer.json().get("request_id", answer.status_code)

    assert await get(f"/api/decisions/{own}", team) == own
    assert await get(f"/api/decisions/{other}", team) == 404
    assert await get("/api/decisions/job-7", team) == own
    assert await get("/api/decisions/job-7", support) == 409
    assert await get("/api/decisions/job-7?tenant=beta", support) == other
    assert await get("/api/fleet", team) == 403
    denied = await _manage(gateway, "/api/stats", team)
    (record,) = (await _manage(gateway, "/api/audit?limit=1", support)).json()["records"]
    assert (record["action"], record["request_id"]) == ("AccessDenied", denied.headers["x-request-id"])
    assert await get("/api/stats", "installation-token") == 200
    await asyncio.to_thread((files / "tokens.yaml").write_text, _token_file(support="tenants: all, may: [Read, Audit]"))

    async def is_refused() -> bool:
        return (await _manage(gateway, "/api/decisions", team)).status_code == 401

    await wait_until(is_refused)
    await asyncio.to_thread((files / "revoked").write_text, _digest(KEYS["beta"]) + "\n")

    async def is_revoked() -> bool:
        audit = (await _manage(gateway, "/api/audit?tenant=beta", support)).json()["records"]
        return [(record["action"], record["object"]) for record in audit] == [("KeyRevoked", "ApiKey/beta/beta")]

    await wait_until(is_revoked)
    records = (await _manage(gateway, "/api/audit", support)).json()["records"]
    assert {"TenantsLoaded", "TokensChanged", "AccessDenied", "ManagementRead", "ModelsLoaded"} <= {
        record["action"] for record in records
    }


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder with the files of a gateway, whose environment names them."""
    rows = [f"- {{name: {name}, digest: '{_digest(key)}'}}\n" for name, key in KEYS.items()]
    (tmp_path / "keys.yaml").write_text("keys:\n" + "".join(rows))
    team, support = "tenants: [acme], may: [Read]", "tenants: all, may: [Read, Audit]"
    (tmp_path / "tokens.yaml").write_text(_token_file(**{"acme-team": team, "support": support}))
    monkeypatch.setenv("FAIRLEAD_KEY_PEPPER", PEPPER)
    monkeypatch.setenv("FAIRLEAD_MANAGE_TOKEN", "installation-token")
    monkeypatch.setenv("FAIRLEAD_MANAGE_TOKENS_FILE", str(tmp_path / "tokens.yaml"))
    monkeypatch.setenv("FAIRLEAD_AUDIT_DIR", str(tmp_path / "audit"))
    monkeypatch.setenv("FAIRLEAD_AUDIT_LOG", "-")
    return tmp_path


def test_scopes_hold_over_http_and_what_happened_is_on_the_stream_and_on_the_disk(files: Path) -> None:
    async def check() -> str:
        async with scripted_engine(well_behaved) as engine:
            fleet = files / "fleet.yaml"
            fleet.write_text(f"models: [{{name: tiny, instances: [{{url: '{engine.url}'}}]}}]\n")
            async with gateway_process(
                fleet, "--keys", str(files / "keys.yaml"), "--revoked", str(files / "revoked")
            ) as gateway:
                await _use(gateway, files)
                gateway.process.terminate()
                assert await gateway.wait() == 0
                return (await gateway.process.stdout.read()).decode()

    stream = [json.loads(line) for line in asyncio.run(check()).splitlines()]
    records = read_folder(files / "audit", AuditQuery(), max_records=1_000).records
    assert [line["sequence"] for line in stream] == [record.sequence for record in records]
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    actions = {(record.action, record.actor, record.object) for record in records}
    assert ("ManagementRead", "acme-team", "GET /api/decisions/{request_id}") in actions
    assert ("AccessDenied", "acme-team", "GET another path") not in actions
    assert ("AccessDenied", "acme-team", "GET /api/fleet") in actions
    assert ("TokensChanged", "token file", "ManageToken/acme-team") in actions
    text = "".join(path.read_text() for path in (files / "audit").iterdir()) + json.dumps(stream)
    assert "canary" not in text
