"""Connections to engines: what is unread is bounded, whatever engines send and however slow the
reader is.
"""

import asyncio
import contextlib
import socket
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead_kvstore.blockstore.types import EngineSleep
from fairlead_kvstore.errors import ProtocolError
from fairlead_kvstore.reader.engine_subscription import MAX_KV_RECONNECT_SECONDS, EngineSubscription
from fairlead_kvstore.reader.reader_context import BufferedBytes
from fairlead_kvstore.reader.zmtp_connection import open_connection, socket_address
from fairlead_testing.kvstore.indexer_harness import MODEL, IndexerHarness, frames, indexer_harness
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.kvstore.zmq_engine import GREETING, ZmtpPeer
from fairlead_testing.pytest_hooks.nightly import shortened
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

LIMITS = replace(Limits(), kv_events_bytes=65_536, kv_pending_bytes=1024 * 1024)
PROMPTS = [range(1_000 * at, 1_000 * at + 801) for at in range(600)]


def _stop_reading(stage: IndexerHarness, name: str) -> EngineSubscription:
    """Lets an engine's subscription be busy with a batch, until ``_continue_reading``."""
    subscription = stage.indexer._members[name].subscription
    assert subscription is not None
    subscription._application.add([EngineSleep(is_asleep=False)])
    return subscription


def _continue_reading(stage: IndexerHarness, subscription: EngineSubscription) -> None:
    stage.indexer._context.scheduler.mark_ready(subscription)


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
    return stage.status(name).counts["disconnects"]


def test_buffered_bytes_of_one_namespace_leave_room_for_those_of_others() -> None:
    buffered = BufferedBytes(1_000)
    buffered.report("a", "victim", 200)
    buffered.report("b", "flood", 500)
    buffered.report("c", "flood", 300)
    assert not buffered.is_over("flood")
    buffered.report("c", "flood", 400)
    assert (buffered.is_over("flood"), buffered.is_over("victim")) == (True, False), "by their shares"
    buffered.report("b", "flood", 0)
    buffered.report("c", "flood", 0)
    buffered.report("a", "victim", 800)
    assert (buffered.total, buffered.is_over("victim")) == (800, False)
    buffered.report("a", "victim", 0)
    assert (buffered.total, buffered._owners, dict(buffered._namespaces)) == (0, {}, {})


async def test_peer_that_never_ends_the_handshake_is_read_for_some_kilobytes_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        opening = asyncio.ensure_future(open_connection(server.getsockname(), "SUB", LIMITS))
        theirs, _ = await asyncio.to_thread(server.accept)
    with theirs:
        theirs.sendall(GREETING + b"\x04\x00" * 32_768)  # commands without a name
        with pytest.raises(ProtocolError, match="1024 bytes within the handshake"):
            await opening
        theirs.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            while theirs.recv(1_024):
                pass  # until it is closed


async def test_parts_of_an_unfinished_message_count_in_the_turn_of_an_engine() -> None:
    async with indexer_harness(LIMITS) as stage:
        [peer] = await _connect_peers(stage, ["a"])
        subscription = stage.indexer._members["a"].subscription
        assert subscription is not None
        connection = subscription._connection
        assert connection is not None
        connection._stream.feed(b"\x01\x00" * 16_384)
        used, has_more = connection.read(LIMITS.kv_turn_bytes)
        assert (used, has_more) == (LIMITS.kv_turn_bytes, True), "a quarter of them"
        peer.close()


async def test_engine_that_never_ends_a_message_is_disconnected() -> None:
    async with indexer_harness(LIMITS) as stage:
        [peer] = await _connect_peers(stage, ["a"])
        for _ in range(3):
            peer.send_part(bytes(32_768), more=True)
        await wait_until(lambda: _disconnects(stage, "a") == 1)
        assert "a message of more than" in stage.status("a").problem
        peer.close()


async def test_empty_parts_without_end_take_no_memory() -> None:
    async with indexer_harness(replace(Limits(), kv_events_bytes=4 * 1024 * 1024)) as stage:
        [peer] = await _connect_peers(stage, ["a"])
        sent = b"\x01\x00" * 16_384
        tracemalloc.start()
        try:
            for _ in range(shortened(64, 6)):
                await asyncio.to_thread(peer.send_bytes, sent)
            peer.send_part(b"", more=False)
            await wait_until(lambda: stage.status("a").counts["unreadable:frame"] == 1)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert _disconnects(stage, "a") == 0
        assert peak < shortened(1024, 128) * 1024, "of more that was sent"
        peer.close()


async def test_unread_bytes_of_all_engines_of_a_namespace_are_bounded_together() -> None:
    limits = replace(LIMITS, kv_all_unread_bytes=256 * 1024)
    names = [f"flood-{number}" for number in range(24)]
    async with indexer_harness(limits) as stage:
        victim = await stage.connect_engine("victim")
        peers = await _connect_peers(stage, names)
        for name in names:
            _stop_reading(stage, name)
        for peer in peers:
            for _ in range(4):
                peer.send_part(bytes(16_384), more=True)
        buffered = stage.indexer._context.buffered
        await wait_until(lambda: _disconnects(stage, names[0]) >= 12)
        assert buffered.total <= 256 * 1024
        victim.serve_prompt(*range(1, 10))
        await wait_until(lambda: stage.is_exact("victim"))
        assert _disconnects(stage, "victim") == 0
        for peer in peers:
            peer.close()
        stage.instances = {"victim": stage.instances["victim"]}
        stage.apply_fleet()
        assert buffered.total == 0


async def test_engine_ended_for_its_unread_bytes_returns_after_the_longest_pause() -> None:
    async with indexer_harness(LIMITS) as stage:
        await stage.connect_engine("a")
        subscription = stage.indexer._members["a"].subscription
        assert subscription is not None
        assert subscription._connection is not None
        subscription._connection._end("too many bytes", is_overflow=True)
        stage.loop.advance(MAX_KV_RECONNECT_SECONDS - 0.01)
        assert subscription._connection is None
        assert stage.status("a").problem == "too many bytes"
        stage.loop.advance(0.02)
        await wait_until(lambda: stage.status("a").connected)


async def test_engine_that_is_not_read_is_held_back() -> None:
    async with indexer_harness(replace(LIMITS, kv_receive_buffer_bytes=4_096)) as stage:
        [peer] = await _connect_peers(stage, ["a"])
        subscription = _stop_reading(stage, "a")
        peer.send_part(bytes(40_000), more=False)
        buffered = stage.indexer._context.buffered
        await wait_until(lambda: buffered.total > 32_768)
        before = buffered.total
        assert peer.send_what_fits(16_000_000) < 16_000_000
        assert buffered.total == before, "nothing more is read"
        _continue_reading(stage, subscription)
        await wait_until(lambda: buffered.total < 32_768)
        peer.close()


@pytest.mark.parametrize(
    ("greeting", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\n", "does not speak ZMTP 3"),
        (b"\xff" + bytes(8) + b"\x7f\x01\x00", "does not speak ZMTP 3"),
        (b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"PLAIN".ljust(20, b"\0") + bytes(32), "asks for credentials"),
        (GREETING + b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER", "a socket of type b'ROUTER'"),
        (GREETING + b"\x04\x09\x05READY\x09xx", "cannot be read"),
        (GREETING + b"\x04\x06\x05ERROR\x00"[:8], "refused the handshake"),
        (GREETING + b"\x00\x01x", "before the handshake"),
        (GREETING + b"\x40\x01x", "unknown flags"),
        (GREETING + b"\x06" + (1 << 40).to_bytes(8, "big"), "a command of more than"),
    ],
)
async def test_peers_that_do_not_follow_the_protocol_are_named(greeting: bytes, problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with indexer_harness(LIMITS) as stage:
            stage.add_instance("a", kv_events=_endpoint(server))
            connection, _ = await asyncio.to_thread(server.accept)
            await asyncio.to_thread(connection.sendall, greeting)
            await wait_until(lambda: problem in stage.status("a").problem)
            connection.close()


async def test_peer_that_pings_and_does_not_read_is_disconnected() -> None:
    async with indexer_harness(LIMITS) as stage:
        [peer] = await _connect_peers(stage, ["a"])
        pings = b"\x04\x17\x04PING\x00\x00" + bytes(16)
        await asyncio.to_thread(peer.send_until_closed, pings * 1_000)
        await wait_until(lambda: _disconnects(stage, "a") == 1)
        assert stage.status("a").problem != "disconnected", "this side ended it"
        peer.close()


async def test_ping_is_answered_with_its_context() -> None:
    async with indexer_harness(LIMITS) as stage:
        [peer] = await _connect_peers(stage, ["a"])
        peer.send_bytes(b"\x04\x0b\x04PING\x00\x00here")
        assert await asyncio.to_thread(peer.read_frame) == b"\x04PONGhere"
        peer.close()


async def test_engine_that_waits_while_a_batch_is_applied_loses_nothing() -> None:
    limits = replace(LIMITS, kv_receive_buffer_bytes=65_536)
    async with indexer_harness(limits) as stage:
        engine = stage.start_engine("a", PrefixCacheEngine(capacity=200_000))
        stage.add_instance("a")
        await stage.wait_connected("a")
        engine.serve_prompt(*range(1, 10))
        await stage.wait_exact("a")
        subscription = _stop_reading(stage, "a")
        sent = frames(engine.engine, *PROMPTS[:150])
        assert sum(len(frame.payload) for frame in sent) > 4 * limits.kv_receive_buffer_bytes
        engine.send(*sent)
        await wait_until(lambda: stage.indexer._context.buffered.total >= 32_768)
        _continue_reading(stage, subscription)
        await stage.wait_exact("a")
        counts = stage.status("a").counts
        assert (counts["disconnects"], counts["lost"], counts["restarts"]) == (0, 0, 0)


async def test_replay_that_is_not_read_is_cut_at_its_bound() -> None:
    limits = replace(LIMITS, kv_replay_unread_bytes=200_000)
    async with indexer_harness(limits) as stage:
        engine = stage.start_engine("a", PrefixCacheEngine(capacity=200_000))
        for prompt in PROMPTS:
            engine.serve_prompt(*prompt)
        engine.holds_replays = True
        stage.add_instance("a")
        await wait_until(lambda: len(engine.replay_requests) == 1)
        subscription = _stop_reading(stage, "a")
        engine.answer_held()
        await wait_until(lambda: stage.status("a").counts["replays_failed"] >= 1)
        _continue_reading(stage, subscription)
        engine.serve_prompt(*range(1, 10))
        await wait_until(lambda: stage.credited_blocks("a", range(1, 10)) == 2)


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """Returns a folder whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="kv-", dir="/tmp") as folder:
        yield Path(folder)


async def test_events_and_replays_are_read_from_unix_sockets(socket_folder: Path) -> None:
    async with indexer_harness(LIMITS) as stage:
        engine = stage.start_engine("a", folder=socket_folder)
        engine.serve_prompt(*range(1, 10), lose=True)
        stage.add_instance("a")
        assert stage.status("a").events == f"ipc://{socket_folder}/events"
        await stage.wait_exact("a")
        engine.serve_prompt(*range(20, 29))
        await stage.wait_exact("a")
        assert stage.credited_blocks("a", range(1, 10)) == stage.credited_blocks("a", range(20, 29)) == 2


async def test_unix_socket_of_an_engine_that_ended_is_tried_until_another_binds_it(socket_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(socket_folder / "events"))
    async with indexer_harness(LIMITS) as stage:
        stage.add_instance("a", kv_events=f"ipc://{socket_folder}/events", kv_replay=f"ipc://{socket_folder}/replay")
        await wait_until(lambda: "Connection refused" in stage.status("a").problem)
        engine = stage.start_engine("a", folder=socket_folder)
        stage.loop.advance(MAX_KV_RECONNECT_SECONDS)
        await stage.wait_connected("a")
        engine.serve_prompt(*range(1, 10))
        await stage.wait_exact("a")


@pytest.mark.parametrize(
    ("endpoint", "hint"),
    [
        ("ipc://relative/events", "an absolute path"),
        (f"ipc:///run/{'x' * 103}", "at most 107 bytes"),
        ("ipc:///run/a\nb", "an absolute path"),
        ("inproc://events", "tcp://HOST:PORT or ipc:///PATH"),
    ],
)
async def test_endpoint_that_cannot_be_reached_is_named(endpoint: str, hint: str) -> None:
    with pytest.raises(BadInput) as error:
        socket_address(endpoint)
    assert hint in str(error.value.hint)
    async with indexer_harness(LIMITS) as stage:
        stage.add_instance("a", kv_events=endpoint)
        assert stage.status("a").problem == f"{endpoint} is no endpoint of KV events"


async def test_each_replay_has_a_connection_of_its_own() -> None:
    async with indexer_harness(LIMITS) as stage:
        engine = await stage.connect_engine("a")
        engine.serve_prompt(*range(1, 10))
        await stage.wait_exact("a")
        subscription = stage.indexer._members["a"].subscription
        assert subscription is not None
        assert subscription._replay_connection is None, "the first one has ended"
        engine.serve_prompt(*range(20, 29), lose=True)
        engine.serve_prompt(*range(40, 49))
        await stage.wait_exact("a")
        assert (len(engine.replay_requests), stage.status("a").counts["replays_failed"]) == (2, 0)
