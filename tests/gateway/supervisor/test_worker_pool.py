"""Several worker processes as one gateway: one port, one answer to each query, one view of load."""

import asyncio
import os
import signal
from functools import partial
from hashlib import sha256
from hmac import new as hmac_new
from itertools import count
from pathlib import Path
from typing import cast

import pytest

from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import InstanceState
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.__main__ import main as gateway_main
from fairlead_gateway.http.sockets import ListenAddress
from fairlead_gateway.supervisor.worker_handle import WORKER_FROZEN_SECONDS, PreforkedWorkers, WorkerHandle
from fairlead_gateway.supervisor.worker_pool import WorkerPool, WorkerPoolHooks
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    PausedStream,
    silent_after_token,
    well_behaved,
)
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process, process_before
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of
from fairlead_testing.http.raw_client import get_request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


def chat(text: str) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]}


async def test_what_two_workers_counted_is_one_sum(tmp_path: Path) -> None:
    async with process_before(tmp_path, well_behaved, options=("--workers", "2")) as (gateway, *_):
        lines = await gateway.connections(2)
        ids = [(await line.post(GOOD)).fields["x-fairlead-decision"] for line in lines for _ in range(7)]
        ids += [(await lines[0].post(GOOD)).fields["x-fairlead-decision"] for _ in range(3)]
        assert (await lines[1].post(GOOD | {"model": "nobody"})).status == 404
        assert len(gateway.worker_pids()) == 2
        assert await gateway.metric("fairlead_gateway_received_total") == 17
        assert await gateway.metric("fairlead_gateway_duration_seconds_count") == 17
        assert await gateway.metric("fairlead_gateway_requests_total") == 18
        assert await gateway.metric("fairlead_gateway_rejected_total") == 1
        assert await gateway.metric("fairlead_gateway_instance_requests_total") == 17
        assert await gateway.metric("fairlead_gateway_in_flight") == 0
        assert await gateway.metric("fairlead_gateway_workers") == 2
        stats = (await gateway.get_json("/api/stats"))["models"]["default/tiny"]
        assert (stats["window"]["requests"], stats["totals"]["requests"]) == (17, 17)
        await _decisions_are_found(gateway, ids)
        for line in lines:
            await line.connection.close()


async def _decisions_are_found(gateway: GatewayProcess, ids: list[str]) -> None:
    listed = (await gateway.get_json("/api/decisions?limit=500"))["decisions"]
    assert {entry["request_id"] for entry in listed} == set(ids)
    walls = [entry["wall"] for entry in listed]
    assert walls == sorted(walls, reverse=True)
    assert len((await gateway.get_json("/api/decisions?limit=4"))["decisions"]) == 4
    for request_id in ids:
        decision = await gateway.get_json(f"/api/decisions/{request_id}")
        assert decision["outcome"]["status"] == 200
        assert decision["choices"][0]["instance"] == "e-0/0/0"
    assert (await gateway.get("/api/decisions/nobody")).status == 404


async def test_a_worker_sees_what_its_sibling_has_in_flight(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        if b"stay" in call.body:
            await go_on.wait()
        await well_behaved(call)

    async with process_before(tmp_path, script, script, options=("--workers", "2"), preset="least-request") as (
        gateway,
        first,
        __,
    ):
        holder, other = await gateway.connections(2)
        await holder.send(chat("stay"))

        async def busy() -> bool:
            return await gateway.metric("fairlead_gateway_in_flight") == 1

        await wait_until(busy)
        taken = "e-0/0/0" if any(b"stay" in call.body for call in first.calls) else "e-1/1/0"
        for _ in range(8):
            assert (await other.post(GOOD)).fields["x-fairlead-instance"] != taken
        loads = (await gateway.get_json("/api/fleet"))["models"][0]["instances"]
        assert {each["id"]: each["in_flight"] for each in loads}[taken] == 1
        go_on.set()
        assert (await holder.connection.read_response()).status == 200
        seen = {(await other.post(GOOD)).fields["x-fairlead-instance"] for _ in range(40)}
        assert seen == {"e-0/0/0", "e-1/1/0"}
        await holder.connection.close()
        await other.connection.close()


async def test_a_worker_learns_which_prompts_its_sibling_has_sent_where(tmp_path: Path) -> None:
    async with process_before(tmp_path, well_behaved, well_behaved, options=("--workers", "2")) as (gateway, _one, __):
        first, second = await gateway.connections(2)
        sent: list[str] = []

        async def known() -> bool:
            """Returns whether the second worker knows a prompt that the first sent.

            Each call uses an older prompt.
            """
            sent.append(f"{len(sent)} " + "x" * 3_000)
            await first.post(chat(sent[-1]))
            answer = await second.post(chat(sent[len(sent) // 2]) if len(sent) % 2 else GOOD)
            decision = await gateway.get_json(f"/api/decisions/{answer.fields['x-fairlead-decision']}")
            return any(
                candidate["inputs"]["matched_tokens"]["value"] > 0 for candidate in decision["choices"][0]["candidates"]
            )

        await wait_until(known)
        await first.connection.close()
        await second.connection.close()


async def test_a_worker_refuses_what_its_siblings_engines_died_of(tmp_path: Path) -> None:
    deadly = True

    async def script(call: EngineCall) -> None:
        if deadly and b"deadly" in call.body:
            raise HangUp
        await well_behaved(call)

    async with process_before(tmp_path, script, script, script, options=("--workers", "2")) as (gateway, *_):
        first, second = await gateway.connections(2)

        numbers = count()

        async def refused() -> bool:
            """Returns whether the second worker refuses the request; if not, it answers."""
            nonlocal deadly
            body, deadly = chat(f"deadly {next(numbers)}"), True
            assert (await first.post(body)).error["code"] == "engines_broke_off"
            deadly = False
            return (await second.post(body)).status == 422

        await wait_until(refused)
        await first.connection.close()
        await second.connection.close()


async def test_keys_and_the_fleet_change_for_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(key: str) -> str:
        return f'keys: [{{name: a, digest: "{hmac_new(b"pepper", key.encode(), sha256).hexdigest()}"}}]'

    monkeypatch.setenv("FAIRLEAD_KEY_PEPPER", "pepper")
    path, keyfile = tmp_path / "fleet.yaml", tmp_path / "keys.yaml"
    await asyncio.to_thread(keyfile.write_text, keys("one"))
    async with process_before(
        tmp_path,
        well_behaved,
        well_behaved,
        options=("--workers", "2", "--keys", str(keyfile)),
        states=[InstanceState.STARTING],
    ) as (gateway, first, second):
        lines = await gateway.connections(2)

        async def statuses(key: str) -> set[int]:
            codes = set()
            for line in lines:
                await line.connection.send(
                    get_request("/v1/models", more=f"authorization: Bearer {key}\r\n", close=False)
                )
                codes.add((await line.connection.read_response()).status)
            return codes

        async def swapped() -> bool:
            return (await statuses("one"), await statuses("two")) == ({401}, {200})

        async def shown() -> bool:
            instances = (await gateway.get_json("/api/fleet"))["models"][0]["instances"]
            return [each["state"] for each in instances] == ["Ready", "Draining"]

        assert (await statuses("one"), await statuses("two")) == ({200}, {401})
        await asyncio.to_thread(keyfile.write_text, keys("two"))
        await wait_until(swapped)
        write_fleet_file(path, fleet_of([first.url, second.url], states=[InstanceState.READY, InstanceState.DRAINING]))
        await wait_until(shown)
        for line in lines:  # once it is shown, no worker routes by the old one
            await line.connection.send(_keyed_post("two"))
            assert (await line.connection.read_response()).fields["x-fairlead-instance"] == "e-0/0/0"
            await line.connection.close()


def _keyed_post(key: str) -> bytes:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    return head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def test_a_port_that_somebody_else_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fleet.yaml"
    write_fleet_file(path, fleet_of([]))
    async with gateway_process(path, "--workers", "2") as gateway:
        port = gateway.url.rpartition(":")[2]
        code = await asyncio.to_thread(gateway_main, ["--fleet", str(path), "--listen", f"127.0.0.1:{port}"])
        assert code == 2
        assert f"127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
        assert (await send(gateway.url, get_request("/readyz")))[0].status == 200
    with ListenAddress("127.0.0.1", 0).bind(shared=True) as left_behind:
        port = left_behind.getsockname()[1]
        assert gateway_main(["--fleet", str(path), "--listen", f"127.0.0.1:{port}"]) == 2
        assert "Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "65", "two", "1.5", "", "1e1", "9" * 30, "²"])
def test_a_number_of_workers_that_is_none_is_refused(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--fleet", str(tmp_path / "none.yaml"), "--listen", "127.0.0.1:0", f"--workers={number}"]
    assert gateway_main(arguments) == 2
    assert "--workers" in capsys.readouterr().err


async def test_a_worker_that_does_not_answer_is_named_and_not_waited_for(tmp_path: Path) -> None:
    async with process_before(tmp_path, well_behaved, options=("--workers", "2")) as (gateway, *_):
        lines = await gateway.connections(2)
        for line in lines:
            await line.post(GOOD)
        assert await gateway.metric("fairlead_gateway_received_total") == 2
        stopped = min(gateway.worker_pids())
        os.kill(stopped, signal.SIGSTOP)

        async def says(words: str, expected: bool) -> bool:
            return (words in await gateway.warnings()) is expected

        await wait_until(partial(says, "has not answered for", True))
        assert (await gateway.get("/readyz")).status == 200
        assert await gateway.metric("fairlead_gateway_workers") == 1
        assert await gateway.metric("fairlead_gateway_received_total") == 2  # as last known
        os.kill(stopped, signal.SIGCONT)
        await wait_until(partial(says, "has not answered for", False))
        for line in lines:
            assert (await line.post(GOOD)).status == 200
            await line.connection.close()
        assert await gateway.metric("fairlead_gateway_received_total") == 4


async def test_streams_of_several_workers_all_end_before_the_gateway_does(tmp_path: Path) -> None:
    gate = PausedStream()
    async with process_before(tmp_path, gate.script, options=("--workers", "2")) as (gateway, *_):
        lines = await gateway.connections(2)
        for line in lines:
            await line.send(GOOD | {"stream": True})
            await line.connection.reader.readuntil(b'"content":"a"')
        gateway.process.send_signal(signal.SIGTERM)

        async def unready() -> bool:
            return (await gateway.get("/readyz")).status == 503

        await wait_until(unready)
        gate.go_on.set()
        for line in lines:
            assert (await line.connection.reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            await line.connection.close()
        assert await gateway.wait() == 0


async def test_a_second_signal_ends_the_gateway_at_once_and_cuts_no_stream_silently(tmp_path: Path) -> None:
    async with process_before(tmp_path, silent_after_token, options=("--workers", "2")) as (gateway, *_):
        (line,) = await gateway.connections(1)
        await line.send(GOOD | {"stream": True})
        await line.connection.reader.readuntil(b'"content":"a"')
        gateway.process.send_signal(signal.SIGTERM)

        async def unready() -> bool:
            return (await gateway.get("/readyz")).status == 503

        await wait_until(unready)
        gateway.process.send_signal(signal.SIGTERM)
        rest = await line.connection.reader.read()
        assert b'"code":"gateway_draining"' in rest
        assert rest.endswith(b"\r\n0\r\n\r\n")
        await line.connection.close()
        assert await gateway.wait() == 1


async def test_what_a_stopped_worker_could_not_be_told_reaches_it_when_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    async with process_before(
        tmp_path, well_behaved, well_behaved, options=("--workers", "2"), states=[InstanceState.DRAINING]
    ) as (gateway, first, second):
        lines = await gateway.connections(2)
        stopped = min(gateway.worker_pids())
        os.kill(stopped, signal.SIGSTOP)

        async def mute() -> bool:
            return "has not answered" in await gateway.warnings()

        async def states() -> list[str]:
            return [each["state"] for each in (await gateway.get_json("/api/fleet"))["models"][0]["instances"]]

        async def shown() -> bool:
            return await states() == ["Ready", "Draining"]

        await wait_until(mute)
        write_fleet_file(path, fleet_of([first.url, second.url], states=[InstanceState.READY, InstanceState.DRAINING]))
        await wait_until(shown)  # nothing waits for the worker that does not answer
        os.kill(stopped, signal.SIGCONT)

        async def well() -> bool:
            return not await mute()

        await wait_until(well)
        for line in lines:
            assert (await line.post(GOOD)).fields["x-fairlead-instance"] == "e-0/0/0"
            await line.connection.close()


class PausedWorker:
    """A worker that stopped to answer when the test began, and counts how often that is read."""

    is_connected = True

    def __init__(self, now: float) -> None:
        self._since = now
        self.looks = 0
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def unresponsive_since(self) -> float:
        self.looks += 1
        return self._since

    def send(self, message: object) -> bool:
        return True

    def kill(self) -> None:
        if not self.exited.done():
            self.exited.set_result(-9)


async def test_drain_waits_for_a_worker_that_has_paused_for_some_seconds() -> None:
    clock, limits = ManualClock(), Limits()
    pool = WorkerPool(PreforkedWorkers(0), cast(WorkerPoolHooks, None), clock, limits)
    worker = PausedWorker(clock.now())
    pool.workers.append(cast(WorkerHandle, worker))
    draining = asyncio.create_task(pool.drain_then_kill(asyncio.Event()))
    for seconds in (2.0, 20.0):
        clock.advance(seconds)
        looks = worker.looks
        await wait_until(lambda looks=looks: worker.looks > looks + 1 or draining.done())  # type: ignore[misc]
        assert not worker.exited.done()
    clock.advance(WORKER_FROZEN_SECONDS)
    await draining
    assert worker.exited.done()
