"""The scheduler of an engine: batches, blocks of its cache, and properties of random runs."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead_sim.engine.block_pool import BlockEvicted, BlockPool, BlocksStored, CacheCleared, KvEvent, block_keys
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
    steps = [core.step(float(number)) for number in range(1, 5)]
    schedule = [(step.prefilled, [item.id for item in step.tokens]) for step in steps if step]
    assert schedule == [(0, ["a"]), (99, ["a"]), (99, ["a", "b"]), (12, ["a", "b", "c"])]


def first_token_steps(core: EngineCore, steps: int) -> list[list[str]]:
    found = [core.step(float(number)) for number in range(steps)]
    return [[] if step is None else [sequence.id for sequence in step.first_tokens] for step in found]


def test_a_prompt_that_arrives_during_a_step_is_not_in_the_one_that_is_planned() -> None:
    core = engine()
    core.add(prompt("a", 50, 50))
    core.add(prompt("other", 50, 50, start=500))
    assert first_token_steps(core, 1) == [["a", "other"]]
    core.add(prompt("b", 50, start=1_000))
    assert (core.stats.waiting, core.steady_steps()) == (1, 0)
    assert first_token_steps(core, 2) == [[], ["b"]]


def test_an_engine_without_other_work_takes_the_prompt_at_once() -> None:
    core = engine()
    core.add(prompt("a", 50, 1))
    assert first_token_steps(core, 1) == [["a"]]
    core.add(prompt("b", 50, start=1_000))  # during the last step of "a"
    assert first_token_steps(core, 1) == [["b"]]


def test_a_late_prompt_of_high_priority_does_not_hold_up_the_one_before_it() -> None:
    core = EngineCore(replace(PROFILE, kv_tokens=512 * BLOCK), block_tokens=BLOCK, scheduling="priority")
    core.add(prompt("running", 2_048, 50))
    core.add(prompt("low", 2_000, 50, start=3_000, priority=1))
    assert first_token_steps(core, 1) == [["running"]]
    core.add(prompt("high", 1_000, start=6_000, priority=-1))
    assert first_token_steps(core, 2) == [["low"], ["high"]]


def test_late_prompts_can_be_aborted_and_wait_no_step_more_after_a_pause() -> None:
    core = engine()
    core.add(prompt("a", 50, 50))
    core.step(0.0)
    core.add(prompt("gone", 50, start=1_000))
    core.add(prompt("b", 50, start=2_000))
    assert core.abort("gone")
    assert core.stats.waiting == 1
    core.pause()
    assert core.step(1.0) is None
    core.resume()
    assert first_token_steps(core, 1) == [["b"]]


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


NIGHTS = settings(max_examples=4 * settings().max_examples)


@dataclass(frozen=True)
class Add:
    family: int
    prompt: int
    output: int
    priority: int
    reserve: int | None
    lookup: bool
    known_ids: bool


@dataclass(frozen=True)
class Pick:
    """An operation: steps, or a change to the ``number``-th sequence or to the engine."""

    what: str
    number: int


ADDS = st.builds(
    Add,
    family=st.integers(0, 2),
    prompt=st.integers(1, 30) | st.integers(1, 90),
    output=st.integers(0, 40),
    priority=st.integers(-1, 1),
    reserve=st.just(0) | st.integers(0, 10) | st.none(),
    lookup=st.booleans(),
    known_ids=st.booleans(),
)
PICKS = st.builds(
    Pick,
    what=st.sampled_from(["step", "step", "step", "abort", "finish", "reset", "restart"]),
    number=st.integers(0, 8),
)
OPERATIONS = st.builds(
    lambda first, more: [*first, *more], st.lists(ADDS, max_size=8), st.lists(ADDS | PICKS, max_size=30)
)
PROFILES = st.builds(
    lambda blocks, block, sequences, budget: (
        EngineProfile("drawn", 1e-3, 1e-6, 5e-3, 2e-3, 1e-4, 1e-5, 3e-6, blocks * block, sequences, budget),
        block,
    ),
    blocks=st.integers(1, 60),
    block=st.sampled_from([1, 2, 4, 16]),
    sequences=st.integers(1, 8),
    budget=st.integers(1, 40),
)


@dataclass
class Driver:
    """Drives a core and checks it from outside (events, steps) and inside (references)."""

    core: EngineCore
    added: list[EngineSequence] = field(default_factory=list)
    given: Counter[str] = field(default_factory=Counter)
    heard: Counter[int] = field(default_factory=Counter)
    now: float = 0.0

    def add(self, what: Add) -> None:
        prompt = min(what.prompt, self.core.max_sequence_tokens)
        output = min(what.output, self.core.max_sequence_tokens - prompt + 1)
        ids = [what.family * 1_000 + position for position in range(prompt)]
        keys = block_keys(ids, self.core.block_tokens)
        sequence = EngineSequence(
            f"s{len(self.added)}",
            self.now,
            prompt,
            output,
            keys,
            ids if what.known_ids else None,
            priority=what.priority,
            reserve_tokens=what.reserve,
            uses_cache=what.lookup,
        )
        self.core.add(sequence)
        self.added.append(sequence)

    def act(self, what: Pick) -> None:
        if what.what == "step":
            for _ in range(what.number):
                self.step()
        elif what.what == "reset":
            self.core.reset_prefix_cache()
        elif what.what == "restart":
            self.core.reset_prefix_cache(preempt_running=True)
        elif self.added:
            name = self.added[what.number % len(self.added)].id
            assert (self.core.abort(name) if what.what == "abort" else self.core.finish(name, "stop")) in (True, False)
        self.check_memory()

    def step(self) -> EngineStep | None:
        busy = not self.core.is_idle
        decoding = len(self.core._decoding)
        step = self.core.step(self.now)
        assert (step is not None) == busy
        if step is None:
            return None
        self.check_step(step, decoding)
        for sequence in step.tokens:
            self.given[sequence.id] += 1
            if sequence.tokens is not None:
                sequence.tokens.append(50_000 + sequence.generated)
        for event in step.events:
            if isinstance(event, BlocksStored):
                self.heard.update(event.keys)
                assert event.tokens is None or len(event.tokens) == len(event.keys) * event.block_tokens
            elif isinstance(event, BlockEvicted):
                self.heard[event.key] -= 1
                assert self.heard[event.key] >= 0, "removed more often than stored"
            elif isinstance(event, CacheCleared):
                self.heard.clear()
        assert self.heard.total() == self.core.pool.resident
        self.check_memory()
        self.now += step.seconds
        return step

    def check_step(self, step: EngineStep, decoding: int) -> None:
        profile = self.core.profile
        assert step.seconds > 0
        assert step.prefilled + len(step.tokens) > 0, "a step that did nothing"
        names = [sequence.id for sequence in step.tokens]
        assert len(set(names)) == len(names)
        assert {item.id for item in step.first_tokens} <= set(names)
        assert step.prefilled + decoding - len(step.preempted) <= profile.step_tokens
        assert len(names) <= profile.max_sequences
        assert all(sequence.cached_tokens % self.core.block_tokens == 0 for sequence in step.first_tokens)
        assert all(sequence.cached_tokens <= sequence.prompt_tokens - 1 for sequence in step.first_tokens)

    def check_memory(self) -> None:
        core, pool = self.core, self.core.pool
        running = core._running()
        assert len(core._prefilling) <= 1
        references = Counter(block for sequence in running for block in sequence.blocks)
        assert [references[block] for block in range(pool.blocks)] == pool._references
        assert pool.referenced == len(references) <= pool.blocks
        assert pool.referenced + pool.allocatable == pool.blocks
        assert core._resident == sum(item.prompt_tokens + item.generated for item in core._decoding)
        assert core._reserved_blocks == sum(max(0, item.reserved_blocks - len(item.blocks)) for item in running) >= 0
        stats = core.stats
        assert stats.running == len(running)
        assert stats.running + stats.waiting == len(core.sequences())
        assert sum(item.state is SequenceState.RUNNING for item in self.added) == len(running)


@NIGHTS
@given(PROFILES, st.sampled_from(["fcfs", "priority"]), OPERATIONS)
def test_memory_adds_up_and_every_sequence_ends(
    drawn: tuple[EngineProfile, int], scheduling: str, operations: list[Add | Pick]
) -> None:
    profile, block = drawn
    driver = Driver(EngineCore(profile, block_tokens=block, scheduling=scheduling))
    for operation in operations:
        if isinstance(operation, Add):
            driver.add(operation)
        else:
            driver.act(operation)
    work = sum(item.prompt_tokens + item.max_tokens for item in driver.added) + 1
    for _ in range(work * (len(driver.added) + 1)):
        if driver.step() is None:
            break
    assert driver.core.is_idle, "some sequence never ends"
    assert driver.core.pool.referenced == 0
    for sequence in driver.added:
        assert sequence.is_done
        assert driver.given[sequence.id] == sequence.generated <= sequence.max_tokens
        if sequence.finish_reason == "length":
            assert sequence.generated == sequence.max_tokens


@given(PROFILES, st.lists(ADDS, max_size=12))
def test_a_quiet_listener_and_the_cache_agree_on_every_hit(drawn: tuple[EngineProfile, int], adds: list[Add]) -> None:
    """One sequence at a time: the cached tokens are exactly the prefix that the events promise."""
    profile, block = drawn
    driver = Driver(EngineCore(profile, block_tokens=block))
    for what in adds:
        driver.add(what)
        sequence = driver.added[-1]
        promised = 0
        for key in sequence.keys[: (sequence.prompt_tokens - 1) // block]:
            if not driver.heard[key]:
                break
            promised += block
        while driver.step():
            pass
        assert sequence.cached_tokens == (promised if what.lookup else 0)


@given(PROFILES, st.lists(ADDS, max_size=12))
def test_the_same_operations_give_the_same_steps(drawn: tuple[EngineProfile, int], adds: list[Add]) -> None:
    profile, block = drawn
    runs = []
    for _ in range(2):
        driver = Driver(EngineCore(profile, block_tokens=block))
        for what in adds:
            driver.add(what)
        seen = []
        while step := driver.step():
            seen.append((step.seconds, [item.id for item in step.tokens], step.events))
        runs.append(seen)
    assert runs[0] == runs[1]


def stored(*keys: int) -> BlocksStored:
    return BlocksStored(keys=keys, parent=None, tokens=None, block_tokens=4)


def fill(pool: BlockPool, *keys: int) -> list[int]:
    blocks = [block for _ in keys if (block := pool.allocate()) is not None]
    pool.register(blocks, keys, stored(*keys))
    return blocks


def test_only_full_blocks_have_keys() -> None:
    assert [len(block_keys(range(count), 16)) for count in (0, 15, 16, 31, 32)] == [0, 0, 1, 1, 2]


def test_a_longer_prompt_has_the_keys_of_the_shorter_one_first() -> None:
    assert block_keys(range(100), 16)[:3] == block_keys(range(48), 16)


def test_a_change_changes_its_block_and_all_behind() -> None:
    changed = [*range(20), 7, *range(21, 64)]
    before, after = block_keys(range(64), 16), block_keys(changed, 16)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False, False]


def test_salt_and_adapter_make_disjoint_keys() -> None:
    kinds = [{}, {"salt": "a"}, {"adapter": "a"}, {"salt": ""}, {"salt": "b", "adapter": "a"}, {"adapter": "ab"}]
    chains = [block_keys(range(64), 16, **kind) for kind in kinds]
    assert len({key for chain in chains for key in chain}) == 4 * len(kinds)


def test_the_block_unused_longest_goes_first_and_tails_before_heads() -> None:
    pool = BlockPool(6, 4)
    old, new = fill(pool, 1, 2, 3), fill(pool, 11, 12, 13)
    pool.release(old)
    pool.release(new)
    for _ in range(4):
        pool.allocate()
    assert [event.key for event in pool.drain_events() if isinstance(event, BlockEvicted)] == [3, 2, 1, 13]


def test_a_hit_makes_a_block_young_again() -> None:
    pool = BlockPool(2, 4)
    first, second = fill(pool, 1), fill(pool, 2)
    pool.release(first)
    pool.release(second)
    pool.acquire(first)
    pool.release(first)
    pool.allocate()
    assert pool.match([1], 1)
    assert not pool.match([2], 1)


def test_empty_blocks_are_taken_before_any_kept_one() -> None:
    pool = BlockPool(3, 4)
    pool.release(fill(pool, 1, 2))
    pool.allocate()
    assert pool.match([1, 2], 2)


def test_held_blocks_are_never_taken() -> None:
    pool = BlockPool(2, 4)
    fill(pool, 1, 2)
    assert pool.allocate() is None


def test_a_match_stops_at_the_first_gap_and_at_its_limit() -> None:
    pool = BlockPool(4, 4)
    fill(pool, 1, 2, 4)
    assert len(pool.match([1, 2, 3, 4], 4)) == 2
    assert len(pool.match([1, 2, 3, 4], 1)) == 1


def test_a_second_copy_is_announced_and_removed_by_itself() -> None:
    pool = BlockPool(2, 4)
    first, second = fill(pool, 1), fill(pool, 1)
    assert pool.resident == 2
    pool.release(first)
    pool.allocate()
    assert pool.match([1], 1) == second
    pool.release(second)
    pool.allocate()
    assert not pool.match([1], 1)
    assert pool.drain_events() == [stored(1), stored(1), BlockEvicted(1), BlockEvicted(1)]


def test_the_younger_copy_may_go_first() -> None:
    pool = BlockPool(2, 4)
    first, second = fill(pool, 1), fill(pool, 1)
    pool.release(second)
    pool.allocate()
    assert pool.match([1], 1) == first


def test_clearing_needs_every_block_let_go() -> None:
    pool = BlockPool(2, 4)
    blocks = fill(pool, 1)
    assert not pool.clear()
    pool.release(blocks)
    assert pool.clear()
    assert pool.allocatable == 2
    assert pool.resident == 0
    assert pool.drain_events()[-1] == CacheCleared()
