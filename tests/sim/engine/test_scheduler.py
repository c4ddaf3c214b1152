"""The engine core, one rule at a time; block 32 and the events are those recorded from a real
engine.
"""

from dataclasses import replace

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, KvEvent, block_keys
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence, EngineStep, QueueFull, SequenceState

BLOCK = 32
PROFILE = EngineProfile("test", 1e-3, 1e-6, 5e-3, 2e-3, 1e-4, 1e-5, 3e-6, 128 * BLOCK, 32, 2_048)


def engine(*, kv_tokens: int = 128 * BLOCK, max_sequences: int = 32, step_tokens: int = 2_048) -> EngineCore:
    profile = replace(PROFILE, kv_tokens=kv_tokens, max_sequences=max_sequences, step_tokens=step_tokens)
    return EngineCore(profile, block_tokens=BLOCK)


def prompt(
    name: str, tokens: int, output: int = 4, *, start: int = 0, arrival: float = 0.0, **more: object
) -> EngineSequence:
    ids = list(range(start, start + tokens))
    salt, adapter = more.get("salt"), more.get("adapter")
    assert salt is None or isinstance(salt, str)
    assert adapter is None or isinstance(adapter, str)
    sequence = EngineSequence(name, arrival, tokens, output, block_keys(ids, BLOCK, salt=salt, adapter=adapter), ids)
    for key, value in more.items():
        setattr(sequence, key, value)
    return sequence


def deliver(step: EngineStep) -> EngineStep:
    for sequence in step.tokens:
        if sequence.tokens is not None:
            sequence.tokens.append(100_000 + sequence.generated)
    return step


def drain(core: EngineCore) -> list[EngineStep]:
    steps: list[EngineStep] = []
    while step := core.step(float(len(steps))):
        steps.append(deliver(step))
        assert len(steps) < 10_000
    return steps


def serve(core: EngineCore, sequence: EngineSequence) -> list[KvEvent]:
    core.add(sequence)
    return [event for step in drain(core) for event in step.events]


def keys_stored(events: list[KvEvent]) -> list[int]:
    return [len(event.keys) for event in events if isinstance(event, BlocksStored)]


def test_a_cold_prompt_stores_its_full_blocks_once_from_the_root() -> None:
    (event,) = serve(engine(), prompt("a", 100))
    assert isinstance(event, BlocksStored)
    assert (len(event.keys), event.parent, event.tokens) == (3, None, tuple(range(96)))


def test_a_repeated_prompt_hits_every_full_block_without_events() -> None:
    core = engine()
    serve(core, prompt("a", 100))
    again = prompt("b", 100)
    assert serve(core, again) == []
    assert again.cached_tokens == 96


def test_an_extension_stores_only_the_new_blocks_behind_their_parent() -> None:
    core = engine()
    serve(core, prompt("a", 100))
    longer = prompt("b", 196)
    (event,) = serve(core, longer)
    assert isinstance(event, BlocksStored)
    assert longer.cached_tokens == 96
    assert (len(event.keys), event.parent) == (3, longer.keys[2])


def test_a_fully_cached_prompt_recomputes_and_stores_its_last_block() -> None:
    core = engine()
    serve(core, prompt("a", 96))
    again = prompt("b", 96)
    (event,) = serve(core, again)
    assert isinstance(event, BlocksStored)
    assert again.cached_tokens == 64
    assert (event.keys, event.parent) == (again.keys[2:], again.keys[1])


def test_decoding_stores_each_full_block_with_the_generated_ids() -> None:
    sequence = prompt("a", 60, output=40)
    events = serve(engine(), sequence)
    assert keys_stored(events) == [1, 1, 1]
    last = events[-1]
    assert isinstance(last, BlocksStored)
    assert last.tokens == (*range(100_004 + 1, 100_036 + 1),)
    assert sequence.tokens is not None
    assert block_keys(sequence.tokens[:96], BLOCK) == tuple(sequence.chain)


def test_the_next_turn_hits_what_was_generated() -> None:
    core = engine()
    first = prompt("a", 60, output=40)
    serve(core, first)
    assert first.tokens is not None
    ids = [*first.tokens, *range(200, 230)]
    second = EngineSequence("b", 1.0, len(ids), 4, block_keys(ids, BLOCK), ids)
    serve(core, second)
    assert second.cached_tokens == 96


def test_a_long_prompt_is_computed_in_chunks_and_each_chunk_is_announced() -> None:
    core = engine()
    core.add(prompt("a", 3_000))
    steps = drain(core)
    assert [step.prefilled for step in steps[:2]] == [2_048, 952]
    assert [keys_stored(step.events) for step in steps[:2]] == [[64], [29]]
    assert [len(step.first_tokens) for step in steps[:2]] == [0, 1]


def test_salt_and_adapter_share_nothing_and_are_named_in_events() -> None:
    core = engine()
    serve(core, prompt("a", 100))
    salted = prompt("b", 100, salt="tenant-7", adapter="L1", session="S1")
    (event,) = serve(core, salted)
    assert isinstance(event, BlocksStored)
    assert salted.cached_tokens == 0
    assert (event.adapter, event.salt, event.session) == ("L1", "tenant-7", "S1")


def test_the_salt_is_published_only_with_the_first_block() -> None:
    core = engine()
    core.add(prompt("a", 3_000, salt="s"))
    stores = [event for step in drain(core) for event in step.events if isinstance(event, BlocksStored)]
    assert [event.salt for event in stores] == ["s", None]


def test_equal_prompts_at_once_are_computed_once() -> None:
    core = engine()
    four = [prompt(str(number), 130) for number in range(4)]
    for sequence in four:
        core.add(sequence)
    events = [event for step in drain(core) for event in step.events]
    assert [sequence.cached_tokens for sequence in four] == [0, 128, 128, 128]
    assert keys_stored(events) == [4]


def test_a_prompt_without_lookup_hits_nothing_and_stores_again() -> None:
    core = engine()
    serve(core, prompt("a", 100))
    blind = prompt("b", 100, uses_cache=False)
    assert keys_stored(serve(core, blind)) == [3]
    assert blind.cached_tokens == 0
    assert core.stats.prefix_queries_total == 100


def test_hits_are_published_again_on_request() -> None:
    core = engine()
    serve(core, prompt("a", 100))
    (event,) = serve(core, prompt("b", 100, publishes_hits=True))
    assert isinstance(event, BlocksStored)
    assert (len(event.keys), event.parent) == (3, None)


def test_an_overflow_removes_the_tail_of_the_oldest_prompt() -> None:
    core = engine(kv_tokens=40 * BLOCK)
    for number in range(3):
        serve(core, prompt(str(number), 13 * BLOCK + 1, 1, start=10_000 * number))
    events = serve(core, prompt("new", 6 * BLOCK + 1, 1, start=90_000))
    assert sum(isinstance(event, BlockEvicted) for event in events) == 6
    again = prompt("again", 13 * BLOCK + 1, 1)
    serve(core, again)
    assert again.cached_tokens == 7 * BLOCK


def test_decoding_goes_first_and_prompts_share_what_is_left_of_the_budget() -> None:
    core = engine(step_tokens=100)
    core.add(prompt("a", 50, 50))
    deliver(core.step(0.0) or EngineStep())
    core.add(prompt("b", 150, start=1_000))
    core.add(prompt("c", 60, start=2_000))
    steps = [core.step(1.0), core.step(2.0), core.step(3.0)]
    found = [(step.prefilled, [item.id for item in step.tokens]) for step in steps if step]
    assert found == [(99, ["a"]), (99, ["a", "b"]), (12, ["a", "b", "c"])]


def test_a_step_takes_what_the_profile_says() -> None:
    core = engine()
    serve(core, prompt("a", 100))
    core.add(prompt("b", 120, 3))
    core.add(prompt("c", 200, 3, start=500))
    first, second, third = core.step(0.0), core.step(1.0), core.step(2.0)
    assert first
    assert second
    assert third
    attention = 24 * (96 + 12) + 200 * (0 + 100)
    assert first.cached == 96
    assert first.seconds == pytest.approx(2e-3 + 224e-3 + 2e-4 + 1e-6 * attention + 3e-6 * 96)
    assert second.seconds == pytest.approx(2e-3 + 5e-3 + 2e-4 + 1e-5 * (121 + 201))
    assert third.seconds == pytest.approx(2e-3 + 5e-3 + 2e-4 + 1e-5 * (122 + 202))
    assert [len(step.finished) for step in (first, second, third)] == [0, 0, 2]


def test_every_token_is_given_in_its_own_step_and_the_last_with_the_end() -> None:
    core = engine()
    core.add(prompt("a", 10, 3))
    steps = drain(core)
    assert [(len(step.tokens), len(step.first_tokens), [reason for _, reason in step.finished]) for step in steps] == [
        (1, 1, []),
        (1, 0, []),
        (1, 0, ["length"]),
    ]


def test_the_first_token_is_timed_at_the_end_of_its_step() -> None:
    core = engine()
    sequence = prompt("a", 10)
    core.add(sequence)
    step = core.step(7.0)
    assert step
    assert (sequence.admitted_at, sequence.first_token_at) == (7.0, 7.0 + step.seconds)


def test_a_prompt_without_output_ends_when_it_is_computed() -> None:
    core = engine()
    core.add(prompt("a", 10, 0))
    (step,) = drain(core)
    assert ([reason for _, reason in step.finished], step.tokens, step.first_tokens) == (["stop"], [], [])


def test_no_more_sequences_run_than_the_profile_allows() -> None:
    core = engine(max_sequences=2)
    for number in range(3):
        core.add(prompt(str(number), 10, 4 + number, start=100 * number))
    core.step(0.0)
    assert (core.stats.running, core.stats.waiting) == (2, 1)
    drain(core)
    assert core.is_idle


def test_the_queues_head_waits_for_memory_and_is_not_overtaken() -> None:
    core = engine(kv_tokens=10 * BLOCK)
    core.add(prompt("a", 6 * BLOCK, 4))
    core.add(prompt("big", 8 * BLOCK, 4, start=1_000))
    core.add(prompt("small", 10, 4, start=2_000))
    core.step(0.0)
    assert (core.stats.running, core.stats.waiting) == (1, 2)


def test_output_is_reserved_at_admission_so_nothing_is_preempted() -> None:
    core = engine(kv_tokens=10 * BLOCK)
    for number in range(4):
        core.add(prompt(str(number), BLOCK, 4 * BLOCK, start=1_000 * number))
    core.step(0.0)
    assert core.stats.running == 2
    drain(core)
    assert core.stats.preemptions_total == 0


def test_unreserved_output_admits_more_and_preempts_the_latest() -> None:
    core = engine(kv_tokens=40 * BLOCK)
    six = [prompt(str(number), 100, 500, start=1_000 * number, reserve_tokens=0) for number in range(6)]
    for sequence in six:
        core.add(sequence)
    steps = drain(core)
    assert all(sequence.state is SequenceState.FINISHED and sequence.generated == 500 for sequence in six)
    assert core.stats.preemptions_total == sum(len(step.preempted) for step in steps) > 0
    assert six[0].preemptions == 0
    assert six[5].preemptions > 0
    assert sum(len(step.first_tokens) for step in steps) == 6


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    core = engine(kv_tokens=16 * BLOCK)
    core.add(prompt("a", 8 * BLOCK, 1 + 4 * BLOCK, reserve_tokens=0))
    core.add(prompt("b", 6 * BLOCK + 1, 1 + BLOCK, start=5_000, reserve_tokens=0))
    steps = drain(core)
    assert [sequence.id for step in steps for sequence in step.preempted] == ["b"]
    hits = [step.cached for step in steps if step.cached]
    assert len(hits) == 1
    assert hits[0] >= BLOCK


def test_priority_admits_the_smaller_number_and_preempts_the_larger() -> None:
    core = EngineCore(replace(PROFILE, kv_tokens=16 * BLOCK), block_tokens=BLOCK, scheduling="priority")
    core.add(prompt("low", 4 * BLOCK, 6 * BLOCK, priority=5, reserve_tokens=0))
    core.add(prompt("high", 4 * BLOCK, 6 * BLOCK, start=5_000, arrival=1.0, priority=-1, reserve_tokens=0))
    steps = drain(core)
    assert [sequence.id for sequence in steps[0].tokens] == ["high", "low"]
    assert {sequence.id for step in steps for sequence in step.preempted} == {"low"}


def test_first_come_first_served_does_not_read_priorities() -> None:
    core = engine()
    core.add(prompt("low", 10, priority=5))
    core.add(prompt("high", 10, start=100, priority=-1))
    step = core.step(0.0)
    assert step
    assert [sequence.id for sequence in step.tokens] == ["low", "high"]


def test_an_aborted_sequence_is_not_in_the_next_step_and_its_blocks_stay_findable() -> None:
    core = engine()
    gone = prompt("gone", 100, 50)
    core.add(gone)
    core.step(0.0)
    assert core.abort("gone")
    assert (core.stats.running, core.stats.kv_usage, gone.state) == (0, 0.0, SequenceState.ABORTED)
    assert core.step(1.0) is None
    again = prompt("again", 100)
    serve(core, again)
    assert again.cached_tokens == 96


def test_a_waiting_sequence_can_be_aborted_and_an_unknown_one_cannot() -> None:
    core = engine(max_sequences=1)
    core.add(prompt("a", 10))
    core.add(prompt("b", 10, start=100))
    core.step(0.0)
    assert core.abort("b")
    assert not core.abort("b")
    assert core.stats.waiting == 0


def test_a_stop_string_ends_a_sequence_early() -> None:
    core = engine()
    sequence = prompt("a", 10, 100)
    core.add(sequence)
    core.step(0.0)
    assert core.finish("a", "stop")
    assert (sequence.finish_reason, core.is_idle) == ("stop", True)


def test_a_full_queue_counts_all_unfinished_sequences() -> None:
    core = EngineCore(PROFILE, block_tokens=BLOCK, max_queue=2)
    core.add(prompt("a", 10))
    core.add(prompt("b", 10, start=100))
    core.step(0.0)
    with pytest.raises(QueueFull):
        core.add(prompt("c", 10))


@pytest.mark.parametrize(
    ("tokens", "output", "field"), [(128 * BLOCK, 2, "max_tokens"), (0, 1, "prompt_tokens"), (1, -1, "prompt_tokens")]
)
def test_what_can_never_run_is_refused_by_name(tokens: int, output: int, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        engine().add(prompt("a", tokens, output))
    assert caught.value.field == field


def test_what_just_fits_runs() -> None:
    core = engine()
    core.add(prompt("a", 128 * BLOCK, 1))
    assert drain(core)[-1].finished


def test_two_sequences_may_not_have_one_id() -> None:
    core = engine()
    core.add(prompt("a", 10))
    with pytest.raises(BadInput):
        core.add(prompt("a", 10))


def test_a_paused_engine_takes_no_step_and_goes_on_where_it_was() -> None:
    core = engine()
    sequence = prompt("a", 10, 5)
    core.add(sequence)
    core.step(0.0)
    core.pause()
    assert core.step(1.0) is None
    core.resume()
    drain(core)
    assert sequence.generated == 5


def test_the_cache_resets_under_a_running_sequence_only_by_preempting_it() -> None:
    core = engine()
    sequence = prompt("a", 100, 10)
    core.add(sequence)
    core.step(0.0)
    assert not core.reset_prefix_cache()
    assert core.reset_prefix_cache(preempt_running=True)
    step = core.step(1.0)
    assert step
    assert isinstance(step.events[0], CacheCleared)
    assert isinstance(step.events[1], BlocksStored)
    assert sequence.generated == 2
    assert sequence.preemptions == 1


def test_an_idle_reset_is_published_with_the_next_step() -> None:
    core = engine()
    serve(core, prompt("a", 100))
    assert core.reset_prefix_cache()
    assert core.step(1.0) is None
    events = serve(core, prompt("b", 100))
    assert isinstance(events[0], CacheCleared)
    assert keys_stored(events) == [3]


def test_counters_add_up() -> None:
    core = engine()
    serve(core, prompt("a", 100, 7))
    serve(core, prompt("b", 100, 3))
    stats = core.stats
    assert (stats.prompt_tokens_total, stats.computed_prompt_tokens_total, stats.cached_prompt_tokens_total) == (
        200,
        104,
        96,
    )
    assert (stats.generation_tokens_total, stats.prefix_queries_total, stats.prefix_hits_total) == (10, 200, 96)
    assert (stats.running, stats.waiting, stats.kv_usage, stats.resident_blocks) == (0, 0, 0.0, 3)


def test_kv_usage_counts_only_blocks_of_running_sequences() -> None:
    core = engine()
    serve(core, prompt("a", 100))
    core.add(prompt("b", 64, 10, start=9_000))
    core.step(0.0)
    assert core.stats.kv_usage == pytest.approx(2 / 128)


def test_unknown_ids_still_give_blocks_of_their_own() -> None:
    core = engine()
    core.add(EngineSequence("a", 0.0, 20, 60))
    core.add(EngineSequence("b", 0.0, 20, 60))
    stores = [event for step in drain(core) for event in step.events if isinstance(event, BlocksStored)]
    assert len({key for event in stores for key in event.keys}) == 4
    assert {event.tokens for event in stores} == {None}


def test_an_unknown_scheduling_is_refused() -> None:
    with pytest.raises(BadInput):
        EngineCore(PROFILE, scheduling="lottery")
