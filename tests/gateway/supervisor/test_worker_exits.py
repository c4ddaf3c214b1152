"""The exits of workers: killed, stopped, or without a supervisor.

No request of another worker is lost.
"""

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from fairlead.fleet.file import write_fleet_file
from fairlead_gateway.__main__ import main as gateway_main
from fairlead_testing.engines.scripted import EngineCall, PausedStream, scripted_engine, well_behaved
from fairlead_testing.gateway.gateway_process import GatewayProcess, WorkerClient, gateway_process, process_before
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of
from fairlead_testing.http.raw_client import RawConnection
from fairlead_testing.processes import is_alive
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


async def staying(line: WorkerClient) -> None:
    """Sends a request and waits until its stream has begun."""
    await line.send({"model": "tiny", "messages": [{"role": "user", "content": "stay"}], "stream": True})
    await line.connection.reader.readuntil(b'"content":"a"')


async def whole(gateway: GatewayProcess, former: set[int]) -> bool:
    """Returns whether two workers serve and none of them is in `former`."""
    return await gateway.metric("fairlead_gateway_workers") == 2 and not former & gateway.worker_pids()


async def test_a_killed_worker_costs_nobody_else_a_request_and_is_started_again(tmp_path: Path) -> None:
    gate = PausedStream()
    async with process_before(
        tmp_path, gate.script, gate.script, options=("--workers", "2"), preset="least-request"
    ) as (gateway, *_):
        doomed, safe = await gateway.connections(2)
        victim = await _owner(gateway, doomed, safe)
        extra = [doomed]
        while len(extra) < 4:  # four streams of the worker that dies
            line = WorkerClient(await RawConnection.connect(gateway.url))
            if await line.worker_name() == await doomed.worker_name():
                extra.append(line)
            else:
                await line.connection.close()
        for line in extra:
            await staying(line)
        answered = 0

        async def client() -> None:
            nonlocal answered
            while not gone.is_set():
                answer = await safe.post(GOOD)
                assert (answer.status, answer.complete) == (200, True)
                answered += 1

        gone = asyncio.Event()
        asking = asyncio.create_task(client())
        await wait_until(lambda: answered > 5)
        os.kill(victim, signal.SIGKILL)
        await wait_until(partial(whole, gateway, {victim}))
        before = answered
        await wait_until(lambda: answered > before + 5)
        gone.set()
        await asking
        assert "killed by signal 9" in await gateway.warnings()
        assert await gateway.metric("fairlead_gateway_worker_deaths_total") == 1
        assert await gateway.metric("fairlead_gateway_in_flight") == 0
        places = [(await safe.post(GOOD)).fields["x-fairlead-instance"] for _ in range(60)]
        assert set(places) == {"e-0/0/0", "e-1/1/0"}  # nothing of the dead worker's row is left
        for line in [*extra, safe, *await gateway.connections(2)]:
            await line.connection.close()
        gate.go_on.set()


async def _owner(gateway: GatewayProcess, line: WorkerClient, other: WorkerClient) -> int:
    """Returns the PID of `line`'s worker: while a worker is stopped, only the other answers."""
    first, second = gateway.worker_pids()
    os.kill(first, signal.SIGSTOP)
    try:
        names = [asyncio.create_task(client.worker_name()) for client in (line, other)]
        await asyncio.wait(names, return_when=asyncio.FIRST_COMPLETED)
        pid = second if names[0].done() else first
    finally:
        os.kill(first, signal.SIGCONT)
    await asyncio.gather(*names)
    return pid


async def test_a_worker_that_is_told_to_go_finishes_its_streams_and_is_replaced(tmp_path: Path) -> None:
    gate = PausedStream()
    async with process_before(tmp_path, gate.script, options=("--workers", "2")) as (gateway, *_):
        leaving, other = await gateway.connections(2)
        name = await leaving.worker_name()
        for _ in range(3):
            assert (await leaving.post(GOOD)).status == 200
        pid = await _owner(gateway, leaving, other)
        await staying(leaving)
        os.kill(pid, signal.SIGTERM)

        async def replaced() -> bool:
            notes = await gateway.warnings()
            return "worker" in notes and "drains" in notes and await gateway.metric("fairlead_gateway_workers") == 2

        await wait_until(replaced)
        fresh = await gateway.connections(2, exclude=name)
        for line in (*fresh, other):
            assert (await line.post(GOOD)).status == 200
            await line.connection.close()
        assert await gateway.metric("fairlead_gateway_in_flight") == 1
        gate.go_on.set()
        assert (await leaving.connection.reader.readuntil(b"\r\n0\r\n\r\n")).endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
        await leaving.connection.close()
        await wait_until(lambda: not is_alive(pid))

        async def done() -> bool:
            return "drains" not in await gateway.warnings()

        await wait_until(done)
        assert await gateway.metric("fairlead_gateway_worker_deaths_total") == 0
        assert await gateway.metric("fairlead_gateway_received_total") == 7  # the former worker's four count


STUMBLE = """
import os, sys
if "fairlead_gateway.worker.__main__" in sys.orig_argv and os.path.exists(os.environ["STUMBLE"]):
    os._exit(3)
"""


def test_worker_that_cannot_start_ends_the_start_and_is_retried_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STUMBLE)
    stone, path = tmp_path / "stone", tmp_path / "fleet.yaml"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("STUMBLE", str(stone))
    write_fleet_file(path, fleet_of([]))
    stone.touch()
    assert gateway_main(["--fleet", str(path), "--listen", "127.0.0.1:0", "--workers", "2"]) == 2
    assert "ended with exit code 3 before it was ready" in capsys.readouterr().err
    stone.unlink()

    async def main() -> None:
        async with gateway_process(path, "--workers", "2") as gateway:
            await asyncio.to_thread(stone.touch)
            former = gateway.worker_pids()
            os.kill(min(former), signal.SIGKILL)

            async def falls() -> bool:
                return await gateway.metric("fairlead_gateway_worker_deaths_total") >= 3

            await wait_until(falls)
            assert "ended with exit code 3" in await gateway.warnings()
            assert "1 of 2 workers do not serve yet" in await gateway.warnings()
            assert (await gateway.get("/readyz")).status == 200
            await asyncio.to_thread(stone.unlink)

            async def stands() -> bool:
                return await gateway.metric("fairlead_gateway_workers") == 2

            await wait_until(stands)
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.wait() == 0

    run_async(main())


async def test_without_their_helper_workers_finish_and_leave_no_orphan(tmp_path: Path) -> None:
    gate, path = PausedStream(), tmp_path / "fleet.yaml"
    async with scripted_engine(gate.script) as engine:
        write_fleet_file(path, fleet_of([engine.url]))
        async with gateway_process(path, "--workers", "2") as gateway:
            busy, idle = await gateway.connections(2)
            await staying(busy)
            workers = gateway.worker_pids()
            assert len(workers) == 2
            gateway.process.kill()
            await gateway.process.wait()
            await wait_until(lambda: sum(map(is_alive, workers)) == 1)
            gate.go_on.set()
            assert (await busy.connection.reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            await wait_until(lambda: not any(map(is_alive, workers)))
            await busy.connection.close()
            await idle.connection.close()
        port = gateway.url.rpartition(":")[2]
        async with gateway_process(path, listen=f"127.0.0.1:{port}") as again:
            assert (await again.get("/readyz")).status == 200


async def test_a_gateway_whose_helper_was_killed_can_be_started_again_at_once_on_its_port(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    write_fleet_file(path, fleet_of([]))
    async with gateway_process(path) as gateway:
        port = gateway.url.rpartition(":")[2]
    async with gateway_process(path, listen=f"127.0.0.1:{port}") as again:
        assert again.url == gateway.url


async def test_request_that_killed_two_engines_is_refused_by_the_sibling_worker(tmp_path: Path) -> None:
    async def script(call: EngineCall) -> None:
        if b"poison" in call.body:
            call.reset()
        else:
            await well_behaved(call)

    poison = {"model": "tiny", "messages": [{"role": "user", "content": "poison"}]}

    async with process_before(tmp_path, script, script, script, options=("--workers", "2")) as (gateway, *engines):
        first, second = await gateway.connections(2)
        assert (await first.post(poison)).status >= 500
        for _ in range(2):  # in order: the first worker's message reaches the supervisor, then the second
            await gateway.warnings()
        assert (await second.post(poison)).status == 422
        assert sum(b"poison" in call.body for engine in engines for call in engine.calls) == 2
        assert (await second.post(GOOD)).status == 200
        await first.connection.close()
        await second.connection.close()
