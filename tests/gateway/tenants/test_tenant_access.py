"""Tenants at a gateway of real processes: what clients see, and what no output shows."""

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from fairlead.fleet.file import write_fleet_file
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.http.raw_client import get_request, send
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

PEPPER = "a pepper of the test"
GOOD, OTHER, EXPIRED, SUSPENDED, CONFINED = (
    f"fl_canary-{name}-5e1f" for name in ("good", "other", "old", "held", "few")
)
KEYS = (GOOD, OTHER, EXPIRED, SUSPENDED, CONFINED)
CHAT = [{"role": "user", "content": "hi"}]


def digest(key: str) -> str:
    return hmac.new(PEPPER.encode(), key.encode(), hashlib.sha256).hexdigest()


def document(name: str, key: str, *, expires: str = "", more: str = "") -> str:
    head = f"---\napiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\nmetadata: {{name: {name}}}\nspec:\n"
    return f"{head}  keys: [{{name: prod, digest: '{digest(key)}'{expires}}}]\n{more}"


DOCUMENTS = {
    "acme": document("acme", GOOD, more="  models: [default/tiny]\n"),
    "zeta": document("zeta", OTHER, more="  models: [default/other]\n"),
    "old": document("old", EXPIRED, expires=", expiresAt: '2020-01-01T00:00:00Z'"),
    "held": document("held", SUSPENDED, more="  suspended: true\n"),
    "few": document("few", CONFINED, more="  otherPaths: Refuse\n"),
}


@dataclass(slots=True)
class Scene:
    """A gateway with tenants, and the files that it follows."""

    gateway: GatewayProcess
    tenants: Path
    revoked: Path
    folder: Path
    collector: CannedServer

    def client(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=key, max_retries=0)

    async def chat(self, key: str, model: str = "tiny") -> bool:
        async with self.client(key) as client:
            answer = await client.chat.completions.create(model=model, messages=CHAT)  # type: ignore[arg-type]
            return bool(answer.choices)

    async def status(self, key: str) -> int:
        more = f"authorization: Bearer {key}\r\n"
        return (await send(self.gateway.url, get_request("/v1/models", more=more)))[0].status


@asynccontextmanager
async def scene(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    tenants, revoked, fleet = folder / "tenants.yaml", folder / "revoked", folder / "fleet.yaml"
    await asyncio.to_thread(tenants.write_text, "".join(DOCUMENTS.values()))
    with CannedServer({"/v1/traces": CannedResponse([b"{}"])}) as collector:
        async with scripted_engine() as engine:
            write_fleet_file(fleet, fleet_of([engine.url]))
            for name, value in {
                "FAIRLEAD_KEY_PEPPER": PEPPER,
                "FAIRLEAD_LOG_LEVEL": "debug",
                "FAIRLEAD_ACCESS_LOG": str(folder / "access.log"),
                "FAIRLEAD_TRACE_ENDPOINT": collector.url,
                "FAIRLEAD_TRACE_SAMPLE": "1",
            }.items():
                monkeypatch.setenv(name, value)
            options = ("--tenants", str(tenants), "--revoked", str(revoked), "--workers", "2")
            async with gateway_process(fleet, *options) as gateway:
                yield Scene(gateway, tenants, revoked, folder, collector)


async def test_sdk_raises_the_class_that_fits_each_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as at:
        assert await at.chat(GOOD)
        async with at.client(GOOD) as client:
            assert [model.id async for model in client.models.list()] == ["tiny"]
        for key in ("fl_unknown", EXPIRED):
            with pytest.raises(openai.AuthenticationError) as refused:
                await at.chat(key)
            assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError) as denied:
            await at.chat(SUSPENDED)
        assert denied.value.code == "tenant_suspended"
        async with at.client(CONFINED) as client:
            with pytest.raises(openai.PermissionDeniedError) as denied:
                await client.moderations.create(model="tiny", input="hi")
            assert denied.value.code == "path_not_permitted"
        for key, model in ((OTHER, "tiny"), (GOOD, "none")):
            with pytest.raises(openai.NotFoundError) as missing:
                await at.chat(key, model)
            assert missing.value.code == "model_not_found"
            assert "tiny" not in str(missing.value) or key == GOOD


async def test_revoked_keys_stop_while_their_configuration_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as at:
        assert (await at.status(GOOD), await at.status(OTHER)) == (200, 200)
        await asyncio.to_thread(at.tenants.write_text, DOCUMENTS["acme"] + DOCUMENTS["zeta"] + "---\nkind: [\n")

        async def is_noted() -> bool:
            return "not YAML" in await at.gateway.warnings()

        async def good_stopped() -> bool:
            return await at.status(GOOD) == 401

        async def other_stopped() -> bool:
            return await at.status(OTHER) == 401

        await wait_until(is_noted)
        assert (await at.status(GOOD), await at.status(OTHER), await at.status(CONFINED)) == (200, 200, 401)
        await asyncio.to_thread(at.revoked.write_text, f"no digest\n{digest(GOOD)}\n")
        await wait_until(good_stopped)
        assert await at.status(OTHER) == 200
        without = DOCUMENTS["zeta"].replace(digest(OTHER), "0" * 64) + "  weight: [\n"
        await asyncio.to_thread(at.tenants.write_text, without)
        await wait_until(other_stopped)


def test_no_output_shows_a_key_or_a_digest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> dict[str, str]:
        async with scene(tmp_path, monkeypatch) as at:
            for key in (*KEYS, "fl_canary-unknown-5e1f"):
                with contextlib.suppress(openai.APIStatusError):
                    await at.chat(key)
            # a key where a digest, a name and a whole document should be
            wrong = f"---\n{GOOD}\n" + document("wrong", "a").replace(digest("a"), OTHER).replace("prod", CONFINED)
            await asyncio.to_thread(at.tenants.write_text, "".join(DOCUMENTS.values()) + wrong)
            await asyncio.to_thread(at.revoked.write_text, f"{EXPIRED}\n{digest(SUSPENDED)}\n")

            async def is_noted() -> bool:
                warnings = await at.gateway.warnings()
                return "no digest on line 1" in warnings and "tenants.yaml" in warnings

            await wait_until(is_noted)
            assert await at.status(GOOD) == 200
            paths = ("/", "/readyz", "/metrics", "/api/fleet", "/api/stats", "/api/decisions?limit=50", "/openapi.json")
            outputs = {path: (await at.gateway.get(path)).body.decode() for path in paths}
            assert "acme" in outputs["/api/decisions?limit=50"]

            async def is_exported() -> bool:
                return any(b"acme" in request.body for request in at.collector.requests)

            await wait_until(is_exported)
            outputs["traces"] = repr([request.body for request in at.collector.requests])
            outputs["access log"] = (tmp_path / "access.log").read_text()
            assert "acme" in outputs["access log"]
            return outputs

    outputs = run_async(main())
    captured = capfd.readouterr()
    outputs["log"] = captured.out + captured.err
    assert "tenants.yaml" in outputs["log"]
    for name, text in outputs.items():
        assert "canary" not in text, name
        for key in KEYS:
            assert digest(key) not in text.lower(), name
