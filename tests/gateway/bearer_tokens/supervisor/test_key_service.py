"""Key sets over time: rotation, unknown keys, issuers that are away, and edits of the file."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fairlead.errors import ManifestError, Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.bearer_tokens.messages import TokenIssuer
from fairlead_gateway.bearer_tokens.supervisor.issuer_file import IssuerConfig
from fairlead_gateway.bearer_tokens.supervisor.key_service import JWKS_STALE_SECONDS, IssuerKeyService, fetch_key_set
from fairlead_testing.gateway.tenant_keys import ISSUER, SigningKeyPair, TestIssuer
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.waiting import wait_until

FILE = f"issuers:\n- issuer: {ISSUER}\n  audiences: [fairlead]\n  jwksUrl: https://login.example.com/keys\n"
FIRST, SECOND = (TestIssuer([SigningKeyPair.create("ES256", key_id)]) for key_id in ("k1", "k2"))


class Service:
    """A service whose issuer answers with `key_set`; None: it is away."""

    def __init__(self, folder: Path, text: str = FILE) -> None:
        self.path = folder / "issuers.yaml"
        self.path.write_text(text)
        self.key_set: bytes | None = FIRST.key_set()
        self.reads = 0
        self.clock = ManualClock()
        self.sent: list[list[list[str | None]]] = []
        self.service = IssuerKeyService(self.path, self.clock, Limits(), self._read, 0.0)
        self.service.on_changed = self._on_sent

    def _on_sent(self, issuers: Sequence[TokenIssuer]) -> None:
        self.sent.append([[key.key_id for key in issuer.keys] for issuer in issuers])

    async def _read(self, config: IssuerConfig) -> bytes:
        self.reads += 1
        if self.key_set is None:
            raise Unavailable("answered 503")
        return self.key_set


@asynccontextmanager
async def key_service(folder: Path) -> AsyncIterator[Service]:
    service = Service(folder)
    try:
        yield service
    finally:
        await service.service.stop()


async def test_an_unknown_key_makes_the_service_read_the_key_set_again(tmp_path: Path) -> None:
    async with key_service(tmp_path) as service:
        await service.service.load()
        service.service.start()
        assert service.sent == [[["k1"]]]
        service.key_set = SECOND.key_set()
        service.service.on_unknown_key(ISSUER)
        await wait_until(lambda: len(service.sent) == 2)
        assert service.sent[-1] == [["k2"]]


async def test_unknown_keys_of_strangers_change_nothing(tmp_path: Path) -> None:
    async with key_service(tmp_path) as service:
        await service.service.load()
        service.service.start()
        service.service.on_unknown_key("https://evil.example")
        service.service.on_unknown_key(ISSUER)
        await wait_until(lambda: service.reads == 2)
        assert service.sent == [[["k1"]]]


async def test_an_issuer_that_is_away_keeps_its_last_key_set_with_a_warning_of_its_age(tmp_path: Path) -> None:
    async with key_service(tmp_path) as service:
        await service.service.load()
        service.service.start()
        service.key_set = None
        service.service.on_unknown_key(ISSUER)
        await wait_until(lambda: service.reads == 2)
        assert [key.key_id for key in service.service.issuers()[0].keys] == ["k1"]
        assert service.service.warnings() == []
        service.clock.advance(JWKS_STALE_SECONDS + 60)
        (warning,) = service.service.warnings()
        assert f"{ISSUER} is 16m old and stays in use: https://login.example.com/keys: answered 503" in warning


async def test_a_gateway_starts_without_its_issuer_and_refuses_its_tokens(tmp_path: Path) -> None:
    async with key_service(tmp_path) as service:
        service.key_set = None
        await service.service.load()
        assert service.sent == [[[]]]
        (warning,) = service.service.warnings()
        assert "could not be read, its tokens are refused" in warning
        service.key_set = FIRST.key_set()
        service.service.start()
        service.service.on_unknown_key(ISSUER)
        await wait_until(lambda: len(service.sent) == 2)
        assert service.sent[-1] == [["k1"]]
        assert service.service.warnings() == []


@pytest.mark.parametrize(
    "content", [b"<html>login</html>", b'{"keys": []}', b'{"keys": [{"kty": "oct", "k": "c2Vj"}]}']
)
async def test_an_answer_that_is_no_key_set_changes_nothing(content: bytes, tmp_path: Path) -> None:
    async with key_service(tmp_path) as service:
        await service.service.load()
        service.service.start()
        service.key_set = content
        service.service.on_unknown_key(ISSUER)
        await wait_until(lambda: service.reads == 2)
        assert [key.key_id for key in service.service.issuers()[0].keys] == ["k1"]


async def test_an_edit_of_the_file_keeps_what_is_known_of_the_same_issuer(tmp_path: Path) -> None:
    async with key_service(tmp_path) as service:
        await service.service.load()
        service.path.write_text(FILE + FILE.partition("\n")[2].replace("login", "second"))
        await service.service.load()
        assert service.sent[-1] == [["k1"], ["k1"]]
        assert service.reads == 2
        service.path.write_text(FILE.replace("https://login.example.com/keys", "http://login.example.com/keys"))
        with pytest.raises(ManifestError, match="not protected by TLS"):
            await service.service.load()
        assert len(service.service.issuers()) == 2


# --- reading


async def test_an_issuer_that_is_removed_does_not_wait_for_a_new_one(tmp_path: Path) -> None:
    """It may be removed because its key is in the wrong hands."""
    async with key_service(tmp_path) as service:
        await service.service.load()
        waits = asyncio.Event()

        async def read_slowly(config: IssuerConfig) -> bytes:
            await waits.wait()
            return SECOND.key_set()

        service.service._read_key_set = read_slowly
        service.path.write_text(FILE.replace(ISSUER, "https://other.example"))
        loading = asyncio.ensure_future(service.service.load())
        await wait_until(lambda: service.sent[-1] == [[]])
        assert not loading.done()
        waits.set()
        await loading
        assert service.sent[-1] == [["k2"]]


def fetch(config: IssuerConfig, max_bytes: int = 1_000) -> bytes:
    return asyncio.run(fetch_key_set(config, max_bytes))


def test_the_server_of_a_key_set_gets_the_token_of_its_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("pod-token\n")
    with CannedServer({"/keys": CannedResponse([FIRST.key_set()])}) as server:
        config = IssuerConfig(issuer=ISSUER, audiences=["a"], jwks_url=f"{server.url}/keys", token_file=str(token))
        assert fetch(config) == FIRST.key_set()
        assert server.requests[0].headers["authorization"] == "Bearer pod-token"


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with CannedServer({"/keys": CannedResponse([b""], 302, {"location": "/other"})}) as server:
        with pytest.raises(Unavailable):
            fetch(IssuerConfig(issuer=ISSUER, audiences=["a"], jwks_url=f"{server.url}/keys"))
        assert len(server.requests) == 1


def test_a_key_set_has_a_greatest_length(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b" " * 101)
    with pytest.raises(Unavailable, match="more than 100 bytes"):
        fetch(IssuerConfig(issuer=ISSUER, audiences=["a"], jwks_file=str(path)), 100)
    with CannedServer({"/keys": CannedResponse([b" " * 101])}) as server, pytest.raises(Unavailable):
        fetch(IssuerConfig(issuer=ISSUER, audiences=["a"], jwks_url=f"{server.url}/keys"), 100)
