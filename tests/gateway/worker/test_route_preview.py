"""Route previews: they show the later decision and change nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead.fleet.model import InstanceState, RoutingPreset
from fairlead.tenants.model import ApiKey, Tenant
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import BadRequest, NoReadyInstance, NotPermitted, Overloaded, UnknownModel, UnknownPath
from fairlead_gateway.proxy.model_selection import ModelRequestParser
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import scripted_engine, well_behaved
from fairlead_testing.gateway.gateway_process import process_before
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import post_request, request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

CHAT = "/v1/chat/completions"


def body(text: str, **more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


async def previewed(running: RunningGateway, text: str, session: str | None = None) -> str | None:
    content = json.dumps(body(text), separators=(",", ":")).encode()
    return (await running.preview_route(CHAT, content, session)).latest.decision.chosen


@pytest.mark.parametrize("preset", [preset.value for preset in RoutingPreset if preset is not RoutingPreset.DUALMAP])
async def test_what_is_said_is_what_the_next_request_gets(preset: str) -> None:
    async with scripted_engine() as first, scripted_engine() as second, scripted_engine() as third:
        fleet = fleet_of([first.url, second.url, third.url], preset=preset)
        async with running_gateway(fleet) as running:
            running.gateway.listener.create_request_id = lambda: "asked"  # among equals, the id decides
            for number in range(12):
                text = f"{'a long prompt ' * 200} {number % 4}"
                await wait_until(lambda: not running.gateway.inflight_count())
                asked = {await previewed(running, text) for _ in range(3)}
                answer = await request(running.url, body(text))
                assert answer.status == 200
                assert asked == {answer.fields["x-fairlead-instance"]}
            assert len(running.gateway.decisions) == 1


async def test_what_would_be_refused_is_refused() -> None:
    async with scripted_engine() as engine:
        async with running_gateway(fleet_of([engine.url])) as running:
            would = running.preview_route
            with pytest.raises(UnknownModel, match="tiny"):
                await would(CHAT, json.dumps(body("x") | {"model": "tinny"}).encode(), None)
            with pytest.raises(BadRequest):
                await would(CHAT, b"{", None)
            with pytest.raises(UnknownPath, match="/v1/completions"):
                await would("/v1/models", b"{}", None)
        starting = fleet_of([engine.url], states=[InstanceState.STARTING])
        async with running_gateway(starting) as running:
            with pytest.raises(NoReadyInstance, match="1 starting"):
                await previewed(running, "x")


async def test_preview_for_a_tenant_has_its_models_and_its_cached_prompts() -> None:
    keys = ApiKeys(b"pepper", {b"d" * 32: "of-the-file"})
    held = (ApiKey("k", key_digest(b"key", b"pepper")),)
    keys.update_tenants(
        [
            Tenant("acme", keys=held),
            Tenant("zeta", models=frozenset({"default/other"})),
            Tenant("stopped", is_suspended=True),
        ]
    )
    async with gateway_of(well_behaved, well_behaved, api_keys=keys) as (running, *_):
        content = json.dumps(body("a long prompt " * 400), separators=(",", ":")).encode()

        async def matched(tenant: str | None) -> float:
            decision = (await running.preview_route(CHAT, content, None, tenant)).latest.decision
            return max(signal.value or 0.0 for name, signal in decision.inputs.items() if "matched" in name)

        assert (await matched(None), await matched("acme"), await matched("of-the-file")) == (0.0, 0.0, 0.0)
        answer = await request(running.url, json.loads(content), more="authorization: Bearer key\r\n")
        assert answer.status == 200
        await wait_until(lambda: not running.gateway.inflight_count())
        assert await matched("acme") > 500
        assert (await matched(None), await matched("of-the-file")) == (0.0, 0.0)
        with pytest.raises(UnknownModel):
            await matched("zeta")
        with pytest.raises(NotPermitted, match="suspended"):
            await matched("stopped")
        with pytest.raises(BadRequest, match="no tenant is called 'nobody'"):
            await matched("nobody")


async def test_preview_for_a_tenant_is_refused_where_no_key_is_asked_for() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        with pytest.raises(BadRequest, match="no tenant is called 'acme'"):
            await running.preview_route(CHAT, json.dumps(body("x")).encode(), None, "acme")


async def test_a_large_body_is_checked_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has streams of clients: 6 MB of messages took a quarter of a second of it."""
    content = json.dumps(body("x") | {"messages": [{"role": "user", "content": "a" * 99}] * 9_000}).encode()
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        monkeypatch.setattr(ModelRequestParser, "parse", None)
        preview = await running.preview_route(CHAT, content, None)
        assert preview.latest.decision.chosen == "e-0/0/0"
        assert preview.latest.prompt_tokens > 200_000


async def test_a_body_that_is_not_checked_in_time_is_refused() -> None:
    """Without a reply in time, the supervisor takes the worker for hung."""
    content = json.dumps(body("x" * 300_000)).encode()
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        async with running.gateway._large_bodies.turns.turn(CallerKey("other")):
            with pytest.raises(Overloaded, match="in time"):
                await running.preview_route(CHAT, content, None)
        assert (await running.preview_route(CHAT, content, None)).latest.decision.chosen == "e-0/0/0"


def question(path: str, content: object, more: str = "") -> bytes:
    return post_request(content, path=path, more=f"content-type: application/json\r\n{more}").replace(
        b"host: x", b"host: 127.0.0.1"
    )


@pytest.mark.sockets
async def test_the_management_port_asks_every_worker_and_changes_nothing(tmp_path: Path) -> None:
    async with process_before(tmp_path, well_behaved, well_behaved, options=("--workers", "2")) as (gateway, *engines):

        async def answer(content: object, where: str = "/api/route", more: str = "") -> tuple[int, Any]:
            got = (await send(gateway.manage, question(where, content, more)))[0]
            return got.status, got.json

        status, preview = await answer(body("hi"))
        assert (status, preview["workers"], preview["agreeing"]) == (200, 2, 2)
        (choice,) = preview["decision"]["choices"]
        gone = (await request(gateway.url, body("hi"))).fields
        assert choice["instance"] == gone["x-fairlead-instance"]
        assert (await gateway.get_json("/api/decisions"))["decisions"][0]["request_id"] == gone["x-fairlead-decision"]
        status, refused = await answer(body("hi") | {"model": "other"})
        assert (status, "no model" in str(refused) or "other" in str(refused)) == (404, True)
        assert (await answer({"input": 3, "model": "tiny"}, "/api/route?path=/v1/nothing"))[0] == 404
        assert (await answer(body("hi"), more="origin: http://evil.example\r\n"))[0] == 403
        assert (await answer(body("hi"), "/api/stats"))[0] == 405
        prompts = [call for engine in engines for call in engine.calls if call.path == CHAT]
        assert len(prompts) == 1
