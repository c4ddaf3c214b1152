"""The reader before engines on real sockets: the index holds what the engine holds, or says that it does not."""

import asyncio
from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead.testing.waiting import until
from fairlead_kvstore.testing import Engine
from fairlead_kvstore.testing_reader import frames, staged

LIMITS = Limits()
A, B, C = list(range(1, 10)), list(range(100, 117)), list(range(200, 209))


def test_who_is_there_from_the_start_knows_everything() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            assert stage.believed("a", A) == 2
            assert (stage.seen("a").counts.batches, stage.seen("a").trouble) == (1, "")

    asyncio.run(scenario())


def test_who_joins_late_learns_what_was_before() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            for prompt in (A, B):
                engine.prompt(*prompt)
            stage.reads("a")
            await stage.complete("a")
            assert (stage.believed("a", A), stage.believed("a", B)) == (2, 4)
            assert stage.seen("a").counts.replays == 1

    asyncio.run(scenario())


def test_numbers_that_are_missing_are_asked_for_and_nothing_is_lost() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            engine.prompt(*B, lose=True)
            engine.prompt(*C)
            await stage.complete("a")
            seen = stage.seen("a")
            assert (stage.believed("a", B), seen.counts.gaps, seen.counts.lost, seen.state.epoch) == (4, 1, 0, 1)

    asyncio.run(scenario())


def test_frames_out_of_order_and_twice_change_nothing() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            second, third, fourth = frames(engine.engine, B, C, [*A, 11, 12, 13, 14])
            engine.send(third, second, second, fourth, fourth, third)
            await stage.complete("a")
            await until(lambda: stage.seen("a").counts.duplicates >= 3)
            assert (stage.seen("a").counts.restarts, stage.seen("a").counts.lost) == (0, 0)
            assert stage.right("a")

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["mute", "half"])
def test_a_replay_that_does_not_come_costs_the_slice_which_is_learned_anew(fault: str) -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            engine.mute, engine.most = fault == "mute", 1 if fault == "half" else None
            engine.prompt(*B, lose=True)
            engine.prompt(*C)
            await until(lambda: len(engine.asked) == 2 and stage.seen("a").replaying)
            stage.loop.advance(LIMITS.kv_replay_seconds / 2)
            assert stage.seen("a").replaying
            await until(lambda: stage.loop.advance(LIMITS.kv_replay_seconds) or not stage.seen("a").replaying)
            seen = stage.seen("a")
            assert (seen.counts.lost, seen.counts.replays_failed, seen.state.complete) == (1, 1, False)
            assert (stage.believed("a", A), stage.believed("a", C)) == (0, 2)
            engine.mute, engine.most = False, None
            engine.prompt(*range(300, 309))
            await until(lambda: stage.believed("a", range(300, 309)) == 2)
            assert stage.seen("a").counts.lost == 1

    asyncio.run(scenario())


def test_a_slow_replay_is_waited_for_and_what_comes_meanwhile_is_held_back() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            engine.hold = True
            engine.prompt(*B, lose=True)
            engine.prompt(*C)
            await until(lambda: len(engine.asked) == 2)
            engine.prompt(*range(300, 309))
            engine.prompt(*range(400, 409))
            assert stage.seen("a").state.blocks == 2
            engine.answer_held()
            await stage.complete("a")
            assert stage.believed("a", range(400, 409)) == 2

    asyncio.run(scenario())


def test_where_nothing_can_be_replayed_a_gap_costs_the_slice() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a", replays=False)
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            engine.prompt(*B, lose=True)
            engine.prompt(*C)
            await until(lambda: stage.believed("a", C) == 2)
            assert (stage.believed("a", A), stage.seen("a").state.complete) == (0, False)

    asyncio.run(scenario())


@pytest.mark.parametrize("prompts", [0, 1, 2, 5])
def test_an_engine_that_is_restarted_on_its_port_begins_anew(prompts: int) -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            for prompt in (A, B):
                engine.prompt(*prompt)
            await stage.complete("a")
            another = stage.engine("a", Engine(capacity=400, seed=7))
            for number in range(prompts):  # before anybody listens
                another.prompt(*range(1_000 * number, 1_000 * number + 9))
            await until(lambda: not stage.seen("a").connected)
            assert not stage.seen("a").state.complete
            await until(lambda: stage.loop.advance(0.5) or stage.seen("a").connected)
            await until(lambda: stage.seen("a").state.epoch == 2 and not stage.seen("a").replaying)
            assert (stage.believed("a", A), stage.believed("a", B)) == (0, 0)
            await until(lambda: another.listeners > 0)
            another.prompt(*C)
            await stage.complete("a")
            assert stage.believed("a", C) == 2

    asyncio.run(scenario())


def test_a_connection_that_blinks_costs_nothing() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            same = engine.engine
            stage.engine("a", same)
            same.prompt(B)
            same.publish()  # while nobody hears it
            await until(lambda: not stage.seen("a").connected)
            assert (stage.believed("a", A), stage.seen("a").state.complete) == (2, False)
            await until(lambda: stage.loop.advance(0.5) or stage.right("a"))
            seen = stage.seen("a")
            assert (stage.believed("a", A), stage.believed("a", B)) == (2, 4)
            assert (seen.state.epoch, seen.counts.lost, seen.counts.restarts, seen.counts.disconnects) == (1, 0, 0, 1)

    asyncio.run(scenario())


def test_an_engine_that_stays_away_holds_nothing_any_more() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            engine.close()
            await until(lambda: not stage.seen("a").connected)
            stage.loop.advance(LIMITS.kv_away_seconds / 2)
            assert stage.believed("a", A) == 2
            stage.loop.advance(LIMITS.kv_away_seconds)
            assert stage.believed("a", A) == 0
            assert "stayed away" in stage.seen("a").state.reason
            assert "connected" in stage.seen("a").trouble

    asyncio.run(scenario())


def test_what_was_lost_last_is_noticed_although_nothing_follows() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            engine.prompt(*B, lose=True)
            asked = len(engine.asked)
            await until(lambda: stage.loop.advance(LIMITS.kv_quiet_seconds) or len(engine.asked) > asked)
            await stage.complete("a")
            assert (stage.believed("a", B), stage.seen("a").counts.lost) == (4, 0)

    asyncio.run(scenario())


def test_what_comes_before_the_engine_knows_of_its_listener_is_asked_for_soon() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            await until(lambda: engine.asked == [0] and not stage.seen("a").replaying)
            engine.prompt(*A, lose=True)
            stage.loop.advance(LIMITS.kv_settle_seconds)
            await stage.complete("a")
            assert stage.believed("a", A) == 2

    asyncio.run(scenario())


def test_orphans_whose_beginning_is_gone_wait_and_the_slice_says_that_it_is_incomplete() -> None:
    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a", Engine(capacity=400, buffer=1))
            engine.prompt(*A)
            engine.prompt(*B)
            engine.prompt(*A, 11, 12, 13, 14, 15, 16, 17)
            stage.reads("a")
            await until(lambda: stage.seen("a").state.orphans == 2)
            assert (stage.believed("a", A), stage.seen("a").state.complete) == (0, False)

    asyncio.run(scenario())


def test_too_much_while_a_replay_is_waited_for_gives_it_up() -> None:
    async def scenario() -> None:
        async with staged(replace(LIMITS, kv_replay_held=3)) as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await stage.complete("a")
            engine.hold = True
            engine.prompt(*B, lose=True)
            for start in range(300, 800, 100):
                engine.prompt(*range(start, start + 9))
            await until(lambda: stage.believed("a", range(700, 709)) == 2)
            assert (stage.believed("a", A), stage.seen("a").counts.lost) == (0, 1)
            engine.answer_held()
            engine.prompt(*C, lose=True)
            engine.prompt(*range(900, 909))
            await until(lambda: stage.believed("a", range(900, 909)) == 2 and not stage.seen("a").replaying)
            assert stage.believed("a", C) == 2
            assert stage.seen("a").counts.lost == 1

    asyncio.run(scenario())


def test_messages_that_were_read_together_are_worth_what_they_are_one_by_one() -> None:
    """What simply follows is followed at once, up to where something does not; counters and positions know each batch."""

    async def scenario() -> None:
        async with staged() as stage:
            engine = stage.engine("a")
            stage.reads("a")
            await stage.connected("a")
            engine.prompt(*A)
            await until(lambda: stage.believed("a", A) == 2)
            await stage.complete("a")  # what is asked for at the beginning has come: from now on a loss is a gap
            engine.prompt(*B)
            engine.prompt(*C, lose=True)
            for number in range(40):
                engine.prompt(*range(1_000 + 20 * number, 1_009 + 20 * number))
            await stage.complete("a")
            await until(lambda: stage.believed("a", [*range(1_780, 1_789)]) == 2)
            seen = stage.seen("a")
            assert [stage.believed("a", prompt) for prompt in (A, B, C)] == [2, 4, 2]
            assert (seen.counts.batches, seen.counts.gaps, seen.counts.lost) == (43, 1, 0)

    asyncio.run(scenario())
