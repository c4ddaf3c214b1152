"""Differences between replicas, and between ticks."""

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core import PoolSpec, ScalingSettings
from fairlead_autoscaler.core.performance.measured_slowdown import EngineSpeed, update_engine_speed
from fairlead_autoscaler.core.signals.validation import TokenGapSample
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory, record_tick
from fairlead_autoscaler.core.workload.load_forecast import recurring_burst_level

_SETTINGS = ScalingSettings()
_PROFILE = EngineProfile("S", 3.3e-4, step_seconds=28e-3, kv_tokens=40_000, max_sequences=64, step_tokens=512)
_POOL = PoolSpec("main", profile=_PROFILE)


def _pace(prompts: float, sequences: float, gap_seconds: float) -> TokenGapSample:
    """Returns a replica that ran so many sequences and computed so many prompt tokens in 5 s."""
    gaps = sequences * 5.0
    return TokenGapSample(0.0, prompts, gaps / gap_seconds, gaps)


def _gap(prompts_per_second: float, sequences: float, slower: float) -> float:
    """Returns the step time where each part takes so many times as long as the profile says."""
    per_sequence = _PROFILE.sequence_seconds + _PROFILE.prefill_token_seconds
    plain = slower * (_PROFILE.step_seconds + per_sequence * sequences)
    return plain / (1.0 - slower * _PROFILE.prefill_token_seconds * prompts_per_second)


@pytest.mark.parametrize("slower", [1.0, 1.35])
def test_new_replicas_do_not_make_busy_ones_seem_slow(slower: float) -> None:
    busy = _pace(9_000.0, 20.0, _gap(1_800.0, 20.0, slower))
    new = _pace(0.0, 1.0, _gap(0.0, 1.0, slower))
    known = EngineSpeed()
    for _ in range(20):
        known = update_engine_speed(known, (busy, new, new, new), _POOL, 5.0)
    assert known.slowdown() == pytest.approx(slower, rel=0.02)


def _counted(ticks: list[float]) -> ArrivalHistory:
    load = ArrivalHistory()
    for number, requests in enumerate(ticks):
        load = record_tick(load, ArrivalBin(5.0 * (number + 1), 5.0, requests, requests * 1_000.0, 30.0), _SETTINGS)
    return load


def _bursts(load: ArrivalHistory) -> float:
    return recurring_burst_level(load, lambda each: each.requests / each.seconds, 1_800.0, 0.2, _SETTINGS)


def test_requests_that_come_in_clumps_are_bursts_before_there_was_a_second_one() -> None:
    clumps = _counted([60.0, 2.0, 45.0, 4.0, 90.0, 3.0, 30.0, 30.0])
    assert _bursts(clumps) > 2.0 * 204.0 / 30.0  # more than twice the half minute that was seen
    even = _counted([33.0, 35.0, 31.0, 36.0, 34.0, 35.0, 30.0, 30.0])
    assert _bursts(even) == 0.0


def _binned(counts: list[float]) -> ArrivalHistory:
    return _counted([count / 6.0 for count in [*counts, counts[-1]] for _ in range(6)])


def _few(load: ArrivalHistory) -> float:
    """Returns ``_bursts`` with two replica-seconds a request."""
    return recurring_burst_level(load, lambda each: 2.0 * each.requests / each.seconds, 1_800.0, 2.0, _SETTINGS)


def test_one_small_bin_between_two_large_ones_is_no_gap_between_bursts() -> None:
    assert _few(_binned([140.0, 199.0, 150.0, 85.0, 145.0, 190.0, 150.0])) == 0.0
    assert _few(_binned([140.0, 199.0, 150.0, 20.0, 145.0, 190.0, 150.0])) > 190.0 / 15.0


def test_a_tick_that_comes_now_says_nothing_of_clumps() -> None:
    even = [33.0, 35.0, 31.0, 36.0, 34.0, 35.0]
    assert _counted([*even, 500.0]).burstiness == _counted([*even, 34.0]).burstiness


def test_the_more_bursts_were_seen_the_less_room_is_kept_above_them() -> None:
    minute = [60.0, 2.0, 45.0, 4.0, 90.0, 3.0] + [0.0] * 6
    few, many = _bursts(_counted([*minute, 0.0])), _bursts(_counted([*minute * 10, 0.0]))
    assert few > 1.5 * many > 1.5 * 204.0 / 30.0


def test_one_burst_much_above_all_others_is_not_kept_room_for_as_a_whole() -> None:
    minute = [60.0, 2.0, 45.0, 4.0, 90.0, 3.0] + [0.0] * 6
    usual = _bursts(_counted([*minute * 12, 0.0]))
    once = _bursts(_counted([*minute * 6, *[3.0 * each for each in minute], *minute * 5, 0.0]))
    assert usual < once < 3.0 * usual


def test_a_look_in_which_nothing_was_generated_says_nothing_of_speed() -> None:
    known = EngineSpeed(30.0, 20.0)
    assert update_engine_speed(known, (), _POOL, 5.0) == known
    assert update_engine_speed(known, (TokenGapSample(0.0, 500.0, 0.0, 0.0),), _POOL, 5.0) == known
