"""When a request goes at once, when it is held, when it is refused, and who goes next."""

from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_gateway.admission.policy import (
    AdmissionAction,
    AdmissionPolicy,
    AdmissionRequest,
    AdmissionVerdict,
    EngineLoad,
)
from fairlead_gateway.admission.request_queue import QueuedRequest
from fairlead_gateway.routing import PrefixChain, RouteRequest


def asked(
    name: str, arrival: float = 0.0, objective: float = 1.0, own: float = 0.1, **more: object
) -> AdmissionRequest:
    tokens = float(more.pop("tokens", 100.0))  # type: ignore[arg-type]
    sheddable = bool(more.pop("sheddable", False))
    most = more.pop("most", None)
    request = RouteRequest(name, PrefixChain((), (), hash(name)), tokens, most)  # type: ignore[arg-type]
    return AdmissionRequest(QueuedRequest(name, arrival, objective, own, **more), request, tokens, sheddable=sheddable)  # type: ignore[arg-type]


def engines(*backlogs: float, kv: float | None = None) -> list[EngineLoad]:
    return [EngineLoad(f"e{number}", backlog, 0.3, kv) for number, backlog in enumerate(backlogs)]


def mixed(limits: Limits | None = None) -> AdmissionPolicy:
    """A gate that has seen two objectives."""
    gate = AdmissionPolicy(limits or Limits())
    gate.admit(asked("early", objective=4.0), engines(0.0), 0.0)
    gate.admit(asked("tight", objective=0.5), engines(0.0), 0.0)
    return gate


def hold(gate: AdmissionPolicy, *ones: AdmissionRequest, now: float = 0.0) -> None:
    for one in ones:
        assert gate.admit(one, engines(9.0, 9.0), now).action is AdmissionAction.QUEUE


def test_while_all_want_the_same_nobody_is_held_however_busy_the_engines_are() -> None:
    gate = AdmissionPolicy(Limits())
    for number in range(50):
        verdict = gate.admit(asked(f"r{number}"), engines(30.0, 30.0), 0.1 * number)
        assert (verdict.action, verdict.rule, verdict.full_instances) == (AdmissionAction.ADMIT, "open", frozenset())


def test_where_objectives_differ_busy_engines_are_passed_by_and_full_ones_waited_for() -> None:
    gate = mixed()
    verdict = gate.admit(asked("a"), engines(9.0, 0.0), 1.0)
    assert (verdict.action, verdict.full_instances) == (AdmissionAction.ADMIT, {"e0"})
    verdict = gate.admit(asked("b", arrival=1.0), engines(9.0, 0.2), 1.0)
    assert verdict.action is AdmissionAction.QUEUE
    assert "all 2 engines are busy" in verdict.reason
    assert gate.release_next(engines(9.0, 0.2), 1.1) is None
    release = gate.release_next(engines(9.0, 0.0), 1.5)
    assert release is not None
    assert (release.id, release.rule, release.full_instances, len(gate)) == ("b", "deadline", {"e0"}, 0)
    assert release.waited_seconds == pytest.approx(0.5)


def test_who_comes_later_does_not_pass_who_is_held() -> None:
    gate = mixed()
    hold(gate, asked("a"))
    verdict = gate.admit(asked("b"), engines(0.0, 0.0), 0.1)
    assert (verdict.action, len(gate)) == (AdmissionAction.QUEUE, 2)


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"tier": 1}])
def test_a_second_tenant_or_tier_is_a_reason_to_hold(other: dict[str, object]) -> None:
    gate = AdmissionPolicy(Limits())
    assert gate.admit(asked("a", tenant="a"), engines(9.0), 0.0).action is AdmissionAction.ADMIT
    assert gate.admit(asked("b", **{"tenant": "a", **other}), engines(9.0), 0.0).action is AdmissionAction.QUEUE


def test_without_a_ready_engine_it_is_held_until_there_is_one() -> None:
    gate = AdmissionPolicy(Limits())
    verdict = gate.admit(asked("a"), [], 0.0)
    assert (verdict.action, verdict.rule) == (AdmissionAction.QUEUE, "held-starting")
    assert gate.release_next([], 1.0) is None
    release = gate.release_next(engines(0.0), 7.0)
    assert release is not None
    assert release.id == "a"


def test_memory_that_would_overflow_is_waited_for_and_no_other_is_let_past() -> None:
    gate = AdmissionPolicy(Limits())
    first, big, small = asked("first", tokens=600.0), asked("big", tokens=600.0), asked("small", tokens=10.0)
    assert gate.admit(first, engines(0.0, kv=1_000.0), 0.0).action is AdmissionAction.ADMIT
    gate.kv_capacity.on_dispatch(first.request, "e0", 600.0, None, 0.0)
    verdict = gate.admit(big, engines(0.0, kv=1_000.0), 0.0)
    assert verdict.action is AdmissionAction.QUEUE
    assert "memory" in verdict.reason
    assert gate.admit(small, engines(0.0, kv=1_000.0), 0.0).action is AdmissionAction.QUEUE
    assert gate.release_next(engines(0.0, kv=1_000.0), 0.5) is None
    gate.on_finish("first", None, 600.0, 20, 1.0)
    release = gate.release_next(engines(0.0, kv=1_000.0), 1.0)
    assert release is not None
    assert release.id == "big"


def test_memory_that_nobody_stated_stops_nobody() -> None:
    gate = AdmissionPolicy(Limits())
    for number in range(40):
        one = asked(f"r{number}", tokens=1e6)
        assert gate.admit(one, engines(0.0), 0.0).action is AdmissionAction.ADMIT
        gate.kv_capacity.on_dispatch(one.request, "e0", 1e6, None, 0.0)


def test_only_sheddable_requests_are_refused_for_their_objective_and_told_when_to_come_back() -> None:
    gate = mixed()
    hold(gate, *(asked(f"r{number}", own=0.5) for number in range(20)))
    verdict = gate.admit(asked("cheap", sheddable=True), engines(9.0, 9.0), 0.0)
    assert (verdict.action, verdict.rule, verdict.is_shed) == (AdmissionAction.REFUSE, "shed", True)
    assert verdict.retry_after == pytest.approx(10.0 / 2 - 0.9)  # 10 s of work, two engines, 0.9 s to spare
    assert "10" in verdict.reason or "5.0 s" in verdict.reason
    assert gate.admit(asked("dear"), engines(9.0, 9.0), 0.0).action is AdmissionAction.QUEUE


def test_the_pace_of_the_line_is_what_was_let_go() -> None:
    gate = mixed()
    hold(gate, *(asked(f"r{number}", own=0.5, objective=60.0) for number in range(40)))
    for turn in range(1, 21):  # half a second of work in each second
        assert gate.release_next(engines(0.0, 9.0), float(turn)) is not None
    assert gate.expected_wait(0, 2, 20.0) == pytest.approx(20 * 0.5 / 0.5, rel=0.15)


def test_the_line_has_limits_of_number_and_bytes() -> None:
    gate = mixed(replace(Limits(), queued_requests=2, queued_bytes=100))
    hold(gate, asked("a", body_bytes=60))
    full = gate.admit(asked("b", body_bytes=60), engines(9.0), 0.0)
    assert (full.action, full.rule, full.is_shed) == (AdmissionAction.REFUSE, "line-full", False)
    hold(gate, asked("c", body_bytes=1))
    assert _refused(gate.admit(asked("d"), engines(9.0), 0.0)) == "line-full"
    assert gate.remove("a")
    assert not gate.remove("a")
    hold(gate, asked("e", body_bytes=90))


def test_nobody_is_held_longer_than_the_limit() -> None:
    gate = mixed(replace(Limits(), queue_seconds=10.0))
    hold(gate, asked("a", arrival=0.0), asked("b", arrival=5.0))
    assert gate.take_expired(2, 9.9) == []
    ((name, verdict),) = gate.take_expired(2, 10.0)
    assert (name, verdict.rule, verdict.is_shed) == ("a", "held-too-long", False)
    assert len(gate) == 1


def test_a_sheddable_one_is_refused_where_another_would_go_before_all() -> None:
    gate = mixed()
    hold(gate, asked("cheap", own=0.1, sheddable=True), asked("dear", own=0.1))
    assert gate.take_expired(2, 2.8) == []
    ((name, verdict),) = gate.take_expired(2, 3.0)
    assert (name, verdict.rule, verdict.is_shed) == ("cheap", "shed-late", True)


def test_long_prompts_leave_engines_to_short_ones() -> None:
    gate = AdmissionPolicy(Limits())
    for number in range(40):  # half of the work is short
        gate.admit(asked(f"s{number}", objective=0.5, own=0.1), engines(0.0), 0.1 * number)
        if number % 5 == 0:
            gate.admit(asked(f"l{number}", objective=9.0, own=0.5), engines(0.0), 0.1 * number)
    busy = engines(0.5, 0.5, 0.0, 0.0)
    verdict = gate.admit(asked("long", arrival=4.0, objective=9.0, own=0.5), busy, 4.0)
    assert verdict.action is AdmissionAction.QUEUE
    assert "long prompts" in verdict.reason
    assert (
        gate.admit(asked("short", arrival=4.0, objective=0.5), busy, 4.0).action is AdmissionAction.QUEUE
    )  # behind the long one
    release = gate.release_next(busy, 4.1)
    assert release is not None
    assert release.id == "short"
    assert gate.release_next(busy, 4.2) is None
    freed = gate.release_next(engines(0.5, 0.0, 0.0, 0.0), 4.3)
    assert freed is not None
    assert freed.id == "long"


def test_an_engine_that_has_begun_nothing_is_kept_for_the_long_prompt_whose_turn_it_is() -> None:
    gate = mixed()
    hold(gate, asked("long", objective=4.0, own=0.9), asked("s1", arrival=3.9), asked("s2", arrival=3.9))
    nearly = engines(0.05, 0.02)
    passing = gate.release_next(nearly, 4.0 - 0.95)
    assert passing is not None
    assert (passing.id, passing.full_instances) == ("s1", {"e1"})  # the emptiest is not filled up again
    assert gate.release_next(engines(0.2, 0.02), 3.06) is None
    emptied = gate.release_next(engines(0.2, 0.0), 3.07)
    assert emptied is not None
    assert (emptied.id, emptied.full_instances) == ("long", {"e0"})


def _refused(verdict: AdmissionVerdict) -> str:
    assert verdict.action is AdmissionAction.REFUSE
    return verdict.rule
