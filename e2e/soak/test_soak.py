"""The soak: engines die, gateways restart, garbage comes in, a million requests pass. A few minutes
of it here; ``make soak`` does it as often as the bar says and writes bench/results/soak.json (see
e2e/soak)."""

import asyncio
from pathlib import Path

import pytest

from e2e.soak import gateway_restarts, keyed_pairs, scenarios, stream_kills
from e2e.soak.gateway_processes import FULL

pytestmark = [pytest.mark.timeout(2_400), pytest.mark.alone]


def test_engines_that_die_under_load_lose_no_request_that_had_not_started(tmp_path: Path) -> None:
    assert asyncio.run(scenarios.run_engine_kills(tmp_path)) == []


def test_streams_that_must_not_go_on_end_with_the_error_event_of_their_dialect(tmp_path: Path) -> None:
    assert asyncio.run(stream_kills.run_stream_kills(tmp_path, resumes=False)) == []


def test_sampled_streams_of_all_kinds_go_on(tmp_path: Path) -> None:
    assert asyncio.run(stream_kills.run_stream_kills(tmp_path)) == []


def test_gateways_that_are_restarted_one_after_the_other_make_no_errors(tmp_path: Path) -> None:
    assert asyncio.run(gateway_restarts.run_restarts(tmp_path)) == []


def test_streams_that_outlast_a_drain_are_not_cut_silently(tmp_path: Path) -> None:
    assert asyncio.run(gateway_restarts.run_drains(tmp_path)) == []


@pytest.mark.skipif(not FULL, reason="ten minutes")
def test_streams_of_ten_minutes_end_whole_while_gateways_restart(tmp_path: Path) -> None:
    assert asyncio.run(gateway_restarts.run_long(tmp_path)) == []


def test_equal_idempotency_keys_at_two_gateways_that_are_killed(tmp_path: Path) -> None:
    assert asyncio.run(keyed_pairs.run_keyed_pairs(tmp_path)) == []


def test_malformed_requests_make_no_5xx_no_stall_and_no_growth(tmp_path: Path) -> None:
    assert asyncio.run(scenarios.run_malformed(tmp_path)) == []


def test_many_requests_are_answered_whole_and_leave_memory_as_it_was(tmp_path: Path) -> None:
    assert asyncio.run(scenarios.run_volume(tmp_path)) == []


@pytest.mark.skipif(not FULL, reason="seven minutes")
def test_limits_of_tenants_hold_in_each_minute_whatever_dies(tmp_path: Path) -> None:
    assert asyncio.run(scenarios.run_tenant_limits(tmp_path)) == []
