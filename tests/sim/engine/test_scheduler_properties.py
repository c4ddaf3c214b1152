"""Invariants of the engine core under drawn operations, checked after every step."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, block_keys
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence, EngineStep, SequenceState

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
