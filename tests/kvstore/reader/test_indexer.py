"""An indexer and many engines: finding them, not letting one starve another, bearing what is hostile, and telling of it."""

import asyncio
import json
import random
from dataclasses import replace

import msgspec
import pytest

from fairlead.errors import BadInput
from fairlead.fleet import InstanceState
from fairlead.limits import Limits
from fairlead.testing.waiting import until
from fairlead_kvstore.events.outcomes import Frame
from fairlead_kvstore.reader.asking import MODELS, SOURCES
from fairlead_kvstore.testing import Engine
from fairlead_kvstore.testing_reader import Stage, frames, staged
from fairlead_kvstore.testing_wire import WireEngine

LIMITS = Limits()
A, B = list(range(1, 10)), list(range(100, 117))


def sources(engine: WireEngine, **more: object) -> bytes:
    told = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": engine.events.replace("127.0.0.1", "*"),
        "replay_endpoint": None if engine.replay is None else engine.replay.replace("127.0.0.1", "*"),
        "buffer_steps": 10_000,
    }
    return json.dumps({"0": told | more}).encode()


def asks(stage: Stage, name: str) -> None:
    """The fleet has this instance, and does not say where its events are."""
    stage.reads(name, kv_events=None, kv_replay=None)


def test_an_engine_says_where_its_events_are_and_again_after_it_moved() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.answers["a", SOURCES] = sources(engine)
            asks(stage, "a")
            await until(lambda: stage.seen("a").connected and engine.listeners > 0)
            engine.prompt(*A)
            await stage.complete("a")
            engine.close()
            del stage.engines["a"]
            moved = stage.engine("a", Engine(capacity=400, seed=3))
            assert moved.events != engine.events
            stage.answers["a", SOURCES] = sources(moved)
            await until(lambda: stage.seen("a").connected and stage.seen("a").events == moved.events)
            moved.prompt(*B)
            await stage.complete("a")
            assert (stage.believed("a", A), stage.believed("a", B)) == (0, 4)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "answers 404"),
        (b"<html>", "cannot be read"),
        (b"{}", "no KV events"),
        (b'{"0":{"enable_kv_cache_events":false}}', "no KV events"),
        (b'{"0":{"enable_kv_cache_events":true,"publisher":"kafka","endpoint":"tcp://*:1"}}', "kafka"),
        (b'{"0":{"enable_kv_cache_events":true,"endpoint":"ipc:///etc/passwd"}}', "no tcp address"),
        (b'{"0":{"enable_kv_cache_events":true,"endpoint":"tcp://*:99999"}}', "no tcp address"),
        (b'{"0":{"enable_kv_cache_events":true,"endpoint":"tcp://indexer:5557"}}', "listens nowhere"),
    ],
)
def test_an_engine_that_cannot_be_found_says_why(answer: bytes | None, words: str) -> None:
    async def scenario() -> None:
        async with staged() as stage:
            if answer is not None:
                stage.answers["a", SOURCES] = answer
            asks(stage, "a")
            await until(lambda: words in stage.seen("a").trouble)
            assert not stage.seen("a").state.complete

    asyncio.run(scenario())


def test_no_engine_can_send_the_indexer_elsewhere() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            for name in ("10.1.2.3", "example.org"):
                engine = stage.engine("a")
                told = sources(engine, endpoint=f"tcp://{name}:80", replay_endpoint=f"tcp://{name}:81")
                stage.answers[name, SOURCES] = told
                asks(stage, name)
                await until(lambda name=name: stage.seen(name).trouble.startswith("it dials"))  # type: ignore[misc]
                assert stage.seen(name).events is None

    asyncio.run(scenario())


def test_instances_come_and_go_with_the_fleet() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            for name in ("a", "b"):
                stage.engine(name)
                stage.reads(name)
            await stage.connected("a", "b")
            for engine in stage.engines.values():
                engine.prompt(*A)
            await stage.complete("a", "b")
            del stage.instances["a"]
            stage.fleet()
            assert [one.instance for one in stage.indexer.seen()] == ["b"]
            assert stage.believed("b", A) == 2
            assert stage.sink.mirror("default/tiny").instances() == ("b",)
            assert stage.indexer.past.counts["default/tiny"]["batches"] == 1
            await until(lambda: stage.engines["a"].listeners == 0)
            stage.reads("a")
            await stage.complete("a")
            assert stage.believed("a", A) == 2

    asyncio.run(scenario())


def test_what_an_engine_held_is_gone_when_it_wakes_before_it_says_so_itself() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            for state, believed in ((InstanceState.SLEEPING, 2), (InstanceState.STARTING, 0), (InstanceState.READY, 0)):
                stage.instances["a"] = replace(stage.instances["a"], state=state)
                stage.fleet()
                assert stage.believed("a", A) == believed
            engine.engine.clear()
            engine.prompt(*B)
            await stage.complete("a")
            assert stage.believed("a", B) == 4

    asyncio.run(scenario())


def test_what_fairlead_cleared_itself_is_gone_at_once() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            assert stage.indexer.cleared_by_us("a")
            assert stage.believed("a", A) == 0
            engine.engine.clear()
            engine.prompt(*B)
            await stage.complete("a")
            assert stage.believed("a", B) == 4
            assert not stage.indexer.cleared_by_us("nobody")
            assert stage.indexer.restarted("a", "its supervisor says so")
            assert stage.believed("a", B) == 0
            await until(lambda: stage.loop.advance(LIMITS.kv_quiet_seconds) or stage.believed("a", B) == 4)

    asyncio.run(scenario())


def test_engines_that_dial_are_told_apart_by_their_topic_and_noticed_when_they_go() -> None:
    async def scenario() -> None:
        async with staged(listen=["tcp://127.0.0.1:0"]) as stage:
            here = stage.indexer.listening[0].endpoint
            for port, name in ((8001, "a"), (8002, "b")):
                stage.engine(name, Engine(capacity=400, seed=port), dial=here, topic=f"kv@127.0.0.1:{port}@tiny")
                told = sources(stage.engines[name], endpoint="tcp://indexer:5557")
                stage.answers[name, SOURCES] = told
                stage.reads(name, url=f"http://127.0.0.1:{port}")
            await until(lambda: all(stage.seen(name).trouble == "it was not connected to yet" for name in ("a", "b")))
            await until(lambda: all(engine.listeners for engine in stage.engines.values()))
            stage.engines["a"].prompt(*A)
            stage.engines["b"].prompt(*B)
            await stage.complete("a", "b")
            assert (stage.believed("a", A), stage.believed("a", B), stage.believed("b", B)) == (2, 0, 4)
            stage.engines["a"].raw([b"kv@10.0.0.9:1@tiny", bytes(8), b"x"])
            stage.engines["a"].raw([b"other", bytes(8), b"x"])
            stage.engines["a"].raw([b"other"])
            await until(lambda: dict(stage.indexer.strangers()) == {"unknown": 1, "topic": 1, "frame": 1})
            stage.engines["a"].close()
            await until(lambda: not stage.seen("a").connected)
            assert (stage.seen("b").connected, stage.seen("a").state.complete) == (True, False)
            stage.loop.advance(LIMITS.kv_away_seconds)
            assert (stage.believed("a", A), stage.believed("b", B)) == (0, 4)

    asyncio.run(scenario())


def test_an_address_that_cannot_be_listened_on_is_named() -> None:
    async def scenario() -> None:
        with pytest.raises(BadInput, match=r"tcp://127\.0\.0\.1:99999"):
            async with staged(listen=["tcp://127.0.0.1:99999"]):
                pass

    asyncio.run(scenario())


def test_a_flood_is_read_to_its_end_without_a_loss() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            for name in ("calm", "loud"):
                stage.engine(name, Engine(capacity=100_000))
                stage.reads(name)
            await stage.connected("calm", "loud")
            loud, calm = stage.engines["loud"], stage.engines["calm"]
            loud.send(*frames(loud.engine, *[range(1_000 * at, 1_000 * at + 401) for at in range(400)]))
            calm.prompt(*A)
            await stage.complete("loud", "calm")
            counts = stage.seen("loud").counts
            assert (counts.batches, counts.gaps, counts.lost) == (400, 0, 0)

    asyncio.run(scenario())


def test_hostile_frames_cost_their_engine_at_most_its_slice_and_nobody_else_anything() -> None:
    async def scenario() -> None:
        draw = random.Random(5)
        async with staged() as stage:
            for name in ("good", "bad"):
                stage.engine(name)
                stage.reads(name)
            await stage.connected("good", "bad")
            good, bad = stage.engines["good"], stage.engines["bad"]
            good.prompt(*A)
            bad.raw([b""])
            bad.raw([b"kv", b"1234567", b"x"])
            bad.raw([b"kv"] * 1_000)
            bad.raw([b"kv", b"\xff" * 8, b""])
            for number in range(300):
                bad.raw([b"kv", number.to_bytes(8, "big"), draw.randbytes(draw.randrange(200))])
                nested = msgspec.msgpack.encode([0.0, [{"type": "BlockRemoved", "block_hashes": [[]]}], 0])
                bad.raw([b"kv", draw.randrange(2**64).to_bytes(8, "big"), nested])
            await stage.complete("good")
            good.prompt(*B)
            await stage.complete("good")
            await until(lambda: stage.seen("bad").counts.unreadable["frame"] == 3)
            assert not stage.seen("bad").state.complete
            assert sum(stage.seen("bad").counts.unreadable.values()) > 3
            assert stage.seen("good").counts.unreadable == {}

    asyncio.run(scenario())


def test_a_message_that_is_too_large_ends_the_connection_and_others_go_on() -> None:
    async def scenario() -> None:
        async with staged(replace(LIMITS, kv_events_bytes=10_000)) as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            engine.send(Frame(b"kv", 1, bytes(20_000)))
            await until(lambda: stage.seen("a").counts.disconnects == 1)
            assert not stage.seen("a").state.complete

    asyncio.run(scenario())


def test_a_defect_of_ours_costs_the_slice_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            whole = stage.truth.apply
            broken = {1}

            def apply(*given: object) -> object:
                if broken:
                    broken.pop()
                    raise ZeroDivisionError
                return whole(*given)  # type: ignore[arg-type]

            monkeypatch.setattr(stage.truth, "apply", apply)
            engine.prompt(*B)
            await until(lambda: stage.seen("a").counts.defects == 1)
            assert stage.believed("a", A) == 0
            engine.prompt(*range(300, 309))
            await until(lambda: stage.believed("a", range(300, 309)) == 2)
            assert not stage.seen("a").state.complete

    asyncio.run(scenario())


def test_where_an_adapter_came_from_is_asked_and_its_blocks_return_with_it() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.engine.load("poet", "/models/p")
            stage.answers["a", MODELS] = json.dumps(
                {"data": [{"id": "tiny", "root": "tiny"}, {"id": "poet", "root": "/models/p", "parent": "tiny"}]}
            ).encode()
            engine.engine.prompt(A, "poet")
            engine.publish()
            await until(lambda: stage.seen("a").state.blocks == 2)
            assert ("a", MODELS) not in stage.asked
            stage.loop.advance(LIMITS.kv_names_pause_seconds)
            await until(lambda: ("a", MODELS) in stage.asked)
            await until(lambda: not stage.truth.unplaced("a"))
            count = len(stage.asked)
            stage.loop.advance(LIMITS.kv_names_seconds / 2)
            assert len(stage.asked) == count

    asyncio.run(scenario())


def test_replays_wait_for_one_another() -> None:
    async def scenario() -> None:
        async with staged(replace(LIMITS, kv_replays=2)) as stage:
            names = [f"e{number}" for number in range(6)]
            for name in names:
                engine = stage.engine(name)
                engine.prompt(*A)
                engine.hold = True
                stage.reads(name)
            held = lambda: [name for name in names if stage.engines[name].asked]  # noqa: E731
            await until(lambda: all(stage.seen(name).replaying for name in names) and len(held()) == 2)
            for _ in range(5):
                await until(lambda: any(stage.engines[name].asked and stage.engines[name].hold for name in names))
                for name in held():
                    stage.engines[name].answer_held()
                if all(not stage.engines[name].hold for name in names):
                    break
            await stage.complete(*names)

    asyncio.run(scenario())
