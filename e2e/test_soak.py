"""The soak: engines die, gateways restart, garbage comes in, a million requests pass. A few minutes of it here; ``make soak`` does
it as often as the bar says and writes bench/results/soak.json (see e2e/soak)."""

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from soak import hostile, kills, restarts, volume

pytestmark = [pytest.mark.timeout(2_400), pytest.mark.alone]


def test_engines_that_die_under_load_lose_no_request_that_had_not_started(tmp_path: Path) -> None:
    assert asyncio.run(kills.run(tmp_path)) == []


def test_gateways_that_are_restarted_one_after_the_other_make_no_errors(tmp_path: Path) -> None:
    assert asyncio.run(restarts.run(tmp_path)) == []


def test_malformed_requests_make_no_5xx_no_stall_and_no_growth(tmp_path: Path) -> None:
    assert asyncio.run(hostile.run(tmp_path)) == []


def test_many_requests_are_answered_whole_and_leave_memory_as_it_was(tmp_path: Path) -> None:
    assert asyncio.run(volume.run(tmp_path)) == []
