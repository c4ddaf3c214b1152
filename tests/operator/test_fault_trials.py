"""The whole operator before a real API server that fails it, for seconds; `make operator-soak` does the same for minutes."""

import asyncio
import sys
from pathlib import Path

import pytest

from fairlead_testing.kube.api_server import ApiServer, api_server_for_test

_BENCH = Path(__file__).parents[2] / "bench"
sys.path[:0] = [str(_BENCH / "operator"), str(_BENCH)]

from operatorbench.trials.gone import away, silent  # noqa: E402 - found through the line above
from operatorbench.trials.kills import kills  # noqa: E402
from operatorbench.trials.two import both_at_once, handing_over  # noqa: E402

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(400)]


def test_two_operators_that_hand_over_write_nothing(api_server: ApiServer, tmp_path: Path) -> None:
    assert asyncio.run(handing_over(api_server, 0.0, tmp_path)).broken == []


def test_two_operators_that_lead_at_once_write_nothing(api_server: ApiServer, tmp_path: Path) -> None:
    assert asyncio.run(both_at_once(api_server, 10.0, tmp_path)).broken == []


def test_an_api_server_that_was_away_finds_everything_in_place(tmp_path: Path) -> None:
    with api_server_for_test(tmp_path / "run") as server:  # its own: others' tests need theirs
        assert asyncio.run(away(server, 3.0, tmp_path)).broken == []


def test_models_that_a_silent_watch_missed_are_found(api_server: ApiServer, tmp_path: Path) -> None:
    assert asyncio.run(silent(api_server, tmp_path, children=False)).broken == []


def test_an_operator_that_is_killed_around_its_writes_comes_to_the_same_end(
    api_server: ApiServer, tmp_path: Path
) -> None:
    found = asyncio.run(kills(api_server, ("create",), 2, tmp_path))
    assert (found.broken, found.figures["kills"]) == ([], 3)
