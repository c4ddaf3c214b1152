"""KV transfer between engines: the handover, its use at decode, and its failures."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead_sim.kv_transfer.connector import WRONG_KV_TEXT, KvTransferSettings
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.engines.disaggregated import PREFILL, decode_body, make_prompt, prefill_body
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.recording import HttpResponse
from fairlead_testing.transcripts.replay import (
    ClientConnection,
    get_request,
    open_client,
    post_request,
    send_request,
    wait_for_value,
)

pytestmark = pytest.mark.simulated

PATH = "/v1/completions"
NIXL = EngineSettings(speed=50.0, kv_transfer=KvTransferSettings("nixl", dead_peer_seconds=0.0))
RECOMPUTE = replace(NIXL, kv_transfer=replace(NIXL.kv_transfer, recompute=True))
MOONCAKE = KvTransferSettings("mooncake", "kv_producer", abort_seconds=0.2, dead_peer_seconds=0.0)
PROMPT = make_prompt(100)
INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
Check = Callable[[RunningEngine, RunningEngine, AsyncExitStack], Coroutine[Any, Any, None]]


@asynccontextmanager
async def engine_pair(
    settings: EngineSettings = NIXL, decoding: EngineSettings | None = None
) -> AsyncIterator[tuple[RunningEngine, RunningEngine, AsyncExitStack]]:
    """Yields a prefill and a decode engine, and an exit stack."""
    async with (
        running_engine(settings) as prefill,
        running_engine(decoding or settings) as decode,
        AsyncExitStack() as stack,
    ):
        yield prefill, decode, stack


async def post(engine: RunningEngine, body: object, path: str = PATH) -> HttpResponse:
    return await send_request(engine.url.removeprefix("http://"), post_request(path, body))


async def state(engine: RunningEngine) -> Any:
    return (await send_request(engine.url.removeprefix("http://"), get_request("/sim/state"))).json()


async def prefilled(engine: RunningEngine, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    """Returns the object that a prefill answers."""
    params: dict[str, Any] = (await post(engine, prefill_body(prompt, **more))).json()["kv_transfer_params"]
    return params


def text(response: HttpResponse) -> str:
    completion: str = response.json()["choices"][0]["text"]
    return completion


async def right_text(engine: RunningEngine, prompt: str = PROMPT) -> str:
    """Returns the text that the prefill engine itself would generate."""
    return text(await post(engine, {"prompt": prompt, "max_tokens": 8}))


async def begin(engine: RunningEngine, stack: AsyncExitStack, body: object) -> ClientConnection:
    """Sends a request on its own connection, which stays open."""
    authority = engine.url.removeprefix("http://")
    connection = await stack.enter_async_context(open_client(authority))
    await connection.send(post_request(PATH, body).to_bytes(authority))
    return connection


async def test_a_prefill_answers_where_its_blocks_are() -> None:
    async with engine_pair() as (prefill, _, _):
        params = await prefilled(prefill)
        assert list(params) == [
            "do_remote_prefill",
            "do_remote_decode",
            "remote_block_ids",
            "remote_engine_id",
            "remote_request_id",
            "remote_host",
            "remote_port",
            "tp_size",
            "dcp_size",
            "pp_size",
            "remote_num_tokens",
            "remote_blocks_expiry_time",
            "transfer_mode",
            "remote_prefill_cached_tokens",
        ]
        assert (params["do_remote_prefill"], params["do_remote_decode"]) == (True, False)
        assert params["remote_num_tokens"] == 100
        assert len(params["remote_block_ids"][0]) == 7  # of 16 tokens, the last partly filled


async def test_a_streamed_prefill_answers_nothing_of_it() -> None:
    async with engine_pair() as (prefill, _, _):
        answer = await post(prefill, prefill_body(PROMPT, stream=True))
        assert b"remote_block_ids" not in answer.body
        assert (await state(prefill))["kv_transfer"]["lent"] == 0


async def test_an_engine_without_a_connector_ignores_the_parameters() -> None:
    async with engine_pair(EngineSettings()) as (prefill, _, _):
        assert (await post(prefill, prefill_body(PROMPT))).json()["kv_transfer_params"] is None


@pytest.mark.parametrize("length", [5, 16, 100, 1000])
async def test_a_decode_equals_one_engines_answer_and_computes_one_prompt_token(length: int) -> None:
    async with engine_pair() as (prefill, decode, _):
        prompt = make_prompt(length)
        params = await prefilled(prefill, prompt)
        answer = await post(decode, decode_body(prompt, params))
        page = (await send_request(decode.url.removeprefix("http://"), get_request("/metrics"))).body.decode()
        assert from_source(page, "external_kv_transfer") == length - 1
        assert from_source(page, "local_compute") == 1
        assert text(answer) == await right_text(prefill, prompt)
        assert (await state(prefill))["kv_transfer"]["lent"] == 0  # released, not expired
        assert answer.json()["kv_transfer_params"] is None


async def test_a_decode_reports_what_the_prefill_engine_found_cached() -> None:
    async with engine_pair() as (prefill, decode, _):
        await post(prefill, {"prompt": PROMPT, "max_tokens": 1})
        params = await prefilled(prefill)
        answer = await post(decode, decode_body(PROMPT, params))
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 96


async def test_the_prompt_is_cached_on_both_engines_afterwards() -> None:
    async with engine_pair() as (prefill, decode, _):
        await post(decode, decode_body(PROMPT, await prefilled(prefill)))
        for engine in (prefill, decode):
            answer = await post(engine, {"prompt": PROMPT, "max_tokens": 1})
            assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 96


async def test_a_decode_after_the_lease_is_right_until_the_blocks_are_reused() -> None:
    async with engine_pair(replace(NIXL, kv_transfer=replace(NIXL.kv_transfer, lease_seconds=0.05))) as (
        prefill,
        decode,
        _,
    ):
        params = await prefilled(prefill)
        await expired(prefill)
        assert text(await post(decode, decode_body(PROMPT, params))) == await right_text(prefill)


async def test_a_decode_after_the_lease_with_reused_blocks_is_wrong_without_an_error() -> None:
    profile = replace(builtin_profile("tiny-cpu"), kv_tokens=16 * 16)
    small = replace(NIXL, profile=profile, max_model_len=256)
    async with engine_pair(replace(small, kv_transfer=replace(NIXL.kv_transfer, lease_seconds=0.05))) as (
        prefill,
        decode,
        _,
    ):
        params = await prefilled(prefill)
        await expired(prefill)
        await post(prefill, {"prompt": make_prompt(240, "zzz"), "max_tokens": 8})
        answer = await post(decode, decode_body(PROMPT, params))
        assert (answer.status, text(answer)) == (200, WRONG_KV_TEXT * 8)


async def test_another_prompts_object_gives_wrong_text_and_spoils_the_cache() -> None:
    async with engine_pair() as (prefill, decode, _):
        foreign = await prefilled(prefill, make_prompt(100, "zzz"))
        assert text(await post(decode, decode_body(PROMPT, foreign))) == WRONG_KV_TEXT * 8
        assert text(await post(decode, {"prompt": PROMPT, "max_tokens": 8})) == WRONG_KV_TEXT * 8
        await post(decode, {}, "/reset_prefix_cache")
        assert text(await post(decode, {"prompt": PROMPT, "max_tokens": 8})) == await right_text(prefill)


@pytest.mark.parametrize("name", ["remote_host", "remote_port", "remote_engine_id", "remote_request_id"])
async def test_a_missing_field_hangs_and_the_core_dies_when_the_client_gives_up(name: str) -> None:
    async with engine_pair() as (prefill, decode, stack):
        params = await prefilled(prefill)
        del params[name]
        waiting = await begin(decode, stack, decode_body(PROMPT, params))

        async def hanging() -> float:
            return float((await state(decode))["kv_transfer"]["hanging"])

        await wait_for_value(hanging, lambda count: count == 1, "it hangs")
        await waiting.close()
        await decode.wait_gone()


@pytest.mark.parametrize("short", [True, False])
async def test_too_few_blocks_or_none_kill_the_engine(short: bool) -> None:
    async with engine_pair() as (prefill, decode, _):
        params: dict[str, Any] = {"do_remote_prefill": True}
        if short:
            params = await prefilled(prefill)
            params["remote_block_ids"] = [params["remote_block_ids"][0][:3]]
        assert (await post(decode, decode_body(PROMPT, params))).status == 500
        await decode.wait_gone()


@pytest.mark.parametrize(
    "change", [{"remote_engine_id": "another"}, {"remote_port": 9}, {"remote_block_ids": [[9**9] * 7]}]
)
async def test_a_pull_that_fails_is_an_error_or_computed_anew_as_the_policy_says(change: dict[str, Any]) -> None:
    async with engine_pair() as (prefill, decode, _):
        answer = await post(decode, decode_body(PROMPT, await prefilled(prefill) | change))
        assert (answer.status, answer.json()["error"]["message"]) == (500, "Internal server error")
        streamed = await post(decode, decode_body(PROMPT, await prefilled(prefill) | change, stream=True))
        assert streamed.status == 200
        assert b'data: {"error": ' in streamed.body
        assert streamed.body.endswith(b"data: [DONE]\n\n")
    async with engine_pair(RECOMPUTE) as (prefill, decode, _):
        answer = await post(decode, decode_body(PROMPT, await prefilled(prefill) | change))
        assert (answer.status, text(answer)) == (200, await right_text(prefill))
        assert (await state(decode))["kv_transfer"]["failed_total"] == 1


@pytest.mark.parametrize("settings", [NIXL, RECOMPUTE])
async def test_a_prefill_engine_that_died_fails_the_decode_or_lets_it_compute(settings: EngineSettings) -> None:
    async with engine_pair(settings) as (prefill, decode, _):
        params = await prefilled(prefill)
        prefill.kill()
        answer = await post(decode, decode_body(PROMPT, params))
        assert answer.status == (200 if settings is RECOMPUTE else 500)


@pytest.mark.sockets
async def test_a_decode_waits_for_a_frozen_prefill_engine_and_survives_its_client() -> None:
    async with engine_pair() as (prefill, decode, stack):
        params = await prefilled(prefill)
        silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers, as a frozen process
        stack.callback(silent.close)
        params["remote_port"] = silent.getsockname()[1]
        waiting = await begin(decode, stack, decode_body(PROMPT, params))

        async def pulling() -> float:
            return float((await state(decode))["kv_transfer"]["pulling"])

        await wait_for_value(pulling, lambda count: count == 1, "it pulls")
        await waiting.close()
        await wait_for_value(pulling, lambda count: count == 0, "it stopped")
        assert text(await post(decode, {"prompt": PROMPT, "max_tokens": 8}))


def mooncake_pair() -> tuple[EngineSettings, EngineSettings]:
    prefill = replace(NIXL, kv_transfer=MOONCAKE)
    return prefill, replace(NIXL, kv_transfer=replace(MOONCAKE, role="kv_consumer"))


async def mooncake_params(prefill: RunningEngine, name: str) -> dict[str, Any]:
    """Returns the parameters of a decode, with the engine's id from the bootstrap server."""
    ranks = (await send_request(prefill.url.removeprefix("http://"), get_request("/query"))).json()
    pulling = {"do_remote_prefill": True, "do_remote_decode": False, "transfer_id": name}
    return pulling | {"remote_engine_id": ranks["0"]["engine_id"], "remote_bootstrap_addr": prefill.url}


@pytest.mark.parametrize("decode_first", [True, False])
async def test_mooncake_transfers_in_either_order_and_reports_a_cached_prompt(decode_first: bool) -> None:
    async with engine_pair(*mooncake_pair()) as (prefill, decode, _):
        params = await mooncake_params(prefill, "x1")
        first = asyncio.create_task(
            post(prefill, prefill_body(PROMPT, kv_transfer_params=PREFILL | {"transfer_id": "x1"}))
        )
        if not decode_first:
            assert (await first).json()["kv_transfer_params"] is None
        answer = await post(decode, decode_body(PROMPT, params))
        await first
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 100
        assert text(answer) == await right_text(prefill)


async def test_mooncake_times_out_on_a_transfer_without_a_prefill() -> None:
    async with engine_pair(*mooncake_pair()) as (prefill, decode, _):
        answer = await post(decode, decode_body(PROMPT, await mooncake_params(prefill, "nobody's")))
        assert answer.status == 500


async def test_mooncake_engines_die_of_the_wrong_role() -> None:
    async with engine_pair(*mooncake_pair()) as (_, decode, _):
        answer = await post(decode, prefill_body(PROMPT, kv_transfer_params=PREFILL | {"transfer_id": "x1"}))
        assert answer.status == 500
        await decode.wait_gone()


async def test_sglang_engines_meet_in_a_room() -> None:
    room = KvTransferSettings("sglang", "kv_producer", abort_seconds=5.0)
    consumer = replace(NIXL, kv_transfer=replace(room, role="kv_consumer"))
    async with engine_pair(replace(NIXL, kv_transfer=room), consumer) as (prefill, decode, _):
        port = int(prefill.url.rpartition(":")[2])
        meeting = {"bootstrap_host": "127.0.0.1", "bootstrap_port": port, "bootstrap_room": 7}
        body = {"prompt": PROMPT, "max_tokens": 8, **meeting}
        _, answer = await asyncio.gather(post(prefill, body), post(decode, body))
        assert (await state(decode))["kv_transfer"]["pulled_total"] == 1
        assert text(answer) == await right_text(prefill)


def from_source(page: str, source: str) -> float:
    """Returns the prompt tokens of one origin."""
    line = next(
        line for line in page.splitlines() if "prompt_tokens_by_source_total{" in line and f'"{source}"' in line
    )
    return float(line.rpartition(" ")[2])


async def expired(prefill: RunningEngine) -> None:
    """Waits until the lease has expired."""

    async def count() -> float:
        return float((await state(prefill))["kv_transfer"]["expired_total"])

    await wait_for_value(count, lambda leases: leases == 1, "the lease ran out")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": [{"role": "user", "content": "one two three " * 30}], "max_tokens": 1}),
        ("/v1/responses", {"input": "one two three " * 30, "max_output_tokens": 1}),
    ],
)
async def test_other_dialects_hand_over_like_a_chat(path: str, body: dict[str, Any]) -> None:
    body["model"] = "sim"
    async with engine_pair() as (prefill, decode, _):
        lent = (await post(prefill, body | {"kv_transfer_params": PREFILL}, path)).json()
        await post(decode, body | {"kv_transfer_params": lent["kv_transfer_params"]}, path)
        assert (await state(decode))["kv_transfer"]["pulled_total"] == 1
        injected = {"kv_transfer_params": {"prompt_token_ids": list(range(9, 60))}}
        usage = (await post(decode, body | injected, path)).json()["usage"]
    assert sum(usage.get(name, 0) for name in INPUT_COUNTS) == 51
