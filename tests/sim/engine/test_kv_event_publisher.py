"""KV events on real ZMQ sockets, read by a subscriber that shares no code with the publisher."""

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
import zmq

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead.runtime.clock import ManualClock
from fairlead_sim.engine import kv_event_publisher
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, KvEvent
from fairlead_sim.engine.kv_event_publisher import END_OF_REPLAY, Encoding, KvEventPublisher, KvEventsSettings
from fairlead_sim.engine.scheduler import EngineCore
from fairlead_sim.engine.sequence import EngineSequence

RECORDED = Path(__file__).parents[2] / "recordings" / "vllm" / "kv-events"
LOCAL = "tcp://127.0.0.1:0"
PATIENCE_MS = 120_000
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]

A = BlocksStored((11, 2**64 - 1), None, tuple(range(32)), 16)
B = BlocksStored((13,), 12, tuple(range(16)), 16, adapter="poet", salt="s", session="S1")
C = BlocksStored((14, 15), None, tuple(range(32)), 16, adapter="poet", salt="s")


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    own: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield own
    own.destroy(linger=0)


def published(
    context: "zmq.Context[zmq.Socket[bytes]]",
    events: list[list[KvEvent]],
    topic: str = "",
    encoding: Encoding = "map",
    **options: Any,
) -> list[tuple[bytes, int, Any]]:
    """Returns what a subscriber receives: (topic, sequence number, decoded payload)."""
    settings = KvEventsSettings(LOCAL, None, topic, encoding)
    publisher = KvEventPublisher(settings, clock=ManualClock(), context=context, **options)
    subscriber = context.socket(zmq.XSUB)
    subscriber.connect(publisher.endpoint)
    # A subscription reaches a PUB socket some time later; publish until a batch arrives.
    subscriber.send(b"\x01")
    warm = 0
    while not subscriber.poll(10):
        publisher.publish([CacheCleared()])
        warm += 1
    for step in events:
        publisher.publish(step)
    last = warm + sum(1 for step in events if step) - 1
    heard: list[tuple[bytes, int, Any]] = []
    while not heard or heard[-1][1] < last:
        assert subscriber.poll(PATIENCE_MS), "nothing more was published"
        batch_topic, number, payload = subscriber.recv_multipart()
        assert len(number) == 8
        heard.append((batch_topic, int.from_bytes(number, "big"), msgspec.msgpack.decode(payload)))
    publisher.close()
    subscriber.close(linger=0)
    return [item for item in heard if item[1] >= warm]


def replayed(
    endpoint: str, start: bytes, *, frames: list[bytes] | None = None, wait_ms: int = PATIENCE_MS
) -> list[list[bytes]]:
    """Returns what a DEALER receives up to the end mark, or until ``wait_ms`` pass without a
    message.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(endpoint)
    dealer.send_multipart(frames if frames is not None else [b"", start])
    messages: list[list[bytes]] = []
    while dealer.poll(wait_ms):
        messages.append(dealer.recv_multipart())
        if messages[-1][2] == END_OF_REPLAY:
            break
    context.destroy(linger=0)
    return messages


def run(main: Callable[[], Any], loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> Any:
    """Runs a coroutine function on a loop of this kind."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main())


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def test_a_step_is_one_message_of_three_frames(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    clock = ManualClock()
    heard = published(context, [[A, BlockEvicted(7)], [], [CacheCleared()]], topic="kv@1.2.3.4:8000@tiny")
    assert [topic for topic, _, _ in heard] == [b"kv@1.2.3.4:8000@tiny"] * 2
    assert heard[1][1] == heard[0][1] + 1
    stamp, events, rank = heard[0][2]
    assert (stamp, rank, len(events)) == (clock.wall(), 0, 2)


def test_events_are_maps_with_defaults_left_out(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    ((_, _, (_, events, _)),) = published(context, [[A, B, BlockEvicted(7), CacheCleared()]])
    assert events[0] == {
        "type": "BlockStored",
        "block_hashes": [11, 2**64 - 1],
        "parent_block_hash": None,
        "token_ids": list(range(32)),
        "block_size": 16,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None, None],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    assert (events[1]["session_id"], events[1]["lora_name"], events[1]["extra_keys"]) == ("S1", "poet", [["poet"]])
    assert events[2] == {"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU", "group_idx": 0}
    assert events[3] == {"type": "AllBlocksCleared"}


def test_older_engines_send_arrays(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    ((_, _, (_, events, _)),) = published(context, [[A, C, BlockEvicted(7), CacheCleared()]], encoding="array")
    assert events[0] == ["BlockStored", [11, 2**64 - 1], None, list(range(32)), 16, None, "GPU", None, None]
    assert events[1][7:] == ["poet", [["poet", "s"], ["poet"]]]
    assert events[2:] == [["BlockRemoved", [7], "GPU"], ["AllBlocksCleared"]]


def test_the_salt_is_published_only_with_a_prompts_first_block() -> None:
    assert kv_event_publisher.extra_keys(C) == [["poet", "s"], ["poet"]]
    assert kv_event_publisher.extra_keys(BlocksStored((1, 2), None, None, 16, salt="s")) == [["s"], None]
    assert kv_event_publisher.extra_keys(BlocksStored((1, 2), 9, None, 16, salt="s")) == [None, None]


def test_an_adapter_has_the_number_it_was_loaded_under(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    ((_, _, (_, events, _)),) = published(context, [[B]], adapter_id={"poet": 2}.get)
    assert events[0]["lora_id"] == 2


def test_the_rank_is_in_the_batch_and_moves_the_port(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    free = KvEventPublisher(KvEventsSettings(LOCAL, None), clock=ManualClock())
    base = int(free.endpoint.rpartition(":")[2])
    free.close()
    publisher = KvEventPublisher(
        KvEventsSettings(f"tcp://127.0.0.1:{base - 1}", LOCAL), clock=ManualClock(), context=context, rank=1
    )
    assert publisher.endpoint == f"tcp://127.0.0.1:{base}"
    assert list(publisher.sources()) == ["1"]
    publisher.close()
    ((_, _, (_, _, rank)),) = published(context, [[A]], rank=1)
    assert rank == 1


def test_port_0_takes_a_free_port_that_sources_report(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    publisher = KvEventPublisher(
        KvEventsSettings("tcp://*:0", "tcp://*:0", "t"), clock=ManualClock(), context=context, buffer_steps=5
    )
    source = publisher.sources()["0"]
    for field in ("endpoint", "replay_endpoint"):
        host, _, port = source[field].rpartition(":")
        assert host == "tcp://127.0.0.1"
        assert int(port) > 0
    assert (source["topic"], source["buffer_steps"], source["publisher"]) == ("t", 5, "zmq")
    assert (source["enable_kv_cache_events"], source["hwm"], source["max_queue_size"]) == (True, 100_000, 100_000)
    publisher.close()


def test_an_address_in_use_or_malformed_is_rejected(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    publisher = KvEventPublisher(KvEventsSettings(LOCAL, None), clock=ManualClock(), context=context)
    with pytest.raises(BadInput, match="cannot bind"):
        KvEventPublisher(KvEventsSettings(publisher.endpoint, LOCAL), clock=ManualClock(), context=context)
    with pytest.raises(BadInput, match="is not a TCP address for ZMQ"):
        KvEventPublisher(KvEventsSettings("nonsense", None), clock=ManualClock(), context=context)
    with pytest.raises(BadInput, match="is not a TCP address for ZMQ"):
        KvEventPublisher(KvEventsSettings("ipc:///tmp/events", None), clock=ManualClock(), context=context, rank=1)
    publisher.close()


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_a_late_subscriber_receives_what_it_missed(
    context: "zmq.Context[zmq.Socket[bytes]]", loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> list[list[bytes]]:
        publisher = KvEventPublisher(KvEventsSettings(LOCAL, LOCAL, "t"), clock=ManualClock(), context=context)
        publisher.start()
        for key in range(1_000):
            publisher.publish([BlockEvicted(key)])
        endpoint = publisher.replay_endpoint
        assert endpoint is not None
        everything, rest, beyond = await asyncio.gather(
            *(asyncio.to_thread(replayed, endpoint, number(start)) for start in (0, 998, 1_000_000))
        )
        publisher.close()
        assert rest == everything[-3:]
        assert beyond == everything[-1:]
        return list(everything)

    messages = run(main, loop)
    assert [len(frames) for frames in messages] == [4] * 1_001
    assert [(frames[0], frames[1], int.from_bytes(frames[2], "big")) for frames in messages[:2]] == [
        (b"", b"t", 0),
        (b"", b"t", 1),
    ]
    assert msgspec.msgpack.decode(messages[5][3])[1][0]["block_hashes"] == [5]
    assert messages[-1] == [b"", b"", END_OF_REPLAY, b""]


async def test_only_the_last_batches_can_be_replayed(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    publisher = KvEventPublisher(KvEventsSettings(LOCAL, LOCAL), clock=ManualClock(), context=context, buffer_steps=3)
    publisher.start()
    for key in range(10):
        publisher.publish([BlockEvicted(key)])
    messages = await asyncio.to_thread(replayed, str(publisher.replay_endpoint), number(0))
    publisher.close()
    assert [frames[2] for frames in messages] == [number(7), number(8), number(9), END_OF_REPLAY]


async def test_a_short_number_is_accepted_and_a_malformed_request_gets_no_reply(
    context: "zmq.Context[zmq.Socket[bytes]]",
) -> None:
    publisher = KvEventPublisher(KvEventsSettings(LOCAL, LOCAL), clock=ManualClock(), context=context)
    publisher.start()
    for key in range(7):
        publisher.publish([BlockEvicted(key)])
    endpoint = str(publisher.replay_endpoint)
    # The malformed request goes first on one socket; an answer to it would come first, too.
    malformed = await asyncio.to_thread(_two_requests, endpoint, [number(0)], [b"", b"\x05"])
    short = await asyncio.to_thread(replayed, endpoint, b"\x05")
    publisher.close()
    assert malformed == short
    assert [frames[2] for frames in short] == [number(5), number(6), END_OF_REPLAY]


def _two_requests(endpoint: str, first: list[bytes], second: list[bytes]) -> list[list[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(endpoint)
    dealer.send_multipart(first)
    dealer.send_multipart(second)
    messages: list[list[bytes]] = []
    while not messages or messages[-1][2] != END_OF_REPLAY:
        assert dealer.poll(PATIENCE_MS)
        messages.append(dealer.recv_multipart())
    context.destroy(linger=0)
    return messages


async def test_a_plain_request_socket_gets_one_reply(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    publisher = KvEventPublisher(KvEventsSettings(LOCAL, LOCAL, "t"), clock=ManualClock(), context=context)
    publisher.start()
    publisher.publish([BlockEvicted(1)])
    reply = await asyncio.to_thread(_requested, str(publisher.replay_endpoint))
    publisher.close()
    topic, sequence, payload = reply
    assert (topic, sequence) == (b"t", number(0))
    assert msgspec.msgpack.decode(payload)[1][0]["block_hashes"] == [1]


def _requested(endpoint: str) -> list[bytes]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    request = context.socket(zmq.REQ)
    request.connect(endpoint)
    request.send(number(0))
    assert request.poll(PATIENCE_MS)
    reply = request.recv_multipart()
    context.destroy(linger=0)
    return reply


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_many_subscribers_receive_replays_at_once_and_again(
    context: "zmq.Context[zmq.Socket[bytes]]", loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> list[int]:
        publisher = KvEventPublisher(KvEventsSettings(LOCAL, LOCAL), clock=ManualClock(), context=context)
        publisher.start()
        for key in range(600):
            publisher.publish([BlockEvicted(key)])
        counts = []
        for _ in range(3):
            replies = await asyncio.gather(
                *(asyncio.to_thread(replayed, str(publisher.replay_endpoint), number(0)) for _ in range(4))
            )
            counts += [len(frames) for frames in replies]
        publisher.close()
        return counts

    assert run(main, loop) == [601] * 12


async def test_a_replay_does_not_hold_up_the_event_loop(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    publisher = KvEventPublisher(KvEventsSettings(LOCAL, LOCAL), clock=ManualClock(), context=context)
    publisher.start()
    for key in range(10_000):
        publisher.publish([BlockEvicted(key)])
    asked = asyncio.create_task(asyncio.to_thread(replayed, str(publisher.replay_endpoint), number(0)))
    turns = 0
    while not asked.done():
        turns += 1
        await asyncio.sleep(0)
    publisher.close()
    assert len(asked.result()) == 10_001
    assert turns > 10_000 / 256


async def test_a_restarted_engine_counts_from_0_and_has_no_past() -> None:
    publisher = KvEventPublisher(KvEventsSettings(LOCAL, LOCAL), clock=ManualClock())
    for key in range(5):
        publisher.publish([BlockEvicted(key)])
    endpoint, replay = publisher.endpoint, str(publisher.replay_endpoint)
    publisher.close()
    again = KvEventPublisher(KvEventsSettings(endpoint, replay), clock=ManualClock())
    again.start()
    again.publish([BlockEvicted(99)])
    replies = await asyncio.gather(
        asyncio.to_thread(replayed, replay, number(0)), asyncio.to_thread(replayed, replay, number(5))
    )
    again.close()
    fresh, old = replies[0], replies[1]
    assert [frames[2] for frames in fresh] == [number(0), END_OF_REPLAY]
    assert [frames[2] for frames in old] == [END_OF_REPLAY]


def test_a_clear_of_an_idle_engine_is_published_with_the_next_step(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    core = EngineCore(builtin_profile("tiny-cpu"), block_tokens=16)
    core.add(EngineSequence("a", 0.0, 20, 1, tokens=list(range(20)), keys=(1,)))
    steps = [step.events if (step := core.step(0.0)) else []]
    assert core.reset_prefix_cache()
    assert core.step(1.0) is None
    core.add(EngineSequence("b", 1.0, 20, 1, tokens=list(range(20)), keys=(1,)))
    steps.append(step.events if (step := core.step(1.0)) else [])
    heard = published(context, steps)
    assert [[event["type"] for event in payload[1]] for _, _, payload in heard] == [
        ["BlockStored"],
        ["AllBlocksCleared", "BlockStored"],
    ]


def test_both_encodings_carry_the_same_facts(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    rng = random.Random(7)
    steps: list[list[KvEvent]] = [
        [
            BlocksStored(
                (rng.getrandbits(64),), rng.choice([None, rng.getrandbits(64)]), (1,) * 16, 16, rng.choice([None, "x"])
            )
            if rng.random() < 0.7
            else BlockEvicted(rng.getrandbits(64))
            for _ in range(rng.randrange(1, 6))
        ]
        for _ in range(50)
    ]
    maps = published(context, steps)
    arrays = published(context, steps, encoding="array")
    for (_, _, as_map), (_, _, as_array) in zip(maps, arrays, strict=True):
        for event, fields in zip(as_map[1], as_array[1], strict=True):
            names = ["type", "block_hashes"]
            if event["type"] == "BlockStored":
                names += ["parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"]
            assert [event[name] for name in names] == fields[: len(names)]


def shapes(events: list[dict[str, Any]]) -> set[tuple[tuple[str, str], ...]]:
    """Returns the keys of events with the types of their values; int hashes only."""
    field_types = set()
    for event in events:
        aliases = {"bytes": "int"}
        field_types.add(
            tuple((key, aliases.get(type(value).__name__, type(value).__name__)) for key, value in event.items())
        )
    return field_types


def test_recorded_streams_have_the_shapes_that_are_published_here(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    paths = [RECORDED / f"{name}.msgpack" for name in ("a-scenarios", "b-eviction-restart")]
    recorded = [event for path in paths for batch in msgspec.msgpack.decode(path.read_bytes()) for event in batch[1]]
    plain: list[KvEvent] = [
        BlocksStored((1,), None, (1,), 1),
        BlocksStored((1,), 2, (1,), 1),
        BlocksStored((1,), None, (1,), 1, adapter="x"),
        BlocksStored((1,), None, (1,), 1, adapter="x", session="s"),
        BlocksStored((1,), None, (1,), 1, session="s"),
        BlockEvicted(1),
        CacheCleared(),
    ]
    ((_, _, (_, events, _)),) = published(context, [plain], adapter_id=lambda _: 1)
    assert shapes(recorded) == shapes(events)
