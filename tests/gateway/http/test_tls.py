"""TLS towards clients and engines, and IPv6, over real sockets with generated certificates."""

import asyncio
import contextlib
import shutil
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import EngineAuth, Fleet
from fairlead.runtime.clock import SystemClock
from fairlead_gateway.__main__ import main as gateway_main
from fairlead_gateway.http.tls_certificate import TlsCertificate
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper
from fairlead_testing.engines.scripted import EngineCall, responds, scripted_engine, silent_after_token
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import GOOD, MODEL_KEY, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.certificates import Certificate, CertificateAuthority, has_openssl
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, request, send
from fairlead_testing.waiting import wait_until

METRICS = b"vllm:num_requests_running 3.0\n"
pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(not has_openssl(), reason="certificates are made with the openssl command: it is not there"),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def here(authority: CertificateAuthority) -> Certificate:
    return authority.issue("here")


def with_access(fleet: Fleet, access: EngineAuth) -> Fleet:
    return replace(
        fleet, instances={MODEL_KEY: tuple(replace(instance, access=access) for instance in fleet.instances[MODEL_KEY])}
    )


async def loaded(issued: Certificate) -> ssl.SSLContext:
    certificate = TlsCertificate(issued.certificate, issued.key)
    await certificate.load()
    assert certificate.context is not None
    return certificate.context


def shown(connection: RawConnection) -> bytes:
    """The certificate that the other side showed."""
    ssl_object: ssl.SSLObject = connection.writer.get_extra_info("ssl_object")
    return ssl_object.getpeercert(binary_form=True) or b""


async def test_tls_serves_plain_responses_streams_and_keep_alive(
    authority: CertificateAuthority, here: Certificate
) -> None:
    tls = await loaded(here)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), tls=tls) as running:
        assert running.url.startswith("https://127.0.0.1:")
        connection = await RawConnection.connect(running.url, authority.client_context())
        await connection.send(post_request(GOOD, close=False))
        assert (await connection.read_response()).status == 200
        await connection.send(post_request(GOOD | {"stream": True}))
        answers: list[RawResponse] = await connection.read_all_responses()
        assert [answer.events[-1] for answer in answers] == ["[DONE]"]
        await connection.close()


async def test_a_body_that_is_refused_half_way_gets_its_answer_over_tls(
    authority: CertificateAuthority, here: Certificate
) -> None:
    tls = await loaded(here)
    async with running_gateway(fleet_of([]), tls=tls) as running:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"
        connection = await RawConnection.connect(running.url, authority.client_context())
        await connection.send(head + b"x" * 1_000_000)
        assert (await connection.read_response()).status == 400
        await connection.close()


@pytest.mark.parametrize("rude", [False, True])
async def test_a_client_that_leaves_over_tls_frees_its_engine(
    authority: CertificateAuthority, here: Certificate, rude: bool
) -> None:
    tls = await loaded(here)
    async with gateway_of(silent_after_token, tls=tls) as (running, engine):
        connection = await RawConnection.connect(running.url, authority.client_context())
        await connection.send(post_request(GOOD | {"stream": True}, close=False))
        await connection.reader.readuntil(b'"content":"a"')
        if rude:
            connection.writer.transport.abort()
        else:
            connection.writer.close()
        await wait_until(lambda: engine.open == 0 and running.gateway.inflight_count() == 0)
        assert all(load.inflight == 0 for load in running.loads().values())


async def test_clients_without_tls_or_trust_get_nothing(here: Certificate, tmp_path: Path) -> None:
    stranger = CertificateAuthority(tmp_path, "stranger")
    tls = await loaded(here)
    async with running_gateway(fleet_of([]), tls=tls) as running:
        with pytest.raises(ssl.SSLCertVerificationError):
            await RawConnection.connect(running.url, stranger.client_context())
        plain = await RawConnection.connect(running.url)
        await plain.send(get_request("/readyz"))
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in await plain.reader.read()
        await plain.close()


def _replace(old: Certificate, new: Certificate) -> None:
    shutil.copy(new.certificate, old.certificate)
    shutil.copy(new.key, old.key)


async def test_gateways_accept_their_own_certificate_and_the_one_before_it(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    own = Certificate(tmp_path / "tls.crt", tmp_path / "tls.key")
    certificate = TlsCertificate(own.certificate, own.key)
    issued = [authority.issue(f"issued-{number}") for number in range(3)]

    async def accepted() -> list[bool]:
        assert certificate.peer_context is not None
        results = []
        for other in issued:
            async with await asyncio.start_server(
                lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=other.server_context()
            ) as server:
                port = server.sockets[0].getsockname()[1]
                try:
                    connection = await RawConnection.connect(f"https://127.0.0.1:{port}", certificate.peer_context)
                except ssl.SSLCertVerificationError:
                    results.append(False)
                else:
                    results.append(True)
                    await connection.close()
        return results

    found = []
    for now in issued:
        _replace(own, now)
        await certificate.load()
        await certificate.load()
        found.append(await accepted())
    assert found == [[True, False, False], [True, True, False], [False, True, True]]


async def test_a_new_certificate_is_used_and_closes_no_connection(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    folder = tmp_path / "now"
    folder.mkdir()
    now = Certificate(folder / "tls.crt", folder / "tls.key")
    first, second = authority.issue("first", kind="rsa"), authority.issue("second")
    _replace(now, first)
    write_fleet_file(tmp_path / "fleet.yaml", fleet_of([]))
    files = ("--tls-cert", str(now.certificate), "--tls-key", str(now.key))

    async with gateway_process(tmp_path / "fleet.yaml", *files, listen="[::1]:0") as gateway:
        url = gateway.url
        assert url.startswith("https://[::1]:")
        old = await RawConnection.connect(url, authority.client_context())

        async def changed() -> bool:
            fresh = await RawConnection.connect(url, authority.client_context())
            await fresh.send(get_request("/readyz"))
            assert (await fresh.read_response()).status == 200
            await fresh.close()
            return shown(fresh) != shown(old)

        async def noted() -> bool:
            return b"degraded" in (await send(url, get_request("/readyz"), authority.client_context()))[0].body

        assert not await changed()
        await asyncio.to_thread(_replace, now, second)
        await wait_until(changed)
        await asyncio.to_thread(now.key.write_text, "nonsense")
        await wait_until(noted)
        assert await changed()
        await old.send(get_request("/readyz"))
        assert (await old.read_response()).status == 200
        await old.close()
        gateway.process.terminate()
        assert await gateway.wait() == 0


def test_certificates_that_cannot_be_used_end_the_start(
    authority: CertificateAuthority, here: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fleet_file(tmp_path / "fleet.yaml", fleet_of([]))
    start = ["--fleet", str(tmp_path / "fleet.yaml"), "--listen", "127.0.0.1:0", "--tls-cert", str(here.certificate)]
    assert gateway_main(start) == 2
    assert "--tls-key" in capsys.readouterr().err
    for key in (authority.own.key, tmp_path / "none.key"):
        assert gateway_main([*start, "--tls-key", str(key)]) == 2
        assert str(here.certificate) in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_engines_are_verified_and_shown_their_token(
    host: str, authority: CertificateAuthority, here: Certificate, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("from-a-file\n")
    places = (
        EngineAuth(str(authority.ca_file), token_env="TOKEN"),
        EngineAuth(str(authority.ca_file), token_file=str(path)),
    )
    async with scripted_engine(tls=here.server_context(), host=host) as engine:
        for access, word in zip(places, ("from-the-environment", "from-a-file"), strict=True):
            fleet = with_access(fleet_of([engine.url]), access)
            async with running_gateway(fleet, environ={"TOKEN": "from-the-environment"}) as running:
                assert running.gateway.readiness() == (True, [])
                for body in (GOOD, GOOD | {"stream": True}, GOOD | {"user": "x" * 100_000}):
                    answer = await request(running.url, body, more="authorization: Bearer of-a-client\r\n")
                    assert answer.status == 200
                    shown = [value for name, value in engine.calls[-1].fields if name == "authorization"]
                    assert shown == [f"Bearer {word}"]


async def test_an_engine_of_another_authority_or_name_gets_no_request(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    elsewhere = authority.issue("elsewhere", names="DNS:engine.example")
    for issued in (elsewhere, CertificateAuthority(tmp_path, "stranger").own):
        async with scripted_engine(tls=issued.server_context()) as engine:
            fleet = with_access(fleet_of([engine.url]), EngineAuth(str(authority.ca_file)))
            async with running_gateway(fleet) as running:
                answer = await request(running.url, GOOD)
                assert (answer.status, answer.error["code"]) == (502, "engine_failed")
                assert "tls" in answer.error["message"]
                assert engine.calls == []


async def test_missing_engine_credentials_are_a_warning_and_no_client_error() -> None:
    async with scripted_engine(responds({"error": "Unauthorized"}, "401 Unauthorized")) as engine:
        fleet = with_access(fleet_of([engine.url]), EngineAuth("/nowhere/ca.pem", token_env="TOKEN"))
        async with running_gateway(fleet, environ={"TOKEN": "torn\r\nx-evil: 1"}) as running:
            ready, notes = running.gateway.readiness()
            assert ready
            assert any("/nowhere/ca.pem" in note for note in notes)
            assert any("TOKEN is missing" in note for note in notes)
            assert (await request(running.url, GOOD)).status == 502
            assert engine.calls[0].header("authorization") is None
            assert engine.calls[0].header("x-evil") is None


def test_a_token_that_is_rotated_is_read_again(tmp_path: Path) -> None:
    path, times = tmp_path / "token", iter((0.0, 0.5, 2.0))
    path.write_text("one")
    reach = EngineCredentials({}, lambda: next(times))
    access = EngineAuth(token_file=str(path))
    assert reach.headers(access) == {"authorization": "Bearer one"}
    path.write_text("two")
    assert reach.headers(access) == {"authorization": "Bearer one"}
    assert reach.headers(access) == {"authorization": "Bearer two"}


async def test_scrapes_use_the_same_credentials(authority: CertificateAuthority, here: Certificate) -> None:
    async def script(call: EngineCall) -> None:
        authorized = call.header("authorization") == "Bearer word"
        await call.respond(METRICS if authorized else b"", "200 OK" if authorized else "401 Unauthorized", "text/plain")

    async with scripted_engine(script, tls=here.server_context(), host="::1") as engine:
        fleet = with_access(fleet_of([engine.url]), EngineAuth(str(authority.ca_file), token_env="TOKEN"))
        clock = SystemClock()
        scraper = MetricsScraper(lambda: fleet, clock, credentials=EngineCredentials({"TOKEN": "word"}, clock.now))
        await scraper.scrape_once()
        assert scraper.errors == {}
        assert [reading.signals.running for reading in scraper.readings.values()] == [3]
