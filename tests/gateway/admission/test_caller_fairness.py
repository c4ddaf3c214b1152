"""Callers under overload: one below its share loses nothing to a flood."""

import random
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_gateway.admission.admission_policy import AdmissionAction, AdmissionPolicy
from fairlead_gateway.admission.fair_share import LAG_SECONDS, SAVED_SECONDS, FairShare
from fairlead_gateway.admission.kv_capacity import HOLD_SECONDS, PAUSE_SECONDS, EngineLoad
from fairlead_gateway.admission.request_queue import QUANTUM_SECONDS, TIER_WEIGHTS, RequestQueue
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_testing.gateway.caller_overload import CallerOverload, admission_request, queued_request


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.45])
def test_flood_takes_nothing_from_a_caller_below_its_share(rate: float) -> None:
    overload = CallerOverload(Limits(), {"flood": 5.0, "steady": rate})
    overload.run(600.0)
    assert overload.lost_share("steady") <= 0.02
    waits = overload.waits["steady"]
    assert max(waits[len(waits) // 2 :]) <= 5.0  # the flood had filled the engine before it began
    assert overload.served["flood"] + overload.served["steady"] >= 590


@pytest.mark.parametrize("bounds", [{"queued_requests": 10}, {"queued_bytes": 1_000}])
def test_flood_takes_no_place_in_the_queue_from_a_caller_below_its_share(bounds: dict[str, int]) -> None:
    overload = CallerOverload(replace(Limits(), **bounds), {"flood": 5.0, "steady": 0.3})
    overload.run(600.0)
    assert overload.lost_share("steady") <= 0.02
    assert len(overload.policy) == 10


def test_two_floods_share_equally_whatever_their_rates() -> None:
    overload = CallerOverload(Limits(), {"large": 9.0, "small": 3.0})
    overload.run(600.0)
    assert overload.served["large"] == pytest.approx(overload.served["small"], abs=12)


def test_overdue_request_of_a_served_caller_waits_for_the_one_with_credit() -> None:
    queue = RequestQueue()
    for number in range(4):
        queue.add(queued_request(f"f{number}", 0.0, 1.0, 1.0, tenant="flood"))
    queue.add(queued_request("s0", 9.0, 1.0, 1.0, tenant="steady"))
    rules = []
    while (turn := queue.peek(9.5)) is not None:
        queue.take(turn)
        rules.append((turn.request.id, turn.rule))
    assert rules[:3] == [("f0", "overdue"), ("s0", "late"), ("f1", "overdue")]


def test_request_that_joins_others_of_its_caller_costs_it_no_credit() -> None:
    share = FairShare()
    queue = RequestQueue(share)
    queue.add(queued_request("f", 0.0, 100.0, 1.0, tenant="flood"))
    queue.add(queued_request("s0", 0.0, 100.0, 1.0, tenant="steady"))
    share.charge("flood", 10.0, 1.0)
    queue.add(queued_request("s1", 0.0, 100.0, 1.0, tenant="steady"))
    assert share.served_seconds("steady") + QUANTUM_SECONDS < share.served_seconds("flood")


def heap_entries(queue: RequestQueue) -> int:
    lanes = [lane for lanes in queue._tiers.values() for lane in lanes.values()]
    return sum(len(lane.feasible) + len(lane.late) for lane in lanes) + sum(map(len, queue._overdue.values()))


@pytest.mark.parametrize("served", [False, True])
def test_requests_that_left_the_queue_are_not_kept_until_their_deadline(served: bool) -> None:
    queue = RequestQueue()
    for number in range(50):
        queue.add(queued_request(f"stays{number}", 0.0, 1_800.0, 0.1, tenant="steady"))
    for number in range(5_000):
        queue.add(queued_request(f"r{number}", 0.0, 1_800.0, 0.1, tenant="flood", is_long=number % 2 == 0))
        turn = queue.peek(1.0) if served else None
        if turn is not None:
            queue.take(turn)
        else:
            assert queue.remove(f"r{number}")
    live = len(queue)
    assert heap_entries(queue) <= 2 * (2 * live + 33)
    left = 0
    while (turn := queue.peek(1.0)) is not None:
        queue.take(turn)
        left += 1
    assert left == live


def test_credits_of_callers_that_left_are_not_kept() -> None:
    share = FairShare()
    share.on_join("steady")
    for number in range(5_000):
        share.on_join(f"caller{number}")
        share.charge(f"caller{number}", 0.1, 1.0)
        share.charge("steady", 0.1, 1.0)
        share.on_leave(f"caller{number}")
    assert len(share._served) <= 130
    share.on_join("back")
    assert share.served_seconds("back") == share.served_seconds("steady") - SAVED_SECONDS


def test_credit_that_a_caller_has_used_up_is_kept_while_it_is_away() -> None:
    share = FairShare()
    share.on_join("steady")
    share.charge("flood", 1_000.0, 1.0)
    for number in range(5_000):
        share.on_join(f"caller{number}")
        share.charge("steady", 0.1, 1.0)
        share.on_leave(f"caller{number}")
    assert share.served_seconds("flood") == 1_000.0


def test_prompts_as_large_as_a_cache_stop_other_callers_for_seconds_only() -> None:
    policy, engines = AdmissionPolicy(Limits()), [EngineLoad("e", 0.0, 0.3, 100_000.0)]

    def send(name: str, caller: str, tokens: float, now: float) -> AdmissionAction:
        request = admission_request(name, now, 5.0, tokens * 1e-4, tenant=caller, tokens=tokens)
        return policy.admit(request, engines, now).action

    assert send("stream", "greedy", 1_000.0, 0.0) is AdmissionAction.ADMIT
    stream = RouteRequest("stream", PrefixChain((), (), 0), 1_000.0, None)
    policy.kv_capacity.on_dispatch(stream, "e", 1_000.0, None, 0.0)
    waits: list[float] = []
    for second in range(240):
        policy.take_expired(1, second)
        if second % 60 == 0:
            send(f"large {second}", "greedy", 99_000.0, second)
        if send(f"small {second}", "steady", 100.0, second) is AdmissionAction.ADMIT:
            waits.append(0.0)
        while (released := policy.release_next(engines, second)) is not None:
            waits.append(released.waited_seconds)
    assert len(waits) == 240
    assert max(waits) <= HOLD_SECONDS
    assert sum(wait > 0.0 for wait in waits) <= 240 * HOLD_SECONDS / PAUSE_SECONDS


def served_under_overload(classes: dict[str, tuple[int, float]], turns: int) -> Counter[Hashable]:
    """Serves one-second requests of callers that always wait, by tier and weight."""
    queue, served = RequestQueue(), Counter[Hashable]()
    for number in range(turns):
        for caller, (tier, weight) in classes.items():
            weight *= TIER_WEIGHTS[tier]
            queue.add(
                queued_request(f"{caller}{number}", float(number), 5.0, 1.0, tier=tier, tenant=caller, weight=weight)
            )
        turn = queue.peek(float(number))
        assert turn is not None
        queue.take(turn)
        served[turn.request.tenant] += 1
    return served


def test_under_overload_weights_hold_and_no_tier_starves() -> None:
    classes = {"live": (0, 1.0), "heavy": (1, 3.0), "light": (1, 1.0), "batch": (2, 1.0)}
    served = served_under_overload(classes, 1_410)
    assert served["live"] == pytest.approx(1_000, rel=0.05)
    assert served["heavy"] == pytest.approx(300, rel=0.05)
    assert served["light"] == pytest.approx(100, rel=0.05)
    assert served["batch"] == pytest.approx(10, abs=2)


def test_service_gap_of_backlogged_callers_stays_within_the_bound() -> None:
    draw, queue, served = random.Random(4), RequestQueue(), {"flood": 0.0, "steady": 0.0}
    largest = 3.0
    for number in range(400):
        for caller, most in (("flood", largest), ("steady", 0.1)):
            queue.add(queued_request(f"{caller}{number}", 0.0, 5.0, draw.uniform(0.01, most), tenant=caller))
    while len(queue._tenants) == 2:
        turn = queue.peek(100.0)
        assert turn is not None
        queue.take(turn)
        served[str(turn.request.tenant)] += turn.request.prefill_seconds
        assert abs(served["flood"] - served["steady"]) <= largest + QUANTUM_SECONDS


def test_service_that_is_not_queued_here_counts_against_its_caller() -> None:
    share, alone = FairShare(reports=True), FairShare()
    for counted in (share, alone):
        counted.on_join("flood")
        counted.on_join("steady")
    share.charge("flood", 4.0, 2.0)
    share.settle("flood", -1.0, 2.0)
    assert share.take_unreported() == {"flood": 1.5}
    assert share.take_unreported() == {}
    alone.add_reported({"flood": 1.5, "steady": -9.0})
    assert (alone.served_seconds("flood"), alone.served_seconds("steady")) == (1.5, 0.0)
    assert alone.take_unreported() == {}


def test_caller_that_waits_in_two_queues_is_present_until_it_left_both() -> None:
    share = FairShare()
    share.on_join("steady")
    share.charge("steady", 5.0, 1.0)
    for name in ("flood", "flood"):
        share.on_join(name)
    share.on_leave("flood")
    assert set(share.present()) == {"steady", "flood"}
    share.on_leave("flood")
    share.on_leave("flood")
    assert set(share.present()) == {"steady"}
    assert share.served_seconds("flood") == 5.0 - SAVED_SECONDS


def test_small_share_is_less_than_half_of_what_another_caller_got_lately() -> None:
    share = FairShare()
    assert not share.has_small_share("new"), "nobody was served"
    share.charge("flood", 4.0, 1.0)
    assert share.has_small_share("new")
    assert not share.has_small_share("flood")
    share.charge("steady", 1.9, 1.0)
    share.charge("heavy", 5.9, 3.0)
    assert share.has_small_share("steady")
    assert share.has_small_share("heavy"), "for its weight"
    share.charge("steady", 0.2, 1.0)
    assert not share.has_small_share("steady")


def test_what_other_processes_served_counts_for_shares_and_old_service_fades() -> None:
    share = FairShare()
    share.charge("here", 2.0, 1.0)
    share.add_reported({"there": 9.0})
    assert share.has_small_share("here")
    for _ in range(10):
        share.charge("here", 4.0, 1.0)
    assert share.has_small_share("there"), "its service was long ago"
    assert not share.has_small_share("here")


def test_reports_of_very_many_callers_fill_no_memory() -> None:
    share = FairShare()
    share.on_join("here")
    share.on_join("flood")
    for batch in range(10):
        share.add_reported({f"false-{batch}-{number}": 1e6 for number in range(4_096)})
    assert share.served_seconds("false-0-0") == 1e6
    assert share.served_seconds("false-9-0") == 0.0
    share.charge("late", 3.0, 1.0)
    share.add_reported({"late": 1.0})
    assert share.served_seconds("late") == 4.0, "it is served here"


def test_caller_that_lags_behind_another_that_waits_has_a_small_share() -> None:
    share = FairShare()
    share.charge("ahead", 10.0, 1.0)
    share.charge("behind", 10.0 - LAG_SECONDS - 0.1, 1.0)
    assert not share.has_small_share("behind"), "no other one waits"
    share.on_join("ahead")
    share.on_join("behind")
    assert not share.has_small_share("behind"), "it saved less while it did not wait"
    share.charge("ahead", LAG_SECONDS, 1.0)
    assert share.has_small_share("behind")
    assert not share.has_small_share("ahead")
    for number in range(40):
        share.on_join(number)
    assert not share.has_small_share("behind"), "so many would take too long to compare"


def test_caller_with_a_small_share_may_wait_inside_a_full_instance() -> None:
    def admits(
        caller: str,
        free: float,
        *,
        kv_tokens: float | None = None,
        tokens: float = 100.0,
        other_tokens: float = 1.0,
        usable_share: float = 1.0,
    ) -> bool:
        policy = AdmissionPolicy(Limits())
        engine = EngineLoad("e", 0.0, 0.3, kv_tokens, other_tokens)
        engine.withhold_memory(usable_share)
        engine.free_sequences = free
        policy._queue.charge(queued_request("f", 0.0, 5.0, 3.0, tenant="flood"))
        if kv_tokens is not None:
            begun = RouteRequest("f", PrefixChain((), (), 0), kv_tokens, None)
            policy.kv_capacity.on_dispatch(begun, "e", kv_tokens, None, 0.0)
        request = admission_request("r", 0.0, 5.0, 0.01, tenant=caller, tokens=tokens)
        return policy.admit(request, [engine], 0.0).action is AdmissionAction.ADMIT

    assert [admits("flood", free) for free in (1.0, 0.0, -1.0)] == [True, False, False]
    assert [admits("steady", free) for free in (1.0, 0.0, -1.0, -2.0)] == [True, True, True, False]
    assert not admits("steady", 0.0, other_tokens=0.0), "no other process takes what becomes free"
    assert not admits("flood", 9.0, kv_tokens=10_000.0)
    assert not admits("steady", 9.0, kv_tokens=10_000.0, tokens=1_000.0, other_tokens=0.0)
    assert admits("steady", 9.0, kv_tokens=10_000.0, tokens=1_000.0)
    assert not admits("steady", 9.0, kv_tokens=10_000.0, tokens=3_000.0), "it would stop the instance's queue"
    assert admits("steady", 9.0, kv_tokens=10_000.0, tokens=1_000.0, usable_share=0.8), "others may use the rest"
    assert not admits("steady", 9.0, kv_tokens=10_000.0, tokens=1_000.0, other_tokens=1_001.0, usable_share=0.8)
