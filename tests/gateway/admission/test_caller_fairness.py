"""Callers under overload: one below its share loses nothing to a flood."""

import heapq
from collections import Counter
from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_gateway.admission.fair_share import FairShare
from fairlead_gateway.admission.kv_capacity import EngineLoad
from fairlead_gateway.admission.policy import AdmissionAction, AdmissionPolicy, AdmissionRequest
from fairlead_gateway.admission.request_queue import QUANTUM_SECONDS, QueuedRequest, RequestQueue
from fairlead_gateway.routing import PrefixChain, RouteRequest

SERVICE_SECONDS = 1.0


class Overload:
    """One engine that serves a request per second, before it callers with fixed rates."""

    def __init__(self, limits: Limits, rates: dict[str, float], *, body_bytes: int = 100) -> None:
        self.policy = AdmissionPolicy(limits)
        self.body_bytes = body_bytes
        self.served: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.waits: dict[str, list[float]] = {caller: [] for caller in rates}
        self._busy_until = 0.0
        self._arrivals = [(1.0 / rate, caller, 1.0 / rate) for caller, rate in rates.items()]
        heapq.heapify(self._arrivals)
        self._number = 0

    def run(self, seconds: float) -> None:
        while (now := min(self._arrivals[0][0], self._next_end())) < seconds:
            if now >= self._busy_until:
                self._release(now)
            if self._arrivals[0][0] <= now:
                at, caller, pause = heapq.heappop(self._arrivals)
                heapq.heappush(self._arrivals, (at + pause, caller, pause))
                self._arrive(caller, now)

    def lost_share(self, caller: str) -> float:
        return self.lost[caller] / (self.lost[caller] + self.served[caller])

    def _next_end(self) -> float:
        return self._busy_until if len(self.policy) else float("inf")

    def _engines(self, now: float) -> list[EngineLoad]:
        return [EngineLoad("e", max(0.0, self._busy_until - now), SERVICE_SECONDS, None)]

    def _arrive(self, caller: str, now: float) -> None:
        self._number += 1
        name = f"{caller}/{self._number}"
        queued = QueuedRequest(name, now, 5.0, SERVICE_SECONDS, tenant=caller, body_bytes=self.body_bytes)
        route = RouteRequest(name, PrefixChain((), (), self._number), 100.0, None)
        verdict = self.policy.admit(AdmissionRequest(queued, route, 100.0), self._engines(now), now)
        for displaced, _ in verdict.displaced:
            self.lost[displaced.partition("/")[0]] += 1
        if verdict.action is AdmissionAction.REFUSE:
            self.lost[caller] += 1
        elif verdict.action is AdmissionAction.ADMIT:
            self._serve(name, 0.0, now)

    def _release(self, now: float) -> None:
        for name, _ in self.policy.take_expired(1, now):
            self.lost[name.partition("/")[0]] += 1
        released = self.policy.release_next(self._engines(now), now)
        if released is not None:
            self._serve(released.id, released.waited_seconds, now)

    def _serve(self, name: str, waited: float, now: float) -> None:
        caller = name.partition("/")[0]
        self.served[caller] += 1
        self.waits[caller].append(waited)
        self._busy_until = max(self._busy_until, now) + SERVICE_SECONDS


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.45])
def test_flood_takes_nothing_from_a_caller_below_its_share(rate: float) -> None:
    overload = Overload(Limits(), {"flood": 5.0, "steady": rate})
    overload.run(600.0)
    assert overload.lost_share("steady") <= 0.02
    waits = overload.waits["steady"]
    assert max(waits[len(waits) // 2 :]) <= 5.0  # the flood had filled the engine before it began
    assert overload.served["flood"] + overload.served["steady"] >= 590


@pytest.mark.parametrize("bounds", [{"queued_requests": 10}, {"queued_bytes": 1_000}])
def test_flood_takes_no_place_in_the_queue_from_a_caller_below_its_share(bounds: dict[str, int]) -> None:
    overload = Overload(replace(Limits(), **bounds), {"flood": 5.0, "steady": 0.3})
    overload.run(600.0)
    assert overload.lost_share("steady") <= 0.02
    assert len(overload.policy) == 10


def test_two_floods_share_equally_whatever_their_rates() -> None:
    overload = Overload(Limits(), {"large": 9.0, "small": 3.0})
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
