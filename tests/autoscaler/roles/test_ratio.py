"""A fixed number of engines is divided so that they finish most, and what is measured says which way a division is wrong."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles import Traffic, Transfer, direction, rates, size_decode, size_prefill, slack, split
from fairlead_autoscaler.roles.ratio import KEEP

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
FAR = Transfer(0.02, 131e3 / 12e9)
LONG = Traffic(10.0, 8_000, 100)
CHATTY = Traffic(10.0, 1_000, 800)


def test_the_law_is_that_of_pd_serve() -> None:
    each = rates(L, L, [CHATTY], KEPT, transfer=FAR, busy=1.0, fill=1.0)
    assert each is not None
    batch = 400_000 / 1_400 if 400_000 / 1_400 < 256 else 256
    step = 12e-3 + batch * (9e-5 + 4e-5 + 8.7e-8 * 1_400)
    answer = 0.02 + 1_000 * 131e3 / 12e9 + 800 * step
    prefill = 1_000 / 1_024 * 12e-3 + 1_000 * 9e-5 + 4e-5 * (1 + 1_000 / 1_024)
    assert each.ratio == pytest.approx((batch * prefill) / (1 * answer))


@given(st.integers(2, 64), st.floats(0.01, 500), st.floats(0.01, 500))
def test_no_other_division_carries_more(total: int, prefill: float, decode: float) -> None:
    chosen = split(total, prefill, decode)
    assert chosen.prefill + chosen.decode == total
    assert min(chosen.prefill, chosen.decode) >= 1
    best = max(min(n / prefill, (total - n) / decode) for n in range(1, total))
    assert chosen.carried == pytest.approx(best)
    exact = total * prefill / (prefill + decode)
    assert abs(chosen.prefill - min(total - 1, max(1, exact))) < 1
    kept = split(total, prefill, decode, now=chosen.prefill + 1)
    assert kept.carried * KEEP >= chosen.carried
    assert kept.rule == ("ratio" if kept.prefill == chosen.prefill else "kept")


def engines(traffic: list[Traffic]) -> tuple[float, float]:
    return size_prefill(L, traffic, KEPT, transfer=FAR).engines, size_decode(L, traffic, KEPT).engines


def test_prompts_that_grow_take_engines_from_decode_and_back() -> None:
    assert split(16, *engines([LONG])).prefill == 14
    assert split(16, *engines([CHATTY])).prefill in (5, 6)


def test_prompts_found_in_caches_need_no_prefill_engines() -> None:
    assert split(16, *engines([replace(LONG, cached_tokens=7_900)])).prefill < split(16, *engines([LONG])).prefill


def test_silence_moves_nothing() -> None:
    assert split(16, 0.0, 0.0, now=11).prefill == 11
    assert split(16, 0.0, 0.0).prefill == 8
    assert split(16, 3.0, 0.0).decode == 1
    with pytest.raises(BadInput):
        split(1, 1.0, 1.0)


def test_the_direction_follows_the_share_of_prefill_and_doubt_moves_nothing() -> None:
    each = rates(L, L, [LONG], KEPT, transfer=FAR)
    assert each is not None
    planned = each.prefill_seconds / (each.prefill_seconds + each.decode_seconds)
    assert direction(planned * 10.0, 10.0, each).prefill == 0
    assert direction(9.0, 10.0, each).rule == "prefill-short"
    assert direction(0.1, 10.0, each).prefill == -1
    assert (
        direction(None, 10.0, each).rule
        == direction(1.0, None, each).rule
        == direction(1.0, 0.0, each).rule
        == "unknown"
    )


def test_idle_decode_engines_take_prompts_and_full_ones_do_not() -> None:
    quiet = slack(L, [Traffic(1.0, 1_000, 100)], KEPT, engines=4)
    assert quiet.rule == "slack"
    assert slack(L, [Traffic(30.0, 1_000, 800)], KEPT, engines=4).rule == "batch-full"
    assert slack(L, [Traffic(0.01, 1_000, 100)], replace(KEPT, itl_seconds=0.013), engines=4).rule == "step-full"
    assert slack(L, [CHATTY], replace(KEPT, itl_seconds=None), engines=4).rule == "no-objective"


@given(st.floats(0.1, 20.0), st.floats(100, 4_000), st.floats(10, 1_000), st.integers(1, 8))
def test_what_decode_takes_keeps_both_objectives(rate: float, prompt: float, output: float, engines: int) -> None:
    decoding = [Traffic(rate, prompt, output)]
    found = slack(L, decoding, KEPT, engines=engines)
    if found.rule != "slack":
        assert found.tokens_per_second == 0.0
        return
    seconds = 0.09
    batch = rate * output * seconds / engines
    chunk = found.tokens_per_second / engines * seconds
    step = 12e-3 + 9e-5 * (batch + chunk) + batch * (4e-5 + 8.7e-8 * (prompt + output / 2))
    assert step <= 0.1
    assert chunk + batch <= L.step_tokens + 1e-6
    assert found.prompt_tokens * seconds / chunk <= 1.0 + 1e-6
    busier = slack(L, [replace(decoding[0], requests_per_second=rate * 1.5)], KEPT, engines=engines)
    assert busier.tokens_per_second <= found.tokens_per_second
