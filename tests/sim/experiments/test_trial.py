"""Trials: capacity, requests held in front of engines, and fleet events during a run."""

import math

import pytest

from fairlead_sim.experiments.trial import GoalMissed, GoalWatch, Trial, search_capacity
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind, scale_out_and_in
from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.fleet.results import WITHOUT_GUARD, CapacityGoal, without_warmup
from fairlead_sim.fleet.simulation import ENGINE_LOST
from fairlead_sim.gateways.late_binding import REBALANCE_SECONDS, LateBindingQueue
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import TraceRequest, at_rate
from fairlead_testing.pytest_hooks.nightly import shortened

ENGINE = "sim-{}/0/0"


@pytest.mark.parametrize("true", [0.9, 7.0, 25.0, 26.0, 333.0])
def test_capacity_is_found_from_either_side_within_the_tolerance(true: float) -> None:
    capacity = search_capacity(lambda rate: rate <= true, 25.0, tolerance=0.01)
    assert capacity <= true <= capacity * 1.01


def test_a_fleet_that_always_fails_or_always_passes_ends_the_search() -> None:
    assert search_capacity(lambda _: False, 25.0) == 0.0
    assert search_capacity(lambda _: True, 25.0) > 25.0


def request(number: int, at: float) -> TraceRequest:
    return TraceRequest(f"r{number}", at, 512, 8, (number,), None)


@pytest.mark.parametrize("late", [8, 9, 10])
def test_a_run_ends_as_soon_as_its_goal_is_missed(late: int) -> None:
    """10 of 100 requests are warm-up; 9 of the other 90 may be late."""
    requests = [request(number, float(number)) for number in range(100)]
    judge = GoalWatch(WITHOUT_GUARD, requests)

    def watch_all() -> None:
        for number, queued in enumerate(requests):
            wait = 6.0 if number < 10 or number >= 100 - late else 1.0
            flight = InflightRequest(queued)
            flight.first_token_at = queued.arrival + wait
            judge(flight, flight.first_token_at)

    if late > 9:
        with pytest.raises(GoalMissed):
            watch_all()
    else:
        watch_all()


@pytest.mark.parametrize("preset", shortened(["dual-hash", "dualmap", "round-robin"], ["dual-hash", "round-robin"]))
def test_an_answer_that_comes_early_is_the_answer_of_the_whole_run(preset: str) -> None:
    requests = FAMILIES["agents"](shortened(400, 200), seed=1)
    trial, bar = Trial(preset, engines=3), CapacityGoal()
    answers = set()
    for rate in (2.0, 12.0, 90.0):
        scaled = at_rate(requests, rate)
        answers.add(trial.meets_goal(scaled, bar))
        assert trial.meets_goal(scaled, bar) == bar.is_met(without_warmup(trial.run(scaled)))
    assert answers == {True, False}


class Late:
    """A preset that orders by id and makes prepared moves."""

    def __init__(self, *moves: tuple[str, str]) -> None:
        self.moves = list(moves)
        self.asked: list[dict[str, tuple[str, ...]]] = []

    def queue_sort_key(self, request_id: str) -> tuple[float, float, str]:
        return 0.0, 0.0, request_id

    def rebalance(self, held: object, now: float) -> list[tuple[str, str]]:
        assert isinstance(held, dict)
        self.asked.append(held)
        moves, self.moves = self.moves, []
        return moves


def test_an_engine_receives_the_next_request_when_the_last_has_begun() -> None:
    sent: list[tuple[str, str]] = []
    holding = LateBindingQueue(Late(), lambda queued, to, _: sent.append((queued, to)), lambda *_: None)
    assert holding.assign("r1", "a", 0.0)
    assert holding.assign("r2", "b", 0.0)
    assert not holding.assign("r4", "a", 0.1)
    assert not holding.assign("r3", "a", 0.2)
    holding.on_first_token("r2", 0.3)
    assert sent == []
    holding.on_first_token("r1", 0.4)
    assert sent == [("r3", "a")]
    holding.on_first_token("r4", 0.5)  # its client left while it was held
    holding.on_first_token("r3", 0.6)
    assert sent == [("r3", "a")]
    assert holding.queued() == []


def test_an_engine_receives_requests_while_its_queue_has_room() -> None:
    sent: list[tuple[str, str]] = []
    holding = LateBindingQueue(
        Late(), lambda queued, to, _: sent.append((queued, to)), lambda *_: None, max_backlog_seconds=0.1
    )
    assert holding.assign("r1", "a", 0.0, 0.06)
    assert holding.assign("r2", "a", 0.0, 0.06)
    assert not holding.assign("r3", "a", 0.0, 0.06)
    assert not holding.assign("r4", "a", 0.0, 0.06)
    holding.on_first_token("r1", 0.1)
    assert sent == [("r3", "a")]


def test_moves_are_requested_while_requests_are_held() -> None:
    sent: list[tuple[str, str]] = []
    due = []
    late = Late(("r2", "b"))
    holding = LateBindingQueue(
        late, lambda queued, to, _: sent.append((queued, to)), lambda at, act: due.append((at, act))
    )
    holding.assign("r1", "a", 0.0)
    holding.assign("r2", "a", 0.0)
    holding.assign("r3", "a", 0.0)
    ((at, act),) = due
    assert at == REBALANCE_SECONDS
    act(at)
    assert late.asked == [{"a": ("r2", "r3")}]
    assert sent == [("r2", "b")]
    assert holding.retain(["b"]) == ["r3"]
    due[1][1](2 * REBALANCE_SECONDS)
    assert len(late.asked) == 1  # nothing is held, so the core is not called
    assert len(due) == 2


@pytest.mark.parametrize("preset", ["dual-hash", "dualmap"])
def test_every_request_is_answered_once_under_all_fleet_events(preset: str) -> None:
    requests = at_rate(FAMILIES["tenants"](shortened(600, 480), seed=2), 30.0)
    script = (
        FleetEvent(3.0, FleetEventKind.LOSE, ENGINE.format(0)),
        FleetEvent(6.0, FleetEventKind.SLOW, ENGINE.format(1), 3.0),
        *scale_out_and_in(4, 6, 8.0, 14.0),
        FleetEvent(9.0, FleetEventKind.LOSE, ENGINE.format(0)),  # it is gone already
    )
    served = Trial(preset, engines=4, events=script).run(requests)
    assert [reply.id for reply in served] == [reply.id for reply in requests]
    whole = [reply for reply in served if reply.error is None]
    assert len(whole) > 0.9 * len(requests)
    assert {ENGINE.format(4), ENGINE.format(5)} <= {reply.instance for reply in whole}
    assert all(reply.output_tokens > 0 and reply.ttft_seconds is not None for reply in whole)
    for reply in served:  # who was lost or drained gets nothing more
        if reply.instance == ENGINE.format(0):
            assert reply.arrival <= 3.0
        if reply.instance in (ENGINE.format(4), ENGINE.format(5)) and reply.retries == 0:
            assert reply.arrival <= 14.0
            assert reply.arrival + (reply.ttft_seconds or math.inf) >= 8.0
    assert math.isfinite(max(reply.finish or 0.0 for reply in served))


def test_an_engine_lost_in_the_step_of_a_last_token_loses_that_answer() -> None:
    """The engine has finished the request by then, but the answer is not delivered."""
    (whole,) = Trial(engines=1).run([request(0, 0.0)])
    between = (whole.token_times[-2] + whole.token_times[-1]) / 2
    (cut,) = Trial(engines=1, events=(FleetEvent(between, FleetEventKind.LOSE, ENGINE.format(0)),)).run(
        [request(0, 0.0)]
    )
    assert cut.error == ENGINE_LOST
    assert list(cut.token_times) == list(whole.token_times[:-1])
