"""A web page uses no gateway without keys, and calls one with keys from any origin."""

import json

import pytest

from fairlead.errors import SettingsError
from fairlead.settings import GatewaySettings
from fairlead.tenants.model import Tenant
from fairlead_gateway.proxy.cors import parse_cors
from fairlead_testing.engines.scripted import scripted_engine, well_behaved
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, gateway_of, running_gateway
from fairlead_testing.gateway.tenant_keys import keys_of
from fairlead_testing.http.raw_client import RawResponse, send

pytestmark = pytest.mark.simulated

BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
PREFLIGHT = "access-control-request-method: POST"
UI = "https://ui.example"
KEY = "acme"


async def send_page_request(
    running: RunningGateway, *lines: str, method: str = "POST", path: str = "/v1/chat/completions"
) -> RawResponse:
    """Sends a request with these header lines; `host: localhost` unless one of them is a Host."""
    body = BODY if method == "POST" else b""
    host = [] if any(line.startswith("host:") for line in lines) else ["host: localhost"]
    head = [f"{method} {path} HTTP/1.1", *host, *lines, f"content-length: {len(body)}", "connection: close", "", ""]
    return (await send(running.url, "\r\n".join(head).encode() + body))[0]


NAME = "host: rebind.evil.example"


@pytest.mark.parametrize(
    ("line", "param"),
    [
        ("host: rebind.evil.example:8000", "host"),
        ("host: localhost.evil.example:8000", "host"),
        ("host: 10.0.0.1.nip.io:8000", "host"),
        *[(f"{NAME}\r\n{name}: x", "host") for name in ("accept-language", "referer", "sec-fetch-mode")],
        (f"{NAME}\r\norigin: http://rebind.evil.example", "host"),
        (f"{NAME}\r\nuser-agent: Mozilla/5.0 (X11)", "host"),
        ("origin: http://evil.example", "origin"),
        ("origin: null", "origin"),
        ("origin: http://localhost:3000", "origin"),
        ("sec-fetch-site: cross-site", "sec-fetch-site"),
        ("content-type: text/plain", "content-type"),
        ("content-type: application/x-www-form-urlencoded", "content-type"),
        ("content-type: Text/Plain;charset=utf-8", "content-type"),
    ],
)
async def test_page_of_another_site_reaches_no_gateway_without_keys(line: str, param: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for _ in range(2):
            answer = await send_page_request(running, line)
            assert (answer.status, answer.error["param"]) == (415 if param == "content-type" else 403, param)
        assert not {name for name in answer.fields if name.startswith("access-control-")}
        assert engine.calls == []
        if param != "content-type":
            assert (await send_page_request(running, line, method="GET", path="/v1/models")).status == 403
            assert (await send_page_request(running, line, PREFLIGHT, method="OPTIONS")).status in (200, 403)
        assert (await send_page_request(running, line, method="GET", path="/readyz")).status == 200


@pytest.mark.parametrize(
    "lines",
    [
        ("host: 127.0.0.1:8000",),
        ("host: [::1]:8000", "content-type: application/json; charset=utf-8"),
        ("host: gateway", "origin: http://gateway"),
        ("host: localhost:8000", "origin: http://localhost:8000", "sec-fetch-site: same-origin"),
        ("host: fairlead-gateway.fairlead.svc:80",),
        ("host: fairlead-gateway.fairlead.svc.cluster.local",),
        ("host: host.docker.internal:8000",),
        ("host: gateway.example", "user-agent: curl/8"),
        ("host: llm.corp.example:8080", "accept-language: de", "content-type: application/vnd.x+json"),
        (f"origin: {UI}", "sec-fetch-site: cross-site"),
    ],
)
async def test_clients_of_a_gateway_without_keys_are_served(lines: tuple[str, ...]) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        settings = GatewaySettings(client_hosts="LLM.corp.example., other.example", cors_origins=UI)
        running.gateway.cors = parse_cors(settings, has_api_keys=False)
        answer = await send_page_request(running, *lines)
        assert answer.status == 200
        assert answer.fields.get("access-control-allow-origin") == (UI if f"origin: {UI}" in lines else None)


async def test_page_with_a_key_calls_a_gateway_from_any_origin() -> None:
    async with gateway_of(well_behaved, api_keys=keys_of(Tenant(KEY))) as (running, *_):
        preflight = await send_page_request(
            running,
            f"origin: {UI}",
            PREFLIGHT,
            "access-control-request-headers: authorization,content-type",
            method="OPTIONS",
        )
        assert (preflight.status, preflight.fields["access-control-allow-origin"]) == (204, "*")
        assert preflight.fields["access-control-allow-headers"] == "authorization,content-type"
        assert "POST" in preflight.fields["access-control-allow-methods"]
        for key, status in ((KEY, 200), ("wrong", 401)):
            answer = await send_page_request(
                running, "host: llm.example.com", f"origin: {UI}", f"authorization: Bearer {key}"
            )
            assert (answer.status, answer.fields["access-control-allow-origin"]) == (status, "*")
        assert (await send_page_request(running, PREFLIGHT, method="OPTIONS")).status == 401


async def test_listed_origins_alone_are_named_in_answers() -> None:
    async with gateway_of(well_behaved, api_keys=keys_of(Tenant(KEY))) as (running, *_):
        settings = GatewaySettings(cors_origins=f"http://localhost:3000, {UI}")
        running.gateway.cors = parse_cors(settings, has_api_keys=True)
        for origin, named in ((UI, UI), ("http://localhost:3000", "http://localhost:3000"), ("https://other", None)):
            for lines, method in (((f"authorization: Bearer {KEY}",), "POST"), ((PREFLIGHT,), "OPTIONS")):
                answer = await send_page_request(running, f"origin: {origin}", *lines, method=method)
                assert answer.fields.get("access-control-allow-origin") == named
                assert answer.fields.get("vary") == (named and "origin")


@pytest.mark.parametrize("origins", ["ui.example", "https://ui.example/path", "*,https://ui.example", "none,*"])
def test_what_is_no_origin_is_refused_at_the_start(origins: str) -> None:
    with pytest.raises(SettingsError, match="FAIRLEAD_CORS_ORIGINS"):
        parse_cors(GatewaySettings(cors_origins=origins), has_api_keys=True)
