"""Probes, the release and lists of models, which clients ask first, and hints for other paths."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import fairlead
import fairlead_gateway.proxy
from fairlead.tenants.model import Tenant
from fairlead_testing.engines.scripted import well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, gateway_before, gateway_of
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, request, send

pytestmark = pytest.mark.simulated

ROOT = Path(__file__).parents[3]
TABLE: dict[str, list[str]] = json.loads((Path(fairlead_gateway.proxy.__path__[0]) / "engine_paths.json").read_text())
HINTS = {path: hint for hint, paths in TABLE.items() for path in paths}
PROBES = ["/health", "/ping", "/readyz"]
KEY = authorization("acme")
ANTHROPIC = "anthropic-version: 2023-06-01\r\n"


async def fetch(url: str, path: str, method: str = "GET", more: str = "") -> RawResponse:
    connection = await RawConnection.connect(url)
    try:
        await connection.send(get_request(path, method=method, more=more))
        return await connection.read_response(head_only=method == "HEAD")
    finally:
        await connection.close()


async def test_each_path_of_engines_is_refused_with_what_to_ask_instead() -> None:
    async with gateway_before([well_behaved]) as running:
        for path, hint in HINTS.items():
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                answer = await fetch(running.url, path, method)
                assert answer.status == 404, (path, method)
                if method != "HEAD":
                    assert answer.error["code"] == "unknown_url"
                    assert hint in answer.error["message"]
            answer = await request(running.url, GOOD, path=path)
            assert (answer.status, hint in answer.error["message"]) == (404, True)


def test_no_path_of_engines_is_one_that_the_gateway_serves() -> None:
    assert not HINTS.keys() & {*PROBES, "/version", "/tokenize", "/detokenize", "/rerank", "/score", "/classify"}
    assert len(HINTS) == sum(map(len, TABLE.values())), "each path once"


def test_the_page_lists_the_paths_of_engines() -> None:
    page = (ROOT / "docs" / "reference" / "requests.md").read_text()
    for hint, paths in TABLE.items():
        assert f"| {', '.join(f'`{path}`' for path in paths)} | {hint} |" in page


@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize("more", ["", KEY, "authorization: Bearer no\r\n"])
async def test_probes_need_no_key_and_say_whether_requests_are_served(path: str, more: str) -> None:
    async with gateway_of(well_behaved, api_keys=keys_of(Tenant("acme"))) as (running, *_):
        answer = await fetch(running.url, path, more=more)
        assert (answer.status, answer.json) == (200, {"ready": True, "notes": []})
        head, options = [await fetch(running.url, path, method, more) for method in ("HEAD", "OPTIONS")]
        assert (head.status, head.fields["content-length"]) == (200, str(len(answer.body)))
        assert (options.status, options.fields["allow"]) == (200, "GET, HEAD, OPTIONS")
        assert (await fetch(running.url, path, "DELETE", more)).status == 405
        running.gateway._is_draining = True
        assert (await fetch(running.url, path, more=more)).status == 503


async def test_the_release_is_for_callers() -> None:
    async with gateway_of(well_behaved, api_keys=keys_of(Tenant("acme"))) as (running, *_):
        assert (await fetch(running.url, "/version")).status == 401
        assert (await fetch(running.url, "/version", more=KEY)).json == {"version": fairlead.__version__}


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/responses", "/v1/chat/completions", "/ws", "/health"])
async def test_a_websocket_is_refused_with_a_status_that_clients_fall_back_on(path: str) -> None:
    handshake = "connection: Upgrade\r\nUpgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAA\r\n"
    async with gateway_before([well_behaved]) as running:
        answer = await fetch(running.url, path, more=handshake)
        assert (answer.status, answer.error["code"]) == (426, "websocket_not_supported")
        assert answer.fields["upgrade"] == "HTTP/1.1"
        assert "allowedPaths" not in answer.error["message"]
        more = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"
        assert (await send(running.url, post_request(GOOD, more=more)))[0].status == 200


def models_of(answer: RawResponse) -> list[dict[str, Any]]:
    found: dict[str, Any] = answer.json
    assert set(found) == {"data", "has_more", "first_id", "last_id"}
    assert found["has_more"] is False
    return list(found["data"])


async def test_models_have_anthropics_form_for_its_clients() -> None:
    async with gateway_before([well_behaved]) as running:
        listed = await fetch(running.url, "/v1/models", more=ANTHROPIC)
        (model,) = models_of(listed)
        assert (listed.json["first_id"], listed.json["last_id"]) == ("tiny", "tiny")
        assert (model["type"], model["id"], model["display_name"]) == ("model", "tiny", "tiny")
        assert datetime.fromisoformat(model["created_at"]).tzinfo is not None
        assert (await fetch(running.url, "/v1/models/tiny", more=ANTHROPIC)).json == model
        assert (await fetch(running.url, "/v1/models?limit=1&after_id=x", more=ANTHROPIC)).json == listed.json
        assert (await fetch(running.url, "/v1/models")).json["object"] == "list"


async def test_a_client_of_anthropics_without_models_or_with_a_wrong_name_gets_its_forms() -> None:
    async with gateway_of(well_behaved, api_keys=keys_of(Tenant("acme", models=frozenset({"none"})))) as (running, *_):
        listed = await fetch(running.url, "/v1/models", more=ANTHROPIC + KEY)
        assert listed.json == {"data": [], "has_more": False, "first_id": None, "last_id": None}
        for path, more, kind in (("/v1/models/x", KEY, "not_found_error"), ("/v1/models", "", "authentication_error")):
            answer = await fetch(running.url, path, more=ANTHROPIC + more)
            assert (answer.json["type"], answer.json["error"]["type"]) == ("error", kind)
