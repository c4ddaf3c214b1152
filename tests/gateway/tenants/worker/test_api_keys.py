"""API keys: digests in a file, checked for every request, changed while the gateway runs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from hmac import new as hmac_new
from pathlib import Path
from typing import BinaryIO

import openai
import pytest

from fairlead.errors import ManifestError
from fairlead.fleet.file import write_fleet_file
from fairlead.limits import Limits
from fairlead.tenants.model import CacheSharing, Tenant
from fairlead_gateway.__main__ import main as gateway_main
from fairlead_gateway.errors import InvalidApiKey
from fairlead_gateway.http.request_parser import RequestHead, RequestParser, SharedTemplates
from fairlead_gateway.tenants.supervisor.key_list import parse_key_file
from fairlead_gateway.tenants.supervisor.tenant_file import KeyFile
from fairlead_gateway.tenants.worker.api_keys import ApiKeys
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

PEPPER = b"a pepper of the test"
KEY = "fl-canary-key-of-team-a"


def digest(key: str) -> str:
    """Creates a key like the documentation."""
    return hmac_new(PEPPER, key.encode(), sha256).hexdigest()


def keys_text(*keys: str) -> str:
    return "keys:\n" + "".join(f'  - {{name: "of-{n}", digest: "{digest(key)}"}}\n' for n, key in enumerate(keys))


async def loaded(path: Path, *keys: str) -> ApiKeys:
    await asyncio.to_thread(path.write_text, keys_text(*keys))
    key_file = KeyFile(path, Limits())
    await key_file.load()
    return ApiKeys(PEPPER, key_file.names_by_digest)


def bearer(key: str) -> str:
    return f"authorization: Bearer {key}\r\n"


@pytest.mark.parametrize("more", [bearer(KEY), f"Authorization: bearer  {KEY}\r\n", f"x-api-key: {KEY}\r\n"])
async def test_a_known_key_is_let_in_and_goes_no_further(more: str, tmp_path: Path) -> None:
    keys = await loaded(tmp_path / "keys.yaml", "other", KEY)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), api_keys=keys) as running:
        answer = await request(running.url, GOOD, more=more)
        assert answer.status == 200
        assert not {"authorization", "x-api-key"} & {name for name, _ in engine.calls[0].fields}
        assert (await send(running.url, get_request("/v1/models", more=more)))[0].status == 200
        (logged,) = running.gateway.decisions.find(answer.fields["x-fairlead-decision"])
        assert logged.latest.caller == "of-1"


@pytest.mark.parametrize(
    "more",
    [
        "",
        bearer("wrong"),
        bearer(KEY[:-1]),
        bearer(""),
        "authorization: Bearer\r\n",
        f"authorization: Basic {KEY}\r\n",
        f"authorization: {KEY}\r\n",
        "x-api-key: \r\n",
        bearer(digest(KEY)),
        bearer("wrong") + f"x-api-key: {KEY[:-1]}\r\n",
    ],
)
async def test_without_a_known_key_every_path_is_a_401_as_an_openai_error(more: str, tmp_path: Path) -> None:
    keys = await loaded(tmp_path / "keys.yaml", KEY)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), api_keys=keys) as running:
        asked = (
            post_request(GOOD, more=more),
            get_request("/v1/models", more=more),
            get_request("/nowhere", more=more),
        )
        for data in (
            *asked,
            post_request(GOOD, path="/v1/nowhere", more=more),
            get_request("*", method="OPTIONS", more=more),
        ):
            answer: RawResponse = (await send(running.url, data))[0]
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.error["type"] == "invalid_request_error"
            assert answer.fields["www-authenticate"].startswith("Bearer")
            assert KEY.encode() not in answer.body
        assert engine.calls == []
        assert (await send(running.url, get_request("/readyz")))[0].status == 200


async def test_a_long_body_without_a_key_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    keys = await loaded(tmp_path / "keys.yaml", KEY)
    async with running_gateway(fleet_of([]), api_keys=keys) as running:
        for more in ("", "expect: 100-continue\r\n"):
            connection = await RawConnection.connect(running.url)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n{more}\r\n"
            await connection.send(head.encode())
            answer = await connection.read_response()
            assert (answer.status, answer.fields["connection"]) == (401, "close")
            await connection.close()


async def test_the_openai_sdk_says_authentication_error(tmp_path: Path) -> None:
    keys = await loaded(tmp_path / "keys.yaml", KEY)
    async with (
        running_gateway(fleet_of([]), api_keys=keys) as running,
        openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="wrong") as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
        assert (await client.with_options(api_key=KEY).models.list()).data[0].id == "tiny"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("null", 1),
        ("{}", 1),
        ("keys: fl-canary", 1),
        ("keys: [fl-canary]", 1),
        ("key: []", 1),
        ("keys:\n  - {name: a, digest: fl-canary}", 2),
        ("keys:\n  - {name: a, digest: 12345}", 2),
        ("keys:\n  - {name: a}", 2),
        ("keys:\n  - {name: 'fl-canary with spaces', digest: '" + "a" * 64 + "'}", 2),
        ("keys:\n  - {name: a, digest: '" + "a" * 64 + "', fl-canary: 1}", 2),
        ("keys:\n  - {name: a, digest: '" + "a" * 64 + "'}\n  - {name: b, digest: '" + "A" * 64 + "'}", 3),
        ("keys: [\n", 2),
    ],
)
def test_a_malformed_file_is_told_by_line_and_without_what_stands_in_it(text: str, line: int) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_key_file(text, file="keys.yaml", limits=Limits())
    assert caught.value.problems[0].line == line
    assert "fl-canary" not in str(caught.value)
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize("text", ["keys: []", "keys:", "keys:\n", "keys:\n  # none yet\n"])
def test_a_file_may_list_no_key(text: str) -> None:
    assert parse_key_file(text, file="k", limits=Limits()) == {}


def test_one_caller_may_have_two_keys() -> None:
    a, b = digest("a"), digest("b")
    names = parse_key_file(
        f"keys: [{{name: x, digest: '{a}'}}, {{name: x, digest: '{b.upper()}'}}]", file="k", limits=Limits()
    )
    assert list(names.values()) == ["x", "x"]


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, pepper: bytes | None = PEPPER) -> Iterator[None]:
    with monkeypatch.context() as patch:
        if pepper is not None:
            patch.setenv("FAIRLEAD_KEY_PEPPER", pepper.decode())
        yield


@pytest.mark.sockets
async def test_a_process_follows_its_keys_and_keeps_the_last_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, path = tmp_path / "fleet.yaml", tmp_path / "keys.yaml"
    write_fleet_file(fleet, fleet_of([]))
    path.write_text(keys_text("one"))

    with environment(monkeypatch):
        async with gateway_process(fleet, "--keys", str(path), listen="0.0.0.0:0") as gateway:
            url = gateway.url.replace("0.0.0.0", "127.0.0.1")

            async def status(key: str) -> int:
                return (await send(url, get_request("/v1/models", more=bearer(key))))[0].status

            assert (await status("one"), await status("two")) == (200, 401)
            await asyncio.to_thread(path.write_text, keys_text("two"))

            async def swapped() -> bool:
                return (await status("one"), await status("two")) == (401, 200)

            async def noted() -> bool:
                asked = get_request("/readyz", more=bearer("two"))
                return b"the keys file cannot be used" in (await send(url, asked))[0].body

            await wait_until(swapped)
            await asyncio.to_thread(path.write_text, "keys: [")
            await wait_until(noted)
            assert await status("two") == 200
            await asyncio.to_thread(path.unlink)
            await asyncio.to_thread(path.write_text, keys_text("two", "three"))

            async def mended() -> bool:
                return await status("three") == 200 and not await noted()

            await wait_until(mended)


@pytest.mark.sockets
async def test_a_gateway_whose_only_key_is_revoked_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, path, log = tmp_path / "fleet.yaml", tmp_path / "keys.yaml", tmp_path / "log"
    write_fleet_file(fleet, fleet_of([]))
    path.write_text(keys_text("one"))

    async def main(errors: BinaryIO) -> None:
        async with gateway_process(fleet, "--keys", str(path), stderr=errors) as gateway:

            async def status() -> int:
                return (await send(gateway.url, get_request("/v1/models", more=bearer("one"))))[0].status

            async def gauge() -> bytes:
                page: RawResponse = (await send(gateway.manage, get_request("/metrics")))[0]
                return next(line for line in page.body.splitlines() if line.startswith(b"fairlead_gateway_keys "))

            async def is_refused() -> bool:
                return await status() == 401

            async def is_missing() -> bool:
                return "cannot be used" in await asyncio.to_thread(log.read_text)

            assert (await status(), await gauge()) == (200, b"fairlead_gateway_keys 1")
            await asyncio.to_thread(path.write_text, keys_text())
            await wait_until(is_refused)
            assert await gauge() == b"fairlead_gateway_keys 0"
            assert (await send(gateway.url, get_request("/readyz")))[0].status == 200
            assert "lists no API key: every request is refused with 401" in await asyncio.to_thread(log.read_text)
            await asyncio.to_thread(path.unlink)
            await wait_until(is_missing)
            assert await status() == 401

    with environment(monkeypatch), log.open("wb") as errors:
        await main(errors)


@pytest.mark.sockets
async def test_a_gateway_that_starts_with_a_broken_keys_file_serves_once_it_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, path = tmp_path / "fleet.yaml", tmp_path / "keys.yaml"
    write_fleet_file(fleet, fleet_of([]))
    path.write_text("keys: [")

    with environment(monkeypatch):
        async with gateway_process(fleet, "--keys", str(path)) as gateway:
            refused = (await send(gateway.url, get_request("/v1/models", more=bearer("one"))))[0]
            assert (refused.status, refused.error["code"]) == (503, "api_keys_unavailable")
            ready = (await send(gateway.url, get_request("/readyz")))[0]
            assert ready.status == 503
            assert b"no API key is known, since the keys file cannot be used" in ready.body
            assert b"keys.yaml:2" in (await send(gateway.manage, get_request("/readyz")))[0].body
            metrics = (await send(gateway.manage, get_request("/metrics")))[0].body
            assert b"\nfairlead_gateway_keys_file_broken 1\n" in metrics
            await asyncio.to_thread(path.write_text, keys_text("one"))

            async def serves() -> bool:
                return (await send(gateway.url, get_request("/v1/models", more=bearer("one"))))[0].status == 200

            await wait_until(serves)
            assert (await send(gateway.url, get_request("/readyz")))[0].status == 200
            assert (await send(gateway.url, get_request("/v1/models", more=bearer("two"))))[0].status == 401


def test_keys_without_a_pepper_or_a_file_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.yaml"
    write_fleet_file(fleet, fleet_of([]))
    arguments = ["--fleet", str(fleet), "--listen", "127.0.0.1:0", "--keys", str(tmp_path / "none.yaml")]
    assert gateway_main(arguments) == 2
    assert "FAIRLEAD_KEY_PEPPER" in capsys.readouterr().err
    with environment(monkeypatch):
        assert gateway_main(arguments) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_key_of_a_connection_is_checked_again_after_a_change_of_keys() -> None:
    limits = Limits()
    keys = ApiKeys(PEPPER, {bytes.fromhex(digest("secret")): "team-a"})
    reader = RequestParser(limits, SharedTemplates())

    def head(key: str, length: int) -> RequestHead:
        body = b"x" * length
        reader.feed(
            f"POST / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n".encode()
            + body
        )
        return reader.next_request()[0]

    caller = keys.caller(head("secret", 1))
    assert (caller.name, caller.key, caller.tenant) == (
        "team-a",
        "team-a",
        Tenant("team-a", cache_sharing=CacheSharing.CLUSTER),
    ), "a key is a tenant of its own without limits"
    assert head("secret", 12).caller_cache is not None, "known again by its bytes"
    assert head("secre7", 12).caller_cache is None, "other bytes, another key"
    assert keys.caller(head("secret", 3)).name == "team-a"
    keys.replace({})
    with pytest.raises(InvalidApiKey):
        keys.caller(head("secret", 3))


async def test_readiness_names_no_address_variable_or_engine_to_clients_without_a_key(tmp_path: Path) -> None:
    details = ["Redis is away: 127.0.0.1:1 refused", "10.20.30.40/8000/0: no metrics", "OPENAI_TOKEN is missing"]
    keys = await loaded(tmp_path / "keys.yaml", KEY)
    async with running_gateway(fleet_of([]), api_keys=keys) as running:
        shown: list[str] = []
        running.gateway._warnings = lambda: shown
        (well,) = await send(running.url, get_request("/readyz"))
        assert (well.status, well.json) == (200, {"ready": True, "notes": []})
        shown += details
        for path, more in (("/readyz", ""), ("/%72eadyz", ""), ("/readyz", bearer("wrong"))):
            (reply,) = await send(running.url, get_request(path, more=more))
            (note,) = reply.json["notes"]
            assert (reply.status, reply.json["ready"], note.partition(":")[0]) == (200, True, "degraded")
        (reply,) = await send(running.url, get_request("/readyz", more=bearer(KEY)))
        assert reply.json == {"ready": True, "notes": details}
        running.gateway.drain()
        (reply,) = await send(running.url, get_request("/readyz"))
        assert (reply.status, reply.json["ready"], reply.json["notes"][0]) == (503, False, "draining")
        assert not any(detail in reply.body.decode() for detail in details)


@pytest.mark.parametrize("path", ["/readyz", "/%72eadyz", "http://x/r%65adyz", "/readyz?a=b"])
@pytest.mark.parametrize("framing", ["content-length: 9000000", "content-length: 1", "transfer-encoding: chunked"])
@pytest.mark.parametrize("more", ["", "expect: 100-continue\r\n"])
@pytest.mark.parametrize(("method", "status"), [("GET", 413), ("POST", 405), ("OPTIONS", 413)])
async def test_no_body_is_read_on_the_open_path_without_a_key(
    path: str, framing: str, more: str, method: str, status: int, tmp_path: Path
) -> None:
    keys = await loaded(tmp_path / "keys.yaml", KEY)
    async with running_gateway(fleet_of([]), api_keys=keys) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{framing}\r\n{more}\r\n".encode())
        answer = await connection.read_response()
        assert (answer.status, answer.fields["connection"]) == (status, "close")
        assert running.gateway.listener.buffered_bytes == 0
        await connection.close()


async def test_a_body_on_a_path_without_one_is_refused_with_a_key_too(tmp_path: Path) -> None:
    keys = await loaded(tmp_path / "keys.yaml", KEY)
    bearer = f"authorization: Bearer {KEY}\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n"
    wanted = {
        "GET /v1/models": 413,
        "POST /v1/models": 405,
        "OPTIONS *": 413,
        "POST /nowhere": 404,
        "GET /v1/files": 413,
        "GET /v1/chat/completions": 405,
    }
    async with running_gateway(fleet_of([]), api_keys=keys) as running:
        for line, status in wanted.items():
            connection = await RawConnection.connect(running.url)
            await connection.send(f"{line} HTTP/1.1\r\n{bearer}".encode())
            answer = await connection.read_response()
            assert (line, answer.status, answer.fields["connection"]) == (line, status, "close")
            await connection.close()
