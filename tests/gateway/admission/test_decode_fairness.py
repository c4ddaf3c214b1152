"""Answers count as service: long ones of one caller leave places for others, in simulated time."""

import heapq
from collections import Counter

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.limits import Limits
from fairlead_gateway.admission.admission_policy import AdmissionAction, AdmissionPolicy, AdmissionRequest
from fairlead_gateway.admission.fair_share import FairShare, decode_seconds
from fairlead_gateway.admission.kv_capacity import EngineLoad, KvCapacityPlanner
from fairlead_gateway.admission.output_lengths import OutputForecast, OutputLengths
from fairlead_gateway.admission.request_queue import RequestQueue
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_testing.gateway.caller_overload import admission_request, queued_request

PROFILE = builtin_profile("h100-llama8b")
TOKEN_SECONDS = 0.02
ANSWER_TOKENS = 2_000


class AnswerOverload:
    """One engine whose memory holds 18 answers, of 40 s each, and two callers with tiny prompts.

    The flood asks for an answer each second, the steady caller for one every ten seconds. That is a
    quarter of what the engine can do.
    """

    def __init__(self) -> None:
        self.policy = AdmissionPolicy(Limits())
        self.served: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self._running: list[tuple[float, str]] = []
        self._requests: dict[str, AdmissionRequest] = {}

    def run(self, seconds: int) -> None:
        for second in range(seconds):
            self._end_answers(float(second))
            self._arrive("flood", second)
            if second % 10 == 5:
                self._arrive("steady", second)
            self._release(float(second))

    def _arrive(self, caller: str, second: int) -> None:
        name, now = f"{caller}/{second}", float(second)
        request = self._requests[name] = admission_request(
            name, now, 5.0, PROFILE.prefill_time(10.0), tenant=caller, tokens=10.0, most=ANSWER_TOKENS
        )
        request.length_class = caller
        expected = self.policy.kv_capacity.expected_output(request.request, 10.0, caller, now)
        request.decode_seconds = decode_seconds(PROFILE, 10.0, expected, 1)
        verdict = self.policy.admit(request, self._engines(), now)
        for displaced, _ in verdict.displaced:
            self.lost[displaced.partition("/")[0]] += 1
        if verdict.action is AdmissionAction.REFUSE:
            self.lost[caller] += 1
        elif verdict.action is AdmissionAction.ADMIT:
            self._serve(name, now)

    def _release(self, now: float) -> None:
        for name, _ in self.policy.take_expired(1, now):
            self.lost[name.partition("/")[0]] += 1
        while (released := self.policy.release_next(self._engines(), now)) is not None:
            self._serve(released.id, now)

    def _serve(self, name: str, now: float) -> None:
        request, caller = self._requests[name], name.partition("/")[0]
        self.served[caller] += 1
        self.policy.kv_capacity.on_dispatch(request.request, "e", 10.0, caller, now)
        self.policy.kv_capacity.on_first_token(name, now)
        heapq.heappush(self._running, (now + ANSWER_TOKENS * TOKEN_SECONDS, name))

    def _end_answers(self, now: float) -> None:
        while self._running and self._running[0][0] <= now:
            at, name = heapq.heappop(self._running)
            request = self._requests.pop(name)
            self.policy._queue.settle(request, decode_seconds(PROFILE, 10.0, ANSWER_TOKENS, 1))
            self.policy.on_finish(name, request.length_class, 10.0, ANSWER_TOKENS, at)
            self._release(at)

    def _engines(self) -> list[EngineLoad]:
        return [EngineLoad("e", 0.0, 0.3, 40_000.0)]


def test_long_answers_of_one_caller_take_no_place_from_a_caller_below_its_share() -> None:
    overload = AnswerOverload()
    overload.run(1_200)
    assert overload.lost["steady"] == 0  # by prompt work alone, two of five
    assert overload.served["steady"] >= 115
    assert overload.served["flood"] >= 500


def test_next_free_place_goes_to_the_caller_whose_answers_took_least() -> None:
    queue = RequestQueue()
    for number in range(3):
        queue.add(queued_request(f"f{number}", 0.0, 100.0, 0.01, tenant="flood", decode_seconds=2.0))
        queue.add(queued_request(f"s{number}", 1.0, 100.0, 0.01, tenant="steady", decode_seconds=0.1))
    order = []
    while (turn := queue.peek(2.0)) is not None:
        queue.take(turn)
        order.append(turn.request.id)
    assert order == ["f0", "s0", "s1", "s2", "f1", "f2"]


def test_answer_that_took_more_than_expected_costs_its_caller_a_turn() -> None:
    queue = RequestQueue()
    requests = [queued_request(f"f{number}", 0.0, 100.0, 0.01, tenant="flood") for number in range(2)]
    for request in (*requests, queued_request("s0", 1.0, 100.0, 0.01, tenant="steady")):
        queue.add(request)
    first = queue.peek(2.0)
    assert first is not None
    queue.take(first)
    queue.settle(first.request, 5.0)
    queue.settle(first.request, 5.0)  # a second report of the same changes nothing
    assert queue.peek(2.0).request.id == "s0"
    assert queue._fair_share.served_seconds("flood") == pytest.approx(5.01)


def test_settlement_gives_no_credit_below_none_and_none_to_a_forgotten_caller() -> None:
    share = FairShare()
    share.charge("flood", 1.0, 1.0)
    share.settle("flood", -3.0, 1.0)
    share.settle("gone", 5.0, 1.0)
    assert list(share._served) == ["flood"]
    assert share.served_seconds("flood") == 0.0


def test_each_sequence_of_a_request_counts_as_work_and_as_memory() -> None:
    assert decode_seconds(PROFILE, 10.0, 100.0, 128) == pytest.approx(128 * decode_seconds(PROFILE, 10.0, 100.0, 1))
    planner = KvCapacityPlanner(OutputForecast(OutputLengths(max_classes=2)))
    running, other = (RouteRequest(name, PrefixChain((), (), 0), 10.0, 100.0) for name in ("running", "other"))
    running.sequences = 128
    planner.on_dispatch(running, "e", 10.0, None, 0.0)
    assert planner.missing_tokens(EngineLoad("e", 0.0, 0.3, 10_000.0), other, 10.0, None, 0.0) > 0.0
    assert not planner.has_headroom(running, 20_000.0)


def test_answer_in_flight_counts_by_the_time_since_its_first_token_up_to_its_limit() -> None:
    planner = KvCapacityPlanner(OutputForecast(OutputLengths(max_classes=2)))
    planner.on_dispatch(RouteRequest("r", PrefixChain((), (), 0), 10.0, 400.0), "e", 10.0, None, 0.0)
    assert planner.elapsed_output("r", 0.0, 2.0) == pytest.approx(101.0)
    planner.on_first_token("r", 1.0)
    assert planner.elapsed_output("r", 0.0, 2.0) == pytest.approx(51.0)
    assert planner.elapsed_output("r", 0.0, 100.0) == 400.0
    assert planner.elapsed_output("unknown", 0.0, 2.0) == 0.0
