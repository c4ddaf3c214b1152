"""The headers that name a caller: what counts as a key, what does not, and for how long."""

import asyncio
import json

import pytest

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead.tenants.model import ApiKey, Tenant
from fairlead_gateway.errors import InvalidApiKey
from fairlead_gateway.http.request_parser import parse_head
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, token, well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, gateway_of, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, request, send

pytestmark = pytest.mark.simulated

ACME, ZETA = Tenant("acme"), Tenant("zeta")
BEARER = b"authorization: Bearer acme\r\n"
OTHER = b"authorization: Bearer zeta\r\n"


async def _send_head(url: str, fields: bytes) -> RawResponse:
    return (await send(url, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + fields + b"connection: close\r\n\r\n"))[0]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        (b"AUTHORIZATION: BEARER acme\r\n", 200, ""),
        (b"authorization: bearer acme\r\n", 200, ""),
        (b"authorization: \tBearer  acme\t\r\n", 200, ""),
        (b"authorization: Basic YWNtZTphY21l\r\nx-api-key: acme\r\n", 200, ""),
        (b"authorization: Bearer\r\nx-api-key: acme\r\n", 200, ""),
        (b"authorization: Bearer\tacme\r\n", 401, "invalid_api_key"),
        (b"authorization: Bearer \tacme\r\n", 401, "invalid_api_key"),
        (b"authorization: Bearer acme, Bearer zeta\r\n", 401, "invalid_api_key"),
        (b"authorization: Basic YWNtZTphY21l\r\n", 401, "invalid_api_key"),
        (b"authorization: Bearer no\r\nx-api-key: acme\r\n", 200, ""),
        (b"authorization: Bearer acme\r\nx-api-key: no\r\n", 200, ""),
        (b"authorization: Bearer no\r\nx-api-key: never\r\n", 401, "invalid_api_key"),
        (b"authorization: Bearer \xc3\xa4cme\r\n", 401, "invalid_api_key"),
        (b"authorization: Bearer \xa0acme\r\n", 401, "invalid_api_key"),
        (b"authorization: Bearer eyJ" + b"a" * 8_000 + b"\r\n", 401, "invalid_api_key"),
        (b"proxy-authorization: Bearer acme\r\n", 401, "invalid_api_key"),
        (b"api-key: acme\r\ncookie: key=acme\r\n", 401, "invalid_api_key"),
        (BEARER + BEARER, 400, "malformed_http"),
        (BEARER + OTHER, 400, "malformed_http"),
        (b"x-api-key: acme\r\nx-api-key: zeta\r\n", 400, "malformed_http"),
        (b"authorization: Bearer acme\x00\r\n", 400, "malformed_http"),
        (b"authorization: Bearer\r\n acme\r\n", 400, "malformed_http"),
        (b"authorization : Bearer acme\r\n", 400, "malformed_http"),
        (b"authorization: Bearer " + b"a" * 1_000_000 + b"\r\n", 431, "headers_too_large"),
    ],
)
async def test_what_counts_as_a_key(fields: bytes, status: int, code: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), api_keys=keys_of(ACME)) as at:
        answer = await _send_head(at.url, fields)
        assert answer.status == status
        if status != 200:
            assert answer.error["code"] == code
            assert "acme" not in answer.body.decode()
        assert at.gateway.listener.buffered_bytes == 0


@pytest.mark.parametrize("query", ["api_key=acme", "key=acme", "access_token=acme", "authorization=Bearer%20acme"])
async def test_a_key_in_the_query_is_no_key(query: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), api_keys=keys_of(ACME)) as at:
        answers = await send(at.url, get_request(f"/v1/models?{query}"))
        answers += await send(at.url, post_request(GOOD, path=f"/v1/chat/completions?{query}"))
        assert [answer.status for answer in answers] == [401, 401]
        assert engine.calls == []


@pytest.mark.parametrize(
    ("more", "tenant"),
    [
        ("x-tenant: zeta\r\nx-fairlead-tenant: zeta\r\nopenai-organization: zeta\r\nx-user: zeta\r\n", "acme"),
        ("x-api-key: foreign\r\n", "acme"),
        ("x-api-key: acme\r\n", "acme"),
    ],
)
async def test_only_the_key_says_whose_request_it_is(more: str, tenant: str) -> None:
    async with gateway_of(well_behaved, api_keys=keys_of(ACME, ZETA)) as (at, engine):
        answer = await request(at.url, {**GOOD, "user": "zeta"}, more=more + authorization("acme"))
        (logged,) = at.gateway.decisions.find(answer.fields["x-fairlead-decision"])
        assert (answer.status, logged.latest.caller) == (200, tenant)
        assert not {"authorization", "x-api-key", "openai-organization"} & {name for name, _ in engine.calls[0].fields}


BEARERS = ["", "Bearer acme", "bearer zeta", "Bearer old", "Bearer gone", "Bearer sk-x", "Bearer eyJ.e.y", "Basic acme"]
KEYS = ["", "acme", "zeta", "old", "gone", "foreign", "eyJhbGciOiJub25lIn0.e30."]


@pytest.mark.parametrize("bearer", BEARERS)
@pytest.mark.parametrize("key", KEYS)
def test_the_key_that_is_known_counts_in_either_header(bearer: str, key: str) -> None:
    """Two different known keys identify no caller, also if one of them has expired."""
    clock = ManualClock(wall=1_000.0)
    keys = ApiKeys(b"pepper", {key_digest(b"zeta", b"pepper"): "zeta"}, wall=clock.wall)
    ends = {"acme": None, "old": 900.0, "gone": None}
    digests = {name: key_digest(name.encode(), b"pepper") for name in ends}
    keys.update_tenants([Tenant("acme", keys=tuple(ApiKey(name, digests[name], end) for name, end in ends.items()))])
    keys.revoke([digests["gone"]])
    lines = [f"authorization: {bearer}\r\n" * bool(bearer), f"x-api-key: {key}" * bool(key)]
    head = parse_head(("GET / HTTP/1.1\r\nhost: a\r\n" + "".join(lines)).removesuffix("\r\n").encode(), Limits())
    shown = {bearer.partition(" ")[2] if bearer.lower().startswith("bearer") else "", key}
    known = shown & {"acme", "zeta", "old"}
    if known in ({"acme"}, {"zeta"}):
        assert keys.caller(head).name == known.pop()
        return
    with pytest.raises(InvalidApiKey) as caught:
        keys.caller(head)
    says = (
        "two different keys" if len(known) > 1 else "expired" if known else "no API key" if shown == {""} else "unknown"
    )
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("method", "path", "with_key", "without"),
    [
        ("HEAD", "/v1/models", 200, 401),
        ("HEAD", "/v1/models/tiny", 200, 401),
        ("HEAD", "/v1/models/none", 404, 401),
        ("HEAD", "/v1/chat/completions", 405, 401),
        ("OPTIONS", "/v1/models", 200, 401),
        ("OPTIONS", "/v1/chat/completions", 200, 401),
        ("OPTIONS", "*", 200, 401),
        ("TRACE", "/v1/models", 405, 401),
        ("DELETE", "/v1/models/tiny", 405, 401),
        ("HEAD", "/readyz", 200, 200),
        ("OPTIONS", "/readyz", 200, 200),
    ],
)
async def test_other_methods_need_the_key_too(method: str, path: str, with_key: int, without: int) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), api_keys=keys_of(ACME)) as at:
        for more, status in ((authorization("acme"), with_key), ("", without)):
            connection = await RawConnection.connect(at.url)
            await connection.send(get_request(path, method=method, more=more))
            answer = await connection.read_response(head_only=method == "HEAD")
            assert answer.status == status
            if method == "HEAD":
                assert int(answer.fields["content-length"]) > 0
                assert await connection.reader.read() == b"", "a HEAD has no body"
            if status == 405 or (status == 200 and method == "OPTIONS"):
                assert "OPTIONS" in answer.fields["allow"]
            await connection.close()
        assert engine.calls == []


@pytest.mark.parametrize("end", ["expired", "revoked", "removed"])
async def test_a_stream_outlives_its_key_and_the_next_request_does_not(end: str) -> None:
    clock, go_on = ManualClock(wall=1_000.0), asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a"))
        await go_on.wait()
        await call.event(token("b"))
        await call.finish()

    digest = key_digest(b"one", b"pepper")
    keys = ApiKeys(b"pepper", {}, wall=clock.wall)
    keys.update_tenants([Tenant("acme", keys=(ApiKey("prod", digest, 1_010.0),))])
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url]), api_keys=keys) as at:
        connection = await RawConnection.connect(at.url)
        chat = post_request({**GOOD, "stream": True}, more=authorization("one"), close=False)
        await connection.send(chat)
        assert (await connection.reader.readuntil(b'"a"')).startswith(b"HTTP/1.1 200 ")
        if end == "expired":
            clock.advance(11.0)
        elif end == "revoked":
            keys.revoke([digest])
        else:
            keys.update_tenants([], ["acme"])
        go_on.set()
        rest = await connection.reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
        assert json.dumps("b").encode() in rest
        assert b"error" not in rest
        await connection.send(chat)
        refused = await connection.read_response()
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert len(engine.calls) == 1
        await connection.close()
