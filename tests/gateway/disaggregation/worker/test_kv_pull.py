"""A prefix out of a peer's cache: real engine processes behind a real gateway."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource, SloTargets
from fairlead_testing.engines.disaggregated import EngineProcess, engine_process, make_prompt
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawResponse, get_request, send
from fairlead_testing.http.raw_client import request as ask

pytestmark = pytest.mark.sockets

SLOW = EngineProfile("slow", 1e-3, kv_tokens=4_096)
"""The engines' profile at the gateway: a token takes a millisecond, and few requests fill one."""
BYTES = 1_000
PATH = "/v1/completions"
SHARED = make_prompt(1_000)


@asynccontextmanager
async def pair(bytes_per_second: float) -> AsyncIterator[tuple[RunningGateway, list[EngineProcess]]]:
    """Two engines that get blocks from one another at so many bytes a second."""
    more = ("--kv-connector", "p2p", "--kv-bytes-per-token", str(BYTES))
    more += ("--kv-bytes-per-second", str(bytes_per_second), "--profile", "tiny-cpu")
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(engine_process(*more)) for _ in range(2)]
        fleet = fleet_of([engine.url for engine in engines], objectives=SloTargets(ttft_seconds=5.0))
        instances = tuple(
            replace(instance, profile=SLOW, pull=KvPullSource(urlsplit(instance.url).netloc, BYTES, bytes_per_second))
            for instance in fleet.instances[MODEL_KEY]
        )
        async with running_gateway(replace(fleet, instances={MODEL_KEY: instances})) as gateway:
            yield gateway, engines


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": 2, **more}


async def state(engine: EngineProcess) -> dict[str, Any]:
    transfers: dict[str, Any] = (await send(engine.url, get_request("/sim/state")))[0].json["kv_transfer"]
    return transfers


async def both(gateway: RunningGateway, engines: list[EngineProcess]) -> tuple[int, int, RawResponse]:
    """Sends a prompt again while its engine is busy; returns counts and the second response."""
    first = await ask(gateway.url, body(SHARED), path=PATH)
    holder = first.fields["x-fairlead-instance"]
    router = gateway.gateway.stages.routers.serving.router(MODEL_KEY)
    assert router is not None
    from fairlead_gateway.routing import RouteRequest, prefix_chain

    for number in range(20):  # long answers that are under way there
        chain = prefix_chain(b"%d" % number * 64, secret=b"s", seed=b"m")
        request = RouteRequest(f"busy-{number}", chain, 200.0)
        router.on_dispatch(request, holder, 0.0)
        router.on_first_token(request.id, 0.0)
    answer = await ask(gateway.url, body(SHARED), path=PATH)
    at = answer.fields["x-fairlead-instance"]
    for number in range(20):
        router.on_abandoned(f"busy-{number}", 0.0)
    assert answer.json["choices"][0]["text"] == first.json["choices"][0]["text"]
    return int(holder.split("/")[1]), int(at.split("/")[1]), answer


def cached(answer: RawResponse) -> int:
    tokens: int = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def test_an_engine_that_lacks_the_prefix_gets_it_from_the_one_that_has_it() -> None:
    async with pair(1e9) as (gateway, engines):  # a microsecond a token
        holder, at, answer = await both(gateway, engines)
        assert at != holder
        assert (await state(engines[at]))["pulled_total"] == 1
        assert cached(answer) > 900


async def test_where_computing_is_cheaper_nothing_is_pulled() -> None:
    async with pair(5e5) as (gateway, engines):  # two milliseconds a token
        _, at, answer = await both(gateway, engines)
        assert [(await state(engine))["pulled_total"] for engine in engines] == [0, 0]
        assert (await state(engines[at]))["failed_total"] == 0
        assert answer.status == 200


async def test_a_peer_that_died_costs_an_attempt_to_ask_it_and_the_answer_is_right() -> None:
    async with pair(1e9) as (gateway, engines):
        first = await ask(gateway.url, body(SHARED), path=PATH)
        other = engines[1 - int(first.fields["x-fairlead-instance"].split("/")[1])]
        gone = {"kv_request_id": "r", "remote_host": "127.0.0.1", "remote_port": 1}
        payload = body(SHARED, kv_transfer_params={"remote_kv_source": gone})
        answer = await ask(other.url, payload, path=PATH, more="content-type: application/json\r\n")
        assert answer.json["choices"][0]["text"] == first.json["choices"][0]["text"]
        assert (cached(answer), (await state(other))["failed_total"]) == (0, 1)


@pytest.mark.parametrize("left_out", ["kv_request_id", "remote_host", "remote_port"])
async def test_what_is_not_wholly_said_is_not_looked_for(left_out: str) -> None:
    async with pair(1e9) as (_, engines):
        whole = {"kv_request_id": "r", "remote_host": "127.0.0.1", "remote_port": 1}
        del whole[left_out]
        payload = body(SHARED, kv_transfer_params={"remote_kv_source": whole})
        answer = await ask(engines[0].url, payload, path=PATH, more="content-type: application/json\r\n")
        assert (answer.status, (await state(engines[0]))["failed_total"]) == (200, 0)
