"""The benchmark of hardening carries the goals that are checked in, and its results meet them."""

import json
from pathlib import Path

import pytest

from fairlead_bench.hardening import benchmark, body_stalls, engine_ejections, fair_shares
from fairlead_bench.hardening.control_answers import AnswerCost
from fairlead_bench.hardening.unread_connections import UnreadResult
from fairlead_bench.large_bodies.benchmark import IDLE
from fairlead_bench.results import ResultRow, load_goals

RESULT = Path(__file__).parents[3] / "bench" / "results" / "hardening.json"
GOALS = load_goals("hardening")
MISSED = [benchmark._TURN]
"""SECURITY.md states by how much."""
COUNTS = (benchmark._FLOOD, benchmark._ENDPOINTS, benchmark._POISON, benchmark._DESCRIPTORS)


def made(*, worse: float) -> list[ResultRow]:
    """Returns the rows of a run at its goals, or worse than them by `worse`."""
    bound = UnreadResult(5_000, 40.0, int(worse), int(400e6 * (1 + worse)), int(30e6 * (1 + worse)), 1.2 * (1 + worse))
    return [
        *benchmark.answer_rows({"read": AnswerCost(int(5e6 * (1 + worse)), 0.01 * (1 + worse))}, GOALS),
        *benchmark.unread_rows(bound, GOALS),
        *benchmark.stream_rows(bound, GOALS),
        *benchmark.count_rows(dict.fromkeys(COUNTS, worse), GOALS),
        *benchmark.stall_rows({IDLE: 0.0, "body": 0.02 * (1 + worse)}, GOALS),
        *benchmark.turn_rows({"attack": 0.02 * (1 + worse)}, GOALS),
    ]


def test_rows_hold_within_their_goals_only() -> None:
    assert {row.metric: row.goal for row in made(worse=0.0) if row.goal} == GOALS
    assert [row.metric for row in made(worse=0.0) if not row.holds] == []
    assert [row.metric for row in made(worse=1.0) if row.holds and row.goal] == []


def test_committed_results_miss_no_goal_but_the_stated_one() -> None:
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    assert {row["metric"]: row["goal"] for row in rows if row["goal"]} == GOALS
    assert [row["metric"] for row in rows if not row["holds"]] == MISSED


def test_shares_and_ejections_are_measured() -> None:
    assert fair_shares.lost_share_of_steady_caller() <= 0.02
    assert fair_shares.instances_lost_to_endpoints() == 0
    assert engine_ejections.ejections_by_poison_request() == 0
    assert engine_ejections.ejections_without_descriptors() == 0


@pytest.mark.nightly
def test_more_bodies_are_as_large_as_requests_may_be() -> None:
    sizes = [len(body) for _, body in body_stalls.make_more_bodies(1).values()]
    assert max(sizes) <= 32 * 1024 * 1024
