"""Subscriptions to engines on real sockets: the index equals the engine's cache, or is
incomplete.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.events.types import EventFrame
from fairlead_kvstore.reader.engine_subscription import (
    KV_IDLE_CHECK_SECONDS,
    KV_REPLAY_SECONDS,
    KV_RESTART_SECONDS,
    KV_SETTLE_SECONDS,
)
from fairlead_testing.kvstore.block_store import instance_state
from fairlead_testing.kvstore.indexer_harness import exact_engine, frames, indexer_harness
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

LIMITS = Limits()
A, B, C = list(range(1, 10)), list(range(100, 117)), list(range(200, 209))


async def test_subscription_from_the_start_is_complete() -> None:
    async with exact_engine(A) as (stage, _):
        assert stage.credited_blocks("a", A) == 2
        assert (stage.status("a").counts["batches"], stage.status("a").problem) == (1, "")


async def test_late_subscription_replays_earlier_batches() -> None:
    async with indexer_harness() as stage:
        engine = stage.start_engine("a")
        for prompt in (A, B):
            engine.serve_prompt(*prompt)
        stage.add_instance("a")
        await stage.wait_exact("a")
        assert (stage.credited_blocks("a", A), stage.credited_blocks("a", B)) == (2, 4)
        assert stage.status("a").counts["replays"] == 1


async def test_missing_numbers_are_replayed_without_a_loss() -> None:
    async with exact_engine(A) as (stage, engine):
        engine.serve_prompt(*B, lose=True)
        engine.serve_prompt(*C)
        await stage.wait_exact("a")
        seen = stage.status("a")
        assert (stage.credited_blocks("a", B), seen.counts["gaps"], seen.counts["lost"], seen.state.epoch) == (
            4,
            1,
            0,
            1,
        )


@pytest.mark.parametrize("fault", ["mute", "half"])
async def test_missing_replay_drops_the_instance_which_is_learned_again(fault: str) -> None:
    async with exact_engine(A) as (stage, engine):
        engine.ignores_replays, engine.max_replayed = fault == "mute", 1 if fault == "half" else None
        engine.serve_prompt(*B, lose=True)
        engine.serve_prompt(*C)
        await wait_until(lambda: len(engine.replay_requests) == 2 and stage.status("a").replaying)
        stage.loop.advance(KV_REPLAY_SECONDS / 2)
        assert stage.status("a").replaying
        await wait_until(lambda: stage.loop.advance(KV_REPLAY_SECONDS) or not stage.status("a").replaying)
        seen = stage.status("a")
        assert (seen.counts["lost"], seen.counts["replays_failed"], seen.state.complete) == (1, 1, False)
        assert (stage.credited_blocks("a", A), stage.credited_blocks("a", C)) == (0, 2)
        engine.ignores_replays, engine.max_replayed = False, None
        engine.serve_prompt(*range(300, 309))
        await wait_until(lambda: stage.credited_blocks("a", range(300, 309)) == 2)
        assert stage.status("a").counts["lost"] == 1


async def test_rest_of_an_abandoned_replay_is_taken_for_none_of_the_next() -> None:
    async with exact_engine(A, B) as (stage, engine):
        engine.engine = PrefixCacheEngine(capacity=400, seed=3)  # behind the same sockets
        for prompt in (C, A, B):
            engine.serve_prompt(*prompt, lose=True)
        stage.loop.advance(KV_SETTLE_SECONDS + 2 * KV_IDLE_CHECK_SECONDS)
        await wait_until(lambda: stage.status("a").counts["restarts"] == 1)
        await stage.wait_exact("a")
        assert engine.replay_requests[-2:] == [1, 0]
        assert (stage.status("a").counts["lost"], stage.credited_blocks("a", C)) == (0, 2)


async def test_slow_replay_holds_live_frames() -> None:
    async with exact_engine(A) as (stage, engine):
        engine.holds_replays = True
        engine.serve_prompt(*B, lose=True)
        engine.serve_prompt(*C)
        await wait_until(lambda: len(engine.replay_requests) == 2)
        engine.serve_prompt(*range(300, 309))
        engine.serve_prompt(*range(400, 409))
        assert stage.status("a").state.blocks == 2
        engine.answer_held()
        await stage.wait_exact("a")
        assert stage.credited_blocks("a", range(400, 409)) == 2


async def test_frames_held_during_a_replay_are_applied_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async with indexer_harness(replace(LIMITS, kv_turn_bytes=1)) as stage:
        engine = stage.start_engine("a")
        stage.add_instance("a")
        await stage.wait_connected("a")
        engine.serve_prompt(*A)
        await stage.wait_exact("a")
        engine.ignores_replays = True
        engine.serve_prompt(*B, lose=True)
        for start in range(300, 2_300, 100):
            engine.serve_prompt(*range(start, start + 9))
        subscription = stage.indexer._members["a"].subscription
        assert subscription is not None
        await wait_until(lambda: len(subscription._sequencer._held_frames) == 20)
        turns: list[int] = []
        offer = stage.sink.offer

        def record(model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
            turns.append(batches)
            offer(model_key, changes, batches)

        monkeypatch.setattr(stage.sink, "offer", record)
        while not turns:
            await asyncio.sleep(0)
            stage.loop.advance(KV_REPLAY_SECONDS)
        assert stage.status("a").replaying, "frames are still held"
        await wait_until(lambda: stage.credited_blocks("a", range(2_200, 2_209)) == 2)
        assert max(turns) == 1
        assert not stage.status("a").replaying


@pytest.mark.parametrize("prompts", [0, 1, 2, 5])
async def test_engine_restarted_on_its_port_begins_a_new_epoch(prompts: int) -> None:
    async with exact_engine(A, B) as (stage, _):
        another = stage.start_engine("a", PrefixCacheEngine(capacity=400, seed=7))
        for number in range(prompts):  # before the subscription
            another.serve_prompt(*range(1_000 * number, 1_000 * number + 9))
        await wait_until(lambda: not stage.status("a").connected)
        assert not stage.status("a").state.complete
        await wait_until(lambda: stage.loop.advance(0.5) or stage.status("a").connected)
        await wait_until(lambda: stage.status("a").state.epoch == 2 and not stage.status("a").replaying)
        assert (stage.credited_blocks("a", A), stage.credited_blocks("a", B)) == (0, 0)
        await wait_until(lambda: another.listeners > 0)
        another.serve_prompt(*C)
        await stage.wait_exact("a")
        assert stage.credited_blocks("a", C) == 2


async def test_engine_that_stays_away_loses_its_blocks() -> None:
    async with exact_engine(A) as (stage, engine):
        engine.close()
        await wait_until(lambda: not stage.status("a").connected)
        stage.loop.advance(KV_RESTART_SECONDS / 2)
        assert stage.credited_blocks("a", A) == 2
        stage.loop.advance(KV_RESTART_SECONDS)
        assert stage.credited_blocks("a", A) == 0
        assert "no KV events for" in stage.status("a").state.reason
        assert "connected" in stage.status("a").problem


async def test_loss_of_the_last_batch_is_detected_in_silence() -> None:
    async with exact_engine(A) as (stage, engine):
        engine.serve_prompt(*B, lose=True)
        asked = len(engine.replay_requests)
        # In small steps: the replay must not time out before the engine has its request.
        await wait_until(lambda: stage.loop.advance(0.5) or len(engine.replay_requests) > asked)
        await stage.wait_exact("a")
        assert (stage.credited_blocks("a", B), stage.status("a").counts["lost"]) == (4, 0)


async def test_batches_before_the_subscription_are_replayed_soon() -> None:
    async with indexer_harness() as stage:
        engine = await stage.connect_engine("a")
        await wait_until(lambda: engine.replay_requests == [0] and not stage.status("a").replaying)
        engine.serve_prompt(*A, lose=True)
        stage.loop.advance(KV_SETTLE_SECONDS)
        await stage.wait_exact("a")
        assert stage.credited_blocks("a", A) == 2


async def test_frames_held_by_many_engines_are_bounded_together() -> None:
    async with indexer_harness(replace(LIMITS, kv_all_unread_bytes=8_000)) as stage:
        names = [f"e{number}" for number in range(6)]
        for name in names:
            engine = await stage.connect_engine(name)
            engine.serve_prompt(*A)
            await stage.wait_exact(name)
            engine.ignores_replays = True
            engine.serve_prompt(*B, lose=True)
        for start in range(300, 2_300, 100):
            for engine in stage.engines.values():
                engine.serve_prompt(*range(start, start + 9))
        subscriptions = [member.subscription for member in stage.indexer._members.values()]
        await wait_until(lambda: stage.status("e0").counts["disconnects"] > 0)
        held = sum(subscription._sequencer.held_bytes for subscription in subscriptions if subscription is not None)
        assert 0 < held <= stage.indexer._context.buffered.total <= 8_000
        stage.instances.clear()
        stage.apply_fleet()
        assert stage.indexer._context.buffered.total == 0


@pytest.mark.parametrize("time", [math.nan, -math.inf, math.inf, 1e300])
async def test_time_of_an_engine_that_is_none_is_no_lag(time: float) -> None:
    async with indexer_harness() as stage:
        engine = await stage.connect_engine("a")
        engine.serve_prompt(*A)
        await wait_until(lambda: stage.status("a").lag_seconds is not None)
        engine.send(EventFrame(1, msgspec.msgpack.encode([time, []])))
        await wait_until(lambda: stage.status("a").counts["batches"] == 2)
        assert stage.status("a").lag_seconds is None


async def test_messages_read_together_give_the_same_result_as_one_by_one() -> None:
    """Consecutive frames are applied together up to a gap; counters and positions include each
    batch.
    """
    async with indexer_harness() as stage:
        engine = await stage.connect_engine("a")
        engine.serve_prompt(*A)
        await wait_until(lambda: stage.credited_blocks("a", A) == 2)
        await stage.wait_exact("a")  # what is asked for at the beginning has come: from now on a loss is a gap
        engine.serve_prompt(*B)
        engine.serve_prompt(*C, lose=True)
        for number in range(40):
            engine.serve_prompt(*range(1_000 + 20 * number, 1_009 + 20 * number))
        await stage.wait_exact("a")
        await wait_until(lambda: stage.credited_blocks("a", [*range(1_780, 1_789)]) == 2)
        seen = stage.status("a")
        assert [stage.credited_blocks("a", prompt) for prompt in (A, B, C)] == [2, 4, 2]
        assert (seen.counts["batches"], seen.counts["gaps"], seen.counts["lost"]) == (43, 1, 0)


async def test_large_batch_leaves_turns_to_the_events_of_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with indexer_harness(replace(LIMITS, kv_slice_bytes=128, kv_turn_bytes=128)) as stage:
        large = stage.start_engine("a", PrefixCacheEngine(capacity=4_000))
        stage.add_instance("a")
        small = await stage.connect_engine("b")
        order: list[str] = []
        whole = stage.sink.offer

        def offer(model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
            name = next(change.instance for change in changes if hasattr(change, "instance"))
            if name == "a" and not order:
                assert stage.indexer.checkpoint("a").position is None
                assert stage.indexer.checkpoint("a").is_partial
                small.serve_prompt(*B)
            order.append(name)
            whole(model_key, changes, batches)

        await stage.wait_connected("a")
        stage.loop.advance(KV_SETTLE_SECONDS)
        monkeypatch.setattr(stage.sink, "offer", offer)
        large.serve_prompt(*range(1, 12_001))
        await stage.wait_exact("a", "b")
        assert stage.credited_blocks("a", range(1, 12_001)) == 3_000
        assert order.index("b") < len(order) - 1
        checkpoint = stage.indexer.checkpoint("a")
        assert (checkpoint.is_partial, checkpoint.position is not None) == (False, True)


async def test_batches_that_wait_are_bounded_and_more_count_as_a_gap() -> None:
    first, second = frames(PrefixCacheEngine(capacity=10_000), range(1, 9_000), range(20_000, 29_000))
    waiting = len(first.payload)
    limits = replace(LIMITS, kv_slice_bytes=128, kv_turn_bytes=128, kv_pending_bytes=waiting + 100)
    async with exact_engine(A, limits=limits) as (stage, _):
        (subscription,) = [member.subscription for member in stage.indexer._members.values()]
        assert subscription is not None
        await wait_until(lambda: not subscription._sequencer.is_replaying)
        sent = [[b"", (number + 1).to_bytes(8, "big"), frame.payload] for number, frame in enumerate((first, second))]
        subscription.on_messages(sent)
        assert subscription.is_busy
        assert subscription.counts["unreadable:overflow"] == 1
        await wait_until(lambda: not subscription.is_busy)
        assert instance_state(stage.store, "a").blocks > 2_000
