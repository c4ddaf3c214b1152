"""Callers under overload: one below its share loses nothing to a flood."""

from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_gateway.admission.fair_share import FairShare
from fairlead_gateway.admission.kv_capacity import EngineLoad
from fairlead_gateway.admission.memory_hold import HOLD_SECONDS, PAUSE_SECONDS
from fairlead_gateway.admission.policy import AdmissionAction, AdmissionPolicy, AdmissionRequest
from fairlead_gateway.admission.request_queue import QUANTUM_SECONDS, QueuedRequest, RequestQueue
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_testing.gateway.caller_overload import CallerOverload


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
        queue.add(QueuedRequest(f"f{number}", 0.0, 1.0, 1.0, tenant="flood"))
    queue.add(QueuedRequest("s0", 9.0, 1.0, 1.0, tenant="steady"))
    rules = []
    while (found := queue.peek(9.5)) is not None:
        queue.take(found)
        rules.append((found.request.id, found.rule))
    assert rules[:3] == [("f0", "overdue"), ("s0", "late"), ("f1", "overdue")]


def test_request_that_joins_others_of_its_caller_costs_it_no_credit() -> None:
    share = FairShare()
    queue = RequestQueue()
    queue._fair_share = share
    queue.add(QueuedRequest("f", 0.0, 100.0, 1.0, tenant="flood"))
    queue.add(QueuedRequest("s0", 0.0, 100.0, 1.0, tenant="steady"))
    share.charge("flood", 10.0, 1.0)
    queue.add(QueuedRequest("s1", 0.0, 100.0, 1.0, tenant="steady"))
    assert share.served_seconds("steady") + QUANTUM_SECONDS < share.served_seconds("flood")


def heap_entries(queue: RequestQueue) -> int:
    lanes = [lane for lanes in queue._tiers.values() for lane in lanes.values()]
    return sum(len(lane.feasible) + len(lane.late) for lane in lanes) + sum(map(len, queue._overdue.values()))


@pytest.mark.parametrize("served", [False, True])
def test_requests_that_left_the_queue_are_not_kept_until_their_deadline(served: bool) -> None:
    queue = RequestQueue()
    for number in range(50):
        queue.add(QueuedRequest(f"stays{number}", 0.0, 1_800.0, 0.1, tenant="steady"))
    for number in range(5_000):
        queue.add(QueuedRequest(f"r{number}", 0.0, 1_800.0, 0.1, tenant="flood", is_long=number % 2 == 0))
        found = queue.peek(1.0) if served else None
        if found is not None:
            queue.take(found)
        else:
            assert queue.remove(f"r{number}")
    live = len(queue)
    assert heap_entries(queue) <= 2 * (2 * live + 33)
    left = 0
    while (found := queue.peek(1.0)) is not None:
        queue.take(found)
        left += 1
    assert left == live


def test_credits_of_callers_that_left_are_not_kept() -> None:
    share = FairShare()
    for number in range(5_000):
        share.on_join(f"caller{number}", ["steady"])
        share.charge(f"caller{number}", 0.1, 1.0)
        share.charge("steady", 0.1, 1.0)
    assert len(share._seconds) <= 130
    share.on_join("back", ["steady"])
    assert share.served_seconds("back") == share.served_seconds("steady")


def test_credit_that_a_caller_has_used_up_is_kept_while_it_is_away() -> None:
    share = FairShare()
    share.charge("flood", 1_000.0, 1.0)
    for number in range(5_000):
        share.on_join(f"caller{number}", ["steady"])
        share.charge("steady", 0.1, 1.0)
    assert share.served_seconds("flood") == 1_000.0


def test_prompts_as_large_as_a_cache_stop_other_callers_for_seconds_only() -> None:
    policy, engines = AdmissionPolicy(Limits()), [EngineLoad("e", 0.0, 0.3, 100_000.0)]

    def send(name: str, caller: str, tokens: float, now: float) -> AdmissionAction:
        route = RouteRequest(name, PrefixChain((), (), 0), tokens, None)
        queued = QueuedRequest(name, now, 5.0, tokens * 1e-4, tenant=caller)
        return policy.admit(AdmissionRequest(queued, route, tokens), engines, now).action

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
