"""The translator against an engine's cache: a worker's index says what the engine would hit."""

import json
import random
from array import array

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.kv_index.cache_correction import CacheCorrection, ForgetScope
from fairlead_gateway.kv_index.translator import PREFIX_MAP_SETTLE_SECONDS, PrefixTranslator
from fairlead_gateway.routing.prefix.cache_view import SHARED_STORE
from fairlead_kvstore.blockstore import block_hash
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    InstanceCleared,
)
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier, shared_store_id
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import BatchesLost
from fairlead_kvstore.reader.event_application import apply_outcomes
from fairlead_testing.kvstore.changed_blocks import ChangedBlocks
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine

KEY = "default/tiny"
SECRET = b"a secret of the test"
BYTES = 32
BLOCK = 4
WORDS = [f" word{number}" for number in range(400)]


class Prompt:
    """Text whose words are its tokens, in both chains."""

    def __init__(self, words: list[int]) -> None:
        text = json.dumps("".join(WORDS[word] for word in words)).encode()[1:-1]
        self.size = len(text)
        self.ends = tuple(range(BYTES, self.size + 1, BYTES))
        state, chain = 7, []
        for end in self.ends:
            state = xxhash.xxh3_64_intdigest(text[end - BYTES : end], state)
            chain.append(state)
        self.hashes = tuple(chain)
        self.tail = xxhash.xxh3_64_intdigest(text)
        self.tokens = [1, *(word + 10 for word in words)]


class Place:
    """One engine, its stream, and the gateway's bridge: what a worker would know of it."""

    def __init__(self, *names: str, capacity: int = 60, blocks: ChangedBlocks | None = None, **bounds: int) -> None:
        self.engines = {name: PrefixCacheEngine(capacity=capacity, block_size=BLOCK) for name in names}
        self.streams = {name: EventSequencer(replayable=True) for name in names}
        self.truth = BlockStore(secret=SECRET)
        self.changed = blocks
        self.translator = PrefixTranslator(KEY, blocks or self.truth.model(KEY), secret=SECRET, **bounds)
        self.worker: dict[str, set[int]] = {name: set() for name in names}
        self.now = 0.0
        for name in names:
            self.truth.attach(name, KEY, 0.0)

    def serve(self, name: str, prompt: Prompt, *, learn: bool = True) -> int:
        """Send a prompt there, let the engine tell, and end it; blocks that the engine hit."""
        self.translator.on_dispatch(name, prompt.tail, prompt.hashes, self.now, reports_end=True)
        hit = self.engines[name].serve_prompt(prompt.tokens)
        self.worker[name].update(prompt.hashes)
        self.hear(name)
        if learn:
            self.translator.learn(prompt.hashes, prompt.ends, prompt.tokens, size=prompt.size)
        self.translator.on_finish(name, prompt.tail, self.now)
        return hit

    def hear(self, name: str) -> None:
        frame = self.engines[name].publish()
        if frame is not None:
            applied = apply_outcomes(self.truth, name, self.streams[name].on_live_frame(frame), self.now)
            assert applied.replay_from is None
            self.report(applied.changes)

    def report(self, changes: list[Change]) -> None:
        if self.changed is not None:
            self.changed.apply(changes)
        self.translator.on_changes(changes)

    def settle(self, seconds: float = PREFIX_MAP_SETTLE_SECONDS) -> list[CacheCorrection]:
        """Lets time pass, and applies the corrections to the worker's knowledge."""
        self.now += seconds
        corrections = self.translator.take_corrections(self.now)
        for correction in corrections:
            if correction.forget:
                for tier in range(3):
                    self.known(correction.instance, tier).clear()
            known = self.known(correction.instance, correction.tier)
            known -= set(array("Q", correction.removed))
            for chain in correction.cached:
                known |= set(array("Q", chain))
        return corrections

    def known(self, name: str, tier: int = 0) -> set[int]:
        """Returns what the worker knows of one tier of an instance."""
        return self.worker.setdefault(f"{name}/{tier}" if tier else name, set())

    def credited(self, name: str, prompt: Prompt, tier: int = 0) -> int:
        """Bytes of a prompt that the worker believes to lie there, in this tier or a faster one."""
        known, size = set[int]().union(*[self.known(name, each) for each in range(tier + 1)]), 0
        for digest, end in zip(prompt.hashes, prompt.ends, strict=True):
            if digest not in known:
                break
            size = end
        return size

    def share(self, name: str, prompt: Prompt) -> float:
        return self.engines[name].hit_blocks(prompt.tokens) * BLOCK / len(prompt.tokens)


def prompt_of(seed: int, length: int = 80) -> Prompt:
    return Prompt([random.Random(seed).randrange(400) for _ in range(length)])


def test_evictions_are_reported_and_other_blocks_stay() -> None:
    place = Place("a", capacity=45)
    first, second, third = (prompt_of(seed) for seed in range(3))
    for prompt in (first, second, third):
        place.serve("a", prompt)
    place.settle()
    assert place.share("a", first) < 0.6
    for prompt in (first, second, third):
        believed = place.credited("a", prompt) / prompt.size
        assert abs(believed - place.share("a", prompt)) < 0.2, prompt.tail


def test_a_link_learned_after_its_events_counts_too() -> None:
    place, prompt = Place("a"), prompt_of(1)
    place.serve("a", prompt, learn=False)
    place.settle(0.0)
    place.worker["a"].clear()
    assert place.translator.learn(prompt.hashes, prompt.ends, prompt.tokens, size=prompt.size)
    place.settle(0.0)
    assert place.credited("a", prompt) > 0.9 * prompt.size


def test_without_a_cached_block_there_is_no_block_size() -> None:
    place, prompt = Place("a"), prompt_of(1)
    assert not place.translator.learn(prompt.hashes, prompt.ends, prompt.tokens, size=prompt.size)
    place.serve("a", prompt)
    assert place.translator.block_size == BLOCK


def test_dispatched_prompts_are_used_as_far_as_they_are_linked() -> None:
    blocks = ChangedBlocks(block_size=BLOCK)
    place, prompt = Place("a", blocks=blocks), prompt_of(1)
    place.serve("a", prompt)
    assert not blocks.used
    place.serve("a", prompt)
    assert blocks.used["a"] == list(place.translator.table.token_hashes_of(prompt.hashes[-1]))
    assert len(blocks.used["a"]) > 10


def test_of_several_block_sizes_that_of_the_first_cached_block_counts() -> None:
    sizes = {"a": 64, "b": BLOCK}

    class Mixed(ChangedBlocks):
        def block_size(self, instance: str) -> int | None:
            return sizes[instance]

    place, prompt = Place("a", "b", blocks=Mixed()), prompt_of(1)
    place.serve("a", prompt_of(2), learn=False)
    place.serve("b", prompt)
    assert place.translator.block_size == BLOCK
    place.settle(0.0)
    assert place.credited("b", prompt) > 0.9 * prompt.size


def test_a_prompt_on_its_way_is_not_taken_back_and_one_that_never_came_is() -> None:
    place, prompt = Place("a"), prompt_of(1)
    place.serve("a", prompt)
    place.settle()
    place.engines["a"].clear()
    place.engines["a"].serve_prompt(prompt_of(9, 8).tokens)
    place.translator.on_dispatch("a", prompt.tail, prompt.hashes, place.now, reports_end=True)
    place.hear("a")  # cleared while the prompt waits in the engine's queue
    assert [correction.forget for correction in place.settle()] == [ForgetScope.ALL]
    place.worker["a"].update(prompt.hashes)  # it is still on its way
    assert not place.settle(60.0)
    place.translator.on_finish("a", prompt.tail, place.now)
    place.settle(0.0)
    assert place.credited("a", prompt)
    place.settle(PREFIX_MAP_SETTLE_SECONDS)
    assert place.credited("a", prompt) <= BYTES


def test_absence_says_nothing_of_an_instance_of_which_not_all_is_known() -> None:
    place, prompt = Place("a"), prompt_of(1)
    place.serve("a", prompt)
    place.settle()
    place.report(place.truth.apply_at_once("a", BatchesLost(1, 1, "a gap"), place.now))
    place.settle()
    place.translator.on_dispatch("a", prompt.tail, prompt.hashes, place.now, reports_end=True)
    place.translator.on_finish("a", prompt.tail, place.now)
    place.worker["a"].update(prompt.hashes)
    assert not place.settle()
    assert place.credited("a", prompt)


def test_a_distrusted_instance_is_dropped_and_reported_again_later() -> None:
    place, prompt = Place("a"), prompt_of(1)
    place.serve("a", prompt)
    place.settle()
    place.translator.distrust("a")
    assert [(correction.forget, correction.cached) for correction in place.settle()] == [(ForgetScope.CORRECTED, [])]
    place.serve("a", prompt_of(2))
    assert not [correction for correction in place.settle() if correction.cached or correction.removed]
    place.worker["a"].clear()
    place.translator.trust("a")
    place.settle()
    assert place.credited("a", prompt) > 0.9 * prompt.size


def test_text_within_a_token_block_that_is_not_cached_is_not_credited() -> None:
    """Two prompts share their first block of 20 tokens. Each word has six bytes."""
    place = Place("a", "b", blocks=ChangedBlocks(block_size=20))
    first, second = 20 * [7], [5, *40 * [9]]
    prompts = [Prompt(first + second), Prompt(first + second[::-1])]
    root = block_hash.chain_root(KEY, None, secret=SECRET)
    for name, prompt in zip("ab", prompts, strict=True):
        place.report([BlocksStored(name, StorageTier.GPU, block_hash.block_hashes(root, prompt.tokens, 20))])
        reach = [end // 6 + 1 for end in prompt.ends]
        place.translator.learn(prompt.hashes, prompt.ends, prompt.tokens, size=prompt.size, token_ends=reach)
    place.settle()
    assert place.credited("a", prompts[0]) == 256, "the first end beyond 40 tokens"
    assert place.credited("b", prompts[0]) == 128, "the first end beyond 20 tokens"


def test_blocks_that_move_to_slower_memory_are_known_there() -> None:
    place, prompt = Place("a", blocks=ChangedBlocks(block_size=BLOCK)), prompt_of(1)
    place.serve("a", prompt)
    owns = [link.token_hash for _, link in place.translator.table.items() if link.token_hash]
    place.settle()
    place.report([BlocksStored("a", StorageTier.CPU, owns), BlocksRemoved("a", StorageTier.GPU, owns)])
    place.settle()
    assert place.credited("a", prompt) <= BYTES
    assert place.credited("a", prompt, StorageTier.CPU) > 0.9 * prompt.size
    place.report([BlocksRemoved("a", StorageTier.CPU, owns)])
    place.settle()
    assert place.credited("a", prompt, StorageTier.DISK) <= BYTES


def test_a_shared_store_is_an_instance_of_its_own_until_its_blocks_expire() -> None:
    place, prompt = Place("a", blocks=ChangedBlocks(block_size=BLOCK)), prompt_of(1)
    place.serve("a", prompt)
    owns = [link.token_hash for _, link in place.translator.table.items() if link.token_hash]
    place.report([BlocksStored(shared_store_id(KEY), StorageTier.GPU, owns)])
    place.settle()
    assert place.credited(SHARED_STORE, prompt) > 0.9 * prompt.size
    later = prompt_of(2)
    place.serve("a", later, learn=False)
    everything = [block for block, _ in place.truth.content("a")]
    place.report([BlocksStored(shared_store_id(KEY), StorageTier.GPU, everything)])
    place.translator.learn(later.hashes, later.ends, later.tokens, size=later.size)
    place.settle()
    assert place.credited(SHARED_STORE, later) > 0.9 * later.size, "linked after its report"
    place.report([BlocksRemoved(shared_store_id(KEY), StorageTier.GPU, owns)])
    place.settle()
    assert place.credited(SHARED_STORE, prompt) <= BYTES


@pytest.mark.property
@given(st.lists(st.tuples(st.sampled_from(INSTANCE_TIERS), st.integers(0, 17), st.booleans()), max_size=30))
def test_depths_of_all_tiers_are_those_of_the_engines_table(steps: list[tuple[StorageTier, int, bool]]) -> None:
    """Checks that a worker knows how far each tier and the faster ones reach.

    Each tier has the beginning of a prompt, which becomes longer and shorter.
    """
    place, prompt = Place("a", capacity=100, blocks=ChangedBlocks(block_size=BLOCK)), prompt_of(1)
    place.serve("a", prompt)
    place.settle()
    known = place.translator.table
    chain = [link for digest in prompt.hashes if (link := known.get(digest)) is not None]
    owns = list(dict.fromkeys(link.token_hash for link in chain if link.depth))
    held = {StorageTier.GPU: len(owns), StorageTier.CPU: 0, StorageTier.DISK: 0}
    for tier, length, settles in steps:
        before, held[tier] = held[tier], min(length, len(owns))
        stored, removed = owns[before : held[tier]], owns[held[tier] : before]
        changes: list[Change] = [BlocksStored("a", tier, stored)] if stored else [BlocksRemoved("a", tier, removed)]
        place.report(changes)
        if settles:
            place.settle(0.0)
    place.settle(0.0)
    for tier in INSTANCE_TIERS:
        reached = {0, *owns[: max(held[faster] for faster in INSTANCE_TIERS[: tier + 1])]}
        expected = next(
            (at for at, link in enumerate(chain) if link.depth and link.token_hash not in reached), len(chain)
        )
        assert place.credited("a", prompt, tier) // BYTES == expected


def test_a_new_worker_gets_everything_in_bounded_batches() -> None:
    place = Place("a", "b", capacity=2_000, max_corrections=20)
    prompts = [prompt_of(seed) for seed in range(12)]
    for number, prompt in enumerate(prompts):
        place.serve("ab"[number % 2], prompt)
    while place.settle():
        pass
    place.worker = {"a": set(), "b": set()}
    place.translator.resend_all()
    rounds = 0
    while place.settle(0.0):
        rounds += 1
    assert rounds > 3
    for number, prompt in enumerate(prompts):
        assert place.credited("ab"[number % 2], prompt) > 0.9 * prompt.size
        assert not place.credited("ba"[number % 2], prompt)


def test_engine_that_clears_its_cache_with_each_event_causes_one_correction() -> None:
    place, prompt = Place("a", "b", blocks=ChangedBlocks(block_size=BLOCK)), prompt_of(1)
    place.serve("b", prompt)
    place.settle()
    pair = [BlocksStored("a", StorageTier.GPU, [1, 2]), InstanceCleared("a", 2, "cleared")]
    place.translator.on_changes(pair * 4_000)
    corrections = place.settle()
    assert [(one.instance, one.forget, one.cached) for one in corrections] == [("a", ForgetScope.ALL, [])]
    assert place.credited("b", prompt) > 0.9 * prompt.size


@pytest.mark.property
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(1, 5)), max_size=40))
def test_after_all_corrections_workers_know_what_is_cached(served: list[tuple[str, int, int]]) -> None:
    """Checks that estimates exceed the cache by a byte block at most, and miss nothing."""
    place = Place("a", "b", capacity=50)
    known: dict[int, Prompt] = {}
    for name, family, turns in served:
        words = [random.Random(family * 100 + turn).randrange(400) for turn in range(turns) for _ in range(17)]
        prompt = Prompt(words)
        known[prompt.tail] = prompt
        place.serve(name, prompt)
        if turns % 2:
            place.settle(0.5)
    place.settle(PREFIX_MAP_SETTLE_SECONDS)
    place.settle()
    slack = (2 * BLOCK + 4) / 17 + 0.1
    for name in "ab":
        for prompt in known.values():
            believed, held = place.credited(name, prompt) / prompt.size, place.share(name, prompt)
            assert believed <= held + slack
            assert held <= believed + slack


KINDS: list[tuple[str | None, str | None]] = [
    (None, None),
    ("french", None),
    ("german", None),
    (None, "s"),
    ("french", "s"),
]


@pytest.mark.parametrize("served", KINDS)
def test_a_prompt_of_an_adapter_or_with_a_salt_is_linked_to_its_own_blocks_only(
    served: tuple[str | None, str | None],
) -> None:
    """One text in five kinds: gateways see five byte chains, since salt and model seed them."""
    place, prompt = Place("a", blocks=ChangedBlocks(block_size=BLOCK)), prompt_of(1)
    chains = {kind: [xxhash.xxh3_64_intdigest(repr((kind, key)).encode()) for key in prompt.hashes] for kind in KINDS}
    for adapter, salt in (served, *KINDS):
        extras = {0: [salt]} if salt is not None else None
        root = block_hash.chain_root(KEY, adapter, secret=SECRET)
        if (adapter, salt) == served:
            place.report(
                [BlocksStored("a", StorageTier.GPU, block_hash.block_hashes(root, prompt.tokens, BLOCK, extras))]
            )
        assert place.translator.learn(
            chains[adapter, salt], prompt.ends, prompt.tokens, size=prompt.size, salt=salt, adapter=adapter
        )
    place.settle()
    assert [kind for kind in KINDS if chains[kind][3] in place.worker["a"]] == [served]
