"""An indexer with many engines: discovery, fairness, hostile input and status."""

import json
import random
from dataclasses import replace

import msgspec
import pytest

from fairlead.fleet.model import EXTERNAL_API, Fleet, InstanceState, Model
from fairlead.limits import Limits
from fairlead_kvstore.blockstore.storage_tiers import shared_store_id
from fairlead_kvstore.events.types import EventFrame, StreamPosition
from fairlead_kvstore.index.recovery import InstanceCheckpoint, RecoveredIndex
from fairlead_kvstore.reader.engine_info_client import EVENT_SOURCES_PATH
from fairlead_kvstore.reader.engine_subscription import (
    KV_REPLAY_SECONDS,
    KV_RESTART_SECONDS,
    MAX_KV_REPLAY_SECONDS,
)
from fairlead_kvstore.reader.namespace_slots import NamespaceSlots
from fairlead_testing.kvstore.block_store import SingleInstanceStore, restored_table, stored_event
from fairlead_testing.kvstore.indexer_harness import MODEL, IndexerHarness, exact_engine, frames, indexer_harness
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.kvstore.zmq_engine import ZmqEngine
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

LIMITS = Limits()
A, B = list(range(1, 10)), list(range(100, 117))


def sources(engine: ZmqEngine, **more: object) -> bytes:
    source = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": engine.events.replace("127.0.0.1", "*"),
        "replay_endpoint": None if engine.replay is None else engine.replay.replace("127.0.0.1", "*"),
        "buffer_steps": 10_000,
    }
    return json.dumps({"0": source | more}).encode()


def asks(stage: IndexerHarness, name: str) -> None:
    """Adds an instance to the fleet, without the endpoints of its events."""
    stage.add_instance(name, kv_events=None, kv_replay=None)


async def test_engine_endpoints_are_queried_and_again_after_a_move() -> None:
    async with indexer_harness() as stage:
        engine = stage.start_engine("a")
        stage.answers["a", EVENT_SOURCES_PATH] = sources(engine)
        asks(stage, "a")
        await wait_until(lambda: stage.status("a").connected and engine.listeners > 0)
        engine.serve_prompt(*A)
        await stage.wait_exact("a")
        engine.close()
        del stage.engines["a"]
        moved = stage.start_engine("a", PrefixCacheEngine(capacity=400, seed=3))
        assert moved.events != engine.events
        stage.answers["a", EVENT_SOURCES_PATH] = sources(moved)
        await wait_until(lambda: stage.status("a").connected and stage.status("a").events == moved.events)
        moved.serve_prompt(*B)
        await stage.wait_exact("a")
        assert (stage.credited_blocks("a", A), stage.credited_blocks("a", B)) == (0, 4)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "answers 404"),
        (b"<html>", "cannot be read"),
        (b"{}", "no KV events"),
        (b'{"0":{"enable_kv_cache_events":false}}', "no KV events"),
        (b'{"0":{"enable_kv_cache_events":true,"publisher":"kafka","endpoint":"tcp://*:1"}}', "kafka"),
        (b'{"0":{"enable_kv_cache_events":true,"endpoint":"ipc:///etc/passwd"}}', "not a TCP address"),
        (b'{"0":{"enable_kv_cache_events":true,"endpoint":"tcp://*:99999"}}', "not a TCP address"),
        (b'{"0":{"enable_kv_cache_events":true,"endpoint":"tcp://indexer:5557"}}', "let it publish at tcp://*:PORT"),
    ],
)
async def test_unusable_endpoints_are_reported_with_a_reason(answer: bytes | None, words: str) -> None:
    async with indexer_harness() as stage:
        if answer is not None:
            stage.answers["a", EVENT_SOURCES_PATH] = answer
        asks(stage, "a")
        await wait_until(lambda: words in stage.status("a").problem)
        assert not stage.status("a").state.complete


async def test_engine_that_connects_to_the_indexer_is_refused() -> None:
    async with indexer_harness() as stage:
        for name in ("10.1.2.3", "example.org"):
            engine = stage.start_engine("a")
            answer = sources(engine, endpoint=f"tcp://{name}:80", replay_endpoint=f"tcp://{name}:81")
            stage.answers[name, EVENT_SOURCES_PATH] = answer
            asks(stage, name)
            refusal = f"the engine connects to 'tcp://{name}:80', and an indexer does not listen for engines"
            await wait_until(lambda name=name, refusal=refusal: refusal in stage.status(name).problem)  # type: ignore[misc]
            assert stage.status(name).events is None


async def test_api_that_others_run_is_asked_for_nothing() -> None:
    async with indexer_harness() as stage:
        stage.start_engine("a")
        stage.add_instance("a")
        asks(stage, "hosted")
        stage.instances["hosted"] = replace(stage.instances["hosted"], engine=EXTERNAL_API)
        stage.apply_fleet()
        await stage.wait_connected("a")
        assert list(stage.indexer.instance_statuses()) == ["a"]


async def test_instances_follow_the_fleet() -> None:
    async with indexer_harness() as stage:
        for name in ("a", "b"):
            stage.start_engine(name)
            stage.add_instance(name)
        await stage.wait_connected("a", "b")
        for engine in stage.engines.values():
            engine.serve_prompt(*A)
        await stage.wait_exact("a", "b")
        del stage.instances["a"]
        stage.apply_fleet()
        assert list(stage.indexer.instance_statuses()) == ["b"]
        assert stage.credited_blocks("b", A) == 2
        assert stage.sink.index("default/tiny").instances() == ("b",)
        assert stage.store.counts[MODEL]["batches"] == 2, "one is of the departed instance"
        await wait_until(lambda: stage.engines["a"].listeners == 0)
        stage.add_instance("a")
        await stage.wait_exact("a")
        assert stage.credited_blocks("a", A) == 2


async def test_sleep_drops_blocks_before_the_engine_reports_a_clear() -> None:
    async with exact_engine(A) as (stage, engine):
        for state, believed in ((InstanceState.SLEEPING, 0), (InstanceState.STARTING, 0), (InstanceState.READY, 0)):
            stage.instances["a"] = replace(stage.instances["a"], state=state)
            stage.apply_fleet()
            assert stage.credited_blocks("a", A) == believed
            assert not stage.status("a").state.complete
        engine.engine.clear()
        engine.serve_prompt(*B)
        await stage.wait_exact("a")
        assert stage.credited_blocks("a", B) == 4


async def test_late_batches_of_an_engine_that_slept_before_the_indexer_leave_no_block() -> None:
    async with indexer_harness() as stage:
        engine = stage.start_engine("a")
        stage.add_instance("a", state=InstanceState.SLEEPING)
        await stage.wait_connected("a")
        engine.serve_prompt(*A)
        await wait_until(lambda: stage.status("a").counts["batches"] == 1)
        assert stage.status("a").state.blocks == 0
        stage.add_instance("a", state=InstanceState.READY)
        assert stage.status("a").state.blocks == 0
        engine.engine.clear()
        engine.serve_prompt(*B)
        await stage.wait_exact("a")
        assert stage.credited_blocks("a", B) == 4


def recovered_blocks() -> RecoveredIndex:
    """Returns what an earlier indexer left of an instance with two blocks."""
    former = SingleInstanceStore()
    former.apply(stored_event(0, 1))
    snapshot, rows = former.store.take_snapshot("i", 0.0)
    table = restored_table(snapshot, rows, 0.0)
    return RecoveredIndex({"i": InstanceCheckpoint(snapshot, {}, StreamPosition(1, [(0, 0)]), table)}, {})


@pytest.mark.parametrize("has_endpoints", [False, True])
async def test_restored_blocks_of_a_sleeping_engine_are_dropped(has_endpoints: bool) -> None:
    async with indexer_harness(leased=True) as stage:
        endpoints = {"kv_events": "tcp://127.0.0.1:1", "kv_replay": "tcp://127.0.0.1:2"} if has_endpoints else {}
        stage.add_instance("i", state=InstanceState.SLEEPING, **endpoints)
        stage.indexer.start_model(MODEL, recovered_blocks())
        assert (stage.status("i").state.blocks, stage.status("i").state.complete) == (0, False)


async def test_shared_store_continues_from_what_an_earlier_indexer_left() -> None:
    former = SingleInstanceStore()
    former.apply(stored_event(0, 1, medium="cpu"))
    shared = shared_store_id(MODEL)
    snapshot, rows = former.store.take_snapshot(shared, 0.0)
    kept = InstanceCheckpoint(snapshot, {}, StreamPosition(0, []), restored_table(snapshot, rows, 0.0))
    async with indexer_harness(leased=True) as stage:
        stage.start_engine("a")
        stage.add_instance("a")
        stage.indexer.start_model(MODEL, RecoveredIndex({shared: kept}, {}))
        assert list(stage.indexer.instances(MODEL)) == ["a", shared]
        assert stage.indexer.checkpoint(shared).position is not None
        stage.loop.advance(Limits().kv_shared_seconds + 32.0)
        await wait_until(lambda: not list(stage.store.content(shared)))
        stage.indexer.stop_model(MODEL)
        assert list(stage.indexer.instances(MODEL)) == []


async def test_restored_blocks_are_dropped_if_the_engine_has_no_known_endpoints() -> None:
    async with indexer_harness(replace(Limits(), kv_query_pause_seconds=0.001), leased=True) as stage:
        stage.add_instance("i")
        stage.indexer.start_model(MODEL, recovered_blocks())
        assert stage.status("i").state.blocks == 2
        await wait_until(lambda: bool(stage.queries))
        stage.clock.advance(KV_RESTART_SECONDS)
        await wait_until(lambda: not stage.status("i").state.blocks)
        assert stage.indexer.checkpoint("i").position is None


async def test_flood_is_read_without_a_loss() -> None:
    async with indexer_harness() as stage:
        for name in ("calm", "loud"):
            stage.start_engine(name, PrefixCacheEngine(capacity=100_000))
            stage.add_instance(name)
        await stage.wait_connected("calm", "loud")
        loud, calm = stage.engines["loud"], stage.engines["calm"]
        loud.send(*frames(loud.engine, *[range(1_000 * at, 1_000 * at + 401) for at in range(400)]))
        calm.serve_prompt(*A)
        await stage.wait_exact("loud", "calm")
        counts = stage.store.counts[MODEL]
        assert (counts["batches"], counts["gaps"], counts["lost"]) == (401, 0, 0), counts


async def test_hostile_frames_affect_only_their_own_engine() -> None:
    draw = random.Random(5)
    async with indexer_harness() as stage:
        for name in ("good", "bad"):
            stage.start_engine(name)
            stage.add_instance(name)
        await stage.wait_connected("good", "bad")
        good, bad = stage.engines["good"], stage.engines["bad"]
        good.serve_prompt(*A)
        await stage.wait_exact("good")
        epoch, counts = stage.status("good").state.epoch, stage.store.counts[MODEL]
        bad.send_raw([b""])
        bad.send_raw([b"kv", b"1234567", b"x"])

        bad.send_raw([b"kv"] * 1_000)
        bad.send_raw([b"kv", b"\xff" * 8, b""])
        for number in range(300):
            bad.send_raw([b"kv", number.to_bytes(8, "big"), draw.randbytes(draw.randrange(200))])
            nested = msgspec.msgpack.encode([0.0, [{"type": "BlockRemoved", "block_hashes": [[]]}], 0])
            bad.send_raw([b"kv", draw.randrange(2**64).to_bytes(8, "big"), nested])
        await stage.wait_exact("good")
        good.serve_prompt(*B)
        await stage.wait_exact("good")
        await wait_until(lambda: counts["unreadable:frame"] == 4)
        assert not stage.status("bad").state.complete
        assert len([name for name in counts if name.startswith("unreadable:")]) > 1
        assert (stage.status("good").state.epoch, counts["disconnects"]) == (epoch, 0)


async def test_oversized_message_ends_only_its_connection() -> None:
    async with exact_engine(A, limits=replace(LIMITS, kv_events_bytes=10_000)) as (stage, engine):
        engine.send(EventFrame(1, bytes(20_000)))
        await wait_until(lambda: stage.status("a").counts["disconnects"] == 1)
        assert not stage.status("a").state.complete


async def test_eviction_for_another_model_reaches_the_index_of_its_own_model() -> None:
    async with indexer_harness(replace(LIMITS, kv_blocks=6)) as stage:
        for name in ("a", "b"):
            stage.start_engine(name)
            stage.add_instance(name)
        first, second = stage.instances["a"], replace(stage.instances["b"], namespace="team", model="other")
        models = {MODEL: Model("default", "tiny"), "team/other": Model("team", "other")}
        stage.indexer.update_fleet(Fleet(1, 1, models, {MODEL: (first,), "team/other": (second,)}))
        await stage.wait_connected("a", "b")
        stage.engines["a"].serve_prompt(*range(1, 22))
        await stage.wait_exact("a")
        stage.engines["b"].serve_prompt(*A)
        await stage.wait_exact("b")
        assert stage.status("a").counts["dropped"] == 1
        assert stage.credited_blocks("a", range(1, 22)) == 4


async def test_indexer_defect_drops_the_instance_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with exact_engine(A) as (stage, engine):
        whole = stage.store.apply
        broken = {1}

        def apply(*given: object) -> object:
            if broken:
                broken.pop()
                raise ZeroDivisionError
            return whole(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(stage.store, "apply", apply)
        engine.serve_prompt(*B)
        await wait_until(lambda: stage.status("a").counts["defects"] == 1)
        assert stage.credited_blocks("a", A) == 0
        engine.serve_prompt(*range(300, 309))
        await wait_until(lambda: stage.credited_blocks("a", range(300, 309)) == 2)
        assert not stage.status("a").state.complete


async def test_replays_wait_for_a_slot() -> None:
    async with indexer_harness(replace(LIMITS, kv_replays=2)) as stage:
        names = [f"e{number}" for number in range(6)]
        for name in names:
            engine = stage.start_engine(name)
            engine.serve_prompt(*A)
            engine.holds_replays = True
            stage.add_instance(name)
        held = lambda: [name for name in names if stage.engines[name].replay_requests]  # noqa: E731
        await wait_until(lambda: all(stage.status(name).replaying for name in names) and len(held()) == 2)
        for _ in range(5):
            await wait_until(
                lambda: any(stage.engines[name].replay_requests and stage.engines[name].holds_replays for name in names)
            )
            for name in held():
                stage.engines[name].answer_held()
            if all(not stage.engines[name].holds_replays for name in names):
                break
        await stage.wait_exact(*names)


async def test_endless_replay_of_one_engine_keeps_no_other_from_its_own() -> None:
    async with indexer_harness(replace(LIMITS, kv_replays=1)) as stage:
        endless = stage.start_engine("endless")
        endless.serve_prompt(*A)
        endless.holds_replays = True
        stage.add_instance("endless")
        await wait_until(lambda: endless.replay_requests != [])
        stage.start_engine("other").serve_prompt(*B)
        stage.add_instance("other")
        await wait_until(lambda: stage.status("other").replaying)
        between = KV_REPLAY_SECONDS * 0.9
        for pause in (between, between, between, MAX_KV_REPLAY_SECONDS - 3 * between):
            read = stage.status("endless").counts["bytes"]
            endless.answer_in_part()
            await wait_until(lambda read=read: stage.status("endless").counts["bytes"] > read)  # type: ignore[misc]
            assert stage.status("other").replaying
            stage.loop.advance(pause)
        await stage.wait_exact("other")
        await wait_until(lambda: len(endless.replay_requests) == 2)
        endless.answer_held()
        await stage.wait_exact("endless")


def test_slots_for_replays_go_to_the_waiting_namespaces_in_turn() -> None:
    granted: list[str] = []
    slots = NamespaceSlots(1)
    first = slots.acquire(lambda: granted.append("first"), "crowd")
    held = [slots.acquire(lambda name=name: granted.append(name), "crowd") for name in ("a", "b", "c")]  # type: ignore[misc]
    other = slots.acquire(lambda: granted.append("other"), "team")
    assert granted == ["first"]
    for slot in (first, held[0], other):
        slots.release(slot)
    slots.release(held[2])
    slots.release(held[1])
    assert (granted, slots._queues) == (["first", "a", "other", "b"], {})


async def test_endpoint_that_resolves_to_a_refused_address_is_not_read() -> None:
    async with indexer_harness() as stage:
        engine = stage.start_engine("a")
        stage.answers["a", EVENT_SOURCES_PATH] = sources(engine)
        stage.add_instance("a", url="http://localhost:8001", kv_events=None, kv_replay=None, checks_address=True)
        await wait_until(lambda: "it is a loopback address" in (stage.status("a").problem or ""))
        assert engine.listeners == 0
