"""Equal keys at several workers of a gateway, in real processes that are killed."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from fairlead_gateway.caller_key import ANONYMOUS
from fairlead_gateway.idempotency.worker.owner_forwarding import owner_index
from fairlead_testing.engines.scripted import PausedStream, SilentEngine, well_behaved
from fairlead_testing.gateway.gateway_process import GatewayProcess, process_before
from fairlead_testing.gateway.keyed_pairs import (
    PairedEngine,
    WorkerKills,
    answers_posts,
    count_posts,
    run_pairs,
    worker_number,
)
from fairlead_testing.gateway.running_gateway import GOOD, STREAM
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets
WORKERS = ("--workers", "2")


async def _post(connection: RawConnection, body: object, key: str) -> None:
    await connection.send(post_request(body, more=f"idempotency-key: {key}\r\n", close=False))


async def _outcome(gateway: GatewayProcess, outcome: str) -> float:
    return sum(await gateway.samples("fairlead_gateway_idempotency_requests_total", f'"{outcome}"'))


def _key_of(worker: int) -> str:
    """Returns a key that this of two workers owns."""
    return next(f"k-{number}" for number in range(100) if owner_index(ANONYMOUS, b"k-%d" % number, 2) == worker)


async def test_equal_keys_at_two_workers_are_computed_once(tmp_path: Path) -> None:
    async with process_before(tmp_path, answers_posts(well_behaved), options=WORKERS) as (gateway, engine):
        lines = [line.connection for line in await gateway.connections(2)]
        for number in range(20):
            body = STREAM if number % 2 else GOOD
            answers: list[RawResponse] = []
            for line in lines:
                await _post(line, body, f"k-{number}")
                answers.append(await line.read_response())
            assert [answer.status for answer in answers] == [200, 200]
            assert answers[0].body == answers[1].body != b""
            assert answers[0].fields["x-request-id"] == answers[1].fields["x-request-id"]
            assert answers[1].fields["idempotent-replayed"] == "true"
        assert count_posts(engine) == 20
        assert await _outcome(gateway, "returned") == 20
        await _post(lines[0], GOOD | {"seed": 1}, "k-0")
        await _post(lines[1], GOOD | {"seed": 1}, "k-0")
        for line in lines:
            refused = await line.read_response()
            assert (refused.status, refused.error["code"]) == (422, "idempotency_key_reused")
            await line.close()


async def test_a_stream_is_joined_from_another_worker_and_outlives_its_first_client(tmp_path: Path) -> None:
    gate = PausedStream()
    async with process_before(tmp_path, answers_posts(gate.script), options=WORKERS) as (gateway, engine):
        for worker in range(2):
            gate.go_on.clear()
            key, lines = _key_of(worker), [line.connection for line in await gateway.connections(2)]
            for line in lines:
                await _post(line, STREAM, key)
                await line.reader.readuntil(b'"content":"a"')
            await lines[0].close()
            gate.go_on.set()
            assert b"[DONE]" in await lines[1].reader.readuntil(b"[DONE]")
            await lines[1].close()
            assert count_posts(engine) == worker + 1


async def test_a_killed_owner_is_replaced_and_the_request_is_computed_once_more(tmp_path: Path) -> None:
    silent = SilentEngine()
    async with process_before(tmp_path, answers_posts(silent.script), options=WORKERS) as (gateway, engine):
        pids = {worker_number(pid): pid for pid in gateway.worker_pids()}
        names = {line: await line.worker_name() for line in await gateway.connections(2)}
        key = _key_of(0)
        for line in names:
            await _post(line.connection, GOOD, key)
        await wait_until(lambda: count_posts(engine) == 1)
        os.kill(pids[1], signal.SIGKILL)
        await wait_until(lambda: count_posts(engine) == 2)
        silent.go_on.set()
        answered = []
        for line in names:
            try:
                answered.append((await line.connection.read_response()).status)
            except (asyncio.IncompleteReadError, ConnectionError):  # it was connected to the killed worker
                answered.append(0)
            await line.connection.close()
        assert sorted(answered) == [0, 200]
        again = await request(gateway.url, GOOD, more=f"idempotency-key: {key}\r\n")
        assert (again.status, again.fields["idempotent-replayed"]) == (200, "true")
        assert count_posts(engine) == 2
        assert await gateway.metric("fairlead_gateway_idempotency_reruns_total") == 1


async def test_no_pair_is_finished_twice_while_its_owner_lives(tmp_path: Path) -> None:
    engine = PairedEngine()
    async with process_before(tmp_path, answers_posts(engine.script), options=("--workers", "3")) as (gateway, _):
        kills = WorkerKills(3, gateway.worker_pids)
        counts = await run_pairs([gateway.url], engine, 200, kills, strike_every=90)
    assert (counts.kills, counts.unexplained, counts.different) == (2, 0, 0)
    assert set(counts.statuses) <= {200, 503}
    assert len(engine.finished) == 200
