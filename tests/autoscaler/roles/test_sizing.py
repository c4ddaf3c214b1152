"""Prefill and decode engines are as many as each one's own bound asks for, and the reason says which."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles import Traffic, Transfer, decode_batch, prefill_seconds, size_decode, size_prefill

L = EngineProfile(
    "L",
    9e-5,
    step_seconds=12e-3,
    sequence_seconds=4e-5,
    resident_token_seconds=8.7e-8,
    kv_tokens=400_000,
    step_tokens=1024,
)
KEPT = Objectives(target=0.99, ttft_seconds=2.0, itl_seconds=0.1)
LONG = Traffic(10.0, 8_000, 100)
CHATTY = Traffic(10.0, 1_000, 800)

sizes = st.floats(1, 50_000)
traffics = st.lists(st.builds(Traffic, st.floats(0, 500), sizes, sizes), min_size=1, max_size=4)


def test_a_prompt_costs_its_share_of_full_steps_and_its_own_tokens() -> None:
    assert prefill_seconds(L, LONG) == pytest.approx(8_000 / 1_024 * 12e-3 + 8_000 * 9e-5 + 4e-5 * (1 + 8_000 / 1_024))
    cached = replace(LONG, cached_tokens=7_000)
    assert prefill_seconds(L, cached) == pytest.approx(prefill_seconds(L, replace(LONG, prompt_tokens=1_000)))


def test_prefill_engines_are_busy_so_much_and_no_more() -> None:
    need = size_prefill(L, [LONG], KEPT)
    work = 10.0 * prefill_seconds(L, LONG)
    assert need.engines == pytest.approx(work / 0.78)
    assert need.replicas == math.ceil(work / 0.78)
    assert need.rule == "prefill-busy"
    assert work / need.replicas <= 0.78


def test_few_engines_and_long_prompts_need_more_since_one_that_waits_waits_for_a_whole_one() -> None:
    rare = [Traffic(0.8, 8_000, 100)]
    assert size_prefill(L, rare, replace(KEPT, ttft_seconds=60.0)).replicas == 1
    need = size_prefill(L, rare, KEPT)
    assert need.rule == "prefill-tail"
    assert need.replicas > 1


def test_an_objective_that_a_prompt_misses_alone_is_said_and_the_load_is_carried_all_the_same() -> None:
    need = size_prefill(L, [LONG], replace(KEPT, ttft_seconds=0.5))
    assert need.rule == "impossible"
    assert need.replicas == size_prefill(L, [LONG], replace(KEPT, ttft_seconds=None)).replicas
    alone = size_decode(L, [CHATTY], replace(KEPT, itl_seconds=0.001))
    assert alone.rule == "impossible"
    assert "not even one sequence" in alone.reason


def test_the_way_to_the_other_engine_is_part_of_the_first_tokens_time() -> None:
    near = size_prefill(L, [LONG], KEPT, transfer=Transfer(0.0)).replicas
    assert size_prefill(L, [LONG], KEPT, transfer=Transfer(1.0)).replicas > near


@pytest.mark.parametrize(
    ("itl_seconds", "kv_tokens", "bound"),
    [(0.02, 400_000, "decode-itl"), (0.1, 40_000, "decode-kv"), (0.1, 4_000_000, "decode-sequences")],
)
def test_what_bounds_a_decode_engine_is_named(itl_seconds: float, kv_tokens: int, bound: str) -> None:
    need = size_decode(replace(L, kv_tokens=kv_tokens), [CHATTY], replace(KEPT, itl_seconds=itl_seconds))
    assert need.rule == bound


@given(st.floats(0.013, 1.0), traffics)
def test_a_batch_keeps_the_objective_the_memory_and_the_limit_and_one_more_would_not(
    itl_seconds: float, traffic: list[Traffic]
) -> None:
    busy = [replace(one, requests_per_second=one.requests_per_second + 0.1) for one in traffic]
    batch = decode_batch(L, busy, itl_seconds=itl_seconds)
    if not batch.met:
        assert batch.sequences == 1.0
        return
    weights = [one.requests_per_second * max(1.0, one.output_tokens) for one in busy]
    context = sum(
        weight * (one.prompt_tokens + one.output_tokens / 2) for weight, one in zip(weights, busy, strict=True)
    ) / sum(weights)

    def fits(sequences: float) -> bool:
        seconds = 12e-3 + sequences * (9e-5 + 4e-5 + 8.7e-8 * context)
        return seconds <= itl_seconds and sequences * context <= L.kv_tokens and sequences <= L.max_sequences

    assert fits(batch.sequences * (1 - 1e-9))
    assert not fits(batch.sequences * (1 + 1e-6))


@given(traffics, st.floats(1.0, 10.0))
def test_more_of_the_same_never_needs_fewer(traffic: list[Traffic], factor: float) -> None:
    more = [replace(one, requests_per_second=one.requests_per_second * factor) for one in traffic]
    assert size_prefill(L, more, KEPT).replicas >= size_prefill(L, traffic, KEPT).replicas
    assert size_decode(L, more, KEPT).replicas >= size_decode(L, traffic, KEPT).replicas


def test_nothing_that_arrives_needs_nothing() -> None:
    for traffic in ([], [replace(LONG, requests_per_second=0.0)]):
        assert size_prefill(L, traffic, KEPT).replicas == size_decode(L, traffic, KEPT).replicas == 0
