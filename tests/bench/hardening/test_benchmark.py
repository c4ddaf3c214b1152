"""The benchmark of hardening carries the goals that are checked in, and its results meet them."""

import pytest

from fairlead_bench import hardening
from fairlead_bench.hardening import AnswerCost, UnreadResult
from fairlead_bench.large_bodies import IDLE
from fairlead_bench.results import ResultRow, load_goals

GOALS = load_goals("hardening")
MISSED = [hardening._TURN]
"""The threat model states by how much."""
COUNTS = (hardening._FLOOD, hardening._ENDPOINTS, hardening._POISON, hardening._DESCRIPTORS)


def made(*, worse: float) -> list[ResultRow]:
    """Returns the rows of a run at its goals, or worse than them by `worse`."""
    bound = UnreadResult(5_000, 40.0, int(worse), int(400e6 * (1 + worse)), int(30e6 * (1 + worse)), 1.2 * (1 + worse))
    return [
        *hardening.answer_rows({"read": AnswerCost(int(5e6 * (1 + worse)), 0.01 * (1 + worse))}, GOALS),
        *hardening.unread_rows(bound, GOALS),
        *hardening.stream_rows(bound, GOALS),
        *hardening.count_rows(dict.fromkeys(COUNTS, worse), GOALS),
        *hardening.stall_rows({IDLE: 0.0, "body": 0.02 * (1 + worse)}, GOALS),
        *hardening.turn_rows({"attack": 0.02 * (1 + worse)}, GOALS),
    ]


def test_rows_hold_within_their_goals_only() -> None:
    assert {row.metric: row.goal for row in made(worse=0.0) if row.goal} == GOALS
    assert [row.metric for row in made(worse=0.0) if not row.holds] == []
    assert [row.metric for row in made(worse=1.0) if row.holds and row.goal] == []


def test_shares_and_ejections_are_measured() -> None:
    assert hardening.lost_share_of_steady_caller() <= 0.02
    assert hardening.instances_lost_to_endpoints() == 0
    assert hardening.ejections_by_poison_request() == 0
    assert hardening.ejections_without_descriptors() == 0


@pytest.mark.nightly
def test_more_bodies_are_as_large_as_requests_may_be() -> None:
    sizes = [len(body) for _, body in hardening.make_more_bodies(1).values()]
    assert max(sizes) <= 32 * 1024 * 1024
