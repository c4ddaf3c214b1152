"""Equal keys at two gateways, in real processes that are killed and started again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from fairlead.fleet.file import write_fleet_file
from fairlead_testing.engines.scripted import Script, ScriptedEngine, SilentEngine, scripted_engine, well_behaved
from fairlead_testing.gateway.gateway_process import GatewayProcess
from fairlead_testing.gateway.keyed_pairs import (
    GatewayKills,
    GatewayPair,
    PairedEngine,
    answers_posts,
    count_posts,
    run_pairs,
)
from fairlead_testing.gateway.running_gateway import GOOD, STREAM, fleet_of
from fairlead_testing.http.certificates import Certificate, CertificateAuthority, has_openssl
from fairlead_testing.http.raw_client import RawConnection
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def _pair(
    folder: Path, script: Script, *options: str
) -> AsyncIterator[tuple[GatewayPair, dict[str, GatewayProcess], ScriptedEngine]]:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(scripted_engine(answers_posts(script)))
        write_fleet_file(folder / "fleet.yaml", fleet_of([engine.url]))
        pair = GatewayPair(folder / "fleet.yaml", options)
        running = {address: await stack.enter_async_context(pair.start(address)) for address in pair.addresses}
        yield pair, running, engine


async def _outcome(gateways: Sequence[GatewayProcess], metric: str, label: str) -> float:
    name = f"fairlead_gateway_idempotency_{metric}_total"
    return sum([sum(await gateway.samples(name, f'"{label}"')) for gateway in gateways])


def _kill(gateway: GatewayProcess) -> None:
    pids = gateway.worker_pids()
    gateway.process.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "secure", [False, pytest.param(True, marks=pytest.mark.skipif(not has_openssl(), reason="openssl"))]
)
async def test_equal_keys_at_two_gateways_are_computed_once(tmp_path: Path, secure: bool) -> None:
    options: list[str] = []
    authority = None
    if secure:
        authority = CertificateAuthority(tmp_path)
        shown: Certificate = authority.issue("here")
        options = ["--tls-cert", str(shown.certificate), "--tls-key", str(shown.key)]
    async with _pair(tmp_path, well_behaved, *options) as (pair, running, engine):
        pair.tls = None if authority is None else authority.client_context()
        for number in range(10):
            body, key = STREAM if number % 2 else GOOD, f"k-{number}"
            answers = list(await asyncio.gather(*[pair.post(address, body, key) for address in pair.addresses]))
            answers += [await pair.post(address, body, key) for address in pair.addresses]
            assert [answer.status for answer in answers] == [200] * 4
            assert len({answer.body for answer in answers}) == 1
            assert [answer.fields.get("idempotent-replayed") for answer in answers].count(None) == 1
        assert count_posts(engine) == 10
        for address in pair.addresses:
            refused = await pair.post(address, GOOD | {"seed": 1}, "k-0")
            assert (refused.status, refused.error["code"]) == (422, "idempotency_key_reused")
        gateways = list(running.values())
        assert await _outcome(gateways, "requests", "run") == 10
        assert await gateways[0].metric("fairlead_gateway_idempotency_reruns_total") == 0


async def test_the_keys_of_a_killed_gateway_are_computed_once_more_and_counted(tmp_path: Path) -> None:
    silent = SilentEngine()
    async with _pair(tmp_path, silent.script) as (pair, running, engine):
        lost, left = pair.addresses
        key = pair.key_of(lost)
        waiting = [asyncio.ensure_future(pair.post(left, GOOD, key)) for _ in range(2)]
        await wait_until(lambda: count_posts(engine) == 1)
        _kill(running[lost])
        await wait_until(lambda: count_posts(engine) == 2)
        silent.go_on.set()
        answers = [await answer for answer in waiting]
        assert [answer.status for answer in answers] == [200, 200]
        assert answers[0].body == answers[1].body
        assert await _outcome([running[left]], "reruns", "gateway-lost") == 1

        async with pair.start(lost) as again:
            returned = await pair.post(lost, GOOD, key)
            assert (returned.status, returned.fields["idempotent-replayed"]) == (200, "true")
            assert count_posts(engine) == 2
            assert await again.metric("fairlead_gateway_idempotency_reruns_total") == 0


async def test_a_draining_gateway_answers_what_it_computes_and_takes_no_new_key(tmp_path: Path) -> None:
    silent = SilentEngine()
    async with _pair(tmp_path, silent.script) as (pair, running, engine):
        draining, other = pair.addresses
        key = pair.key_of(draining)
        before = asyncio.ensure_future(pair.post(other, GOOD, key))
        await wait_until(lambda: count_posts(engine) == 1)
        running[draining].process.terminate()

        async def refuses() -> bool:
            try:
                await (await RawConnection.connect(pair.urls[0])).close()
            except ConnectionError:
                return True
            return False

        await wait_until(refuses)
        new = pair.key_of(draining, exclude=key)
        after = asyncio.ensure_future(pair.post(other, GOOD, new))
        await wait_until(lambda: count_posts(engine) == 2)
        silent.go_on.set()
        assert [(await answer).status for answer in (before, after)] == [200, 200]
        assert await running[draining].wait() == 0
        assert await _outcome([running[other]], "requests", "joined") == 0
        assert await _outcome([running[other]], "reruns", "gateway-lost") == 1
        assert count_posts(engine) == 2


@pytest.mark.skipif(not has_openssl(), reason="openssl")
async def test_an_impostor_with_another_certificate_gets_no_request(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    shown, other = authority.issue("here"), authority.issue("impostor")
    received: list[bytes] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())
        writer.close()

    async with scripted_engine(answers_posts(well_behaved)) as engine:
        write_fleet_file(tmp_path / "fleet.yaml", fleet_of([engine.url]))
        pair = GatewayPair(tmp_path / "fleet.yaml", ["--tls-cert", str(shown.certificate), "--tls-key", str(shown.key)])
        pair.tls = authority.client_context()
        address, impostor = pair.addresses
        port = int(impostor.rpartition(":")[2])
        async with (
            await asyncio.start_server(read, "127.0.0.1", port, ssl=other.server_context()),
            pair.start(address) as gateway,
        ):
            assert (await pair.post(address, GOOD, pair.key_of(impostor))).status == 200
            assert await _outcome([gateway], "reruns", "gateway-lost") == 1
        assert b"".join(received) == b""
        assert count_posts(engine) == 1


async def test_a_forged_header_of_a_client_changes_only_its_own_request(tmp_path: Path) -> None:
    async with _pair(tmp_path, well_behaved) as (pair, _, engine):
        first, second = pair.addresses
        key = pair.key_of(first)
        unknown = await pair.post(second, GOOD, key, "x-fairlead-key-owner: gateway-known\r\n")
        assert (unknown.status, unknown.fields["x-fairlead-key-owner"]) == (404, "unknown")
        assert count_posts(engine) == 0
        await pair.post(first, GOOD, key)
        for value in ("gateway", "gateway-known", "gateway-final", "gateway-gateway", "unknown"):
            answer = await pair.post(first, GOOD, key, f"x-fairlead-key-owner: {value}\r\n")
            assert (answer.status, answer.fields["idempotent-replayed"]) == (200, "true")
        assert count_posts(engine) == 1
        assert (await pair.post(second, GOOD, key, "x-fairlead-key-owner: worker\r\n")).status == 200


async def test_no_pair_is_finished_twice_while_its_gateway_lives(tmp_path: Path) -> None:
    paired = PairedEngine()
    async with scripted_engine(answers_posts(paired.script)) as engine:
        write_fleet_file(tmp_path / "fleet.yaml", fleet_of([engine.url]))
        pair = GatewayPair(tmp_path / "fleet.yaml")
        async with GatewayKills(pair) as kills:
            counts = await run_pairs(pair.urls, paired, 300, kills, strike_every=90)
    assert (counts.kills, counts.unexplained, counts.different) == (2, 0, 0)
    assert len(paired.finished) == 300
