"""The index end to end: KV events over ZeroMQ, a gateway with its workers, and requests."""

import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from fairlead.fleet.file import write_fleet_file
from fairlead_gateway.peers.peer_messages import DATA_FIELD
from fairlead_kvstore.index import redis_keys
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.index_stage import ENGINE_BLOCKS, MODEL_KEY, EnginePorts, index_stage
from fairlead_testing.http.raw_client import post_request, send
from fairlead_testing.kvstore.indexer_harness import indexer_process
from fairlead_testing.pytest_hooks.nightly import shortened
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

TOKENIZER = Tokenizer()


def text_of(name: str, tokens: int = 1_000) -> str:
    return TOKENIZER.random_text(tokens, name)


@pytest.mark.parametrize("workers", shortened(["1", "2"], ["2"]))
async def test_what_an_engine_evicted_is_not_expected_there(tmp_path: Path, workers: str) -> None:
    async with index_stage(tmp_path, 1, "--workers", workers) as place:
        evicted = [text_of("oldest", 300), text_of("older", 300), text_of("first")]
        for text in evicted:
            await place.chat(text)
        await place.wait_for_state("index")
        await place.wait_for_links(18)
        size, expected, cached = await place.cached(text_of("first"))
        assert cached > 0.9 * size
        assert abs(expected - cached) < 0.1 * size
        await wait_until(place.has_unique(40))
        for name in ("second", "third", "fourth", "fifth"):  # 4,000 tokens in a cache of 4,096
            await place.chat(text_of(name))
        await wait_until(
            place.has_unique(ENGINE_BLOCKS - 8)
        )  # its events were read: further requests would outrun them

        async def is_gone() -> bool:
            size, expected, cached = await place.cached(evicted.pop())  # once each: then it is cached again
            assert cached < 0.3 * size
            return expected < 0.3 * size  # at the latest when the workers know

        await wait_until(is_gone)
        await place.chat(text_of("fifth"))
        size, expected, cached = await place.cached(text_of("fifth"))
        assert cached > 0.9 * size
        assert expected > 0.8 * size


async def test_an_engine_that_was_started_anew_holds_nothing_for_anybody(tmp_path: Path) -> None:
    async with index_stage(tmp_path, 1) as place:
        names = [f"text {number}" for number in range(12)]
        for name in names:
            await place.chat(text_of(name, 300))
        await place.wait_for_state("index")
        await place.wait_for_links(36)
        place.engines[0].send(signal.SIGKILL)
        await place.engines[0].process.wait()
        await place.wait_for_state("incomplete")
        async with place.ports[0].run_engine():

            async def read_again() -> bool:
                return bool((await place.index())["reason"] != "disconnected")

            async def no_ghost() -> bool:
                size, expected, cached = await place.cached(text_of(names.pop(), 300))  # once: then it is cached again
                assert cached < 0.2 * size
                return expected < 0.2 * size

            await wait_until(read_again)
            await wait_until(no_ghost)  # workers know it a twentieth of a second later


async def test_an_index_that_is_not_true_is_quarantined_and_nobody_notices(tmp_path: Path) -> None:
    """The engine gets the events of another engine with a larger cache."""
    async with index_stage(tmp_path, 1) as place, AsyncExitStack() as stack:
        other = EnginePorts.free()
        await stack.enter_async_context(other.run_engine("--num-gpu-blocks-override", "4096"))
        snapshot = place.fleet(kv_events=f"tcp://127.0.0.1:{other.events}", kv_replay=f"tcp://127.0.0.1:{other.replay}")
        write_fleet_file(place.path, snapshot)
        texts = [text_of(f"text {number}") for number in range(8)]
        for text in texts:
            body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
            more = "content-type: application/json\r\n"
            assert (await send(f"http://127.0.0.1:{other.http}", post_request(body, more=more)))[0].status == 200
        await place.wait_for_state("index")

        async def out() -> bool:
            for text in texts:
                await place.chat(text)
            return bool((await place.index())["state"] == "quarantined")

        await wait_until(out)
        index = await place.index()
        assert index["reason"] == "the index predicts what the engine does not find"
        assert index["predicted_tokens"] > 4 * index["reported_tokens"]
        assert "in quarantine: e-0/0/0: the index predicts" in await place.gateway.warnings()
        assert await place.gateway.metric("fairlead_gateway_index_quarantined") == 1
        await place.chat(texts[0])
        assert await place.gateway.metric("fairlead_gateway_errors_total") == 0


async def test_an_engine_that_does_not_report_cached_tokens_is_said_to_be_silent(tmp_path: Path) -> None:
    async with index_stage(tmp_path, 1, engine=("--no-enable-prompt-tokens-details",)) as place:
        await place.chat(text_of("first"))
        await place.wait_for_state("index")
        await place.wait_for_links(10)

        async def silent() -> bool:
            await place.chat(text_of("first"))
            return bool((await place.index())["silent"] > 0)

        await wait_until(silent)
        index = await place.index()
        assert index["ratio"] is None
        assert "does not report cached tokens" in index["reason"]
        assert (await place.gateway.get("/metrics")).body.count(b"\nfairlead_gateway_index_prediction_ratio{") == 0


async def test_a_gateway_needs_neither_the_indexer_nor_its_redis_for_the_index(tmp_path: Path, server: Valkey) -> None:
    async with index_stage(tmp_path, 1, "--redis", server.url) as place:

        async def knows(text: str) -> bool:
            asked = await place.chat(text)
            inputs = asked["choices"][0]["candidates"][0]["inputs"]
            return "indexed_tokens" in inputs and inputs["indexed_tokens"]["value"] > 900

        await place.chat(text_of("first"))
        await place.wait_for_state("index")
        await wait_until(lambda: knows(text_of("first")))
        server.kill()
        await wait_until(lambda: knows(text_of("second")))
        assert (await place.index())["state"] == "index"
        size, expected, cached = await place.cached(text_of("first"))
        assert min(expected, cached) > 0.9 * size


@pytest.mark.parametrize("has_redis", [False, True])
async def test_engines_are_found_of_which_the_fleet_does_not_say_that_they_publish(
    tmp_path: Path, server: Valkey, *, has_redis: bool
) -> None:
    options = ("--redis", server.url) if has_redis else ()
    async with index_stage(tmp_path, 1, *options, states_events=False) as place:
        await place.wait_for_state("incomplete")
        await place.chat(text_of("first"))
        await place.wait_for_state("index")
        await place.chat(text_of("first"))
        await place.wait_for_links(10)

        async def is_expected() -> bool:
            size, expected, cached = await place.cached(text_of("first"))
            return min(expected, cached) > 0.9 * size

        await wait_until(is_expected)


async def test_an_index_that_was_written_with_another_secret_is_said_to_be_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Valkey
) -> None:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "the secret of the indexer")
    async with (
        index_stage(tmp_path, 1, "--redis", server.url) as place,
        indexer_process("--fleet", str(place.path), "--redis", server.url),
        Redis(unix_socket_path=server.url.removeprefix("unix://")) as redis,
    ):
        await place.chat(text_of("first"))
        await wait_until(lambda: redis.hexists(redis_keys.index_keys(MODEL_KEY)[1], "n"))
        place.gateway.process.kill()
        monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "the secret of the gateway")
        async with gateway_process(place.path, "--redis", server.url) as place.gateway:
            note = "the index of default/tiny in Redis is not used, since it was written with another secret"

            async def is_said() -> bool:
                return note in await place.gateway.warnings()

            await wait_until(is_said)
            await place.chat(text_of("second"))
            await place.wait_for_state("index")


async def test_an_index_that_is_switched_off_is_said_to_be_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_LINKS", "off")
    async with index_stage(tmp_path, 1) as place:
        note = "the index of default/tiny is not used, since FAIRLEAD_LINKS is off"
        assert note in await place.gateway.warnings()
        await place.chat(text_of("first"))
        assert (await place.index())["state"] is None


async def test_adapters_and_salts_are_followed_and_never_credited_to_one_another(tmp_path: Path) -> None:
    """One text for the base model, three adapters and two salts: six different prompts.

    The engine starts with two of the adapters, and the gateway loads the third.
    """
    apart: list[dict[str, str]] = [
        {"model": "tiny"},
        {"model": "french"},
        {"model": "german"},
        {"model": "legal"},
        {"model": "tiny", "cache_salt": "one tenant"},
        {"model": "french", "cache_salt": "one tenant"},
    ]
    async with index_stage(tmp_path, 1, adapters=("french", "german"), loaded=("legal",)) as place:
        await place.chat(text_of("first", 100))
        for prefix in ("", "french-", "german-"):
            await place.wait_for_state("index", f"{prefix}e-0/0/0")
        text = text_of("shared", 600)

        async def credited(**fields: str) -> float:
            inputs = (await place.chat(text, **fields))["choices"][0]["candidates"][0]["inputs"]
            return float(inputs["indexed_tokens"]["value"]) if "indexed_tokens" in inputs else 0.0

        for number, fields in enumerate(apart):
            size, expected, cached = await place.cached(text, **fields)
            assert cached < 32, "the engine keeps them apart"
            assert expected < 32, (number, fields)

            async def known(fields: dict[str, str] = fields) -> bool:
                return await credited(**fields) > 0.8 * size  # noqa: B023

            await wait_until(known)
            size, expected, cached = await place.cached(text, **fields)
            assert cached > 0.9 * size
            assert abs(expected - cached) < 0.1 * size


async def test_a_gateway_that_starts_knows_the_links_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Valkey
) -> None:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "a secret that all gateways of this fleet share")
    async with (
        index_stage(tmp_path, 1, "--redis", server.url) as place,
        indexer_process("--fleet", str(place.path), "--redis", server.url),
    ):
        await place.wait_for_state("incomplete")  # its events are read
        texts = [text_of(f"text {number}", 300) for number in range(3)]
        for text in texts:
            await place.chat(text)
        await place.wait_for_links(9)
        async with Redis(unix_socket_path=server.url.removeprefix("unix://")) as redis:

            async def is_stored() -> bool:
                return bool(await redis.xlen(redis_keys.prompt_links(MODEL_KEY)) >= len(texts))

            await wait_until(is_stored)
            for _, fields in await redis.xrange(redis_keys.prompt_links(MODEL_KEY)):
                assert not any(text[:12].encode() in fields[DATA_FIELD] for text in texts)
        place.gateway.process.kill()
        async with gateway_process(place.path, "--redis", server.url) as place.gateway:
            await place.wait_for_links(9)  # it has had no request
            model = (await place.gateway.get_json("/api/fleet"))["models"][0]
            assert "3 prompts were learned by other gateways or before" in model["links"]["how"]
            await place.wait_for_state("index")

            async def known() -> bool:
                inputs = (await place.chat(texts[0]))["choices"][0]["candidates"][0]["inputs"]
                return "indexed_tokens" in inputs and inputs["indexed_tokens"]["value"] > 250

            await wait_until(known)
