"""The gateway as a process: its lines, its ports, its signals, its refusals."""

import asyncio
import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest

from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import InstanceState
from fairlead_gateway.__main__ import main as gateway_main
from fairlead_testing.engines.scripted import PausedStream, scripted_engine, well_behaved
from fairlead_testing.gateway.gateway_process import gateway_process, process_before
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


@pytest.mark.usefixtures("new_interpreters")
async def test_it_serves_says_ready_on_both_ports_and_follows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    async with scripted_engine() as first, scripted_engine() as second:
        write_fleet_file(path, fleet_of([first.url]))
        async with gateway_process(path) as gateway:
            for url in (gateway.url, gateway.manage):
                assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
            assert (await send(gateway.url, get_request("/readyz")))[0].status == 200
            managed_request = get_request("/readyz").replace(b"host: x", b"host: 127.0.0.1")
            assert (await send(gateway.manage, managed_request))[0].status == 200
            assert (await request(gateway.url, GOOD)).fields["x-fairlead-instance"] == "e-0/0/0"
            write_fleet_file(path, fleet_of([first.url, second.url], states=[InstanceState.DRAINING]))

            async def moved() -> bool:
                return (await request(gateway.url, GOOD)).fields["x-fairlead-instance"] == "e-1/1/0"

            async def complained() -> bool:
                return b"cannot be used" in (await send(gateway.manage, managed_request))[0].body

            await wait_until(moved)
            await asyncio.to_thread(path.write_text, "models: [")
            await wait_until(complained)
            assert (await request(gateway.url, GOOD)).status == 200


async def test_sigterm_lets_requests_in_flight_finish_and_exits_with_0(tmp_path: Path) -> None:
    gate = PausedStream()
    async with process_before(tmp_path, gate.script) as (gateway, *_):
        idle, busy = await RawConnection.connect(gateway.url), await RawConnection.connect(gateway.url)
        await idle.send(get_request("/readyz", close=False))
        assert (await idle.read_response()).status == 200
        await busy.send(post_request(GOOD | {"stream": True}, close=False))
        await busy.reader.readuntil(b'"content":"a"')
        gateway.process.send_signal(signal.SIGTERM)
        await wait_until(partial(_refuses, gateway.url))
        await idle.send(get_request("/readyz", close=False))
        last = await idle.read_all_responses()
        assert [(answer.status, answer.fields["connection"]) for answer in last] == [(503, "close")]
        gate.go_on.set()
        assert (await busy.reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert await gateway.wait() == 0
        await idle.close()
        await busy.close()


async def test_after_sigterm_a_stream_leaves_its_connection_for_one_request(tmp_path: Path) -> None:
    gate = PausedStream()
    async with process_before(tmp_path, gate.script) as (gateway, *_):
        connection = await RawConnection.connect(gateway.url)
        await connection.send(post_request(GOOD | {"stream": True}, close=False))
        assert b"connection: close" not in await connection.reader.readuntil(b"\r\n\r\n")
        gateway.process.send_signal(signal.SIGTERM)
        await wait_until(partial(_refuses, gateway.url))
        gate.go_on.set()
        await connection.reader.readuntil(b"\r\n0\r\n\r\n")
        await connection.send(post_request(GOOD, close=False))
        last = await connection.read_all_responses()
        assert [(answer.status, answer.fields["connection"]) for answer in last] == [(200, "close")]
        assert await gateway.wait() == 0
        await connection.close()


async def test_stream_that_outlasts_the_drain_timeout_ends_with_an_error_event(tmp_path: Path) -> None:
    gate = PausedStream()
    async with process_before(tmp_path, gate.script, environ=os.environ | {"FAIRLEAD_DRAIN_TIMEOUT": "0s"}) as (
        gateway,
        *_,
    ):
        connection = await RawConnection.connect(gateway.url)
        await connection.send(post_request(GOOD | {"stream": True}, close=False))
        await connection.reader.readuntil(b'"content":"a"')
        gateway.process.send_signal(signal.SIGTERM)
        rest = await connection.reader.read()
        assert b'"code":"gateway_draining"' in rest
        assert rest.endswith(b"\n\n\r\n0\r\n\r\n")
        await connection.close()
        assert await gateway.wait() == 0


@pytest.mark.parametrize("text", ["10", "25h", "-1s", "soon"])
@pytest.mark.parametrize(("name", "shortest"), [("DRAIN_TIMEOUT", "0s"), ("CLIENT_IDLE_TIMEOUT", "1s")])
def test_a_timeout_that_is_no_duration_ends_the_start(
    text: str,
    name: str,
    shortest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"FAIRLEAD_{name}", text)
    assert gateway_main(["--fleet", str(tmp_path), "--listen", "127.0.0.1:0"]) == 2
    assert f"FAIRLEAD_{name} is not a duration from {shortest} to 24h" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("BODY_SIZE", "32MB", "FAIRLEAD_BODY_SIZE is not a size from 1Mi to 256Mi"),
        ("BODY_SIZE", "257Mi", "FAIRLEAD_BODY_SIZE is not a size from 1Mi to 256Mi"),
        ("CORS_ORIGINS", "ui.example.com", "FAIRLEAD_CORS_ORIGINS: 'ui.example.com' is not an origin"),
    ],
)
def test_a_wrong_value_of_a_setting_of_workers_ends_the_start(
    name: str,
    text: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"FAIRLEAD_{name}", text)
    assert gateway_main(["--fleet", str(tmp_path), "--listen", "127.0.0.1:0"]) == 2
    assert message in capsys.readouterr().err


async def test_browsers_and_bodies_have_the_rules_that_are_set(tmp_path: Path) -> None:
    environ = os.environ | {
        "FAIRLEAD_CORS_ORIGINS": "https://ui.example",
        "FAIRLEAD_CLIENT_HOSTS": "llm.example",
        "FAIRLEAD_BODY_SIZE": "1Mi",
    }
    large = post_request(GOOD | {"user": "x" * 2**20})
    async with process_before(tmp_path, well_behaved, environ=environ) as (gateway, *_):
        for name, status in (("ui", 200), ("other", 403)):
            page = f"host: llm.example\r\norigin: https://{name}.example".encode()
            assert (await send(gateway.url, post_request(GOOD).replace(b"host: x", page)))[0].status == status
        refused = (await send(gateway.url, large))[0]
        assert (refused.status, "FAIRLEAD_BODY_SIZE" in refused.body.decode()) == (413, True)


async def test_an_idle_connection_is_closed_after_the_time_that_is_set(tmp_path: Path) -> None:
    environ = os.environ | {"FAIRLEAD_CLIENT_IDLE_TIMEOUT": "1s"}
    async with process_before(tmp_path, well_behaved, environ=environ) as (gateway, *_):
        connection = await RawConnection.connect(gateway.url)
        await connection.send(post_request(GOOD, close=False))
        assert (await connection.read_response()).status == 200
        assert await connection.reader.read() == b""
        await connection.close()


async def test_rolling_restarts_lose_no_request_on_idle_connections(tmp_path: Path) -> None:
    async with process_before(tmp_path, well_behaved) as (gateway, *_):
        connections = [await RawConnection.connect(gateway.url) for _ in range(10)]
        served = 0

        async def client(connection: RawConnection) -> None:
            nonlocal served
            while True:
                await connection.send(post_request(GOOD, close=False))
                answer = await connection.read_response()
                assert answer.status == 200
                served += 1
                if answer.fields.get("connection") == "close":
                    return

        clients = asyncio.gather(*[client(connection) for connection in connections])
        await wait_until(lambda: served >= 100)
        gateway.process.send_signal(signal.SIGTERM)
        await clients
        assert await gateway.wait() == 0
        for connection in connections:
            await connection.close()


async def _refuses(url: str) -> bool:
    """Whether new connections are refused."""
    try:
        connection = await RawConnection.connect(url)
    except ConnectionError:
        return True
    await connection.close()
    return False


@pytest.mark.parametrize("option", ["--listen", "--manage"])
def test_it_listens_beyond_loopback_only_with_a_flag(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--listen", "127.0.0.1:0"] if option == "--manage" else []
    for address in ("0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:80"):
        assert gateway_main(["--fleet", str(tmp_path / "none.yaml"), *other, option, address]) == 2
        assert "--insecure" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "example.com:80"])
def test_an_invalid_address_is_refused(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gateway_main(["--fleet", str(tmp_path / "none.yaml"), "--listen", address]) == 2
    assert "--listen" in capsys.readouterr().err


def test_a_fleet_file_that_cannot_be_read_at_the_start_ends_it_with_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fleet.yaml"
    assert gateway_main(["--fleet", str(path), "--listen", "127.0.0.1:0"]) == 2
    path.write_text("models:\n  - name: tiny\n    instances:\n      - {url: nonsense}\n")
    assert gateway_main(["--fleet", str(path), "--listen", "127.0.0.1:0"]) == 2
    assert "fleet.yaml:4" in capsys.readouterr().err
