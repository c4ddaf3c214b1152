"""Engine processes that are killed, stopped, slow or replaced: the clients' view."""

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_testing.engines.disaggregated import engine_process, engine_processes
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.processes import is_alive
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

POISONABLE = """
import os, re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if b"poison" in body:
            os._exit(1)
        out = b'{"choices":[{"index":0,"message":{"content":"a"}}]}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)
    def log_message(self, *rest):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def chat(text: object, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": f"{text} " * 50}], "max_tokens": 8, **more}


def used(running: RunningGateway) -> Counter[str]:
    """Requests ended by instance."""
    counted: Counter[str] = Counter()
    for logged in running.gateway.decisions.latest(10_000):
        if logged.has_ended and logged.instance_id is not None:
            counted[logged.instance_id] += 1
    return counted


@pytest.mark.parametrize("stream", [False, True])
async def test_killed_engines_lose_no_request_that_had_not_begun(stream: bool) -> None:
    async with (
        engine_processes(4, "--speed", "5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
    ):
        done: Counter[int] = Counter()

        async def client(number: int) -> None:
            for turn in range(10):
                answer = await request(running.url, chat(f"{number}-{turn}", stream=stream, temperature=0))
                assert answer.status == 200, answer.body
                assert not stream or answer.events[-1] == "[DONE]"
                done[number] += 1

        clients = asyncio.gather(*[client(number) for number in range(12)])
        await wait_until(lambda: done.total() >= 30 or clients.done())
        engines[0].send(signal.SIGKILL)
        before = done.copy()
        # A request whose only retry met the second kill too would rightly fail.
        await wait_until(lambda: clients.done() or all(done[number] > min(before[number], 9) for number in range(12)))
        engines[1].send(signal.SIGKILL)
        await clients
        assert done.total() == 120


async def begun(running: RunningGateway, engines: list[Any], number: signal.Signals) -> bytes:
    """Everything that a stream's client gets when its engine gets a signal after some tokens."""
    connection = await RawConnection.connect(running.url)
    await connection.send(post_request(chat("story", stream=True, max_tokens=400, temperature=1, echo=True)))
    head = await connection.reader.readuntil(b"\r\n\r\n")
    instance = next(line for line in head.split(b"\r\n") if line.startswith(b"x-fairlead-instance"))
    got = b""
    for _ in range(6):
        got += await connection.reader.readuntil(b"\n\n\r\n")
    engines[int(instance.split(b"e-")[1][:1])].send(number)
    got += await connection.reader.read()
    await connection.close()
    return got


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, b"stream_cut"), (signal.SIGSTOP, b"stream_timeout")])
async def test_a_begun_stream_that_cannot_be_continued_ends_aloud(number: signal.Signals, code: bytes) -> None:
    limits = Limits(stream_idle_seconds=1.0)
    async with (
        engine_processes(2, "--speed", "0.5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines]), limits) as running,
    ):
        got = await begun(running, engines, number)
        assert got.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in got
        assert b'"code":"%b"' % code in got.rsplit(b"data: ", 1)[1]
        assert b"no engine could continue it (echo)" in got
        assert running.gateway.decisions.latest(1)[0].error == code.removeprefix(b"stream_").decode()


async def test_a_slow_engine_gets_less_and_is_not_ejected() -> None:
    async with (
        engine_processes(2, "--speed", "5") as fast,
        engine_process("--speed", "0.2") as slow,
        running_gateway(fleet_of([slow.url, *(engine.url for engine in fast)], preset="least-request")) as running,
    ):
        numbers = iter(range(120))

        async def client() -> None:
            for number in numbers:
                assert (await request(running.url, chat(number))).status == 200

        await asyncio.gather(*[client() for _ in range(9)])
        counted = used(running)
        assert counted["e-0/0/0"] < min(counted["e-1/1/0"], counted["e-2/2/0"]) / 2
        assert running.gateway.stages.failures.describe("e-0/0/0")[0] is HealthState.HEALTHY


async def test_an_engine_that_serves_another_model_now_answers_nobody_and_sits_out() -> None:
    async with (
        engine_process("--speed", "50", model="other") as wrong,
        engine_process("--speed", "50") as right,
        running_gateway(fleet_of([wrong.url, right.url]), Limits(retry_share=1.0, ejection_seconds=600.0)) as running,
    ):
        for number in range(40):
            for stream in (False, True):
                answer = await request(running.url, chat(number, stream=stream))
                assert (answer.status, answer.fields["x-fairlead-instance"]) == (200, "e-1/1/0")
        standing, why = running.gateway.stages.failures.describe("e-0/0/0")
        assert standing is HealthState.EJECTED
        assert "wrong-model" in why


async def test_a_poison_request_kills_two_engines_and_no_third_and_the_others_are_served() -> None:
    async with AsyncExitStack() as stack:
        processes, urls = [], []
        for _ in range(4):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", POISONABLE, stdout=asyncio.subprocess.PIPE
            )
            stack.push_async_callback(_end, process)
            urls.append(f"http://127.0.0.1:{int(await process.stdout.readline())}")
            processes.append(process)
        running = await stack.enter_async_context(running_gateway(fleet_of(urls)))
        codes = []
        for number in range(60):
            answer = await request(running.url, chat(number))
            assert answer.status == 200, (number, codes, answer.body, used(running))
            if number % 6 == 3:
                codes.append(json.loads((await request(running.url, chat("poison"))).body)["error"]["code"])
        assert codes == ["engines_broke_off", *["quarantined"] * 9]
        await wait_until(lambda: sum(is_alive(process.pid) for process in processes) == 2)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
