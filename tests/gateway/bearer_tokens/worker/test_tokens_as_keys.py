"""Bearer tokens in the place of API keys: at one worker, and at a gateway with its processes."""

import asyncio
import time
from pathlib import Path

import pytest

from fairlead.limits import Limits
from fairlead.tenants.model import ApiKey, Tenant, TokenSubject
from fairlead_gateway.bearer_tokens.messages import ALGORITHMS, TokenIssuer
from fairlead_gateway.bearer_tokens.supervisor.key_service import parse_key_set
from fairlead_gateway.bearer_tokens.worker.token_callers import TokenCallers
from fairlead_gateway.errors import ApiKeysUnavailable, InvalidApiKey, NotPermitted
from fairlead_gateway.http.request_parser import RequestHead, parse_head
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import well_behaved
from fairlead_testing.gateway.gateway_process import GatewayProcess, process_before
from fairlead_testing.gateway.tenant_keys import AUDIENCE, ISSUER, SigningKeyPair, TestIssuer
from fairlead_testing.http.raw_client import get_request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

NOW = 1_795_000_000.0
PEPPER = b"pepper"
LOGIN = TestIssuer([SigningKeyPair.create("RS256", "first")])
NEXT = TestIssuer([SigningKeyPair.create("ES256", "second")])
SUBJECT = TokenSubject(ISSUER, "sub", "app")


def head(key: str, header: str = "authorization: Bearer ") -> RequestHead:
    return parse_head(f"GET / HTTP/1.1\r\nhost: a\r\n{header}{key}".encode(), Limits())


class Worker:
    """The keys of a worker that accepts tokens, at a time that tests set."""

    def __init__(self, *tenants: Tenant, is_loaded: bool = True) -> None:
        self.now = NOW
        self.keys = ApiKeys(PEPPER, {}, is_loaded=is_loaded, wall=lambda: self.now)
        self.keys.tokens = TokenCallers(self.keys.tenants, lambda: self.now, lambda _: None)
        self.accept(LOGIN)
        self.keys.update_tenants(tenants)
        self.keys.is_loaded = is_loaded

    def accept(self, issuer: TestIssuer) -> None:
        keys = parse_key_set(issuer.key_set(), ALGORITHMS)
        self.keys.tokens.update_issuers([TokenIssuer(ISSUER, (AUDIENCE,), keys)])
        self.keys.on_changed()


def test_a_token_identifies_its_tenant_beside_api_keys() -> None:
    key = ApiKey("prod", key_digest(b"fl_key", PEPPER))
    worker = Worker(Tenant("acme", keys=(key,), subjects=(SUBJECT,)))
    token = LOGIN.token(NOW)
    assert worker.keys.caller(head(token)).key == "sub:app"
    assert worker.keys.caller(head(token, "x-api-key: ")).name == "acme"
    assert worker.keys.caller(head("fl_key")).key == "prod"
    with pytest.raises(InvalidApiKey, match="this API key is unknown"):
        worker.keys.caller(head("sk-wrong"))
    with pytest.raises(InvalidApiKey, match="malformed"):
        worker.keys.caller(head("eyJ.x.y"))


def test_a_connection_with_a_token_ends_with_it_and_with_its_tenant() -> None:
    worker = Worker(Tenant("acme", subjects=(SUBJECT,)))
    connection = head(LOGIN.token(NOW))
    assert worker.keys.caller(connection) is worker.keys.caller(connection)
    worker.accept(NEXT)
    with pytest.raises(InvalidApiKey, match="the key that signed"):
        worker.keys.caller(connection)
    worker.accept(LOGIN)
    worker.keys.update_tenants([Tenant("acme", subjects=(SUBJECT,), is_suspended=True)])
    with pytest.raises(NotPermitted, match="suspended"):
        worker.keys.caller(connection)
    worker.keys.update_tenants([], ["acme"])
    with pytest.raises(InvalidApiKey, match="identifies no tenant"):
        worker.keys.caller(connection)
    worker.keys.update_tenants([Tenant("acme", subjects=(SUBJECT,))])
    assert worker.keys.caller(connection).name == "acme"
    worker.now += 3_631
    with pytest.raises(InvalidApiKey, match="expired"):
        worker.keys.caller(connection)


def test_a_token_is_not_refused_while_its_tenant_may_be_unknown() -> None:
    worker = Worker(is_loaded=False)
    with pytest.raises(ApiKeysUnavailable):
        worker.keys.caller(head(LOGIN.token(NOW)))


def test_uses_are_reported_once_per_key_and_report() -> None:
    digests = [key_digest(key, PEPPER) for key in (b"one", b"two", b"three")]
    worker = Worker(Tenant("acme", keys=tuple(ApiKey("k", digest) for digest in digests), subjects=(SUBJECT,)))
    first_uses: list[None] = []
    worker.keys.on_first_use = lambda: first_uses.append(None)
    connection = head("one")
    for shown in (connection, connection, head("one"), head("two"), head(LOGIN.token(NOW))):
        worker.keys.caller(shown)
    assert worker.keys.take_used_keys() == digests[:2]
    assert len(first_uses) == 1
    assert worker.keys.take_used_keys() == []
    worker.keys.caller(connection)
    assert worker.keys.take_used_keys() == digests[:1]
    assert len(first_uses) == 2


async def _status(gateway: GatewayProcess, key: str) -> int:
    (answer,) = await send(gateway.url, get_request("/v1/models", more=f"authorization: Bearer {key}\r\n"))
    return answer.status


async def test_a_gateway_follows_its_issuers_and_counts_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_KEY_PEPPER", PEPPER.decode())
    digest = key_digest(b"fl_key", PEPPER).hex()
    (tmp_path / "tenants.yaml").write_text(
        "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\nmetadata: {name: acme}\n"
        f"spec:\n  keys: [{{name: prod, digest: '{digest}'}}]\n  subjects: [{{issuer: '{ISSUER}', value: app}}]\n"
    )
    (tmp_path / "keys.json").write_bytes(LOGIN.key_set())
    (tmp_path / "issuers.yaml").write_text(
        f"issuers: [{{issuer: '{ISSUER}', audiences: [{AUDIENCE}], jwksFile: keys.json}}]\n"
    )
    options = ("--tenants", str(tmp_path / "tenants.yaml"), "--token-issuers", str(tmp_path / "issuers.yaml"))
    async with process_before(tmp_path, well_behaved, options=(*options, "--workers", "2")) as (gateway, *_):
        now = time.time()
        assert await _status(gateway, LOGIN.token(now)) == 200
        assert await _status(gateway, "fl_key") == 200
        assert await _status(gateway, NEXT.token(now)) == 401
        (tmp_path / "keys.json").write_bytes(NEXT.key_set())

        async def is_rotated() -> bool:
            return [await _status(gateway, issuer.token(time.time())) for issuer in (NEXT, LOGIN)] == [200, 401]

        await wait_until(is_rotated)

        async def is_counted() -> bool:
            (tenant,) = (await gateway.get("/api/tenants")).json["tenants"]
            return [key["last_used_at"] is not None for key in tenant["keys"]] == [True]

        await wait_until(is_counted, poll_seconds=0.2)


@pytest.mark.parametrize("options", [("--token-issuers", "issuers.yaml")])
def test_issuers_need_a_source_of_tenants(
    options: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from fairlead_gateway.__main__ import main

    (tmp_path / "fleet.yaml").write_text("models: []\n")
    assert main(["--fleet", str(tmp_path / "fleet.yaml"), "--listen", "127.0.0.1:0", *options]) == 2
    assert "--token-issuers: this gateway asks for no API key" in capfd.readouterr().err
    asyncio.set_event_loop(None)
