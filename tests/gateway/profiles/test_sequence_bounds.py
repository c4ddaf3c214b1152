"""Bounds on the requests that an engine computes at a time, learned from its reports."""

from dataclasses import replace
from itertools import pairwise

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Fleet
from fairlead.fleet.signals import EngineSignals
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.profiles.messages import ProfileUpdate
from fairlead_gateway.profiles.supervisor import (
    MAX_TRY_SECONDS,
    MIN_TRY_SECONDS,
    EngineCapacities,
    ProfilingService,
    SequenceBound,
)
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of

ENGINE = "e-0/0/0"
SCRAPE_SECONDS = 2.0


def fleet(max_sequences: int | None) -> Fleet:
    plain = fleet_of(["http://127.0.0.1:1"])
    stated = None if max_sequences is None else replace(builtin_profile("tiny-cpu"), max_sequences=max_sequences)
    return replace(
        plain,
        instances={MODEL_KEY: tuple(replace(instance, profile=stated) for instance in plain.instances[MODEL_KEY])},
    )


def observe(bound: SequenceBound, *reports: tuple[float | None, float | None]) -> list[int | None]:
    """Returns the bound after each report of running and waiting requests."""
    values = []
    for number, (running, waiting) in enumerate(reports):
        bound.observe(running, waiting, number * SCRAPE_SECONDS)
        values.append(bound.value)
    return values


def engine_of(bound: SequenceBound, able: int, seconds: float) -> list[float]:
    """Runs an engine that has as many requests as the bound allows; returns when it had a queue."""
    queued: list[float] = []
    for number in range(int(seconds / SCRAPE_SECONDS)):
        sent = bound.value or able
        if sent > able:
            queued.append(number * SCRAPE_SECONDS)
        bound.observe(min(sent, able), max(0, sent - able), number * SCRAPE_SECONDS)
    return queued


def test_without_a_profile_two_reports_of_a_queue_say_how_many_ran() -> None:
    assert observe(SequenceBound(None), (8, 0), (8, 3)) == [None, None]
    assert observe(SequenceBound(None), (7, 3), (8, 5)) == [None, 8], "the most that ran meanwhile"
    assert observe(SequenceBound(None), (7, 3), (8, 0), (5, 2)) == [None, None, None], "not two in a row"
    assert observe(SequenceBound(None), (0, 3), (0, 3)) == [None, 1], "an engine can compute one"


def test_what_the_profile_states_is_not_lowered() -> None:
    assert observe(SequenceBound(16), (8, 3), (8, 3), (8, 3)) == [16, 16, 16], "memory may be the reason"


@pytest.mark.parametrize("report", [(None, 4), (8, None), (None, None)])
def test_missing_values_teach_nothing(report: tuple[float | None, float | None]) -> None:
    assert observe(SequenceBound(None), report, report, report) == [None] * 3
    assert observe(SequenceBound(8), report, report, report) == [8] * 3


def test_impossible_reports_make_no_bound_that_fits_into_no_message() -> None:
    assert observe(SequenceBound(None), (1e308, 5), (1e308, 5)) == [None, 1 << 20]
    bound = SequenceBound(8)
    for number in range(1_000):
        bound.observe(1e300, 0.0, number * SCRAPE_SECONDS)
    assert bound.value == 1 << 20


def test_number_that_is_too_low_grows_to_what_the_engine_can() -> None:
    bound = SequenceBound(256)
    engine_of(bound, able=1_024, seconds=60.0)
    assert 1_024 <= (bound.value or 0) <= 1_280


def test_tries_beyond_what_an_engine_can_become_rare() -> None:
    bound = SequenceBound(8)
    queued = engine_of(bound, able=8, seconds=4_000.0)
    assert bound.value in (8, 9), "a try is one request more"
    pauses = [after - before for before, after in pairwise(queued)]
    assert min(pauses) >= MIN_TRY_SECONDS
    assert pauses[-1] == pytest.approx(MAX_TRY_SECONDS, abs=2 * SCRAPE_SECONDS)
    assert len(queued) * SCRAPE_SECONDS < 0.01 * 4_000.0


def test_a_try_that_went_too_far_keeps_what_ran() -> None:
    assert observe(SequenceBound(8), (8, 0), (9, 0), (10, 1)) == [9, 11, 10]


def test_an_engine_that_is_not_full_teaches_nothing() -> None:
    assert observe(SequenceBound(8), *[(7, 0)] * 5) == [8] * 5


def test_bounds_of_a_fleet_come_and_go_and_begin_anew_with_another_profile() -> None:
    bounds, full = EngineCapacities(), EngineSignals(running=8, waiting=0)
    assert bounds.observe(ENGINE, full, 0.0) == (None, None), "unknown"
    bounds.update_fleet(fleet(8))
    assert bounds.sequence_bounds() == {ENGINE: 8}
    assert bounds.observe(ENGINE, EngineSignals(running=7, waiting=0), 0.0) == (None, None), "unchanged"
    assert bounds.observe(ENGINE, full, 0.0) == (9, None)
    bounds.update_fleet(fleet(8))
    assert bounds.sequence_bounds() == {ENGINE: 9}
    bounds.update_fleet(fleet(32))
    assert bounds.sequence_bounds() == {ENGINE: 32}
    bounds.update_fleet(fleet(None))
    assert bounds.sequence_bounds() == {}
    bounds.update_fleet(Fleet())
    assert bounds.observe(ENGINE, full, 0.0) == (None, None)


def test_workers_are_told_what_changes() -> None:
    updates: list[ProfileUpdate] = []
    service = ProfilingService(broadcast=updates.append, clock=ManualClock())
    service.update_fleet(fleet(8))
    service.on_signals(ENGINE, EngineSignals(running=4, waiting=0), 0.0)
    service.on_signals(ENGINE, EngineSignals(running=8, waiting=0), 2.0)
    assert updates == [ProfileUpdate({}, {ENGINE: 9})]
