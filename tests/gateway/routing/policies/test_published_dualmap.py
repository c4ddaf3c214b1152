"""DualMap's choices, as its paper and its public code make them.

Source: arXiv 2602.06502.

- SLO-aware routing: the candidate with more reuse, unless its TTFT exceeds the objective; then the
  smaller TTFT. With equal reuse, the less loaded one.
- Rebalancing: by benefit = TTFT here - TTFT there > 0.

Of the public code: the switch at ``int(ttft_slo / 2 / tpct)`` pending tokens and the heap by
(-hit tokens, arrival). Its trigger is pending work over the objective, or an oldest request of
3 s. It falls back to the instance ``(i + 1) % n``.
"""

from collections.abc import Sequence

import pytest

from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.policies.policy_input import AssignedRequest, PolicyInput
from fairlead_gateway.routing.policies.published_dualmap import QueuedAssignment, choose, queue_sort_key, rebalance

SLO = 5.0


def question(*options: Candidate, homes: tuple[str, ...] = ("a", "b"), request: str = "r") -> PolicyInput:
    return PolicyInput(request, list(options), homes=homes, objective_seconds=SLO)


def home(name: str, *, hit: float = 0.0, backlog: float = 0.0, own: float = 1.0, tokens: float = 0.0) -> Candidate:
    return Candidate(EndpointLoad(name, 0, 0, backlog, tokens), 430_000, own, hit)


@pytest.mark.parametrize(
    ("a", "b", "chosen"),
    [
        (home("a", hit=512, backlog=1.0), home("b"), "a"),
        (home("a"), home("b", hit=512, backlog=1.4), "b"),
        # 1.5 + 1 s is exactly half the objective; compared with >, the hit still counts.
        (home("a", hit=512, backlog=1.5), home("b"), "a"),
        (home("a", hit=512, backlog=1.51), home("b"), "b"),
        # Both are over: the sooner one wins, whatever is cached.
        (home("a", hit=4_096, backlog=9.0, own=0.2), home("b", backlog=8.0), "b"),
        (home("a", hit=4_096, backlog=8.0, own=0.2), home("b", backlog=8.0), "a"),
        # Equal reuse: the less loaded.
        (home("a", hit=512, tokens=9_000), home("b", hit=512, tokens=8_000), "b"),
    ],
)
def test_the_longer_match_wins_unless_it_takes_half_the_objective(a: Candidate, b: Candidate, chosen: str) -> None:
    assert choose(question(a, b)).chosen == chosen


def test_only_the_homes_are_candidates() -> None:
    idle = home("c", hit=9_000, own=0.0)
    decision = choose(question(home("a", backlog=9.0), home("b", backlog=9.5), idle))
    assert decision.chosen == "a"
    assert {item.id: item.why for item in decision.rejected}["c"] == "not compared by this rule"


def test_a_full_tie_is_drawn_for_each_request_and_drawn_alike_every_time() -> None:
    drawn = [choose(question(home("a"), home("b"), request=f"r{n}")).chosen for n in range(200)]
    assert drawn == [choose(question(home("a"), home("b"), request=f"r{n}")).chosen for n in range(200)]
    assert 60 < drawn.count("a") < 140


def test_a_single_home_is_taken_whatever_its_load() -> None:
    assert choose(question(home("a", backlog=99.0), homes=("a",))).chosen == "a"


def test_the_decision_says_which_branch_decided_and_what_the_homes_were_predicted() -> None:
    decision = choose(question(home("a", hit=512, backlog=3.0), home("b")))
    assert (decision.rule, decision.home) == ("dualmap", True)
    assert decision.reason == "the home with the longer match would take 4s, over 2.5s"
    assert decision.inputs["a/predicted_ttft_seconds"].value == 4.0
    assert decision.rejected[0].why == "predicted_ttft_seconds 4 against 1"


def test_queues_are_sorted_by_match_and_then_by_arrival() -> None:
    queue = [("early", 1.0, 0.0), ("late hit", 9.0, 512.0), ("hit", 3.0, 512.0), ("next", 2.0, 0.0)]
    requests = [RouteRequest(name, PrefixChain((), (), 0), 1.0) for name, _, _ in queue]
    stays = [AssignedRequest(request, *at, 1.0, SLO) for request, (_, *at) in zip(requests, queue, strict=True)]
    assert [stay.id for stay in sorted(stays, key=queue_sort_key)] == ["hit", "late hit", "early", "next"]


def queued_assignment(
    name: str, *, arrival: float = 0.0, twin: str | None = "b", **at: tuple[float, float]
) -> QueuedAssignment:
    return QueuedAssignment(name, arrival, twin, at)


def moves(here: Sequence[QueuedAssignment], pending: dict[str, float], now: float = 1.0) -> list[tuple[str, str]]:
    return rebalance({"a": here}, pending, objective_seconds=SLO, now=now)


def test_nothing_moves_while_queue_and_waits_are_short() -> None:
    assignment = queued_assignment("x", a=(0.0, 1.0), b=(0.0, 1.0))
    assert moves([assignment], {"a": 3.9, "b": 0.0}) == []
    assert moves([assignment], {"a": 4.1, "b": 0.0}) == [("x", "b")]


def test_a_wait_of_three_seconds_rebalances_the_queue() -> None:
    assignment = queued_assignment("x", a=(0.0, 1.0), b=(0.0, 0.5))
    assert moves([assignment], {"a": 0.0, "b": 0.0}, now=2.9) == []
    assert moves([assignment], {"a": 0.0, "b": 0.0}, now=3.0) == [("x", "b")]


def test_no_move_without_a_gain() -> None:
    assignment = queued_assignment("x", a=(512.0, 0.2), b=(0.0, 2.0), c=(0.0, 2.0))
    assert moves([assignment], {"a": 6.0, "b": 4.2, "c": 4.2}) == []
    assert moves([assignment], {"a": 6.0, "b": 4.1, "c": 4.2}) == [("x", "b")]


def test_a_twin_that_is_as_full_is_passed_over_for_the_instance_behind() -> None:
    assignment = queued_assignment("x", twin="c", a=(512.0, 1.0), b=(0.0, 2.0), c=(512.0, 1.0))
    assert moves([assignment], {"a": 9.0, "b": 0.0, "c": 6.0}) == [("x", "b")]
    assert moves([assignment], {"a": 9.0, "b": 0.0, "c": 4.0}) == [("x", "c")]


def test_the_last_instance_has_the_first_behind_it() -> None:
    assignment = queued_assignment("x", twin=None, b=(0.0, 1.0), a=(0.0, 1.0))
    assert rebalance({"b": [assignment]}, {"a": 0.0, "b": 9.0}, objective_seconds=SLO, now=0.0) == [("x", "a")]


def test_the_largest_gain_goes_first_and_each_move_counts_for_the_next() -> None:
    # The queue of a, by arrival: x, y, z of 2 s each, which begin at 4, 6, 8. b is empty.
    ones = [queued_assignment(name, arrival=number, a=(0.0, 2.0), b=(0.0, 2.0)) for number, name in enumerate("xyz")]
    # z gains 8 s. Then y, which arrived earlier, gains 6. x is before both and still gains 4 s.
    assert moves(ones, {"a": 4.0, "b": 0.0}) == [("z", "b"), ("y", "b"), ("x", "b")]
    # Behind 3 s of b's own, x gains 1 s; behind 4 s, nothing.
    assert moves(ones, {"a": 4.0, "b": 3.0}) == [("z", "b"), ("y", "b"), ("x", "b")]
    assert moves(ones, {"a": 4.0, "b": 4.0}) == [("z", "b"), ("y", "b")]


def test_a_longer_match_at_the_other_home_goes_before_its_queue() -> None:
    waiting = queued_assignment("w", twin="a", b=(0.0, 4.0), a=(0.0, 4.0))
    assignment = queued_assignment("x", a=(0.0, 3.0), b=(4_096.0, 0.1))
    rebalanced = rebalance({"a": [assignment], "b": [waiting]}, {"a": 5.0, "b": 1.0}, objective_seconds=SLO, now=0.0)
    assert rebalanced == [("x", "b")]
