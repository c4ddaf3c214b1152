"""Who may call: keys as digests in a file, asked of every request, changed while the gateway runs."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from hmac import new as hmac_new
from pathlib import Path

import openai
import pytest

from fairlead.errors import ManifestError
from fairlead.fleetfile import write_atomic
from fairlead.limits import Limits
from fairlead.testing.engine import scripted_engine
from fairlead.testing.raw_http import Answer, Connection, ask, get, post, send
from fairlead.testing.waiting import until_async
from fairlead_gateway.__main__ import main as gateway_main
from fairlead_gateway.decision_log import Logged
from fairlead_gateway.errors import NoKey
from fairlead_gateway.head import Head
from fairlead_gateway.keys import Keys
from fairlead_gateway.keys_file import KeysFile, parse
from fairlead_gateway.reader import RequestReader
from fairlead_gateway.testing import fleet_of, run, running_gateway

PEPPER = b"a pepper of the test"
KEY = "fl-canary-key-of-team-a"
GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def digest(key: str) -> str:
    """As the documentation tells people to do it."""
    return hmac_new(PEPPER, key.encode(), sha256).hexdigest()


def keys_text(*keys: str) -> str:
    return "keys:\n" + "".join(f'  - {{name: "of-{n}", digest: "{digest(key)}"}}\n' for n, key in enumerate(keys))


async def loaded(path: Path, *keys: str) -> Keys:
    await asyncio.to_thread(path.write_text, keys_text(*keys))
    found = KeysFile(path, Limits())
    await found.load()
    return Keys(PEPPER, found.names)


def bearer(key: str) -> str:
    return f"authorization: Bearer {key}\r\n"


@pytest.mark.parametrize("more", [bearer(KEY), f"Authorization: bearer  {KEY}\r\n", f"x-api-key: {KEY}\r\n"])
def test_a_known_key_is_let_in_and_goes_no_further(more: str, tmp_path: Path) -> None:
    async def main() -> None:
        keys = await loaded(tmp_path / "keys.yaml", "other", KEY)
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), keys=keys) as running:
            answer = await ask(running.url, GOOD, more=more)
            assert answer.status == 200
            assert not {"authorization", "x-api-key"} & {name for name, _ in engine.calls[0].fields}
            assert (await send(running.url, get("/v1/models", more=more)))[0].status == 200
            logged: Logged | None = running.gateway.decisions.get(answer.fields["x-fairlead-decision"])
            assert logged is not None
            assert logged.last.caller == "of-1"

    run(main())


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
        bearer("wrong") + f"x-api-key: {KEY}\r\n",
    ],
)
def test_without_a_known_key_every_path_is_a_401_as_an_openai_error(more: str, tmp_path: Path) -> None:
    async def main() -> None:
        keys = await loaded(tmp_path / "keys.yaml", KEY)
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), keys=keys) as running:
            asked = (post(GOOD, more=more), get("/v1/models", more=more), get("/nowhere", more=more))
            for data in (*asked, post(GOOD, path="/v1/nowhere", more=more), get("*", method="OPTIONS", more=more)):
                answer: Answer = (await send(running.url, data))[0]
                assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
                assert answer.error["type"] == "invalid_request_error"
                assert answer.fields["www-authenticate"].startswith("Bearer")
                assert KEY.encode() not in answer.body
            assert engine.calls == []
            assert (await send(running.url, get("/readyz")))[0].status == 200

    run(main())


def test_a_long_body_without_a_key_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        keys = await loaded(tmp_path / "keys.yaml", KEY)
        async with running_gateway(fleet_of([]), keys=keys) as running:
            for more in ("", "expect: 100-continue\r\n"):
                connection = await Connection.to(running.url)
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n{more}\r\n"
                await connection.send(head.encode())
                answer = await connection.answer()
                assert (answer.status, answer.fields["connection"]) == (401, "close")
                await connection.close()

    run(main())


def test_the_openai_sdk_says_authentication_error(tmp_path: Path) -> None:
    async def main() -> None:
        keys = await loaded(tmp_path / "keys.yaml", KEY)
        async with (
            running_gateway(fleet_of([]), keys=keys) as running,
            openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="wrong") as client,
        ):
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
            assert (await client.with_options(api_key=KEY).models.list()).data[0].id == "tiny"

    run(main())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("keys:", 1),
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
        parse(text, file="keys.yaml", limits=Limits())
    assert caught.value.problems[0].line == line
    assert "fl-canary" not in str(caught.value)
    assert "12345" not in str(caught.value)


def test_one_caller_may_have_two_keys_and_a_file_may_have_none() -> None:
    a, b = digest("a"), digest("b")
    found = parse(f"keys: [{{name: x, digest: '{a}'}}, {{name: x, digest: '{b.upper()}'}}]", file="k", limits=Limits())
    assert list(found.values()) == ["x", "x"]
    assert parse("keys: []", file="k", limits=Limits()) == {}


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, pepper: bytes | None = PEPPER) -> Iterator[None]:
    with monkeypatch.context() as patch:
        if pepper is not None:
            patch.setenv("FAIRLEAD_KEY_PEPPER", pepper.decode())
        yield


def test_a_process_follows_its_keys_and_keeps_the_last_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, path = tmp_path / "fleet.yaml", tmp_path / "keys.yaml"
    write_atomic(fleet, fleet_of([]))
    path.write_text(keys_text("one"))

    async def main() -> None:
        arguments = ("--fleet", str(fleet), "--keys", str(path), "--listen", "0.0.0.0:0")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fairlead_gateway", *arguments, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
            url = line.split()[1].replace("0.0.0.0", "127.0.0.1")

            async def status(key: str) -> int:
                return (await send(url, get("/v1/models", more=bearer(key))))[0].status

            assert (await status("one"), await status("two")) == (200, 401)
            await asyncio.to_thread(path.write_text, keys_text("two"))

            async def swapped() -> bool:
                return (await status("one"), await status("two")) == (401, 200)

            async def noted() -> bool:
                return b"the keys file cannot be used" in (await send(url, get("/readyz")))[0].body

            await until_async(swapped)
            await asyncio.to_thread(path.write_text, "keys: [")
            await until_async(noted)
            assert await status("two") == 200
            await asyncio.to_thread(path.unlink)
            await asyncio.to_thread(path.write_text, keys_text("two", "three"))

            async def mended() -> bool:
                return await status("three") == 200 and not await noted()

            await until_async(mended)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    with environment(monkeypatch):
        run(main())


def test_keys_without_a_pepper_or_a_file_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.yaml"
    write_atomic(fleet, fleet_of([]))
    arguments = ["--fleet", str(fleet), "--listen", "127.0.0.1:0", "--keys", str(tmp_path / "none.yaml")]
    assert gateway_main(arguments) == 2
    assert "FAIRLEAD_KEY_PEPPER" in capsys.readouterr().err
    with environment(monkeypatch):
        assert gateway_main(arguments) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_connection_that_shows_its_key_again_is_asked_again_once_other_keys_are_known() -> None:
    limits = Limits()
    keys = Keys(PEPPER, {bytes.fromhex(digest("secret")): "team-a"})
    reader = RequestReader(limits)

    def head(key: str, length: int) -> Head:
        body = b"x" * length
        reader.feed(
            f"POST / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n".encode()
            + body
        )
        found = reader.next()
        assert found is not None
        return found[0]

    assert keys.caller(head("secret", 1)) == "team-a"
    assert head("secret", 12).shown is not None, "known again by its bytes"
    assert head("secre7", 12).shown is None, "other bytes, another key"
    assert keys.caller(head("secret", 3)) == "team-a"
    keys.use({})
    with pytest.raises(NoKey):
        keys.caller(head("secret", 3))
