"""Engines that move, stall or close again and again cost the indexer little, and others nothing."""

import asyncio
import json
import socket
from dataclasses import replace
from itertools import pairwise

import pytest

from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead_kvstore.events.zmtp import ZmtpStream
from fairlead_kvstore.reader import zmtp_connection
from fairlead_kvstore.reader.engine_info_client import EVENT_SOURCES_PATH
from fairlead_testing.kvstore.indexer_harness import MODEL, IndexerHarness, frames, indexer_harness
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.kvstore.zmq_engine import ZmtpPeer
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


async def test_engine_that_names_other_endpoints_each_time_is_queried_after_pauses() -> None:
    async with indexer_harness(replace(Limits(), kv_query_pause_seconds=3_600.0)) as stage:
        queries: list[str] = []

        async def query(instance: Instance, path: str) -> bytes:
            queries.append(path)
            endpoint = f"tcp://*:{1 + len(queries) % 2}"  # where nothing listens
            return json.dumps(
                {"0": {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint}}
            ).encode()

        stage.indexer._query = query
        stage.add_instance("a", kv_events=None, kv_replay=None)
        await wait_until(lambda: "('127.0.0.1', 1)" in stage.status("a").problem)
        member = stage.indexer._members["a"]
        await wait_until(member.wake.is_set)
        for _ in range(100):
            await asyncio.sleep(0)
        assert queries == [EVENT_SOURCES_PATH] * 2


async def test_silent_engines_of_one_namespace_delay_no_query_to_an_engine_of_another() -> None:
    async with indexer_harness() as stage:
        engine = stage.start_engine("a")
        queries: list[str] = []

        async def query(instance: Instance, path: str) -> bytes:
            queries.append(instance.namespace)
            if instance.namespace == "flood":
                await silent.wait()
            port = engine.events.rpartition(":")[2]
            endpoint = f"tcp://*:{port}"
            return json.dumps(
                {"0": {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint}}
            ).encode()

        silent = asyncio.Event()
        stage.indexer._query = query
        flood = tuple(Instance(f"f{at}", "flood", "tiny", "main", "http://127.0.0.1:1") for at in range(100))
        victim = Instance("a", "default", "tiny", "main", "http://127.0.0.1:1")
        models = {MODEL: Model("default", "tiny"), "flood/tiny": Model("flood", "tiny")}
        stage.indexer.update_fleet(Fleet(1, 1, models, {"flood/tiny": flood}))
        await wait_until(lambda: len(queries) == 16)
        stage.indexer.update_fleet(Fleet(2, 2, models, {"flood/tiny": flood, MODEL: (victim,)}))
        await asyncio.sleep(0)
        stage.indexer.update_fleet(Fleet(3, 3, models, {"flood/tiny": flood[2:], MODEL: (victim,)}))
        await wait_until(lambda: stage.status("a").connected)
        assert queries[:18] == ["flood"] * 17 + ["default"], "its namespace had the next turn"


def test_engine_that_closes_each_connection_is_connected_to_after_growing_pauses() -> None:
    async def accept_and_close(stage: IndexerHarness, server: socket.socket, number: int) -> None:
        connection, _ = await asyncio.to_thread(server.accept)
        peer = await asyncio.to_thread(ZmtpPeer, connection, b"PUB")
        peer.close()
        await wait_until(lambda: stage.status("a").counts["disconnects"] == number)

    async def scenario() -> None:
        limits = Limits()
        async with indexer_harness(limits) as stage:
            with socket.create_server(("127.0.0.1", 0)) as server:
                events = f"tcp://127.0.0.1:{server.getsockname()[1]}"
                stage.add_instance("a", kv_events=events)
                await accept_and_close(stage, server, 1)
                pause = limits.kv_reconnect_seconds
                for number in (2, 3, 4):
                    stage.loop.advance(pause)
                    await accept_and_close(stage, server, number)
                    pause *= 2
                connection = stage.indexer._members["a"].subscription
                assert connection is not None
                stage.loop.advance(pause * 0.9)
                assert connection._connection is None, "it waits"

    asyncio.run(scenario())


async def test_engine_that_is_replaced_while_a_batch_is_applied_is_read_on() -> None:
    limits = replace(Limits(), kv_slice_bytes=1, kv_loop_bytes=1, kv_turn_bytes=1024 * 1024)
    async with indexer_harness(limits) as stage:
        engine = stage.start_engine("a", PrefixCacheEngine(capacity=200_000))
        stage.add_instance("a")
        await stage.wait_connected("a")
        engine.serve_prompt(*range(1, 10))
        await stage.wait_exact("a")
        subscription = stage.indexer._members["a"].subscription
        assert subscription is not None
        connection = subscription._connection
        assert connection is not None
        scheduler = stage.indexer._context.scheduler
        engine.send(*frames(engine.engine, *(range(1_000 * at, 1_000 * at + 801) for at in range(100))))
        for _ in range(100_000):
            await asyncio.sleep(0)
            if connection._is_paused and subscription.is_busy and len(scheduler._budgets) == 1:
                break
        assert subscription.is_busy
        subscription._on_replaced("its supervisor says so")
        await stage.wait_exact("a")


async def test_engine_that_closes_each_replay_is_connected_to_after_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[float] = []

    async def refuse(address: object, kind: str, limits: Limits) -> tuple[socket.socket, ZmtpStream]:
        opened.append(asyncio.get_running_loop().time())
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours, ZmtpStream(kind, max_bytes=1_000, max_parts=8)

    limits = replace(Limits(), kv_reconnect_seconds=0.2)
    async with indexer_harness(limits) as stage:
        await stage.connect_engine("a")
        subscription = stage.indexer._members["a"].subscription
        assert subscription is not None
        await wait_until(lambda: not subscription.is_replaying)
        monkeypatch.setattr(zmtp_connection, "open_connection", refuse)
        for number in range(3):
            subscription._send_request()
            await wait_until(lambda number=number: len(opened) > number)  # type: ignore[misc]  # a default
            await wait_until(lambda: subscription._replay_connection is None)
        pauses = [later - earlier for earlier, later in pairwise(opened)]
        assert min(pauses) > 0.1  # uvloop counts from the time at which it woke
