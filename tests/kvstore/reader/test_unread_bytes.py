"""Unread bytes of engines are bounded, whatever the engines send and however slow the reader is."""

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead_kvstore.index.sink import LocalSink
from fairlead_kvstore.reader.engine_info_client import EVENT_SOURCES_PATH
from fairlead_kvstore.reader.unread_bytes import PENDING_FACTOR, BufferedBytes, endpoint_port
from fairlead_testing.kvstore.indexer_harness import MODEL, IndexerHarness, frames, indexer_harness
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.kvstore.zmtp_peer import ZmtpPeer
from fairlead_testing.waiting import wait_until

LIMITS = replace(Limits(), kv_events_bytes=65_536, kv_pending_bytes=1024 * 1024)
BOUND = PENDING_FACTOR * LIMITS.kv_pending_bytes
PROMPTS = [range(1_000 * at, 1_000 * at + 801) for at in range(600)]


@pytest.fixture
def backlog(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Returns the backlogged models, which the test changes."""
    models: set[str] = set()
    monkeypatch.setattr(LocalSink, "is_backlogged", lambda sink, model_key: model_key in models)
    return models


def _send_without_end(peer: ZmtpPeer, size: int) -> None:
    for _ in range(size // 32_768):
        peer.send_part(bytes(32_768), more=True)


async def _connect_peers(stage: IndexerHarness, names: Sequence[str]) -> list[ZmtpPeer]:
    """Adds instances of namespace ``flood``, and returns the peers that act as their engines."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    added = tuple(
        Instance(name, "flood", "tiny", "main", "http://127.0.0.1:1", kv_events=_endpoint(server))
        for name, server in zip(names, servers, strict=True)
    )
    fleet = {MODEL: tuple(stage.instances.values()), "flood/tiny": added}
    models = {MODEL: Model("default", "tiny"), "flood/tiny": Model("flood", "tiny")}
    stage.indexer.update_fleet(Fleet(1, 1, models, fleet))
    peers = []
    for name, server in zip(names, servers, strict=True):
        with server:
            connection, _ = await asyncio.to_thread(server.accept)
        peers.append(await asyncio.to_thread(ZmtpPeer, connection, b"PUB"))
        await asyncio.to_thread(peers[-1].read_frame)
        await wait_until(lambda name=name: stage.status(name).connected)  # type: ignore[misc]  # a default
    return peers


def _endpoint(server: socket.socket) -> str:
    return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def _disconnects(stage: IndexerHarness, name: str) -> int:
    return stage.status(name).counters.disconnects


async def _check_until(stage: IndexerHarness, condition: Callable[[], bool]) -> None:
    def check() -> bool:
        stage.loop.advance(LIMITS.kv_unread_check_seconds)
        return condition()

    await wait_until(check)


def test_buffered_bytes_of_one_namespace_leave_room_for_those_of_others() -> None:
    buffered = BufferedBytes(1_000)
    buffered.add("victim", 200)
    buffered.add("flood", 800)
    assert not buffered.is_over("flood")
    buffered.add("flood", 100)
    assert (buffered.is_over("flood"), buffered.is_over("victim")) == (True, False), "by their shares"
    buffered.add("flood", -900)
    buffered.add("victim", 600)
    assert (buffered.total, buffered.is_over("victim")) == (800, False)
    buffered.add("victim", -800)
    assert buffered.total == 0


def test_engine_that_never_ends_a_message_is_disconnected() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            async with indexer_harness(LIMITS) as stage:
                stage.add_instance("a", kv_events=f"tcp://127.0.0.1:{server.getsockname()[1]}")
                connection, _ = await asyncio.to_thread(server.accept)
                peer = await asyncio.to_thread(ZmtpPeer, connection, b"PUB")
                assert await asyncio.to_thread(peer.read_frame) == b"\x01", "it subscribes to everything"
                await wait_until(lambda: stage.status("a").connected)
                await asyncio.to_thread(_send_without_end, peer, 2 * BOUND)
                await _check_until(stage, lambda: stage.status("a").counters.disconnects == 1)
                assert "bytes are unread" in stage.status("a").problem
                peer.close()

    asyncio.run(scenario())


def test_unread_bytes_of_all_engines_of_a_namespace_are_bounded_together() -> None:
    async def scenario() -> None:
        limits = replace(LIMITS, kv_all_unread_bytes=2 * 1024 * 1024)
        names = [f"flood-{number}" for number in range(24)]
        async with indexer_harness(limits) as stage:
            victim = await stage.connect_engine("victim")
            peers = await _connect_peers(stage, names)
            for peer in peers:
                await asyncio.to_thread(_send_without_end, peer, 196_608)  # 4.5 MiB together
            unread = stage.indexer._context.unread.buffered
            await _check_until(stage, lambda: sum(_disconnects(stage, name) for name in names) >= 14)
            assert unread.total <= 2 * 1024 * 1024
            assert unread.largest() == "flood"
            victim.serve_prompt(*range(1, 10))
            await _check_until(stage, lambda: stage.is_exact("victim"))
            assert _disconnects(stage, "victim") == 0
            for peer in peers:
                peer.close()
            stage.instances = {"victim": stage.instances["victim"]}
            stage.apply_fleet()
            assert unread.total < 4_096, "a greeting of the victim"

    asyncio.run(scenario())


def test_engine_ended_for_its_unread_bytes_returns_after_the_longest_pause() -> None:
    async def scenario() -> None:
        async with indexer_harness(LIMITS) as stage:
            await stage.connect_engine("a")
            subscription = stage.indexer._members["a"].subscription
            assert subscription is not None
            assert subscription._connection is not None
            subscription._connection._on_overflow("too many bytes")
            stage.loop.advance(LIMITS.max_kv_reconnect_seconds - 0.01)
            assert subscription._connection is None
            assert stage.status("a").problem == "too many bytes"
            stage.loop.advance(0.02)
            await wait_until(lambda: stage.status("a").connected)

    asyncio.run(scenario())


def test_whole_messages_that_are_still_queued_count_as_unread() -> None:
    async def scenario() -> None:
        async with indexer_harness(LIMITS) as stage:
            [peer] = await _connect_peers(stage, ["a"])
            unread = stage.indexer._context.unread.buffered
            subscription = stage.indexer._members["a"].subscription
            assert subscription is not None
            connection = subscription._connection
            assert connection is not None
            stage.indexer._context.scheduler.mark_ready = lambda source: None  # type: ignore[method-assign]
            for _ in range(4):
                for part in (b"kv", bytes(8), bytes(60_000)):
                    peer.send_part(part, more=len(part) < 60_000)
            await _check_until(stage, lambda: unread.total > 240_000)
            connection.read(1)
            await _check_until(stage, lambda: unread.total < 240_000)
            assert unread.total > 180_000, "three of four"
            peer.close()

    asyncio.run(scenario())


def test_peer_that_dials_and_never_ends_a_message_is_disconnected() -> None:
    async def scenario() -> None:
        async with indexer_harness(LIMITS, listen=["tcp://127.0.0.1:0"]) as stage:
            port = endpoint_port(stage.indexer.listeners[0].endpoint)
            connection = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port))
            peer = await asyncio.to_thread(ZmtpPeer, connection, b"PUB")
            await asyncio.to_thread(peer.read_frame)
            await asyncio.to_thread(_send_without_end, peer, 2 * BOUND)
            await _check_until(stage, lambda: dict(stage.indexer.unidentified_messages()) == {"overflow": 1})
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(lambda: [peer.read_frame() for _ in range(100)])
            peer.close()

    asyncio.run(scenario())


def test_more_peers_than_may_dial_are_disconnected() -> None:
    async def scenario() -> None:
        limits = replace(LIMITS, kv_inbound_connections=2)
        async with indexer_harness(limits, listen=["tcp://127.0.0.1:0"]) as stage:
            port = endpoint_port(stage.indexer.listeners[0].endpoint)
            connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
            await wait_until(lambda: dict(stage.indexer.unidentified_messages()) == {"many": 1})
            for connection in connections:
                connection.close()

    asyncio.run(scenario())


def test_peers_that_only_hold_connections_keep_no_engine_from_dialing() -> None:
    async def scenario() -> None:
        limits = replace(LIMITS, kv_inbound_connections=3)
        async with indexer_harness(limits, listen=["tcp://127.0.0.1:0"]) as stage:
            here = stage.indexer.listeners[0].endpoint
            held = [socket.create_connection(("127.0.0.1", endpoint_port(here))) for _ in range(3)]
            engine = stage.start_engine("a", dial=here, topic="kv@127.0.0.1:8001@tiny")
            source = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://indexer:5557"}
            stage.answers["a", EVENT_SOURCES_PATH] = json.dumps({"0": source}).encode()
            stage.add_instance("a", url="http://127.0.0.1:8001", kv_events=None, kv_replay=None)
            await wait_until(lambda: stage.status("a").problem == "not connected yet" and engine.listeners > 0)
            engine.serve_prompt(*range(1, 10))
            await wait_until(lambda: stage.status("a").connected, 20.0)
            held += [socket.create_connection(("127.0.0.1", endpoint_port(here))) for _ in range(3)]
            await wait_until(lambda: stage.indexer.unidentified_messages().get("many") == 4)
            assert stage.status("a").connected
            for connection in held:
                connection.close()

    asyncio.run(scenario())


def test_full_queue_of_whole_messages_pauses_an_engine_and_loses_nothing(backlog: set[str]) -> None:
    async def scenario() -> None:
        async with indexer_harness(LIMITS) as stage:
            engine = stage.start_engine("a", PrefixCacheEngine(capacity=200_000))
            stage.add_instance("a")
            await stage.wait_connected("a")
            engine.serve_prompt(*range(1, 10))
            await stage.wait_exact("a")
            backlog.add("default/tiny")
            sent = frames(engine.engine, *PROMPTS)
            assert sum(len(frame.payload) for frame in sent) > BOUND
            engine.send(*sent)
            for _ in range(20):
                await asyncio.sleep(0)
                stage.loop.advance(LIMITS.kv_unread_check_seconds)
            backlog.clear()
            await _check_until(stage, lambda: stage.is_exact("a"))
            counts = stage.status("a").counters
            assert (counts.disconnects, counts.lost, counts.restarts) == (0, 0, 0)

    asyncio.run(scenario())


def test_replay_that_is_not_read_is_cut_at_its_bound(backlog: set[str]) -> None:
    async def scenario() -> None:
        limits = replace(LIMITS, kv_replay_unread_bytes=200_000)
        async with indexer_harness(limits) as stage:
            engine = stage.start_engine("a", PrefixCacheEngine(capacity=200_000))
            for prompt in PROMPTS:
                engine.serve_prompt(*prompt)
            engine.holds_replays = True
            stage.add_instance("a")
            await wait_until(lambda: len(engine.replay_requests) == 1)
            backlog.add("default/tiny")
            engine.answer_held()
            await _check_until(stage, lambda: stage.status("a").counters.replays_failed >= 1)
            backlog.clear()
            engine.serve_prompt(*range(1, 10))
            await _check_until(stage, lambda: stage.credited_blocks("a", range(1, 10)) == 2)

    asyncio.run(scenario())
