"""``python -m fairlead_kvstore`` with simulated engines, a real Redis, kills and takeovers."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock, SystemClock
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.changes import BlocksStored
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.indexer import cli
from fairlead_kvstore.indexer.service import IndexerService
from fairlead_kvstore.reader.reader_context import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.engines.disaggregated import EngineProcess, engine_process
from fairlead_testing.kvstore.changed_blocks import match_all
from fairlead_testing.kvstore.index_reader import IndexReader
from fairlead_testing.kvstore.indexer_harness import IndexerProcess, indexer_process
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

MODEL = "default/tiny"
EVENTS = ("--kv-events", "0", "--kv-replay", "0", "--block-size", "16")
PROMPT = list(range(100, 165))


def fleet(path: Path, engines: Sequence[EngineProcess | str]) -> Path:
    urls = [engine if isinstance(engine, str) else engine.url for engine in engines]
    instances = [{"url": url, "id": f"e{number}"} for number, url in enumerate(urls)]
    path.write_text(json.dumps({"models": [{"name": "tiny", "instances": instances}]}))
    return path


@asynccontextmanager
async def feeding(server: Valkey) -> AsyncIterator[IndexReader]:
    """Loads the index again and again."""
    link = RedisLink(server.url, SystemClock())
    feed = IndexReader(link, SystemClock())
    feed.set_models([MODEL])
    link.start()
    feed.start()
    try:
        yield feed
    finally:
        await feed.stop()
        await link.stop()


def cached_blocks(feed: IndexReader, tokens: Sequence[int] = PROMPT) -> dict[str, int]:
    """Returns cached blocks of a prompt by instance."""
    mirror = feed.index(MODEL)
    chain = block_hashes(chain_root(MODEL), list(tokens), 16)
    return {} if mirror is None else {name: blocks[0] for name, blocks in match_all(mirror, chain).items()}


def complete(feed: IndexReader, instance: str) -> bool:
    mirror = feed.index(MODEL)
    known = None if mirror is None else mirror.completeness(instance)
    return known is not None and known[0]


async def complete_prompt(engine: EngineProcess, tokens: Sequence[int]) -> None:
    async with httpx.AsyncClient(timeout=60.0) as client:
        body = {"model": "tiny", "prompt": list(tokens), "max_tokens": 1}
        (await client.post(f"{engine.url}/v1/completions", json=body)).raise_for_status()


async def test_memory_of_redis_bounds_the_blocks_of_the_process(server: Valkey, tmp_path: Path) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.config_set("maxmemory", 64 * 1024 * 1024)
    path = fleet(tmp_path / "fleet.yaml", ["http://127.0.0.1:9"])
    async with indexer_process("--fleet", str(path), "--redis", server.url) as indexer:

        async def is_bounded() -> bool:
            lines = (await indexer.get("/metrics")).text.splitlines()
            return {
                "fairlead_indexer_redis_max_memory_bytes 6.7108864e+07",
                "fairlead_indexer_max_blocks 524288.0",
            } <= set(lines)

        await wait_until(is_bounded)


async def test_second_indexer_takes_over_without_a_loss(server: Valkey, tmp_path: Path) -> None:
    async with engine_process(*EVENTS) as engine, feeding(server) as feed:
        path = fleet(tmp_path / "fleet.yaml", [engine])
        arguments = ("--fleet", str(path), "--redis", server.url)
        async with indexer_process(*arguments) as first:
            await complete_prompt(engine, PROMPT)
            await wait_until(lambda: cached_blocks(feed) == {"e0": 4} and complete(feed, "e0"))
            assert (await first.get("/readyz")).status_code == 200
            assert (await first.metric("blocks"), await first.metric("leads")) == (4, 1)
            async with indexer_process(*arguments) as second:
                await wait_until(lambda: _ready(second))
                assert await second.metric("leads") == 0
                first.process.send_signal(signal.SIGKILL)
                await first.process.wait()
                await complete_prompt(engine, [*PROMPT, *range(900, 916)])  # without an indexer
                await wait_until(lambda: _leads(second))
                await wait_until(
                    lambda: cached_blocks(feed, [*PROMPT, *range(900, 916)]) == {"e0": 5} and complete(feed, "e0")
                )
                assert (await second.metric("restarts_total"), await second.metric("lost_total")) == (0, 0)
                second.process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(second.process.wait(), 60.0) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fleet", "/nowhere/fleet.yaml", "--redis", "redis://127.0.0.1:1"), "cannot read the fleet file"),
        (("--fleet", "x.yaml"), "needs a Redis to write to"),
        (("--fleet", "x.yaml", "--redis", "http://a"), "redis://"),
        (("--fleet", "x.yaml", "--redis", "redis://a", "--listen", "8080"), "HOST:PORT"),
    ],
)
def test_invalid_arguments_are_reported_and_nothing_runs(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "configure_stderr_logging", lambda *_: None)
    monkeypatch.setattr(cli.process_tuning, "raise_open_file_limit", lambda: None)
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


async def test_process_with_invalid_arguments_exits_2() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairlead_kvstore", "--kube", "No_Namespace", "--redis", "redis://a"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 60.0)
    assert process.returncode == 2
    assert "is not a namespace" in stderr.decode()
    assert "Traceback" not in stderr.decode()


async def _ready(indexer: IndexerProcess) -> bool:
    return (await indexer.get("/readyz")).status_code == 200


async def _leads(indexer: IndexerProcess) -> bool:
    return await indexer.metric("leads") == 1


async def test_redis_that_is_too_slow_for_a_model_is_shown_in_status_and_metrics() -> None:
    source: Any = SimpleNamespace(warnings=list)
    limits = replace(Limits(), index_pending_blocks=1)
    runtime = ReaderRuntime(asyncio.get_running_loop(), ManualClock(), lambda: 0.0, limits)
    service = IndexerService(source, "redis://127.0.0.1:1", "one", b"", {}, runtime)
    service._writer.set_models([MODEL])
    state = service._writer._models[MODEL]
    state.is_active, state.lease = True, b"1:one"
    state.begin_epoch(1)
    assert "too slow" not in service.readiness().text
    service.offer(MODEL, [BlocksStored("a", StorageTier.GPU, [1, 2])])
    assert f"the index of {MODEL} lags: Redis is too slow for its changes" in service.readiness().text
    counts = {
        sample.labels["model"]: sample.value
        for family in service.collect()
        for sample in family.samples
        if sample.name == "fairlead_indexer_overflows_total"
    }
    assert counts == {MODEL: 1.0}
    await service.fleet_reader.close()
