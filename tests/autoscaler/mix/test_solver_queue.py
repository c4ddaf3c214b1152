"""Queries about the mix are solved in the background; each reply is delivered once."""

import threading
from concurrent.futures import Executor, Future
from typing import Any

from fairlead_autoscaler.core import MixRequest, MixResult
from fairlead_autoscaler.mix import SolverQueue


class ByHand(Executor):
    """An executor that runs its work on demand, one item after the other."""

    def __init__(self) -> None:
        self.given: list[tuple[Future[Any], Any, Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.given.append((future, fn, args))
        return future

    def next(self) -> None:
        future, fn, args = self.given.pop(0)
        if future.set_running_or_notify_cancel():
            future.set_result(fn(*args))


def answer(asked: MixRequest) -> MixResult:
    return MixResult(asked.at, {"S": int(asked.at)}, "milp")


def question(at: float) -> MixRequest:
    return MixRequest(at, (), ())


def test_an_answer_is_told_once_and_to_the_model_that_asked() -> None:
    by_hand = ByHand()
    desk = SolverQueue(answer, by_hand)
    desk.submit("one", {"Serve": question(5.0), "Prefill": question(6.0)})
    assert desk.take_results("one") == {}
    by_hand.next()
    assert desk.take_results("other") == {}
    assert desk.take_results("one") == {"Serve": MixResult(5.0, {"S": 5}, "milp")}
    assert desk.take_results("one") == {}
    by_hand.next()
    assert list(desk.take_results("one")) == ["Prefill"]


def test_a_newer_question_takes_the_place_of_one_that_was_not_begun() -> None:
    by_hand, solved = ByHand(), []

    def noting(asked: MixRequest) -> MixResult:
        solved.append(asked.at)
        return answer(asked)

    desk = SolverQueue(noting, by_hand)
    desk.submit("one", {"Serve": question(5.0)})
    desk.submit("one", {"Serve": question(305.0)})
    by_hand.next()
    assert by_hand.given == []
    assert solved == [305.0]
    assert desk.take_results("one")["Serve"].asked_at == 305.0


def test_what_a_model_asked_that_is_gone_is_forgotten() -> None:
    by_hand = ByHand()
    desk = SolverQueue(answer, by_hand)
    desk.submit("one", {"Serve": question(5.0)})
    desk.submit("two", {"Serve": question(6.0)})
    desk.retain({"two"})
    by_hand.next()
    by_hand.next()
    assert desk.take_results("one") == {}
    assert desk.take_results("two")["Serve"].asked_at == 6.0
    desk.submit("one", {"Serve": question(7.0)})
    by_hand.next()
    desk.retain({"two"})
    assert desk.take_results("one") == {}


def test_many_problems_of_one_namespace_delay_one_of_another_by_one_only() -> None:
    by_hand, solved = ByHand(), []

    def noting(asked: MixRequest) -> MixResult:
        solved.append(asked.at)
        return answer(asked)

    desk = SolverQueue(noting, by_hand)
    for number in range(100):
        desk.submit(f"flood/m{number}", {"Serve": question(number)})
    desk.submit("calm/m", {"Serve": question(1_000.0)})
    by_hand.next()
    by_hand.next()
    assert solved == [0.0, 1_000.0]
    assert desk.take_results("calm/m")["Serve"].asked_at == 1_000.0


def test_problem_that_is_asked_again_keeps_its_place() -> None:
    by_hand, solved = ByHand(), []

    def noting(asked: MixRequest) -> MixResult:
        solved.append(asked.at)
        return answer(asked)

    desk = SolverQueue(noting, by_hand)
    for at in (0.0, 300.0):
        for name in ("a", "b", "c"):
            desk.submit(f"chat/{name}", {"Serve": question(at)})
    for _ in range(3):
        by_hand.next()
    assert solved == [300.0] * 3
    assert by_hand.given == []


def test_whoever_asks_goes_on_while_a_solver_takes_its_time() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(asked: MixRequest) -> MixResult:
        begun.set()
        assert go_on.wait(60.0)
        return answer(asked)

    desk = SolverQueue(slow)
    desk.submit("one", {"Serve": question(5.0)})
    assert begun.wait(60.0)
    assert desk.take_results("one") == {}
    go_on.set()
    desk.close()
