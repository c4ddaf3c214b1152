"""The whole operator with a real API server that fails for a while, or dies with the operator.

In `make nightly`, it fails for a minute.
"""

from pathlib import Path

import pytest

from fairlead_bench.operator.fault_trials import (
    run_api_outage,
    run_crash_points,
    run_handovers,
    run_silent_api,
    run_two_leaders,
)
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.pytest_hooks.nightly import shortened

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(400)]


async def test_handover_between_operators_writes_nothing(api_server: ApiServer, tmp_path: Path) -> None:
    assert (await run_handovers(api_server, 0.0, tmp_path)).broken == []


async def test_two_leaders_at_once_write_nothing(api_server: ApiServer, tmp_path: Path) -> None:
    assert (await run_two_leaders(api_server, shortened(60.0, 6.0), tmp_path)).broken == []


async def test_returning_api_server_finds_everything_in_place(api_server: ApiServer, tmp_path: Path) -> None:
    assert (await run_api_outage(api_server, shortened(60.0, 1.0), tmp_path)).broken == []


@pytest.mark.nightly
async def test_models_missed_by_a_silent_watch_are_found(api_server: ApiServer, tmp_path: Path) -> None:
    assert (await run_silent_api(api_server, tmp_path, children=False)).broken == []


@pytest.mark.nightly
async def test_operator_killed_around_its_writes_reaches_the_same_end(api_server: ApiServer, tmp_path: Path) -> None:
    report = await run_crash_points(api_server, ("create",), 2, tmp_path)
    assert (report.broken, report.figures["kills"]) == ([], 3)
