"""Slower memory of a simulated engine: what leaves the KV memory is loaded, not computed again."""

from collections.abc import Sequence
from dataclasses import replace

from fairlead.engine_profile import EngineProfile
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, KvEvent
from fairlead_sim.engine.lower_tiers import LowerTier, TierOptions
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence

BLOCK = 16
PROFILE = EngineProfile("test", prefill_token_seconds=1e-3, weights_seconds=0.0, step_seconds=0.0, kv_tokens=8 * BLOCK)
CPU = TierOptions("cpu", 64 * BLOCK, 1e-4)
STORE = TierOptions("remote", 64 * BLOCK, 1e-4)


def core(*tiers: LowerTier, profile: EngineProfile = PROFILE) -> EngineCore:
    engine = EngineCore(profile, block_tokens=BLOCK)
    engine.lower_tiers = tiers
    return engine


def tier(options: TierOptions) -> LowerTier:
    return LowerTier(options, BLOCK)


def prompt(name: str, keys: Sequence[int], output: int = 1) -> EngineSequence:
    return EngineSequence(name, 0.0, len(keys) * BLOCK + 1, output, tuple(keys))


def run(engine: EngineCore, *sequences: EngineSequence, now: float = 0.0) -> tuple[float, list[KvEvent]]:
    """Runs all sequences to their ends; returns when that is, and the events."""
    events: list[KvEvent] = []
    for sequence in sequences:
        engine.add(sequence)
    while (step := engine.step(now)) is not None:
        now += step.seconds
        events += step.events
    return now, events


def test_blocks_that_left_the_kv_memory_are_loaded_in_proportion_to_their_tokens() -> None:
    engine = core(tier(CPU))
    cold, _ = run(engine, prompt("first", range(1, 5)))
    now, _ = run(engine, prompt("other", range(11, 18)), now=cold)  # evicts all of the first
    again = prompt("again", range(1, 5))
    end, _ = run(engine, again, now=now)
    assert again.cached_tokens == 4 * BLOCK
    assert cold == (4 * BLOCK + 1) * 1e-3
    assert abs(end - now - (4 * BLOCK * 1e-4 + 1e-3)) < 1e-9
    assert engine.stats.cached_prompt_tokens_total == 4 * BLOCK


def test_without_slower_memory_they_are_computed_again() -> None:
    engine = core()
    now, _ = run(engine, prompt("first", range(1, 5)))
    now, _ = run(engine, prompt("other", range(11, 18)), now=now)
    again = prompt("again", range(1, 5))
    run(engine, again, now=now)
    assert again.cached_tokens == 0


def test_other_prompts_go_on_while_one_is_loaded() -> None:
    slow = tier(replace(CPU, token_seconds=1.0))
    engine = core(slow, profile=replace(PROFILE, kv_tokens=12 * BLOCK))
    now, _ = run(engine, prompt("first", range(1, 5)))
    now, _ = run(engine, prompt("other", range(11, 22)), now=now)
    loaded, computed = prompt("loaded", range(1, 5)), prompt("computed", range(31, 33))
    run(engine, loaded, computed, now=now)
    assert computed.first_token_at is not None
    assert loaded.first_token_at is not None
    assert computed.first_token_at < now + 0.1
    assert loaded.first_token_at >= now + 4 * BLOCK * 1.0


def test_a_sequence_that_is_aborted_while_it_loads_leaves_nothing() -> None:
    engine = core(tier(replace(CPU, token_seconds=1.0)))
    now, _ = run(engine, prompt("first", range(1, 5)))
    now, _ = run(engine, prompt("other", range(11, 18)), now=now)
    engine.add(prompt("loaded", range(1, 5)))
    assert engine.step(now) is not None
    assert engine.stats.running == 1
    assert engine.abort("loaded")
    assert engine.step(now + 100.0) is None
    assert engine.pool.referenced == 0


def test_a_shared_store_serves_all_engines_and_evicts_in_silence() -> None:
    store = tier(replace(STORE, tokens=4 * BLOCK))
    writer, reader = core(store), core(store)
    _, written = run(writer, prompt("first", range(1, 5)))
    again = prompt("again", range(1, 5))
    run(reader, again)
    assert again.cached_tokens == 4 * BLOCK
    _, more = run(writer, prompt("other", range(11, 15)), now=10.0)
    assert [event.tier for event in written if isinstance(event, BlocksStored)] == ["gpu", *["remote"] * 4]
    assert not [event for event in more if isinstance(event, BlockEvicted) and event.tier == "remote"]
    gone = prompt("gone", range(1, 5))
    reader.reset_prefix_cache()
    run(reader, gone, now=20.0)
    assert gone.cached_tokens == 0


def test_events_of_slower_memory_say_what_is_in_it() -> None:
    engine = core(tier(replace(CPU, tokens=4 * BLOCK)))
    _, first = run(engine, prompt("first", range(1, 5)))
    _, second = run(engine, prompt("other", range(11, 14)), now=1.0)
    held = set()
    for event in [*first, *second]:
        if isinstance(event, BlocksStored) and event.tier == "cpu":
            held.update(event.keys)
        elif isinstance(event, BlockEvicted) and event.tier == "cpu":
            held.discard(event.key)
    assert held == {1, 11, 12, 13}, "the start of the first prompt stays longest"


def test_an_engine_that_restarts_keeps_only_what_is_shared() -> None:
    cpu, store = tier(CPU), tier(STORE)
    engine = core(cpu, store)
    run(engine, prompt("first", range(1, 5)))
    engine.reset_prefix_cache()
    engine.clear_lower_tiers()
    assert 1 not in cpu
    assert 1 in store
    assert engine.matched_blocks(range(1, 5)) == 4
